"""10 epochs of AdamW: a warm-up, then cosine annealing to zero."""

_base_ = 'mmpose::_base_/default_runtime.py'

train_cfg = dict(by_epoch=True, max_epochs=10, val_interval=2)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.01))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=300),
    dict(
        type='CosineAnnealingLR',
        T_max=10,
        by_epoch=True,
        begin=0,
        end=10,
        convert_to_iter_based=True,
    ),
]
default_hooks = dict(checkpoint=dict(interval=2))
auto_scale_lr = dict(base_batch_size=32)
