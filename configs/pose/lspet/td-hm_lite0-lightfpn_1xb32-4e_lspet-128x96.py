_base_ = [
    '../../_base_/datasets/lspet_128x96.py',
    '../../_base_/models/lite0.py',
    '../../_base_/schedules/pose_4e.py',
]

custom_imports = dict(imports=['mmpsa.light_fpn'])
model = dict(
    type='TopdownPoseEstimator',
    data_preprocessor=dict(
        type='PoseDataPreprocessor',
        mean=[127.5] * 3,
        std=[127.5] * 3,
        bgr_to_rgb=True,
    ),
    # one after the other: the necks of mmpose are single, and the head takes
    # the last map
    backbone=[
        {{_base_.backbone}},
        dict(type='LightFPN', in_channels=[24, 40, 112, 320], out_channels=64),
    ],
    neck=dict(type='FeatureMapProcessor', select_index=0),
    head=dict(
        type='HeatmapHead',
        in_channels=64,
        out_channels=14,
        deconv_out_channels=None,
        loss=dict(type='KeypointMSELoss', use_target_weight=True),
        decoder={{_base_.codec}},
    ),
    test_cfg=dict(flip_test=True, flip_mode='heatmap', shift_heatmap=True),
)
