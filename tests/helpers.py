"""What tests share: a plugin that counts its calls, backbones and blocks to
compare, the repository's scripts, a web server.
"""

import copy
import runpy
import sys
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module, util
from pathlib import Path
from threading import Thread
from unittest import mock

import torch
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from dev.small_backbones import BACKBONES
from mmpsa import PolarizedSelfAttention  # registers the backbones too
from mmpsa.compatibility import allow_checkpoint_classes, release
from mmpsa.ops import LAYOUTS, reference

REPO = Path(__file__).resolve().parents[1]


def load_script(path):
    """A script of the repository as a module.

    Args:
        path (str): Relative to the repository.
    """
    path = REPO / path
    # At the end, where tools/test.py hides nothing of Python's.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = util.spec_from_file_location(path.stem, path)
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_script(path, *arguments):
    """Run a script of the repository as the command line does, in here.

    Args:
        path (str): Relative to the repository.
        arguments (object): What ``str`` makes the command line of.
    """
    path = str(REPO / path)
    folders = [str(Path(path).parent), *sys.path]
    argv = [path, *map(str, arguments)]
    with mock.patch.multiple(sys, argv=argv, path=folders):
        runpy.run_path(path, run_name='__main__')


def torch_load(path, **kwargs):
    """``torch.load`` as ``import mmpsa`` leaves it.

    The loader of mmengine's fork takes back what is allowed.
    """
    allow_checkpoint_classes()
    return torch.load(path, **kwargs)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@contextmanager
def serve(folder):
    """Serve a folder's files on this machine; gives the base URL."""
    handler = partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f'http://127.0.0.1:{server.server_port}'
        finally:
            server.shutdown()


@MODELS.register_module()
class Probe(nn.Module):
    """``x`` times a parameter; counts its calls."""

    _abbr_ = 'probe'

    def __init__(self, in_channels, factor=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((in_channels, 1, 1), factor))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.weight


def probes(module):
    return [m for m in module.modules() if isinstance(m, Probe)]


# float16 on the CPU came later than torch 2.1.
AUTOCAST_DTYPES = [torch.bfloat16]
if release(torch.__version__) >= (2, 6, 0):
    AUTOCAST_DTYPES.append(torch.float16)

# Those that the paper's experiments take, and their kin.
ALL = [
    (codebase, name)
    for codebase in ('mmpose', 'mmseg')
    for name in (
        'HRNet',
        'HRNet-bottleneck',
        'ResNet18',
        'ResNet50',
        'ResNetV1c50',
        'ResNetV1d18',
        'ResNetV1d50',
        'ResNeXt50',
        'SEResNet50',
        'SCNet50',
    )
    if name in BACKBONES[codebase]
]
# Those that can be built here: two want packages of their own, and
# mmpretrain may be absent.
EVERY = [
    (codebase, name)
    for codebase in ('mmpose', 'mmseg', 'mmdet')
    for name in BACKBONES[codebase]
    if name not in ('TIMMBackbone', 'VPD')
]


def build(codebase, name, **kwargs):
    """Build a small backbone through its codebase's registry."""
    registry = import_module(f'{codebase}.registry').MODELS
    cfg = copy.deepcopy(BACKBONES[codebase][name])
    return registry.build(dict(cfg, _scope_=codebase, **kwargs))


def upstream(codebase, name, **kwargs):
    """Build the same backbone from upstream's own class."""
    cfg = copy.deepcopy(BACKBONES[codebase][name])
    backbones = import_module(f'{codebase}.models.backbones')
    with DefaultScope.overwrite_default_scope(codebase):
        return getattr(backbones, cfg.pop('type'))(**dict(cfg, **kwargs))


def last_position(name):
    """The last position that every block of a backbone has."""
    basic = '18' in name or name == 'HRNet'
    return 'after_conv2' if basic else 'after_conv3'


def positions(name):
    """The positions that every block of a backbone has."""
    return [
        f'after_conv{i}' for i in range(1, int(last_position(name)[-1]) + 1)
    ]


def images(size=64, batch=2):
    """Random input, the same each time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, size, size, generator=generator)


def randomise(module):
    """Random weights and statistics, so that no branch is zero."""
    generator = torch.Generator().manual_seed(1)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            if tensor.dim() > 1:
                fan_in = tensor[0].numel()
                tensor.copy_((noise - 0.5) * (12 / fan_in) ** 0.5)
            else:
                tensor.copy_(0.5 + noise)
    return module


KINDS = [
    (variant, layout)
    for variant, layouts in LAYOUTS.items()
    for layout in layouts
]


def draw_weights(module, std=0.5):
    """Draw the parameters of PSA blocks, LayerNorm's and biases too.

    By its own start, a block multiplies its input by nearly the same number,
    whatever it computes.
    """
    for block in module.modules():
        if isinstance(block, PolarizedSelfAttention):
            for parameter in block.parameters():
                nn.init.normal_(parameter, std=std)
    return module


def make_block(variant, layout, channels, seed=0, **kwargs):
    """A block with every parameter random, and its mask_scale not 1."""
    block = PolarizedSelfAttention(channels, layout, variant, **kwargs)
    torch.manual_seed(seed)
    draw_weights(block, std=1)
    for parameter in block.parameters():
        # A convolution returns numbers as large as those of its input.
        wide = parameter.dim() == 4
        parameter.data *= parameter[0].numel() ** -0.5 if wide else 0.5
    if block.mask_scale is not None:
        block.mask_scale.fill_(1.75)
    return block


def compare(block, x, tolerance, g=None, dtype=None, forward=None):
    """Output and all gradients, relative to the largest value of each.

    The equations are computed in ``dtype``, or else in that of ``x``; the
    block by ``forward``, where it is compiled.
    """
    if g is None:
        torch.manual_seed(2)
        g = torch.randn(x.shape, dtype=x.dtype).to(x.device)
    exact = copy.deepcopy(block).to(dtype or x.dtype)

    def equations(x):
        return reference.polarized_self_attention(x, exact.weights, exact.spec)

    results = []
    ours = block if forward is None else forward
    for forward, block in ((ours, block), (equations, exact)):
        weights = list(block.parameters())
        x = x.detach().to(weights[0].dtype).requires_grad_()
        out = forward(x)
        grads = torch.autograd.grad(out, [x, *weights], g.to(out.dtype))
        results.append([out, *grads])
    for ours, expected in zip(*results):
        peak = expected.abs().max().item() if expected.numel() else 0.0
        bound = tolerance * max(1.0, peak)
        torch.testing.assert_close(
            ours.to(expected), expected, rtol=0, atol=bound
        )


def extremes(dtype, peak):
    """Inputs at the edge of what is promised, each sign and mixture."""
    full = torch.full((2, 64, 9, 9), peak, dtype=dtype)
    torch.manual_seed(3)
    noise = torch.rand(2, 64, 9, 9) * 2 - 1
    spike = torch.zeros(2, 64, 9, 9)
    spike[:, ::7, 4, 4] = 1
    for x in (noise, noise.sign(), spike):
        yield (x * peak).to(dtype)
    yield from (full, -full, full[:, :, :1, :1], torch.zeros_like(full))
