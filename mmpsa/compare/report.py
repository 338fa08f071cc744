"""Writes ``report.md`` and ``report.png`` from what ``results.json`` has."""

from pathlib import Path

import numpy as np

from .results import run_of, start_of
from .statistics import (
    LEVEL,
    detectable,
    difference,
    holm,
    seeds_needed,
    verdict,
)

PAGE = Path(__file__).with_name('page.md')


class Report:
    """What the results of a plan say.

    Args:
        results (dict): The content of ``results.json``.
        baseline (str, optional): What the other arms are compared with.
            Default: the first arm.
    """

    def __init__(self, results, baseline=None):
        self.results = results
        self.seeds, self.metric = results['seeds'], results['metric']
        costs = results.get('costs', {})
        self.costs = {k: costs[k] for k in results['arms'] if k in costs}
        self.baseline = baseline or next(iter(results['arms']))
        self.runs, self.curves, self.scores = {}, {}, {}
        for arm in results['arms']:
            runs = {seed: run_of(results, arm, seed) for seed in self.seeds}
            self.runs[arm] = {seed: run for seed, run in runs.items() if run}
            self.curves[arm] = {
                seed: np.array([self._point(x) for x in run['evaluations']])
                for seed, run in self.runs[arm].items()
            }
        curves = [x for each in self.curves.values() for x in each.values()]
        # mmpose and mmdet log shares, mmseg and mmpretrain percent
        if curves and not any(
            (abs(curve[:, 1] - 0.5) > 0.5).any() for curve in curves
        ):
            self.metric += ' × 100'
            for curve in curves:
                curve[:, 1] *= 100
        for arm, each in self.curves.items():
            last = {seed: curve[-1, 1] for seed, curve in each.items()}
            self.scores[arm] = {k: x for k, x in last.items() if x == x}
        theirs = self.scores[self.baseline]
        self.differences = {
            arm: difference(scores, theirs)
            for arm, scores in self.scores.items()
            if arm != self.baseline
        }
        ps = {a: x.p for a, x in self.differences.items() if x.p is not None}
        self.ps = dict(zip(ps, holm([*ps.values()])))

    def _point(self, evaluation):
        score = evaluation['metrics'][self.results['metric']]
        return evaluation['iteration'], np.nan if score is None else score

    def spread(self, arm):
        """Mean and standard deviation of an arm's scores as text."""
        scores = [*self.scores[arm].values()]
        text = number(np.mean(scores)) if scores else ''
        many = len(scores) > 1
        return text + (f' ± {number(np.std(scores, ddof=1))}' if many else '')

    def gain(self, arm):
        """A difference and its interval as text."""
        mean, interval = (self.differences[arm][i] for i in (1, slice(3, 5)))
        ends = ' to '.join(number(x, '+') for x in interval)
        return f'{number(mean, "+")} ({ends})'.replace(' ( to )', '')

    def verdict(self, arm):
        """A verdict in words, or nothing."""
        if arm not in self.ps:
            return ''
        mean = self.differences[arm].mean
        return verdict(mean, self.ps[arm], self.results['rule'])

    @property
    def comparison(self):
        """A table: the score of each run, and what each arm adds."""
        head = ['arm', *(f'seed {seed}' for seed in self.seeds), 'mean ± sd']
        rows = [[*head, f'over {self.baseline} (95 % interval)', 'verdict']]
        for arm, scores in self.scores.items():
            row = [arm, *(number(scores.get(seed)) for seed in self.seeds)]
            row.append(self.spread(arm))
            if arm in self.differences:
                row += [self.gain(arm), self.verdict(arm)]
            rows.append(row)
        return table(rows)

    def conclusions(self, want=None):
        """What the comparison says: a paragraph for each arm.

        Args:
            want (float, optional): A difference to say the seeds for.
        """
        lines = []
        for arm, found in self.differences.items():
            count, deviation = len(found.values), found.deviation
            text = f'**{arm}**: no interval and no verdict: '
            if found.p is None:
                text += (
                    'fewer than two seeds are finished in both arms'
                    if count < 2
                    else f'all {count} differences are {number(found.mean)}'
                )
            else:
                # of the smallest of the p values
                level = LEVEL / len(self.ps)
                seen = number(detectable(deviation, count, level))
                p = f'p = {self.ps[arm]:.2g}'
                if len(self.ps) > 1:
                    p += f' ({found.p:.2g} before the correction)'
                text = (
                    f'**{arm}: {self.verdict(arm)}.** Over {self.baseline} '
                    f'{self.gain(arm)}, {p}. {count} seeds '
                    f'could see a difference of {seen}'
                )
                if want is not None:
                    needed = seeds_needed(want, deviation, level)
                    text += f'; one of {want:g} needs '
                    text += f'{needed or "over 1,000"} seeds'
            lines.append(text + '.')
        return '\n\n'.join(lines)

    @property
    def cost(self):
        """A table of what each arm costs."""
        over, base = f'÷ {self.baseline}', self.costs.get(self.baseline)
        rows = [['arm', 'parameters', 'multiply-adds', 'training step, ms']]
        rows[0] += [over, 'inference, ms', over, 'peak memory, GiB']
        for arm, cost in self.costs.items():
            counts = cost['params'], cost['flops']
            row = [arm, *(f'{count:,}' if count else '' for count in counts)]
            for step in ('train', 'test'):
                ratio = number(base and cost[step] / base[step])
                row += [f'{1e3 * cost[step]:.1f}', ratio]
            runs = self.runs.get(arm, {}).values()
            memory = [run['memory'] / 2**30 for run in runs if 'memory' in run]
            rows.append([*row, number(max(memory, default=None))])
        return table(rows)

    @property
    def starts(self):
        """What the weights of each arm have in common with the baseline's."""
        lines, theirs = [], self.runs[self.baseline]
        for arm in self.differences:
            pairs = [
                [start_of(self.results, x) for x in (theirs[seed], run)]
                for seed, run in self.runs[arm].items()
                if seed in theirs
            ]
            note = self.results['arms'][arm].get(
                'note', 'weights not recorded'
            )
            text = f'- {arm}: {note}.'
            if pairs and not any(None in pair for pair in pairs):
                unequal = {
                    name
                    for base, ours in pairs
                    for name, _ in base.items() - ours.items()
                }
                total = len(pairs[0][0])
                text = f'- {arm}: {total - len(unequal)} of {total} weights '
                text += f'of {self.baseline} are equal.'
                if unequal:
                    text += f' These are not: {", ".join(sorted(unequal))}.'
            if self.results['arms'][arm]['beyond_plugins']:
                text += ' It changes more than plugins; '
                other = self.results['arms'][arm].get('other_data')
                text += (
                    'its data, too.' if other else 'data and seed are equal.'
                )
            lines.append(text)
        return '\n'.join(lines)

    @property
    def remarks(self):
        """Runs that are missing or were resumed, and versions."""
        lines, versions = [], set()
        for arm, seed in ((a, x) for x in self.seeds for a in self.runs):
            run, name = self.runs[arm].get(seed), f'- {arm}, seed {seed} '
            if not run:
                lines.append(name + 'is missing.')
                continue
            if seed not in self.scores[arm]:
                lines.append(name + 'ended without a number.')
            if run.get('resumed'):
                lines.append(name + 'was cut and resumed.')
            pairs = (run['versions'] or dict(versions='unknown')).items()
            versions.add('- ' + ', '.join(f'{k} {v}' for k, v in pairs))
        return '\n'.join([*lines, *sorted(versions)])

    def text(self, title, want=None):
        """The page; for ``want`` see :meth:`conclusions`."""
        conclusions = self.conclusions(want)
        page = PAGE.read_text(encoding='utf-8')
        return page.format(title=title, report=self, conclusions=conclusions)

    def draw(self, path):
        """The differences, the metric over training and time, and costs."""
        from matplotlib.figure import Figure

        height = 1 + len(self.differences) / 2
        figure = Figure((11, height + 7), layout='constrained')
        axes = figure.subplot_mosaic('AA;BC;DE', height_ratios=[height, 3, 3])
        forest, steps, minutes, flops, test = axes.values()
        nothing = dict(train=np.nan, flops=np.nan, test=np.nan)
        for i, (arm, curves) in enumerate(self.curves.items()):
            cost = {**nothing, **self.costs.get(arm, {})}
            style = dict(color=f'C{i}', label=arm)
            points = np.concatenate([np.empty((0, 2)), *curves.values()])
            xs = np.unique(points[:, 0])
            ys = [points[points[:, 0] == x, 1].mean() for x in xs]
            for ax, unit in (steps, 1), (minutes, cost['train'] / 60):
                ax.plot(unit * xs, ys, **style)
                ax.plot(unit * points[:, 0], points[:, 1], '.', color=f'C{i}')
            ys = [*self.scores[arm].values()] or [np.nan]
            for ax, x in (
                (flops, cost['flops'] or np.nan),
                (test, cost['test']),
            ):
                deviation = np.std(ys, ddof=len(ys) > 1)
                ax.errorbar(x, np.mean(ys), deviation, fmt='o', **style)
            if arm in self.differences:
                xs, mean, _, low, high, _ = self.differences[arm]
                label = [f'{arm}\n{self.gain(arm)}'] * len(xs)
                forest.plot(xs, label, '|', color='0.6')
                if low is not None:
                    ends = [[mean - low], [high - mean]]
                    forest.errorbar(mean, label[0], None, ends, 'o', **style)
        forest.axvline(0, color='0.3', linewidth=0.8)
        forest.set(xlabel=f'over {self.baseline}: seeds, mean, 95 % interval')
        labels = 'iterations', 'minutes of training steps'
        labels += 'multiply-adds', 'seconds of inference, a batch'
        for ax, label in zip((steps, minutes, flops, test), labels):
            ax.set(xlabel=label, ylabel=self.metric)
            ax.legend(fontsize=8)
        figure.savefig(path, dpi=100)


def number(value, sign=''):
    """A score or a difference as text, without -0.00; nothing for None."""
    return '' if value is None else f'{round(value, 2) + 0:{sign}.2f}'


def table(rows):
    """A Markdown table; short rows are filled, empty columns left out."""
    rows = [row + [''] * (len(rows[0]) - len(row)) for row in rows]
    columns = [cells for cells in zip(*rows) if any(cells[1:])]
    rows = [*zip(*columns)]
    rows.insert(1, ['---', *['--:'] * (len(columns) - 1)])
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)
