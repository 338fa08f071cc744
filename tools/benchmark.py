"""Time and peak memory of PSA, beside what else one would put in its place.

Blocks by themselves at the shapes of well-known networks, and whole models:
a table on the screen, all figures in benchmark.json, a picture of them in
benchmark.png, and the project's bars. docs/benchmark.md says how to read them.
"""

import argparse
import copy
import ctypes
import gc
import itertools
import json
import math
import random
import statistics
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Callable, Dict, NamedTuple

import matplotlib.pyplot as plt
import psutil
import torch
import torch.nn.functional as F
from mmcv.cnn import build_plugin_layer
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import mmpsa
from mmpsa import PolarizedSelfAttention
from mmpsa.ops import BACKENDS, choose_backend, reference

plt.switch_backend('agg')
REPO = Path(__file__).resolve().parents[1]
sys.path.append(str(REPO))
import projects.study.modules  # noqa: E402, F401  (SE, as a plugin)

DTYPES = {'float32': torch.float32, 'bf16': torch.bfloat16}
PSA = {  # name: the form of the block
    # of the paper, and of its authors' code
    'PSA(p)': dict(layout='parallel'),
    'PSA(s)': dict(layout='sequential'),
    "authors' PSA(p)": dict(variant='official'),
    "authors' PSA(s)": dict(variant='official', layout='sequential'),
}
CONTENDERS = {  # name: the plugin
    'SE': dict(type='SE'),
    'ContextBlock': dict(type='ContextBlock', ratio=1 / 16),
    'CBAM': dict(type='CBAM'),
    'NonLocal2d': dict(type='NonLocal2d'),
    **{
        f'{name}, published': dict(type='PublishedPSA', **form)
        for name, form in PSA.items()
    },
    **{name: dict(type='PSA', **form) for name, form in PSA.items()},
}
SHAPES = {  # name: N, C, H, W
    f'{network} {part} {i + 1}, {height}×{width}': (
        batch,
        channels << i,
        height // 4 >> i,
        width // 4 >> i,
    )
    for network, part, channels, height, width, batch in (
        ('HRNet-W32', 'branch', 32, 256, 192, 64),
        ('HRNet-W48', 'branch', 48, 256, 192, 64),
        ('HRNet-W32', 'branch', 32, 512, 1024, 4),
        ('HRNet-W48', 'branch', 48, 512, 1024, 4),
        ('ResNet-50', 'stage', 64, 256, 192, 64),
    )
    for i in range(4)
}
TOP_DOWN = 'mmpose::body_2d_keypoint/topdown_heatmap/coco/td-hm_'
NETWORKS = {  # name: the config of the baseline
    'SimpleBaseline ResNet-50, 256×192': (
        f'{TOP_DOWN}res50_8xb64-210e_coco-256x192.py'
    ),
    'HRNet-W32, 256×192': (f'{TOP_DOWN}hrnet-w32_8xb64-210e_coco-256x192.py'),
    'HRNet-W48, 256×192': (f'{TOP_DOWN}hrnet-w48_8xb32-210e_coco-256x192.py'),
    'FCN-HRNet-W48, 512×1024': (
        'mmseg::hrnet/fcn_hr48_4xb2-80k_cityscapes-512x1024.py'
    ),
}
NETWORK_CONTENDERS = {
    'no attention': None,
    **{
        name: CONTENDERS[name]
        for name in ('SE', 'PSA(p), published', 'PSA(p)')
    },
}
BATCH = {
    'cpu': {'mmpose': 8, 'mmseg': 1},
    'cuda': {'mmpose': 64, 'mmseg': 4},
}
QUICK_SHAPES = {
    'HRNet-W32 branch 1, 4 of 256×192': (4, 32, 64, 48),
    'HRNet-W32 branch 4, 4 of 256×192': (4, 256, 8, 6),
    'HRNet-W48 branch 3, 1 of 512×1024': (1, 192, 32, 64),
}
QUICK_NETWORKS = {
    'small HRNet, 128×96': (
        f'{REPO}/configs/pose/lspet/td-hm_hrnet-w16s_1xb32-10e_lspet-128x96.py'
    ),
}

