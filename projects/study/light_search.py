"""Attention in the path of a light decoder: the search, on its own seed."""

_base_ = './on_cpu.py'

from projects.study import arms as study  # noqa: E402

base = 'fcn_lite0-lightfpn_1xb8-1500_camvid-180x240'
arms = {
    'none': {},
    'psa-s': study.at('neck', study.PSA_S),
    'psa-p': study.at('neck', study.PSA_P),
    # the identity, with the weights that are free in it by Kaiming
    'psa-s_kaiming': study.at('neck', dict(study.PSA_S, type='KaimingPSA')),
    # masks are not doubled: about a quarter of the input at the start
    'psa-s_quarter': study.at('neck', dict(type='PSA', layout='sequential')),
    'psa-s_lr3': study.at('neck', study.PSA_S, lr_mult=3.0),
    'psa-s_lr0.3': study.at('neck', study.PSA_S, lr_mult=0.3),
}
seeds = [10]
metric = 'mIoU'
