_base_ = './td-hm_res18-w32_1xb32-10e_lspet-128x96.py'

custom_imports = dict(imports=['mmpsa'])
model = dict(
    backbone=dict(
        plugins=[
            dict(
                cfg=dict(type='PSA', layout='parallel', identity_init=True),
                stages=(True, True, True, True),
                position='after_3x3',
            )
        ]
    )
)
