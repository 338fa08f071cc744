import json

import cv2
import numpy as np
import pytest
from helpers import REPO, load_script
from mmengine.config import Config

make_figures = load_script('dev/make_figures.py')
COUNT = 12


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('figures')
    make_figures.make_split(root, 'val', COUNT, seed=3)
    return root


@pytest.fixture(scope='module')
def coco(root):
    return json.loads((root / 'annotations/val.json').read_text())


def files(root):
    return {
        path.relative_to(root): path.read_bytes()
        for path in root.rglob('*.*')
        if path.is_file()
    }


def test_same_bytes_for_the_same_seed_and_others_for_another(root, tmp_path):
    make_figures.make_split(tmp_path / 'same', 'val', COUNT, seed=3)
    make_figures.make_split(tmp_path / 'other', 'val', COUNT, seed=4)
    assert len(files(root)) == 2 * COUNT + 1
    assert files(tmp_path / 'same') == files(root)
    assert files(tmp_path / 'other').keys() == files(root).keys()
    assert files(tmp_path / 'other') != files(root)


def test_small_enough(root):
    """Twenty million bytes for the 1,500 pictures of the defaults."""
    assert sum(map(len, files(root).values())) / COUNT < 20e6 / 1500


def test_masks_have_the_classes_and_most_is_background(root):
    masks = [
        cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        for path in sorted((root / 'masks/val').iterdir())
    ]
    size = make_figures.SIZE
    assert all(mask.shape == (size, size) for mask in masks)
    classes, counts = np.unique(masks, return_counts=True)
    assert classes.tolist() == list(range(len(make_figures.CLASSES)))
    assert 0.5 < counts[0] / counts.sum() < 0.95


def test_annotations_agree_with_the_pictures(root, coco):
    size = make_figures.SIZE
    assert [image['id'] for image in coco['images']] == list(range(COUNT))
    assert {x['image_id'] for x in coco['annotations']} == set(range(COUNT))
    flags = set()
    for annotation in coco['annotations']:
        mask = cv2.imread(
            str(root / f'masks/val/{annotation["image_id"]:06d}.png'),
            cv2.IMREAD_UNCHANGED,
        )
        left, top, width, height = annotation['bbox']
        assert 0 <= left < left + width <= size
        assert 0 <= top < top + height <= size
        assert 0 < annotation['area'] <= width * height
        points = np.array(annotation['keypoints']).reshape(14, 3)
        labelled = points[:, 2] > 0
        assert annotation['num_keypoints'] == labelled.sum()
        assert not points[~labelled].any()
        flags.update(points[:, 2])
        for x, y, visible in points[labelled]:
            assert 0 <= x < size and 0 <= y < size
            if visible == 2:  # it lies on a figure
                assert mask[int(y), int(x)] > 0
    assert flags == {0, 1, 2}  # cut off, hidden, seen


def test_a_covered_joint_is_hidden_and_one_outside_is_not_labelled():
    labels = np.full((make_figures.SIZE, make_figures.SIZE), 0, np.uint8)
    labels[40:100, 40:80] = make_figures.TORSO
    whole = labels > 0
    labels[90:100] = 0  # a bar over the lower end
    joints = np.full((14, 2), (60.0, 50.0))
    joints[6] = 60, 95
    joints[11] = -1, 50
    found = make_figures.annotate(labels, 0, joints, whole)
    flags = found['keypoints'][2::3]
    assert found['bbox'] == [40, 40, 40, 60]
    assert found['area'] == 40 * 50
    assert flags[0] == 2  # a shoulder on the torso
    assert flags[4] == 1  # a wrist behind it
    assert flags[6] == 1  # a hip under the bar
    assert flags[11] == 0  # an ankle outside the picture


def test_a_figure_hardly_seen_has_no_keypoints():
    labels = np.zeros((make_figures.SIZE, make_figures.SIZE), np.uint8)
    labels[:10, :10] = make_figures.HEAD
    whole = np.zeros_like(labels, bool)
    whole[:40, :40] = True
    found = make_figures.annotate(labels, 0, np.full((14, 2), 5.0), whole)
    assert found['num_keypoints'] == 0
    assert not any(found['keypoints'])
    assert found['area'] == 100


def test_keypoints_are_those_of_crowdpose(coco):
    """Whose dataset class reads the figures."""
    datasets = pytest.importorskip('mmpose.datasets.datasets')
    utils = pytest.importorskip('mmpose.datasets.datasets.utils')
    meta = utils.parse_pose_metainfo(datasets.CrowdPoseDataset.METAINFO)
    (category,) = coco['categories']
    names = category['keypoints']
    assert names == [meta['keypoint_id2name'][i] for i in range(14)]
    drawn = {frozenset((a - 1, b - 1)) for a, b in category['skeleton']}
    assert drawn == set(map(frozenset, meta['skeleton_links']))


def test_segmentation_config_names_the_same_classes():
    (path,) = (REPO / 'configs/quickstart').glob('fcn_*x128.py')
    meta = Config.fromfile(path).dataset.metainfo
    assert tuple(meta.classes) == make_figures.CLASSES
    assert len(meta.palette) == len(make_figures.CLASSES)
