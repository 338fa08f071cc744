"""Writes ``report.md`` and ``report.png`` from what ``results.json`` has."""

import math
import statistics

from .results import run_of, start_of
from .statistics import (
    detectable,
    difference,
    holm,
    seeds_needed,
    verdict,
)


class Report:
    """What the results of a plan say.

    Args:
        results (dict): The content of ``results.json``.
        baseline (str, optional): The arm that the others are compared with.
            Default: the first.
    """

    def __init__(self, results, baseline=None):
        self.results = results
        self.arms = [*results['arms']]
        self.baseline = baseline or self.arms[0]
        self.runs = {
            arm: {
                seed: run
                for seed in results['seeds']
                if (run := run_of(results, arm, seed))
            }
            for arm in self.arms
        }
        logged = [
            score
            for runs in self.runs.values()
            for run in runs.values()
            for _, score in self.curve_of(run)
        ]
        # mmpose and mmdet log shares, mmseg and mmpretrain percent
        self.scale = 100 if all(0 <= score <= 1 for score in logged) else 1
        largest = self.scale * max(map(abs, logged), default=0)
        self.digits = max(0, 3 - len(f'{largest:.0f}'))
        self.scores = {arm: self.scores_of(arm) for arm in self.arms}
        self.others = [arm for arm in self.arms if arm != self.baseline]
        self.differences = {
            arm: difference(self.scores[arm], self.scores[self.baseline])
            for arm in self.others
        }
        tested = [
            arm for arm in self.others if self.differences[arm].p is not None
        ]
        self.corrected = dict(
            zip(tested, holm([self.differences[arm].p for arm in tested]))
        )

    def curve_of(self, run):
        """Iteration and score, as logged, of every evaluation of a run."""
        metric = self.results['metric']
        return [
            (found['iteration'], found['metrics'][metric])
            for found in run['evaluations']
            if found['metrics'][metric] is not None
        ]

    def scores_of(self, arm):
        """The score of the last evaluation by seed, those that have one."""
        metric = self.results['metric']
        last = {
            seed: run['evaluations'][-1]['metrics'][metric]
            for seed, run in self.runs[arm].items()
        }
        return {
            seed: self.scale * score
            for seed, score in last.items()
            if score is not None
        }

    def metric(self):
        """The name of the metric, with its scale."""
        return self.results['metric'] + ' × 100' * (self.scale == 100)

    def verdict(self, arm):
        """A verdict in words, or nothing."""
        if arm not in self.corrected:
            return ''
        mean, p = self.differences[arm].mean, self.corrected[arm]
        return verdict(mean, p, self.results['rule'])

    def number(self, value, sign=''):
        """A score or a difference as text, without -0.0."""
        return f'{round(value, self.digits) + 0:{sign}.{self.digits}f}'

    def bound(self, value):
        """An end of an interval as text that shows its side of 0."""
        text = self.number(value, '+')
        return text if float(text) else f'{value:+.{self.digits + 1}f}'

    def interval(self, arm):
        """The interval of a difference as text, or nothing."""
        found = self.differences[arm]
        if found.low is None:
            return ''
        return f'{self.bound(found.low)} to {self.bound(found.high)}'

    def gain(self, arm):
        """A difference and its interval as text, or nothing."""
        mean, interval = self.differences[arm].mean, self.interval(arm)
        if mean is None:
            return ''
        text = self.number(mean, '+')
        return f'{text} ({interval})' if interval else text

    def spread(self, arm):
        """Mean and standard deviation of an arm's scores as text."""
        values = [*self.scores[arm].values()]
        if not values:
            return ''
        text = self.number(statistics.mean(values))
        if len(values) == 1:
            return text
        return f'{text} ± {self.number(statistics.stdev(values))}'

    def comparison(self):
        """A table: the score of each run, and what each arm adds."""
        seeds = self.results['seeds']
        rows = []
        for arm in self.arms:
            scores = self.scores[arm]
            row = [arm]
            row += [
                self.number(scores[x]) if x in scores else '' for x in seeds
            ]
            row.append(self.spread(arm))
            if arm == self.baseline:
                row += ['', '', '']
            else:
                mean = self.differences[arm].mean
                row.append('' if mean is None else self.number(mean, '+'))
                row += [self.interval(arm), self.verdict(arm)]
            rows.append(row)
        head = ['arm', *(f'seed {seed}' for seed in seeds), 'mean ± sd']
        head += [f'over {self.baseline}', '95 % interval', 'verdict']
        return table(head, rows)

    def conclusions(self, want=None):
        """What the comparison says, in words: a paragraph for each arm.

        Args:
            want (float, optional): A difference to say the seeds for.
        """
        lines = []
        for arm in self.others:
            found = self.differences[arm]
            if found.p is None:
                lines.append(
                    f'**{arm}**: no interval and no verdict, which take two '
                    f'seeds or more; there are pairs of {len(found.values)}.'
                )
                continue
            count = len(found.values)
            seen = self.bound(detectable(found.deviation, count))[1:]
            text = (
                f'**{arm}: {self.verdict(arm)}.** Over {self.baseline} '
                f'{self.gain(arm)}, p = {found.p:.2g}'
            )
            if len(self.corrected) > 1:
                text += f', corrected {self.corrected[arm]:.2g}'
            text += f'. {count} seeds could see a difference of {seen}'
            if want is not None:
                seeds = seeds_needed(want, found.deviation)
                needed = f'{seeds} seeds' if seeds else 'more than 1,000 seeds'
                text += f'; one of {want:g} needs {needed}'
            lines.append(text + '.')
        return '\n\n'.join(lines)

    def costs(self):
        """A table of what each arm costs, or a sentence."""
        costs = self.results.get('costs')
        if not costs:
            return 'Not measured.'
        base = costs.get(self.baseline)
        memory = {
            arm: [run['memory'] for run in runs.values() if run.get('memory')]
            for arm, runs in self.runs.items()
        }
        rows = []
        for arm in filter(costs.get, self.arms):
            cost = costs[arm]
            flops = cost['flops']
            row = [arm, f'{cost["params"]:,}', f'{flops:,}' if flops else '–']
            for name in ('train', 'test'):
                ratio = f'{cost[name] / base[name]:.2f}' if base else ''
                row += [f'{1e3 * cost[name]:.1f}', ratio]
            if any(memory.values()):
                peak = max(memory[arm], default=0)
                row.append(f'{peak / 2**30:.2f}')
            rows.append(row)
        over = f'÷ {self.baseline}'
        head = ['arm', 'parameters', 'multiply-adds']
        head += ['training step, ms', over, 'inference, ms', over]
        if any(memory.values()):
            head.append('peak memory, GiB')
        return table(head, rows)

    def starts(self):
        """What the weights of each arm have in common with the baseline's."""
        lines = []
        for arm in self.others:
            if self.results['arms'][arm]['beyond_plugins']:
                lines.append(
                    f'- {arm} changes more than plugins. It shares data and '
                    f'seed with {self.baseline}.'
                )
            pairs = [
                (start_of(self.results, theirs), start_of(self.results, ours))
                for seed, ours in self.runs[arm].items()
                if (theirs := self.runs[self.baseline].get(seed))
            ]
            if not pairs:
                continue
            if any(None in pair for pair in pairs):
                lines.append(f'- {arm}: not recorded, weights not paired.')
                continue
            names = [*dict.fromkeys(x for base, _ in pairs for x in base)]
            unequal = [
                name
                for name in names
                if any(base.get(name) != our.get(name) for base, our in pairs)
            ]
            text = f'{len(names) - len(unequal)} of {len(names)}'
            text = f'- {arm}: {text} weights of {self.baseline} are equal.'
            if unequal:
                text += f' These are not: {", ".join(unequal)}.'
            lines.append(text)
        return '\n'.join(lines)

    def remarks(self):
        """Runs that are missing or were resumed, and versions."""
        lines = []
        for arm, runs in self.runs.items():
            for seed in self.results['seeds']:
                if seed not in runs:
                    lines.append(f'- {arm}, seed {seed} is missing.')
                elif seed not in self.scores[arm]:
                    lines.append(
                        f'- {arm}, seed {seed} ended without a number.'
                    )
                elif runs[seed].get('resumed'):
                    lines.append(
                        f'- {arm}, seed {seed} was cut and resumed, with '
                        'other random numbers than its pair.'
                    )
        versions = {
            ', '.join(f'{k} {v}' for k, v in (run['versions'] or {}).items())
            for runs in self.runs.values()
            for run in runs.values()
        }
        lines += [
            f'- {text or "versions not recorded"}' for text in sorted(versions)
        ]
        return '\n'.join(lines)

    def ends(self):
        """The iterations of the last evaluations as text."""
        found = {
            run['evaluations'][-1]['iteration']
            for runs in self.runs.values()
            for run in runs.values()
        }
        return ', '.join(f'{x:,}' for x in sorted(found)) or 'none yet'

    def text(self, title, want=None):
        """The page.

        Args:
            title (str): Its heading.
            want (float, optional): See :meth:`conclusions`.
        """
        better = 'higher' if self.results['rule'] == 'greater' else 'lower'
        several = (
            f'Verdicts are corrected for {len(self.corrected)} comparisons '
            "by Holm's method, intervals are not.\nIf you take the best of "
            'several arms, luck chooses too: confirm it with fresh seeds.\n'
            if len(self.corrected) > 1
            else ''
        )
        return PAGE.format(
            title=title,
            base=self.results['base'],
            metric=self.metric(),
            better=better,
            ends=self.ends(),
            comparison=self.comparison(),
            conclusions=self.conclusions(want),
            several=several,
            costs=self.costs(),
            baseline=self.baseline,
            starts=self.starts(),
            remarks=self.remarks(),
        )

    def draw(self, path):
        """The differences, the metric over training and time, and costs."""
        from matplotlib.figure import Figure

        height = 1 + 0.5 * len(self.others)
        figure = Figure(figsize=(11, height + 7), layout='constrained')
        rows = figure.subplot_mosaic(
            [['forest', 'forest'], ['steps', 'time'], ['flops', 'speed']],
            height_ratios=[height, 3.5, 3.5],
        )
        colours = {arm: f'C{i % 10}' for i, arm in enumerate(self.arms)}
        self._draw_forest(rows['forest'], colours)
        costs = self.results.get('costs') or {}
        iterations = {arm: 1 for arm in self.arms}
        minutes = {arm: cost['train'] / 60 for arm, cost in costs.items()}
        self._draw_curves(rows['steps'], colours, iterations, 'iterations')
        self._draw_curves(
            rows['time'], colours, minutes, 'minutes of training steps'
        )
        flops = {
            arm: cost['flops'] / 1e9
            for arm, cost in costs.items()
            if cost['flops']
        }
        times = {arm: 1e3 * cost['test'] for arm, cost in costs.items()}
        self._draw_costs(rows['flops'], colours, flops, '10⁹ multiply-adds')
        self._draw_costs(
            rows['speed'], colours, times, 'inference, ms a batch'
        )
        figure.savefig(path, dpi=100)

    def _draw_forest(self, ax, colours):
        for i, arm in enumerate(self.others):
            found, y = self.differences[arm], -i
            ax.plot(found.values, [y] * len(found.values), '|', color='0.6')
            if found.mean is not None:
                ax.plot(found.mean, y, 'o', color=colours[arm])
            if found.low is not None:
                ax.plot([found.low, found.high], [y, y], color=colours[arm])
        ax.axvline(0, color='0.3', linewidth=0.8)
        ax.set_yticks(
            [-i for i in range(len(self.others))],
            [
                f'{arm}\n{self.gain(arm)}\n{self.verdict(arm)}'.strip()
                for arm in self.others
            ],
        )
        ax.set_ylim(0.5 - len(self.others), 0.5)
        ax.set_title(
            f'{self.metric()} over {self.baseline}: seeds, mean, 95 % interval'
        )

    def _draw_curves(self, ax, colours, scales, label):
        for arm, scale in scales.items():
            curves = [
                dict(self.curve_of(run))
                for run in self.runs.get(arm, {}).values()
            ]
            steps = (
                sorted(set.intersection(*map(set, curves))) if curves else []
            )
            if not steps:
                continue
            values = [[self.scale * c[x] for c in curves] for x in steps]
            xs = [scale * step for step in steps]
            means = [statistics.mean(each) for each in values]
            ax.plot(xs, means, '.-', color=colours[arm], label=arm)
            low, high = ([f(each) for each in values] for f in (min, max))
            ax.fill_between(xs, low, high, color=colours[arm], alpha=0.15)
        ax.set(xlabel=label, ylabel=f'{self.metric()}, mean and range')
        if ax.lines:
            ax.legend(fontsize=8)

    def _draw_costs(self, ax, colours, costs, label):
        for arm, x in costs.items():
            values = [*self.scores.get(arm, {}).values()]
            if values:
                mean = statistics.mean(values)
                error = (
                    statistics.stdev(values) if len(values) > 1 else math.nan
                )
                ax.errorbar(x, mean, error, fmt='o', color=colours[arm])
                ax.annotate(f' {arm}', (x, mean), fontsize=8)
        ax.set(xlabel=label, ylabel=f'{self.metric()}, mean ± sd')


def table(head, rows):
    """A Markdown table."""
    rule = ['---', *['--:'] * (len(head) - 1)]
    return '\n'.join(f'| {" | ".join(row)} |' for row in (head, rule, *rows))


PAGE = """# {title}

Base: `{base}`.
Score: `{metric}` ({better} is better) at the last evaluation, never the best.
Iterations: {ends}. Runs are paired by seed.

![Differences, the metric over training and time, and costs](report.png)

## Comparison

{comparison}

{conclusions}

The test is a paired t-test, two-sided, at 5 %.
{several}What the seeds could see is the difference that the test finds with a
power of 80 %, if differences vary as these do. Few seeds do not tell how much
they vary.

## Cost

Medians; the arms take turns. A step takes one batch.

{costs}

## Weights before the first iteration

{starts}

## Runs

{remarks}
"""
