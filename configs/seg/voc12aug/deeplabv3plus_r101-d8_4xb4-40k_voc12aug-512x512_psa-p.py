_base_ = (
    'mmseg::deeplabv3plus/deeplabv3plus_r101-d8_4xb4-40k_voc12aug-512x512.py'
)
custom_imports = dict(imports=['mmpsa'])
model = dict(
    backbone=dict(
        plugins=[
            dict(
                cfg=dict(type='PSA', layout='parallel'),
                position='after_3x3',
            )
        ]
    )
)
