"""Parameters and GFLOPs of configs: without plugins, with, and the overhead.

Without ``plugins``, a PSA config is its baseline: the config that it inherits.
One multiply-add counts as one FLOP. The last column counts PSA by its
published equations, with their C/2×H×W maps. The other columns count what
mmpsa computes.
"""

import argparse
import copy
from pathlib import Path

from cli import config_file
from mmengine.config import Config


def remove_plugins(cfg):
    """Take every ``plugins`` out of a model's config.

    Args:
        cfg (dict or list): The config, or a part of it.

    Returns:
        int: How many there were.
    """
    if isinstance(cfg, dict):
        found = cfg.pop('plugins', None) is not None
        return found + sum(map(remove_plugins, cfg.values()))
    if isinstance(cfg, (list, tuple)):
        return sum(map(remove_plugins, cfg))
    return 0


def row_of(name, cfg):
    """One row of the table: a config's name and seven figures.

    Args:
        name (str): The name of the config.
        cfg (mmengine.Config): A config whose model has ``plugins``.

    Returns:
        list[str]: name; parameters in millions without plugins, with, and
        the overhead in percent; GFLOPs likewise; GFLOPs with the equations
        as they are written.
    """
    from mmpsa.complexity import complexity_of

    base = copy.deepcopy(cfg)
    remove_plugins(base.model)
    params, flops = complexity_of(cfg)
    _, reference_flops = complexity_of(cfg, reference=True)
    base_params, base_flops = complexity_of(base)
    return [
        name,
        f'{base_params / 1e6:.2f}',
        f'{params / 1e6:.2f}',
        f'{100 * (params / base_params - 1):.1f}',
        f'{base_flops / 1e9:.2f}',
        f'{flops / 1e9:.2f}',
        f'{100 * (flops / base_flops - 1):.2f}',
        f'{reference_flops / 1e9:.2f}',
    ]


def main():
    """Print a Markdown table with one row per config."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'configs', nargs='+', type=config_file, metavar='CONFIG'
    )
    paths = parser.parse_args().configs
    configs = [(path, Config.fromfile(path)) for path in paths]
    for path, cfg in configs:
        if not remove_plugins(copy.deepcopy(cfg.model)):
            parser.error(f'{path}: nothing in its model has plugins')

    from mmengine.logging import MMLogger

    MMLogger.get_current_instance().setLevel('ERROR')
    print(
        '| config | parameters, M | with plugins | + % '
        '| GFLOPs | with plugins | + % | as written |'
    )
    print('|---|' + '--:|' * 7)
    for path, cfg in configs:
        row = row_of(Path(path).stem, cfg)
        print('|', ' | '.join(row), '|', flush=True)


if __name__ == '__main__':
    main()
