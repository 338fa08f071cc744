"""A plan: a config, its arms and seeds, and the metric that decides."""

import hashlib
import json
import os.path as osp
import re
from typing import NamedTuple

from mmengine.config import Config
from mmengine.hub import get_config

# What each key must be. Names that begin with _ are the plan's own.
ALLOWED = dict(
    base="a path, the name of a shipped config or 'mmpose::…'",
    arms='a dict of two dicts or more, named by letters, digits and .+-_',
    seeds='a list of different integers from 0',
    metric="a name in the log, as 'coco/AP'",
    options='a dict: settings of all arms',
    rule="'greater' or 'less'",
)
DEFAULTS = dict(options={}, rule='greater')


class PlanError(ValueError):
    """A plan that cannot be carried out, with the remedy."""


class Plan(NamedTuple):
    """What is compared; ``configs`` are by arm, the baseline first."""

    base: str
    configs: dict
    seeds: list
    metric: str
    rule: str

    @property
    def runs(self):
        """Arm and seed of every run, so that pairs come early."""
        return [(arm, seed) for seed in self.seeds for arm in self.configs]

    def config_of(self, arm, seed):
        """The config of a run."""
        cfg = self.configs[arm].copy()
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)
        return cfg

    def beyond_plugins(self, arm):
        """Whether an arm changes more of the baseline than plugins."""
        both = next(iter(self.configs)), arm
        theirs, ours = (
            _essence(self.configs[name].to_dict(), 'plugins', 'custom_imports')
            for name in both
        )
        return ours != theirs


def read_plan(path, find):
    """Read a plan and check what can be checked before a training.

    Args:
        path (str): The file, a config of mmengine.
        find (callable): Turns ``base`` into the path of a config.

    Raises:
        PlanError: If a key is missing, unknown or not what it should be, an
            arm equals another one, or does not evaluate.
    """
    keys = {**DEFAULTS, **Config.fromfile(path).to_dict()}
    for key in keys:
        if key not in ALLOWED and not key.startswith('_'):
            raise PlanError(
                f'{path} has the unknown key {key!r}; a plan takes '
                f'{", ".join(ALLOWED)}, and names of its own with _ before'
            )
    for key, allowed in ALLOWED.items():
        if not _is_right(key, keys.get(key)):
            raise PlanError(
                f'{path}: {key} must be {allowed}; got {keys.get(key)!r}'
            )
    base, configs = keys['base'], {}
    for arm, changes in keys['arms'].items():
        cfg = get_config(base) if '::' in base else Config.fromfile(find(base))
        cfg.merge_from_dict(keys['options'])
        cfg.merge_from_dict(changes)
        if not cfg.get('val_dataloader') or cfg.get('val_cfg') is None:
            raise PlanError(
                f'the arm {arm!r} does not evaluate: {base} must have '
                'val_dataloader, val_cfg and val_evaluator'
            )
        for other, theirs in configs.items():
            if cfg.to_dict() == theirs.to_dict():
                raise PlanError(f'the arm {arm!r} equals {other!r}')
        configs[arm] = cfg
    return Plan(
        base, configs, list(keys['seeds']), keys['metric'], keys['rule']
    )


def hash_of(cfg):
    """12 digits that tell a run's config from others, on any machine.

    Of an absolute path, only the last part counts; ``work_dir`` does not.
    """
    essence = _essence(cfg.to_dict(), 'work_dir')
    text = json.dumps(essence, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _is_right(key, x):
    if key == 'arms':
        named = isinstance(x, dict) and len(x) > 1
        named = named and all(re.fullmatch(r'[\w.+-]+', str(k)) for k in x)
        return named and all(isinstance(arm, dict) for arm in x.values())
    if key == 'seeds':
        unique = isinstance(x, (list, tuple)) and len({*x}) == len(x) > 0
        return unique and all(type(n) is int and n >= 0 for n in x)
    if key == 'rule':
        return x in ('greater', 'less')
    return isinstance(x, dict if key == 'options' else str)


def _essence(value, *left_out):
    if isinstance(value, dict):
        return {
            str(key): _essence(item, *left_out)
            for key, item in value.items()
            if key not in left_out
        }
    if isinstance(value, (list, tuple)):
        return [_essence(item, *left_out) for item in value]
    if isinstance(value, str) and osp.isabs(value):
        return osp.basename(value.rstrip('/'))
    return value
