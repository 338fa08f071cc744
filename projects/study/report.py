"""Write the study's tables into the docs and draw its curves.

    python -m projects.study.report

Everything comes from the logs in ``projects/study/logs`` and from what
``cost.py`` measured. In docs/study.md and the READMEs, a table, or a sentence
with figures, stands between ``<!-- NAME -->`` and ``<!-- end -->``.
"""

import json
import re
import statistics
import textwrap

from scipy.stats import t as student

from .runs import (
    COMPARED,
    COSTS,
    LESS_DATA,
    LOGS,
    MAIN,
    PLACED,
    PRETRAINED,
    PSA_P,
    REPO,
    SEARCH_SEED,
    SEEDS,
    TASKS,
    USUAL_START,
    name_of,
    plan,
)

DOCUMENT = REPO / 'docs/study.md'
CURVES = REPO / 'docs/images/study_curves.png'
TITLES = dict(lspet='LSPET', camvid='CamVid', figures='figures')
NAMES = dict(zip(COMPARED, ('none', 'SE', 'PSA(p)', 'PSA(s)')))
# Of the README's table: the head of the first column, the last task, the cost.
READMES = {
    'README.md': (
        'over no attention, in points',
        'generated figures',
        'training time ÷ that of no attention',
    ),
    'README_zh-CN.md': (
        '相对无注意力的差值（百分点）',
        '生成的人物图像',
        '训练用时 ÷ 无注意力的用时',
    ),
}
# Of the summary: an arm and what it is compared with.
PAIRS = [
    *((arm, 'none') for arm in COMPARED[1:]),
    *((arm, 'se_pyramid') for arm in COMPARED[2:]),
]
SCRATCH_SEEDS = (0, 1, 2)
ITERATIONS_PER_EPOCH = 281  # of LSPET, the steps of whose logs are epochs
SCRATCH_TASKS = ('pose', 'seg', 'seg-short')
# what is compared, in percent; what stands beside it
POSE_METRICS = ('bbox@0.1/PCK', 'bbox@0.2/PCK', 'bbox/NME')
SEG_METRICS = ('mIoU', 'mAcc', 'aAcc')


def is_pose(task):
    """Whether a task is mmpose's; else it is mmseg's."""
    return '/pose/' in TASKS[task].config


def metrics_of(task):
    """The names of a task's metrics, that of the comparison first."""
    return POSE_METRICS if is_pose(task) else SEG_METRICS


def read(task, arm, seed):
    """Training and validation lines of a run's log.

    A run that was cut off repeats the steps after its last checkpoint. Of
    each step, the last line counts.

    Returns:
        tuple[list[dict], list[dict]] or None: None if there is no log.
    """
    path = LOGS / f'{name_of(task, arm, seed)}.json'
    if not path.exists():
        return None
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    training = {x['step']: x for x in lines if 'loss' in x}
    validation = {x['step']: x for x in lines if metrics_of(task)[0] in x}
    return list(training.values()), list(validation.values())


def percent(task, value):
    """mmpose's accuracies are shares, mmseg's are in percent already."""
    return 100 * value if is_pose(task) else value


def scores(task, arm, seeds, metric=0):
    """The final score of each seed that has a log, in percent."""
    key = metrics_of(task)[metric]
    found = {}
    for seed in seeds:
        log = read(task, arm, seed)
        if log:
            found[seed] = percent(task, log[1][-1][key])
    return found


def curve(task, arm, seeds):
    """The metric in percent by step: of each seed that has a log.

    Returns:
        list[tuple[int, list[float]]]: Empty if no seed has one.
    """
    key = metrics_of(task)[0]
    logs = [log for log in (read(task, arm, seed) for seed in seeds) if log]
    return [
        (points[0]['step'], [percent(task, x[key]) for x in points])
        for points in zip(*(validation for _, validation in logs))
    ]


def paired(task, arm, other='none', seeds=SEEDS):
    """An arm's differences to another one, of the seeds that both have."""
    ours, theirs = (scores(task, each, seeds) for each in (arm, other))
    return [ours[seed] - theirs[seed] for seed in ours if seed in theirs]


