"""The same on five of the seeds, with the other layout and heavier decoders.

The arms and seeds of ``light_camvid`` are trained there.
"""

_base_ = './light_camvid.py'

from projects.study import arms as study  # noqa: E402

arms = {
    'psa-p': study.at('neck', study.PSA_P),
    # dense 3×3 convolutions in place of depthwise and 1×1 ones
    'dense': dict(model=dict(neck=dict(separable=False))),
    # 1.5 times as many channels
    'wide': dict(
        model=dict(
            neck=dict(out_channels=96),
            decode_head=dict(in_channels=96, channels=96),
        )
    ),
}
seeds = [20, 21, 22, 23, 24]
