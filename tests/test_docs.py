"""The docs: code in them runs, links lead somewhere, tables are right."""

import re
import runpy
from importlib import import_module

import pytest
import torch
from helpers import REPO, load_script
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from dev.small_backbones import BACKBONES
from mmpsa import PSA, insert_plugins
from mmpsa.codebases.registration import WarnsOfUnusedPSA

DOCS = REPO / 'docs'
PAGES = [
    str(path.relative_to(REPO))
    for pattern in ('*.md', 'docs/*.md', 'configs/**/*.md', 'projects/**/*.md')
    for path in sorted(REPO.glob(pattern))
]
# Pages of which no block is run, and why.
NOT_RUN = {
    'docs/study.md': 'trainings of hours',
    'docs/versions.md': 'installs environments',
    'README_zh-CN.md': 'tests/test_readme.py holds it to README.md',
}
BLOCK = re.compile(r'(?ms)^ *(?:<!-- ([^\n]*) -->\n *)?```(\w+)\n(.*?)^ *```$')


def blocks(page, *languages):
    """The mark and the text of each block of code."""
    return [
        (mark, text)
        for mark, language, text in BLOCK.findall((REPO / page).read_text())
        if language in languages
    ]


def is_run_elsewhere(mark):
    """Whether a mark says that a block is not run here, and why."""
    if mark.startswith('run by '):
        assert (REPO / mark[7:]).is_file(), mark
        return True
    return bool(re.fullmatch('not run: .{5,}', mark))


