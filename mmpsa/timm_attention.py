"""timm's attention layers as plugins: ``type='timm_cbam'`` and the like.

The names are those of ``timm.layers.create_attn``.
"""

import inspect

from mmengine.registry import MODELS
from torch import nn

PREFIX = 'timm_'
SERVED = (
    'se',
    'ese',
    'eca',
    'ecam',
    'ceca',
    'ge',
    'gc',
    'gca',
    'cbam',
    'lcbam',
    'coord',
    'scoord',
    'ela',
    'strip',
)
_CONVOLUTION = 'it replaces a convolution, and a plugin follows one'
_ONE_SIZE = 'it replaces a convolution, and is built for maps of one size'
NOT_SERVED = {
    'sk': _CONVOLUTION,
    'splat': _CONVOLUTION,
    'lambda': _ONE_SIZE,
    'bottleneck': _ONE_SIZE,
    'halo': _ONE_SIZE,
    'nl': "take mmcv's 'NonLocal2d', which starts as the identity",
    'bat': 'it takes maps whose sides are multiples of its block size alone',
}
# What mmpsa passes itself, or what follows from where the plugin stands.
_GIVEN = ('channels', 'device', 'dtype')


class TimmAttention(nn.Module):
    """Builds a layer of timm, which is imported when this is called.

    The layer is timm's own, so its keys are timm's.

    Args:
        in_channels (int): C of the input, N×C×H×W.
        kwargs: What timm's class takes.

    Raises:
        TypeError: If timm's class does not take an argument.
        ValueError: If timm's layer cannot be a plugin.
        ImportError: If timm is not installed, or has no such layer.
    """

    attention: str

    def __new__(cls, in_channels, **kwargs):
        """Build timm's layer."""
        name = cls.attention
        if name in NOT_SERVED:
            raise ValueError(
                f"timm's {name!r} is no plugin: {NOT_SERVED[name]}"
            )
        try:
            from timm.layers.create_attn import get_attn

            layer = get_attn(name)
        except (ImportError, AssertionError) as error:
            raise ImportError(
                f'{PREFIX}{name} is a layer of timm, which is not installed '
                'or too old: pip install --upgrade --no-deps timm'
            ) from error
        taken = [
            parameter.name
            for parameter in inspect.signature(layer).parameters.values()
            if parameter.kind is not parameter.VAR_KEYWORD
            and parameter.name not in _GIVEN
        ]
        unknown = [key for key in kwargs if key not in taken]
        if unknown:
            raise TypeError(
                f'{PREFIX}{name} takes {", ".join(taken)}, got '
                f'{", ".join(unknown)}'
            )
        return layer(in_channels, **kwargs)


for _name in (*SERVED, *NOT_SERVED):
    MODELS.register_module(
        name=PREFIX + _name,
        module=type(
            TimmAttention.__name__,
            (TimmAttention,),
            dict(__module__=__name__, attention=_name, _abbr_=_name),
        ),
    )
