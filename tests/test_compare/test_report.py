"""What the report says of results, in each case that an experiment has."""

import copy

import pytest

from mmpsa.compare.report import Report
from mmpsa.compare.statistics import detectable, holm

NONE = (50.0, 51.0, 52.0)
PSA = (51.0, 52.1, 53.0)
WIDE = (52.5, 50.5, 51.0)
DIGESTS = {'conv': '0' * 8, 'norm': '1' * 8}


def results(**scores):
    """Results of arms, with a score for each seed (None: no run)."""
    runs = [
        dict(
            arm=arm,
            seed=seed,
            hash='x',
            start=[0, ''.join(DIGESTS.values())],
            versions=dict(torch='2.1'),
            seconds=60.0,
            evaluations=[
                dict(iteration=i, metrics=dict(mIoU=share * score))
                for i, share in ((5, 0.5), (10, 1.0))
            ],
        )
        for arm, values in scores.items()
        for seed, score in enumerate(values)
        if score is not None
    ]
    return dict(
        runs=runs,
        metric='mIoU',
        rule='greater',
        base='base.py',
        arms={arm: dict(beyond_plugins=arm == 'wide') for arm in scores},
        seeds=[*range(max(map(len, scores.values())))],
        weights=[[*DIGESTS]],
        costs={
            arm: dict(hash='x', params=1000 + i, flops=5, train=0.3, test=0.1)
            for i, arm in enumerate(scores)
        },
    )


def rows(text):
    """A Markdown table by the first cell of each row, the head's too."""
    cells = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in text.splitlines()
        if line.startswith('|')
    ]
    return {row[0]: row[1:] for row in cells}


def test_comparison():
    found = rows(Report(results(none=NONE, psa=PSA)).comparison)
    assert found['arm'] == [
        'seed 0',
        'seed 1',
        'seed 2',
        'mean ± sd',
        'over none (95 % interval)',
        'verdict',
    ]
    expected = ['50.00', '51.00', '52.00', '51.00 ± 1.00', '', '']
    assert found['none'] == expected
    # 1.0, 1.1, 1.0: t of 2 degrees of freedom is 4.303, half of it 0.1434
    assert found['psa'][3:] == [
        '52.03 ± 1.00',
        '+1.03 (+0.89 to +1.18)',
        'clear gain',
    ]


def test_pairs_alone_count():
    """Seeds that one arm has and the other has not are in no difference."""
    report = Report(results(none=(*NONE, 90.0), psa=(*PSA, None)))
    assert report.differences['psa'].values == pytest.approx([1.0, 1.1, 1.0])
    assert rows(report.comparison)['psa'][3] == ''
    assert '- psa, seed 3 is missing.' in report.remarks


def test_conclusion_and_what_seeds_can_see():
    report = Report(results(none=NONE, psa=WIDE))
    text = report.conclusions(want=2.0)
    seen = detectable(report.differences['psa'].deviation, 3)
    assert text.startswith('**psa: no clear difference.** Over none +0.33 (')
    assert f'3 seeds could see a difference of {seen:.2f}; ' in text
    assert 'one of 2 needs 10 seeds.' in text
    assert 'needs' not in report.conclusions()
    assert 'over 1,000 seeds' in report.conclusions(want=0.01)


def test_verdicts_of_several_arms_are_corrected():
    """Three tests: p = 0.044 alone is a gain, times three it is not."""
    values = (50.5, 52.0, 52.6)
    alone = Report(results(none=NONE, psa=values))
    assert alone.verdict('psa') == 'clear gain'
    assert alone.differences['psa'].p == pytest.approx(0.0445, abs=1e-4)
    several = Report(results(none=NONE, psa=values, se=WIDE, wide=WIDE))
    assert several.verdict('psa') == 'no clear difference'
    ps = [several.differences[arm].p for arm in ('psa', 'se', 'wide')]
    assert [*several.ps.values()] == holm(ps)
    assert several.gain('psa') == alone.gain('psa')
    page = ' '.join(several.text('plan').split())
    assert 'Intervals are not corrected' in page and 'fresh seeds' in page


