"""The lines of a plan of the toy experiment."""

from pathlib import Path

BASE = str(Path(__file__).with_name('toy_base.py'))
PLUGIN = "dict(cfg=dict(type='PSA'), modules='conv')"
PSA = f'dict(model=dict(backbone=dict(plugins=[{PLUGIN}])))'
PLAN = dict(
    base=repr(BASE),
    arms=f'dict(none=dict(), psa={PSA})',
    seeds='[0, 1]',
    metric="'score'",
)
WIDE = 'dict(model=dict(backbone=dict(width=8)))'
