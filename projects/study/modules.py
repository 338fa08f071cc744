"""What the study's runs take beside mmpsa: SE, and speed on a CPU.

Imported by the configs that ``run.py`` writes.
"""

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, MODELS, OPTIM_WRAPPERS
from mmpose.models.backbones.utils import SELayer


@MODELS.register_module()
class SE(SELayer):
    """Squeeze-and-Excitation (arXiv:1709.01507) as a plugin, ratio 16."""

    _abbr_ = 'se'

    def __init__(self, in_channels):
        super().__init__(in_channels)


@OPTIM_WRAPPERS.register_module()
class BF16OptimWrapper(OptimWrapper):
    """Training steps in bfloat16 autocast.

    mmengine's AmpOptimWrapper does not run on a CPU.
    """

    def optim_context(self, model):
        """Autocast for the forward pass of a training step."""
        return torch.autocast('cpu', torch.bfloat16)


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Keep weights, and so activations, in channels_last memory format."""

    def before_run(self, runner):
        """Convert the model."""
        runner.model.to(memory_format=torch.channels_last)
