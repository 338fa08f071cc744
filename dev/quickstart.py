"""Train and evaluate the quickstart's models, print a table, draw a picture.

Pose estimation and segmentation, each without and with PSA, on generated data
and on the CPU. What has been finished is not repeated unless ``--force`` asks
for it. Everything goes to work_dirs/quickstart.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

plt.switch_backend('agg')
DATA = Path('data/figures')
OUT = Path('work_dirs/quickstart')
POSE = 'td-hm_res18-w32_1xb16-5e_figures-64x64'
SEG = 'fcn_r18-w32_1xb16-250_figures-128x128'
RUNS = {  # label: config
    'pose': POSE,
    'pose + PSA': f'{POSE}_psa-s',
    'segmentation': SEG,
    'segmentation + PSA': f'{SEG}_psa-s',
}
PICTURES = (1, 19, 30)  # of the validation split, drawn in the picture
MASKED = ('layer1.1', 'layer3.1')  # blocks whose spatial masks are drawn


def run(title, command, log=None, show=''):
    """Run a command; its lines go to ``log``, those with ``show`` in them to
    the screen. A failure ends the script with the command shown.
    """
    print(f'\n== {title}\n$ {" ".join(command)}', flush=True)
    start, lines = time.time(), []
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for line in process.stdout:
        lines.append(line)
        if show in line:
            print(line, end='', flush=True)
    if log:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(''.join(lines))
    if process.wait():
        sys.exit(
            f'{"".join(lines[-20:])}\nThis command failed with status '
            f'{process.returncode}: {" ".join(command)}'
        )
    print(f'-- done in {time.time() - start:.0f} s', flush=True)


def config_of(name):
    """Path of a quickstart config."""
    return f'configs/quickstart/{name}.py'


def checkpoint_of(name):
    """The checkpoint that training saved at its end."""
    return (OUT / name / 'last_checkpoint').read_text().strip()


def train_and_test(label, name, force):
    """Bring one run to the point where it has a metrics.json."""
    mim = str(Path(sys.executable).with_name('mim'))
    folder, config = OUT / name, config_of(name)
    if force or not (folder / 'last_checkpoint').exists():
        train = [mim, 'train', 'mmpsa', config, '--work-dir', str(folder)]
        title = f'Training: {label} (about a minute)'
        run(title, train, folder / 'train.log', '(train)')
        force = True
    if force or not (folder / 'metrics.json').exists():
        test = [mim, 'test', 'mmpsa', config]
        test += ['--checkpoint', checkpoint_of(name)]
        test += ['--work-dir', str(folder / 'test')]
        test += ['--out', str(folder / 'metrics.json')]
        run(f'Testing: {label}', test, folder / 'test.log', '(test)')


def load_models():
    """The four trained models, by their labels."""
    import mmpose.apis
    import mmseg.apis
    from mmengine.logging import MMLogger

    import mmpsa  # noqa: F401  (lets torch read mmengine's checkpoints)

    MMLogger.get_current_instance().setLevel('ERROR')
    warnings.filterwarnings('ignore', module='mmseg')
    return {
        label: (mmpose if label.startswith('pose') else mmseg).apis.init_model(
            config_of(name), checkpoint_of(name), device='cpu'
        )
        for label, name in RUNS.items()
    }


def metric_of(name):
    """The metric that a run was tested with, as text in percent."""
    metrics = json.loads((OUT / name / 'metrics.json').read_text())
    if 'mIoU' in metrics:
        return f'mIoU {metrics["mIoU"]:.1f}'
    return f'PCK@0.1 {100 * metrics["bbox@0.1/PCK"]:.1f}'


def seconds_per_iteration(scalars):
    """Median of the training iterations' times in a scalars.json.

    Args:
        scalars (str): its text, one JSON object per line; lines of training
            have a loss.

    Returns:
        float: seconds.
    """
    lines = [json.loads(line) for line in scalars.splitlines()]
    return statistics.median(x['time'] for x in lines if 'loss' in x)


def print_table(models):
    """One row per run."""
    from mmpsa.complexity import complexity_of

    row = '{:<20}{:>14}{:>12}{:>9}{:>10}'.format
    print('\n' + row('', 'metric', 'parameters', 'GFLOPs', 's / iter'))
    for label, name in RUNS.items():
        params, flops = complexity_of(models[label].cfg)
        scalars = max((OUT / name).glob('*/vis_data/scalars.json'))
        seconds = seconds_per_iteration(scalars.read_text())
        cost = f'{params:,}', f'{flops / 1e9:.4f}', f'{seconds:.3f}'
        print(row(label, metric_of(name), *cost))
    print(
        'Each row is one seed, and its settings were chosen on the split that '
        'is scored.\nThese figures show how to train. They do not show if PSA '
        'helps.'
    )


def draw_pose(axes, models, index):
    """Ground truth and two predictions; returns the crop that models see."""
    from mmpose.apis import inference_topdown

    data = json.loads((DATA / 'annotations/val.json').read_text())
    figure = max(
        (x for x in data['annotations'] if x['image_id'] == index),
        key=lambda x: x['area'],
    )
    truth = np.array(figure['keypoints']).reshape(-1, 3)
    joints, labelled = truth[:, :2], truth[:, 2] > 0
    meta = models[0].dataset_meta
    for axis, model in zip(axes, (None, *models)):
        if model:
            path = str(DATA / f'images/val/{index:06d}.jpg')
            box = np.array([figure['bbox']])
            sample = inference_topdown(model, path, box, 'xywh')[0]
            joints = sample.pred_instances.keypoints[0]
        links = zip(meta['skeleton_links'], meta['skeleton_link_colors'])
        for link, colour in links:
            if labelled[list(link)].all():
                xs, ys = joints[list(link)].T
                axis.plot(xs, ys, color='black', linewidth=4)
                axis.plot(xs, ys, color=np.array(colour) / 255, linewidth=2.5)
    left, top = sample.input_center - sample.input_scale / 2
    width, height = sample.input_scale
    return left, left + width, top + height, top


def draw_parts(axes, models, index):
    """Ground truth and two predictions; returns the picture's extent."""
    from mmengine.registry import init_default_scope
    from mmseg.apis import inference_model

    init_default_scope('mmseg')  # which inference_model leaves to its caller
    palette = np.array(models[0].dataset_meta['palette'])
    parts = plt.imread(DATA / f'masks/val/{index:06d}.png') * 255
    for axis, model in zip(axes, (None, *models)):
        if model:
            path = str(DATA / f'images/val/{index:06d}.jpg')
            parts = inference_model(model, path).pred_sem_seg.data[0].numpy()
        axis.imshow(palette[parts.astype(int)], alpha=0.75)
    height, width = parts.shape
    return -0.5, width - 0.5, height - 0.5, -0.5