OTHERS = {  # part: what the summary compares PSA(p) with
    'block': (
        'floor',
        'SE',
        'ContextBlock',
        'CBAM',
        'NonLocal2d',
        *(f'{name}, published' for name in PSA if name != 'PSA(s)'),
    ),
    'model': tuple(name for name in NETWORK_CONTENDERS if name != 'PSA(p)'),
}
ROUNDS = 5, 50  # of a contender in a case, at least and at most
SECONDS = 0.5  # for a contender's rounds, between these
# What inputs take turns in, more than a last-level cache holds.
INPUT_BYTES = 2**28
# How long the GPU waits before each measurement while its queue fills.
QUEUE_CYCLES = 8_000_000
LARGE = 8 * 10**6  # bytes of a large map


@MODELS.register_module()
class CBAM(nn.Module):
    """Convolutional Block Attention Module (arXiv:1807.06521), ratio 16."""

    def __init__(self, in_channels):
        super().__init__()
        inner = in_channels // 16
        self.mlp = nn.Sequential(
            nn.Conv2d(in_channels, inner, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, in_channels, 1),
        )
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x):
        """N×C×H×W to N×C×H×W."""
        mean, peak = F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)
        x = x * (self.mlp(mean) + self.mlp(peak)).sigmoid()  # N×C×1×1
        mean, peak = x.mean(1, keepdim=True), x.amax(1, keepdim=True)
        return x * self.conv(torch.cat([mean, peak], 1)).sigmoid()  # N×1×H×W


@MODELS.register_module()
class PublishedPSA(PolarizedSelfAttention):
    """The equations line by line; under autocast as any module is."""

    def forward(self, x):
        """N×C×H×W to N×C×H×W."""
        return getattr(reference, self.variant)(self, x)


def keep_memory():
    """Let the C library keep what is freed, instead of giving it back.

    Whoever comes next would pay for it, page by page: which contender that
    is depends on what the others allocate. Only glibc can be told so.
    """
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: nothing is mapped by itself
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap does not shrink


