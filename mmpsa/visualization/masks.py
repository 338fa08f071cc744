"""Records what plugins do to a model's maps while it runs, and draws it."""

from contextlib import contextmanager
from typing import Dict, Iterator, NamedTuple, Optional, Tuple

import numpy as np
import torch
from torch import nn

from mmpsa.plugins.sites import join
from mmpsa.plugins.stages import stage_of
from mmpsa.plugins.validation import AFTER_MODULE, AFTER_STAGE
from mmpsa.psa import PolarizedSelfAttention

_LEGEND = {
    'mask': (
        'Spatial mask: a factor for each position, the same in all channels.\n'
        'Channel mask: a factor for each channel, the same at all positions.\n'
        'PSA, parallel: features × channel mask + features × spatial mask\n'
        'PSA, sequential: features × channel mask × spatial mask'
    ),
    'gain': (
        'Gain: mean size of the output over that of the input,\n'
        'at each position over all channels, and in each channel over\n'
        'all positions. Blank where the input is zero.'
    ),
}


class BlockMasks(NamedTuple):
    """The masks of one plugin for one sample, or its gain."""

    block: nn.Module
    shape: Tuple[int, int, int]  # of the plugin's input: C, H, W
    channel: Optional[np.ndarray]  # C×1×1; None if it has none
    spatial: Optional[np.ndarray]  # 1×H×W; None if it has none

    @property
    def kind(self) -> str:
        """``'mask'`` if the plugin has ``masks(x)``, otherwise ``'gain'``."""
        return 'mask' if hasattr(self.block, 'masks') else 'gain'


class MaskRecord:
    """The input and the masks that :func:`record_masks` has recorded.

    Attributes:
        image (np.ndarray): The network's input, H×W×3, RGB, uint8. It is None
            until the model has run.
        masks (dict[str, BlockMasks]): The masks by the plugin's name in the
            model, in the order in which the plugins ran.
    """

    def __init__(self) -> None:
        self.image: Optional[np.ndarray] = None
        self.masks: Dict[str, BlockMasks] = {}


def find_plugins(model: nn.Module) -> Dict[str, nn.Module]:
    """The last plugin of each stage of a model, and those in no stage.

    In HRNet, this is the last one of each branch of each stage. Several
    plugins in a residual block count separately. Plugins after a stage, at
    an output of the backbone, in a neck and in a head are all included, and
    so are PSA blocks that the model has without ``plugins=``.

    Args:
        model (nn.Module): A model of mmpose or mmseg, with or without a
            wrapper that has it as ``module``.

    Returns:
        dict[str, nn.Module]: The plugins by name.

    Raises:
        ValueError: If there is none.
    """
    model, last = _unwrap(model), {}
    widths = {
        join(root, path): width
        for root, module in model.named_modules()
        for path, width in vars(module).get('plugin_widths', {}).items()
    }
    for name, module in model.named_modules():
        if isinstance(module, PolarizedSelfAttention):
            widths.setdefault(name, module.in_channels)
        if name in widths:
            *path, plugin = name.split('.')
            followed = [part for part in path if part != AFTER_MODULE]
            stage = stage_of(model, '.'.join(followed))
            kind = plugin, AFTER_STAGE in path
            # The branches of HRNet differ in width.
            last[stage, kind, widths[name]] = name, module
    if not last:
        raise ValueError(
            f'{type(model).__name__} has no plugins that could be drawn; its '
            'config needs a plugins= entry'
        )
    return dict(last.values())


@contextmanager
def record_masks(model: nn.Module) -> Iterator[MaskRecord]:
    """Record the masks for the first sample that the model sees.

    A plugin that has ``masks(x)`` tells its own, as PSA does: a channel mask,
    N×C×1×1, and a spatial mask, N×1×H×W, or None. Of any other, the gain
    is recorded: the mean size of its output over that of its input, for each
    channel and for each position.

    It records the first run of the model within the context. Other runs, on
    flipped images or on the next window of a large one, are ignored. The
    model computes the same as without it.

    Args:
        model (nn.Module): As in :func:`find_plugins`, with a ``backbone``.

    Yields:
        MaskRecord: It is filled when the model runs.

    Raises:
        ValueError: If the model has no plugins.
    """
    network, record = _unwrap(model), MaskRecord()

    def keep_image(backbone, args):
        if record.image is None:
            record.image = _to_picture(args[0][0], network.data_preprocessor)

    def keep_input(name):
        def hook(block, args):
            if name not in record.masks:
                # a copy, because a plugin may work in place
                inputs[name] = args[0][:1].detach().clone()

        return hook

    def keep_masks(name):
        @torch.no_grad()
        def hook(block, args, output):
            if name in inputs:
                x = inputs.pop(name)
                if hasattr(block, 'masks'):
                    found = block.masks(x)
                else:
                    found = _gain(x, output[:1])
                masks = (
                    None if mask is None else mask[0].numpy(force=True)
                    for mask in found
                )
                record.masks[name] = BlockMasks(block, x.shape[1:], *masks)

        return hook

    inputs: Dict[str, torch.Tensor] = {}
    handles = [network.backbone.register_forward_pre_hook(keep_image)]
    for name, block in find_plugins(network).items():
        handles.append(block.register_forward_pre_hook(keep_input(name)))
        handles.append(block.register_forward_hook(keep_masks(name)))
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def _gain(x, output):
    """The mean size of an output over an input's, by channel and position."""
    x, output = x.float().abs(), output.float().abs()
    for over in ((2, 3), 1):
        before = x.mean(over, keepdim=True)
        gain = output.mean(over, keepdim=True) / before
        yield gain.masked_fill(before == 0, float('nan'))


