"""Run a command and write what came of it into the table of versions.md.

Use: python docs/versions.py ENVIRONMENT COMMAND..., from the checkout, where
ENVIRONMENT is the folder of the virtual environment that COMMAND tests in. A
row of the same versions and command is replaced.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).with_name('versions.md')
START, END = '<!-- rows -->\n', '<!-- end of rows -->\n'
VERSIONS = """
import platform
from importlib.metadata import PackageNotFoundError, version
def of(*names):
    for name in names:
        try:
            yield f'{name} {version(name)}'
        except PackageNotFoundError:
            pass
print(platform.python_version())
print(version('torch'))
print(*of('mmengine', 'onedl-mmengine'), sep=', ')
print(*of('mmcv', 'onedl-mmcv'), sep=', ')
print(*of('mmpose', 'mmsegmentation', 'onedl-mmsegmentation', 'mmdet',
          'onedl-mmdetection', 'mmpretrain', 'onedl-mmpretrain'), sep=', ')
"""


def versions(environment):
    """Python, torch, mmengine, mmcv and the codebases of an environment."""
    python = str(Path(environment, 'bin/python'))
    lines = subprocess.check_output([python, '-c', VERSIONS], text=True)
    return [line or '–' for line in lines.splitlines()]


def run(command):
    """The result of a command: its tests' summary, or its exit status."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = []
    for line in process.stdout:
        print(line, end='', flush=True)
        lines.append(line)
    status = process.wait()
    summary = re.findall(r'(?m)^=* ?(\d+ \w+.*?) in [\d.]+s', ''.join(lines))
    # Warnings come from upstream and are not the result.
    results = [re.sub(r', \d+ warnings?', '', text) for text in summary]
    if status and not any('failed' in text for text in results):
        results.append(f'exit status {status}')
    return '; '.join(results) or 'done'


def with_row(page, cells):
    """The page with a row of these cells; the last is the result."""
    before, rest = page.split(START)
    rows, after = rest.split(END)
    key = f'| {" | ".join(cells[:-1])} |'
    kept = [row for row in rows.splitlines() if not row.startswith(key)]
    # The heading and the rule under it stay first.
    rows = [*kept[:2], *sorted([*kept[2:], f'{key} {cells[-1]} |'])]
    return before + START + '\n'.join(rows) + '\n' + END + after


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    environment, *command = sys.argv[1:]
    result = run(command)  # which may make the environment
    shown = shlex.join(command).replace(f'{environment}/bin/', '')
    cells = [*versions(environment), f'`{shown}`', result]
    PAGE.write_text(with_row(PAGE.read_text(), cells))


if __name__ == '__main__':
    main()
