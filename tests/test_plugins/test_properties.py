"""Whatever is combined with a plugin: it is built, trained, saved, copied."""

import copy
import inspect

import pytest
import torch
from helpers import EVERY, build, draw_weights, images
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.model import revert_sync_batchnorm

from mmpsa.plugins.sites import SiteFinder
from mmpsa.plugins.validation import POSITIONS

# The others take seconds.
QUICK = [
    (codebase, name)
    for codebase, name in EVERY
    if name.startswith(('CSP', 'HRNet', 'ResNe', 'SE'))
    or name
    in ('DDRNet', 'MobileNetV2', 'RSN', 'ShuffleNetV2', 'ViPNAS_ResNet')
]
KINDS = [
    dict(type='ContextBlock', ratio=0.5),
    dict(type='Probe'),
    dict(type='PSA', layout='parallel'),
    dict(type='PSA', layout='sequential', identity_init=True),
    dict(type='PSA', layout='channel'),
    dict(type='PSA', layout='spatial'),
    dict(type='PSA', layout='parallel', variant='official'),
    dict(type='PSA', layout='sequential', variant='official'),
]
OPTIONS = dict(
    with_cp=[False, True],
    frozen_stages=[-1, 1, 2],
    norm_cfg=[
        dict(type='BN'),
        dict(type='SyncBN'),
        dict(type='GN', num_groups=2),
    ],
)


@st.composite
def cases(draw):
    """A backbone, its options, and an entry at some of its stages."""
    codebase, name = draw(st.sampled_from(QUICK))
    plain = build(codebase, name)
    accepted = {
        argument
        for cls in type(plain).__mro__
        for argument in inspect.signature(cls.__init__).parameters
    }
    options = {
        key: draw(st.sampled_from(values))
        for key, values in OPTIONS.items()
        if key in accepted
    }
    found = {
        position: SiteFinder(plain).find_by_stage(position)
        for position in POSITIONS
    }
    position = draw(
        st.sampled_from(
            sorted(
                p
                for p, stages in found.items()
                if any(s.sites for s in stages)
            )
        )
    )
    taken = [bool(stage.sites) for stage in found[position]]
    stages = [flag and draw(st.booleans()) for flag in taken]
    if not any(stages):
        stages = taken
    sites = [
        site
        for flag, stage in zip(stages, found[position])
        if flag
        for site in stage.sites
    ]
    # the authors' sequential form, the last, has a least width
    narrow = min(site.in_channels for site in sites) < 8
    cfg = draw(st.sampled_from(KINDS[:-1] if narrow else KINDS))
    entry = dict(cfg=cfg, position=position, stages=stages)
    return codebase, name, options, entry, [site.path for site in sites]


def flat(output):
    if torch.is_tensor(output):
        return [output]
    return [y for part in output for y in flat(part)]


@pytest.mark.slow
@settings(max_examples=30, derandomize=True, deadline=None, database=None)
@given(cases())
def test_any_combination(case):
    codebase, name, options, entry, paths = case
    torch.manual_seed(0)
    backbone = build(codebase, name, plugins=[entry], **options)
    # as a runner does where there is one process
    backbone = revert_sync_batchnorm(backbone)
    backbone.init_weights()
    draw_weights(backbone)
    modules = dict(backbone.named_modules())
    plugins = {}
    for path in paths:
        for child, module in modules[path].named_children():
            if child in ('context_block', 'probe', 'psa'):
                plugins[f'{path}.{child}'] = module
    assert len(plugins) == len(paths)

    x = images().requires_grad_()
    backbone.train()
    sum(y.square().mean() for y in flat(backbone(x))).backward()
    for path, plugin in plugins.items():
        for key, p in plugin.named_parameters():
            if p.requires_grad:
                assert p.grad is not None and p.grad.isfinite().all(), path
            else:
                assert options.get('frozen_stages', -1) > 0, path
                assert not plugin.training, path
            assert f'{path}.{key}' in backbone.state_dict()

    backbone.eval()
    expected = flat(backbone(x))
    fresh = revert_sync_batchnorm(
        build(codebase, name, plugins=[entry], **options)
    )
    fresh.load_state_dict(backbone.state_dict())
    fresh.eval()
    clone = copy.deepcopy(backbone)
    for a, b, c in zip(flat(fresh(x)), flat(clone(x)), expected):
        assert torch.equal(a, c) and torch.equal(b, c)
    for path in plugins:
        for p in clone.get_submodule(path).parameters():
            torch.nn.init.constant_(p, 0.3)
    clone(x)
    for a, b in zip(flat(backbone(x)), expected):
        assert torch.equal(a, b)
