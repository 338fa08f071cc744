"""Convert models with the widely copied re-implementation's block.

The block of https://github.com/xmu-xiaoma666/External-Attention-pytorch
computes the paper's equations with the parameters of ``variant='paper'``
(``ch_wv``, ``sp_wq``, …). Only the block's attribute name in its parent module
may differ: ``plugins=`` calls it ``psa``::

    mim run mmpsa reimplementation THEIRS.pth OUT.pth [CONFIG] \
        [--name psa]

With a config, the result is checked against its model. All other weights keep
their names.
"""

import argparse
import re
from collections import OrderedDict

from state_dicts import (
    INCOMPATIBLE,
    check,
    describe,
    read,
    run,
    show,
    variants,
    write,
)

from mmpsa import PolarizedSelfAttention
from mmpsa.checkpoints import CheckpointError

LAYERS = r'(ch_w[vqz]|sp_w[vq])\.(weight|bias)'


def convert(weights, name='psa'):
    """Rename the attribute of each block where that is unambiguous.

    Args:
        weights (dict[str, Tensor]): Those of a model.
        name (str): The attribute to give to the blocks: ``psa`` and the
            plugin's postfix. Default: ``'psa'``.

    Returns:
        tuple[dict[str, Tensor], dict[str, str], dict[str, str]]: All weights;
        the new path of each converted block, by its old path; the reason why
        a block is not converted, by its path. Such a block keeps its names.

    Raises:
        CheckpointError: If a block is of the authors' code, or none is the
            re-implementation's.
    """
    found = variants(weights)
    official = [path for path in found if found[path] == 'official']
    if official:
        show("Blocks of the authors' code", official)
        raise CheckpointError(
            "the checkpoint must hold the re-implementation's blocks; "
            f"{len(official)} are of the authors' code. {INCOMPATIBLE}"
        )
    matches = (re.fullmatch(rf'(?:(.*)\.)?{LAYERS}', key) for key in weights)
    paths = dict.fromkeys(match[1] or '' for match in matches if match)
    renamed, left = {}, {}
    for path in paths:
        parent, _, attribute = path.rpartition('.')
        siblings = [p for p in paths if p.rpartition('.')[0] == parent]
        if not _is_block(weights, path):
            left[path] = 'names or shapes are not those of the block'
        elif not attribute or attribute.isdigit():
            left[path] = 'the block is no attribute of its parent'
        elif len(siblings) > 1:
            left[path] = f'one of {len(siblings)} blocks in one parent'
        else:
            renamed[path] = f'{parent}.{name}' if parent else name
    if not renamed:
        show('Not converted', [f'{p} ({left[p]})' for p in left])
        raise CheckpointError(
            "the checkpoint must hold the re-implementation's blocks, with "
            'the layers ch_wv, ch_wq, ch_wz, ln, sp_wv and sp_wq; it has '
            f'names like {next(iter(weights))}'
        )
    converted = OrderedDict()
    for key, tensor in weights.items():
        path = '.'.join(key.split('.')[:-2])
        converted[renamed.get(path, path) + key[len(path) :]] = tensor
    # The versions of modules, which their loaders ask for. That of the
    # re-implementation, 1, tells a block to take 1 for its mask_scale.
    converted._metadata = dict(getattr(weights, '_metadata', {}))
    for path in renamed.values():
        converted._metadata[path] = dict(version=1)
    return converted, renamed, left


def _is_block(weights, path):
    """Whether what lies under a path is a whole block of ours."""
    prefix = f'{path}.' if path else ''
    shapes = {
        key[len(prefix) :]: tensor.shape
        for key, tensor in weights.items()
        if key.startswith(prefix)
    }
    query = shapes.get('ch_wq.weight', shapes.get('sp_wq.weight'))
    if query is None or len(query) != 4:
        return False
    blocks = (
        PolarizedSelfAttention(query[1], layout)
        for layout in ('parallel', 'channel', 'spatial')
    )
    return any(
        shapes == {key: t.shape for key, t in block.named_parameters()}
        for block in blocks
    )


def main():
    """Convert the file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('source', help='checkpoint with their block')
    parser.add_argument('target', help='file to write')
    parser.add_argument('config', nargs='?', help='config to check against')
    parser.add_argument(
        '--name',
        default='psa',
        help='attribute to give to the blocks: psa and the postfix of the '
        'plugin, if it has one (default: psa)',
    )
    args = parser.parse_args()
    weights, meta = read(args.source)
    converted, renamed, left = convert(weights, args.name)
    show('Converted', [f'{old} → {new}' for old, new in renamed.items()])
    print(
        'The weights do not say which layout they were trained in: give the '
        "config layout='parallel' or layout='sequential' as it was"
    )
    show(
        'Not converted, written as they are',
        [f'{path} ({reason})' for path, reason in left.items()],
    )
    if args.config:
        check(converted, args.config)
        meta = describe(meta, args.config)
    write(converted, meta, args.target)


if __name__ == '__main__':
    run(main)
