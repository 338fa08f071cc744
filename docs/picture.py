"""Write docs/images/masks.jpg: what PSA attends to, on generated people.

It takes the segmentation model that ``make quickstart`` trains. Each mask has
its own scale.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from mmengine.registry import init_default_scope
from mmseg.apis import inference_model, init_model

from mmpsa.visualization import record_masks

ROOT = Path(__file__).resolve().parents[1]
MODEL = 'fcn_r18-w32_1xb16-250_figures-128x128_psa-s'
PICTURES = (3, 4, 6, 9, 21, 23)  # of the validation split
MASKED = {'layer1.1': 'mask, stage 1', 'layer3.1': 'mask, stage 3'}


def draw(model, indices):
    """A row each for pictures, predicted parts and masks; a figure."""
    titles = ['picture', 'body parts', *MASKED.values()]
    rows, columns = len(titles), len(indices)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(1.6 * columns, 1.6 * rows),
        gridspec_kw=dict(wspace=0.03, hspace=0.03),
    )
    palette = np.array(model.dataset_meta['palette'])
    for column, index in zip(axes.T, indices):
        path = ROOT / f'data/figures/images/val/{index:06d}.jpg'
        picture = plt.imread(path)
        with record_masks(model) as record:
            parts = inference_model(model, str(path)).pred_sem_seg.data[0]
        column[0].imshow(picture)
        column[1].imshow(picture // 2 + palette[parts.numpy()] // 2)
        height, width = picture.shape[:2]
        extent = -0.5, width - 0.5, height - 0.5, -0.5
        for axis, name in zip(column[2:], MASKED):
            mask = record.masks[f'backbone.{name}.psa'].spatial[0]
            axis.imshow(picture.mean(2), cmap='gray', extent=extent)
            axis.imshow(
                mask,
                alpha=0.7,
                cmap='magma',
                extent=extent,
                interpolation='bicubic',
            )
    for row, title in zip(axes, titles):
        row[0].set_ylabel(title, fontsize=11)
        plt.setp(row, xticks=[], yticks=[])
    return figure


def main():
    folder = ROOT / 'work_dirs/quickstart/segmentation/psa_seed0'
    model = init_model(
        str(ROOT / f'configs/quickstart/{MODEL}.py'),
        (folder / 'last_checkpoint').read_text().strip(),
        device='cpu',
    )
    init_default_scope('mmseg')
    draw(model, PICTURES).savefig(
        ROOT / 'docs/images/masks.jpg', dpi=100, bbox_inches='tight'
    )


if __name__ == '__main__':
    main()
