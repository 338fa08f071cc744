_base_ = './fcn_hrnet-w16s_1xb8-2k_camvid-180x240.py'

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
