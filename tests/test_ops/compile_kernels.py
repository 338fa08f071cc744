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
compiled = wide = 0


def compile_launch(kernel, grid, device, *args, num_warps=4, **constants):
    """Stands for a launch."""
    global compiled, wide
    names = kernel.arg_names
    signature, constexprs = {}, {}
    for name, value in {**dict(zip(names, args)), **constants}.items():
        kind = value.dtype if torch.is_tensor(value) else type(value)
        is_one = kind is int and value == 1
        is_long = kind is int and value >= 2**31
        if is_one or value is None or name in constants:
            kind, constexprs[name] = 'constexpr', value
        signature[name] = 'i64' if is_long else TYPES.get(kind, kind)
    source = ASTSource(kernel, signature, constexprs)
    target, options = GPUTarget('cuda', 80, 32), {'num_warps': num_warps}
    triton.compile(source, target=target, options=options)
    compiled += 1
    wide += constants.get('OFFSET') is triton.language.int64


triton_kernels._launch = compile_launch
for kind, shape, dtype in (
    *(
        (kind, (2, 32, 24, 32), torch.float32)
        for kind in KINDS
        if kind != ('official', 'sequential')
    ),
    (('paper', 'parallel'), (2, 2048, 7, 5), torch.bfloat16),
    (('paper', 'sequential'), (2, 512, 7, 5), torch.float16),
    # 2^32 elements an image, without memory for them
    (('paper', 'parallel'), (2, 64, 2**13, 2**13), torch.float32),
    (('official', 'parallel'), (2, 64, 2**13, 2**13), torch.bfloat16),
):
    block = make_block(*kind, shape[1]).to('meta')
    weights = [weight for weight in block.weights if weight is not None]
    x = torch.empty(shape, dtype=dtype, device='meta')
    y, *saved = triton_kernels.psa(x, weights, *block.spec)
    triton_kernels.psa_backward(y, x, weights, *saved, *block.spec)
print(compiled, wide)
