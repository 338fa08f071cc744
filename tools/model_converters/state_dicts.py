"""What the converters share: reading, checking and writing weights."""

import copy
import sys
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, MODELS, DefaultScope
from torch import Tensor
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from mmpsa import PolarizedSelfAttention
from mmpsa.checkpoints import CheckpointError, read_checkpoint, replacing
from mmpsa.psa import SIGNATURES

INCOMPATIBLE = (
    "variant='paper' and variant='official' do not convert into each other: "
    "the paper's block has biases, a LayerNorm over all channels and a "
    "softmax over the channels of the pooled query; the authors' code has "
    'none of these (but a small LayerNorm and two biases in the sequential '
    'conv_up) and a softmax over positions in their place. Shapes and '
    'arithmetic differ, so no weights of one compute what the other does'
)


def run(main):
    """Run a converter. If it refuses its input, exit with the reason only."""
    try:
        main()
    except (CheckpointError, FileNotFoundError, IsADirectoryError) as error:
        sys.exit(f'{Path(sys.argv[0]).stem}: {error}')


def read(path):
    """Read a checkpoint.

    Args:
        path (str): Anything that mmengine's loader takes: a file or a URL, a
            plain state dict or one under the key ``state_dict``, of a model
            in ``DistributedDataParallel`` or not.

    Returns:
        tuple[dict[str, Tensor], dict]: The weights without the prefix
        ``module.``, and the ``meta`` of the checkpoint, empty if there is
        none. What else there is, an optimizer's state for example, is named
        on the screen.

    Raises:
        CheckpointError: If it cannot be read, or has no weights in it.
    """
    checkpoint = read_checkpoint(path)
    state_dict = checkpoint.get('state_dict', checkpoint)
    if not _has_weights(state_dict):
        raise CheckpointError(
            f'{path} must hold tensors by name, at its top or under the key '
            f"'state_dict'; it has the keys {list(checkpoint)}"
        )
    # In place, so that the state dict keeps _metadata: the module versions,
    # which loaders ask for.
    consume_prefix_in_state_dict_if_present(state_dict, 'module.')
    others = [k for k, v in state_dict.items() if not isinstance(v, Tensor)]
    for key in others:
        del state_dict[key]
    meta = {}
    if state_dict is not checkpoint:
        meta = checkpoint.get('meta', {})
        others += [k for k in checkpoint if k not in ('state_dict', 'meta')]
    show('Not weights of the model, not written', others)
    return state_dict, meta


def _has_weights(state_dict):
    return (
        isinstance(state_dict, dict)
        and all(isinstance(key, str) for key in state_dict)
        and any(isinstance(value, Tensor) for value in state_dict.values())
    )


def write(weights, meta, path):
    """Write a checkpoint that mmengine loads."""
    with replacing(path) as file:
        torch.save(dict(meta=meta, state_dict=weights), file)
    print(f'{len(weights)} tensors written to {path}')


def show(title, lines):
    """Print a list under its title; nothing if there is nothing."""
    if lines:
        print(f'{title}: {len(lines)}')
        for line in lines:
            print(f'    {line}')


def build_model(config):
    """Build a config's model, its own initialisation and no weights loaded.

    Args:
        config (str): A config file.

    Returns:
        nn.Module: The model.
    """
    cfg = Config.fromfile(config)
    with DefaultScope.overwrite_default_scope(
        cfg.get('default_scope', 'mmengine')
    ):
        return MODELS.build(cfg.model)


def describe(meta, config):
    """Add what upstream's inference reads of a checkpoint, from a config.

    Args:
        meta (dict): The ``meta`` of a checkpoint.
        config (str): A config file.

    Returns:
        dict: ``meta`` with the config's text as ``cfg`` and, where it has
        none, the meta information (classes, colours, keypoints) of the
        config's test data as ``dataset_meta``; that of several data sets in
        one is not taken.
    """
    cfg = Config.fromfile(config)
    described = dict(meta, cfg=cfg.pretty_text)
    dataset = cfg.get('test_dataloader', {}).get('dataset')
    if dataset and 'dataset_meta' not in meta:
        cls = dataset.type
        if isinstance(cls, str):
            scope = cfg.get('default_scope')
            with DATASETS.switch_scope_and_registry(scope) as registry:
                cls = registry.get(cls)
        # Of the class: some data sets look for their files once built.
        if issubclass(cls, BaseDataset):
            metainfo = copy.deepcopy(dataset.get('metainfo'))
            described['dataset_meta'] = cls._load_metainfo(metainfo)
    return described


def load(model, weights, config):
    """Load what fits by name.

    Returns:
        tuple[list[str], list[str]]: Names that are missing and names that the
        model does not have.

    Raises:
        CheckpointError: If shapes differ.
    """
    try:
        return model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise CheckpointError(
            f'{config} must describe the model of the checkpoint: {error}'
        ) from error


def variants(weights):
    """The variants of the PSA blocks in a state dict.

    Returns:
        dict[str, str]: ``'paper'`` or ``'official'`` by the block's path.
    """
    found = {}
    for key in weights:
        path, _, layer = key.rpartition('.')
        path, _, name = path.rpartition('.')
        sign = f'{name}.{layer}'
        if sign in SIGNATURES:
            found[path] = SIGNATURES[sign]
    return found


def check(weights, config):
    """Refuse weights that are not exactly those of a config's model.

    Args:
        weights (dict[str, Tensor]): Converted weights.
        config (str): A config file.

    Raises:
        CheckpointError: If a PSA block of the model is of another variant, if
            names are missing or left over, or shapes differ.
    """
    model = build_model(config)
    given = variants(weights)
    for name, module in model.named_modules():
        if isinstance(module, PolarizedSelfAttention):
            variant = given.get(name, module.variant)
            if variant != module.variant:
                raise CheckpointError(
                    f'{name} is of variant={variant!r} in the checkpoint and '
                    f'of variant={module.variant!r} in {config}. '
                    f'{INCOMPATIBLE}'
                )
    missing, unexpected = load(model, weights, config)
    show(f'Missing for {config}', missing)
    show(f'Unknown to {config}', unexpected)
    if missing or unexpected:
        raise CheckpointError(
            f'{config} must describe the model of the checkpoint: '
            f'{len(missing)} names are missing, {len(unexpected)} unknown, '
            'as listed. Nothing is written; without the config, the same '
            'weights are written unchecked'
        )
    print(f'Every name and shape is that of {config}')
