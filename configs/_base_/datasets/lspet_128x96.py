"""LSPET with inputs of 96 x 128 pixels (w x h), heatmaps of 24 x 32.

Grow it by the two sizes in ``codec`` (192 x 256 and 48 x 64 is what most
upstream configs have); the models read it from here.
"""

# By its file, as mmengine sorts a dictionary's keys when it dumps a config,
# 10 before 2, and mmpose takes the joints in the order of their keys.
metainfo = dict(from_file='{{ fileDirname }}/lspet.py')
codec = dict(
    type='MSRAHeatmap', input_size=(96, 128), heatmap_size=(24, 32), sigma=2
)
train_pipeline = [
    dict(type='LoadImage'),
    dict(type='GetBBoxCenterScale'),
    dict(type='RandomFlip', direction='horizontal'),
    dict(
        type='RandomBBoxTransform',
        scale_factor=(0.75, 1.25),
        rotate_factor=30,
    ),
    dict(type='TopdownAffine', input_size=codec['input_size']),
    dict(type='GenerateTarget', encoder=codec),
    dict(type='PackPoseInputs'),
]
val_pipeline = [
    dict(type='LoadImage'),
    dict(type='GetBBoxCenterScale'),
    dict(type='TopdownAffine', input_size=codec['input_size']),
    dict(type='PackPoseInputs'),
]
# read by mmpose's inferencer too
dataset_type = 'CocoDataset'
data_mode = 'topdown'

train_dataloader = dict(
    batch_size=32,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        metainfo=metainfo,
        data_root='data/lspet/',
        ann_file='lspet_train.json',
        data_prefix=dict(img='images/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
    dataset=dict(
        type=dataset_type,
        metainfo=metainfo,
        data_root='data/lspet/',
        ann_file='lspet_val.json',
        data_prefix=dict(img='images/'),
        test_mode=True,
        pipeline=val_pipeline,
    ),
)
test_dataloader = val_dataloader

# all relative to the longer side of the ground-truth box; PCK is the mean
# over joints of each joint's share, NME the mean over all labelled joints
val_evaluator = [
    dict(type='PCKAccuracy', thr=0.1, prefix='bbox@0.1'),
    dict(type='PCKAccuracy', thr=0.2, prefix='bbox@0.2'),
    dict(
        type='NME',
        norm_mode='use_norm_item',
        norm_item='bbox_size',
        prefix='bbox',
    ),
]
test_evaluator = val_evaluator
