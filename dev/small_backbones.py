"""Every backbone that upstream registers, as small as it can be built."""

from pathlib import Path

import yaml

_TABLE = yaml.safe_load(Path(__file__).with_suffix('.yml').read_text())
BACKBONES = {
    codebase: {name: {'type': name, **row} for name, row in rows.items()}
    for codebase, rows in _TABLE.items()
    if codebase != 'shared'
}
# It takes tuples alone, which YAML does not have.
_CGNET = BACKBONES['mmseg']['CGNet']
for _key in ('num_channels', 'num_blocks'):
    _CGNET[_key] = tuple(_CGNET[_key])
