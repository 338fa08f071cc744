_base_ = [
    '../../_base_/datasets/lspet_128x96.py',
    '../../_base_/models/lite0.py',
    '../../_base_/schedules/pose_2e.py',
]

model = dict(
    type='TopdownPoseEstimator',
    data_preprocessor=dict(
        type='PoseDataPreprocessor',
        mean=[127.5] * 3,
        std=[127.5] * 3,
        bgr_to_rgb=True,
    ),
    # one after the other: the necks of mmpose are single, and the maps of a
    # pyramid must be put together for a heatmap head
    backbone=[
        {{_base_.backbone}},
        dict(
            type='mmdet.FPN',
            in_channels=[24, 40, 112, 320],
            out_channels=64,
            num_outs=4,
            norm_cfg=dict(type='BN'),
            act_cfg=dict(type='ReLU'),
        ),
    ],
    neck=dict(type='FeatureMapProcessor', concat=True),
    head=dict(
        type='HeatmapHead',
        in_channels=256,
        out_channels=14,
        deconv_out_channels=None,
        conv_out_channels=(64,),
        conv_kernel_sizes=(1,),
        loss=dict(type='KeypointMSELoss', use_target_weight=True),
        decoder={{_base_.codec}},
    ),
    test_cfg=dict(flip_test=True, flip_mode='heatmap', shift_heatmap=True),
)
