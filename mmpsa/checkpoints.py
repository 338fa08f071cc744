"""Reads checkpoints with clear errors, and writes files as a whole."""

import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Iterator
from uuid import uuid4

from mmengine.runner.checkpoint import CheckpointLoader


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message says why and what can."""


def read_checkpoint(path: str) -> dict:
    """Read a checkpoint to the CPU.

    Args:
        path (str): A file, or a URL that mmengine's loader takes.

    Returns:
        dict: The content of the file.

    Raises:
        CheckpointError: If the file cannot be loaded, or holds no dict. The
            message is one line with the path.
    """
    if Path(path).is_dir():
        raise CheckpointError(f'{path} must be a checkpoint; it is a folder')
    try:
        checkpoint = CheckpointLoader.load_checkpoint(path, 'cpu')
    except Exception as error:  # there are as many kinds as loaders
        raise CheckpointError(_why_not(path, error)) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f'{path} must hold a state dict, or a dict with one under '
            f"'state_dict'; it holds a {type(checkpoint).__name__}"
        )
    return checkpoint


def _why_not(path, error):
    """The reason why a checkpoint was not loaded, in one line."""
    code = re.search(r'Unsupported global: GLOBAL (\S+)', str(error))
    if code:
        return (
            f'{path} must hold weights and plain data, but holds {code[1]}, '
            'which torch.load refuses. If you trust the file, load it with '
            'weights_only=False and save only its state dict'
        )
    if '://' in path or isinstance(error, FileNotFoundError):
        return f'{path} cannot be loaded: {" ".join(str(error).split())}'
    return (
        f'{path} must be a checkpoint that torch saved, and complete; it may '
        'be empty, cut off or another kind of file '
        f'({type(error).__name__} in loading it)'
    )


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file beside its place, and move it there when it is complete.

    Until then, an existing file stays as it is. If writing fails or is
    interrupted, the existing file stays, and the partial file is deleted.

    Args:
        path (Path): The file. Its folder is made if it is missing.

    Yields:
        BinaryIO: The file to write to.

    Raises:
        IsADirectoryError: If ``path`` is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f'{path} must be a file; it is a folder')
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.{uuid4().hex}.part')
    try:
        with part.open('xb') as file:
            yield file
        os.replace(part, path)
    finally:
        if part.exists():
            part.unlink()
