"""Make a checkpoint of a training ready to be published.

Keeps the weights and ``meta``, which has the config's text and the meta
information of the data set. Drops the optimizer, the schedulers and the logs.
Makes paths in the config relative if they are below the working directory.
Adds the versions of the packages and your metrics to ``meta``. Writes
``OUT_NAME-<hash>.pth``, which ``mmpsa://`` loads. The hash is the first 8
hexadecimal digits of the file's sha256.

If the training had an EMAHook, this publishes the averaged weights: mmengine
saves them as the model's weights, and the others beside them.
"""

import argparse
import io
import sys
from pathlib import Path


def metric(text):
    """``NAME=VALUE`` as (str, float)."""
    name, value = text.rsplit('=', 1)
    return name, float(value)


def half(key, tensor):
    """A weight in half precision.

    Running means and variances stay as they are: they are few, and they may
    be too large or too small. Integers stay too.

    Raises:
        ValueError: A weight is too large for half precision.
    """
    if not tensor.is_floating_point() or 'running_' in key:
        return tensor
    halved = tensor.half()
    if not halved.isfinite().all():
        raise ValueError(
            f'--half: the values of {key} must be at most 65504, but reach '
            f'{tensor.abs().max():g}; leave --half out'
        )
    return halved


def publish(path, metrics, use_half):
    """Reduce a checkpoint to what is published.

    Args:
        path (str): The checkpoint, as mmengine saves it.
        metrics (dict): Values by name, for ``meta``.
        use_half (bool): Whether to save weights in half precision.

    Returns:
        dict: ``state_dict`` and ``meta``.

    Raises:
        ValueError: The file cannot be read or is not one of mmengine, or
            its weights are too large for half precision.
    """
    from mmpsa.checkpoints import read_checkpoint
    from mmpsa.compatibility import installed_version
    from mmpsa.version import CODEBASES

    checkpoint = read_checkpoint(path)
    missing = {'state_dict', 'meta'}.difference(checkpoint)
    if missing:
        raise ValueError(
            f'{path} must be a checkpoint that mmengine saved, but has no '
            f'{" and no ".join(sorted(missing))}'
        )

    packages = ('mmpsa', 'torch', 'mmengine', 'mmcv', *CODEBASES)
    versions = {name: installed_version(name) for name in packages}
    state_dict = checkpoint['state_dict']
    if use_half:
        # in place, so that the versions of the modules stay beside the keys
        for key, tensor in state_dict.items():
            state_dict[key] = half(key, tensor)
    meta = checkpoint['meta']
    if 'cfg' in meta:
        meta = dict(meta, cfg=meta['cfg'].replace(f'{Path.cwd()}/', ''))
    return dict(
        state_dict=state_dict,
        meta=dict(
            meta,
            # As str: torch's version class does not load with weights_only.
            versions={k: str(v) for k, v in versions.items() if v},
            metrics=metrics,
        ),
    )


def main():
    """Read the command line, load, reduce, write."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('checkpoint', metavar='IN', help='checkpoint file')
    parser.add_argument(
        'out', metavar='OUT_NAME', help='folder and name, without a hash'
    )
    parser.add_argument(
        '--metric',
        nargs='+',
        action='extend',
        type=metric,
        default=[],
        metavar='NAME=VALUE',
        help='what was measured with this checkpoint',
    )
    parser.add_argument(
        '--half',
        action='store_true',
        help='save in half precision (all but running statistics)',
    )
    args = parser.parse_args()

    import torch

    from mmpsa.checkpoints import replacing
    from mmpsa.zoo import content_hash

    try:
        published = publish(args.checkpoint, dict(args.metric), args.half)
    except ValueError as error:
        sys.exit(f'publish_model: {error}')
    buffer = io.BytesIO()
    torch.save(published, buffer)
    data = buffer.getvalue()
    name = args.out[:-4] if args.out.endswith('.pth') else args.out
    path = Path(f'{name}-{content_hash(data)}.pth')
    if path.exists():
        sys.exit(f'publish_model: {path} exists already; nothing is written')
    with replacing(path) as file:
        file.write(data)
    print(f'{path}: {len(data) / 1e6:.1f} MB')


if __name__ == '__main__':
    main()
