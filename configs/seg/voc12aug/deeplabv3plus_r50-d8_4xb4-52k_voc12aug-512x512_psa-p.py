_base_ = './deeplabv3plus_r50-d8_4xb4-40k_voc12aug-512x512_psa-p.py'
# PSA stands after_3x3, as in that config. The paper's schedule for masks:
# 30 % more iterations than the baseline, the first 5,000 of them a warm-up.
train_cfg = dict(max_iters=52000)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, end=5000, by_epoch=False),
    dict(
        type='PolyLR',
        eta_min=1e-4,
        power=0.9,
        begin=5000,
        end=52000,
        by_epoch=False,
    ),
]
