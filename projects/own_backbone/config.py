custom_imports = dict(imports=['projects.own_backbone.own_backbone'])
default_scope = 'mmseg'

model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64)),
    backbone=dict(
        type='OwnBackbone',
        plugins=[
            dict(
                cfg=dict(type='PSA', identity_init=True),
                position='after_3x3',
                stages=(False, True, True),
            ),
            dict(
                cfg=dict(type='ContextBlock', ratio=1 / 4),
                modules='stages.*.1',
            ),
        ],
    ),
    decode_head=dict(
        type='FCNHead',
        in_channels=64,
        channels=16,
        num_classes=4,
        norm_cfg=dict(type='BN'),
        plugins=[
            dict(cfg=dict(type='PSA', identity_init=True), modules='convs.0'),
        ],
    ),
)