@pytest.mark.parametrize(
    'page',
    [page for page in PAGES if page not in NOT_RUN and blocks(page, 'python')],
)
def test_python_runs(page, tmp_path, monkeypatch):
    """Each block after those before it; a config's model is built.

    A comment before a block says where it is saved for the others, or why it
    is not run here.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    namespace = {}
    for i, (mark, text) in enumerate(blocks(page, 'python')):
        if is_run_elsewhere(mark):
            continue
        name = f'config_{i}.py'
        if mark:
            assert mark.startswith('saved as '), f'{page}: {mark}'
            name = mark[9:]
        (tmp_path / name).write_text(text)
        if '_base_ =' in text:
            cfg = Config.fromfile(name)
            with DefaultScope.overwrite_default_scope(cfg.default_scope):
                MODELS.build(cfg.model)
        elif not mark:
            exec(compile(text, f'{page}, block {i}', 'exec'), namespace)


@pytest.mark.parametrize('page', PAGES)
def test_commands_exist(page):
    """Tools, targets and scripts that the docs name."""
    tools = {path.stem for path in REPO.glob('tools/**/*.py')}
    targets = re.findall(r'(?m)^([\w-]+):', (REPO / 'Makefile').read_text())
    for mark, text in blocks(page, 'bash', 'sh', 'shell', 'console'):
        assert page in NOT_RUN or is_run_elsewhere(mark), f'{page}: {text}'
    text = (REPO / page).read_text()
    code = ' '.join(re.findall(r'(?s)```.*?```|`[^`\n]+`', text))
    assert set(re.findall(r'mim run mmpsa (\w+)', code)) <= tools | {'NAME'}
    assert set(re.findall(r'[`\n]make ([a-z][\w-]*)', code)) <= {*targets}
    for path in re.findall(r'python ((?:dev|docs|tools)/\S+\.py)', code):
        assert (REPO / path).is_file(), path


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r'(?ms)^ *```.*?^ *```', '', text)
    for heading in re.findall(r'(?m)^#+ (.+)$', text):
        heading = re.sub(r'\[(.*?)\]\(.*?\)', r'\1', heading).lower()
        yield re.sub(r'[^\w -]', '', heading.strip()).replace(' ', '-')


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
    """In the repository; `make docs` checks those of the site."""
    path = REPO / page
    text = re.sub(r'(?s)```.*?```|`[^`\n]*\[[^`\n]*`', '', path.read_text())
    for link in re.findall(r'\]\(([^)\s]+)\)', text):
        if re.match(r'https?:', link):
            continue
        name, _, anchor = link.partition('#')
        target = path.parent / name if name else path
        assert target.exists(), f'{page}: {link}'
        if anchor:
            assert anchor in anchors(target.read_text()), f'{page}: {link}'


ENTRY = dict(cfg=dict(type='PSA'), position='after_conv1')


def build_mmpose(**backbone):
    with DefaultScope.overwrite_default_scope('mmpose'):
        MODELS.build(backbone)


def load_another_layout():
    weights = PSA(8).state_dict()
    PSA(8, 'sequential').load_state_dict(weights)


class Host(nn.Module):
    def __init__(self):
        super().__init__()
        self.b = nn.Sequential(nn.Conv2d(3, 8, 3))

    def forward(self, x):
        return self.b(x)


def run_at_another_width():
    host = Host()
    entry = dict(cfg=dict(type='PSA', in_channels=4), modules='b')
    insert_plugins(host, [entry])
    host(torch.rand(1, 3, 9, 9))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        return self.norm(x)


RESNET = dict(type='ResNet', depth=18)
PSA_CFG = dict(type='PSA')
WRONG = [
    lambda: PSA(64)(torch.rand(1, 32, 8, 8)),
    run_at_another_width,
    lambda: build_mmpose(type='VGG', depth=16, plugins=[ENTRY]),
    lambda: build_mmpose(**RESNET, plugins=[dict(ENTRY, stages=(True,))]),
    lambda: build_mmpose(**RESNET, plugins=[ENTRY, ENTRY]),
    load_another_layout,
    lambda: build_mmpose(
        **RESNET, plugins=[dict(type='PSA', position='after_conv1')]
    ),
    lambda: build_mmpose(
        **RESNET, plugins=[dict(ENTRY, cfg=dict(type='MyAttention'))]
    ),
    lambda: build_mmpose(
        **RESNET, plugins=[dict(ENTRY, cfg=dict(PSA_CFG, ratio=16))]
    ),
    lambda: build_mmpose(
        **RESNET, plugins=[dict(cfg=PSA_CFG, modules='layers.*')]
    ),
    lambda: insert_plugins(Tokens(), [dict(cfg=PSA_CFG, modules='norm')]),
]


@pytest.mark.parametrize('call', WRONG)
def test_faq_has_our_errors_as_they_read(call):
    """A heading may leave out parts of the message: …"""
    headings = re.findall(r'(?m)^### `(.*)`$', (DOCS / 'faq.md').read_text())
    with pytest.raises(ValueError) as error:
        call()
    assert any(
        re.search(
            '.*'.join(map(re.escape, heading.split('…'))), str(error.value)
        )
        for heading in headings
    ), error.value


def test_the_table_of_starts_is_what_its_command_writes():
    start = load_script('docs/start.py')
    page = (DOCS / 'psa.md').read_text()
    assert start.write(page, start.table()) == page


@pytest.mark.parametrize('codebase', BACKBONES)
class TestTableOfBackbones:
    def test_has_every_registered_backbone(self, codebase):
        pytest.importorskip(codebase)
        registered = {
            name
            for name, cls in vars(
                import_module(f'mmpsa.codebases.{codebase}')
            ).items()
            if isinstance(cls, type)
            and issubclass(cls, WarnsOfUnusedPSA)
            and cls.plugin_positions
        }
        listed = {cfg['type'] for cfg in BACKBONES[codebase].values()}
        assert listed == registered

    @pytest.mark.slow
    def test_is_up_to_date(self, codebase):
        """After a change of it: python docs/backbones.py"""
        pytest.importorskip(codebase)
        section = runpy.run_path(str(DOCS / 'backbones.py'))['section']
        assert section(codebase) in (DOCS / 'backbones.md').read_text()
