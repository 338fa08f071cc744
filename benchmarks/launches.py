"""What the Triton kernels launch for an input, read without a GPU.

The launches are recorded, not run: tensors are on ``meta``, the arguments are
those that a GPU would get. Triton compiles them as its JIT would.
"""

import re
from typing import NamedTuple
from unittest import mock

import torch
import triton
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from mmpsa import PolarizedSelfAttention
from mmpsa.ops import triton_kernels

TYPES = {
    torch.float32: '*fp32',
    torch.bfloat16: '*bf16',
    torch.float16: '*fp16',
    int: 'i32',
    bool: 'i1',
}


class Launch(NamedTuple):
    """One launch: the kernel, the programs, the arguments by name."""

    kernel: object
    grid: tuple
    values: dict
    constants: dict
    warps: int

    @property
    def name(self):
        """The kernel's name."""
        return self.kernel.fn.__name__

    @property
    def bytes(self):
        """What it reads or writes, each tensor once."""
        tensors = {
            (value.untyped_storage()._cdata, value.storage_offset()): value
            for value in self.values.values()
            if torch.is_tensor(value)
        }
        return sum(tensor.nbytes for tensor in tensors.values())

    def source(self):
        """The kernel as the JIT would specialise it for the arguments."""
        signature, constants, attributes = {}, dict(self.constants), {}
        for i, (name, value) in enumerate(self.values.items()):
            is_tensor = torch.is_tensor(value)
            kind = value.dtype if is_tensor else type(value)
            signature[name] = TYPES.get(kind, 'constexpr')
            if is_tensor:
                start = value.storage_offset() * value.element_size()
            elif value is None or value == 1:
                signature[name], constants[name] = 'constexpr', value
                continue
            elif value >= 2**31:
                signature[name] = 'i64'
            if (start if is_tensor else value) % 16 == 0:
                attributes[(i,)] = [['tt.divisibility', 16]]
        signature.update(dict.fromkeys(self.constants, 'constexpr'))
        return ASTSource(self.kernel, signature, constants, attributes)

    def key(self):
        """The same for launches that one compilation serves."""
        source = self.source()
        return repr(
            (
                self.name,
                source.signature,
                source.constants,
                source.attrs,
                self.warps,
            )
        )

    def compile(self, capability):
        """Triton's result for a GPU of a compute capability, as 90."""
        return triton.compile(
            self.source(),
            target=GPUTarget('cuda', capability, 32),
            options=dict(num_warps=self.warps, **triton_kernels._OPTIONS),
        )

    def ttir(self):
        """Triton's first representation, in a tenth of the time."""
        source, target = self.source(), GPUTarget('cuda', 90, 32)
        backend = make_backend(target)
        options = backend.parse_options(dict(num_warps=self.warps))
        context = ir.context()
        ir.load_dialects(context)
        backend.load_dialects(context)
        module = source.make_ir(
            target,
            options,
            backend.get_codegen_implementation(options),
            backend.get_module_map(),
            context,
        )
        stages = {}
        backend.add_stages(stages, options, source.language)
        return str(stages['ttir'](module, {}))


def launches(spec, shape, dtype, last=False, processors=132):
    """The launches of a forward and of its backward.

    Args:
        spec (tuple[str]): Variant and layout.
        shape (tuple[int]): N, C, H, W.
        dtype (torch.dtype): Of the input.
        last (bool): Whether the input is channels_last.
        processors (int): The multiprocessors of the GPU.

    Returns:
        tuple[list[Launch]]: Those of the forward, those of the backward.
    """
    variant, layout = spec
    block = PolarizedSelfAttention(shape[1], layout, variant).to('meta')
    weights = [weight for weight in block.weights if weight is not None]
    x = torch.empty(shape, dtype=dtype, device='meta')
    if last:
        x = x.to(memory_format=torch.channels_last)
    found = []

    def record(kernel, grid, like, *args, num_warps, **constants):
        values = dict(zip(kernel.arg_names, args))
        found.append(Launch(kernel, grid, values, constants, num_warps))

    with mock.patch.multiple(
        triton_kernels, _launch=record, _processors=lambda x: processors
    ):
        y, *saved = triton_kernels.psa(x, weights, *block.spec)
        forward = len(found)
        triton_kernels.psa_backward(y, x, weights, *saved, *block.spec)
    return found[:forward], found[forward:]


