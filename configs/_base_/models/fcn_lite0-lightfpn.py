"""A light decoder on a pretrained EfficientNet-Lite0, for segmentation.

The config that inherits it sets the data_preprocessor's ``size`` and the
head's ``num_classes``.
"""

_base_ = './lite0.py'

model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[127.5] * 3,
        std=[127.5] * 3,
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone={{_base_.backbone}},
    neck=dict(
        type='LightFPN', in_channels=[24, 40, 112, 320], out_channels=64
    ),
    # one 1×1 convolution, on the map of stride 4
    decode_head=dict(
        type='FCNHead',
        in_channels=64,
        in_index=0,
        channels=64,
        num_convs=0,
        concat_input=False,
        dropout_ratio=0,
        num_classes=11,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
