"""Counts the parameters and FLOPs of a config's model."""

import copy
from functools import partial
from typing import Optional, Tuple

import torch
from mmengine.analysis import FlopAnalyzer, parameter_count
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmpsa.ops import polarized_self_attention
from mmpsa.psa import PolarizedSelfAttention


def complexity_of(
    cfg: Config, reference: bool = False, batch: Optional[dict] = None
) -> Tuple[int, int]:
    """Parameters, and multiply-adds for one picture of the training size.

    A multiply-add counts as one FLOP, as in OpenMMLab's tables. Activations,
    sums and gates, also those of PSA, do not count. Auxiliary heads count
    with their parameters, but not with FLOPs: they run in training only.

    Args:
        cfg (mmengine.Config): The config of a model. Its ``crop_size`` (h,
            w) or ``codec.input_size`` (w, h) is the size of the picture.
        reference (bool): Compute PSA by the equations of
            :mod:`mmpsa.ops.reference`, line by line. Default: False.
        batch (dict, optional): What the model's data preprocessor returns:
            ``inputs``, N×3×H×W, and ``data_samples``. If ``cfg`` has neither
            size, the first picture is counted.

    Returns:
        tuple[int, int]: The parameters and the FLOPs.

    Raises:
        ValueError: If ``cfg`` has neither size and there is no ``batch``.
    """
    size, codec = cfg.get('crop_size'), cfg.get('codec')
    if not size and isinstance(codec, dict) and 'input_size' in codec:
        size = codec['input_size'][::-1]
    samples = None
    if not size and batch:
        size, samples = batch['inputs'].shape[2:], batch['data_samples']
        samples = samples and samples[:1]  # classifiers do without
    if not size:
        raise ValueError(
            'cfg must have crop_size (h, w) or codec.input_size (w, h), as '
            "mmsegmentation's and mmpose's configs do"
        )
    model = copy.deepcopy(cfg.model)  # segmentors write into theirs
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        model = revert_sync_batchnorm(MODELS.build(model)).eval()
    # the analysis passes pictures alone
    model.forward = partial(model.forward, data_samples=samples, mode='tensor')
    picture = torch.rand(1, 3, *size)
    return parameter_count(model)[''], multiply_adds(model, picture, reference)


@torch.no_grad()
def multiply_adds(model: nn.Module, x: Tensor, reference: bool = False) -> int:
    """Multiply-adds of a module for a map, counted as by `complexity_of`.

    Args:
        model (nn.Module): It is not to be used afterwards.
        x (Tensor): N×C×H×W.
        reference (bool): As in :func:`complexity_of`. Default: False.
    """
    if not reference:
        # The analysis hooks every layer, and PSA calls its layers then.
        for module in model.modules():
            if isinstance(module, PolarizedSelfAttention):
                operator = partial(
                    polarized_self_attention,
                    weights=module.weights,  # type: ignore[arg-type]
                    spec=module.spec,
                    backend='torch',
                )
                setattr(module, 'forward', operator)
    analyzer = FlopAnalyzer(model, x)
    # element-wise operators, and convolutions that PSA multiplies out
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return int(analyzer.total())
