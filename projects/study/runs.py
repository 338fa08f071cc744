"""The runs of the study: tasks, arms, seeds, and what is compared with what.

An arm is the plugins of a model by its parts: ``backbone``, ``neck``,
``head``. Tasks with the same arms share them.
"""

from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

STUDY = Path(__file__).resolve().parent
REPO = STUDY.parents[1]
LOGS = STUDY / 'logs'
COSTS = STUDY / 'cost.json'


def psa(layout='parallel', identity_init=True, **cfg):
    """PSA, by default from the identity start."""
    if not identity_init:
        cfg['init_cfg'] = dict(type='Kaiming', layer='Conv2d', mode='fan_in')
    return dict(type='PSA', layout=layout, identity_init=identity_init, **cfg)


SE = dict(type='SE', identity_init=True)

# Where plugins stand in the pretrained networks, by part of the model. The
# pyramid is a FPN, whose outputs are those of its fpn_convs.
LEVELS = {f'level{2**i}': i - 2 for i in (2, 3, 4, 5)}  # by their strides
PLACES = {
    'pyramid': dict(neck=dict(modules='fpn_convs.*')),
    'laterals': dict(neck=dict(modules='lateral_convs.*')),
    **{
        name: dict(neck=dict(modules=f'fpn_convs.{i}'))
        for name, i in LEVELS.items()
    },
    # the hidden layer: conv_layers in mmpose, convs in mmseg
    'head': dict(head=dict(modules='conv*s', cfg=dict(in_channels=64))),
    # the outputs of strides 16 and 32
    'late': dict(
        backbone=dict(position='output', stages=(False, False, True, True))
    ),
    # each inverted residual's last convolution and norm
    'blocks': dict(
        backbone=dict(
            modules=[
                'timm_model.blocks.0.*.bn2',
                *(f'timm_model.blocks.{i}.*.bn3' for i in range(1, 7)),
            ]
        )
    ),
}


def at(place, cfg):
    """Plugins by part of the model: one kind at a place, or at several."""
    return {
        part: [dict(where, cfg=dict(cfg, **where.get('cfg', {})))]
        for name in place.split('+')
        for part, where in PLACES[name].items()
    }


# From ImageNet weights: the plugin, its place, what else is different.
PLACED = {
    f'psa-p_{place}': at(place, psa())
    for place in (
        'pyramid',
        'laterals',
        'head',
        'late',
        'pyramid+head',
        'pyramid+late',
        'blocks',
    )
}
PRETRAINED = {
    'none': {},
    **PLACED,
    'se_pyramid': at('pyramid', SE),
    'psa-s_pyramid': at('pyramid', psa('sequential')),
    'psa-ch_pyramid': at('pyramid', psa('channel')),
    'psa-sp_pyramid': at('pyramid', psa('spatial')),
    'psa-p_pyramid_usual-start': at('pyramid', psa(identity_init=False)),
    'psa-p_pyramid_scaled': at('pyramid', dict(type='ScaledPSA')),
    'psa-p_pyramid_lr3': at('pyramid', psa()),
    'psa-p_pyramid_lr0.3': at('pyramid', psa()),
    'eca_pyramid': at('pyramid', dict(type='ECA')),
    **{f'psa-p_{level}': at(level, psa()) for level in LEVELS},
}
LR_MULT = {'lr0.3': 0.3, 'lr3': 3.0}  # by the end of the name


def after_conv1(cfg, position='after_3x3', stages=(True,) * 4):
    """A plugin where the paper puts PSA: in every residual block."""
    return dict(backbone=[dict(cfg=cfg, stages=stages, position=position)])


# From scratch, in the half-width ResNet-18.
SCRATCH = {
    'none': {},
    'se': after_conv1(dict(type='SE')),
    # the paper's equations, from the identity or as the paper starts them
    'psa-p': after_conv1(psa('parallel')),
    'psa-s': after_conv1(psa('sequential')),
    'psa-p_usual-start': after_conv1(psa('parallel', False)),
    'psa-s_usual-start': after_conv1(psa('sequential', False)),
    # the authors' code
    'psa-p-official': after_conv1(psa('parallel', False, variant='official')),
    'psa-s-official': after_conv1(
        psa('sequential', False, variant='official')
    ),
    # one mask
    'psa-ch': after_conv1(psa('channel')),
    'psa-sp': after_conv1(psa('spatial')),
    # placement
    'psa-p_conv2': after_conv1(psa('parallel'), 'after_conv2'),
    'psa-p_stages34': after_conv1(
        psa('parallel'), stages=(False, False, True, True)
    ),
    # learning rate of the new layers
    'psa-p_lr3': after_conv1(psa('parallel')),
}


class Task(NamedTuple):
    """A data set, a network and a recipe.

    Attributes:
        config (str): The shipped config of the baseline.
        arms (dict): Plugins by arm.
        parts (dict): Where the config has the parts of the model.
        length (float): The part of the recipe's iterations that are run.
        share (float): The part of the training data that is used, spread
            evenly over all of it.
    """

    config: str
    arms: dict
    parts: dict
    length: float = 1.0
    share: float = 1.0


