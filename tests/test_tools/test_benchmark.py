"""What the benchmark makes of its measurements, whatever they are."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from mmcv.cnn import build_plugin_layer

from mmpsa.ops import BACKENDS, choose_backend, operator

REPO = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location(
    'benchmark', REPO / 'tools/benchmark.py'
)
benchmark = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)

SHAPE = 1, 16, 4, 6
POSE = 'configs/quickstart/td-hm_res18-w32_1xb16-5e_figures-64x64.py'
SEG = 'configs/quickstart/fcn_r18-w32_1xb16-250_figures-128x128.py'


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(benchmark, 'ROUNDS', (2, 2))
    monkeypatch.setattr(benchmark, 'INPUT_BYTES', 0)
    batch = {'mmpose': 2, 'mmseg': 2}
    monkeypatch.setattr(benchmark, 'BATCH', {'cpu': batch})


def module_of(cfg):
    return build_plugin_layer(cfg, in_channels=SHAPE[1])[1]


def only(monkeypatch, *names):
    few = {name: benchmark.CONTENDERS[name] for name in names}
    monkeypatch.setattr(benchmark, 'CONTENDERS', few)
    few = {'no attention': None, 'SE': few['SE']}
    monkeypatch.setattr(benchmark, 'NETWORK_CONTENDERS', few)


def test_rows_of_blocks(monkeypatch):
    # Triton's interpreter is slow.
    monkeypatch.setattr(operator, '_INTERPRETED', False)
    cases = list(benchmark.run_blocks('small', SHAPE, 'bf16', 'cpu', 0))
    assert [rows[0]['mode'] for rows in cases] == [
        'forward',
        'forward+backward',
    ]
    for rows in cases:
        assert json.loads(json.dumps(rows))
        names = list(dict.fromkeys(row['contender'] for row in rows))
        assert names == ['floor', *benchmark.CONTENDERS]
        medians = {row['contender']: row['median'] for row in rows}
        for row in rows:
            assert row['p10'] <= row['median'] <= row['p90']
            for name in ('floor', 'SE'):
                assert row['ratio'][name] == row['median'] / medians[name]
            if row['contender'] != 'floor':
                # the result at least
                assert row['peak_bytes'] >= 2 * torch.Size(SHAPE).numel()


def test_psa_by_each_backend_that_serves(monkeypatch):
    x = torch.rand(SHAPE)
    modules, default = benchmark.blocks(x)
    for name in benchmark.PSA:
        served = {backend for other, backend in modules if other == name}
        assert default[name] in served <= set(BACKENDS) - {'reference'}
        for backend in served:
            assert choose_backend(modules[name, backend], x) == backend
    monkeypatch.setenv('MMPSA_BACKEND', 'torch')
    assert benchmark.blocks(x)[1]['PSA(p)'] == 'torch'


@pytest.mark.parametrize('name', benchmark.PSA)
def test_published_form_is_the_same_function(name):
    x = torch.rand(SHAPE)
    block = module_of(benchmark.CONTENDERS[name])
    published = module_of(benchmark.CONTENDERS[f'{name}, published'])
    published.load_state_dict(block.state_dict())
    torch.testing.assert_close(published(x), block(x))


def test_cbam():
    """Its masks are between 0 and 1 and differ over channels and places."""
    x = torch.rand(SHAPE)
    mask = module_of(dict(type='CBAM'))(x) / x
    assert 0 < mask.min() and mask.max() < 1
    # the product of the two
    torch.testing.assert_close(
        mask * mask[:, :1, :1, :1], mask[:, :, :1, :1] * mask[:, :1]
    )
    assert mask[0, :, 0, 0].std() > 0 and mask[0, 0].std() > 0


def test_slow_calls_take_part_in_fewer_rounds(monkeypatch):
    monkeypatch.setattr(benchmark, 'ROUNDS', (2, 8))
    seconds = {'fast': 0.1, 'slow': 0.3, 'slowest': 9.0}
    order = []

    def timed(call, device):
        order.append(call())
        return seconds[call()]

    monkeypatch.setattr(benchmark, 'timed', timed)
    calls = {name: lambda name=name: name for name in seconds}
    times = benchmark.measure(calls, 'cpu', 1)
    assert times == {'fast': 8 * [0.1], 'slow': 4 * [0.3], 'slowest': [9, 9]}
    # After one call each to know that, half of the slowest's rounds are in
    # the first half.
    assert set(order[:3]) == set(seconds)
    assert order[3:10].count('slowest') == 1


def test_peak_memory():
    def call():
        first = torch.empty(1000)
        del first
        return [torch.empty(300), torch.empty(200)]

    assert benchmark.peak_memory(call, 'cpu') == 4000


@pytest.mark.parametrize('mode', ['forward', 'forward+backward'])
@pytest.mark.parametrize('dtype', benchmark.DTYPES)
def test_memory_that_non_local_needs(mode, dtype):
    x = torch.rand(2, 16, 16, 32, dtype=benchmark.DTYPES[dtype])
    block = module_of(dict(type='NonLocal2d'))

    def call():
        with benchmark.autocast('cpu', dtype):
            y = block(x)
        if mode == 'forward+backward':
            torch.autograd.grad(y.sum(), list(block.parameters()))

    with torch.set_grad_enabled(mode != 'forward'):
        call()
        peak = benchmark.peak_memory(call, 'cpu')
    needed = benchmark.non_local_bytes(x, mode)
    assert needed <= peak < 1.05 * needed


def test_what_does_not_fit_is_a_row(monkeypatch, capsys):
    only(monkeypatch, 'SE', 'NonLocal2d')
    monkeypatch.setattr(benchmark, 'free_bytes', lambda device: 10**3)
    rows = next(benchmark.run_blocks('small', SHAPE, 'float32', 'cpu', 0))
    without = [row for row in rows if 'median' not in row]
    assert [row['contender'] for row in without] == ['NonLocal2d']
    assert 'does not fit: needs more than 0.0 GB' in without[0]['note']
    benchmark.show(rows)
    assert without[0]['note'] in capsys.readouterr().out


def test_out_of_memory_is_a_row():
    def too_much():
        raise torch.cuda.OutOfMemoryError('tried to allocate 9 GiB')

    calls = {('floor', ''): lambda: None, ('SE', ''): too_much}
    rows = benchmark.run_case(calls, 'cpu', 0, 'floor')
    assert rows[1]['note'] == 'does not fit: tried to allocate 9 GiB'
    assert rows[0]['ratio'] == {'floor': 1.0}


@pytest.mark.parametrize('path', [POSE, SEG])
def test_rows_of_networks(path):
    cases = list(
        benchmark.run_network('small', str(REPO / path), 'bf16', 'cpu', 0)
    )
    x = torch.rand(SHAPE, dtype=torch.bfloat16)
    backend = choose_backend(module_of(dict(type='PSA')), x)
    assert [rows[0]['mode'] for rows in cases] == ['training', 'inference']
    for rows in cases:
        ran = [(row['contender'], row['backend']) for row in rows]
        assert ran == [
            ('no attention', ''),
            ('SE', ''),
            ('PSA(p), published', 'reference'),
            ('PSA(p)', backend),
        ]
        base = rows[0]
        for row in rows:
            assert row['images_per_second'] == 2 / row['median']
            ratio = row['median'] / base['median']
            assert row['ratio']['no attention'] == ratio
            extra = row['peak_bytes'] - base['peak_bytes']
            assert row['extra_bytes'] == extra
            assert extra > 0 or row is base


def rows_of(where, mode, medians, shape=(64, 32, 64, 48), **others):
    case = dict(where=where, dtype='float32', mode=mode, shape=shape)
    return [
        dict(case, contender=name, median=median, **others)
        for name, median in medians.items()
    ]


LARGE, SMALL = 'HRNet-W32 branch 1, 256×192', 'ResNet-50 stage 4, 256×192'


def test_bars():
    rows = rows_of(LARGE, 'forward', {'SE': 2, 'floor': 1, 'PSA(p)': 2.4})
    rows += rows_of(SMALL, 'forward', {'SE': 1, 'PSA(p)': 9}, (1, 1, 1, 1))
    both = 'forward+backward'
    rows += rows_of(
        LARGE, both, {'SE': 2, 'PSA(p), published': 9, 'PSA(p)': 2}
    )
    rows += rows_of(SMALL, both, {'SE': 1, 'PSA(p)': 1.7})
    # a backend that the block would not choose, and what no bar is on
    rows += rows_of(LARGE, both, {'PSA(p)': 99}, default=False)
    rows += rows_of('quick', 'forward', {'SE': 1, 'PSA(p)': 99})
    name = 'HRNet-W32, 256×192'
    rows += rows_of(name, 'training', {'no attention': 1, 'PSA(p)': 1.1})
    lines = benchmark.verdicts(rows, 'CPU')
    assert [line.split(': ', 2)[2] for line in lines[:6]] == [
        f'1.20 ({LARGE}, float32), met: 1 of 1 cases meet it',
        f'1.70 ({SMALL}, float32), missed: 1 of 2 cases meet it',
        f'2.40 ({LARGE}, float32), met: 1 of 1 cases meet it',
        f'4.50 ({LARGE}, float32), met: 1 of 1 cases meet it',
        f'1.10 ({name}, float32), met: 1 of 1 cases meet it',
        'not measured',
    ]
    assert lines[0].startswith('CPU: block forward, time over SE ')
    assert ' ≤ 1.5: ' in lines[0] and ' ≥ 4: ' in lines[3]
    assert len(lines) == 12
    for line in lines[6:]:
        assert line.startswith('H100: ') and line.endswith(': not measured')
    # 4.50 is not enough there
    line = benchmark.verdicts(rows, 'H100')[9]
    assert '≥ 5: 4.50' in line and line.endswith('0 of 1 cases meet it')


def test_bar_on_memory():
    name, mode = 'HRNet-W32, 256×192', 'training'
    rows = rows_of(name, mode, {'SE': 1}, extra_bytes=10)
    rows += rows_of(name, mode, {'PSA(p)': 1}, extra_bytes=14)
    line = benchmark.verdicts(rows, 'CPU')[5]
    assert '≤ 1.35: 1.40 (' in line and ', missed: 0 of 1' in line


def test_script(monkeypatch, tmp_path, capsys):
    only(monkeypatch, 'SE', 'PSA(p)')
    monkeypatch.setattr(benchmark, 'keep_memory', lambda: None)
    monkeypatch.setattr(benchmark, 'DTYPES', {'float32': torch.float32})
    monkeypatch.setattr(benchmark, 'QUICK_SHAPES', {'small': SHAPE})
    monkeypatch.setattr(benchmark, 'QUICK_NETWORKS', {'net': REPO / POSE})
    argv = ['benchmark.py', '--device=cpu', '--quick', '--out', str(tmp_path)]
    monkeypatch.setattr(sys, 'argv', argv)
    benchmark.main()
    content = json.loads((tmp_path / 'benchmark.json').read_text())
    cases = {
        (row['where'], row['dtype'], row['mode']) for row in content['rows']
    }
    assert len(cases) == 4
    printed = capsys.readouterr().out
    for where, dtype, mode in cases:
        assert any(
            line.startswith(f'{where} (')
            and line.endswith(f', {dtype}, {mode}')
            for line in printed.splitlines()
        )
    assert content['environment']['torch'] == torch.__version__
    assert (tmp_path / 'benchmark.png').read_bytes().startswith(b'\x89PNG')

    text = (tmp_path / 'benchmark.md').read_text()
    lines = [line for line in text.splitlines() if line.startswith('| small')]
    assert len(lines) == 2
    psa, se = (
        next(
            row
            for row in content['rows']
            if (row['where'], row['mode']) == ('small', 'forward')
            and row['contender'] == name
            and row.get('default', True)
        )
        for name in ('PSA(p)', 'SE')
    )
    head = text.split('| dtype')[1].splitlines()[0].split(' | ')
    cells = lines[0].split(' | ')
    ratio = psa['median'] / se['median']
    assert cells[head.index('÷ SE') + 1] == f'{ratio:.2f}'
    bars = [line[2:] for line in text.splitlines() if line.startswith('- ')]
    assert len(bars) == 12 and all(line in printed for line in bars)


def test_script_goes_on(monkeypatch, tmp_path, capsys):
    only(monkeypatch, 'SE')
    monkeypatch.setattr(benchmark, 'keep_memory', lambda: None)
    shapes = {'one': SHAPE, 'two': SHAPE}
    monkeypatch.setattr(benchmark, 'QUICK_SHAPES', shapes)

    def run(text):
        argv = ['benchmark.py', '--device=cpu', '--quick', '--only', text]
        argv += ['--out', str(tmp_path)]
        monkeypatch.setattr(sys, 'argv', argv)
        benchmark.main()
        path = tmp_path / 'benchmark.json'
        return json.loads(path.read_text())['rows'], capsys.readouterr().out

    before, _ = run('block, one, float32')
    assert {(row['where'], row['dtype']) for row in before} == {
        ('one', 'float32')
    }
    after, printed = run('block')
    assert after[: len(before)] == before
    cases = [line for line in printed.splitlines() if '1×16×4×6' in line]
    assert len(cases) == 6 and 'one (1×16×4×6), float32' not in printed
