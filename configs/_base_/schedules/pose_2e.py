"""2 epochs of AdamW, pretrained layers at half the rate of new ones."""

_base_ = 'mmpose::_base_/default_runtime.py'

train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.01),
    paramwise_cfg=dict(custom_keys={'timm': dict(lr_mult=0.5)}),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        T_max=2,
        by_epoch=True,
        begin=0,
        end=2,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(base_batch_size=32)
