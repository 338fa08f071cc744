_base_ = './td-hm_lite0-fpn_1xb32-2e_lspet-128x96.py'

custom_imports = dict(imports=['mmpsa'])
_base_.model.backbone[1].plugins = [
    dict(
        cfg=dict(type='PSA', layout='parallel', identity_init=True),
        modules='fpn_convs.*',
    )
]
