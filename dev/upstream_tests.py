"""Run upstream's own tests of its models, without and with mmpsa, and compare.

For each installed codebase, it takes the tests from the source package, which
pip downloads, or from a checkout that you name. The tests run on the code
beside them. The exit status is 1 if any result differs.

The tests import backbones, necks and heads from upstream's modules, not from
the registry. So in the second run, this file is a pytest plugin that puts
mmpsa's classes into upstream's modules, and the tests test these classes.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib import import_module
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from shutil import unpack_archive
from types import ModuleType
from xml.etree import ElementTree

TESTS = 'tests/test_models'
FINE = ('passed', 'skipped')
MEANT_TO_DIFFER = {
    'tests.test_models.test_backbones.test_unet::test_unet': (
        'it expects UNet to refuse plugins=, which mmpsa lets it take'
    ),
}


def pytest_configure():
    """With mmpsa: its classes, wherever upstream's are imported from."""
    from mmpsa.compatibility import installed_codebases

    for codebase in installed_codebases():
        replace_classes(codebase)


def replace_classes(codebase):
    """Have upstream's modules hand out mmpsa's classes to who imports them.

    Upstream's own functions go on seeing upstream's classes, which many of
    them name in ``super(ResNet, self)``: a module is replaced by a copy.
    """
    registry = import_module(f'{codebase}.registry').MODELS
    registry.import_from_location()
    ours = {
        next(c for c in cls.__mro__ if not is_ours(c)): cls
        for cls in filter(is_ours, registry.module_dict.values())
    }
    modules = [name for name in sys.modules if name.startswith(f'{codebase}.')]
    for name in sorted(modules):  # parents before their children
        attributes = vars(sys.modules[name])
        replaced = {
            key: ours[value]
            for key, value in attributes.items()
            if isinstance(value, type) and value in ours
        }
        if replaced:
            copy = ModuleType(name)
            vars(copy).update(attributes, **replaced)
            sys.modules[name] = copy
            parent, _, child = name.rpartition('.')
            setattr(sys.modules[parent], child, copy)


def is_ours(cls):
    return cls.__module__.startswith('mmpsa.')


def fetch(codebase, folder):
    """The source package of an installed codebase, unpacked.

    Args:
        codebase (str): Its module.
        folder (Path): An empty folder.

    Returns:
        Path: The root of the sources, in ``folder``.
    """
    (project,) = packages_distributions()[codebase]
    command = [sys.executable, '-m', 'pip', 'download', '--quiet']
    command += ['--no-deps', '--no-build-isolation', '--no-binary', ':all:']
    command += ['--dest', str(folder), f'{project}=={version(project)}']
    subprocess.run(command, check=True)
    (archive,) = folder.iterdir()
    unpack_archive(archive, folder)
    root = next(path for path in folder.iterdir() if path.is_dir())
    # Tests read configs, which only the built package holds.
    installed = Path(find_spec(codebase).origin).parent
    (root / 'configs').symlink_to(installed / '.mim/configs')
    return root


def run(root, report, *options):
    """Run the tests of a source tree.

    Args:
        root (Path): The source tree.
        report (Path): Where pytest writes its report.
        options (str): More options of pytest.

    Returns:
        dict[str, str]: By test: ``'passed'``, ``'skipped'`` or what it failed
        with.
    """
    command = [sys.executable, '-m', 'pytest', TESTS, *options]
    command += ['-n', 'auto', '--dist', 'loadfile', f'--junitxml={report}']
    command += ['-q', '--tb=no', '--disable-warnings']
    # Not the tree's own settings, which ask for plugins of their own.
    command += ['-c', os.devnull, '--rootdir', str(root)]
    command += ['-p', 'no:cacheprovider']
    path = [str(root), str(Path(__file__).parent), os.getenv('PYTHONPATH')]
    path = os.pathsep.join(filter(None, path))
    environment = {'OMP_NUM_THREADS': '1', **os.environ, 'PYTHONPATH': path}
    done = subprocess.run(command, cwd=root, env=environment)
    if done.returncode not in (0, 1):  # passed, or some tests did not
        sys.exit(f'{" ".join(command)} ended with {done.returncode}')
    return outcomes(report)


def outcomes(report):
    """The result of each test in a JUnit report, by its name."""
    results = {}
    for case in ElementTree.parse(report).iter('testcase'):
        result = 'passed'
        for child in case:
            if child.tag == 'skipped':
                result = 'skipped'
            elif child.tag in ('failure', 'error'):
                result = child.get('message').partition('\n')[0]
        results[f'{case.get("classname")}::{case.get("name")}'] = result
    return results


def kind(result):
    """A result without what can be another each time: ``'KeyError'``."""
    return re.match(r'[\w.]*', result).group()


def compare(without, with_mmpsa):
    """What to say of two runs.

    Args:
        without (dict[str, str]): Results of :func:`run`.
        with_mmpsa (dict[str, str]): The same.

    Returns:
        tuple[list[str], int]: Lines to print, and how many tests differ.
    """
    lines = []
    for title, results in (('without', without), ('with', with_mmpsa)):
        kinds = (x if x in FINE else 'failed' for x in results.values())
        counts = sorted(Counter(kinds).items())
        told = ', '.join(f'{count} {what}' for what, count in counts)
        lines.append(f'{title} mmpsa: {told or "no tests"}')
    failing, meant, differing = [], [], []
    for test in sorted({*without, *with_mmpsa}):
        before = without.get(test, 'absent')
        after = with_mmpsa.get(test, 'absent')
        if kind(before) == kind(after):
            if before not in FINE:
                failing.append(f'    {test}: {before}')
        elif test in MEANT_TO_DIFFER:
            meant.append(f'    {test}: {MEANT_TO_DIFFER[test]}')
        else:
            differing.append(f'    {test}, without: {before}')
            differing.append(f'    {test}, with: {after}')
    lines += [f'{len(failing)} fail alike without and with', *failing]
    lines += [f'{len(meant)} differ as they are meant to', *meant]
    lines += [f'{len(differing) // 2} differ', *differing]
    return lines, len(differing) // 2


def test(codebase, root, folder):
    """Run a codebase's tests twice, print the comparison.

    Returns:
        int: How many tests differ.
    """
    start = time.time()
    print(f'== {codebase}, without mmpsa', flush=True)
    without = run(root, folder / 'without.xml')
    print(f'== {codebase}, with mmpsa', flush=True)
    with_mmpsa = run(root, folder / 'with.xml', '-p', Path(__file__).stem)
    lines, differing = compare(without, with_mmpsa)
    print(f'== {codebase}, {time.time() - start:.0f} s', *lines, sep='\n')
    return differing


def main():
    """Test every installed codebase whose tests are available."""
    from mmpsa.compatibility import installed_codebases

    parser = argparse.ArgumentParser(description=__doc__)
    codebases = installed_codebases()
    for codebase in codebases:
        text = 'a checkout, instead of the source package'
        parser.add_argument(
            f'--{codebase}', type=Path, metavar='PATH', help=text
        )
    args = parser.parse_args()
    differing = 0
    for codebase in codebases:
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            root = getattr(args, codebase) or fetch(codebase, folder)
            if (root / TESTS).is_dir():
                differing += test(codebase, root.resolve(), folder)
            else:
                print(
                    f'== {codebase}: left out, {root.name} has no {TESTS}; '
                    f'name a checkout with --{codebase} PATH'
                )
    sys.exit(differing > 0)


if __name__ == '__main__':
    main()
