_base_ = './ocrnet_hr48_4xb2-160k_cityscapes-512x1024_psa-s.py'
# PSA stands after_3x3, as in that config. The paper's schedule for masks:
# 30 % more iterations than the baseline, the first 5,000 of them a warm-up.
train_cfg = dict(max_iters=208000)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, end=5000, by_epoch=False),
    dict(
        type='PolyLR',
        eta_min=1e-4,
        power=0.9,
        begin=5000,
        end=208000,
        by_epoch=False,
    ),
]
