"""Finds the feature maps that a module returns, by running it."""

import copy
from itertools import product
from typing import Dict, List, Sequence

import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.utils import to_2tuple
from torch import nn

from .maps import apply_to_maps
from .randomness import own_random_numbers

# In pixels; some backbones do not run on the small ones.
_SIZES = (64, 128, 256)
# What shapes that do not fit raise. Any other exception is a mistake in the
# code of the backbone or of a plugin, and is not caught.
_MISFITS = (AssertionError, IndexError, RuntimeError, TypeError, ValueError)


def find_widths(
    backbone: nn.Module, names: Sequence[str]
) -> Dict[str, List[int]]:
    """The channels of each map that modules of a backbone return.

    A copy of the backbone runs on pictures, once in evaluation mode and once
    in training mode, at different sizes. The backbone and the state of the
    random numbers do not change. Maps of a width that evaluation does not
    return (the auxiliary ones of training) are left out.

    Args:
        backbone (nn.Module): A backbone that takes N×C×H×W pictures.
        names (Sequence[str]): The names of modules in it; ``''`` is the
            backbone.

    Returns:
        dict[str, list[int]]: The channels by name. Modules that do not run
        are left out, and those whose maps differ with the size or the mode.

    Raises:
        ValueError: If the backbone does not run on pictures.
    """
    convs = (m for m in backbone.modules() if isinstance(m, nn.Conv2d))
    first = next(convs, None)
    channels = dict.fromkeys((3, first.in_channels if first else 3))
    sizes = [((size, size), (2 * size, 2 * size)) for size in _SIZES]
    # Some backbones run at one size alone; for most of them it is 224.
    sizes.append([to_2tuple(getattr(backbone, 'img_size', 224))] * 2)
    like = next(backbone.parameters(), torch.empty(0))
    with torch.no_grad(), own_random_numbers(backbone, 'probing'):
        clone = revert_sync_batchnorm(copy.deepcopy(backbone))
        for (small, large), width in product(sizes, channels):
            try:
                tested = _widths(clone, names, (width, *small), like, False)
                trained = _widths(clone, names, (width, *large), like, True)
            except _MISFITS as error:
                reason = error
                continue
            return {
                name: widths
                for name, widths in tested.items()
                if widths == [w for w in trained.get(name, ()) if w in widths]
            }
    raise ValueError(
        f'{type(backbone).__name__} does not run on pictures: '
        f'{type(reason).__name__}: {reason}'
    ) from reason


def _widths(backbone, names, shape, like, training):
    backbone.train(training)
    widths, handles = {}, []

    def recorder(name):
        def record(module, args, output):
            widths[name] = []
            apply_to_maps(lambda x: widths[name].append(x.shape[1]), output)

        return record

    for name in names:
        module = backbone.get_submodule(name)
        handles.append(module.register_forward_hook(recorder(name)))
    try:
        backbone(torch.rand(2, *shape).to(like))
    finally:
        for handle in handles:
            handle.remove()
    return widths
