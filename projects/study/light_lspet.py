"""Attention in the path of a light decoder, LSPET: the comparison."""

_base_ = './on_cpu.py'

from projects.study import arms as study  # noqa: E402

base = 'td-hm_lite0-lightfpn_1xb32-4e_lspet-128x96'
arms = {
    'none': {},
    'se': study.at('backbone.1', study.SE, identity_init=True),
    'psa-s': study.at('backbone.1', study.PSA_S),
}
seeds = [20, 21, 22, 23, 24]
metric = 'bbox@0.1/PCK'
# the accuracy in mmpose's training log does not take bfloat16
options = dict(model=dict(train_cfg=dict(compute_acc=False)))
