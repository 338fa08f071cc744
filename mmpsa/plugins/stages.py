"""Knows the stages of backbones, and their blocks, by upstream's names."""

import re
from typing import List, Optional, Tuple

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


# What to name where the blocks of a backbone have no positions but return
# maps, by the class of the backbone.
MODULES_INSTEAD = {
    backbone: pattern
    for pattern, backbones in {
        'features.[147]': 'AlexNet',
        'context_path.backbone.layer*.*': 'BiSeNetV1',
        'semantic.stage[345].*': 'BiSeNetV2',
        'level*.*': 'CGNet',
        'cpm_stages.*.model.*': 'CPM',
        'conv_trans_*.fusion_block': 'Conformer',
        'stages.*.*': 'ConvMixer ConvNeXt EdgeNeXt HorNet RepMLPNet',
        'stages.*.block.*': 'DenseNet',
        'encoder.*': 'ERFNet',
        'network.[012].*.mlp': 'EfficientFormer',
        'global_feature_extractor.bottleneck*.*': 'FastSCNN',
        'hourglass_modules.**.low1': 'HourglassAENet',
        'backbone.layer*.*': 'ICNet',
        'Mixed_*': 'InceptionV3',
        'features.[14]': 'LeNet5',
        'stage*.*.layers.*.depthwise_convs.*': 'LiteHRNet',
        'block*.*.attn': 'MSCAN',
        '**.ffn.layers': 'MixVisionTransformer PyramidVisionTransformer'
        ' PyramidVisionTransformerV2',
        'stage[1-4].*': 'MobileOne',
        'network.*.*': 'PoolFormer RIFormer',
        'stages.*.*.1': 'PyramidVig',
        'stages.*.blocks.*': 'RepLKNet',
        'stage_*.*': 'RepVGG',
        'features.*': 'SSDVGG VGG',
        'backbone.stages.*.*': 'STDCContextPathNet',
        'blocks*.*': 'VAN',
        'blocks.*': 'Vig',
    }.items()
    for backbone in backbones.split()
}


def modules_instead(backbone: nn.Module) -> Optional[str]:
    """The pattern of ``modules=`` that names a backbone's blocks, if known."""
    return MODULES_INSTEAD.get(type(backbone).__name__)
