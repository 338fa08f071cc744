"""What the workflows and .ci/run run is there: make targets and scripts."""

import re

import pytest
import yaml
from helpers import REPO

WORKFLOWS = sorted((REPO / '.github/workflows').glob('*.yml'))


def is_there(command):
    program, name = command.split()
    if program == 'bash':
        return (REPO / name).is_file()
    assert program == 'make'
    return re.search(rf'(?m)^{name}:.* ## ', (REPO / 'Makefile').read_text())


@pytest.mark.parametrize('path', WORKFLOWS, ids=lambda path: path.stem)
def test_workflow(path):
    jobs = yaml.safe_load(path.read_text())['jobs']
    steps = [step for job in jobs.values() for step in job['steps']]
    commands = [step['run'] for step in steps if 'run' in step]
    assert commands
    assert all(map(is_there, commands))


def test_ci_run():
    lines = (REPO / '.ci/run').read_text().splitlines()
    commands = [line for line in lines if line.startswith('make')]
    assert commands
    assert all(map(is_there, commands))
