"""The notebook runs, shortened, and is kept without outputs."""

import json

import matplotlib.pyplot as plt
import pytest
from helpers import REPO

NOTEBOOK = REPO / 'demo/mmpsa.ipynb'
CELLS = [
    cell
    for cell in json.loads(NOTEBOOK.read_text())['cells']
    if cell['cell_type'] == 'code'
]


def test_no_outputs():
    assert not any(cell['outputs'] for cell in CELLS)
    assert not any(cell['execution_count'] for cell in CELLS)


@pytest.mark.slow
def test_runs(tmp_path, monkeypatch):
    pytest.importorskip('mmpose')
    monkeypatch.chdir(NOTEBOOK.parent)
    shown = []

    def show():
        shown.append(len(plt.get_fignums()))
        plt.close('all')

    monkeypatch.setattr(plt, 'show', show)
    scope = {}
    for cell in CELLS:
        exec(''.join(cell['source']), scope)
        if 'parameters' in cell['metadata'].get('tags', ()):
            scope.update(OUT=tmp_path, PICTURES=8, EPOCHS=1)
    assert shown == [1, 2, 2]
    assert 0 <= scope['metrics']['bbox@0.1/PCK'] <= 1
    before, after = (
        scope[name].backbone.layer1[0].psa.ch_wv.weight
        for name in ('published', 'tuned')
    )
    assert 0 < (after - before).abs().max() < before.abs().max()
