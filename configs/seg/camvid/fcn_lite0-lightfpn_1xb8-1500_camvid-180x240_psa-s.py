_base_ = './fcn_lite0-lightfpn_1xb8-1500_camvid-180x240.py'

custom_imports = dict(imports=['mmpsa.light_fpn', 'mmpsa'])
model = dict(
    neck=dict(
        plugins=[
            dict(
                cfg=dict(type='PSA', layout='sequential', identity_init=True),
                modules='fpn_convs.*',
            )
        ]
    )
)