def interval(values):
    """95 % interval of the mean, by Student's t.

    Returns:
        tuple[float, float] or None: None of fewer than two values.
    """
    if len(values) < 2:
        return None
    mean = statistics.mean(values)
    error = statistics.stdev(values) / len(values) ** 0.5
    half = student.ppf(0.975, len(values) - 1) * error
    return mean - half, mean + half


def spread(values):
    """Mean and standard deviation (of a sample) as text."""
    if len(values) == 1:
        return f'{values[0]:.1f}'
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    return f'{mean:.1f} ± {deviation:.1f}'


def signed(value):
    """A difference as text, without -0.0."""
    return f'{round(value, 1) + 0:+.1f}'


def bound(value):
    """An end of an interval as text, which shows on which side of 0 it is."""
    text = signed(value)
    return text if float(text) else f'{value:+.2f}'


def gain(values):
    """Mean and interval of paired differences as text."""
    if not values:
        return ''
    bounds = interval(values)
    text = signed(statistics.mean(values))
    return text + (
        f' ({bound(bounds[0])} to {bound(bounds[1])})' if bounds else ''
    )


def table(head, rows):
    """A Markdown table, or a sentence if it has no rows yet."""
    if not rows:
        return 'Nothing was run yet.'
    rule = ['---', *['--:'] * (len(head) - 1)]
    return '\n'.join(f'| {" | ".join(row)} |' for row in (head, rule, *rows))


def summary_table():
    """What each block adds to no attention, by task: the seeds so far."""
    rows = []
    for task in MAIN:
        base = scores(task, 'none', SEEDS)
        row = [f'{TITLES[task]}, {metrics_of(task)[0]}']
        row.append(spread([*base.values()]) if base else '')
        row += [gain(paired(task, *pair)) for pair in PAIRS]
        row.append(f'{len(paired(task, PSA_P))}')
        rows.append(row)
    pairs = (
        NAMES[arm] + ('' if other == 'none' else f' over {NAMES[other]}')
        for arm, other in PAIRS
    )
    return table(['task', 'none', *pairs, 'seeds'], rows)


def side(values):
    """The side of 0 on which an interval is: 1, -1, or 0 if it is on both."""
    low, high = interval(values) or (0, 0)
    return 1 if low > 0 else -1 if high < 0 else 0


def paragraph(text):
    """The text in lines as long as those around it."""
    return textwrap.fill(text, 88, break_on_hyphens=False)


def answer():
    """Which differences of the comparison are clear, as a sentence."""
    found = []
    for task in MAIN:
        for arm, other in PAIRS:
            values = paired(task, arm, other)
            if side(values):
                pair = f'{NAMES[arm]} over {NAMES[other]}'
                found.append(f'{TITLES[task]}, {pair} {gain(values)}')
    return paragraph(
        f'Of these {len(MAIN) * len(PAIRS)} intervals, '
        f'{len(found)} do not contain 0: {"; ".join(found)}.'
    )


def gains_table(head, figures, cost):
    """What each block adds to no attention, for a README."""
    costs = [found for found in map(costs_of, MAIN) if found]
    ratios = [
        [found[arm]['train'] / found['none']['train'] for found in costs]
        for arm in COMPARED[1:]
    ]
    rows = [
        [
            f'{dict(TITLES, figures=figures)[task]}, {metric}',
            *(gain(paired(task, arm)) for arm in COMPARED[1:]),
        ]
        for task, metric in zip(MAIN, ('PCK@0.1', 'mIoU', 'mIoU'))
    ]
    if costs:
        rows.append([cost, *(f'{min(x):.2f} to {max(x):.2f}' for x in ratios)])
    return table([head, *map(NAMES.get, COMPARED[1:])], rows)


def steps_to(goal, points):
    """The step at which a curve first reaches a value, or None.

    Args:
        goal (float): The value.
        points (list[tuple]): Step and value, joined by straight lines.
    """
    for (start, low), (stop, high) in zip([points[0], *points], points):
        if high >= goal:
            share = (goal - low) / (high - low) if low < goal else 1
            return start + share * (stop - start)
    return None


