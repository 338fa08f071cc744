"""What the workflows and .ci/run run is there: make targets and scripts."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / '.github/workflows').glob('*.yml'))


def is_there(command):
    program, name = command.split()
    if program == 'bash':
        return (ROOT / name).is_file()
    assert program == 'make'
    return re.search(rf'(?m)^{name}:.* ## ', (ROOT / 'Makefile').read_text())


@pytest.mark.parametrize('path', WORKFLOWS, ids=lambda path: path.stem)
def test_workflow(path):
    jobs = yaml.safe_load(path.read_text())['jobs']
    steps = [step for job in jobs.values() for step in job['steps']]
    commands = [step['run'] for step in steps if 'run' in step]
    assert commands
    assert all(map(is_there, commands))


def test_ci_run():
    lines = (ROOT / '.ci/run').read_text().splitlines()
    commands = [line for line in lines if line.startswith('make')]
    assert commands
    assert all(map(is_there, commands))