def test_equal_differences_prove_nothing():
    report = Report(results(none=NONE[:2], psa=[x + 0.5 for x in NONE[:2]]))
    assert report.conclusions() == (
        '**psa**: no interval and no verdict: all 2 differences are 0.50.'
    )
    assert 'clear' not in report.comparison


def test_what_seeds_can_see_is_corrected_too():
    arms = dict(none=NONE, psa=(50.5, 52.0, 52.6), se=WIDE)
    report = Report(results(**arms))
    deviation = report.differences['psa'].deviation
    seen = f'{detectable(deviation, 3, 0.05 / 2):.2f}'
    (line,) = (
        line
        for line in report.conclusions(2).split('\n')
        if line.startswith('**psa')
    )
    assert f'could see a difference of {seen}; ' in line
    p = report.differences['psa'].p
    assert f'({p:.2g} before the correction)' in line


def test_costs_of_arms_that_are_left_out():
    found = results(none=NONE, psa=PSA, se=WIDE)
    del found['arms']['se']
    assert [*Report(found).costs] == ['none', 'psa']


def test_one_seed():
    report = Report(results(none=NONE[:1], psa=PSA[:1]))
    found = rows(report.comparison)
    assert found['arm'][-1] == 'over none (95 % interval)'  # no verdict
    assert found['psa'] == ['51.00', '51.00', '+1.00']
    assert report.conclusions(1.0) == (
        '**psa**: no interval and no verdict: fewer than two seeds are '
        'finished in both arms.'
    )
    assert 'clear' not in report.text('plan')


def test_nothing_is_finished():
    content = results(none=NONE[:1], psa=PSA[:1])
    content.update(runs=[], costs={})
    page = Report(content).text('plan', 1.0)
    assert 'no interval and no verdict' in page
    assert '- psa, seed 0 is missing.' in page


def test_shares_are_given_in_percent():
    """mmpose logs 0.5 for 50 %."""
    content = results(none=(0.50, 0.51, 0.52), psa=(0.51, 0.521, 0.53))
    report = Report(content)
    assert report.metric == 'mIoU × 100'
    assert report.gain('psa') == '+1.03 (+0.89 to +1.18)'
    assert 'Score: `mIoU × 100`' in report.text('plan')
    assert Report(results(none=NONE, psa=PSA)).metric == 'mIoU'
    below = results(none=(-0.1, 0.5), psa=(0.5, 0.5))
    assert Report(below).metric == 'mIoU'


def test_no_minus_0():
    report = Report(results(none=(50.0, 50.0), psa=(50.004, 49.99)))
    assert report.gain('psa').startswith('+0.00 (')


def test_less_is_better():
    content = dict(results(none=NONE, psa=PSA), rule='less')
    assert Report(content).verdict('psa') == 'clear loss'
    assert 'less the better' in Report(content).text('plan').replace('\n', ' ')


def test_the_last_evaluation_counts_not_the_best():
    content = results(none=NONE, psa=PSA)
    content['runs'][0]['evaluations'].insert(
        1, dict(iteration=7, metrics=dict(mIoU=99.0))
    )
    assert Report(content).scores['none'][0] == 50.0


def test_another_baseline():
    report = Report(results(none=NONE, se=PSA, psa=WIDE), baseline='se')
    table = rows(report.comparison)
    assert table['arm'][4] == 'over se (95 % interval)'
    assert table['se'][4:] == ['', '']
    assert table['none'][4].startswith('-1.03 (')


