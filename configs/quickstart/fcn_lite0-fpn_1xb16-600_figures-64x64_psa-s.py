_base_ = './fcn_lite0-fpn_1xb16-600_figures-64x64.py'

custom_imports = dict(imports=['mmpsa'])
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
