"""Compile every kernel for GPUs, as a block would launch it. Needs none."""

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mmpsa import PolarizedSelfAttention
from mmpsa.ops import triton_passes
from mmpsa.ops.collapsed import form_of, weights_of
from mmpsa.ops.fused import fused
from mmpsa.psa import LAYOUTS

TYPES = {
    torch.float32: '*fp32',
    torch.bfloat16: '*bf16',
    torch.float16: '*fp16',
    int: 'i32',
    float: 'fp32',
}


class Compiler:
    """Stands for a kernel; a launch compiles it."""

    count = 0

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return self.launch

    def launch(self, *args, num_warps=4, **constants):
        names = self.kernel.arg_names
        signature, constexprs = {}, {}
        for name, value in {**dict(zip(names, args)), **constants}.items():
            kind = value.dtype if torch.is_tensor(value) else type(value)
            is_one = kind is int and value == 1
            if is_one or value is None or name in constants:
                kind, constexprs[name] = 'constexpr', value
            signature[name] = TYPES.get(kind, kind)
        source = ASTSource(self.kernel, signature, constexprs)
        target, options = GPUTarget('cuda', 80, 32), {'num_warps': num_warps}
        triton.compile(source, target=target, options=options)
        Compiler.count += 1


for name, kernel in vars(triton_passes).copy().items():
    if isinstance(kernel, triton.JITFunction) and name.endswith('_kernel'):
        setattr(triton_passes, name, Compiler(kernel))
for variant, layout, shape, dtype in (
    *(
        (variant, layout, (2, 32, 768), torch.float32)
        for variant, layouts in LAYOUTS.items()
        for layout in layouts
        if (variant, layout) != ('official', 'sequential')
    ),
    ('paper', 'parallel', (2, 2048, 35), torch.bfloat16),
):
    block = PolarizedSelfAttention(shape[1], layout, variant)
    weights = weights_of(block)
    x = torch.zeros(shape, dtype=dtype, requires_grad=True)
    form, names = form_of(block), tuple(weights)
    fused('triton', x, form, names, *weights.values()).sum().backward()
print(Compiler.count)