def test_costs():
    content = results(none=NONE, psa=PSA)
    content['costs']['psa'].update(flops=None, train=0.36, test=0.2)
    found = rows(Report(content).cost)
    assert found['arm'][2:] == [
        'training step, ms',
        '÷ none',
        'inference, ms',
        '÷ none',
    ]
    assert found['none'] == ['1,000', '5', '300.0', '1.00', '100.0', '1.00']
    assert found['psa'] == ['1,001', '', '360.0', '1.20', '200.0', '2.00']
    del content['costs']['none']  # none of its runs is finished
    found = rows(Report(content).cost)
    assert found['psa'] == ['1,001', '360.0', '200.0']
    content['costs'] = results(none=NONE, psa=PSA)['costs']
    for run, gigabytes in zip(content['runs'], (1, 2, 1, 3, 3, 4)):
        run['memory'] = gigabytes * 2**30
    found = rows(Report(content).cost)
    assert found['arm'][-1] == 'peak memory, GiB'
    assert (found['none'][-1], found['psa'][-1]) == ('2.00', '4.00')


class TestStarts:
    def test_all_weights_are_equal(self):
        text = Report(results(none=NONE, psa=PSA)).starts
        assert text == '- psa: 2 of 2 weights of none are equal.'

    def test_weights_that_are_not_equal_are_named(self):
        """With one seed it is enough; a weight may be absent."""
        content = results(none=NONE, psa=PSA, wide=WIDE)
        content['runs'][4]['start'] = [0, '0' * 8 + '2' * 8]
        content['weights'].append(['norm', 'psa.conv'])
        for run in content['runs'][6:]:
            run['start'] = [1, '1' * 8 + '3' * 8]
        psa, wide = Report(content).starts.splitlines()
        assert psa == (
            '- psa: 1 of 2 weights of none are equal. These are not: norm.'
        )
        assert wide == (
            '- wide: 1 of 2 weights of none are equal. These are not: conv. '
            'It changes more than plugins; data and seed are equal.'
        )

    def test_seeds_without_a_pair_are_left_out(self):
        content = results(none=(50.0, None, 52.0), psa=PSA)
        text = Report(content).starts
        assert text == '- psa: 2 of 2 weights of none are equal.'

    def test_not_recorded(self):
        content = results(none=NONE, psa=PSA)
        content['runs'][1].update(start=None, versions=None, hash=None)
        report = Report(content)
        assert report.starts == '- psa: weights not recorded.'
        content['arms']['psa']['note'] = 'from elsewhere'
        assert Report(content).starts == '- psa: from elsewhere.'
        assert '- versions unknown' in report.remarks


def test_remarks():
    content = results(none=NONE, psa=(51.0, None, 53.0))
    content['runs'][0]['resumed'] = True
    content['runs'][-1]['evaluations'][-1]['metrics']['mIoU'] = None
    content['runs'][-1]['versions'] = dict(torch='2.2')
    report = Report(content)
    assert report.remarks.splitlines() == [
        '- none, seed 0 was cut and resumed.',
        '- psa, seed 1 is missing.',
        '- psa, seed 2 ended without a number.',
        '- torch 2.1',
        '- torch 2.2',
    ]
    assert rows(report.comparison)['psa'][:3] == ['51.00', '', '']


def test_runs_of_other_plans_are_left_out():
    content = results(none=NONE, psa=PSA)
    content['seeds'] = [0, 1]
    found = rows(Report(content).comparison)
    assert 'seed 2' not in found['arm'] and found['none'][2] == '50.50 ± 0.71'


def test_picture(tmp_path):
    """It does not depend on the moment, and shows what changes."""
    content = results(none=NONE, psa=PSA)
    files = []
    for i in range(3):
        files.append(tmp_path / f'{i}.png')
        Report(content).draw(files[-1])
        if i == 1:
            content = copy.deepcopy(content)
            content['runs'][0]['evaluations'][0]['metrics']['mIoU'] += 1
    first, same, other = (file.read_bytes() for file in files)
    assert first == same != other


@pytest.mark.parametrize('count', [0, 1])
def test_picture_of_little(count, tmp_path):
    content = results(none=NONE[:1], psa=PSA[:1])
    content.update(runs=content['runs'][:count], costs={})
    Report(content).draw(tmp_path / 'picture.png')
    assert (tmp_path / 'picture.png').stat().st_size > 1000
