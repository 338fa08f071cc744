"""Loads published checkpoints by ``mmpsa://NAME``, and checks their hash.

A published checkpoint is a file ``NAME-<hash>.pth``, where the hash is the
first 8 hexadecimal digits of the sha256 of its content.
``tools/publish_model.py`` writes them.
"""

import difflib
import os
import re
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

import torch
from mmengine.dist import barrier, is_main_process
from mmengine.runner.checkpoint import CheckpointLoader

from .compatibility import load_data

PREFIX = 'mmpsa://'
PUBLISHED = re.compile(r'([^/]+)-([0-9a-f]{8})')
CHECKOUT = Path(__file__).resolve().parents[1] / 'checkpoints'


def content_hash(data: bytes) -> str:
    """The hash in the name of a published checkpoint with this content."""
    return sha256(data).hexdigest()[:8]


@CheckpointLoader.register_scheme(PREFIX)
def load_from_mmpsa(filename: str, map_location=None) -> dict:
    """Load a published checkpoint, wherever mmengine takes a path.

    The environment variable ``MMPSA_ZOO`` names the folder or the base URL
    (http, https) of the files. Without it, they are in the folder
    ``checkpoints`` of a source checkout. A file from a URL is downloaded
    once, into the cache of torch.hub, as mmengine does.

    Args:
        filename (str): ``mmpsa://NAME-<hash>``, with or without ``.pth``.
            In a folder, you may leave out the hash if only one file has the
            name.
        map_location (str, optional): That of :func:`torch.load`.

    Returns:
        dict: The checkpoint.

    Raises:
        FileNotFoundError: If the folder or the file does not exist.
        ValueError: If ``MMPSA_ZOO`` is a URL and the hash is missing.
        RuntimeError: If the file is damaged or cannot be downloaded.
        UnpicklingError: If the file holds code.
    """
    name = filename[len(PREFIX) :]
    name = name[:-4] if name.endswith('.pth') else name
    zoo = os.environ.get('MMPSA_ZOO', '')
    if zoo.startswith(('http://', 'https://')):
        path = _download(zoo, name)
    else:
        path = _find(zoo, name)
    found = content_hash(path.read_bytes())
    if not path.stem.endswith(f'-{found}'):
        raise RuntimeError(
            f'{path} is damaged: its sha256 begins with {found}. '
            'Delete it and get it again'
        )
    return load_data(path, map_location)


def _find(zoo, name):
    folder = Path(zoo).expanduser() if zoo else CHECKOUT
    place = f'{folder} ({"MMPSA_ZOO" if zoo else "MMPSA_ZOO is not set"})'
    if not folder.is_dir():
        raise FileNotFoundError(
            f'cannot load {PREFIX}{name}: there is no folder {place}. Let '
            'MMPSA_ZOO name the folder checkpoints/ of a checkout of mmpsa, '
            'another folder that has the published files, or its http(s) URL'
        )
    paths = {
        path.stem: path
        for path in sorted(folder.glob('*.pth'))
        if PUBLISHED.fullmatch(path.stem)
    }
    if name in paths:
        return paths[name]
    versions = [
        stem for stem in paths if PUBLISHED.fullmatch(stem).group(1) == name
    ]
    if len(versions) == 1:
        return paths[versions[0]]
    near = (
        versions
        or [stem for stem in paths if stem.startswith(name)][:5]
        or difflib.get_close_matches(name, paths, n=5)
    )
    raise FileNotFoundError(
        f'{PREFIX}{name} names {len(versions)} of the {len(paths)} published '
        f'checkpoints (NAME-<hash>.pth) in {place}. '
        + (f'Did you mean {", ".join(near)}?' if near else 'None is similar')
    )


def _download(base, name):
    published = PUBLISHED.fullmatch(name)
    if published is None:
        raise ValueError(
            f'{PREFIX}{name} must be {PREFIX}NAME-<8 hexadecimal digits>: '
            f'the names at a URL (MMPSA_ZOO is {base}) cannot be listed'
        )
    path = Path(torch.hub.get_dir(), 'checkpoints', f'{name}.pth')
    path.parent.mkdir(parents=True, exist_ok=True)
    url = f'{base.rstrip("/")}/{quote(path.name)}'

    def fetch():
        try:
            torch.hub.download_url_to_file(url, str(path), published.group(2))
        except (OSError, RuntimeError) as error:
            raise RuntimeError(
                f'cannot download {url} ({error}). Check the URL in MMPSA_ZOO '
                'and the name with its hash; mmpsa cannot list the names there'
            ) from error

    # The main process first; the others find its file, on their own node.
    try:
        if is_main_process() and not path.exists():
            fetch()
    finally:
        barrier()
    if not path.exists():
        fetch()
    return path
