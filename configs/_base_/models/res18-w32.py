"""ResNet-18 of half the width.

Without stem_channels and base_channels it is ResNet-18 itself, and the
in_channels of neck or head are twice as large.
"""

model = dict(
    backbone=dict(type='ResNet', depth=18, stem_channels=32, base_channels=32)
)
