_base_ = (
    'mmpose::animal_2d_keypoint/topdown_heatmap/ap10k/'
    'td-hm_hrnet-w32_8xb64-210e_ap10k-256x256.py'
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