def draw(models):
    """Pictures, ground truth, predictions and masks: one row per picture."""
    from mmpsa.visualization import record_masks

    count = len(PICTURES)
    figure, axes = plt.subplots(
        2 * count, 6, figsize=(13, 4 * count + 1), layout='constrained'
    )
    for task, draw_one, rows in (
        ('pose', draw_pose, axes[:count]),
        ('segmentation', draw_parts, axes[count:]),
    ):
        labels = (task, f'{task} + PSA')
        pair = [models[label] for label in labels]
        for row, index in zip(rows, PICTURES):
            picture = plt.imread(DATA / f'images/val/{index:06d}.jpg')
            for axis in row:
                axis.imshow(picture)
                axis.axis('off')
            with record_masks(pair[1]) as record:
                extent = draw_one(row[1:4], pair, index)
            for axis, name in zip(row[4:], MASKED):
                mask = record.masks[f'backbone.{name}.psa'].spatial[0]
                heat = axis.imshow(
                    mask, alpha=0.7, extent=extent, cmap='magma'
                )
                figure.colorbar(heat, ax=axis, shrink=0.8)
            height, width = picture.shape[:2]
            plt.setp(row, xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        titles = [f'{task}:\npicture', 'ground truth']
        titles += [f'{x}:\n{metric_of(RUNS[x])}' for x in labels]
        titles += [
            f'spatial mask of PSA in\n{name}: 0 shut, 1 unchanged'
            for name in MASKED
        ]
        for axis, title in zip(rows[0], titles):
            axis.set_title(title, fontsize=10)
    meta = models['segmentation'].dataset_meta
    colours = dict(zip(meta['classes'], meta['palette']))
    meta = models['pose'].dataset_meta
    for side in ('left', 'right'):
        arm = tuple(
            meta['keypoint_name2id'][f'{side}_{joint}']
            for joint in ('shoulder', 'elbow')
        )
        index = meta['skeleton_links'].index(arm)
        colours[f'{side} side'] = meta['skeleton_link_colors'][index]
    patches = [
        plt.Rectangle((0, 0), 1, 1, color=np.array(colour) / 255, label=name)
        for name, colour in colours.items()
    ]
    figure.legend(handles=patches, loc='outside lower center', ncols=7)
    figure.savefig(OUT / 'quickstart.png', dpi=100)
    print(f'\nPicture: {OUT / "quickstart.png"}')


def main():
    """Data, runs, table, picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--force', action='store_true', help='repeat what is finished'
    )
    force = parser.parse_args().force
    os.chdir(Path(__file__).resolve().parents[1])

    if force or not (DATA / 'annotations/val.json').exists():
        script = 'dev/make_figures.py'
        run('Rendering the data (10 s)', [sys.executable, script])
    for label, name in RUNS.items():
        train_and_test(label, name, force)
    models = load_models()
    print_table(models)
    draw(models)


if __name__ == '__main__':
    main()