@contextmanager
def no_garbage_collection():
    """None meanwhile: it takes time, and frees what was there before."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def timed(call, device):
    """Seconds that a call takes: of the GPU alone, or of the CPU.

    Its result is not freed until it has been timed.
    """
    if device == 'cpu':
        start = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - start
    else:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(QUEUE_CYCLES)
        start.record()
        result = call()
        stop.record()
        torch.cuda.synchronize()
        seconds = start.elapsed_time(stop) / 1000
    del result
    return seconds


def measure(calls, device, seconds):
    """Time calls in rounds of one each, in random order.

    Args:
        calls (dict[Any, Callable]): What to time, called once already.
        device (str): ``'cpu'`` or ``'cuda'``.
        seconds (float): As ``SECONDS``; what takes longer takes part in
            fewer rounds, which are spread over all.

    Returns:
        dict[Any, list[float]]: The seconds of each call in its rounds.
    """
    shuffle, times = random.Random(0), {name: [] for name in calls}
    least, most = ROUNDS
    every = {}
    for name, call in calls.items():
        wanted = seconds / timed(call, device)
        every[name] = most // round(min(max(wanted, least), most))
    for i in range(most):
        names = [name for name in calls if i % every[name] == 0]
        for name in shuffle.sample(names, len(names)):
            times[name].append(timed(calls[name], device))
    return times


def peak_memory(call, device):
    """Bytes of tensors that a call takes at most, beyond what there was.

    Its result counts: it is freed after.
    """
    if device == 'cuda':
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        call()
    events = profile.kineto_results.events()
    events = [event for event in events if event.name() == '[memory]']
    events.sort(key=lambda event: event.start_ns())
    sums = itertools.accumulate(event.nbytes() for event in events)
    return max(sums, default=0)


def run_case(calls, device, seconds, base, **common):
    """Rows of calls that are compared with each other.

    Args:
        calls (dict[tuple, Callable or str]): By contender and backend; a
            string says why there is none.
        device (str): ``'cpu'`` or ``'cuda'``.
        seconds (float): As ``SECONDS``.
        base (str): The contender that all are compared with, beside SE.
        common: What the rows have in common.

    Returns:
        list[dict]: As docs/benchmark.md describes.
    """
    notes = {key: call for key, call in calls.items() if isinstance(call, str)}
    able = {}
    for key, call in calls.items():
        if key in notes:
            continue
        try:
            call()
            able[key] = call
        except torch.cuda.OutOfMemoryError as error:
            notes[key] = f'does not fit: {error}'
    with no_garbage_collection():
        times = measure(able, device, seconds)
        peaks = {key: peak_memory(call, device) for key, call in able.items()}
    rows = []
    for key in calls:
        row = dict(common, contender=key[0], backend=key[1])
        if key in notes:
            row['note'] = notes[key]
        else:
            tenths = statistics.quantiles(times[key], n=10, method='inclusive')
            row['rounds'] = len(times[key])
            row['p10'], row['median'], row['p90'] = tenths[::4]
            row['peak_bytes'] = peaks[key]
        rows.append(row)
    add_ratios(rows, base)
    return rows


def add_ratios(rows, base):
    """Compare the medians of a case with those of a contender and of SE."""
    medians = {row['contender']: row.get('median') for row in rows}
    for row in rows:
        row['ratio'] = {
            name: row['median'] / medians[name]
            for name in (base, 'SE')
            if 'median' in row and medians.get(name)
        }


def blocks(x):
    """Contenders as modules, by name and backend.

    PSA by every backend that serves the case, and which of them it would
    choose itself.
    """
    channels, device = x.shape[1], x.device

    def build(cfg):
        return build_plugin_layer(cfg, in_channels=channels)[1].to(device)

    modules, default = {}, {}
    for name, cfg in CONTENDERS.items():
        if cfg['type'] != 'PSA':
            published = cfg['type'] == 'PublishedPSA'
            modules[name, 'reference' if published else ''] = build(cfg)
            continue
        default[name] = choose_backend(build(cfg), x)
        for backend in BACKENDS:
            module = build(dict(cfg, backend=backend))
            if backend == choose_backend(module, x) != 'reference':
                modules[name, backend] = module
    return modules, default


def floors(x):
    """The fewest bytes moved, by reading, copying and adding.

    Forward: X has to be read for its statistics and, to be gated, once more;
    Y is written. Backward: X and the gradient g are read for the gradients
    of the masks and again for that of X, which is written.
    """
    out = torch.empty_like(x).view(torch.float32)

    def forward(x, g):
        x.sum()
        out.copy_(x)

    def both(x, g):
        forward(x, g)
        x.sum()
        g.sum()
        torch.add(x, g, out=out)

    return {'forward': forward, 'forward+backward': both}


def non_local_bytes(x, mode):
    """What NonLocal2d's maps of all pairs of positions take, at least.

    The map and its softmax; backward, that and two gradients. (A GPU's
    autocast takes softmaxes in float32, which is more.)
    """
    n, _, h, w = x.shape
    maps = 2 if mode == 'forward' else 3
    return maps * n * (h * w) ** 2 * x.element_size()


def free_bytes(device):
    """Memory that is left."""
    if device == 'cpu':
        return psutil.virtual_memory().available
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def autocast(device, dtype):
    """As a training step in mixed precision has it, or none."""
    return torch.autocast(device, torch.bfloat16, enabled=dtype == 'bf16')


def run_blocks(name, shape, dtype, device, seconds):
    """Rows of a shape: forward, and forward with backward.

    Args:
        name (str): What the shape is of.
        shape (tuple[int]): N, C, H, W.
        dtype (str): Of ``DTYPES``; parameters are float32 in each.
        device (str): ``'cpu'`` or ``'cuda'``.
        seconds (float): As ``SECONDS``.

    Yields:
        list[dict]: The rows of a mode.
    """
    x, g = torch.randn(2, *shape, device=device, dtype=DTYPES[dtype])
    size = x.numel() * x.element_size()
    pairs = [
        (x.clone().requires_grad_(), g.clone())
        for _ in range(max(INPUT_BYTES // size, 2))
    ]
    turns = itertools.cycle(pairs)
    # The floor's bytes, whatever they are read as.
    raw = itertools.cycle(
        [
            [t.detach().flatten().view(torch.float32) for t in pair]
            for pair in pairs
        ]
    )
    with autocast(device, dtype):
        modules, default = blocks(x)
    floor = floors(next(raw)[0])

    def call_of(module, mode):
        def forward(x):
            with autocast(device, dtype):
                # Some give float32 in autocast; the next layer's input is x's.
                return module(x).to(x.dtype)

        def inference():
            with torch.no_grad():
                return forward(next(turns)[0])

        def training():
            x, g = next(turns)
            inputs = x, *module.parameters()
            return torch.autograd.grad(forward(x), inputs, g)

        return inference if mode == 'forward' else training

    for mode in floor:
        calls = {('floor', ''): lambda: floor[mode](*next(raw))}
        for key, module in modules.items():
            calls[key] = call_of(module, mode)
        needed, free = non_local_bytes(x, mode), free_bytes(device)
        if needed > 0.9 * free:
            calls['NonLocal2d', ''] = (
                f'does not fit: needs more than {needed / 1e9:.1f} GB, '
                f'{free / 1e9:.1f} GB are free'
            )
        rows = run_case(
            calls,
            device,
            seconds,
            'floor',
            part='block',
            where=name,
            shape=shape,
            dtype=dtype,
            mode=mode,
        )
        for row in rows:
            contender = row['contender']
            if contender in default:
                row['default'] = row['backend'] == default[contender]
            if contender == 'floor':
                del row['peak_bytes']  # it has nothing to keep
        yield rows


@contextmanager
def backends_of(model):
    """The backends that a model's PSA blocks are computed by, as a set."""
    backends = set()
    hooks = [
        block.register_forward_pre_hook(
            lambda block, inputs: backends.add(choose_backend(block, *inputs))
        )
        for block in model.modules()
        if type(block) is PolarizedSelfAttention
    ]
    yield backends
    for hook in hooks:
        hook.remove()


