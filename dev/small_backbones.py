"""Every backbone that upstream registers, as small as it can be built.

The tests and docs/backbones.py take them. Some are listed twice, with
different blocks. Some of mmpretrain's cannot be made small.
"""


def _hrnet(block):
    def stage(num_branches, block):
        return dict(
            num_modules=1,
            num_branches=num_branches,
            block=block,
            num_blocks=(1,) * num_branches,
            num_channels=(4, 8, 16, 32)[:num_branches],
        )

    stages = {f'stage{n}': stage(n, block) for n in (2, 3, 4)}
    return dict(
        type='HRNet', extra=dict(stage1=stage(1, 'BOTTLENECK'), **stages)
    )


def _hrformer():
    cfg = dict(_hrnet('HRFORMERBLOCK'), type='HRFormer')
    cfg['extra'].update(drop_path_rate=0.0, with_rpe=True)
    for name in ('stage2', 'stage3', 'stage4'):
        stage = cfg['extra'][name]
        branches = stage['num_branches']
        stage.update(
            num_heads=(1,) * branches,
            mlp_ratios=(1,) * branches,
            window_sizes=(7,) * branches,
        )
    return cfg


def _litehrnet(module):
    return dict(
        type='LiteHRNet',
        extra=dict(
            stem=dict(stem_channels=8, out_channels=8, expand_ratio=1),
            num_stages=3,
            stages_spec=dict(
                num_modules=(1, 1, 1),
                num_branches=(2, 3, 4),
                num_blocks=(1, 1, 1),
                module_type=(module,) * 3,
                with_fuse=(True, True, True),
                reduce_ratios=(2, 2, 2),
                num_channels=((8, 16), (8, 16, 32), (8, 16, 32, 64)),
            ),
            with_head=True,
        ),
    )


def _resnet(name, depth, **kwargs):
    return dict(
        type=name, depth=depth, base_channels=8, stem_channels=8, **kwargs
    )


def _csp(name):
    return dict(
        type=name, deepen_factor=0.1, widen_factor=0.125, out_indices=(2, 3, 4)
    )


def _pvt(name):
    return dict(
        type=name,
        embed_dims=8,
        num_layers=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        mlp_ratios=[1, 1, 1, 1],
    )


def _swin():
    return dict(
        type='SwinTransformer',
        embed_dims=8,
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 2, 2),
        window_size=2,
    )


def _vit(name, **kwargs):
    return dict(
        type=name,
        img_size=(64, 64),
        embed_dims=8,
        num_layers=2,
        num_heads=2,
        mlp_ratio=1,
        out_indices=(0, 1),
        **kwargs,
    )


def _twins(name, **kwargs):
    return dict(
        type=name,
        embed_dims=[8, 8, 16, 16],
        num_heads=[1, 1, 2, 2],
        mlp_ratios=[1, 1, 1, 1],
        depths=[2, 2, 2, 2],
        **kwargs,
    )


def _timm(name):
    return dict(
        type='TIMMBackbone',
        model_name=name,
        features_only=True,
        pretrained=False,
    )


_RELU = dict(type='ReLU')
_STDC = dict(
    type='STDCNet',
    stdc_type='STDCNet1',
    in_channels=3,
    channels=(8, 16, 16, 32, 64),
    bottleneck_type='cat',
    norm_cfg=dict(type='BN'),
    act_cfg=_RELU,
)
_VIT_ARCH = dict(
    embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=16
)
_HOURGLASS = dict(
    downsample_times=1, stage_channels=(256, 8), stage_blocks=(1, 1)
)

