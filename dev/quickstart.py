"""Compare segmentation with and without PSA, train poses, draw a picture.

All of it on generated data and on the CPU. ``mim run mmpsa compare`` trains
the segmentors with three seeds each and prints the table; a pose estimator
with PSA is trained once. What has been finished is not repeated unless
``--force`` asks for it. Everything goes to work_dirs/quickstart.
"""

import argparse
import json
import os
import shutil
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
PLAN = 'dev/quickstart_plan.py'
COMPARISON = OUT / 'segmentation'
POSE = 'td-hm_res18-w32_1xb16-5e_figures-64x64_psa-s'
SEG = 'fcn_r18-w32_1xb16-250_figures-128x128'
MODELS = {  # label: config, where it was trained
    'pose + PSA': (POSE, OUT / POSE),
    'segmentation': (SEG, COMPARISON / 'none_seed0'),
    'segmentation + PSA': (f'{SEG}_psa-s', COMPARISON / 'psa_seed0'),
}
os.environ['CUDA_VISIBLE_DEVICES'] = ''  # two runs would need two GPUs
MIM = str(Path(sys.executable).with_name('mim'))
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


def checkpoint_in(folder):
    """The checkpoint that training saved at its end."""
    return (folder / 'last_checkpoint').read_text().strip()


def compare(force):
    """Bring the comparison to the point where it has a report."""
    if force:
        shutil.rmtree(COMPARISON, ignore_errors=True)
    command = [MIM, 'run', 'mmpsa', 'compare', PLAN, '--jobs', '2']
    title = 'Comparing segmentation without and with PSA (about 4 minutes)'
    run(title, [*command, '--work-dir', str(COMPARISON)])


def train_and_test_pose(force):
    """Bring the pose estimator to the point where it has a metrics.json."""
    folder, config = OUT / POSE, config_of(POSE)
    if force or not (folder / 'last_checkpoint').exists():
        train = [MIM, 'train', 'mmpsa', config, '--work-dir', str(folder)]
        title = 'Training: pose + PSA (about a minute)'
        run(title, train, folder / 'train.log', '(train)')
        force = True
    if force or not (folder / 'metrics.json').exists():
        test = [MIM, 'test', 'mmpsa', config]
        test += ['--checkpoint', checkpoint_in(folder)]
        test += ['--work-dir', str(folder / 'test')]
        test += ['--out', str(folder / 'metrics.json')]
        run('Testing: pose + PSA', test, folder / 'test.log', '(test)')


def load_models():
    """The trained models, by their labels."""
    import mmpose.apis
    import mmseg.apis
    from mmengine.logging import MMLogger

    import mmpsa  # noqa: F401  (lets torch read mmengine's checkpoints)

    MMLogger.get_current_instance().setLevel('ERROR')
    warnings.filterwarnings('ignore', module='mmseg')
    return {
        label: (mmpose if label.startswith('pose') else mmseg).apis.init_model(
            config_of(name), checkpoint_in(folder), device='cpu'
        )
        for label, (name, folder) in MODELS.items()
    }


def metric_of(label):
    """The metric of a model, as text in percent."""
    _, folder = MODELS[label]
    if label.startswith('pose'):
        metrics = json.loads((folder / 'metrics.json').read_text())
        return f'PCK@0.1 {100 * metrics["bbox@0.1/PCK"]:.1f}'
    record = json.loads((folder / 'run.json').read_text())
    return f'mIoU {record["evaluations"][-1]["metrics"]["mIoU"]:.1f}'


def draw_pose(axes, models, index):
    """Ground truth and predictions; returns the crop that models see."""
    from mmpose.apis import inference_topdown

    data = json.loads((DATA / 'annotations/val.json').read_text())
    figures = [x for x in data['annotations'] if x['image_id'] == index]
    figure = max(figures, key=lambda x: x['area'])
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
    """Ground truth and predictions; returns the picture's extent."""
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
    for axis in axes.flat:
        axis.axis('off')
    for task, draw_one, rows in (
        ('pose', draw_pose, axes[:count]),
        ('segmentation', draw_parts, axes[count:]),
    ):
        labels = [label for label in models if label.startswith(task)]
        shown = [models[label] for label in labels]
        rows = rows[:, [*range(2 + len(shown)), 4, 5]]
        for row, index in zip(rows, PICTURES):
            picture = plt.imread(DATA / f'images/val/{index:06d}.jpg')
            for axis in row:
                axis.imshow(picture)
            with record_masks(shown[-1]) as record:
                extent = draw_one(row[1:-2], shown, index)
            for axis, name in zip(row[-2:], MASKED):
                mask = record.masks[f'backbone.{name}.psa'].spatial[0]
                heat = axis.imshow(mask, 'magma', alpha=0.7, extent=extent)
                figure.colorbar(heat, ax=axis, shrink=0.8)
            height, width = picture.shape[:2]
            plt.setp(row, xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        titles = [f'{task}:\npicture', 'ground truth']
        titles += [f'{label}:\n{metric_of(label)}' for label in labels]
        masks = 'spatial mask of PSA in\n{}: 0 shut, 1 unchanged'
        titles += map(masks.format, MASKED)
        for axis, title in zip(rows[0], titles):
            axis.set_title(title, fontsize=10)
    meta = models['segmentation'].dataset_meta
    colours = dict(zip(meta['classes'], meta['palette']))
    meta = models['pose + PSA'].dataset_meta
    joints = meta['keypoint_name2id']
    for side in ('left', 'right'):
        arm = joints[f'{side}_shoulder'], joints[f'{side}_elbow']
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
    """Data, trainings, table, picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--force', action='store_true', help='repeat what is finished'
    )
    force = parser.parse_args().force
    os.chdir(Path(__file__).resolve().parents[1])

    if force or not (DATA / 'annotations/val.json').exists():
        script = 'dev/make_figures.py'
        run('Rendering the data (10 s)', [sys.executable, script])
    train_and_test_pose(force)
    compare(force)
    draw(load_models())


if __name__ == '__main__':
    main()
