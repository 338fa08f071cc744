"""The runs of the study: tasks, arms and what is compared with what."""

from pathlib import Path

from mmengine.config import Config

STUDY = Path(__file__).resolve().parent
REPO = STUDY.parents[1]
LOGS = STUDY / 'logs'
COSTS = STUDY / 'cost.json'

TASKS = {  # name: the shipped config of its baseline
    'pose': 'configs/pose/lspet/td-hm_res18-w32_1xb32-10e_lspet-128x96',
    'seg': 'configs/seg/camvid/fpn_r18-w32_1xb8-2k_camvid-180x240',
}
SHORT = 'seg-short'  # seg with a quarter of the iterations


def psa(layout, position='after_conv1', stages=(True,) * 4, **cfg):
    """A plugins entry with PSA in it."""
    cfg = dict(type='PSA', layout=layout, **cfg)
    return dict(cfg=cfg, stages=stages, position=position)


def other(**cfg):
    """A plugins entry at the place that the paper gives PSA."""
    return dict(cfg=cfg, stages=(True,) * 4, position='after_conv1')


ARMS = {  # name: the plugins entry of the backbone
    'none': None,
    'se': other(type='SE'),
    'context': other(type='ContextBlock', ratio=1 / 16),
    # the paper's equations, from the identity or as the paper starts them
    'psa-p': psa('parallel', identity_init=True),
    'psa-s': psa('sequential', identity_init=True),
    'psa-p_usual-start': psa('parallel'),
    'psa-s_usual-start': psa('sequential'),
    # the authors' code
    'psa-p-official': psa('parallel', variant='official'),
    'psa-s-official': psa('sequential', variant='official'),
    # one mask
    'psa-ch': psa('channel', identity_init=True),
    'psa-sp': psa('spatial', identity_init=True),
    # placement
    'psa-p_conv2': psa('parallel', 'after_conv2', identity_init=True),
    'psa-p_stages34': psa(
        'parallel', stages=(False, False, True, True), identity_init=True
    ),
    # learning rate of the new layers
    'psa-p_lr0.1': psa('parallel', identity_init=True),
    'psa-p_lr3': psa('parallel', identity_init=True),
}
LR_MULT = {'psa-p_lr0.1': 0.1, 'psa-p_lr3': 3.0}

SEEDS = (0, 1, 2)  # of the comparison
SEARCH_SEED = 10
MAIN = ('none', 'se', 'psa-p', 'psa-s')
CONFIRM = (('pose', 'psa-p_conv2'),)  # what the search found promising


def plan():
    """Every run of the study, (task, arm, seed), the most telling first."""
    main = [(arm, seed) for seed in SEEDS for arm in MAIN]
    runs = [(task, *run) for run in main for task in TASKS]
    runs += [(SHORT, arm, seed) for seed in SEEDS for arm in ARMS]
    runs += [(task, arm, SEARCH_SEED) for arm in ARMS for task in TASKS]
    return runs + [(*found, seed) for found in CONFIRM for seed in SEEDS]


def name_of(task, arm, seed):
    """The name of a run's folder and log."""
    return f'{task}_{arm}_seed{seed}'


def config_of(task, arm, seed):
    """The config of a run: its task's baseline, an arm, a seed.

    The study trains on a CPU: bfloat16 and channels_last about double its
    speed. Evaluation is in float32.
    """
    base = 'seg' if task == SHORT else task
    cfg = Config.fromfile(REPO / f'{TASKS[base]}.py')
    optim_wrapper = dict(type='BF16OptimWrapper')
    if arm in LR_MULT:
        optim_wrapper['paramwise_cfg'] = dict(
            custom_keys={'.psa.': dict(lr_mult=LR_MULT[arm])}
        )
    options = dict(
        custom_imports=dict(imports=['mmpsa', 'projects.study.modules']),
        default_hooks=dict(checkpoint=dict(max_keep_ckpts=1)),
        custom_hooks=[dict(type='ChannelsLastHook')],
        optim_wrapper=optim_wrapper,
        randomness=dict(seed=seed),
        train_dataloader=dict(num_workers=1),
        val_dataloader=dict(num_workers=1),
    )
    if ARMS[arm] is not None:
        options['model.backbone.plugins'] = [ARMS[arm]]
    if task == 'pose':
        # the accuracy in mmpose's training log does not take bfloat16
        options['model.train_cfg'] = dict(compute_acc=False)
    if task == SHORT:
        length = cfg.train_cfg.max_iters // 4
        options['train_cfg'] = dict(max_iters=length, val_interval=length)
        cfg.param_scheduler[-1].end = length  # the warm-up stays
    cfg.merge_from_dict(options)
    return cfg