_FOR = re.compile(r'(?:.* = )?scf\.for .* = (\S+) to (\S+) step (\S+) ')
_IF = re.compile(r'(?:.* = )?scf\.if (\S+) ')
_CONSTANT = re.compile(r'(\S+) = arith\.constant (-?\d+) : i\d+')
_NUMBER = re.compile(r'(\S+) = (arith\.\w+)((?: \w+,)?) (.*?) : i\d+')
_OPERATIONS = {
    'arith.addi': lambda a, b: a + b,
    'arith.subi': lambda a, b: a - b,
    'arith.muli': lambda a, b: a * b,
    'arith.divsi': lambda a, b: a // b,
    'arith.remsi': lambda a, b: a % b,
    'arith.extsi': lambda a: a,
    'arith.minsi': min,
    'arith.maxsi': max,
    'arith.cmpi eq,': lambda a, b: a == b,
    'arith.cmpi slt,': lambda a, b: a < b,
}


def loads(text, launch):
    """How often a program's loops load, and how often it waits for loads.

    It waits once for all loads up to the next loop, barrier, or sum. Loads in
    a loop wait each time.

    Args:
        text (str): The kernel in Triton's first representation, ``ttir``,
            whose loops and loads are those of the source.
        launch (Launch): The launch, for its arguments.

    Returns:
        tuple[int, int]: The most iterations of a loop that loads, times those
        of the loops around it; the waits. Of the program that has the most.
    """
    rows = range(launch.grid[1] if len(launch.grid) > 1 else 1)
    found = [_loads(text, launch.values, (0, row)) for row in rows]
    return tuple(map(max, zip(*found)))


def _loads(text, values, program):
    known = {f'%{name}': n for name, n in values.items() if type(n) is int}
    known.update({'%true': 1, '%false': 0})
    most, waits, is_waiting = 1, 0, False
    # How often each open region runs, and would if its condition were not so.
    around = [(1, 1)]
    _, _, body = text.partition('tt.func ')
    for line in body.splitlines()[1:]:
        line = re.sub(r' loc\(.*', '', line).strip()
        if found := _CONSTANT.match(line):
            known[found[1]] = int(found[2])
        elif found := re.match(r'(\S+) = tt.get_program_id ([xy])', line):
            known[found[1]] = program['xy'.index(found[2])]
        elif found := _NUMBER.match(line):
            numbers = [known.get(each) for each in found[4].split(', ')]
            compute = _OPERATIONS.get(found[2] + found[3])
            if compute and None not in numbers:
                known[found[1]] = compute(*numbers)
        elif found := _FOR.match(line):
            first, last, step = (known[name] for name in found.groups())
            runs = around[-1][0] * max(0, -((first - last) // step))
            around.append((runs, 0))
            is_waiting = False
        elif line == '} else {':
            around[-1] = around[-1][::-1]
        elif line.startswith('}') and not line.startswith('})'):
            around.pop()
            is_waiting = False
            if not around:
                break
        elif line.endswith('{') and not line.endswith('({'):
            found = _IF.match(line)
            runs, condition = around[-1][0], known.get(found and found[1])
            both = runs * (condition != 0), runs * (not condition)
            around.append(both)
        elif 'tt.reduce' in line or 'barrier' in line:
            is_waiting = False
        elif ' tt.load ' in line and around[-1][0]:
            most = max(most, around[-1][0])
            waits += 0 if is_waiting else around[-1][0]
            is_waiting = True
    return most, waits
