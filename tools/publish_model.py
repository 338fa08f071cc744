"""Make a checkpoint of a training ready to be published.

Keeps the weights and ``meta`` (the config's text and the data set's meta
information among it) and leaves the rest out: optimizer, schedulers, logs.
Paths below the working directory are made relative to it in the config.
Adds the versions of the packages to ``meta``, and the metrics given. Writes
``OUT_NAME-<hash>.pth``, with the first 8 hexadecimal digits of the sha256 of
the file: what ``mmpsa://`` loads.

Of a training with EMAHook, the averaged weights are published: mmengine saves
them as the model's weights, and the others beside them.
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

    Running variances stay as they are, for they may be large or small; they
    are few. Integers stay too.

    Raises:
        ValueError: A weight is too large for half precision.
    """
    if not tensor.is_floating_point() or 'running_' in key:
        return tensor
    halved = tensor.half()
    if not halved.isfinite().all():
        raise ValueError(
            f'--half: {key} has values beyond half precision (65504): '
            f'{tensor.abs().max():g}'
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
            # a plain str, for torch's own class is not loaded safely
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
