_base_ = [
    '../../_base_/datasets/camvid_180x240.py',
    '../../_base_/models/fcn_lite0-fpn.py',
    '../../_base_/schedules/seg_600.py',
]

model = dict(data_preprocessor=dict(size={{_base_.crop_size}}))
