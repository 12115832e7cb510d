"""Linear mode connectivity: its plans, its verdicts, and the published numbers."""
import math

import numpy as np, pytest
from conftest import ROOT
from lth_nb import linear_mode_connectivity as lmc
from lth_nb.experiment import FIGURES, Needs, Published, Store, Verdict, compute, missing
from lth_nb.experiment import _nodes as nodes

CHAPTER = [f for f in FIGURES.values() if f.id.startswith('linear_mode_connectivity/')]


def a_line(peak, ends=5., n=5):
    "What `line` would give: a curve with a barrier of `peak` points."
    e = [ends]*n; e[n//2] = ends + peak
    part = dict(error=e, loss=e, n=100)
    return dict(alphas=np.linspace(0, 1, n).tolist(), train=part, test=part)


@pytest.mark.parametrize('scale', ('smoke', 'quick', 'cpu', 'gpu', 'paper'))
def test_plans(scale):
    "Every figure has a plan at every scale, made without data on disk; what cannot be had says what it needs."
    for f in CHAPTER:
        plan = f.nodes(scale)
        assert plan or scale == 'cpu'   # the cpu scale has no Figures 4 and 9
        assert not plan or set(nodes(plan)) or any(isinstance(v, Needs) for v in plan.values())


def test_paper_plan_is_the_papers():
    by = {c.name: c for c in lmc.paper_cases()}
    assert list(by) == list(lmc.PAPER_TABLE_1) == list(lmc.PAPER_TABLE_2)
    lenet = by['LeNet']
    assert (lenet.recipe.end(lenet.data), lenet.recipe.batch, lenet.recipe.optimizer, lenet.recipe.lr) == (24000, 60, 'adam', 12e-4)
    assert len(lmc.dense_lines(lenet)) == 9 and lenet.alphas == 30
    printed = {'LeNet': 3.5, 'ResNet-20': 16.8, 'ResNet-20 low': 8.6, 'ResNet-20 warmup': 8.6, 'VGG-16': 1.5, 'VGG-16 low': 5.5, 'VGG-16 warmup': 1.5,
               'ResNet-50': 30, 'Inception-v3': 30}
    for name,left in printed.items(): assert round(by[name].percent, 1) == left   # VGG-16's last layer is not pruned and is counted


def test_pairs_share_their_runs():
    "Nine lines of nine children, each trained once; the first child is also the first round of pruning."
    c,store = lmc.paper_cases()[0],Store('memory://none')
    tasks = missing(lmc.dense_lines(c), store)
    assert sum(t.nodes[0].step.name == 'trajectory' for t in tasks.values()) == 9
    more = missing([*lmc.dense_lines(c), lmc.ticket(c, 0, 0, level=1)], store)
    assert sum(t.nodes[0].step.name == 'trajectory' for t in more.values()) == 9


def test_reset_starts_the_schedule_over():
    c = lmc.cases('quick')[2]
    k = c.ks[2]
    rest,reset = (next(iter(n.inputs)).args for n in (lmc.dense_lines(c, k)[0], lmc.dense_lines(c, k, reset=True)[0]))
    assert rest['first'] == k and reset['first'] == 0 and rest['start'] == reset['start']


def test_controls_keep_their_half():
    c = lmc.cases('quick')[2]
    (wi,mi),(wp,mp),(wr,mr) = (lmc.subnetwork(c, 50, 0, kind) for kind in ('imp', 'prune', 'reinit'))
    assert wi == wp != wr and mi == mr != mp and mp.args['mask'] == mi
    with pytest.raises(ValueError, match='use one of imp'): lmc.subnetwork(c, 50, 0, 'magic')


@pytest.mark.parametrize('peaks,large,small', [((40, 44, 42), True, False), ((.5, .6, .4), False, True), ((1, 3, 2), None, None), ((40,), None, None)])
def test_stability_verdicts(peaks, large, small):
    names = {c.setting: c.name for c in lmc.cases('quick')}
    lines = {'averaged': [a_line(p) for p in peaks]}
    assert lmc.lm1({names['standard']: lines}, 'quick').holds is large
    assert lmc.lm2({names['small']: lines}, 'quick').holds is small


def test_one_network_against_a_claim_is_a_no():
    yes,no,open_ = Verdict(True, 1.), Verdict(False, 2.), Verdict(None, 3.)
    assert lmc.together(dict(a=yes, b=no, c=open_)).holds is False
    assert lmc.together(dict(a=yes, c=open_)).holds is None and lmc.together(dict(a=yes)).holds is True
    assert lmc.together({}).holds is None


def test_onsets():
    by_k = {0: np.array([9., 9, 9]), 10: np.array([1., 9, 9]), 20: np.array([1., 1, 9])}
    o = lmc.onset(by_k, 2)
    assert o[:2].tolist() == [1, 2] and math.isnan(o[2])
    assert lmc.median_onset(by_k, 2, (0, 10, 20)) == 1.5
    assert math.isnan(lmc.median_onset({0: np.array([9., 9, 1])}, 2, (0,)))   # no majority


@pytest.mark.parametrize('low,table2', [(.1, True), (5., False)])
def test_table_2_verdicts(low, table2):
    name = next(c.name for c in lmc.cases('quick') if c.setting == 'low')
    full = [a_line(1, 5.) for _ in range(3)]
    imp = [a_line(1, 5 + low + d) for d in (0, .01, .02)]
    assert lmc.lm6({name: dict(full=full, imp=imp)}, 'quick').holds is table2


def lines_of(*peaks, ends=5.): return [a_line(p, ends) for p in peaks]
high,low = (40, 42, 44),(.5, .6, .7)   # barriers of three pairs
conv = next(c for c in lmc.cases('quick') if c.sweep)   # 1,000 steps


@pytest.mark.parametrize('by_k,holds', [({0: high, 100: low, 400: low}, True), ({0: high, 100: high, 200: low}, True),
    ({0: high, 100: high, 400: low}, None),    # stable somewhere between a tenth and two fifths of training
    ({0: high, 300: high, 400: low}, False),   # too late to be early
    ({0: high, 400: high}, False), ({0: high, 400: (1, 2, 6)}, None), ({0: low, 100: high}, False), ({0: (40,), 100: (1,)}, None)])
def test_early_stability_verdict(by_k, holds):
    assert lmc.lm3({conv.name: {k: lines_of(*v) for k,v in by_k.items()}}, 'quick').holds is holds


@pytest.mark.parametrize('imp,lost,dense,holds', [
    ((high, low, low), (5, .1, .1), (high, high, low), True),
    ((high, low, low), (5, 5, .1), (high, high, low), True),      # matching one place later
    ((high, low, low), (5, .1, .1), (high, low, low), None),      # the grid cannot tell who is first
    ((high, high, low), (5, .1, .1), (high, low, low), False),    # after the whole network
    ((low, low, low), (5, 5, .1), (high, high, low), False),      # stable long before it matches
    ((high, low, low), (5, 5, 5), (high, high, low), False),      # never matches
    ((high, high, high), (5, .1, .1), (high, high, low), False)]) # never stable
def test_subnetworks_stable_and_matching_verdict(imp, lost, dense, holds):
    by = lambda peaks, off=(0, 0, 0): {k: [a_line(p, 5 + o + d) for p,d in zip(ps, (-.02, 0, .02))] for k,ps,o in zip(conv.sub_ks, peaks, off)}
    v = dict(full=lines_of(*high), dense=by(dense), imp=by(imp, lost))
    assert lmc.lm8({conv.name: v}, 'quick').holds is holds


@pytest.mark.parametrize('imp,prune,holds', [(.1, .1, True), (.1, 5, False), (5, .1, None)])
def test_sparsities_verdict(imp, prune, holds):
    "Stable from the second k on; matching from there, or a place later, which decides nothing; random pruning as good at low sparsity or not."
    ks,(easy,hard) = conv.sub_ks,conv.sweep
    sub = lambda off: {ks[0]: [a_line(p, 10.) for p in high], ks[1]: [a_line(p, 5 + off) for p in low], ks[2]: [a_line(p, 5.1) for p in low]}
    never = lambda off: {k: [a_line(p, 5 + off) for p in high] for k in ks}
    v = dict(full=lines_of(*high), imp={easy: sub(imp), hard: sub(imp)}, prune={easy: never(prune), hard: never(prune)})
    assert lmc.lm10({conv.name: v}, 'quick').holds is holds


def published():
    s = Published(ROOT/'nbs/results')
    return s, {f.id.split('/')[1]: compute(f.nodes('paper'), store=s, stored=True) for f in CHAPTER if f.id.split('/')[1] in ('figure-2', 'figure-3', 'figure-5')}


def test_published_lenet():
    "LeNet on MNIST as the paper has it: within 0.5 of its accuracy, stable at every k."
    store,figs = published()
    if not store.paths('line'): pytest.skip('no published results yet')
    case = lmc.paper_cases()[0]
    at0 = figs['figure-2']['LeNet']['averaged']
    assert len(lmc.measured(at0)) == 9 and abs(lmc.accuracy(at0, case)[0] - 98.3) < .5
    for k,vs in figs['figure-3']['LeNet'].items():
        if ms := lmc.measured(vs): assert lmc.barriers(ms).mean() < 2, k


def test_lenet_learns_mnist(real_data, store):
    "A short real run, from raw files to an accuracy."
    from dataclasses import replace
    from lth_nb.training import evaluate, init, train
    c = lmc.paper_cases()[0]
    short = replace(c.recipe, steps=600)
    got = compute(evaluate(train(init(c.network, seed=0), c.data, short, order=0).at('end'), c.data, splits=('test',)), store=store, workers=1, quiet=True)
    assert got['test']['error'] < 8 and got['test']['n'] == 10000