def batch_of(cfg, device):
    """Made-up images and data samples for a config's model.

    Args:
        cfg (mmengine.Config): A top-down pose estimator's or a segmentor's.
        device (str): ``'cpu'`` or ``'cuda'``.

    Returns:
        tuple[Tensor, list]: N×3×H×W, of the training size; N samples.
    """
    count = BATCH[device][cfg.default_scope]
    if cfg.default_scope == 'mmpose':
        from mmpose.testing import get_packed_inputs

        width, height = cfg.codec.input_size
        samples = get_packed_inputs(
            count,
            num_keypoints=cfg.model.head.out_channels,
            img_shape=(height, width),
            input_size=(width, height),
            heatmap_size=cfg.codec.heatmap_size,
        )['data_samples']
    else:
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        height, width = cfg.crop_size
        classes = cfg.model.decode_head.num_classes
        samples = [SegDataSample() for _ in range(count)]
        for sample in samples:
            labels = torch.randint(classes, (1, height, width))
            sample.gt_sem_seg = PixelData(data=labels)
    images = torch.randn(count, 3, height, width, device=device)
    return images, [sample.to(device) for sample in samples]


def network_of(cfg, plugin):
    """A config's model, with a plugin after each block's first convolution.

    Args:
        cfg (mmengine.Config): As in :func:`batch_of`.
        plugin (dict, optional): The plugin; none without.

    Returns:
        nn.Module: The model.
    """
    model = copy.deepcopy(cfg.model)  # segmentors write into theirs
    if plugin is not None:
        model.backbone.plugins = [dict(cfg=plugin, position='after_conv1')]
    if cfg.default_scope == 'mmpose':
        # It is computed by numpy, and not from bfloat16.
        model.train_cfg = dict(compute_acc=False)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return revert_sync_batchnorm(MODELS.build(model))


def steps_of(model, images, samples, dtype):
    """A training step and inference, to be called, by mode."""
    optimizer = torch.optim.AdamW(model.parameters())

    def train():
        with autocast(images.device.type, dtype):
            losses = model.loss(images, samples)
        loss, _ = model.parse_losses(losses)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def infer():
        with autocast(images.device.type, dtype), torch.no_grad():
            return model(images, None)

    return {'training': train, 'inference': infer}


def kept_bytes(model, mode):
    """Of parameters and buffers, and in training of AdamW's two averages."""
    parameters, buffers = (
        sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        for tensors in (model.parameters(), model.buffers())
    )
    return buffers + (3 if mode == 'training' else 1) * parameters