def reach_table():
    """The training that an arm needs for the plain network's last figure."""
    rows = []
    for task in MAIN:
        curves = {arm: mean_curve(task, arm) for arm in COMPARED}
        if not all(curves.values()):
            continue
        goal = curves['none'][-1][1]
        row = [TITLES[task], f'{goal:.1f}']
        for arm, points in curves.items():
            steps = steps_to(goal, points)
            if steps is None and round(points[-1][1] - goal, 1) == 0:
                steps = points[-1][0]  # the same figure, as printed
            if steps is None:
                row.append('not reached')
                continue
            text = f'{100 * steps / points[-1][0]:.0f} %'
            minutes = minutes_of(task, arm, [steps])
            row.append(text + (f', {minutes[0]:.1f} min' if minutes else ''))
        rows.append(row)
    return table(['task', 'figure', *map(NAMES.get, COMPARED)], rows)


def mean_curve(task, arm):
    """The metric in percent by step, mean of the seeds that all arms have."""
    seeds = [
        seed
        for seed in SEEDS
        if all(read(task, each, seed) for each in COMPARED)
    ]
    return [
        (step, statistics.mean(values))
        for step, values in curve(task, arm, seeds)
    ]


def comparison_table(task):
    """Arms by seeds, with paired differences; gaps where a run misses."""
    arms, seeds, se = (*COMPARED, USUAL_START), SEEDS, 'se_pyramid'
    if task in SCRATCH_TASKS:
        arms, seeds, se = TASKS[task].arms, SCRATCH_SEEDS, None
    rows = []
    for arm in arms:
        found = scores(task, arm, seeds)
        if not found:
            continue
        row = [arm, *(f'{found[x]:.1f}' if x in found else '' for x in seeds)]
        row.append(spread([*found.values()]))
        row.append('' if arm == 'none' else gain(paired(task, arm)))
        if se:
            over = '' if arm in ('none', se) else gain(paired(task, arm, se))
            row.append(over)
        row += [
            spread([*scores(task, arm, seeds, metric).values()])
            for metric in (1, 2)
        ]
        rows.append(row)
    names = metrics_of(task)
    head = ['arm', *(f'seed {seed}' for seed in seeds), names[0], 'over none']
    return table([*head, *(['over SE'] if se else []), *names[1:]], rows)


def less_data_table():
    """No attention and PSA(p) with a share of the training data."""
    rows = []
    for task in LESS_DATA:
        over = paired(task, PSA_P)
        if over:
            row = [task.replace('-', ', ') + ' %']
            for arm in ('none', PSA_P):
                row.append(spread([*scores(task, arm, SEEDS).values()]))
            rows.append([*row, gain(over), f'{len(over)}'])
    return table(['data', 'none', PSA_P, 'over none', 'seeds'], rows)


def missing():
    """A sentence on the planned runs that have no log."""
    runs = plan()
    done = [run for run in runs if read(*run)]
    if len(done) == len(runs):
        return f'All {len(runs)} runs of the plan are done.'
    return f'{len(done)} of the {len(runs)} runs of the plan are done.'


def scratch_findings():
    """The differences from scratch whose interval is on one side of 0."""
    found = {1: [], 0: [], -1: []}
    for task in SCRATCH_TASKS:
        for arm in TASKS[task].arms:
            values = paired(task, arm, seeds=SCRATCH_SEEDS)
            if arm != 'none' and interval(values):
                found[side(values)].append(f'{task} {arm} {gain(values)}')
    return paragraph(
        f'Of the {sum(map(len, found.values()))} differences in these tables, '
        f'these have an interval above 0: {", ".join(found[1]) or "none"}. '
        f'Below 0: {", ".join(found[-1]) or "none"}.'
    )


