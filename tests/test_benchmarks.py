"""``python -m benchmarks``: what it writes, whatever it measured."""

import json
import os
import subprocess
import sys

import pytest
import torch
from helpers import REPO

from benchmarks import measure, report

pytestmark = pytest.mark.slow
NETWORK = 'configs/quickstart/td-hm_res18-w32_1xb16-5e_figures-64x64.py'
BLOCKS = {
    'SE',
    'ECA',
    'CBAM',
    'coordinate',
    'global context',
    'ContextBlock',
    'NonLocal2d',
    'PSA-p, reference',
    'PSA-p, torch',
    'PSA-p, Inductor',
    'PSA-p',
    'PSA-s',
    'timm_ese',
}

ALIKE = {name for name in BLOCKS if name.startswith('PSA-p')}


def run(*arguments, path=REPO):
    return subprocess.run(
        [sys.executable, '-m', 'benchmarks', *map(str, arguments)],
        cwd=REPO,
        env=dict(os.environ, PYTHONPATH=str(path), OMP_NUM_THREADS='1'),
        capture_output=True,
        text=True,
        timeout=1200,  # Inductor compiles each case
    )


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp('benchmarks') / 'tiny'
    result = run(
        *('--device', 'cpu', '--quick', '--network', NETWORK, '--out', out),
        *('--dtypes', 'float32', '--dtypes', 'bfloat16'),
        *('--types', 'timm_ese', '--shapes', '2x16x4x6'),
        *('--shapes', '1x16x160x150'),
    )
    assert result.returncode == 0, result.stderr
    rows = json.loads(out.with_suffix('.json').read_text())['rows']
    return rows, out, result.stdout


def cases_of(rows):
    keys = 'part', 'where', 'dtype', 'mode'
    found = {}
    for row in rows:
        case = found.setdefault(tuple(row[key] for key in keys), {})
        assert case.setdefault(row['contender'], row) is row
    return found


def test_every_contender_in_every_case(written):
    cases = cases_of(written[0])
    assert len(cases) == 2 * (2 * 2 + 2)
    for (part, where, dtype, mode), case in cases.items():
        names = set(BLOCKS)
        if part == 'network':
            names = {'no attention', 'SE', 'CBAM', *ALIKE}
        if dtype == 'bfloat16':  # no other backend stands in for it
            names.discard('PSA-p, reference')
        assert set(case) == names
        for name, row in case.items():
            if (name, where) == ('NonLocal2d', '1×16×160×150'):
                assert 'of all pairs' in row['note'] and 'median' not in row
                continue
            assert row['ratio'] == row['median'] / case[row['base']]['median']
            assert row['median'] > 0 and row['iqr'] >= 0
            if part == 'block':  # the result at least
                size = (
                    2 * 16 * 4 * 6 if where == '2×16×4×6' else 16 * 160 * 150
                )
                item = 4 if dtype == 'float32' else 2
                assert row['peak_bytes'] >= size * item


def test_those_alike_match(written):
    rows, out, _ = written
    for (*_, dtype, mode), case in cases_of(rows).items():
        assert {k for k, row in case.items() if 'matches' in row} == (
            ALIKE & case.keys()
        )
        apart = [row for row in case.values() if 'matches' in row]
        assert apart[0]['difference'] == 0  # it is the first itself
        assert all(row['matches'] for row in apart)
        # What is rounded more, or summed up to a loss, may be the same.
        if dtype == 'float32' and mode != 'training step':
            assert any(row['difference'] > 0 for row in apart)
    text = out.with_suffix('.md').read_text()
    assert text.count('Results against those of PSA-p, reference:') == 4
    assert text.count('Results against those of PSA-p, torch:') == 4
    assert text.count('| matches, ') == sum('matches' in row for row in rows)


def test_what_does_not_match_is_told():
    x = torch.ones(3)
    calls = dict(a=lambda: x, b=lambda: x + 0.1, c=lambda: (x * 2).sum())
    found = measure.compare(calls, 'a', ('a', 'b'), 1e-3, 'cpu', 1, 1e-3)
    a, b, c = found
    assert (a['matches'], b['matches']) == (True, False)
    assert b['difference'] == pytest.approx(0.1)
    assert 'matches' not in c
    assert report.line(b).endswith('differs, 1e-01')
    # of a tuple the worst, each against its own size
    pair = x, 100 * x
    assert measure.difference((x, 100 * x + 1), pair) == pytest.approx(0.01)
    assert measure.difference((x + 0.1, 100 * x), pair) == pytest.approx(0.1)


def test_training_takes_more_than_inference(written):
    """Of memory, in float32; times of so small a case are noise."""
    cases = cases_of(written[0])
    for (part, where, dtype, mode), case in cases.items():
        if mode in ('forward', 'inference') and dtype == 'float32':
            longer = {
                'forward': 'forward+backward',
                'inference': 'training step',
            }[mode]
            other = cases[part, where, dtype, longer]
            for name, row in case.items():
                if 'median' in row:
                    assert other[name]['peak_bytes'] > row['peak_bytes']


def test_tables_say_what_the_figures_say(written):
    rows, out, printed = written
    text = out.with_suffix('.md').read_text()
    for key, case in cases_of(rows).items():
        part, where, dtype, mode = key
        head = f'## {part.capitalize()}, {dtype}, {mode}\n'
        section = text.split(head)[1].split('\n## ')[0]
        base = next(iter(case.values()))['base']
        for title, cell in (
            (
                'Time, ms ± its interquartile range',
                lambda row: (
                    f'{1000 * row["median"]:.2f} ± {1000 * row["iqr"]:.2f}'
                ),
            ),
            (f'Time over {base}', lambda row: f'{row["ratio"]:.2f}'),
            (
                'Peak memory, MB',
                lambda row: f'{row["peak_bytes"] / 1e6:.1f}',
            ),
        ):
            table = section.split(f'{title}:\n\n')[1].split('\n\n')[0]
            lines = [line[2:-2].split(' | ') for line in table.splitlines()]
            by_case = {cells[0]: cells for cells in lines}
            for name, row in case.items():
                column = lines[0].index(name)
                expected = cell(row) if 'median' in row else '–'
                assert by_case[where][column] == expected
        assert f'\n{", ".join(key)}\n' in printed
    assert 'No NonLocal2d at 1×16×160×150: its map of all' in text
    assert f'({out.name}.png)' in text
    assert out.with_suffix('.png').read_bytes().startswith(b'\x89PNG')


def test_without_timm(tmp_path):
    (tmp_path / 'timm.py').write_text('raise ImportError')
    result = run('--quick', path=tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].endswith(
        'pip install --upgrade --no-deps timm'
    )


def test_wrong_shape():
    result = run('--shapes', '2x3x4x6')
    assert result.returncode == 2
    assert "'2x3x4x6'" in result.stderr and '8x32x64x48' in result.stderr
