_base_ = (
    'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb2-80k_cityscapes-512x1024.py'
)
custom_imports = dict(imports=['mmpsa'])
model = dict(
    backbone=dict(
        plugins=[
            dict(
                cfg=dict(type='PSA', layout='sequential'),
                position='after_3x3',
            )
        ]
    )
)
