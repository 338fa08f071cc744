"""Folders share mmpsa and nothing else, and the docs say what each holds."""

import ast

import pytest
from helpers import REPO

FOLDERS = ('benchmarks', 'dev', 'docs', 'mmpsa', 'projects', 'tools')
ALLOWED = {folder: {folder, 'mmpsa'} for folder in FOLDERS}
ALLOWED['docs'].add('dev')


def modules_of(folder):
    """The names by which a folder's files can be imported."""
    return {folder, *(path.stem for path in (REPO / folder).rglob('*.py'))}


def imports_of(path):
    """The first component of each module that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition('.')[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition('.')[0]


@pytest.mark.parametrize('folder', FOLDERS)
def test_imports(folder):
    others = {*FOLDERS, 'tests'} - ALLOWED[folder]
    forbidden = set().union(*map(modules_of, others)) - modules_of(folder)
    imports = [
        (str(path.relative_to(REPO)), name)
        for path in (REPO / folder).rglob('*.py')
        for name in imports_of(path)
    ]
    assert imports
    assert not [pair for pair in imports if pair[1] in forbidden]


def test_architecture_page_names_every_file():
    page = (REPO / 'docs/architecture.md').read_text()
    names = [f'{folder}/' for folder in FOLDERS if folder != 'docs']
    for folder in ('mmpsa', 'mmpsa/ops', 'mmpsa/plugins'):
        names += [path.name for path in (REPO / folder).glob('[a-z]*.py')]
    assert len(names) > 20
    assert [name for name in names if name not in page] == ['version.py']
