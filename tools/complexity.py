"""Parameters and GFLOPs of configs: without plugins, with, and the overhead.

Of a PSA config, what is left without ``plugins`` is its baseline, the config
that it inherits. The last column counts the same PSA as its equations are
written, with their C/2×H×W maps, instead of as mmpsa computes them.
"""

import argparse
import copy
from functools import partial
from pathlib import Path


def complexity_of(cfg, naive=False):
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
    import torch
    from mmengine.analysis import FlopAnalyzer, parameter_count
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS, DefaultScope

    from mmpsa import PolarizedSelfAttention
    from mmpsa.ops import reference

    model = copy.deepcopy(cfg.model)  # segmentors write into theirs
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = revert_sync_batchnorm(MODELS.build(model)).eval()
    if naive:
        for module in model.modules():
            if isinstance(module, PolarizedSelfAttention):
                equations = getattr(reference, module.variant)
                module.forward = partial(equations, module)
    # `forward` asks for data samples, which the analysis cannot pass
    model.forward = model._forward
    size = cfg.get('crop_size') or cfg.codec.input_size[::-1]
    analyzer = FlopAnalyzer(model, torch.rand(1, 3, *size))
    # element-wise operators, and convolutions that PSA multiplies out
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with torch.no_grad():
        return parameter_count(model)[''], int(analyzer.total())


def row_of(path):
    """One row of the table: a config's name and seven figures.

    Args:
        path (str): A config whose backbone has ``plugins``.

    Returns:
        list[str]: name; parameters in millions without plugins, with, and
        the overhead in percent; GFLOPs likewise; GFLOPs with the equations
        as they are written.

    Raises:
        ValueError: If the backbone has no ``plugins``.
    """
    from mmengine.config import Config

    cfg = Config.fromfile(path)
    if not cfg.model.backbone.get('plugins'):
        raise ValueError(f'{path}: model.backbone has no plugins')
    params, flops = complexity_of(cfg)
    _, naive_flops = complexity_of(cfg, naive=True)
    del cfg.model.backbone['plugins']
    base_params, base_flops = complexity_of(cfg)
    return [
        Path(path).stem,
        f'{base_params / 1e6:.2f}',
        f'{params / 1e6:.2f}',
        f'{100 * (params / base_params - 1):.1f}',
        f'{base_flops / 1e9:.2f}',
        f'{flops / 1e9:.2f}',
        f'{100 * (flops / base_flops - 1):.2f}',
        f'{naive_flops / 1e9:.2f}',
    ]


def main():
    """Print a Markdown table with one row a config."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('configs', nargs='+', metavar='CONFIG')
    paths = parser.parse_args().configs

    from mmengine.logging import MMLogger

    MMLogger.get_current_instance().setLevel('ERROR')
    print(
        '| config | parameters, M | with PSA | + % '
        '| GFLOPs | with PSA | + % | as written |'
    )
    print('|---|' + '--:|' * 7)
    for path in paths:
        print('|', ' | '.join(row_of(path)), '|', flush=True)


if __name__ == '__main__':
    main()
