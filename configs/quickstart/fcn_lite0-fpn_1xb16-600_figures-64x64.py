"""Body parts at half the size: limbs of two pixels among clutter.

Predictions are scored at the 128 x 128 pixels of the labels.
"""

_base_ = [
    '../_base_/datasets/figures_parts.py',
    '../_base_/models/fcn_lite0-fpn.py',
    '../_base_/schedules/seg_600.py',
]

crop_size = (64, 64)
model = dict(
    data_preprocessor=dict(size=crop_size), decode_head=dict(num_classes=5)
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='Resize', scale=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=crop_size),
    # after Resize: the labels keep their size
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
