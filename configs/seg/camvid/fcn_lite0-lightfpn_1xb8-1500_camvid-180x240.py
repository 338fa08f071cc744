_base_ = [
    '../../_base_/datasets/camvid_180x240.py',
    '../../_base_/models/fcn_lite0-lightfpn.py',
    '../../_base_/schedules/seg_1500.py',
]

custom_imports = dict(imports=['mmpsa.light_fpn'])
model = dict(data_preprocessor=dict(size={{_base_.crop_size}}))
