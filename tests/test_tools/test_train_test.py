"""What the options of train.py and test.py do to the config."""

import json
import sys
from pathlib import Path

import mmengine.device
import pytest
from helpers import run_script
from mmengine.runner import Runner

METRICS = {'bbox/NME': 0.25}
CONFIG = """
default_hooks = dict(visualization=dict(type='{}VisualizationHook'))
visualizer = dict(type='Visualizer')
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
auto_scale_lr = dict(base_batch_size=8)
val_cfg = dict()
val_dataloader = dict(batch_size=2)
val_evaluator = dict(type='NME')
test_evaluator = dict(type='NME')
"""


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a script as from the command line, give the runner's config."""
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.chdir(tmp_path)

    def run(script, *options, codebase='Pose', config=CONFIG):
        Path('some_config.py').write_text(config.format(codebase))
        configs = []

        class FakeRunner:
            def __init__(self, cfg):
                configs.append(cfg)

            def train(self):
                assert script == 'train.py'

            def test(self):
                assert script == 'test.py'
                return METRICS

        monkeypatch.setattr(Runner, 'from_cfg', FakeRunner)
        run_script(f'tools/{script}', 'some_config.py', *options)
        return configs[0]

    return run


def test_train_defaults(run):
    cfg = run('train.py')
    assert cfg.work_dir == 'work_dirs/some_config'
    assert cfg.launcher == 'none'
    assert 'resume' not in cfg
    assert 'type' not in cfg.optim_wrapper
    assert 'enable' not in cfg.auto_scale_lr
    assert cfg.val_dataloader == dict(batch_size=2)


def test_common_options(run, monkeypatch):
    monkeypatch.setattr(mmengine.device, 'get_device', lambda: 'cuda')
    for script, positional in (('train.py', ()), ('test.py', ('x.pth',))):
        cfg = run(
            script,
            *positional,
            '--launcher=pytorch',
            '--work-dir=there',
            '--cfg-options',
            'val_dataloader.batch_size=4',
            'optim_wrapper.optimizer.betas=(0.9,0.99)',
        )
        assert cfg.launcher == 'pytorch'
        assert cfg.work_dir == 'there'
        assert cfg.val_dataloader.batch_size == 4
        assert cfg.optim_wrapper.optimizer.betas == (0.9, 0.99)


def test_options_reach_into_plugins(run):
    """By the number of an entry that the config has; None takes all away."""
    plugins = 'model.backbone.plugins'
    config = (
        CONFIG + "model = dict(backbone=dict(plugins=[dict(cfg=dict(type='PSA'"
        "), stages=(True, True), position='after_conv1')]))"
    )
    cfg = run(
        'train.py',
        '--cfg-options',
        f'{plugins}.0.cfg.layout=sequential',
        f'{plugins}.0.stages=(False,True)',
        config=config,
    )
    (entry,) = cfg.model.backbone.plugins
    assert entry.cfg == dict(type='PSA', layout='sequential')
    assert entry.stages == (False, True)
    assert entry.position == 'after_conv1'
    options = '--cfg-options', f'{plugins}=None'
    cfg = run('train.py', *options, config=config)
    assert cfg.model.backbone.plugins is None
    with pytest.raises(KeyError, match='Index 1 exceeds'):
        options = '--cfg-options', f'{plugins}.1.position=output'
        run('train.py', *options, config=config)


@pytest.mark.parametrize('launcher', ['pytorch', 'slurm', 'mpi'])
def test_launcher_without_a_gpu(run, capsys, monkeypatch, launcher):
    monkeypatch.setattr(mmengine.device, 'get_device', lambda: 'cpu')
    with pytest.raises(SystemExit):
        run('train.py', f'--launcher={launcher}')
    last = capsys.readouterr().err.splitlines()[-1]
    assert f'--launcher {launcher} needs a GPU for each process' in last


@pytest.mark.parametrize('script', ['train.py', 'test.py'])
def test_configs_need_no_custom_imports(run, monkeypatch, script):
    """The script itself imports mmpsa, and so fails without it."""
    monkeypatch.setitem(sys.modules, 'mmpsa', None)
    with pytest.raises(ImportError, match='mmpsa'):
        run(script, *(['x.pth'] if script == 'test.py' else []))


def test_resume(run):
    cfg = run('train.py', '--resume')
    assert cfg.resume and cfg.load_from is None
    cfg = run('train.py', '--resume', 'epoch_3.pth')
    assert cfg.resume and cfg.load_from == 'epoch_3.pth'


def test_train_switches(run):
    cfg = run('train.py', '--amp', '--auto-scale-lr', '--no-validate')
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.loss_scale == 'dynamic'
    assert cfg.auto_scale_lr == dict(base_batch_size=8, enable=True)
    assert cfg.val_cfg is cfg.val_dataloader is cfg.val_evaluator is None


def test_amp_refuses_other_wrappers(run):
    with pytest.raises(ValueError, match='AmpOptimWrapper.*ApexOptim'):
        run(
            'train.py',
            '--amp',
            '--cfg-options',
            'optim_wrapper.type=ApexOptimWrapper',
        )


def test_metrics_and_predictions_are_saved(run):
    cfg = run('test.py', 'x.pth', '--out', 'm.json', '--dump', 'p.pkl')
    assert cfg.load_from == 'x.pth'
    assert json.loads(Path('m.json').read_text()) == METRICS
    assert cfg.test_evaluator == [
        dict(type='NME'),
        dict(type='DumpResults', out_file_path='p.pkl'),
    ]


def test_show_dir(run, tmp_path):
    cfg = run('test.py', 'x.pth', '--show-dir', 'vis')
    hook = cfg.default_hooks.visualization
    assert hook.enable and hook.out_dir == str(tmp_path / 'vis')
    cfg = run('test.py', 'x.pth', '--show-dir', 'vis', codebase='Seg')
    assert cfg.default_hooks.visualization.draw
    assert cfg.visualizer.save_dir == 'vis'
    with pytest.raises(ValueError, match='--show-dir needs'):
        run('test.py', 'x.pth', '--show-dir', 'vis', codebase='Det')