SEG = dict(
    backbone='model.backbone', neck='model.neck', head='model.decode_head'
)
TASKS = {
    'lspet': Task(
        'configs/pose/lspet/td-hm_lite0-fpn_1xb32-2e_lspet-128x96.py',
        PRETRAINED,
        dict(
            backbone='model.backbone.0',
            neck='model.backbone.1',
            head='model.head',
        ),
    ),
    'camvid': Task(
        'configs/seg/camvid/fcn_lite0-fpn_1xb8-600_camvid-180x240.py',
        PRETRAINED,
        SEG,
    ),
    'figures': Task(
        'configs/quickstart/fcn_lite0-fpn_1xb16-600_figures-64x64.py',
        PRETRAINED,
        SEG,
    ),
    # from scratch
    'pose': Task(
        'configs/pose/lspet/td-hm_res18-w32_1xb32-10e_lspet-128x96.py',
        SCRATCH,
        dict(backbone='model.backbone'),
    ),
    'seg': Task(
        'configs/seg/camvid/fpn_r18-w32_1xb8-2k_camvid-180x240.py',
        SCRATCH,
        SEG,
    ),
}
TASKS['seg-short'] = TASKS['seg']._replace(length=0.25)
MAIN = ('lspet', 'camvid', 'figures')
# With less data, for as many iterations.
LESS_DATA = {
    f'{name}-{percent}': TASKS[name]._replace(share=percent / 100)
    for name in ('figures', 'camvid')
    for percent in (10, 30)
}
TASKS.update(LESS_DATA)

SEEDS = (0, 1, 2, 3, 4)  # of the comparison
SEARCH_SEED = 10
COMPARED = ('none', 'se_pyramid', 'psa-p_pyramid', 'psa-s_pyramid')
PSA_P = 'psa-p_pyramid'  # also in the runs with less data
USUAL_START = f'{PSA_P}_usual-start'


def plan():
    """Every run that is planned, (task, arm, seed), in order.

    docs/study.md says what each is for.
    """
    runs = []
    for task in ('camvid', 'figures', 'lspet'):
        runs += [(task, 'none', seed) for seed in SEEDS[:3]]
        runs += [(task, arm, seed) for seed in SEEDS for arm in COMPARED]
    runs += [('figures', arm, SEARCH_SEED) for arm in PRETRAINED]
    runs += [
        (task, arm, seed)
        for seed in SEEDS[:3]
        for task in LESS_DATA
        for arm in ('none', PSA_P)
    ]
    runs += [(task, USUAL_START, seed) for seed in SEEDS[:3] for task in MAIN]
    # Of step 4, seeds 0 to 2 had one interval above 0. These checked it.
    runs += [
        ('camvid-10', arm, seed)
        for seed in SEEDS[3:]
        for arm in ('none', PSA_P)
    ]
    runs += [
        (task, arm, SEARCH_SEED)
        for arm in ('none', *PLACED)
        for task in ('camvid', 'lspet')
    ]
    return list(dict.fromkeys(runs))


def name_of(task, arm, seed):
    """The name of a run's folder and log."""
    return f'{task}_{arm}_seed{seed}'


def config_of(task, arm, seed):
    """The config of a run: its task's baseline, an arm, a seed.

    The study trains on a CPU: bfloat16 and channels_last about double its
    speed. Evaluation is in float32. Loading the data in the training process
    gives every arm of a seed the same data in the same order.
    """
    task = TASKS[task]
    cfg = Config.fromfile(REPO / task.config)
    options = dict(
        custom_imports=dict(imports=['mmpsa', 'projects.study.modules']),
        default_hooks=dict(checkpoint=dict(max_keep_ckpts=1)),
        custom_hooks=[dict(type='FastOnCPUHook')],
        optim_wrapper=dict(type='BF16OptimWrapper'),
        randomness=dict(seed=seed),
        train_dataloader=dict(num_workers=0, persistent_workers=False),
        val_dataloader=dict(num_workers=0, persistent_workers=False),
    )
    for part, plugins in task.arms[arm].items():
        options[f'{task.parts[part]}.plugins'] = plugins
    rate = LR_MULT.get(arm.rpartition('_')[2], 1.0)
    options['optim_wrapper.paramwise_cfg.custom_keys'] = {
        f'.{name}.': dict(lr_mult=rate)
        for name in ('psa', 'se', 'eca')  # also in pretrained blocks
    }
    if cfg.default_scope == 'mmpose':
        # the accuracy in mmpose's training log does not take bfloat16
        options['model.train_cfg'] = dict(compute_acc=False)
    if task.length != 1:
        length = int(cfg.train_cfg.max_iters * task.length)
        options['train_cfg'] = dict(max_iters=length, val_interval=length)
        cfg.param_scheduler[-1].end = length  # the warm-up stays
    cfg.merge_from_dict(options)
    if task.share < 1:
        take(cfg.train_dataloader.dataset, task.share, cfg.default_scope)
    return cfg


def take(dataset, share, scope):
    """Let a data set's config, or each that it joins, take a share of it."""
    if 'datasets' in dataset:
        for part in dataset.datasets:
            take(part, share, scope)
        return
    with DefaultScope.overwrite_default_scope(scope):
        count = len(DATASETS.build(dataset))
    dataset.indices = [int(i / share) for i in range(round(count * share))]