BACKBONES = {
    'mmpose': {
        'AlexNet': dict(type='AlexNet'),
        'CPM': dict(type='CPM', in_channels=3, out_channels=4, num_stages=2),
        'CSPDarknet': _csp('CSPDarknet'),
        'CSPNeXt': _csp('CSPNeXt'),
        'DSTFormer': dict(type='DSTFormer', in_channels=3, feat_size=16),
        'HourglassAENet': dict(
            type='HourglassAENet',
            downsample_times=2,
            stage_channels=(256, 8, 8),
        ),
        'HourglassNet': dict(type='HourglassNet', **_HOURGLASS),
        'HRFormer': _hrformer(),
        'HRNet': _hrnet('BASIC'),
        'HRNet-bottleneck': _hrnet('BOTTLENECK'),
        'LiteHRNet': _litehrnet('LITE'),
        'LiteHRNet-naive': _litehrnet('NAIVE'),
        'MobileNetV2': dict(type='MobileNetV2', widen_factor=0.25),
        'MobileNetV3': dict(type='MobileNetV3'),
        'MSPN': dict(type='MSPN', num_stages=2, unit_channels=8),
        'PyramidVisionTransformer': _pvt('PyramidVisionTransformer'),
        'PyramidVisionTransformerV2': _pvt('PyramidVisionTransformerV2'),
        'RegNet': dict(type='RegNet', arch='regnetx_400mf'),
        'ResNeSt50': _resnet('ResNeSt', 50),
        'ResNet18': _resnet('ResNet', 18),
        'ResNet50': _resnet('ResNet', 50),
        'ResNetV1d50': _resnet('ResNetV1d', 50),
        'ResNeXt50': _resnet('ResNeXt', 50, groups=2, width_per_group=2),
        'RSN': dict(
            type='RSN',
            num_stages=2,
            num_units=2,
            num_blocks=[1, 1],
            unit_channels=8,
        ),
        # It pools by four in every block.
        'SCNet50': _resnet('SCNet', 50, strides=(1, 2, 2, 1)),
        'SEResNet50': _resnet('SEResNet', 50, se_ratio=4),
        'SEResNeXt50': _resnet(
            'SEResNeXt', 50, se_ratio=4, groups=2, width_per_group=2
        ),
        'ShuffleNetV1': dict(type='ShuffleNetV1', widen_factor=0.5),
        'ShuffleNetV2': dict(type='ShuffleNetV2', widen_factor=0.5),
        'SwinTransformer': _swin(),
        'TCN': dict(type='TCN', in_channels=4, stem_channels=8),
        'V2VNet': dict(type='V2VNet', input_channels=3, output_channels=3),
        'VGG': dict(type='VGG', depth=11, norm_cfg=dict(type='BN')),
        'ViPNAS_MobileNetV3': dict(type='ViPNAS_MobileNetV3'),
        'ViPNAS_ResNet': dict(
            type='ViPNAS_ResNet',
            depth=50,
            wid=[8, 16, 16, 16, 16],
            dep=[None, 1, 1, 1, 1],
            group=[None, 4, 4, 4, 4],
        ),
    },
    'mmseg': {
        'BEiT': _vit('BEiT'),
        'BiSeNetV1': dict(
            type='BiSeNetV1',
            backbone_cfg=_resnet('ResNet', 18),
            context_channels=(16, 32, 64),
            spatial_channels=(8, 8, 8, 16),
            out_channels=32,
        ),
        'BiSeNetV2': dict(
            type='BiSeNetV2',
            detail_channels=(8, 8, 16),
            semantic_channels=(8, 8, 16, 16),
            bga_channels=16,
        ),
        'CGNet': dict(
            type='CGNet', num_channels=(8, 16, 32), num_blocks=(2, 2)
        ),
        'DDRNet': dict(type='DDRNet', channels=8, ppm_channels=8),
        'ERFNet': dict(type='ERFNet'),
        'FastSCNN': dict(type='FastSCNN'),
        'HRNet': _hrnet('BASIC'),
        'HRNet-bottleneck': _hrnet('BOTTLENECK'),
        'ICNet': dict(
            type='ICNet',
            backbone_cfg=_resnet('ResNetV1c', 50),
            layer_channels=(64, 256),
            psp_out_channels=16,
            out_channels=(8, 16, 16),
        ),
        'MAE': _vit('MAE'),
        'MixVisionTransformer': dict(
            type='MixVisionTransformer',
            embed_dims=8,
            num_layers=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            mlp_ratio=1,
        ),
        'MobileNetV2': dict(type='MobileNetV2', widen_factor=0.25),
        'MobileNetV3': dict(type='MobileNetV3'),
        'MSCAN': dict(
            type='MSCAN',
            embed_dims=[8, 8, 8, 8],
            mlp_ratios=[1, 1, 1, 1],
            depths=[1, 1, 1, 1],
            norm_cfg=dict(type='BN'),
        ),
        'PCPVT': _twins('PCPVT'),
        'PIDNet': dict(type='PIDNet', channels=8, ppm_channels=8),
        'ResNeSt50': _resnet('ResNeSt', 50),
        'ResNet18': _resnet('ResNet', 18),
        'ResNet50': _resnet('ResNet', 50),
        'ResNetV1c50': _resnet('ResNetV1c', 50),
        'ResNetV1d18': _resnet('ResNetV1d', 18),
        'ResNeXt50': _resnet('ResNeXt', 50, groups=2, base_width=2),
        'STDCContextPathNet': dict(
            type='STDCContextPathNet',
            backbone_cfg=dict(_STDC, with_final_conv=False),
            last_in_channels=(64, 32),
            out_channels=16,
            ffm_cfg=dict(in_channels=32, out_channels=16, scale_factor=4),
        ),
        'STDCNet': dict(_STDC, with_final_conv=True),
        'SVT': _twins(
            'SVT', sr_ratios=[4, 2, 1, 1], windiow_sizes=[2, 2, 2, 2]
        ),
        'SwinTransformer': _swin(),
        'TIMMBackbone': _timm('resnet18'),
        'UNet': dict(type='UNet', base_channels=4),
        'VisionTransformer': _vit('VisionTransformer'),
        'VPD': dict(
            type='VPD', diffusion_cfg=dict(base=''), class_embed_path=''
        ),
    },
    'mmdet': {
        'CSPDarknet': _csp('CSPDarknet'),
        'CSPNeXt': _csp('CSPNeXt'),
        'Darknet': dict(type='Darknet'),
        'DetectoRS_ResNet50': _resnet('DetectoRS_ResNet', 50),
        'DetectoRS_ResNeXt50': _resnet(
            'DetectoRS_ResNeXt', 50, groups=2, base_width=2
        ),
        'EfficientNet': dict(type='EfficientNet'),
        'EfficientNet-es': dict(type='EfficientNet', arch='es'),
        'HourglassNet': dict(type='HourglassNet', **_HOURGLASS),
        'HRNet': _hrnet('BASIC'),
        'HRNet-bottleneck': _hrnet('BOTTLENECK'),
        'MobileNetV2': dict(type='MobileNetV2', widen_factor=0.25),
        'PyramidVisionTransformer': _pvt('PyramidVisionTransformer'),
        'PyramidVisionTransformerV2': _pvt('PyramidVisionTransformerV2'),
        'RegNet': dict(type='RegNet', arch='regnetx_400mf'),
        'Res2Net50': _resnet('Res2Net', 50, scales=2, base_width=8),
        'ResNeSt50': _resnet('ResNeSt', 50),
        'ResNet18': _resnet('ResNet', 18),
        'ResNet50': _resnet('ResNet', 50),
        'ResNetV1d50': _resnet('ResNetV1d', 50),
        'ResNeXt50': _resnet('ResNeXt', 50, groups=2, base_width=2),
        'SSDVGG': dict(type='SSDVGG', depth=11, out_feature_indices=(10, 20)),
        'SwinTransformer': _swin(),
        'TridentResNet50': _resnet(
            'TridentResNet',
            50,
            num_stages=3,
            strides=(1, 2, 2),
            dilations=(1, 1, 1),
            out_indices=(2,),
            num_branch=3,
            test_branch_idx=1,
            trident_dilations=(1, 2, 3),
        ),
    },
    'mmpretrain': {
        'AlexNet': dict(type='AlexNet'),
        'BEiTViT': dict(
            type='BEiTViT', arch=_VIT_ARCH, img_size=64, out_type='featmap'
        ),
        'CSPDarkNet': dict(type='CSPDarkNet', depth=53),
        'CSPResNet': dict(type='CSPResNet', depth=50),
        'CSPResNeXt': dict(type='CSPResNeXt', depth=50),
        'Conformer': dict(type='Conformer', arch='tiny'),
        'ConvMixer': dict(
            type='ConvMixer',
            arch=dict(embed_dims=8, depth=2, patch_size=4, kernel_size=3),
        ),
        'ConvNeXt': dict(
            type='ConvNeXt',
            arch=dict(depths=[1, 1, 1, 1], channels=[8, 8, 16, 16]),
            gap_before_final_norm=False,
        ),
        'DaViT': dict(
            type='DaViT',
            arch=dict(
                embed_dims=8, num_heads=[1, 1, 2, 2], depths=[1, 1, 1, 1]
            ),
        ),
        'DeiT3': dict(type='DeiT3', arch=_VIT_ARCH, out_type='featmap'),
        'DenseNet': dict(
            type='DenseNet',
            arch=dict(growth_rate=4, depths=[1, 1, 1, 1], init_channels=8),
        ),
        'DistilledVisionTransformer': dict(
            type='DistilledVisionTransformer', arch=_VIT_ARCH
        ),
        'EdgeNeXt': dict(
            type='EdgeNeXt', arch='xxsmall', gap_before_final_norm=False
        ),
        'EfficientFormer': dict(type='EfficientFormer', arch='l1'),
        'EfficientNet': dict(type='EfficientNet'),
        'EfficientNetV2': dict(type='EfficientNetV2'),
        'HRNet': _hrnet('BASIC'),
        'HiViT': dict(type='HiViT', arch='tiny'),
        'HorNet': dict(
            type='HorNet', arch='tiny', gap_before_final_norm=False
        ),
        'InceptionV3': dict(type='InceptionV3'),
        'LeNet5': dict(type='LeNet5'),
        'LeViT': dict(type='LeViT', arch='128s'),
        'MViT': dict(type='MViT', arch='tiny'),
        'MixMIMTransformer': dict(type='MixMIMTransformer', arch='base'),
        'MlpMixer': dict(
            type='MlpMixer',
            arch=dict(
                embed_dims=8,
                num_layers=1,
                tokens_mlp_dims=8,
                channels_mlp_dims=8,
            ),
            img_size=64,
            patch_size=16,
        ),
        'MobileNetV2': dict(type='MobileNetV2', widen_factor=0.25),
        'MobileNetV3': dict(type='MobileNetV3'),
        'MobileOne': dict(type='MobileOne', arch='s0'),
        'MobileViT': dict(type='MobileViT', arch='xx_small'),
        'PCPVT': dict(type='PCPVT', arch='small'),
        'PoolFormer': dict(type='PoolFormer'),
        'PyramidVig': dict(type='PyramidVig', arch='tiny'),
        'RIFormer': dict(type='RIFormer'),
        'RegNet': dict(type='RegNet', arch='regnetx_400mf'),
        'RepLKNet': dict(type='RepLKNet', arch='31B'),
        'RepMLPNet': dict(type='RepMLPNet', arch='B', img_size=64),
        'RepVGG': dict(type='RepVGG', arch='A0'),
        'Res2Net50': _resnet('Res2Net', 50, scales=2, base_width=8),
        'ResNeSt50': _resnet('ResNeSt', 50),
        'ResNet18': _resnet('ResNet', 18),
        'ResNet50': _resnet('ResNet', 50),
        'ResNet_CIFAR18': _resnet('ResNet_CIFAR', 18),
        'ResNetV1c50': _resnet('ResNetV1c', 50),
        'ResNetV1d50': _resnet('ResNetV1d', 50),
        'ResNeXt50': _resnet('ResNeXt', 50, groups=2, width_per_group=2),
        'RevVisionTransformer': dict(
            type='RevVisionTransformer', arch=_VIT_ARCH
        ),
        'SEResNet50': _resnet('SEResNet', 50, se_ratio=4),
        'SEResNeXt50': _resnet(
            'SEResNeXt', 50, se_ratio=4, groups=2, width_per_group=2
        ),
        'SVT': dict(type='SVT', arch='small'),
        'ShuffleNetV1': dict(type='ShuffleNetV1'),
        'ShuffleNetV2': dict(type='ShuffleNetV2', widen_factor=0.5),
        'SparseConvNeXt': dict(type='SparseConvNeXt', arch='small'),
        'SparseResNet': dict(type='SparseResNet', depth=50),
        'SwinTransformer': dict(
            type='SwinTransformer',
            arch=dict(
                embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2]
            ),
            window_size=2,
            img_size=64,
        ),
        'SwinTransformerV2': dict(
            type='SwinTransformerV2',
            arch=dict(
                embed_dims=8,
                depths=[1, 1, 1, 1],
                num_heads=[1, 1, 2, 2],
                extra_norm_every_n_blocks=0,
            ),
            window_size=2,
            img_size=64,
        ),
        'T2T_ViT': dict(
            type='T2T_ViT',
            t2t_cfg=dict(token_dims=8, use_performer=False),
            num_layers=1,
            embed_dims=8,
            layer_cfgs=dict(num_heads=2, feedforward_channels=8),
        ),
        'TIMMBackbone': _timm('resnet18'),
        'TNT': dict(type='TNT', arch='s'),
        'TinyViT': dict(
            type='TinyViT', arch='5m', gap_before_final_norm=False
        ),
        'VAN': dict(type='VAN', arch='tiny'),
        'VGG': dict(type='VGG', depth=11),
        'ViTEVA02': dict(type='ViTEVA02', arch='tiny', out_type='featmap'),
        'ViTSAM': dict(
            type='ViTSAM',
            arch=dict(
                embed_dims=16,
                num_layers=2,
                num_heads=2,
                feedforward_channels=16,
                global_attn_indexes=[0],
            ),
            img_size=64,
            out_channels=8,
            window_size=2,
        ),
        'Vig': dict(type='Vig', arch='tiny'),
        'VisionTransformer': dict(
            type='VisionTransformer',
            arch=_VIT_ARCH,
            img_size=64,
            out_type='featmap',
        ),
        'XCiT': dict(
            type='XCiT',
            embed_dims=8,
            depth=1,
            cls_attn_layers=1,
            num_heads=2,
            patch_size=16,
        ),
    },
}
