"""A plan: a config, its arms and seeds, and the metric that decides."""

import hashlib
import json
import os.path as osp
import re
from typing import NamedTuple

from mmengine.config import Config
from mmengine.hub import get_config

REQUIRED = ('base', 'arms', 'seeds', 'metric')
OPTIONAL = dict(options={}, rule='greater')
# Of an arm that changes plugins alone, nothing else differs.
OF_PLUGINS = ('plugins', 'custom_imports')


class PlanError(ValueError):
    """A plan that cannot be carried out, with the remedy."""


class Plan(NamedTuple):
    """What is compared.

    Attributes:
        base (str): The config that all arms start from.
        configs (dict[str, mmengine.Config]): Of each arm, the baseline first.
        seeds (list[int]): Of every arm.
        metric (str): Its name in the log.
        rule (str): Whether ``'greater'`` or ``'less'`` is better.
    """

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

    def goes_beyond_plugins(self, arm):
        """Whether an arm changes more of the baseline than plugins."""
        ours, theirs = (
            _without(OF_PLUGINS, self.configs[name].to_dict())
            for name in (arm, next(iter(self.configs)))
        )
        return ours != theirs


def read_plan(path, find):
    """Read a plan and check what can be checked before a training.

    Args:
        path (str): The file, a config of mmengine.
        find (callable): Turns ``base`` into the path of a config.

    Returns:
        Plan: The plan.

    Raises:
        PlanError: If a key is missing, unknown or not what it should be, an
            arm equals another one, or the base does not evaluate.
    """
    keys = Config.fromfile(path).to_dict()
    for key in REQUIRED:
        if key not in keys:
            raise PlanError(
                f'{path} must have {", ".join(REQUIRED)}: no {key}'
            )
    for key in keys.keys() - {*REQUIRED, *OPTIONAL}:
        if not key.startswith('_'):
            raise PlanError(
                f'{path} has the unknown key {key!r}; a plan takes '
                f'{", ".join((*REQUIRED, *OPTIONAL))}. Settings of all arms '
                'belong into options; begin a name of your own with _'
            )
    base, arms, seeds, metric, options, rule = (
        keys.get(key, OPTIONAL.get(key)) for key in (*REQUIRED, *OPTIONAL)
    )
    _check('base', base, isinstance(base, str), "a path, or 'mmpose::…'")
    _check(
        'arms',
        arms,
        isinstance(arms, dict)
        and len(arms) > 1
        and all(isinstance(arm, dict) for arm in arms.values()),
        'a dict of two dicts or more, the baseline first',
    )
    for name in arms:
        _check(
            'the name of an arm',
            name,
            re.fullmatch(r'[\w.+-]+', name),
            'letters, digits and . + - _, because it names a folder',
        )
    _check(
        'seeds',
        seeds,
        isinstance(seeds, (list, tuple))
        and len({*seeds}) == len(seeds) > 0
        and all(type(seed) is int and seed >= 0 for seed in seeds),
        'a list of different integers from 0',
    )
    _check('metric', metric, isinstance(metric, str), "a name, as 'coco/AP'")
    _check('options', options, isinstance(options, dict), 'a dict')
    _check('rule', rule, rule in ('greater', 'less'), "'greater' or 'less'")
    configs = {}
    for arm, changes in arms.items():
        cfg = get_config(base) if '::' in base else Config.fromfile(find(base))
        cfg.merge_from_dict(options)
        cfg.merge_from_dict(changes)
        if cfg.get('val_dataloader') is None or cfg.get('val_cfg') is None:
            raise PlanError(
                f'the arm {arm!r} does not evaluate: {base} must have '
                'val_dataloader, val_cfg and val_evaluator'
            )
        for other, theirs in configs.items():
            if cfg.to_dict() == theirs.to_dict():
                raise PlanError(
                    f'the arm {arm!r} equals {other!r}: nothing that it says '
                    f'differs from {base} with the options'
                )
        configs[arm] = cfg
    return Plan(base, configs, list(seeds), metric, rule)


def hash_of(cfg):
    """What tells a run's config from others, on any machine.

    Of an absolute path, only the last part counts; ``work_dir`` does not.

    Args:
        cfg (mmengine.Config): The config.

    Returns:
        str: 12 hexadecimal digits.
    """
    content = _without(('work_dir',), cfg.to_dict())
    text = json.dumps(_relative(content), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _check(what, given, is_right, allowed):
    if not is_right:
        raise PlanError(f'{what} must be {allowed}; got {given!r}')


def _without(keys, value):
    if isinstance(value, dict):
        return {
            k: _without(keys, v) for k, v in value.items() if k not in keys
        }
    if isinstance(value, (list, tuple)):
        return [_without(keys, item) for item in value]
    return value


def _relative(value):
    if isinstance(value, dict):
        return {str(k): _relative(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_relative(item) for item in value]
    if isinstance(value, str) and osp.isabs(value):
        return osp.basename(value.rstrip('/'))
    return value
