"""Tickets: the definition on tables of runs, its doors, and tables that cannot be right."""
import math

import numpy as np, pandas as pd, pytest
from lth_nb.measures import Rules, judge, read_runs

LRS = (.01, .03, .1)


def runs(dense, LT, RR, small, lrs=LRS, seeds=3, noise=.05, sparsity=.914, **more):
    "A table with the same noise in every kind, so that differences are exact."
    kinds = {'dense': dense, 'LT': LT, 'RR': RR, 'small': small, **more}
    rows = []
    for k,accuracies in kinds.items():
        s = None if k == 'dense' else sparsity
        for lr,a in zip(lrs, accuracies):
            rows += [dict(run=k.replace('_', '-'), lr=lr, seed=i, accuracy=a + noise*i, sparsity=s)
                     for i in range(seeds)]
    return rows


JACKPOT = dict(dense=(88, 90, 92), LT=(88, 91, 91.8), RR=(80, 84, 86), small=(75, 80, 84))
SECONDARY = dict(dense=(88, 90, 92), LT=(88, 91, 89), RR=(80, 84, 86), small=(75, 80, 84))


@pytest.mark.parametrize('table,word', [(JACKPOT, 'Jackpot'), (SECONDARY, 'secondary prize'),
    ({**SECONDARY, 'LT': (86, 88, 89)}, 'no ticket'),          # never like the dense network at one rate
    ({**JACKPOT, 'RR': (80, 91.5, 86)}, 'no ticket'),          # re-initialised does as well, at another rate
    ({**JACKPOT, 'small': (75, 91.5, 84)}, 'no ticket')])
def test_prizes(table, word): assert str(judge(runs(**table))) == word


def test_each_condition_has_its_bound():
    "A margin is measured from its bound; at the bound similar still holds, a clear gap too."
    at_the_bound = runs(dense=(90, 90, 90), LT=(89.5, 80, 80), RR=(89, 80, 80), small=(89, 80, 80))
    below = runs(dense=(90, 90, 90), LT=(89.4, 80, 80), RR=(88, 80, 80), small=(88, 80, 80))
    p = judge(at_the_bound, data='cifar10', epochs=160)
    assert [c.holds for c in p.conditions] == [True]*5
    assert all(abs(c.margin) < 1e-9 for c in p.conditions[1:])
    assert judge(below, data='cifar10').conditions[3].holds is False
    assert judge(below, data='cifar100').conditions[3].holds is True


def test_the_rates_that_decide_are_told():
    p = judge(runs(**SECONDARY))
    c3,c4,c5 = p.conditions[2:]
    assert (c3.lr, c3.against) == (.03, .1)
    assert c4.lr == c4.against
    assert (c5.lr, c5.against) == (.03, .1)
    assert c5.margin == pytest.approx(-1 + .5)
    assert c5.holds is False


@pytest.mark.parametrize('kind,n', [('RR', 3), ('small', 2), ('dense', 5)])
def test_a_missing_cell_is_not_guessed(kind, n):
    "Without one rate of the other side, 'any rate' is not decided, though all the rest would say yes."
    whole = runs(**JACKPOT)
    cut = [r for r in whole if not (r['run'] == kind and r['lr'] == .01)]
    p = judge(cut)
    assert p.conditions[n - 1].holds is None
    assert str(p) in ('not decided', 'secondary prize, Jackpot not decided')
    assert 'lr 0.01' in p.conditions[n - 1].why
    part = [r for r in whole if not (r['run'] == kind and r['lr'] == .01 and r['seed'] == 2)]   # one seed of it gone
    assert judge(part).conditions[n - 1].holds is None
    empty = [{**r, 'accuracy': None} if r['run'] == kind and r['lr'] == .01 else r for r in whole]
    assert judge(empty).conditions[n - 1].holds is None


def test_a_missing_cell_does_not_save_what_is_lost():
    "One rate of re-initialisation that beats the ticket is enough, whatever is missing."
    table = [r for r in runs(**{**JACKPOT, 'RR': (80, 93, 86)}) if not (r['run'] == 'RR' and r['lr'] == .01)]
    assert judge(table).conditions[2].holds is False


@pytest.mark.parametrize('level', (.95, None))
def test_a_single_seed_decides_nothing(level):
    p = judge(runs(**JACKPOT, seeds=1), rules=Rules(level=level))
    assert [c.holds for c in p.conditions] == [True, None, None, None, None]
    assert str(p) == 'not decided'