def run_network(name, path, dtype, device, seconds):
    """Rows of a network: training steps, and inference.

    Args:
        name (str): The network's.
        path (str): The config of its baseline.
        dtype (str): Of ``DTYPES``; in bf16, autocast.
        device (str): ``'cpu'`` or ``'cuda'``.
        seconds (float): As ``SECONDS``.

    Yields:
        list[dict]: The rows of a mode.
    """
    # Only as a base may a config be another package's.
    cfg = Config.fromstring(f'_base_ = {str(path)!r}', '.py')
    images, samples = batch_of(cfg, device)
    models, steps = {}, {}
    for contender, plugin in NETWORK_CONTENDERS.items():
        model = network_of(cfg, plugin).to(device).eval()
        calls = steps_of(model, images, samples, dtype)
        with backends_of(model) as backends:
            calls['inference']()
        if 'published' in contender:
            backends = {'reference'}
        key = contender, ', '.join(sorted(backends))
        models[key], steps[key] = model, calls

    for mode in ('training', 'inference'):
        for model in models.values():
            model.train(mode == 'training')
        rows = run_case(
            {key: calls[mode] for key, calls in steps.items()},
            device,
            seconds,
            'no attention',
            part='model',
            where=name,
            shape=tuple(images.shape),
            dtype=dtype,
            mode=mode,
        )
        for row, model in zip(rows, models.values()):
            if 'median' in row:
                row['images_per_second'] = len(images) / row['median']
                row['peak_bytes'] += kept_bytes(model, mode)
                extra = row['peak_bytes'] - rows[0].get('peak_bytes', math.nan)
                row['extra_bytes'] = extra
        yield rows


def time_over(psa, other):
    """The figure of most bars."""
    return psa['median'] / other['median']


def speed_up(psa, other):
    """The same the other way round."""
    return other['median'] / psa['median']


def memory_over(psa, other):
    """Of what each adds to the peak of the network without attention."""
    return psa['extra_bytes'] / other['extra_bytes']


class Bar(NamedTuple):
    """What PSA(p), by the backend that it chooses, is to reach."""

    text: str
    mode: str
    large: bool  # whether it is on large maps only
    other: str  # contender
    figure: Callable[[dict, dict], float]  # of the rows of PSA and the other
    sense: str  # '≤' or '≥'
    limits: Dict[str, float]


BARS = [
    Bar(
        'block forward, time over SE (maps of 8 MB and more)',
        'forward',
        True,
        'SE',
        time_over,
        '≤',
        {'CPU': 1.5, 'H100': 1.25},
    ),
    Bar(
        'block forward+backward, time over SE',
        'forward+backward',
        False,
        'SE',
        time_over,
        '≤',
        {'CPU': 1.6, 'H100': 1.3},
    ),
    Bar(
        'block forward, time over floor (maps of 8 MB and more)',
        'forward',
        True,
        'floor',
        time_over,
        '≤',
        {'CPU': 3, 'H100': 1.3},
    ),
    Bar(
        'block forward+backward, speed-up over published (maps of 8 MB '
        'and more)',
        'forward+backward',
        True,
        'PSA(p), published',
        speed_up,
        '≥',
        {'CPU': 4, 'H100': 5},
    ),
    Bar(
        'HRNet-W32 training step, time over no attention',
        'training',
        False,
        'no attention',
        time_over,
        '≤',
        {'CPU': 1.2, 'H100': 1.15},
    ),
    Bar(
        'HRNet-W32 training, peak memory added over what SE adds',
        'training',
        False,
        'SE',
        memory_over,
        '≤',
        {'CPU': 1.35, 'H100': 1.35},
    ),
]
# The shapes and the network that they are on.
MEASURED = {*SHAPES, 'HRNet-W32, 256×192'}


def bytes_of_input(row):
    """The size of a row's input."""
    return math.prod(row['shape']) * DTYPES[row['dtype']].itemsize


def cases_of(rows):
    """The measured cases with PSA(p), by the backend that it chooses.

    Args:
        rows (list[dict]): Rows of any cases.

    Returns:
        list[tuple]: Of each case the row of PSA(p), and its rows by contender.
    """
    cases = {}
    for row in rows:
        if row.get('default', True) and 'median' in row:
            key = row['where'], row['dtype'], row['mode']
            cases.setdefault(key, {})[row['contender']] = row
    return [(c['PSA(p)'], c) for c in cases.values() if 'PSA(p)' in c]


def verdict(bar, machine, rows):
    """A line on a bar: its worst figure, and in how many cases it is met.

    Args:
        bar (Bar): The bar.
        machine (str): Whose limit counts, ``'CPU'`` or ``'H100'``.
        rows (list[dict]): Rows measured there; none if nothing was.

    Returns:
        str: The line.
    """
    figures = [
        (bar.figure(psa, case[bar.other]), f'{psa["where"]}, {psa["dtype"]}')
        for psa, case in cases_of(rows)
        if psa['where'] in MEASURED
        and psa['mode'] == bar.mode
        and (bytes_of_input(psa) >= LARGE or not bar.large)
        and bar.other in case
    ]
    limit = bar.limits[machine]
    line = f'{machine}: {bar.text} {bar.sense} {limit:g}: '
    if not figures:
        return f'{line}not measured'
    if bar.sense == '≤':
        worst, met = max(figures), sum(x <= limit for x, _ in figures)
    else:
        worst, met = min(figures), sum(x >= limit for x, _ in figures)
    answer = 'met' if met == len(figures) else 'missed'
    return (
        f'{line}{worst[0]:.2f} ({worst[1]}), {answer}: {met} of '
        f'{len(figures)} cases meet it'
    )


