"""``results.json``: all that a report is written from."""

import json
import os

from .plan import PlanError


def read(path):
    """The content of a file of :func:`write`, or an empty dict."""
    try:
        content = json.loads(path.read_text()) if path.exists() else {}
        return dict(content)
    except (TypeError, ValueError) as error:
        raise PlanError(
            f'{path} is damaged: {error}; replace it by a copy, or remove it'
        ) from error


def write(path, content):
    """Write a dict as JSON, in place of what is there; records get lines."""
    lines = []
    for key, value in content.items():
        text = json.dumps(value)
        if isinstance(value, list) and value:
            text = '[\n' + ',\n'.join(map(json.dumps, value)) + '\n]'
        lines.append(f'{json.dumps(key)}: {text}')
    new = path.with_suffix('.new')
    new.write_text('{\n' + ',\n'.join(lines) + '\n}\n')
    os.replace(new, path)


def add(results, run):
    """Add what ``train.py`` recorded; names of weights are kept once."""
    names, known = [*run['start']], results.setdefault('weights', [])
    if names not in known:
        known.append(names)
    start = [known.index(names), ''.join(run['start'].values())]
    results['runs'].append(dict(run, start=start))


def start_of(results, run):
    """What tells the weights at the start of a run, by name, or None."""
    if run['start'] is None:
        return None
    index, text = run['start']
    digests = (text[i : i + 8] for i in range(0, len(text), 8))
    return dict(zip(results['weights'][index], digests))


def run_of(results, arm, seed):
    """The finished run of an arm with a seed, or None."""
    of = (run for run in results['runs'] if run['arm'] == arm)
    return next((run for run in of if run['seed'] == seed), None)
