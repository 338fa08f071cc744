_base_ = './fcn_r18-w32_1xb16-250_figures-128x128.py'

custom_imports = dict(imports=['mmpsa'])
model = dict(
    backbone=dict(
        plugins=[
            dict(
                cfg=dict(type='PSA', layout='sequential', identity_init=True),
                stages=(True, True, True, True),
                position='after_3x3',
            )
        ]
    )
)
