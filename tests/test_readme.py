"""The README's configs are complete and build what they say."""

import re
from importlib import import_module
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmpsa import PSA

README = Path(__file__).parent.parent / 'README.md'


def test_configs(tmp_path):
    configs = re.findall(r'```python\n(.*?)```', README.read_text(), re.S)
    assert len(configs) == 2
    for text, codebase, backbone in zip(
        configs, ('mmpose', 'mmseg'), ('HRNet', 'ResNetV1c')
    ):
        assert len(text.splitlines()) <= 8
        path = tmp_path / f'{codebase}.py'
        path.write_text(text)
        cfg = Config.fromfile(path)
        assert cfg.default_scope == codebase
        init_default_scope(codebase)
        model = import_module(f'{codebase}.registry').MODELS.build(cfg.model)
        assert type(model.backbone).__name__ == backbone
        blocks = [m for m in model.modules() if hasattr(m, 'downsample')]
        assert blocks and all(type(block.psa) is PSA for block in blocks)
