"""What the quickstart compares: segmentation without and with PSA."""

base = 'fcn_r18-w32_1xb16-250_figures-128x128'
_plugin = dict(
    cfg=dict(type='PSA', layout='sequential', identity_init=True),
    position='after_3x3',
)
arms = dict(
    none=dict(), psa=dict(model=dict(backbone=dict(plugins=[_plugin])))
)
seeds = [0, 1, 2]
metric = 'mIoU'
options = dict(train_cfg=dict(val_interval=125))
