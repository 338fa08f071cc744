"""Add PSA that starts as the identity to a checkpoint without PSA.

For a checkpoint of mmpose or mmsegmentation and the config of the same model
with ``plugins=[dict(cfg=dict(type='PSA', identity_init=True), …)]``. The new
checkpoint computes what the old one does, exactly::

    mim run mmpsa add_identity_psa BASELINE.pth OUT.pth CONFIG
"""

import argparse

from state_dicts import build_model, describe, load, read, run, show, write

from mmpsa import PolarizedSelfAttention
from mmpsa.checkpoints import CheckpointError


def add(weights, config):
    """Load weights into a model whose PSA is the identity.

    Args:
        weights (dict[str, Tensor]): Those of the model without PSA.
        config (str): A config file, of the model with PSA.

    Returns:
        dict[str, Tensor]: All weights of the model with PSA.

    Raises:
        CheckpointError: If the model has no PSA, or one that does not start as
            the identity; if the weights have PSA already, lack anything but
            PSA, or have other shapes.
    """
    model = build_model(config)
    blocks = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, PolarizedSelfAttention)
    }
    if not blocks:
        raise CheckpointError(
            f'{config} must give the model PSA, plugins=[dict(cfg=dict('
            "type='PSA', identity_init=True), …)]; its model has none"
        )
    others = [
        name for name, block in blocks.items() if not block.identity_init
    ]
    if others:
        show('Not the identity at the start', others)
        raise CheckpointError(
            f'{config} must have identity_init=True for every PSA, which '
            "needs variant='paper'; it lacks it for the "
            f'{len(others)} listed'
        )
    own = tuple(f'{name}.' for name in blocks)
    trained = [key for key in weights if key.startswith(own)]
    if trained:
        show('PSA in the checkpoint', trained)
        raise CheckpointError(
            f'the checkpoint must have no PSA weights where {config} adds '
            f'PSA; it has the {len(trained)} listed'
        )
    missing, unexpected = load(model, weights, config)
    lacking = [key for key in missing if not key.startswith(own)]
    if lacking:
        show('Missing, and not of PSA', lacking)
        raise CheckpointError(
            f'the checkpoint must have all of the model of {config} but '
            f'PSA; it lacks the {len(lacking)} listed'
        )
    show('In the checkpoint, not in the model: not written', unexpected)
    print(f'{len(blocks)} PSA blocks added, all the identity')
    return model.state_dict()


def main():
    """Convert the file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('source', help='checkpoint without PSA')
    parser.add_argument('target', help='file to write')
    parser.add_argument('config', help='config of the model with PSA')
    args = parser.parse_args()
    weights, meta = read(args.source)
    converted = add(weights, args.config)
    write(converted, describe(meta, args.config), args.target)


if __name__ == '__main__':
    run(main)
