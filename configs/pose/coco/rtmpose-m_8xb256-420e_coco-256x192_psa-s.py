_base_ = (
    'mmpose::body_2d_keypoint/rtmpose/coco/'
    'rtmpose-m_8xb256-420e_coco-256x192.py'
)
custom_imports = dict(imports=['mmpsa'])
model = dict(
    backbone=dict(
        plugins=[
            dict(
                cfg=dict(type='PSA', layout='sequential', identity_init=True),
                position='after_3x3',
            )
        ]
    )
)
