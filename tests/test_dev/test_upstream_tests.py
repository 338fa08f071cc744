"""Upstream's tests, run twice: on a small source tree made here."""

import pytest
from helpers import load_script

upstream_tests = load_script('dev/upstream_tests.py')

# As upstream's tests import them, and a subclass that names its base.
BACKBONES = """
import pytest
from mmpose.models.backbones import HRNet, ResNet
from mmpose.models.backbones.resnet import ResNet as FromModule, ResNetV1d
from mmpose.models.heads import HeatmapHead


def test_builds():
    assert len(ResNet(18).res_layers) == len(ResNetV1d(depth=50).res_layers)


def test_takes_no_plugins():
    assert ResNet is FromModule
    for cls in (ResNet, ResNetV1d):
        with pytest.raises(TypeError):
            cls(depth=50, plugins=[])
    with pytest.raises(TypeError):
        HRNet(dict(), plugins=[])


def test_head_takes_no_plugins():
    with pytest.raises(TypeError):
        HeatmapHead(8, 8, deconv_out_channels=None, plugins=[])


@pytest.mark.parametrize('word', ['a', 'b'])
def test_fails(word):
    raise KeyError(word)


def test_skipped():
    pytest.skip('no GPU')
"""


@pytest.fixture
def tree(tmp_path):
    tests = tmp_path / 'tree' / upstream_tests.TESTS
    tests.mkdir(parents=True)
    (tests / 'test_backbones.py').write_text(BACKBONES)
    # Its settings are not to be followed.
    (tmp_path / 'tree/pytest.ini').write_text('[pytest]\naddopts = --none')
    return tmp_path / 'tree'


@pytest.mark.slow
def test_says_what_differs(tree, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('PYTEST_XDIST_AUTO_NUM_WORKERS', '0')
    assert upstream_tests.test('mmpose', tree, tmp_path) == 2
    told = capsys.readouterr().out
    assert 'without mmpsa: 2 failed, 3 passed, 1 skipped' in told
    assert 'with mmpsa: 4 failed, 1 passed, 1 skipped' in told
    name = 'tests.test_models.test_backbones::test'
    assert '2 fail alike without and with' in told
    assert f"    {name}_fails[a]: KeyError: 'a'" in told
    assert '2 differ' in told
    for differing in ('takes_no_plugins', 'head_takes_no_plugins'):
        assert f'    {name}_{differing}, without: passed' in told
        assert f'    {name}_{differing}, with: Failed: DID NOT RAISE' in told


def test_compares_kinds_of_failures():
    before = dict(a='KeyError: 1', b='OSError: 1', c='passed', d='skipped')
    after = dict(a='KeyError: 2', b='ValueError: 1', c='passed', e='skipped')
    lines, differing = upstream_tests.compare(before, after)
    assert differing == 3
    assert lines[-6:] == [
        '    b, without: OSError: 1',
        '    b, with: ValueError: 1',
        '    d, without: skipped',
        '    d, with: absent',
        '    e, without: absent',
        '    e, with: skipped',
    ]


def test_what_is_meant_to_differ_is_counted_apart(monkeypatch):
    monkeypatch.setattr(
        upstream_tests, 'MEANT_TO_DIFFER', {'a': 'the reason', 'b': 'unused'}
    )
    before, after = dict(a='passed', b='passed'), dict(a='Failed', b='passed')
    lines, differing = upstream_tests.compare(before, after)
    assert differing == 0
    assert lines[-3:] == [
        '1 differ as they are meant to',
        '    a: the reason',
        '0 differ',
    ]
