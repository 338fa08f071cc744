"""Pose on the generated figures: about a minute on two cores."""

_base_ = ['mmpose::_base_/default_runtime.py', '../_base_/models/res18-w32.py']

codec = dict(
    type='MSRAHeatmap', input_size=(64, 64), heatmap_size=(16, 16), sigma=1.5
)
model = dict(
    type='TopdownPoseEstimator',
    data_preprocessor=dict(
        type='PoseDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    head=dict(
        type='HeatmapHead',
        in_channels=256,
        out_channels=14,
        deconv_out_channels=(64, 64, 64),
        loss=dict(type='KeypointMSELoss', use_target_weight=True),
        decoder=codec,
    ),
    test_cfg=dict(flip_test=False),
)

left, right, middle = [0, 255, 0], [255, 128, 0], [51, 153, 255]
metainfo = dict(
    dataset_name='figures',
    keypoint_info={
        0: dict(name='head_top', id=0, swap=''),
        1: dict(name='neck', id=1, swap=''),
        2: dict(name='left_shoulder', id=2, swap='right_shoulder'),
        3: dict(name='right_shoulder', id=3, swap='left_shoulder'),
        4: dict(name='left_elbow', id=4, swap='right_elbow'),
        5: dict(name='right_elbow', id=5, swap='left_elbow'),
        6: dict(name='left_wrist', id=6, swap='right_wrist'),
        7: dict(name='right_wrist', id=7, swap='left_wrist'),
        8: dict(name='left_hip', id=8, swap='right_hip'),
        9: dict(name='right_hip', id=9, swap='left_hip'),
        10: dict(name='left_knee', id=10, swap='right_knee'),
        11: dict(name='right_knee', id=11, swap='left_knee'),
        12: dict(name='left_ankle', id=12, swap='right_ankle'),
        13: dict(name='right_ankle', id=13, swap='left_ankle'),
    },
    skeleton_info={
        0: dict(link=('head_top', 'neck'), color=middle),
        1: dict(link=('neck', 'left_shoulder'), color=left),
        2: dict(link=('left_shoulder', 'left_elbow'), color=left),
        3: dict(link=('left_elbow', 'left_wrist'), color=left),
        4: dict(link=('neck', 'right_shoulder'), color=right),
        5: dict(link=('right_shoulder', 'right_elbow'), color=right),
        6: dict(link=('right_elbow', 'right_wrist'), color=right),
        7: dict(link=('left_shoulder', 'left_hip'), color=left),
        8: dict(link=('right_shoulder', 'right_hip'), color=right),
        9: dict(link=('left_hip', 'right_hip'), color=middle),
        10: dict(link=('left_hip', 'left_knee'), color=left),
        11: dict(link=('left_knee', 'left_ankle'), color=left),
        12: dict(link=('right_hip', 'right_knee'), color=right),
        13: dict(link=('right_knee', 'right_ankle'), color=right),
    },
    joint_weights=[1.0] * 14,
    sigmas=[0.05] * 14,
)

dataset = dict(
    type='CocoDataset', data_root='data/figures/', metainfo=metainfo
)
train_pipeline = [
    dict(type='LoadImage'),
    dict(type='GetBBoxCenterScale'),
    dict(type='RandomFlip', direction='horizontal'),
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
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        dataset,
        ann_file='annotations/train.json',
        data_prefix=dict(img='images/train/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
    dataset=dict(
        dataset,
        ann_file='annotations/val.json',
        data_prefix=dict(img='images/val/'),
        test_mode=True,
        pipeline=val_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type='PCKAccuracy', thr=0.1, norm_item='bbox', prefix='bbox@0.1'
)
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=8, val_interval=8)
randomness = dict(seed=0)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=5e-3, weight_decay=0.01))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        T_max=8,
        by_epoch=True,
        begin=0,
        end=8,
        convert_to_iter_based=True,
    ),
]
default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(interval=8, max_keep_ckpts=1)
)
