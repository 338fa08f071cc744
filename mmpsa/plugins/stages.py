"""Finds the stages of a backbone by the names that upstream gives them."""

import re
from typing import List, Tuple

from torch import nn

_NUMBERED = re.compile(r'(layer|stage|stage_|conv_res_block)\d+')
# Lists of stages. If a backbone has several lists, a stage is one item of
# each.
_LISTS = (
    'stages',
    'layers',
    'encoder',
    'hourglass_modules',
    'multi_stage_mspn',
    'multi_stage_rsn',
    'cpm_stages',
    'context_branch_layers',
    'spatial_branch_layers',
    'i_branch_layers',
    'p_branch_layers',
    'd_branch_layers',
)


def find_stages(backbone: nn.Module) -> List[List[str]]:
    """The names of the modules of each stage; empty if not known."""
    children = dict(backbone.named_children())
    numbered = [[name] for name in children if _NUMBERED.fullmatch(name)]
    lists = [
        [f'{name}.{i}' for i in range(len(children[name]))]
        for name in _LISTS
        if isinstance(children.get(name), (nn.ModuleList, nn.Sequential))
    ]
    return numbered or [list(stage) for stage in zip(*lists)]


def stage_of(module: nn.Module, name: str) -> Tuple[str, int]:
    """Find the stage that has a submodule.

    Args:
        module (nn.Module): A network. The stage is one of its stages, or one
            of a network inside it.
        name (str): The dotted name of the submodule in ``module``.

    Returns:
        tuple[str, int]: The name of the network that has the stage, and the
        index of the stage. If the submodule is in no stage: its own name and
        -1.
    """
    inner = name.split('.')
    for i in range(len(inner)):
        rest = '.'.join(inner[i:])
        for n, stage in enumerate(find_stages(module)):
            if f'{rest}.'.startswith(tuple(f'{part}.' for part in stage)):
                return '.'.join(inner[:i]), n
        module = module._modules.get(inner[i])
        if module is None:
            break
    return name, -1