def test_a_grid_of_one_rate():
    one = judge(runs(dense=(90,), LT=(90,), RR=(80,), small=(80,), lrs=(.1,)))
    assert [c.holds for c in one.conditions] == [True, None, None, True, None]
    worse = judge(runs(dense=(90,), LT=(80,), RR=(80,), small=(80,), lrs=(.1,)))
    assert worse.conditions[3].holds is None   # another rate might do


def test_noise_is_not_decided_but_means_are():
    rng = np.random.default_rng(0)
    table = [{**r, 'accuracy': r['accuracy'] + rng.normal(0, 3)} for r in runs(**SECONDARY)]
    assert judge(table).secondary is not True
    assert judge(table, rules=Rules(level=None)).secondary is not None


def test_doors():
    t = runs(dense=(80, 90, 92), LT=(80, 85, 90), RR=(70, 80, 86), small=(60, 70, 80))
    assert str(judge(t)) == 'secondary prize'                              # 3 at .1, 4 at .01
    assert str(judge(t, rules=Rules(together=True))) == 'no ticket'
    assert str(judge(t, rules=Rules(decent=5.))) == 'no ticket'            # at .01 the dense network is hopeless
    assert str(judge(t, sparsity=.914, rules=Rules(sparsity=.95))) == 'no ticket'
    both = runs(dense=(88, 90, 92), LT=(88, 91, 91.8), RR=(80, 84, 86), small=(75, 80, 84), RR_OMP=(80, 91.7, 80))
    assert str(judge(both)) == 'Jackpot'
    assert str(judge(both, rules=Rules(rr='any'))) == 'no ticket'


def test_the_better_searcher():
    t = runs(dense=(88, 90, 92), LT_IMP=(80, 80, 80), RR_IMP=(70, 70, 70), LT_OMP=(88, 91, 91.8), RR_OMP=(80, 84, 86),
             small=(75, 80, 84), LT=(), RR=())
    assert (str(judge(t)), judge(t).method) == ('Jackpot', 'OMP')
    assert str(judge(t, method='IMP')) == 'no ticket'
    with pytest.raises(ValueError, match='LT-IMP, LT-OMP'): judge(t, method='magic')


def test_weight_rewinding_stands_in_for_the_ticket():
    t = runs(**SECONDARY, WR=(88, 91, 92))
    assert str(judge(t)) == 'secondary prize'
    assert str(judge(t, ticket='WR')) == 'Jackpot'


@pytest.mark.parametrize('bad,said', [
    ([dict(run='LT', lr=-1, accuracy=90)], 'learning rate above 0'),
    ([dict(run='LT', lr='fast', accuracy=90)], "'fast' is not a number"),
    ([dict(run='LT', lr=.1, accuracy=190)], '0 to 100'),
    ([dict(run='LT', lr=.1, accuracy=.9)], 'per cent'),
    ([dict(run='ticket', lr=.1, accuracy=90)], 'use dense'),
    ([dict(run='LT', lr=.1)], "no column 'accuracy'"),
    ([], 'empty'),
    ([dict(run='LT', lr=.1, accuracy=90, sparsity=1.2)], 'between 0 and 1'),
    ([dict(run='LT', lr=.1, accuracy=90, sparsity=0)], 'between 0 and 1'),
    ([dict(run='LT', lr=.1, accuracy=math.inf)], 'finite')])
def test_bad_tables(bad, said):
    with pytest.raises(ValueError, match=said): read_runs(bad)


@pytest.mark.parametrize('kw,said', [
    (dict(sparsity=1.), 'between 0 and 1'), (dict(sparsity=0.), 'between 0 and 1'),
    (dict(sparsity=91.4), 'between 0 and 1'), (dict(sparsity=.5), 'no LT runs at sparsity 0.5'),
    (dict(data='svhn'), 'no thresholds'), (dict(at=.7), 'the rates are'), (dict(ticket='XX'), "'LT' or 'WR'")])
def test_bad_questions(kw, said):
    with pytest.raises(ValueError, match=said): judge(runs(**JACKPOT), **kw)