def search_table(tasks, arms):
    """The runs of the search's seed, arms by tasks."""
    rows = []
    for arm in arms:
        row = [arm]
        for task in tasks:
            values = [*scores(task, arm, [SEARCH_SEED]).values()]
            over = paired(task, arm, seeds=[SEARCH_SEED])
            row += [f'{x:.1f}' for x in values] or ['']
            row += [signed(x) for x in over if arm != 'none'] or ['']
        if any(row[1:]):
            rows.append(row)
    head = ['arm']
    for task in tasks:
        head += [f'{task}: {metrics_of(task)[0]}', 'over none']
    return table(head, rows)


def places():
    """Where the search has PSA ahead: the sums that the plan decides by."""
    sums = {}
    for arm in PLACED:
        both = [
            paired(task, arm, seeds=[SEARCH_SEED])
            for task in ('lspet', 'camvid')
        ]
        if all(both):
            sums[arm] = sum(map(sum, both))
    ranking = sorted(sums, key=sums.get, reverse=True)
    text = ', '.join(f'{arm} {signed(sums[arm])}' for arm in ranking)
    return paragraph(
        'The plan decides by these sums of the differences on LSPET and '
        f'CamVid: {text}.'
    )


def costs_of(task):
    """What ``cost.py`` measured, by arm, or None."""
    return json.loads(COSTS.read_text()).get(task)


def cost_table(task):
    """What an arm costs, from ``cost.py``."""
    costs = costs_of(task)
    if not costs:
        return 'Not measured yet.'
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


def minutes_of(task, arm, steps):
    """What training to each step takes, or None: not measured yet."""
    costs = costs_of(task)
    if not costs:
        return None
    iterations = ITERATIONS_PER_EPOCH if is_pose(task) else 1
    return [step * iterations * costs[arm]['train'] / 60 for step in steps]


def draw_curves():
    """The metric over training and over minutes: mean and range of seeds."""
    import matplotlib.pyplot as plt

    plt.switch_backend('agg')
    figure, axes = plt.subplots(2, len(MAIN), figsize=(13, 7))
    for column, task in zip(axes.T, MAIN):
        key = metrics_of(task)[0]
        for arm in COMPARED:
            points = curve(task, arm, SEEDS)
            if not points:
                continue
            steps, values = zip(*points)
            means = [statistics.mean(value) for value in values]
            minutes = minutes_of(task, arm, steps)
            low, high = (list(map(f, values)) for f in (min, max))
            for ax, xs in zip(column, (steps, minutes)):
                if xs is None:
                    continue
                label = f'{arm}, {len(values[0])} seeds'
                (line,) = ax.plot(xs, means, marker='.', label=label)
                ax.fill_between(
                    xs, low, high, color=line.get_color(), alpha=0.2
                )
        unit = 'epochs' if is_pose(task) else 'iterations'
        for ax, label in zip(column, (unit, 'minutes on one core')):
            ax.set(xlabel=label, ylabel=f'{key}, %', title=task)
            ax.grid(alpha=0.3)
            if ax.lines:
                ax.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(CURVES, dpi=100)


def tables():
    """What each page has from logs, by path and name."""
    return {
        DOCUMENT: study_tables(),
        **{
            REPO / name: {'gains': gains_table(*texts)}
            for name, texts in READMES.items()
        },
    }


def study_tables():
    """What docs/study.md has from logs, by name."""
    found = {
        'missing': missing(),
        'summary': summary_table(),
        'answer': answer(),
        'reach': reach_table(),
        'places': places(),
        'search': search_table(MAIN, PRETRAINED),
    }
    for task in MAIN:
        found[f'{task}: comparison'] = comparison_table(task)
        found[f'{task}: cost'] = cost_table(task)
    found['less data'] = less_data_table()
    arms = TASKS['pose'].arms
    found['scratch: search'] = search_table(('pose', 'seg'), arms)
    for task in SCRATCH_TASKS:
        found[f'{task}: comparison'] = comparison_table(task)
    found['scratch: findings'] = scratch_findings()
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
    """Bring the pages up to date."""
    for page, content in tables().items():
        page.write_text(fill(page.read_text(), content))
    draw_curves()


if __name__ == '__main__':
    main()
