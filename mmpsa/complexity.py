"""What a config's model costs: parameters and FLOPs."""

import copy
from typing import Tuple

import torch
from mmengine.analysis import FlopAnalyzer, parameter_count
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope

from mmpsa.psa import PolarizedSelfAttention


def complexity_of(cfg: Config, naive: bool = False) -> Tuple[int, int]:
    """Parameters, and multiply-adds for one picture of the training size.

    A multiply-add is one FLOP, as in OpenMMLab's tables; activations, sums
    and gates (those of PSA too) are none. Auxiliary heads have parameters
    and, as they run in training only, no FLOPs.

    Args:
        cfg (mmengine.Config): A pose estimator's or a segmentor's; its
            ``crop_size`` (h, w) or ``codec.input_size`` (w, h) is the size.
        naive (bool): Compute PSA by the equations of
            :mod:`mmpsa.ops.reference`, line by line. Default: False.

    Returns:
        tuple[int, int]: parameters, FLOPs.
    """
    model = copy.deepcopy(cfg.model)  # segmentors write into theirs
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = revert_sync_batchnorm(MODELS.build(model)).eval()
    if naive:
        for module in model.modules():
            if isinstance(module, PolarizedSelfAttention):
                module.backend = 'reference'
    # `forward` asks for data samples, which the analysis cannot pass
    model.forward = model._forward
    size = cfg.get('crop_size') or cfg.codec.input_size[::-1]
    analyzer = FlopAnalyzer(model, torch.rand(1, 3, *size))
    # element-wise operators, and convolutions that PSA multiplies out
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with torch.no_grad():
        return parameter_count(model)[''], int(analyzer.total())
