_base_ = './td-hm_lite0-lightfpn_1xb32-4e_lspet-128x96.py'

custom_imports = dict(imports=['mmpsa.light_fpn', 'mmpsa'])
_base_.model.backbone[1].plugins = [
    dict(
        cfg=dict(type='PSA', layout='parallel', identity_init=True),
        modules='fpn_convs.*',
    )
]
