"""Convert the authors' HRNetV2-OCR segmentation checkpoints for mmseg.

Their code (https://github.com/DeLightCMU/PSA) is NVIDIA's hierarchical
multi-scale attention (https://github.com/NVIDIA/semantic-segmentation) with
PSA in the BasicBlocks of HRNet, as ``deattn``. The counterpart is OCRNet with
HRNetV2-W48 and PSA of ``variant='official'``; a checkpoint of NVIDIA's code
without PSA converts as well::

    mim run mmpsa authors_ocrnet THEIRS.pth OUT.pth [CONFIG]

With a config, the result is checked against its model.
"""

import argparse

from mmseg.utils import get_classes, get_palette
from state_dicts import check, describe, read, run, show, variants, write

from mmpsa.checkpoints import CheckpointError

_CONTEXT = 'ocr.ocr_distri_head.object_context_block'
_OUR_CONTEXT = 'decode_head.1.object_context_block'
# Our paths by theirs, in whole components. They put the norm and the ReLU into
# a Sequential after the convolution; mmseg puts all three into a ConvModule.
NAMES = {
    'backbone': 'backbone',
    'ocr.conv3x3_ocr.0.weight': 'decode_head.1.bottleneck.conv.weight',
    'ocr.conv3x3_ocr.1.0': 'decode_head.1.bottleneck.bn',
    f'{_CONTEXT}.f_pixel.0': f'{_OUR_CONTEXT}.query_project.0.conv',
    f'{_CONTEXT}.f_pixel.1.0': f'{_OUR_CONTEXT}.query_project.0.bn',
    f'{_CONTEXT}.f_pixel.2': f'{_OUR_CONTEXT}.query_project.1.conv',
    f'{_CONTEXT}.f_pixel.3.0': f'{_OUR_CONTEXT}.query_project.1.bn',
    f'{_CONTEXT}.f_object.0': f'{_OUR_CONTEXT}.key_project.0.conv',
    f'{_CONTEXT}.f_object.1.0': f'{_OUR_CONTEXT}.key_project.0.bn',
    f'{_CONTEXT}.f_object.2': f'{_OUR_CONTEXT}.key_project.1.conv',
    f'{_CONTEXT}.f_object.3.0': f'{_OUR_CONTEXT}.key_project.1.bn',
    f'{_CONTEXT}.f_down.0': f'{_OUR_CONTEXT}.value_project.conv',
    f'{_CONTEXT}.f_down.1.0': f'{_OUR_CONTEXT}.value_project.bn',
    f'{_CONTEXT}.f_up.0': f'{_OUR_CONTEXT}.out_project.conv',
    f'{_CONTEXT}.f_up.1.0': f'{_OUR_CONTEXT}.out_project.bn',
    'ocr.ocr_distri_head.conv_bn_dropout.0': f'{_OUR_CONTEXT}.bottleneck.conv',
    'ocr.ocr_distri_head.conv_bn_dropout.1.0': f'{_OUR_CONTEXT}.bottleneck.bn',
    'ocr.cls_head': 'decode_head.1.conv_seg',
    'ocr.aux_head.0.weight': 'decode_head.0.convs.0.conv.weight',
    'ocr.aux_head.1.0': 'decode_head.0.convs.0.bn',
    'ocr.aux_head.2': 'decode_head.0.conv_seg',
}
# The parameters of each kind of layer. If the checkpoint lacks one, its head
# is incomplete.
PARAMETERS = {
    'conv': ('weight',),
    'conv_seg': ('weight', 'bias'),
    'bn': ('weight', 'bias', 'running_mean', 'running_var'),
}
# A convolution before a norm has a bias there and none here. The norm takes
# its mean away again: BN(Wx + b) with mean m is BN(Wx) with mean m - b.
BIASES = {
    'ocr.conv3x3_ocr.0.bias': 'ocr.conv3x3_ocr.1.0.running_mean',
    'ocr.aux_head.0.bias': 'ocr.aux_head.1.0.running_mean',
}
NO_COUNTERPART = {
    'scale_attn': "fuses several scales; mmseg's OCRNet sees one",
}


