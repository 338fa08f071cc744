"""Plans: what they make of a config, and what they refuse; hashes."""

import copy
from pathlib import Path

import pytest
from helpers import REPO
from mmengine.config import Config
from toy_plan import PSA, WIDE

from mmpsa.compare.plan import PlanError, hash_of


def test_configs_of_runs(plan):
    found = plan(_own='3', options="{'optim_wrapper.optimizer.lr': 0.3}")
    assert found.runs == [('none', 0), ('psa', 0), ('none', 1), ('psa', 1)]
    none, psa = (found.config_of(arm, 1) for arm in ('none', 'psa'))
    assert none.randomness == psa.randomness == dict(seed=1)
    assert none.optim_wrapper.optimizer == dict(type='SGD', lr=0.3)
    assert psa.optim_wrapper == none.optim_wrapper
    assert 'plugins' not in none.model.backbone
    assert psa.model.backbone.plugins[0].modules == 'conv'
    assert found.config_of('none', 0).randomness.seed == 0
    assert (found.metric, found.rule) == ('score', 'greater')


def test_what_else_randomness_says_stays(plan):
    found = plan(options='dict(randomness=dict(seed=5, deterministic=True))')
    expected = dict(seed=1, deterministic=True)
    assert found.config_of('none', 1).randomness == expected


def test_base_of_a_codebase(plan):
    pytest.importorskip('mmpose')
    name = 'body_2d_keypoint/topdown_heatmap/coco/'
    name += 'td-hm_hrnet-w32_8xb64-210e_coco-256x192.py'
    arm = 'dict(model=dict(backbone=dict(plugins=[])))'
    found = plan(
        base=repr(f'mmpose::{name}'), arms=f'dict(none={{}}, psa={arm})'
    )
    assert found.config_of('none', 0).model.backbone.type == 'HRNet'


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(seeds=None), 'seeds must be .*; got None'),
        (dict(seed='1'), "unknown key 'seed'; a plan takes base, .* with _"),
        (dict(base='3'), 'base must be a path'),
        (dict(arms='dict(none=dict())'), 'arms must be a dict of two'),
        (dict(arms='[dict(), dict()]'), 'arms must be a dict of two'),
        (dict(arms="{'a/b': {}, 'c': {}}"), "named by letters.*'a/b'"),
        (dict(seeds='[]'), 'seeds must be a list of different'),
        (dict(seeds='[0, 0]'), 'seeds must be a list of different'),
        (dict(seeds='[True]'), 'seeds must be a list of different'),
        (dict(metric='None'), 'metric must be a name'),
        (dict(options='3'), 'options must be a dict'),
        (dict(rule="'more'"), "rule must be 'greater' or 'less'"),
        (
            dict(arms=f'dict(none=dict(), psa={PSA}, also={PSA})'),
            "the arm 'also' equals 'psa'",
        ),
        (
            dict(arms="dict(none={}, same=dict(model=dict(type='ToyModel')))"),
            "the arm 'same' equals 'none'",
        ),
        (dict(options='dict(val_cfg=None)'), "'none' does not evaluate"),
        (dict(options='dict(val_evaluator=None)'), 'does not evaluate'),
        (dict(seeds='[[0], [1]]'), 'seeds must be a list of different'),
        (dict(arms='{8: {}, 16: {}}'), 'arms must be a dict of two'),
        (dict(arms='{'), 'plan.py is no plan: '),
        (
            dict(options="{'train_cfg.max_iters.x': 3}"),
            "plan.py: the arm 'none' does not fit .*toy_base.py: ",
        ),
        (
            dict(arms='dict(none={}, psa=dict(mdoel=3))'),
            "the arm 'psa' has 'mdoel', .* names like it: model",
        ),
        (dict(options='dict(train_cgf=3)'), "options has 'train_cgf', "),
        (dict(options='{1: 2}'), 'options has 1, which is no setting'),
        (
            dict(base="'mmnothing::a/b.py'"),
            'needs mmnothing: mim install mmnothing',
        ),
        (dict(base="'mmpose::nope.py'"), 'mmpose::nope.py cannot be read: '),
    ],
)
def test_refused(plan, changes, message):
    with pytest.raises(PlanError, match=message):
        plan(**changes)


def test_arms_that_change_more_than_plugins(plan):
    own = "custom_imports=dict(imports=['toy_experiment', 'os'])"
    arms = f'none={{}}, psa=dict({PSA}, {own}), wide={WIDE}'
    found = plan(arms=f'dict({arms})')
    assert not found.beyond_plugins('psa')
    assert found.beyond_plugins('wide')
    assert not any(map(found.other_data, ('psa', 'wide')))


def test_arms_that_change_the_data(plan):
    arms = 'none={}, small=dict(train_dataloader=dict(batch_size=1))'
    assert plan(arms=f'dict({arms})').other_data('small')


class TestHash:
    cfg = Config.fromfile(
        REPO / 'configs/pose/lspet/td-hm_lite0-fpn_1xb32-2e_lspet-128x96.py'
    )

    def changed(self, **changes):
        cfg = copy.deepcopy(self.cfg)
        cfg.merge_from_dict(changes)
        return cfg

    def test_same_on_another_machine(self):
        """Its ``metainfo.from_file`` is the absolute path of a file here."""
        key = 'train_dataloader.dataset.metainfo.from_file'
        assert Path(self.cfg.train_dataloader.dataset.metainfo.from_file)
        there = self.changed(**{key: '/home/other/configs/lspet.py'})
        there.work_dir = 'somewhere'
        assert hash_of(there) == hash_of(self.cfg)
        other = self.changed(**{key: '/home/other/configs/coco.py'})
        assert hash_of(other) != hash_of(self.cfg)

    @pytest.mark.parametrize(
        'changes',
        [
            {'randomness': dict(seed=1)},
            {'optim_wrapper.optimizer.lr': 1e-3},
            {'load_from': 'some.pth'},
            {'train_dataloader.dataset.data_root': 'data/other/'},
        ],
    )
    def test_another_config(self, changes):
        assert hash_of(self.changed(**changes)) != hash_of(self.cfg)

    def test_order_of_keys(self):
        cfg = Config(dict(a=1, b=dict(c=(1, 2), d=None)))
        same = Config(dict(b=dict(d=None, c=[1, 2]), a=1))
        assert hash_of(cfg) == hash_of(same)
