"""Evaluate every checkpoint of the zoo and compare with its metafile.

Needs the data sets in ``data``. Each checkpoint is one ``mim test mmpsa``. The
exit status is 1 if a measured figure differs by more than a thousandth from
the stated one.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
OUT = Path('work_dirs/zoo_check')


def published():
    """The models of model-index.yml that have weights, as mim reads them.

    Returns:
        list[dict]: ``Name``, ``Config``, ``Weights``, ``Results``, …
    """
    import yaml

    index = yaml.safe_load((REPO / 'model-index.yml').read_text())
    models = [
        model
        for metafile in index['Import']
        for model in yaml.safe_load((REPO / metafile).read_text())['Models']
    ]
    return [model for model in models if 'Weights' in model]


def differences(stated, measured):
    """Figures that are not what was stated.

    Args:
        stated (dict): Values by name.
        measured (dict): The same, and maybe more.

    Returns:
        list[str]: a line for each that is missing or differs by more than
        a thousandth.
    """
    return [
        f'{name}: stated {value}, measured {measured.get(name)}'
        for name, value in stated.items()
        if name not in measured
        or abs(measured[name] - value) > 1e-3 * abs(value)
    ]


def evaluate(model):
    """Test a published checkpoint with its config; its metrics (dict)."""
    folder = OUT / model['Name']
    folder.mkdir(parents=True, exist_ok=True)
    metrics = folder / 'metrics.json'
    mim = str(Path(sys.executable).with_name('mim'))
    command = [mim, 'test', 'mmpsa', str(REPO / model['Config'])]
    command += ['--checkpoint', model['Weights']]
    command += ['--work-dir', str(folder), '--out', str(metrics)]
    with open(folder / 'test.log', 'w') as log:
        status = subprocess.call(command, stdout=log, stderr=log)
    if status:
        sys.exit(f'{" ".join(command)} failed, see {log.name}')
    return json.loads(metrics.read_text())


def main():
    """Evaluate all, print a line each."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    wrong = 0
    for model in published():
        measured = evaluate(model)
        for result in model['Results']:
            found = differences(result['Metrics'], measured)
            wrong += bool(found)
            for line in found or [f'as stated, {result["Metrics"]}']:
                print(f'{model["Name"]}: {line}', flush=True)
    sys.exit(wrong > 0)


if __name__ == '__main__':
    main()
