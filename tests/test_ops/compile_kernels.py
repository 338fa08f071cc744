"""Compile every kernel for GPUs, as the operator launches it. Needs none."""

import torch
import triton
from helpers import KINDS, make_block
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mmpsa.ops import triton_kernels

TYPES = {
    torch.float32: '*fp32',
    torch.bfloat16: '*bf16',
    torch.float16: '*fp16',
    int: 'i32',
    float: 'fp32',
}
compiled = 0


def compile_launch(kernel, grid, device, *args, num_warps=4, **constants):
    """Stands for a launch."""
    global compiled
    names = kernel.arg_names
    signature, constexprs = {}, {}
    for name, value in {**dict(zip(names, args)), **constants}.items():
        kind = value.dtype if torch.is_tensor(value) else type(value)
        is_one = kind is int and value == 1
        if is_one or value is None or name in constants:
            kind, constexprs[name] = 'constexpr', value
        signature[name] = TYPES.get(kind, kind)
    source = ASTSource(kernel, signature, constexprs)
    target, options = GPUTarget('cuda', 80, 32), {'num_warps': num_warps}
    triton.compile(source, target=target, options=options)
    compiled += 1


triton_kernels._launch = compile_launch
for kind, shape, dtype in (
    *(
        (kind, (2, 32, 24, 32), torch.float32)
        for kind in KINDS
        if kind != ('official', 'sequential')
    ),
    (('paper', 'parallel'), (2, 2048, 7, 5), torch.bfloat16),
    (('paper', 'sequential'), (2, 512, 7, 5), torch.float16),
):
    block = make_block(*kind, shape[1])
    weights = [weight for weight in block.weights if weight is not None]
    x = torch.zeros(shape, dtype=dtype)
    y, *saved = triton_kernels.psa(x, weights, *block.spec)
    triton_kernels.psa_backward(y, x, weights, *saved, *block.spec)
print(compiled)
