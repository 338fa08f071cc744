_base_ = '../../configs/quickstart/fcn_r18-w32_1xb16-250_figures-128x128.py'

custom_imports = dict(
    imports=['mmpsa', 'projects.own_attention.own_attention']
)
own = dict(type='OwnAttention', ratio=1 / 4)
model = dict(
    backbone=dict(
        plugins=[
            dict(
                cfg=own,
                position='after_conv1',
                stages=(False, False, True, True),
            )
        ]
    ),
    neck=dict(
        type='FPN',
        in_channels=[32, 64, 128, 256],
        out_channels=32,
        num_outs=4,
        plugins=[dict(cfg=own, modules='fpn_convs.*')],
    ),
    decode_head=dict(
        in_channels=[32, 32, 32, 32],
        plugins=[dict(cfg=own, modules='convs.0')],
    ),
)
