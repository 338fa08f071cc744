"""A plan: a config, its arms and seeds, and the metric that decides."""

import hashlib
import json
import os.path as osp
import re
from difflib import get_close_matches
from importlib.util import find_spec
from inspect import signature
from typing import NamedTuple

from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.runner import Runner

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
DATA = 'train_dataloader', 'val_dataloader', 'val_evaluator', 'train_cfg'


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

    def other_data(self, arm):
        """Whether an arm changes what is read, how often, or scored."""
        theirs, ours = (
            [_essence(self.configs[name].get(key)) for key in DATA]
            for name in (next(iter(self.configs)), arm)
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
    keys = {**DEFAULTS, **_read(Config.fromfile, path, 'is no plan').to_dict()}
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
        cfg = _base(base, find)
        _check_settings(path, keys['options'], cfg, 'options')
        _check_settings(path, changes, cfg, f'the arm {arm!r}')
        try:
            cfg.merge_from_dict(keys['options'])
            cfg.merge_from_dict(changes)
        except Exception as error:
            raise PlanError(
                f'{path}: the arm {arm!r} does not fit {base}: {error!r}'
            ) from error
        if not (cfg.get('val_dataloader') and cfg.get('val_evaluator')) or (
            cfg.get('val_cfg') is None
        ):
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


def _read(read, source, fault='cannot be read'):
    try:
        return read(source)
    except OSError:
        raise
    except Exception as error:
        raise PlanError(f'{source} {fault}: {error}') from error


def _base(base, find):
    if '::' not in base:
        return _read(Config.fromfile, find(base))
    package, _ = base.split('::', 1)
    if find_spec(package) is None:  # mmengine would install it
        raise PlanError(f'{base} needs {package}: mim install {package}')
    return _read(get_config, base)


def _check_settings(path, settings, cfg, where):
    """Refuse a misspelt key, which mmengine would leave alone."""
    known = {*cfg, *signature(Runner.__init__).parameters, 'custom_imports'}
    for key in settings:
        if str(key).split('.')[0] not in known:
            near = ', '.join(get_close_matches(str(key), known, 3)) or 'none'
            raise PlanError(
                f'{path}: {where} has {key!r}, which is no setting of the '
                f'base or of a runner; names like it: {near}'
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
        named = named and all(isinstance(k, str) for k in x)
        named = named and all(re.fullmatch(r'[\w.+-]+', k) for k in x)
        return named and all(isinstance(arm, dict) for arm in x.values())
    if key == 'seeds':
        right = isinstance(x, (list, tuple)) and all(
            type(n) is int and n >= 0 for n in x
        )
        return right and len({*x}) == len(x) > 0
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
