"""Write docs/backbones.md: which backbone takes plugins at which position."""

import copy
import sys
from importlib import import_module
from itertools import groupby
from pathlib import Path

from mmengine.logging import MMLogger

import mmpsa  # noqa: F401
from mmpsa.plugins.sites import SiteFinder, StageSites, why_none
from mmpsa.plugins.stages import modules_instead
from mmpsa.plugins.validation import BLOCK_POSITIONS, POSITIONS
from mmpsa.version import CODEBASES

FOLDER = Path(__file__).resolve().parent
sys.path.append(str(FOLDER.parent))

from dev.small_backbones import BACKBONES  # noqa: E402

PAGE = """# Positions of every backbone

`python docs/backbones.py` writes this page from the registries, with all four
codebases installed. A number after a name is a depth, a word is a kind of
block. [Positions and modules](plugins.md) says what the positions mean.

| cell | the position exists |
|---|---|
| ✓ | in every stage; `output`: at every map that the backbone returns |
| stages 2–7 | in these; `stages=` of the entry must leave out the others |
| – | nowhere; for `after_stage` and `output` the last column says why |
| ? | not tried; the last column says why |

- A stage counts if some of its blocks have the position.
- If no `after_conv…` exists, the backbone has no blocks with such
  convolutions. If its blocks return maps, the last column has the `modules=`
  that names them.
- The second column has the number of stages, which is the number of flags in
  `stages=`, and the name of the first stage. For `output`, give one flag for
  each map that the backbone returns, which depends on `out_indices` and the
  like.
"""
HEAD = f'| backbone | stages | {" | ".join(f"`{p}`" for p in POSITIONS)} | |'


def section(codebase):
    """A codebase's table; its last row counts those with each position."""
    rows = {
        name: row_of(codebase, cfg)
        for name, cfg in sorted(BACKBONES[codebase].items())
    }
    taken = [
        str(sum(row[1 + i] not in '–?' for row in rows.values()))
        for i in range(len(POSITIONS))
    ]
    rows[f'**{len(rows)} rows**'] = ['', *taken, '']
    return '\n'.join(
        [
            f'\n## {codebase}\n\n{HEAD}\n|---|{"---|" * (len(POSITIONS) + 2)}',
            *(f'| {name} | {" | ".join(r)} |' for name, r in rows.items()),
            '',
        ]
    )


def row_of(codebase, cfg):
    """Stages, a cell for each position, and why not."""
    registry = import_module(f'{codebase}.registry').MODELS
    try:
        backbone = registry.build(dict(copy.deepcopy(cfg), _scope_=codebase))
    except (AssertionError, ImportError, RuntimeError) as error:
        # a package is missing
        return ['?', *'?' * len(POSITIONS), f'not tried: {error}']
    sites, cells, reasons = SiteFinder(backbone), [], []
    for position in POSITIONS:
        try:
            stages = sites.find_by_stage(position)
        except AttributeError:  # sparse networks need more than pictures
            title = type(backbone).__name__
            stages = [StageSites(reason=f'{title} does not run on pictures')]
        if any(stage.sites for stage in stages):
            cells.append(_cell([bool(stage.sites) for stage in stages]))
        else:
            cells.append('–')
            if position not in BLOCK_POSITIONS:
                reason, *_ = why_none(stages).split(': ')
                reasons.append(f'`{position}`: {reason}')
    pattern = modules_instead(backbone)
    if pattern and set(cells[: len(BLOCK_POSITIONS)]) == {'–'}:
        reasons.append(f"blocks: `modules='{pattern}'`")
    names = sites.stages
    stages = f'{len(names)}, `{names[0][0]}` …' if names else '–'
    return [stages, *cells, '; '.join(reasons)]


def _cell(taken):
    if all(taken):
        return '✓'
    numbers = [i + 1 for i, flag in enumerate(taken) if flag]
    # consecutive numbers have the same distance from their place in the list
    runs = [
        [n for _, n in run]
        for _, run in groupby(
            enumerate(numbers), lambda pair: pair[1] - pair[0]
        )
    ]
    spans = [f'{r[0]}–{r[-1]}' if len(r) > 1 else f'{r[0]}' for r in runs]
    return f'stage{"s" * (len(numbers) > 1)} {", ".join(spans)}'


if __name__ == '__main__':
    MMLogger.get_current_instance().setLevel('ERROR')
    sections = (section(codebase) for codebase in CODEBASES)
    (FOLDER / 'backbones.md').write_text(PAGE + ''.join(sections))
