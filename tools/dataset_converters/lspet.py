"""Leeds Sports Pose Extended (Johnson & Everingham, 2011) as COCO keypoints.

Reads the public download, a folder with ``joints.mat`` and the pictures
``im00001.png`` (the high-resolution ``hr-lspet``) or ``im00001.jpg``, there
or in ``images/``, and writes what ``configs/pose/lspet`` reads::

    data/lspet/images/im00001.jpg    a crop around the person
    data/lspet/lspet_train.json      nine images of ten
    data/lspet/lspet_val.json        every tenth image

    mim run mmpsa lspet ~/hr-lspet data/lspet
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config
from scipy.io import loadmat

# around the labelled joints, as a share of the longer side of their box
CROP_MARGIN = 0.35
BBOX_MARGIN = 0.1
MIN_JOINTS = 6  # fewer say too little about where the person is
META = Path(__file__).parents[2] / 'configs/_base_/datasets/lspet.py'


def load_joints(path):
    """Read ``joints.mat``.

    Returns:
        ndarray: (N, 14, 3) of float64: x and y in pixels, and whether the
        joint is labelled.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no ``joints`` of 14 x 3 x N.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f'{path} does not exist: the first argument must be the folder '
            'of the LSP Extended download, with joints.mat in it'
        )
    joints = loadmat(path).get('joints', np.empty(0))
    if joints.ndim != 3 or joints.shape[:2] != (14, 3):
        raise ValueError(
            f'joints in {path} must be 14 x 3 x N, but are {joints.shape} '
            '(LSP, the smaller data set, has 3 x 14 x N)'
        )
    return joints.transpose(2, 0, 1).astype(float)


def crop_person(image, joints):
    """Cut a person out of a picture.

    Args:
        image (ndarray): (H, W, 3).
        joints (ndarray): (14, 3): x, y, labelled or not.

    Returns:
        tuple: the crop, (h, w, 3), and its COCO annotation without ids; or
        None if fewer than MIN_JOINTS are labelled within the picture.
    """
    height, width = image.shape[:2]
    x, y, labelled = joints.T
    labelled = (
        (labelled > 0) & (0 <= x) & (x < width) & (0 <= y) & (y < height)
    )
    if labelled.sum() < MIN_JOINTS:
        return None
    low = joints[labelled, :2].min(0)
    high = joints[labelled, :2].max(0)
    side = (high - low).max()

    left, top = np.maximum(low - CROP_MARGIN * side, 0).astype(int)
    right, bottom = np.ceil(high + CROP_MARGIN * side).astype(int)
    crop = image[top:bottom, left:right]

    size = crop.shape[1::-1]
    low = np.clip(low - (left, top) - BBOX_MARGIN * side, 0, size)
    high = np.clip(high - (left, top) + BBOX_MARGIN * side, 0, size)
    keypoints = np.zeros((14, 3))
    keypoints[labelled, :2] = joints[labelled, :2] - (left, top)
    keypoints[labelled, 2] = 2
    return crop, dict(
        keypoints=keypoints.round(1).ravel().tolist(),
        num_keypoints=int(labelled.sum()),
        bbox=[*low.round(1).tolist(), *(high - low).round(1).tolist()],
        area=round(float(np.prod(high - low)), 1),
        iscrowd=0,
        category_id=1,
    )


def convert(source, target):
    """Write the crops and the two annotation files.

    Args:
        source (Path): folder of the download.
        target (Path): folder to write to, made if need be.

    Returns:
        dict: number of people in 'train' and 'val', and how many were
        'skipped' for having too few labelled joints.

    Raises:
        FileNotFoundError: no ``joints.mat`` or no pictures.
        ValueError: a picture that ``joints.mat`` has no joints for, or that
            cannot be read.
    """
    joints = load_joints(source / 'joints.mat')
    paths = sorted(
        path
        for folder in (source, source / 'images')
        for path in folder.glob('im[0-9]*')
        if path.suffix in ('.png', '.jpg')
    )
    if not paths:
        raise FileNotFoundError(
            f'no im00001.png or im00001.jpg in {source} or {source}/images'
        )
    info = Config.fromfile(META).dataset_info
    names = [info.keypoint_info[i].name for i in range(14)]
    links = [link.link for link in info.skeleton_info.values()]
    category = dict(
        id=1,
        name='person',
        keypoints=names,
        # COCO counts the joints of its skeleton from 1
        skeleton=[[names.index(name) + 1 for name in link] for link in links],
    )
    coco = {
        split: dict(images=[], annotations=[], categories=[category])
        for split in ('train', 'val')
    }
    skipped = 0
    (target / 'images').mkdir(parents=True, exist_ok=True)
    for path in paths:
        number = int(path.stem[2:])
        if not 1 <= number <= len(joints):
            raise ValueError(
                f'{path} has no joints: joints.mat has those of pictures 1 '
                f'to {len(joints)}; remove the picture, or use the joints.mat '
                'of the same download'
            )
        image = cv2.imread(str(path))
        if image is None:
            raise ValueError(f'{path} cannot be read as a picture')
        person = crop_person(image, joints[number - 1])
        if person is None:
            skipped += 1
            continue
        crop, annotation = person
        name = f'im{number:05d}.jpg'
        cv2.imwrite(str(target / 'images' / name), crop)
        split = coco['val' if number % 10 == 0 else 'train']
        height, width = crop.shape[:2]
        split['images'].append(
            dict(id=number, file_name=name, height=height, width=width)
        )
        split['annotations'].append(
            dict(id=number, image_id=number, **annotation)
        )
    for name, split in coco.items():
        (target / f'lspet_{name}.json').write_text(json.dumps(split))
    counts = {name: len(split['images']) for name, split in coco.items()}
    return dict(counts, skipped=skipped)


def main():
    """Convert the folder named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('source', type=Path, help='folder of the download')
    parser.add_argument('target', type=Path, help='data/lspet')
    args = parser.parse_args()
    print(convert(args.source, args.target))


if __name__ == '__main__':
    main()