def test_a_frame_and_a_csv_and_nans(tmp_path):
    t = runs(**SECONDARY)
    f = pd.DataFrame(t)
    f.to_csv(tmp_path/'runs.csv', index=False)
    assert str(judge(f)) == str(judge(tmp_path/'runs.csv')) == str(judge(str(tmp_path/'runs.csv'))) == 'secondary prize'
    f.loc[(f.run == 'RR') & (f.lr == .01), 'accuracy'] = np.nan
    assert judge(f).conditions[2].holds is None
    assert '<table' in judge(t)._repr_html_()
    two = [{**r, 'network': str(i % 2)} for i,r in enumerate(t)]
    with pytest.raises(ValueError, match='several networks'): judge(two)


def test_tables_of_others(tmp_path):
    """What other people's tables have: a byte order mark, 0.0 for seed 0, rates that differ in the tenth digit, the
    dense network beside each sparsity, more seeds of one kind."""
    t = runs(**SECONDARY)
    pd.DataFrame(t).to_csv(tmp_path/'excel.csv', index=False, encoding='utf-8-sig')
    loose = [{**r, 'seed': float(r['seed']), 'lr': r['lr']*(1 + 1e-9)} if r['run'] == 'RR' else r for r in t]
    twice = [{**r, 'sparsity': s} for s in (.8, .914) for r in t]
    more = t + [dict(run='dense', lr=lr, seed=9, accuracy=92 if lr == .1 else 88, sparsity=None) for lr in LRS]
    for table,kw in ((str(tmp_path/'excel.csv'), {}), (loose, {}), (twice, dict(sparsity=.8)), (more, {}),
                     (pd.DataFrame(t), dict(sparsity=np.float32(.914)))):
        assert str(judge(table, **kw)) == 'secondary prize'
    class Polars:
        def to_dicts(self): return t
    assert str(judge(Polars())) == 'secondary prize'


def test_runs_without_pairs():
    "Seeds that two kinds do not share decide nothing by pairs, and are told; as independent runs they can."
    t = [{**r, 'seed': r['seed'] + 10*(r['run'] != 'dense')} for r in runs(**SECONDARY)]
    p = judge(t)
    assert [c.holds for c in p.conditions] == [True, True, True, None, None]
    assert 'share 0 seeds' in p.conditions[3].why
    assert str(judge(t, rules=Rules(paired=False))) == 'secondary prize'
    # the same noise in both: pairs would cancel it
    noisy = [{**r, 'accuracy': r['accuracy'] + 4*(r['seed'] % 10 == 1)} for r in t]
    assert judge([{**r, 'seed': r['seed'] % 10} for r in noisy]).secondary is True
    assert judge(noisy, rules=Rules(paired=False)).secondary is None
    one = [r for r in t if r['run'] == 'dense' or r['seed'] == 10]
    assert judge(one, rules=Rules(paired=False)).conditions[3].holds is None


def test_many_rates_are_many_chances():
    "A gap that is just clear at one rate of three is not when the level is shared among them."
    t = runs(dense=(90, 90, 90), LT=(85, 91.2, 85), RR=(90, 90, 90), small=(80, 80, 80))
    t = [{**r, 'accuracy': r['accuracy'] + (.25*(r['seed'] - 1) if r['run'] == 'LT' else 0)} for r in t]
    assert judge(t).conditions[2].holds is True
    assert judge(t, rules=Rules(corrected=True)).conditions[2].holds is None
    assert judge(t, rules=Rules(corrected=True), at=.03).conditions[2].holds is None


@pytest.mark.parametrize('call,said', [
    (lambda: judge(5), 'a list of dicts'), (lambda: judge({'run': ['LT']}), 'a list of dicts'),
    (lambda: judge([1, 2]), 'a list of dicts'),
    (lambda: judge([{k: v for k,v in r.items() if k != 'seed'} for r in runs(**JACKPOT)]), 'a column `seed`'),
    (lambda: judge(runs(**JACKPOT), rules='cifar10'), "data='cifar10'"),
    (lambda: judge(runs(**JACKPOT), epochs=-1), 'epochs=-1'),
    (lambda: Rules(similar='wide'), "similar='wide'"), (lambda: Rules(decent=-1), 'decent=-1'),
    (lambda: Rules(epochs=-1), 'epochs=-1'), (lambda: Rules(level=95), 'level=95')])
def test_bad_input_names_what_is_wrong(call, said):
    with pytest.raises(ValueError, match=said): call()


def test_a_separator_that_is_not_a_comma_shows_the_columns(tmp_path):
    pd.DataFrame(runs(**JACKPOT)).to_csv(tmp_path/'x.csv', sep=';', index=False)
    with pytest.raises(ValueError, match='run;lr;seed'): judge(tmp_path/'x.csv')