def verdicts(rows, machine):
    """A line for each machine and bar; the other's is not measured.

    Args:
        rows (list[dict]): What was measured.
        machine (str, optional): Where, as of :func:`machine_of`.

    Returns:
        list[str]: The lines.
    """
    return [
        verdict(bar, name, rows if name == machine else [])
        for name in ('CPU', 'H100')
        for bar in BARS
    ]


def machine_of(device):
    """Whose bars a run is about, ``'CPU'``, ``'H100'`` or None."""
    if device == 'cuda':
        name = torch.cuda.get_device_name()
        return 'H100' if 'H100' in name else None
    return 'CPU' if 2 <= torch.get_num_threads() <= 4 else None


def environment_of(device):
    """What figures depend on beside the code."""
    if device == 'cuda':
        name = torch.cuda.get_device_name()
    else:
        name = f'CPU with {torch.backends.cpu.get_cpu_capability()}'
    return dict(
        device=name,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        mmpsa=mmpsa.__version__,
    )


def cells_of(row):
    """What the table says of a row, by the columns' titles."""
    cells = {'': row['contender'], 'backend': row['backend']}
    if row.get('default'):
        cells['backend'] += ' *'
    if 'note' in row:
        return cells
    low, median, high = (1000 * row[key] for key in ('p10', 'median', 'p90'))
    cells['median ms'] = f'{median:.3f}'
    cells['p10–p90'] = f'{low:.3f}–{high:.3f}'
    cells['rounds'] = f'{row["rounds"]}'
    for name, ratio in row['ratio'].items():
        cells[f'÷ {name}'] = f'{ratio:.2f}'
    if 'peak_bytes' in row:
        cells['peak MB'] = f'{row["peak_bytes"] / 1e6:.1f}'
    if 'images_per_second' in row:
        cells['MB added'] = f'{row["extra_bytes"] / 1e6:.1f}'
        cells['images/s'] = f'{row["images_per_second"]:.1f}'
    return cells


def show(rows):
    """Print the rows of a case as a table."""
    first, shape = rows[0], '×'.join(map(str, rows[0]['shape']))
    print(f'\n{first["where"]} ({shape}), {first["dtype"]}, {first["mode"]}')
    lines = [cells_of(row) for row in rows]
    titles = list(max(lines, key=len))
    lines.insert(0, dict(zip(titles, titles)))
    widths = [max(len(x.get(title, '')) for x in lines) for title in titles]
    for cells, row in zip(lines, [{}, *rows]):
        texts = [
            cells.get(title, '').rjust(width)
            for title, width in zip(titles, widths)
        ]
        texts[0] = texts[0].strip().ljust(widths[0])
        texts.append(row.get('note', ''))
        print('  '.join(texts).rstrip(), flush=True)


def summary(rows, lines, environment):
    """The figures on PSA(p) as it comes, and the bars, in Markdown."""
    parts = [
        '# Time and memory, measured',
        'Written by `tools/benchmark.py`; what it measures and how to read '
        'it:\n[benchmark.md](benchmark.md).',
        ', '.join(f'{key} {value}' for key, value in environment.items()),
        '\n'.join(f'- {line}' for line in lines),
    ]
    for part, others in OTHERS.items():
        heads = ['', 'dtype', 'mode', 'MB' if part == 'block' else 'images/s']
        heads += ['ms', *(f'÷ {name}' for name in others), 'peak ÷ SE']
        table = [heads, ['---'] * 3 + ['--:'] * (len(heads) - 3)]
        memory = 'peak_bytes' if part == 'block' else 'extra_bytes'
        for psa, case in cases_of(rows):
            if psa['part'] != part:
                continue
            scale = psa.get('images_per_second', bytes_of_input(psa) / 1e6)
            cells = [psa['where'], psa['dtype'], psa['mode'], f'{scale:.1f}']
            cells.append(f'{1000 * psa["median"]:.2f}')
            for name in others:
                known = name in case
                cells.append(
                    f'{time_over(psa, case[name]):.2f}' if known else ''
                )
            least = case['SE'][memory] if 'SE' in case else 0
            cells.append(f'{psa[memory] / least if least else math.nan:.2f}')
            table.append(cells)
        parts.append('\n'.join(f'| {" | ".join(row)} |' for row in table))
    return '\n\n'.join(parts) + '\n'


