"""What is compared: attention blocks, alone and in a network."""

import copy
import itertools
from pathlib import Path

import torch
from mmcv.cnn import build_plugin_layer
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmpose.testing import get_packed_inputs
from torch import nn

import mmpsa

# One for each shape and mode that a network has.
torch._dynamo.config.cache_size_limit = 64

CONTENDERS = {  # name: the plugin
    'no attention': None,
    'SE': dict(type='timm_se'),
    'ECA': dict(type='timm_eca'),
    'CBAM': dict(type='timm_cbam'),
    'coordinate': dict(type='timm_coord'),
    'global context': dict(type='timm_gc'),
    'ContextBlock': dict(type='ContextBlock', ratio=1 / 16),
    'NonLocal2d': dict(type='NonLocal2d'),
    'PSA-p, reference': dict(type='PSA', backend='reference'),
    'PSA-p, torch': dict(type='PSA', backend='torch'),
    'PSA-p, Inductor': dict(type='PSA', backend='torch'),  # torch.compile
    'PSA-p': dict(type='PSA'),
    'PSA-s': dict(type='PSA', layout='sequential'),
}
# In networks; each is held in memory with its optimizer's state.
IN_NETWORKS = (
    'no attention',
    'SE',
    'CBAM',
    'PSA-p, reference',
    'PSA-p, torch',
    'PSA-p, Inductor',
    'PSA-p',
)
# They compute the same function. Results are compared with the first's.
ALIKE = tuple(name for name in CONTENDERS if name.startswith('PSA-p'))
DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}

SHAPES = [  # N, C, H, W
    (2, 32, 8, 8),
    (8, 32, 64, 48),
    (8, 64, 32, 24),
    (8, 128, 16, 12),
    (8, 256, 8, 6),
    (8, 512, 8, 6),
    (32, 64, 64, 48),
    (2, 48, 128, 256),
]
QUICK_SHAPES = [(2, 32, 8, 8), (8, 64, 32, 24), (8, 256, 8, 6)]
NETWORK = (
    'mmpose::body_2d_keypoint/topdown_heatmap/coco/'
    'td-hm_hrnet-w32_8xb64-210e_coco-256x192.py'
)
QUICK_NETWORK = str(
    Path(__file__).resolve().parents[1]
    / 'configs/pose/lspet/td-hm_hrnet-w16s_1xb32-10e_lspet-128x96.py'
)
# The contender whose time the others are divided by, in each part.
BASE = {'block': 'SE', 'network': 'no attention'}
# How far the results of contenders that are alike may be apart, in parts of
# the largest value.
TOLERANCE = {'float32': 1e-3, 'bfloat16': 2e-2}
BATCH = {'cpu': 8, 'cuda': 64}

# The largest map of all pairs of positions that NonLocal2d may make.
PAIRS_BYTES = 2**30


def names_for(dtype):
    """The contenders that take a dtype.

    Networks run under autocast in half precision, and there the reference
    does not serve: another backend would run under its name.
    """
    return [
        name
        for name in CONTENDERS
        if dtype == 'float32' or 'reference' not in name
    ]


def prepare(module, name):
    """Draw the weights of PSA, the same each time, and compile plugins.

    By its own start, PSA multiplies its input by nearly the same number,
    whatever it computes.

    Args:
        module (nn.Module): A contender, or a network with it.
        name (str): The contender's.
    """
    torch.manual_seed(0)
    for block in module.modules():
        if isinstance(block, mmpsa.PSA):
            for parameter in block.parameters():
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    if name.endswith('Inductor'):
        plugins = [m for m in module.modules() if hasattr(m, 'is_plugin')]
        for plugin in plugins or [module]:
            plugin.compile(dynamic=False, fullgraph=True)


def autocast(device, dtype):
    """As in mixed precision training; off in float32."""
    return torch.autocast(device, DTYPES[dtype], enabled=dtype != 'float32')


