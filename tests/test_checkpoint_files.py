"""Reading checkpoint files, whatever they are, and writing them whole."""

import mmengine.runner.checkpoint
import pytest
import torch

from mmpsa.checkpoints import CheckpointError, read_checkpoint, replacing
from mmpsa.compatibility import release

OLD = dict(_use_new_zipfile_serialization=False)


@pytest.fixture
def path(tmp_path):
    """A checkpoint; what is in it."""
    path = tmp_path / 'file.pth'
    torch.save(dict(state_dict=dict(x=torch.ones(99))), path)
    return path


def refusal(path):
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(str(path))
    (line,) = str(refused.value).splitlines()
    assert line.startswith(str(path))
    return line


def test_checkpoint_is_read(path):
    assert read_checkpoint(str(path))['state_dict']['x'].sum() == 99


@pytest.mark.parametrize('size', [0, 1, 200, -200, -1])
@pytest.mark.parametrize('options', [{}, OLD], ids=['zip', 'old'])
def test_cut_file(path, size, options):
    torch.save(dict(state_dict=dict(x=torch.ones(99))), path, **options)
    path.write_bytes(path.read_bytes()[:size])
    assert 'complete' in refusal(path)


def test_other_kinds_of_files(path):
    path.write_text('<!DOCTYPE html>\n<html>404 Not Found</html>\n')
    assert 'another kind of file' in refusal(path)
    for content in ([1, 2], torch.ones(3), None):
        torch.save(content, path)
        assert f'holds a {type(content).__name__}' in refusal(path)


def test_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv('MMPSA_ZOO', str(tmp_path))
    assert 'it is a folder' in refusal(tmp_path)
    assert 'cannot be loaded' in refusal(tmp_path / 'absent.pth')
    assert 'published checkpoints' in refusal('mmpsa://absent')


@pytest.mark.skipif(
    release(torch.__version__) < (2, 6, 0)
    or hasattr(mmengine.runner.checkpoint, 'get_torch_safe_globals'),
    reason='torch before 2.6 and the fork of mmengine load code by default',
)
def test_code(path):
    torch.save(torch.nn.ReLU(), path)
    assert 'torch.nn.modules.activation.ReLU' in refusal(path)


def test_interrupted_writing(path):
    """What was there stays, and nothing else is left."""
    before = path.read_bytes()
    for error in (KeyboardInterrupt, OSError):
        with pytest.raises(error), replacing(path) as file:
            file.write(b'part')
            raise error
        assert path.read_bytes() == before
        assert list(path.parent.iterdir()) == [path]


def test_finished_writing(path):
    new = path.parent / 'new/file.pth'
    for target in (path, new):
        with replacing(target) as file:
            file.write(b'all')
        assert target.read_bytes() == b'all'
        assert list(target.parent.glob('*.p*')) == [target]
    with pytest.raises(IsADirectoryError), replacing(path.parent):
        pass
