"""Draw what attention changes in predictions on figures, and its masks.

    python -m projects.study.pictures

Takes the checkpoints that ``run.py`` leaves, of one seed, and the first
pictures of the test set, whatever they show. Writes
``docs/images/study_predictions.png``.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
from mmengine.fileio import list_dir_or_file
from mmengine.runner.checkpoint import find_latest_checkpoint
from mmseg.apis import inference_model, init_model
from PIL import Image

from mmpsa.visualization import record_masks

from .run import WORK
from .runs import PSA_P, REPO, SEEDS, name_of

PICTURE = REPO / 'docs/images/study_predictions.png'
SEED = SEEDS[-1]
ROWS = 4
GAINED, LOST = (40, 200, 80), (220, 50, 50)


def load(arm):
    """The network of an arm, as its training left it."""
    folder = WORK / name_of('figures', arm, SEED)
    checkpoint = find_latest_checkpoint(str(folder))
    return init_model(str(folder / 'config.py'), checkpoint, device='cpu')


def parts(model, path):
    """The predicted part of each pixel, H×W."""
    return inference_model(model, str(path)).pred_sem_seg.data[0].numpy()


def changes(image, labels, before, after):
    """The picture in grey; in colour what became right, or wrong, H×W×3."""
    grey = image.mean(2, keepdims=True).repeat(3, 2) / 2 + 64
    was, is_right = before == labels, after == labels
    grey[is_right & ~was] = GAINED
    grey[was & ~is_right] = LOST
    return grey.astype(np.uint8)


def row(plain, psa, image_path, label_path):
    """What to draw of a test picture, by title."""
    image = np.asarray(Image.open(image_path).convert('RGB'))
    labels = np.asarray(Image.open(label_path))
    palette = np.array(plain.dataset_meta['palette'], np.uint8)
    before = parts(plain, image_path)
    with record_masks(psa) as record:
        after = parts(psa, image_path)
    fine, coarse, *_ = (x.spatial[0] for x in record.masks.values())
    return {
        'picture': image,
        'parts': palette[labels],
        'no attention': palette[before],
        'PSA(p)': palette[after],
        'better, worse': changes(image, labels, before, after),
        'mask, stride 4': fine,
        'mask, stride 8': coarse,
    }


def main():
    """Draw it."""
    os.chdir(REPO)
    plain, psa = load('none'), load(PSA_P)
    folder = REPO / 'data/figures'
    names = sorted(list_dir_or_file(folder / 'images/val', list_dir=False))
    rows = [
        row(
            plain,
            psa,
            folder / 'images/val' / name,
            (folder / 'masks/val' / name).with_suffix('.png'),
        )
        for name in names[:ROWS]
    ]
    plt.switch_backend('agg')
    shape = ROWS, len(rows[0])
    figure, axes = plt.subplots(*shape, figsize=[1.5 * x for x in shape[::-1]])
    for ax in axes.flat:
        ax.axis('off')
    for line, pictures in zip(axes, rows):
        for ax, picture in zip(line, pictures.values()):
            ax.imshow(picture, cmap='magma')
    for ax, title in zip(axes[0], rows[0]):
        ax.set_title(title, fontsize=9)
    figure.tight_layout(pad=0.3)
    figure.savefig(PICTURE, dpi=100)


if __name__ == '__main__':
    main()
