"""A small HRNet: 16 channels at stride 4, one module a stage.

To grow it into HRNet-W32: num_blocks of 4 everywhere, num_modules of 4 and 3
in stages 3 and 4, num_channels of 64 in stage 1 and of 32, 64, 128 and 256 in
the branches. The head's channels follow those of the branches.
"""

model = dict(
    backbone=dict(
        type='HRNet',
        extra=dict(
            stage1=dict(
                num_modules=1,
                num_branches=1,
                block='BOTTLENECK',
                num_blocks=(1,),
                num_channels=(32,),
            ),
            stage2=dict(
                num_modules=1,
                num_branches=2,
                block='BASIC',
                num_blocks=(2, 2),
                num_channels=(16, 32),
            ),
            stage3=dict(
                num_modules=1,
                num_branches=3,
                block='BASIC',
                num_blocks=(2, 2, 2),
                num_channels=(16, 32, 64),
            ),
            stage4=dict(
                num_modules=1,
                num_branches=4,
                block='BASIC',
                num_blocks=(2, 2, 2, 2),
                num_channels=(16, 32, 64, 128),
            ),
        ),
    )
)