def blocks(shape, dtype, device):
    """What a block of each contender does with an input of a shape.

    Args:
        shape (tuple[int]): N, C, H, W.
        dtype (str): Of ``DTYPES``, the input's; parameters are float32.
        device (str): ``'cpu'`` or ``'cuda'``.

    Yields:
        tuple[str, dict]: ``'forward'`` and ``'forward+backward'``, and the
        calls by contender; a string says why there is none.
    """
    n, channels, height, width = shape
    x, g = torch.randn(2, *shape, device=device, dtype=DTYPES[dtype])
    x.requires_grad_()
    pairs = n * (height * width) ** 2 * x.element_size()
    modules = {
        name: build_plugin_layer(CONTENDERS[name], in_channels=channels)[1]
        for name in names_for(dtype)
        if CONTENDERS[name] is not None
    }
    torch._dynamo.reset()  # or it stops to compile after some shapes
    for name, module in modules.items():
        prepare(module, name)

    def forward_of(module):
        if dtype == 'float32':
            return module  # entering autocast takes as long as a small block
        module = autocast(device, dtype)(module.__call__)
        # Some give float32 under autocast; the next layer wants x's dtype.
        return lambda x: module(x).to(x.dtype)

    def inference_of(module):
        forward = forward_of(module)
        return torch.no_grad()(lambda: forward(x))

    def training_of(module):
        forward, inputs = forward_of(module), [x, *module.parameters()]
        return lambda: torch.autograd.grad(forward(x), inputs, g)

    for mode, call_of in (
        ('forward', inference_of),
        ('forward+backward', training_of),
    ):
        calls = {}
        for name, module in modules.items():
            module.to(device).train(call_of is training_of)
            calls[name] = call_of(module)
        if pairs > PAIRS_BYTES:
            calls['NonLocal2d'] = (
                f'its map of all pairs of positions takes {pairs / 1e9:.1f} GB'
            )
        yield mode, calls


def networks(path, dtype, device):
    """What a network does, with each contender in all of its blocks.

    A contender is after the first convolution of each residual block.

    Args:
        path (str): The config of a top-down pose estimator, of another
            package as ``'mmpose::…'``.
        dtype (str): Of ``DTYPES``; in half precision, autocast.
        device (str): ``'cpu'`` or ``'cuda'``.

    Yields:
        tuple[str, dict]: ``'inference'`` (the network without flip test and
        decoding) and ``'training step'`` (loss, backward, AdamW), and the
        calls by contender. They return heatmaps and the loss.
    """
    cfg = get_config(path) if '::' in path else Config.fromfile(path)
    # numpy computes it, and does not take bfloat16.
    cfg.model.train_cfg = dict(compute_acc=False)
    width, height = cfg.codec.input_size
    samples = get_packed_inputs(
        BATCH[device],
        num_keypoints=cfg.model.head.out_channels,
        img_shape=(height, width),
        input_size=(width, height),
        heatmap_size=cfg.codec.heatmap_size,
    )['data_samples']
    samples = [sample.to(device) for sample in samples]
    images = torch.randn(BATCH[device], 3, height, width, device=device)
    models, optimizers = {}, {}
    torch._dynamo.reset()
    for name in IN_NETWORKS:
        if name in names_for(dtype):
            torch.manual_seed(0)
            model = network(cfg, CONTENDERS[name]).to(device)
            prepare(model, name)
            models[name] = model
            optimizers[name] = torch.optim.AdamW(model.parameters())

    def train(name):
        with autocast(device, dtype):
            losses = models[name].loss(images, samples)
        loss, _ = models[name].parse_losses(losses)
        loss.backward()
        optimizers[name].step()
        optimizers[name].zero_grad()
        return loss.detach()

    def infer(name):
        with autocast(device, dtype), torch.no_grad():
            return models[name](images, None)

    # Inference first, while all have the weights that they start with.
    for mode, step in (('inference', infer), ('training step', train)):
        for model in models.values():
            model.train(step is train)
        yield mode, {name: lambda n=name, s=step: s(n) for name in models}


def network(cfg, plugin):
    """A config's model with a plugin, or None, in each of its blocks."""
    model = copy.deepcopy(cfg.model)
    if plugin is not None:
        model.backbone.plugins = [dict(cfg=plugin, position='after_conv1')]
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return revert_sync_batchnorm(MODELS.build(model))


def cases(shapes, network, dtypes, device):
    """The cases of a run.

    Args:
        shapes (list[tuple[int]]): Of the blocks' inputs.
        network (str, optional): The config of a network, or None.
        dtypes (list[str]): Of ``DTYPES``.
        device (str): ``'cpu'`` or ``'cuda'``.

    Yields:
        tuple[dict, dict]: ``part``, ``where``, ``dtype`` and ``mode`` of a
        case; its calls by contender, as of :func:`blocks`.
    """
    todo = [('block', blocks, shape) for shape in shapes]
    if network is not None:
        todo.append(('network', networks, network))
    for dtype, (part, calls_of, what) in itertools.product(dtypes, todo):
        where = (
            '×'.join(map(str, what)) if part == 'block' else Path(what).stem
        )
        for mode, calls in calls_of(what, dtype, device):
            yield dict(part=part, where=where, dtype=dtype, mode=mode), calls
