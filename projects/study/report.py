"""Write what the results say into the pages, and draw their pictures.

    python -m projects.study.report

A page has ``<!-- NAME.comparison -->``, or another property of a report, and
``<!-- end -->`` around what it says; ``over se`` sets the baseline.
"""

import re
from pathlib import Path

from mmpsa.compare.report import Report, table
from mmpsa.compare.results import read

STUDY = Path(__file__).parent
REPO = STUDY.resolve().parents[1]
PAGES = 'docs/study.md', 'README.md', 'README_zh-CN.md'
PLACE = re.compile(
    r'(<!-- ([\w ]+)\.(\w+)(?: over (\S+))? -->\n).*?(<!-- end -->)', re.S
)


def report_of(name, baseline=None):
    """The report of a folder of results."""
    return Report(read(STUDY / name / 'results.json'), baseline)


def gains(reports):
    """What each arm adds to the baseline, a row for each report, by name."""
    first, *_ = reports.values()
    rows = [[f'over {first.baseline}', *first.differences]]
    for name, report in reports.items():
        values = map(report.gain, report.differences)
        rows.append([f'{name}: {report.metric}', *values])
    return table(rows)


def fill(text):
    """Put what results say into its places in a page."""

    def written(found):
        head, names, what, baseline, end = found.groups()
        reports = {name: report_of(name, baseline) for name in names.split()}
        if what == 'gains':
            content = gains(reports)
        else:
            content = getattr(reports[names], what)
        return f'{head}\n{content}\n\n{end}'

    return PLACE.sub(written, text)


def main():
    """Bring the pages, and the pictures that they have, up to date."""
    for page in (REPO / name for name in PAGES):
        page.write_text(fill(page.read_text()))
    for path in REPO.glob('docs/images/light_*.png'):
        report_of(path.stem).draw(path)


if __name__ == '__main__':
    main()
