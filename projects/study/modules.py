"""What the study's runs take beside mmpsa: another start of PSA, speed.

The plans import it.
"""

import torch
from mmengine.hooks import Hook
from mmengine.model import kaiming_init
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, MODELS, OPTIM_WRAPPERS
from torch import nn

from mmpsa import PolarizedSelfAttention


@MODELS.register_module()
class KaimingPSA(PolarizedSelfAttention):
    """PSA from the identity, with its other weights by Kaiming.

    As mmpsa 1.0 started it, and the pilots before.
    """

    def reset_parameters(self):
        """Start as the identity."""
        super().reset_parameters()
        for name, layer in self.named_children():
            if isinstance(layer, nn.Conv2d) and name != 'sp_wv':
                kaiming_init(layer, mode='fan_in')


@OPTIM_WRAPPERS.register_module()
class BF16OptimWrapper(OptimWrapper):
    """Training steps in bfloat16 autocast.

    mmengine's AmpOptimWrapper does not run on a CPU.
    """

    def optim_context(self, model):
        """Autocast for the forward pass of a training step."""
        return torch.autocast('cpu', torch.bfloat16)


@HOOKS.register_module()
class FastOnCPUHook(Hook):
    """Train in layouts and types that a CPU is fast in."""

    def before_run(self, runner):
        """Convert the model."""
        fast_on_cpu(runner.model)


def fast_on_cpu(model):
    """Convert a model, in place, to what a CPU is fast in.

    Weights, and so activations, in channels_last. Convolutions in groups in
    float32: oneDNN's backward takes several times as long in bfloat16.
    """
    model.to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.forward = _in_float32(module.forward)


def _in_float32(forward):
    def run(x):
        with torch.autocast('cpu', enabled=False):
            return forward(x.float())

    return run