def draw(rows, path):
    """Times over SE's: a column for each mode, a row for each dtype."""
    columns = list(dict.fromkeys((row['part'], row['mode']) for row in rows))
    names = dict.fromkeys((row['contender'], row['backend']) for row in rows)
    colours = itertools.cycle(plt.get_cmap('tab20').colors)
    figure, axes = plt.subplots(
        len(DTYPES),
        len(columns),
        figsize=(6 * len(columns), 6 * len(DTYPES)),
        squeeze=False,
        sharex='col',
        layout='constrained',
    )
    lines = {}
    for name, colour in zip(names, colours):
        for i, dtype in enumerate(DTYPES):
            for axis, column in zip(axes[i], columns):
                points = {
                    row['where']: row['ratio']['SE']
                    for row in rows
                    if (row['part'], row['mode']) == column
                    and (row['contender'], row['backend']) == name
                    and row['dtype'] == dtype
                    and 'SE' in row['ratio']
                }
                if points:
                    data = points.keys(), points.values()
                    line = axis.plot(*map(list, data), 'o-', color=colour)
                    lines[' '.join(name)] = line[0]
                part, mode = column
                axis.set_title(f'{part}, {mode}, {dtype}')
                axis.set_yscale('log' if part == 'block' else 'linear')
                axis.tick_params('x', rotation=90)
                axis.grid(alpha=0.3)
    figure.supylabel("time over SE's")
    figure.legend(lines.values(), lines, loc='outside upper center', ncols=5)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def run(args, done):
    """The cases that the command line asks for, one after another.

    Args:
        args (argparse.Namespace): The command line.
        done (set[tuple]): Part, name and dtype of those to leave out.

    Yields:
        list[dict]: The rows of a case, all of its modes.
    """
    seconds = 0 if args.quick else SECONDS
    for part, run_one, cases in (
        ('block', run_blocks, QUICK_SHAPES if args.quick else SHAPES),
        ('model', run_network, QUICK_NETWORKS if args.quick else NETWORKS),
    ):
        for (name, case), dtype in itertools.product(cases.items(), DTYPES):
            key = part, name, dtype
            if args.only in ', '.join(key) and key not in done:
                rows = []
                for mode in run_one(name, case, dtype, args.device, seconds):
                    show(mode)
                    rows += mode
                yield rows


def rows_before(path, environment):
    """The rows of an earlier run under the same conditions, or none."""
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    return content['rows'] if content['environment'] == environment else []


def main():
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--device',
        choices=('cpu', 'cuda'),
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='what to measure on (default here: %(default)s)',
    )
    parser.add_argument(
        '--quick',
        action='store_true',
        help='small shapes and a small model, which no bar is for',
    )
    parser.add_argument(
        '--only',
        default='',
        metavar='TEXT',
        help='cases with this in "block|model, name, float32|bf16"',
    )
    parser.add_argument(
        '--threads', type=int, help="of the CPU (default: torch's)"
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/benchmark'),
        help='folder for benchmark.json, .md and .png; the cases that it '
        'has are not measured again (default: %(default)s)',
    )
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    MMLogger.get_current_instance().setLevel('ERROR')
    torch.manual_seed(0)
    keep_memory()

    environment = environment_of(args.device)
    print(', '.join(f'{key} {value}' for key, value in environment.items()))
    path = args.out / 'benchmark.json'
    rows = rows_before(path, environment)
    done = {(row['part'], row['where'], row['dtype']) for row in rows}
    for case in run(args, done):
        rows += case
        # After each case: a run that is cut off goes on there.
        content = dict(environment=environment, rows=rows)
        text = json.dumps(content, indent=1, ensure_ascii=False)
        path.write_text(text)
    lines = verdicts(rows, machine_of(args.device))
    (args.out / 'benchmark.md').write_text(summary(rows, lines, environment))
    draw(rows, args.out / 'benchmark.png')
    print('', *lines, f'Saved in {args.out}', sep='\n')


if __name__ == '__main__':
    main()
