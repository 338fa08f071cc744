"""Records the masks of a model's PSA blocks while it runs, and draws them."""

from contextlib import contextmanager
from typing import Dict, Iterator, NamedTuple, Optional, Tuple

import numpy as np
import torch
from torch import nn

from mmpsa.plugins.stages import stage_of
from mmpsa.plugins.validation import AFTER_MODULE, AFTER_STAGE
from mmpsa.psa import PolarizedSelfAttention

_LEGEND = (
    'Left: the input of the network, {}×{} pixels.\n\n'
    'Spatial mask: a factor for each position, the same in all channels,\n'
    'drawn over the input. Dark: least passes; bright: most passes. Each\n'
    'mask has its own scale.\n\n'
    'Channel mask: a factor for each channel, the same at all positions.\n\n'
    'parallel: features × channel mask + features × spatial mask\n'
    'sequential: features × channel mask × spatial mask'
)


class BlockMasks(NamedTuple):
    """The masks of one PSA block for one sample."""

    block: PolarizedSelfAttention
    shape: Tuple[int, int, int]  # of the block's input: C, H, W
    channel: Optional[np.ndarray]  # C×1×1; None if the layout has none
    spatial: Optional[np.ndarray]  # 1×H×W; None if the layout has none


class MaskRecord:
    """The input and the masks that :func:`record_masks` has recorded.

    Attributes:
        image (np.ndarray): The network's input, H×W×3, RGB, uint8. It is None
            until the model has run.
        masks (dict[str, BlockMasks]): The masks by the block's name in the
            model, in the order in which the blocks ran.
    """

    def __init__(self) -> None:
        self.image: Optional[np.ndarray] = None
        self.masks: Dict[str, BlockMasks] = {}


def find_psa(model: nn.Module) -> Dict[str, PolarizedSelfAttention]:
    """The last PSA block of each stage of a model, and those in no stage.

    In HRNet, this is the last one of each branch of each stage. Several PSA
    plugins in a residual block count separately. PSA blocks after a stage, at
    an output of the backbone, in a neck and in a head are all included.

    Args:
        model (nn.Module): A model of mmpose or mmseg, with or without a
            wrapper that has it as ``module``.

    Returns:
        dict[str, PolarizedSelfAttention]: The blocks by name.

    Raises:
        ValueError: If there is none.
    """
    model, last = _unwrap(model), {}
    for name, module in model.named_modules():
        if isinstance(module, PolarizedSelfAttention):
            *path, plugin = name.split('.')
            followed = [part for part in path if part != AFTER_MODULE]
            stage = stage_of(model, '.'.join(followed))
            kind = plugin, AFTER_STAGE in path
            # The branches of HRNet differ in width.
            last[stage, kind, module.in_channels] = name, module
    if not last:
        raise ValueError(
            f'{type(model).__name__} has no PSA blocks whose masks could be '
            'drawn; its config needs a plugins= entry with '
            "type='PSA'"
        )
    return dict(last.values())


@contextmanager
def record_masks(model: nn.Module) -> Iterator[MaskRecord]:
    """Record the masks for the first sample that the model sees.

    It records the first run of the model within the context. Other runs, on
    flipped images or on the next window of a large one, are ignored. The
    model computes the same as without it.

    Args:
        model (nn.Module): As in :func:`find_psa`, with a ``backbone``.

    Yields:
        MaskRecord: It is filled when the model runs.

    Raises:
        ValueError: If the model has no PSA blocks.
    """
    network, record = _unwrap(model), MaskRecord()

    def keep_image(backbone, args):
        if record.image is None:
            record.image = _to_picture(args[0][0], network.data_preprocessor)

    def keep_masks(name):
        @torch.no_grad()
        def hook(block, args, output):
            if name not in record.masks:
                x = args[0][:1]
                masks = (
                    None if mask is None else mask[0].numpy(force=True)
                    for mask in block.masks(x)
                )
                record.masks[name] = BlockMasks(block, x.shape[1:], *masks)

        return hook

    blocks = find_psa(network)
    handles = [network.backbone.register_forward_pre_hook(keep_image)]
    for name, block in blocks.items():
        handles.append(block.register_forward_hook(keep_masks(name)))
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


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
    """Draw a record: the input, and a row for each block.

    A row has the spatial mask over the input, and the channel mask as bars.

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
    axes[0, 2].text(0, 0.5, _LEGEND.format(width, height), va='center')
    for row, (name, masks) in zip(axes[1:], record.masks.items()):
        _draw_spatial(row[0], row[1], masks.spatial, record.image)
        channels, height, width = masks.shape
        block = masks.block
        scale = 1 if block.mask_scale is None else float(block.mask_scale)
        _draw_channel(row[2], masks.channel, scale)
        row[0].set_title(f'spatial mask, {width}×{height}', fontsize='medium')
        row[2].set_title(
            f'{name}: {channels} channels, {block.layout} ({block.variant})',
            fontsize='medium',
        )
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw_spatial(axis, scale_axis, mask, image):
    if mask is None:
        axis.text(0.5, 0.5, 'none in this layout', ha='center', va='center')
        scale_axis.axis('off')
        return
    height, width = image.shape[:2]
    extent = -0.5, width - 0.5, height - 0.5, -0.5
    # Pale, so that the colours stay near those of the scale.
    axis.imshow(96 + image.mean(2) * 0.6, cmap='gray', vmin=0, vmax=255)
    heat = axis.imshow(mask[0], cmap='magma', alpha=0.6, extent=extent)
    bar = axis.figure.colorbar(heat, cax=scale_axis)
    low, high = mask.min(), mask.max()
    bar.set_ticks([low, high], labels=[f'{low:.3f}', f'{high:.3f}'])


def _draw_channel(axis, mask, scale):
    if mask is None:
        axis.axis('off')
        text = 'no channel mask in this layout'
        axis.text(0.5, 0.5, text, ha='center', va='center')
        return
    axis.stairs(mask.ravel(), fill=True)
    axis.set(
        xlim=(0, mask.size),
        ylim=(0, scale),
        xlabel=f'channel (values from {mask.min():.3f} to {mask.max():.3f})',
        ylabel='channel mask',
    )