def convert(weights):
    """Rename, and fold the two biases that have no counterpart.

    Args:
        weights (dict[str, Tensor]): Those of the authors' network.

    Returns:
        tuple[dict[str, Tensor], dict[str, str]]: The weights under mmseg's
        names, and the reason by the name of each tensor that has none.

    Raises:
        CheckpointError: If the weights are of another network, or not all
            of theirs.
    """
    weights = dict(weights)
    _check_names(weights)
    for bias, mean in BIASES.items():
        weights[mean] = weights[mean] - weights.pop(bias)
        print(f'{bias} folded into {mean}')
    converted, left_out = {}, {}
    for key, tensor in weights.items():
        theirs = _find(key, NAMES)
        if theirs is None:
            reason = NO_COUNTERPART.get(_find(key, NO_COUNTERPART))
            left_out[key] = reason or 'unknown'
        else:
            name = NAMES[theirs] + key[len(theirs) :]
            converted[name.replace('.deattn.', '.psa.')] = tensor
    return converted, left_out


def _check_names(weights):
    """Refuse another network, and a head that is not whole."""
    ours = [key for key in weights if key.startswith('decode_head.')]
    if ours or not any(_find(key, NAMES) for key in weights):
        raise CheckpointError(
            "the checkpoint must be one of the authors' network, with names "
            'like backbone.stage2.0.branches.0.0.conv1.weight and '
            'ocr.cls_head.weight; it has names like '
            f'{(ours or list(weights))[0]}'
        )
    needed = [
        f'{theirs}.{parameter}' if parameter else theirs
        for theirs, ours in NAMES.items()
        if theirs != 'backbone'
        for parameter in PARAMETERS.get(ours.rpartition('.')[2], ('',))
    ]
    missing = [key for key in (*needed, *BIASES) if key not in weights]
    if not any(key.startswith('backbone.') for key in weights):
        missing.append('backbone')
    if missing:
        show('Missing', missing)
        raise CheckpointError(
            "the checkpoint must have all of the authors' OCR head and "
            f'backbone; it lacks the {len(missing)} listed'
        )
    for bias, mean in BIASES.items():
        if weights[bias].shape != weights[mean].shape:
            raise CheckpointError(
                f'{bias} must have the shape of {mean}, into which it is '
                f'folded; they have {tuple(weights[bias].shape)} and '
                f'{tuple(weights[mean].shape)}'
            )


def _find(key, names):
    """The name that a key is or lies under, if any."""
    parts = key.split('.')
    paths = ('.'.join(parts[:i]) for i in range(1, len(parts) + 1))
    return next((path for path in paths if path in names), None)


def plugins_of(weights):
    """The ``plugins=`` that converted weights need, for the screen."""
    blocks = variants(weights)
    if not blocks:
        return 'no PSA'
    sequential = any(f'{path}.conv_up.0.weight' in weights for path in blocks)
    layout = 'sequential' if sequential else 'parallel'
    return (
        f"{len(blocks)} × PSA: plugins=[dict(cfg=dict(type='PSA', "
        f"variant='official', layout={layout!r}), position='after_conv1', "
        'stages=(False, True, True, True))]'
    )


def classes_of(weights):
    """The meta information of the data set, by the number of classes."""
    count = len(weights['decode_head.1.conv_seg.weight'])
    classes = get_classes('cityscapes')
    if count == len(classes):
        return dict(classes=classes, palette=get_palette('cityscapes'))
    print(
        f'No names are known for {count} classes, where Cityscapes has '
        f"{len(classes)}: mmseg's init_model needs them, so give a CONFIG "
        'whose test data have them'
    )
    return None


def main():
    """Convert the file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('source', help="the authors' checkpoint")
    parser.add_argument('target', help='file to write')
    parser.add_argument('config', nargs='?', help='config to check against')
    args = parser.parse_args()
    weights, meta = read(args.source)
    converted, left_out = convert(weights)
    print(f'Converted: {len(converted)} tensors, {plugins_of(converted)}')
    show(
        'No counterpart in mmsegmentation, not written',
        [f'{key} ({reason})' for key, reason in left_out.items()],
    )
    if args.config:
        check(converted, args.config)
        meta = describe(meta, args.config)
    if 'dataset_meta' not in meta:
        classes = classes_of(converted)
        meta = dict(meta, dataset_meta=classes) if classes else meta
    write(converted, meta, args.target)


if __name__ == '__main__':
    run(main)
