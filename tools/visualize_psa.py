"""Draw the masks of a trained model's plugins for an image."""

import argparse
from importlib import import_module
from pathlib import Path

from cli import config_file


def image_file(path):
    """The path of an image that can be read."""
    import cv2

    if not Path(path).is_file():
        raise argparse.ArgumentTypeError(f'there is no file {path!r}')
    if not cv2.haveImageReader(path):
        raise argparse.ArgumentTypeError(f'{path!r} is no image')
    return path


def main():
    """Read the command line, run the model on the image, draw its masks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', type=config_file, help='config file, of mmpose or mmseg'
    )
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        'image',
        type=image_file,
        help='image file; a pose estimator takes the whole image as the '
        'bounding box of one person',
    )
    parser.add_argument(
        '--out',
        metavar='FILE',
        required=True,
        help='the picture to write (.png, .jpg)',
    )
    args = parser.parse_args()

    import mmcv
    from mmengine.config import Config
    from mmengine.device import get_device

    from mmpsa.visualization import draw_masks, record_masks

    cfg = Config.fromfile(args.config)
    inference = {'mmpose': 'inference_topdown', 'mmseg': 'inference_model'}
    if cfg.get('default_scope') not in inference:
        raise ValueError(
            f'default_scope must be one of {tuple(inference)}, but the '
            f'config has {cfg.get("default_scope")!r}'
        )
    apis = import_module(f'{cfg.default_scope}.apis')
    model = apis.init_model(cfg, args.checkpoint, device=get_device())
    with record_masks(model) as record:
        getattr(apis, inference[cfg.default_scope])(model, args.image)
    mmcv.imwrite(mmcv.rgb2bgr(draw_masks(record)), args.out)
    print(f'Picture: {args.out}')


if __name__ == '__main__':
    main()
