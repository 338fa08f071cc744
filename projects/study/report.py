"""Write the study's tables into docs/study.md and draw its curves.

    python -m projects.study.report

Everything comes from the logs in ``projects/study/logs`` and from what
``cost.py`` measured. In docs/study.md, a
table stands between ``<!-- NAME -->`` and ``<!-- end -->``.
"""

import json
import re
import statistics

from .runs import (
    ARMS,
    COSTS,
    LOGS,
    MAIN,
    REPO,
    SEARCH_SEED,
    SEEDS,
    SHORT,
    TASKS,
    name_of,
)

DOCUMENT = REPO / 'docs/study.md'
CURVES = REPO / 'docs/images/study_curves.png'
METRICS = {  # task: what is compared, in percent; what stands beside it
    'pose': ('bbox@0.1/PCK', 'bbox@0.2/PCK', 'bbox/NME'),
    'seg': ('mIoU', 'mAcc', 'aAcc'),
}
METRICS[SHORT] = METRICS['seg']


def read(task, arm, seed):
    """Training and validation lines of a run's log.

    A run that was cut off has repeated what followed its last checkpoint:
    of a step's lines the last one counts.

    Returns:
        tuple[list[dict], list[dict]] or None: None if there is no log.
    """
    path = LOGS / f'{name_of(task, arm, seed)}.json'
    if not path.exists():
        return None
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    training = {x['step']: x for x in lines if 'loss' in x}
    validation = {x['step']: x for x in lines if METRICS[task][0] in x}
    return list(training.values()), list(validation.values())


def percent(task, value):
    """mmpose's accuracies are shares, mmseg's are in percent already."""
    return 100 * value if task == 'pose' else value


def scores(task, arm, seeds, metric=0):
    """The last figure of each seed's run that has a log, in percent."""
    logs = (read(task, arm, seed) for seed in seeds)
    key = METRICS[task][metric]
    return [percent(task, x[1][-1][key]) for x in logs if x]


def spread(values):
    """Mean and standard deviation (of a sample) as text."""
    if len(values) == 1:
        return f'{values[0]:.1f}'
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    return f'{mean:.1f} ± {deviation:.1f}'


def table(head, rows):
    """A Markdown table."""
    rule = ['---', *['--:'] * (len(head) - 1)]
    return '\n'.join(f'| {" | ".join(row)} |' for row in (head, rule, *rows))


def main_table(task):
    """The comparison: every arm that has a run of each seed."""
    base = scores(task, 'none', SEEDS)
    rows = []
    for arm in ARMS:
        values = scores(task, arm, SEEDS)
        if len(values) < len(SEEDS):
            continue
        gain = statistics.mean(values) - statistics.mean(base)
        row = [arm, *(f'{x:.1f}' for x in values), spread(values)]
        row += ['' if arm == 'none' else f'{gain:+.1f}']
        row += [spread(scores(task, arm, SEEDS, metric)) for metric in (1, 2)]
        rows.append(row)
    names = METRICS[task]
    seeds = (f'seed {seed}' for seed in SEEDS)
    head = ['arm', *seeds, names[0], 'over none', *names[1:]]
    return table(head, rows)


def search_table():
    """The runs of the seed that nothing else is judged by."""
    tasks = {
        task: scores(task, 'none', [SEARCH_SEED])[0]
        for task in TASKS
        if read(task, 'none', SEARCH_SEED)
    }
    if not tasks:
        return 'Nothing was run yet.'
    rows = []
    for arm in ARMS:
        row = [arm]
        for task, base in tasks.items():
            values = scores(task, arm, [SEARCH_SEED])
            gain = f'{values[0] - base:+.1f}' if values else ''
            row += [f'{values[0]:.1f}' if values else '', gain]
        if any(row[1:]):
            rows.append(row)
    head = ['arm']
    for task in tasks:
        head += [METRICS[task][0], 'over none']
    return table(head, rows)


def cost_table(task):
    """What an arm costs, from ``cost.py``."""
    costs = json.loads(COSTS.read_text())[task]
    base = costs['none']
    rows = [
        [
            arm,
            f'{cost["params"] / 1e6:.3f}',
            f'{cost["flops"] / 1e9:.4f}',
            *(
                text
                for step in ('train', 'test')
                for text in (
                    f'{1e3 * cost[step]:.0f}',
                    f'{cost[step] / base[step]:.2f}',
                )
            ),
        ]
        for arm, cost in costs.items()
    ]
    head = ['arm', 'parameters, M', 'GFLOPs']
    head += ['training step, ms', '÷ none', 'test step, ms', '÷ none']
    return table(head, rows)


def draw_curves():
    """The metric over training: each arm's mean, and the range of seeds."""
    import matplotlib.pyplot as plt

    plt.switch_backend('agg')
    figure, axes = plt.subplots(1, len(TASKS), figsize=(10, 4))
    for ax, task in zip(axes, TASKS):
        key = METRICS[task][0]
        for arm in MAIN:
            logs = [read(task, arm, seed) for seed in SEEDS]
            if None in logs:
                continue
            steps = [x['step'] for x in logs[0][1]]
            curves = [
                [percent(task, x[key]) for x in validation]
                for _, validation in logs
            ]
            columns = list(zip(*curves))
            means = [statistics.mean(column) for column in columns]
            (line,) = ax.plot(steps, means, marker='.', label=arm)
            low, high = map(min, columns), map(max, columns)
            ax.fill_between(
                steps, list(low), list(high), color=line.get_color(), alpha=0.2
            )
        unit = 'epoch' if task == 'pose' else 'iteration'
        ax.set(xlabel=unit, ylabel=f'{key}, %', title=task)
        ax.grid(alpha=0.3)
        ax.legend()
    figure.tight_layout()
    CURVES.parent.mkdir(exist_ok=True)
    figure.savefig(CURVES, dpi=100)


def tables():
    """The tables of docs/study.md, by name."""
    found = {'search': search_table()}
    found[f'{SHORT}: comparison'] = main_table(SHORT)
    for task in TASKS:
        found[f'{task}: comparison'] = main_table(task)
        found[f'{task}: cost'] = cost_table(task)
    return found


def fill(text, content):
    """Put each table of ``content`` into its place in ``text``.

    Raises:
        ValueError: ``text`` has no place for a table, or several.
    """
    for name, new in content.items():
        place = rf'(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)'
        text, count = re.subn(
            place, rf'\g<1>\n{new}\n\n\g<2>', text, flags=re.S
        )
        if count != 1:
            raise ValueError(f'<!-- {name} --> is there {count} times')
    return text


def main():
    """Bring docs/study.md up to date."""
    DOCUMENT.write_text(fill(DOCUMENT.read_text(), tables()))
    draw_curves()


if __name__ == '__main__':
    main()
