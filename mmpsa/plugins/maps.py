"""What counts as a map, and what a plugin may make of one."""

from typing import Callable

from torch import Tensor, nn


def is_map(x) -> bool:
    """Whether ``x`` is an N×C×H×W tensor."""
    return isinstance(x, Tensor) and x.dim() == 4


def apply_to_maps(function: Callable[[Tensor], Tensor], output):
    """Apply ``function`` to each N×C×H×W tensor in tuples and lists, in order.

    Everything else (tokens, ``None``) is returned unchanged.
    """
    if is_map(output):
        return function(output)
    if isinstance(output, (list, tuple)):
        results = [apply_to_maps(function, x) for x in output]
        # a named tuple takes them one by one
        make = getattr(output, '_make', type(output))
        return make(results)
    return output


def check_shape(plugin: nn.Module, x: Tensor, output) -> None:
    """Refuse an output of another shape than the input's.

    Raises:
        ValueError: If the output is no tensor of that shape.
    """
    if getattr(output, 'shape', None) != x.shape:
        path = getattr(plugin, 'plugin_path', 'the plugin')
        raise ValueError(
            f'the plugin {path} ({type(plugin).__name__}) '
            f'returns {describe(output)} for {describe(x)}; a plugin must '
            'keep the shape'
        )


def describe(output) -> str:
    """Say what a module returned."""
    shape = getattr(output, 'shape', None)
    if shape is not None:
        return f'a tensor of shape {tuple(shape)}'
    return f'an object of type {type(output).__name__}'
