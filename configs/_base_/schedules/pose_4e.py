"""4 epochs of AdamW in one cycle, pretrained layers at half the rate.

The rate rises for 30 % of them and falls to zero.
"""

_base_ = 'mmpose::_base_/default_runtime.py'

train_cfg = dict(by_epoch=True, max_epochs=4, val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.01),
    paramwise_cfg=dict(custom_keys={'timm': dict(lr_mult=0.5)}),
)
# not OneCycleLR, which gives all layers the same rate
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.04,
        begin=0,
        end=1.2,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        begin=1.2,
        end=4,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(base_batch_size=32)
