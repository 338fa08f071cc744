"""Attention in the path of a light decoder, CamVid: the comparison."""

_base_ = './on_cpu.py'

from projects.study import arms as study  # noqa: E402

base = 'fcn_lite0-lightfpn_1xb8-1500_camvid-180x240'
arms = {
    'none': {},
    'se': study.at('neck', study.SE, identity_init=True),
    'psa-s': study.at('neck', study.PSA_S),
}
seeds = [20, 21, 22, 23, 24, 25, 26, 27, 28, 29]
metric = 'mIoU'