def _unwrap(model):
    """The model inside wrappers for distributed training or averaging."""
    while hasattr(model, 'module'):
        model = model.module
    return model


def _to_picture(image, preprocessor):
    """The network's input, 3×H×W, as an H×W×3 RGB picture, uint8.

    Upstream loads BGR. One of two attributes says whether the data
    preprocessor swaps the channels. An input without three channels becomes
    its grey mean.
    """
    image = image.detach().float()
    if hasattr(preprocessor, 'mean'):
        image = image * preprocessor.std + preprocessor.mean
    if len(image) != 3:
        image = image.mean(0).expand(3, -1, -1)
    swapped = getattr(preprocessor, '_channel_conversion', False)
    if not getattr(preprocessor, 'channel_conversion', swapped):
        image = image.flip(0)
    image = image.round().clamp(0, 255).byte()
    return image.permute(1, 2, 0).numpy(force=True)


def draw_masks(record: MaskRecord) -> np.ndarray:
    """Draw a record: the input, and a row for each plugin.

    A row has the spatial mask (or the gain of each position) over the input,
    and the channel mask (or the gain of each channel) as bars.

    Args:
        record (MaskRecord): The record of a model that has run.

    Returns:
        np.ndarray: The picture, H×W×3, RGB, uint8.

    Raises:
        ValueError: If the model has not run.
    """
    if record.image is None:
        raise ValueError(
            'the record has no image: run the model inside record_masks'
        )
    # Not at the top: importing mmpsa registers the hook, and drawing is rare.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = record.image.shape[:2]
    columns = min(1.9 * width / height, 4), 0.1, 5  # inches, as are the rows
    rows = 1 + len(record.masks)
    figure = Figure(
        (sum(columns) + 1.4, 2.6 * rows), dpi=100, layout='constrained'
    )
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 3, gridspec_kw=dict(width_ratios=columns))
    for axis in (*axes[0], *axes[:, 0]):
        axis.axis('off')
    axes[0, 0].imshow(record.image)
    kinds = {masks.kind: None for masks in record.masks.values()}
    legend = [
        f'Left: the input of the network, {width}×{height} pixels.\n'
        'Below, drawn over it, dark: least passes; bright: most passes.\n'
        'Each row has its own scale.',
        *(_LEGEND[kind] for kind in kinds),
    ]
    axes[0, 2].text(0, 0.5, '\n\n'.join(legend), va='center')
    for row, (name, masks) in zip(axes[1:], record.masks.items()):
        _draw_spatial(row[0], row[1], masks.spatial, record.image)
        channels, height, width = masks.shape
        block, kind = masks.block, masks.kind
        _draw_channel(row[2], masks.channel, kind, _top(block))
        title = 'spatial mask' if kind == 'mask' else 'gain'
        row[0].set_title(f'{title}, {width}×{height}', fontsize='medium')
        what = type(block).__name__
        if isinstance(block, PolarizedSelfAttention):
            what = f'{block.layout} ({block.variant})'
        row[2].set_title(
            f'{name}: {channels} channels, {what}', fontsize='medium'
        )
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _top(block):
    """The upper end of a block's channel masks; None if it is not known."""
    if not isinstance(block, PolarizedSelfAttention):
        return None
    return 1 if block.mask_scale is None else float(block.mask_scale)


def _draw_spatial(axis, scale_axis, mask, image):
    if mask is None:
        axis.text(0.5, 0.5, 'none', ha='center', va='center')
        scale_axis.axis('off')
        return
    height, width = image.shape[:2]
    extent = -0.5, width - 0.5, height - 0.5, -0.5
    # Pale, so that the colours stay near those of the scale.
    axis.imshow(96 + image.mean(2) * 0.6, cmap='gray', vmin=0, vmax=255)
    heat = axis.imshow(mask[0], cmap='magma', alpha=0.6, extent=extent)
    bar = axis.figure.colorbar(heat, cax=scale_axis)
    low, high = np.nanmin(mask), np.nanmax(mask)
    bar.set_ticks([low, high], labels=[f'{low:.3f}', f'{high:.3f}'])


def _draw_channel(axis, mask, kind, top):
    if mask is None:
        axis.axis('off')
        axis.text(0.5, 0.5, 'no channel mask', ha='center', va='center')
        return
    low, high = np.nanmin(mask), np.nanmax(mask)
    axis.stairs(mask.ravel(), fill=True)
    axis.set(
        xlim=(0, mask.size),
        ylim=(0, top or 1.05 * max(1, high)),
        xlabel=f'channel (values from {low:.3f} to {high:.3f})',
        ylabel='channel mask' if kind == 'mask' else 'gain',
    )
