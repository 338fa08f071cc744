"""``results.json``: all that a report is written from."""

import json
import os


def read(path):
    """The content of a file of :func:`write`, or an empty dict."""
    return json.loads(path.read_text()) if path.exists() else {}


def write(path, content):
    """Write JSON, in place of what is there, with a line for each record.

    Args:
        path (Path): The file.
        content (dict): What goes into it.
    """
    parts = (f'{json.dumps(k)}: {_lines(v)}' for k, v in content.items())
    new = path.with_suffix('.new')
    new.write_text('{\n' + ',\n'.join(parts) + '\n}\n')
    os.replace(new, path)


def add(results, run):
    """Add a finished run; names of weights are kept once.

    Args:
        results (dict): The content of ``results.json``.
        run (dict): What ``train.py`` recorded.
    """
    names = [*run['start']]
    known = results.setdefault('weights', [])
    if names not in known:
        known.append(names)
    start = [known.index(names), ''.join(run['start'].values())]
    results['runs'].append(dict(run, start=start))


def start_of(results, run):
    """What tells the weights at the start of a run, by name, or None."""
    if run['start'] is None:
        return None
    index, digests = run['start']
    return {
        name: digests[8 * i : 8 * i + 8]
        for i, name in enumerate(results['weights'][index])
    }


def run_of(results, arm, seed):
    """The finished run of an arm with a seed, or None."""
    for run in results['runs']:
        if (run['arm'], run['seed']) == (arm, seed):
            return run
    return None


def _lines(value):
    if isinstance(value, list) and value:
        return '[\n' + ',\n'.join(map(json.dumps, value)) + '\n]'
    return json.dumps(value)
