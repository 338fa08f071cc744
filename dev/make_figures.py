"""Render the quickstart's data: articulated figures over clutter.

The same pictures carry COCO keypoints (for mmpose) and masks of body parts
(for mmseg)::

    data/figures/
        images/{train,val}/000000.jpg
        masks/{train,val}/000000.png     indices into CLASSES
        annotations/{train,val}.json     COCO keypoint format

Nothing but NumPy and OpenCV is needed, and a seed gives the same bytes each
time. To keep the task from being trivial, figures are turned, foreshortened,
cut off by the border, seen from behind (which swaps left and right), covered
by bars and blobs and crossed by a second figure; loose limbs, balls and boxes
in the colours of their clothes lie around and are background.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np

SIZE = 128  # pixels a side
SCALE = 2  # pictures are drawn this much larger, then reduced: smooth edges
SIDE = SIZE * SCALE
CLASSES = ('background', 'head', 'torso', 'arm', 'leg')
# In CrowdPose's order, so that mmpose's CrowdPoseDataset reads them.
KEYPOINTS = [
    f'{side}_{joint}'
    for joint in ('shoulder', 'elbow', 'wrist', 'hip', 'knee', 'ankle')
    for side in ('left', 'right')
] + ['top_head', 'neck']
LEFT_LINKS = ((13, 0), (0, 2), (2, 4), (0, 6), (6, 8), (8, 10))
RIGHT_LINKS = tuple((a if a == 13 else a + 1, b + 1) for a, b in LEFT_LINKS)
SKELETON = ((12, 13), (0, 1), (6, 7), *LEFT_LINKS, *RIGHT_LINKS)

# Parts as drawn; `labels` holds 8 * figure + part for each pixel, 0 elsewhere.
HEAD, TORSO, LEFT_ARM, RIGHT_ARM, LEFT_LEG, RIGHT_LEG = range(1, 7)
PART_TO_CLASS = np.array([0, 1, 2, 3, 3, 4, 4, 0], np.uint8)
# The parts on which each keypoint counts as seen.
LIMBS = [LEFT_ARM, RIGHT_ARM] * 3 + [LEFT_LEG, RIGHT_LEG] * 3
PARTS_OF_KEYPOINT = [{part} for part in (*LIMBS, HEAD, HEAD)]
for at_torso in (0, 1, 6, 7, 13):
    PARTS_OF_KEYPOINT[at_torso].add(TORSO)


class Canvas:
    """A picture being painted, with the label of each pixel beside it."""

    def __init__(self, rng):
        coarse = rng.uniform(70, 185, (5, 5, 1))
        coarse = coarse + rng.normal(0, 15, (5, 5, 3))
        image = cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        self.image = np.clip(image, 0, 255).astype(np.uint8)
        self.labels = np.zeros((SIDE, SIDE), np.uint8)

    def polygon(self, points, colour, label):
        points = np.round(points).astype(np.int32)
        cv2.fillPoly(self.image, [points], colour)
        cv2.fillPoly(self.labels, [points], label)

    def ellipse(self, centre, axes, colour, label, angle=0):
        """A filled one; a single number as ``axes`` makes it a circle."""
        centre = tuple(int(round(v)) for v in centre)
        axes = tuple(max(1, int(round(v))) for v in np.broadcast_to(axes, 2))
        for target, value in ((self.image, colour), (self.labels, label)):
            cv2.ellipse(target, centre, axes, angle, 0, 360, value, -1)

    def limb(self, start, end, widths, colour, label):
        """A segment with round ends, tapered where ``widths`` are two."""
        widths = np.broadcast_to(widths, 2)
        along = end - start
        across = np.array([-along[1], along[0]])
        across = across / max(np.linalg.norm(across), 1e-6)
        ends, aside = np.stack((start, end)), np.outer(widths, across)
        corners = np.concatenate((ends + aside, (ends - aside)[::-1]))
        self.polygon(corners, colour, label)
        for centre, width in zip(ends, widths):
            self.ellipse(centre, width, colour, label)


def sample_pose(rng):
    """Joints of a figure about one unit high, hips at the origin.

    Returns:
        np.ndarray: (14, 2), x to the right and y down, in KEYPOINTS' order.
    """

    def step(origin, side, angle, length):
        """From a joint to the next; angle in degrees from down, outwards."""
        angle = np.deg2rad(angle)
        shortened = length * rng.uniform(0.75, 1)
        along = np.array([side * np.sin(angle), np.cos(angle)])
        return origin + shortened * along

    turned = rng.uniform(0.7, 1)  # towards profile the body gets narrower
    neck = np.array([rng.normal(0, 0.03), -0.30])
    joints = np.zeros((14, 2))
    joints[12] = step(neck, 1, 180 + rng.normal(0, 12), 0.21)
    joints[13] = neck
    for right, side in ((0, 1), (1, -1)):  # their left is at our right
        joints[right] = neck + turned * np.array([side * 0.10, 0.03])
        arm = rng.uniform(-10, 130)
        joints[2 + right] = step(joints[right], side, arm, 0.19)
        forearm = arm + rng.uniform(-20, 80)
        joints[4 + right] = step(joints[2 + right], side, forearm, 0.18)
        joints[6 + right] = turned * np.array([side * 0.065, 0])
        leg = rng.normal(12, 14)
        joints[8 + right] = step(joints[6 + right], side, leg, 0.25)
        shank = leg - rng.uniform(-10, 40)
        joints[10 + right] = step(joints[8 + right], side, shank, 0.25)
    return joints


def colour_of(rng):
    """A random colour as cloth may have it."""
    hsv = rng.integers(180), rng.integers(40, 230), rng.integers(50, 240)
    return cv2.cvtColor(np.uint8([[hsv]]), cv2.COLOR_HSV2BGR)[0, 0].tolist()


def sample_outfit(rng):
    """Colours of skin, hair, shirt and trousers."""
    tone, shade = rng.uniform(0.35, 1), rng.uniform(10, 110)
    skin = [int(v * tone) for v in (170, 195, 235)]
    hair = [int(v * shade) for v in (0.6, 0.8, 1)]
    return skin, hair, colour_of(rng), colour_of(rng)


def draw_figure(canvas, rng, number, centre, height, outfit):
    """Draw one figure.

    Args:
        canvas (Canvas): what to draw on.
        rng (np.random.Generator): source of everything random.
        number (int): of the figure, from 0; goes into the labels.
        centre (np.ndarray): (2, ), where the hips go, in canvas pixels.
        height (float): of the upright figure, in canvas pixels.
        outfit (tuple): its colours, from :func:`sample_outfit`.

    Returns:
        np.ndarray: joints (14, 2) in canvas pixels.
    """
    skin, hair, shirt, trousers = outfit
    behind = rng.random() < 0.15
    pose = sample_pose(rng) * ((-1, 1) if behind else (1, 1))
    angle = np.deg2rad(rng.normal(0, 15))
    cos, sin = np.cos(angle), np.sin(angle)
    joints = pose @ np.array([[cos, -sin], [sin, cos]]).T * height + centre
    top, neck, hips = joints[12], joints[13], joints[6:8].mean(0)
    sleeve = shirt if rng.random() < 0.5 else skin
    leg = trousers if rng.random() < 0.7 else skin
    unit = height * rng.uniform(0.85, 1.15)
    label = 8 * number
    head, torso = label + HEAD, label + TORSO

    def arm(side):
        part = label + LEFT_ARM + side
        shoulder, elbow, wrist = joints[side:6:2]
        canvas.limb(shoulder, elbow, (0.042 * unit, 0.034 * unit), shirt, part)
        canvas.limb(elbow, wrist, (0.033 * unit, 0.026 * unit), sleeve, part)
        canvas.ellipse(wrist, 0.033 * unit, skin, part)

    arms_in_front = rng.random(2) < 0.6
    for side in np.flatnonzero(~arms_in_front).tolist():
        arm(side)
    for side in rng.permutation(2).tolist():
        part = label + LEFT_LEG + side
        hip, knee, ankle = joints[6 + side : 12 : 2]
        canvas.limb(hip, knee, (0.060 * unit, 0.045 * unit), trousers, part)
        canvas.limb(knee, ankle, (0.043 * unit, 0.030 * unit), leg, part)
    corners = joints[[0, 1, 7, 6]]
    canvas.polygon(corners, shirt, torso)
    for one, two in zip(corners, np.roll(corners, -1, 0)):
        canvas.limb(one, two, 0.045 * unit, shirt, torso)
    if rng.random() < 0.4:  # a stripe down the shirt
        collar = neck * 0.85 + hips * 0.15
        canvas.limb(collar, hips, 0.02 * unit, colour_of(rng), torso)

    length = np.linalg.norm(top - neck)
    up = (top - neck) / length
    tilt = np.rad2deg(np.arctan2(up[1], up[0]))
    middle = neck + up * length * 0.6
    canvas.limb(neck, middle, 0.030 * unit, skin, head)
    size = length * 0.46, 0.070 * unit
    canvas.ellipse(middle, size, hair if behind else skin, head, tilt)
    if not behind:
        fringe = middle + up * length * 0.26
        size = length * 0.17, 0.058 * unit
        canvas.ellipse(fringe, size, hair, head, tilt)
        for sign in (-1, 1):
            eye = middle + sign * 0.028 * unit * np.array([-up[1], up[0]])
            canvas.ellipse(eye, 0.011 * unit, (20, 20, 20), head)
    for side in np.flatnonzero(arms_in_front).tolist():
        arm(side)
    return joints


def draw_clutter(canvas, rng, centre, colours):
    """Draw one thing that is no figure: bar, box, ball or loose limb."""
    worn = rng.random() < 0.6
    colour = colours[rng.integers(len(colours))] if worn else colour_of(rng)
    angle = rng.uniform(0, 2 * np.pi)
    along = np.array([np.cos(angle), np.sin(angle)])
    kind = rng.integers(4)
    if kind == 0:  # a bar through the whole picture
        width, far = rng.uniform(1.5, 4) * SCALE, along * 2 * SIDE
        canvas.limb(centre - far, centre + far, width, colour, 0)
    elif kind == 1:
        half = rng.uniform(4, 12, 2) * SCALE
        one, two = along * half[0], np.array([-along[1], along[0]]) * half[1]
        corners = one + two, one - two, -one - two, two - one
        canvas.polygon(centre + corners, colour, 0)
    elif kind == 2:
        size = rng.uniform(4, 10, 2) * SCALE
        canvas.ellipse(centre, size, colour, 0, np.rad2deg(angle))
    else:
        middle = centre + along * rng.uniform(12, 24) * SCALE
        bend = rng.uniform(-1, 1, 2) * 20 * SCALE
        widths = np.sort(rng.uniform(2.5, 6, 3))[::-1] * SCALE
        canvas.limb(centre, middle, widths[:2], colour, 0)
        canvas.limb(middle, middle + bend, widths[1:], colour, 0)


def annotate(labels, number, joints, whole):
    """COCO annotation of one figure.

    Args:
        labels (np.ndarray): (SIZE, SIZE), 8 * figure + part for each pixel.
        number (int): of the figure, from 0.
        joints (np.ndarray): (14, 2), in pixels of the picture.
        whole (np.ndarray): (SIZE, SIZE) bool, the figure before others were
            drawn over it.

    Returns:
        dict: bbox and area in pixels, keypoints; a figure of which less than
        a third is seen has no keypoints, as in COCO.
    """
    mine = (labels > 0) & (labels // 8 == number)
    keypoints = np.zeros((14, 3))
    if mine.sum() * 3 >= whole.sum():
        for point, (x, y), parts in zip(keypoints, joints, PARTS_OF_KEYPOINT):
            if 0 <= x < SIZE and 0 <= y < SIZE:
                pixel = int(y), int(x)
                seen = mine[pixel] and labels[pixel] % 8 in parts
                point[:] = x, y, 2 if seen else 1
    return dict(
        bbox=[*cv2.boundingRect(whole.astype(np.uint8))],
        area=int(mine.sum()),
        keypoints=[round(float(v), 2) for v in keypoints.ravel()],
        num_keypoints=int((keypoints[:, 2] > 0).sum()),
        category_id=1,
        iscrowd=0,
    )


def render(rng):
    """Render one picture.

    Returns:
        tuple: image (SIZE, SIZE, 3) uint8 BGR, mask (SIZE, SIZE) uint8 of
        indices into CLASSES, list of COCO annotations.
    """
    canvas = Canvas(rng)
    centres = rng.uniform((0.3, 0.4), (0.7, 0.7), (1, 2)) * SIDE
    heights = rng.uniform(0.7, 1.05, 1) * SIDE
    if rng.random() < 0.3:  # another one, beside it and further off
        beside = centres[0] + (rng.choice((-1, 1)) * 0.3 * SIDE, 0)
        centres = np.stack((beside, centres[0]))
        heights = heights[0] * np.array([rng.uniform(0.6, 0.8), 1])
    outfits = [sample_outfit(rng) for _ in centres]
    colours = sum(outfits, ())

    for _ in range(rng.integers(3, 9)):
        draw_clutter(canvas, rng, rng.uniform(0, SIDE, 2), colours)
    joints, wholes = [], []
    for number, figure in enumerate(zip(centres, heights, outfits)):
        joints.append(draw_figure(canvas, rng, number, *figure))
        drawn = canvas.labels[::SCALE, ::SCALE]
        wholes.append((drawn > 0) & (drawn // 8 == number))
    for _ in range(rng.integers(0, 3)):  # in front, over some joint
        near = joints[-1][rng.integers(14)] + rng.normal(0, 8, 2)
        draw_clutter(canvas, rng, near, colours)

    labels = canvas.labels[::SCALE, ::SCALE]
    image = cv2.resize(canvas.image, (SIZE,) * 2, interpolation=cv2.INTER_AREA)
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.0))
    noise = rng.standard_normal(image.shape, np.float32)
    image = image * rng.uniform(0.7, 1.2) + noise * rng.uniform(2, 8)
    image = np.clip(image, 0, 255).astype(np.uint8)
    annotations = [
        annotate(labels, number, points / SCALE, whole)
        for number, (points, whole) in enumerate(zip(joints, wholes))
        if whole.any()
    ]
    return image, PART_TO_CLASS[labels % 8], annotations


def make_split(root, split, count, seed):
    """Render a split and write it; its json comes last, so that a split that
    has one is complete.

    Args:
        root (str | Path): the data set's folder.
        split (str): its name, part of the paths.
        count (int): number of pictures.
        seed (int): of the split.
    """
    root = Path(root)
    for folder in (f'images/{split}', f'masks/{split}', 'annotations'):
        (root / folder).mkdir(parents=True, exist_ok=True)
    quality = cv2.IMWRITE_JPEG_QUALITY, 90
    images, annotations = [], []
    for index in range(count):
        image, mask, figures = render(np.random.default_rng((seed, index)))
        name = f'{index:06d}.jpg'
        cv2.imwrite(f'{root}/images/{split}/{name}', image, quality)
        cv2.imwrite(f'{root}/masks/{split}/{index:06d}.png', mask)
        images.append(dict(id=index, file_name=name, width=SIZE, height=SIZE))
        for figure in figures:
            number = len(annotations) + 1
            annotations.append(dict(id=number, image_id=index, **figure))
    links = [(a + 1, b + 1) for a, b in SKELETON]  # COCO counts from 1
    category = dict(id=1, name='figure', keypoints=KEYPOINTS, skeleton=links)
    coco = dict(images=images, annotations=annotations, categories=[category])
    (root / f'annotations/{split}.json').write_text(json.dumps(coco))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', default='data/figures', help='folder')
    parser.add_argument('--train', type=int, default=1200, help='pictures')
    parser.add_argument('--val', type=int, default=300, help='pictures')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    for number, split in enumerate(('train', 'val')):
        count = getattr(args, split)
        print(f'Rendering {count} pictures: {args.out}, {split}', flush=True)
        make_split(args.out, split, count, 2 * args.seed + number)


if __name__ == '__main__':
    main()
