"""1,500 iterations of AdamW in one cycle, pretrained layers at half the rate.

The rate rises for 30 % of them and falls to zero.
"""

_base_ = 'mmseg::_base_/default_runtime.py'

train_cfg = dict(type='IterBasedTrainLoop', max_iters=1500, val_interval=375)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.01),
    paramwise_cfg=dict(custom_keys={'timm': dict(lr_mult=0.5)}),
)
# not OneCycleLR, which gives all layers the same rate
param_scheduler = [
    dict(type='LinearLR', start_factor=0.04, by_epoch=False, begin=0, end=450),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=450, end=1500),
]
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=375),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
auto_scale_lr = dict(enable=False, base_batch_size=8)
