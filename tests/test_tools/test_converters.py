"""The data-set converters, on tiny downloads made here."""

import json

import cv2
import numpy as np
import pytest
from helpers import load_script
from scipy.io import savemat

lspet = load_script('tools/dataset_converters/lspet.py')
camvid = load_script('tools/dataset_converters/camvid.py')


@pytest.fixture(params=['im{:05d}.png', 'images/im{:05d}.jpg'])
def lsp_download(request, tmp_path):
    """20 grey pictures with a white square on each joint, missing ones not.

    Person 3 has joint 5 missing and joint 6 outside the picture, person 4
    too few joints.
    """
    rng = np.random.default_rng(0)
    joints = np.ones((14, 3, 20))
    joints[:, 0] = rng.integers(60, 160, (14, 20))
    joints[:, 1] = rng.integers(40, 110, (14, 20))
    joints[5, 2, 2] = 0
    joints[6, :2, 2] = -30, 50
    joints[5:, 2, 3] = 0
    source = tmp_path / 'download'
    for number in range(1, 21):
        image = np.full((150, 220, 3), 60, np.uint8)
        for x, y, labelled in joints[:, :, number - 1].astype(int):
            if labelled and x >= 0:
                image[y - 3 : y + 4, x - 3 : x + 4] = 255
        path = source / request.param.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)
    savemat(source / 'joints.mat', dict(joints=joints))
    return source


def read_split(target, split):
    coco = json.loads((target / f'lspet_{split}.json').read_text())
    keypoints = {
        a['image_id']: np.reshape(a['keypoints'], (14, 3))
        for a in coco['annotations']
    }
    return coco, keypoints


def test_lspet_joints_land_on_the_crop(lsp_download, tmp_path):
    target = tmp_path / 'data/lspet'
    counts = lspet.convert(lsp_download, target)
    assert counts == dict(train=17, val=2, skipped=1)
    for split in ('train', 'val'):
        coco, keypoints = read_split(target, split)
        for image, annotation in zip(coco['images'], coco['annotations']):
            assert image['id'] == annotation['image_id']
            pixels = cv2.imread(str(target / 'images' / image['file_name']))
            assert pixels.shape == (image['height'], image['width'], 3)
            points = keypoints[image['id']]
            for x, y, _ in points[points[:, 2] > 0].astype(int):
                assert pixels[y, x].min() > 200

            # 10 % of the joints' longer side around them, within the crop
            seen = points[points[:, 2] > 0, :2]
            pad = 0.1 * np.ptp(seen, axis=0).max()
            size = image['width'], image['height']
            low = np.maximum(seen.min(0) - pad, 0)
            high = np.minimum(seen.max(0) + pad, size)
            box = np.array(annotation['bbox'])
            np.testing.assert_allclose(box[:2], low, atol=0.2)
            np.testing.assert_allclose(box[:2] + box[2:], high, atol=0.2)


def test_lspet_splits_and_missing_joints(lsp_download, tmp_path):
    lspet.convert(lsp_download, tmp_path / 'out')
    train, keypoints = read_split(tmp_path / 'out', 'train')
    val, _ = read_split(tmp_path / 'out', 'val')
    assert [image['id'] for image in val['images']] == [10, 20]
    assert 4 not in keypoints
    assert not keypoints[3][5:7].any()
    assert (np.delete(keypoints[3], (5, 6), axis=0)[:, 2] == 2).all()
    person = next(a for a in train['annotations'] if a['image_id'] == 3)
    assert person['num_keypoints'] == 12
    names = train['categories'][0]['keypoints']
    assert names[:2] + names[-2:] == [
        'right_ankle',
        'right_knee',
        'neck',
        'head_top',
    ]
    assert [13, 14] in train['categories'][0]['skeleton']


def test_lspet_refuses_what_it_is_not_for(tmp_path):
    with pytest.raises(FileNotFoundError, match='LSP Extended'):
        lspet.convert(tmp_path, tmp_path / 'out')
    savemat(tmp_path / 'joints.mat', dict(joints=np.ones((3, 14, 5))))
    with pytest.raises(ValueError, match=r'14 x 3 x N.*\(3, 14, 5\)'):
        lspet.convert(tmp_path, tmp_path / 'out')
    savemat(tmp_path / 'joints.mat', dict(joints=np.ones((14, 3, 5))))
    with pytest.raises(FileNotFoundError, match='no im00001.png'):
        lspet.convert(tmp_path, tmp_path / 'out')
    cv2.imwrite(str(tmp_path / 'im00006.png'), np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(ValueError, match='im00006.png has no joints.*1 to 5'):
        lspet.convert(tmp_path, tmp_path / 'out')
    (tmp_path / 'im00006.png').rename(tmp_path / 'im00001.png')
    (tmp_path / 'im00001.png').write_bytes(b'no picture')
    with pytest.raises(ValueError, match='im00001.png cannot be read'):
        lspet.convert(tmp_path, tmp_path / 'out')


@pytest.fixture
def camvid_download(tmp_path):
    source = tmp_path / 'CamVid'
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for index, split in enumerate(('train', 'val', 'test')):
        for folder, pixels in (
            (split, np.full((3, 4, 3), 50 * index, np.uint8)),
            (f'{split}annot', np.roll(labels, index)),
        ):
            (source / folder).mkdir(parents=True)
            cv2.imwrite(str(source / folder / f'seq_{index}.png'), pixels)
    return source


def test_camvid_classes(camvid_download, tmp_path):
    target = tmp_path / 'data/camvid'
    counts = camvid.convert(camvid_download, target)
    assert counts == dict(train=1, val=1, test=1)
    expected = np.array([*range(11), 255]).reshape(3, 4)
    for index, split in enumerate(counts):
        image = cv2.imread(f'{target}/images/{split}/seq_{index}.jpg')
        assert (image == 50 * index).all()
        labels = cv2.imread(
            f'{target}/annotations/{split}/seq_{index}.png',
            cv2.IMREAD_UNCHANGED,
        )
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, np.roll(expected, index))


def test_camvid_refuses_what_it_is_not_for(camvid_download, tmp_path):
    with pytest.raises(FileNotFoundError, match='SegNet tutorial'):
        camvid.convert(tmp_path, tmp_path / 'out')
    labels = camvid_download / 'valannot/seq_1.png'
    for wrong in (
        np.full((3, 4), 12, np.uint8),
        np.zeros((3, 4, 3), np.uint8),
    ):
        cv2.imwrite(str(labels), wrong)
        with pytest.raises(ValueError, match='seq_1.png must be .* 0 to 10'):
            camvid.convert(camvid_download, tmp_path / 'out')
    labels.unlink()
    with pytest.raises(FileNotFoundError, match='seq_1.png does not exist'):
        camvid.convert(camvid_download, tmp_path / 'out')
    cv2.imwrite(str(labels), np.zeros((3, 4), np.uint8))
    (camvid_download / 'val/seq_1.png').write_bytes(b'no picture')
    with pytest.raises(ValueError, match='seq_1.png cannot be read'):
        camvid.convert(camvid_download, tmp_path / 'out')
