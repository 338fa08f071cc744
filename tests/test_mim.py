"""What mim does with mmpsa: launches, searches, downloads."""

import sys
from importlib import import_module
from pathlib import Path

import click
import mmengine.device
import pytest
import torch
import torch._dynamo  # before mim: pip, which it imports, changes typing
from helpers import REPO, run_script, serve
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader

from mmpsa.zoo import content_hash

import_module('mim_or_skip')

NAME = 'fcn_r18-w32_1xb16-250_figures-128x128_psa-s'
CONFIG = f'configs/quickstart/{NAME}.py'


def mim(command, *arguments):
    """Run a command of mim as from the command line."""
    cli = import_module(f'mim.commands.{command}').cli
    cli.main(['mmpsa', *arguments], standalone_mode=False)


class Stub:
    """In place of the runner."""

    def train(self):
        pass

    test = train


LAUNCHERS = {
    'none': ('', f'{sys.executable} '),
    'pytorch': (
        '--gpus 8 --launcher pytorch',
        f'{sys.executable} -m torch.distributed.launch --nproc_per_node=8 '
        '--master_port=29000 ',
    ),
    'slurm': (
        '--gpus 16 --gpus-per-node 8 --launcher slurm --partition some',
        'srun -p some --gres=gpu:8 --ntasks=16 --ntasks-per-node=8 '
        '--cpus-per-task=2 --kill-on-bad-exit=1 '
        f'--job-name={NAME}_COMMAND {sys.executable} -u ',
    ),
}


@pytest.mark.parametrize('launcher', LAUNCHERS)
@pytest.mark.parametrize('command', ['train', 'test'])
def test_launch(command, launcher, tmp_path, monkeypatch):
    """What mim runs is the launcher and our script, which reads the rest."""
    launched = []

    def check_call(cmd, env):
        assert env['MASTER_PORT'] == '29000'
        launched.append(cmd)
        return 0

    monkeypatch.chdir(tmp_path)  # mim is to find the config by its name
    with monkeypatch.context() as patch:
        module = import_module(f'mim.commands.{command}')
        patch.setattr(module.subprocess, 'check_call', check_call)
        options, start = LAUNCHERS[launcher]
        if command == 'test':
            options += ' --checkpoint mmpsa://some-name'
        options += ' --port 29000 --work-dir some-dir'
        mim(command, Path(CONFIG).name, *options.split())
    (cmd,) = launched
    begin = start.replace('COMMAND', command).split()
    assert cmd[: len(begin)] == begin
    script, *arguments = cmd[len(begin) :]
    assert Path(script).samefile(REPO / f'tools/{command}.py')
    if launcher == 'pytorch':
        # torch's launcher puts this before a script's own
        arguments.insert(0, '--local-rank=0')

    configs = []
    monkeypatch.setattr(
        Runner, 'from_cfg', lambda cfg: configs.append(cfg) or Stub()
    )
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.setattr(mmengine.device, 'get_device', lambda: 'cuda')
    run_script(script, *arguments)
    (cfg,) = configs
    assert Path(cfg.filename).samefile(REPO / CONFIG)
    assert cfg.launcher == launcher
    assert cfg.work_dir == 'some-dir'
    if command == 'test':
        assert cfg.load_from == 'mmpsa://some-name'


TOOLS = [
    path.relative_to(REPO)
    for path in sorted((REPO / 'tools').rglob('*.py'))
    if '__main__' in path.read_text()
]


@pytest.mark.parametrize('tool', TOOLS, ids=[tool.stem for tool in TOOLS])
def test_run(tool, monkeypatch, capsys):
    """Every tool runs by its name; ``-- -h`` shows what it takes.

    ``mim run mmpsa NAME -h`` does not: mim knows its own packages alone.
    """
    launched = []
    with monkeypatch.context() as patch:
        module = import_module('mim.commands.run')
        patch.setattr(
            module.subprocess,
            'check_call',
            lambda cmd, env: launched.append(cmd) or 0,
        )
        mim('run', tool.stem, '--', '-h')
    ((python, script, *arguments),) = launched
    assert python == sys.executable
    assert Path(script).samefile(REPO / tool)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run_script(script, *arguments)
    assert not stopped.value.code
    assert capsys.readouterr().out.startswith(f'usage: {tool.name}')


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """Let mim see a package whose index has one model; set its weights."""
    files = tmp_path / 'mmpsa/.mim'
    files.mkdir(parents=True)
    (files / 'configs').symlink_to(REPO / 'configs')
    (files / 'model-index.yml').write_text('Import: [metafile.yml]')
    for command in ('search', 'download'):
        monkeypatch.setattr(
            import_module(f'mim.commands.{command}'),
            'get_installed_path',
            lambda package: str(files.parent),
        )

    def listed(weights=None):
        lines = [
            'Collections: [{Name: PSA}]',
            'Models:',
            f'- Name: {NAME}',
            '  In Collection: PSA',
            f'  Config: {CONFIG}',
            '  Metadata: {FLOPs (G): 2.5}',
            '  Results:',
            '  - Task: Semantic Segmentation',
            '    Dataset: figures',
            '    Metrics: {mIoU: 43.2}',
        ]
        if weights is not None:
            lines.append(f'  Weights: {weights}')
        (files / 'metafile.yml').write_text('\n'.join(lines))

    return listed


def test_search_lists_the_fields(listed, monkeypatch):
    listed('mmpsa://some-name')
    shown = []
    monkeypatch.setattr(
        click, 'echo_via_pager', lambda pages: shown.extend(pages)
    )
    mim('search', '--config', NAME)
    (text,) = shown
    fields = dict(line.split(maxsplit=1) for line in text.splitlines()[2:])
    assert fields['flops(G)'] == '2.5'
    assert fields['figures/miou'] == '43.2'
    assert fields['weight'] == 'mmpsa://some-name'
    assert fields['model'] == 'psa'


def test_download(listed, tmp_path, monkeypatch):
    """What mim downloads is what mmpsa:// loads."""
    source, target = tmp_path / 'source', tmp_path / 'target'
    source.mkdir()
    torch.save(dict(meta={}, state_dict=dict(x=torch.ones(1))), source / 'x')
    data = (source / 'x').read_bytes()
    name = f'some-name-{content_hash(data)}.pth'
    (source / 'x').rename(source / name)
    with serve(source) as url:
        listed(f'{url}/{name}')
        mim('download', '--config', NAME, '--dest', str(target))
    assert (target / name).read_bytes() == data
    monkeypatch.setenv('MMPSA_ZOO', str(target))
    loaded = CheckpointLoader.load_checkpoint('mmpsa://some-name')
    assert loaded['state_dict']['x'] == 1
    dumped = Config.fromfile(target / f'{NAME}.py')
    assert dumped.model == Config.fromfile(REPO / CONFIG).model


def test_download_of_what_has_no_host(listed, tmp_path):
    """It says where to look, and leaves nothing behind."""
    listed('mmpsa://some-name')
    with pytest.raises(Exception) as error:
        mim('download', '--config', NAME, '--dest', str(tmp_path / 'target'))
    assert "'mmpsa://some-name'" in str(error.value.__context__)
    assert not any((tmp_path / 'target').iterdir())
    listed()
    with pytest.raises(ValueError, match="Expected fields:.*{'weight'}"):
        mim('download', '--config', NAME, '--dest', str(tmp_path / 'target'))
