"""R_p: by hand, at ties, its null distribution, files, bad input; the chapter's plans and verdicts."""
import math, time, warnings
from dataclasses import replace

import numpy as np, pytest, torch
from conftest import ROOT
from lth_nb import weight_correlation as wc
from lth_nb.data import mnist1d
from lth_nb.claims import Verdict, together, within
from lth_nb.experiment import Published, Store, compute, missing, nodes_in as nodes
from lth_nb.figures import weight_correlation as figs
from lth_nb.figures.kit import FIGURES, Needs
from lth_nb.networks import mnist1d_conv as conv, resnet20
from lth_nb.measures import R_p, correlation, indicator, layers_of, null, overlap, pairwise, ranks, shared, z_score
from lth_nb.pruning import dense_mask, lowest, magnitude_mask, prunable_weights
from lth_nb.training import Recipe, init, train
from safetensors.torch import save_file

CASES = {scale: figs.cases(scale)[0] for scale in ('smoke', 'quick', 'gpu', 'paper')}
CHAPTER = [f for f in FIGURES.values() if f.id.startswith('weight_correlation/')]

@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch): monkeypatch.setenv('LTH_NB_DEVICE', 'cpu')

def draw(*shapes, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {f'l{i}.weight': torch.randn(s, generator=g) for i,s in enumerate(shapes)}

def by_hand(a, b, p, mask=None):
    "Sets of places, as the paper writes it; of equal magnitudes the later place is the larger."
    hits = total = 0
    for n in a:
        alive = [j for j in range(a[n].numel()) if mask is None or mask[n].flatten()[j]]
        k = max(1, round(p*len(alive)))
        top = [set(sorted(alive, key=lambda j: (abs(float(w[n].flatten()[j])), j))[-k:]) for w in (a, b)]
        hits += len(top[0] & top[1]); total += k
    return hits/total


@pytest.mark.filterwarnings('ignore:.*are not 0')
@pytest.mark.parametrize('p', (.001, .05, .2, .5, .77, 1.))
@pytest.mark.parametrize('masked', (False, True))
def test_it_is_the_definition(p, masked):
    a,b = draw((7, 3), (2, 3, 3), (1, 1)),draw((7, 3), (2, 3, 3), (1, 1), seed=1)
    b = {k: (b[k] + a[k]).round(decimals=0) for k in b}   # many ties
    mask = {k: torch.rand(v.shape, generator=torch.Generator().manual_seed(5)) < .6 for k,v in a.items()} if masked else None
    if masked: mask['l2.weight'][:] = True
    assert R_p(a, b, p, mask) == by_hand(a, b, p, mask) == R_p(b, a, p, mask)

def test_many_p_at_once():
    a,b,ps = draw((30, 20), (10, 30)),draw((30, 20), (10, 30), seed=1),np.linspace(.01, 1, 34)
    assert indicator(overlap(a, b, ps)).tolist() == [R_p(a, b, p) for p in ps]

@pytest.mark.parametrize('fraction', (.1, .25, .5, .9))
def test_ties_are_prunings(fraction):
    "The top is exactly what pruning the rest would leave, also where magnitudes are equal and signs differ."
    w = torch.randn(400, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    left = torch.ones(400, dtype=torch.bool); left[lowest(w.abs(), fraction)] = False
    assert torch.equal(ranks(w.abs()) < int(left.sum()), left)
    m = magnitude_mask({'w': w.view(20, 20)}, fraction)['w'].flatten()
    assert torch.equal(m, left)

def test_signs_and_scale_do_not_matter():
    a = draw((40, 30))
    assert R_p(a, {k: -3*v for k,v in a.items()}, .2) == 1
    smallest = {k: 1/v for k,v in a.items()}
    assert R_p(a, smallest, .5) == 0 and float(z_score(overlap(a, smallest, .5))[0]) < -30   # negative correlation

def test_sparse_counts_what_remains():
    "Pruned weights are not in N_l; without the mask, p below the density counts them and gives the same for equal tops."
    a,b = draw((50, 40)),draw((50, 40), seed=1)
    m = magnitude_mask(b, .5)
    o = overlap({k: v*m[k] for k,v in a.items()}, {k: v*m[k] for k,v in b.items()}, (.2,), mask=m)
    assert o['layers']['l0.weight']['n'] == 1000 and o['layers']['l0.weight']['top'] == [200]
    assert R_p(b, {k: v*m[k] for k,v in b.items()}, .2) == 1   # the larger fifth survives: appendix F's reading
    assert indicator(o)[0] == R_p(a, b, .2, m), 'masking the weights first changes nothing'


def test_a_mask_alone_can_bring_it_below_chance():
    "What the chapter says of survivors: one weight in five moves far, the others stay; dense it is above p, among the survivors below."
    a,g = draw((400, 500)),torch.Generator().manual_seed(3)
    far = torch.rand(400, 500, generator=g) < .2
    b = {k: v + torch.where(far, 3., .1)*torch.randn(400, 500, generator=g) for k,v in a.items()}
    m = magnitude_mask(b, .7)
    assert R_p(a, b, .2) > .4 and float(z_score(overlap(a, b, .2, m))[0]) < -10
    other = {k: v[:, torch.randperm(500, generator=g)] for k,v in a.items()}   # the same beginnings, elsewhere
    assert abs(float(z_score(overlap(other, b, .2, m))[0])) < 4

@pytest.mark.parametrize('p', (.1, .2, .5))
def test_the_null_distribution(p):
    "Mean and deviation over 600 independent pairs are those computed, and those are (1 - p)/sqrt(N)."
    shapes = (16, 3), (32, 16), (10, 32)
    os = [overlap(draw(*shapes, seed=2*s), draw(*shapes, seed=2*s + 1), p) for s in range(600)]
    r = np.array([indicator(o)[0] for o in os])
    mean,sd = (float(x[0]) for x in null(os[0]))
    assert abs(r.mean() - mean) < 4*sd/600**.5 and abs(r.std(ddof=1)/sd - 1) < .12
    assert mean == pytest.approx(p, rel=.01) and sd == pytest.approx((1 - p)/sum(math.prod(s) for s in shapes)**.5, rel=.02)
    z = np.array([z_score(o)[0] for o in os])
    assert abs(z.mean()) < .2 and abs(z.std() - 1) < .12

def test_resnet_20_null():
    "The scale of chance for the paper's network: 0.15 points at p = 0.2."
    w = {k: v for k,v in prunable_weights(init.fn(resnet20, 0)).items()}
    assert float(null(overlap(w, w, .2))[1][0]) == pytest.approx(.0015, abs=1e-4)


def test_many_pairs():
    xs = [draw((40, 30), (20, 40), seed=s) for s in range(5)]
    xs.append({k: v + .3*torch.randn_like(v) for k,v in xs[0].items()})
    m = {k: v > -.5 for k,v in xs[3].items()}
    for mask in (None, m):
        got = pairwise(xs, .15, mask)
        assert all(got[i, j] == pytest.approx(R_p(xs[i], xs[j], .15, mask), abs=1e-12) for i in range(6) for j in range(6))
        assert (np.diag(got) == 1).all() and got[0, 5] > .5


def test_anything_with_weights(tmp_path):
    "A state, a module, its state_dict, a safetensors file, a file of the store: all the same network."
    state = init.fn(conv, 0)
    m = conv.create(0)
    save_file(m.state_dict(), tmp_path/'w.safetensors')
    store = Store(tmp_path/'s')
    store.write('trajectory/x/at-1', {**state, 'slots': {'momentum_buffer': state['weights']}})
    forms = [state, m, m.state_dict(), tmp_path/'w.safetensors', str(tmp_path/'s/trajectory/x/at-1.safetensors')]
    assert all(list(layers_of(x)) == list(prunable_weights(state)) or {*layers_of(x)} == {*prunable_weights(state)} for x in forms)
    other = init.fn(conv, 1)
    assert len({R_p(x, other, .2) for x in forms}) == 1

def test_files_of_millions(tmp_path):
    "Four million weights in two files, several p: seconds, and one layer in memory at a time."
    big = draw((1000, 2000), (1000, 2000))
    for n,x in (('a', big), ('b', draw((1000, 2000), (1000, 2000), seed=9))): save_file({**x, 'norm.weight': torch.ones(5)}, tmp_path/f'{n}.safetensors')
    start = time.perf_counter()
    o = overlap(tmp_path/'a.safetensors', tmp_path/'b.safetensors', (.01, .1, .2, .5))
    assert time.perf_counter() - start < 30 and sum(l['n'] for l in o['layers'].values()) == 4_000_000
    assert (np.abs(z_score(o)) < 5).all() and R_p(tmp_path/'a.safetensors', big, .1) == 1


@pytest.mark.parametrize('p', (0, -.1, 1.0001, 20, float('nan'), float('inf'), 'half', None))
def test_bad_p(p):
    a = draw((5, 5))
    for f in (R_p, lambda a, b, p: pairwise([a, b], p), lambda a, b, p: overlap(a, b, (.2, p))):
        with pytest.raises(ValueError, match=r'p=.*fraction in \(0, 1\]'): f(a, a, p)

def test_bad_weights():
    a,b = draw((5, 4), (3, 3)),draw((5, 4), (3, 2))
    with pytest.raises(ValueError, match=r'l1.weight: shapes \(3, 3\) and \(3, 2\) differ'): R_p(a, b, .2)
    with pytest.raises(ValueError, match='l1.weight: shapes'): pairwise([a, b], .2)
    with pytest.raises(ValueError, match='different layers.*l1.weight'): R_p(a, {'l0.weight': a['l0.weight']}, .2)
    nan = {**a, 'l0.weight': a['l0.weight'].clone()}; nan['l0.weight'][0, 0] = math.nan
    for x,y in ((a, nan), (nan, a)):
        with pytest.raises(ValueError, match='l0.weight: 1 of 20 weights are NaN'): R_p(x, y, .2)
    gone = {**dense_mask(a), 'l1.weight': torch.zeros(3, 3, dtype=torch.bool)}
    for f in (lambda: R_p(a, a, .2, gone), lambda: pairwise([a, a], .2, gone)):
        with pytest.raises(ValueError, match='l1.weight: no weights left.*exempt'): f()
    assert R_p(a, a, .2, gone, exempt=('l1.weight',)) == 1
    for f in (lambda: pairwise([a, nan], .2), lambda: magnitude_mask(nan, .2)):
        with pytest.raises(ValueError, match='l0.weight: 1 of 20 weights are NaN'): f()
    for m in ('long', 'float'):   # zeros and ones as an index would pick places 0 and 1
        wrong = {k: getattr(torch.ones(v.shape), m)() for k,v in a.items()}
        for f in (lambda: R_p(a, a, .2, wrong), lambda: pairwise([a, a], .2, wrong), lambda: magnitude_mask(a, .2, wrong)):
            with pytest.raises(ValueError, match=f'l0.weight.*torch.{"int64" if m == "long" else "float32"}.*use bool'): f()
    with pytest.raises(ValueError, match='l0.weight: no weights left'): R_p(draw((0, 4)), draw((0, 4)), .2)
    with pytest.raises(ValueError, match="exempt=.'fc'.*l0.weight"): R_p(a, a, .2, exempt=('fc',))
    with pytest.raises(ValueError, match=r'mask has shape \(4,\)'): shared(a['l0.weight'], a['l0.weight'], [.2], torch.ones(4).bool())
    with pytest.raises(ValueError, match='no layers to compare'): R_p({'b': torch.ones(3)}, {'b': torch.ones(3)}, .2)
    with pytest.raises(ValueError, match="layer='l9'.*l0.weight"): indicator(overlap(a, a, .2), 'l9')
    with pytest.raises(TypeError, match=r'\[1, 2\] is no network'): R_p([1, 2], a, .2)

def test_what_is_no_safetensors_file(tmp_path):
    torch.save(draw((5, 4)), tmp_path/'w.pt')
    with pytest.raises(ValueError, match='w.pt is no safetensors file.*save_file'): R_p(tmp_path/'w.pt', draw((5, 4)), .2)
    with pytest.raises(FileNotFoundError, match='gone.safetensors'): R_p(tmp_path/'gone.safetensors', draw((5, 4)), .2)

def test_zeros_in_the_top_are_told():
    "Without the mask, two sparse networks agree on which zeros are large: by place, and for nothing."
    a,b = draw((50, 40)),draw((50, 40), seed=1)
    m = magnitude_mask(draw((50, 40), seed=2), .7)
    cut = lambda w: {k: v*m[k] for k,v in w.items()}
    with pytest.warns(UserWarning, match='600 of 2000 weights .* top 1000 .*mask'): high = R_p(cut(a), cut(b), .5)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert high > .8 and abs(R_p(cut(a), cut(b), .5, m) - .5) < .1 and R_p(cut(a), cut(b), 1.) == 1


def test_along_training(tmp_path):
    "Watched on the way, R_p is what it is between the stored states; it starts at 1."
    data,r = mnist1d(train=128, test=64),Recipe(12, batch=32, lr=.3)
    w0 = init(conv, seed=0)
    run = train(w0, data, r)
    watched,mid,end = compute([run.watch([0, 5, 12], correlation, other=w0, ps=(.1, .5)), run.at(5), run.at(12)], store=Store(tmp_path), workers=1, quiet=True)
    assert indicator(watched[0]).tolist() == [1, 1]
    for o,s in zip(watched[1:], (mid, end)): assert o == overlap(s, init.fn(conv, 0), (.1, .5))


# ------------------------------------------------------------------ the chapter

@pytest.mark.parametrize('scale', ('smoke', 'quick', 'cpu', 'gpu', 'paper'))
def test_plans(scale):
    "Every figure has a plan at every scale, made without data on disk; what cannot be had says what it needs."
    for f in CHAPTER:
        plan = f.nodes(scale)
        assert plan and (set(nodes(plan)) or any(isinstance(v, Needs) for v in plan.values())), f.id

def test_paper_plan_is_the_papers():
    by = {case.name: case for case in figs.paper_cases()}
    c = by['ResNet-20/C10']
    assert c.seeds == 5 and c.low == .01 and c.recipe.lr == .1 and c.recipe.batch == 128 and c.recipe.momentum == .9
    per = c.recipe.per_epoch(c.data)
    assert c.recipe.end(c.data) == round(150*per) and c.recipe.milestones == ('80ep', '120ep')
    assert set(figs.PAPER_TABLE_1) <= set(by) and set(figs.PAPER_DENSE) <= set(by)
    printed = [round(100*s) for s in c.rounds]
    assert {39, 62, 86} <= set(printed)   # 85.8 %, printed as 85
    assert len(c.exempt) == 1 and wc.path(c, .7) == (*(s for s in c.rounds if s < .7), .7)

def test_trainings_are_shared():
    "A ticket under its own mask is the next round; a new sparsity costs one round and what is asked for."
    c = CASES['quick']
    first = wc.under(c, 'high', 0, 'ticket', 'iterative', .3).at('end')
    assert first in wc.iterative(c, 'high', 0, .5).inputs
    store = Store('memory://none')
    count = lambda x: sum(t.nodes[0].step.name == 'trajectory' for t in missing(list(nodes(x)), store).values())
    assert count(wc.iterative(c, 'high', 0, .9)) == 5
    assert count([wc.under(c, 'high', 0, 'ticket', 'iterative', s).at('end') for s in c.rounds]) == 6

def test_beginnings():
    "One recipe, one mask, one data order; fine-tuning starts at the dense end and at step 0 of the schedule."
    c = CASES['quick']
    t,r,f,w = (wc.under(c, 'low', 0, k, 'oneshot', .5).node.args for k in ('ticket', 'reinit', 'finetune', 'rewind'))
    for x in (r, f, w): assert {k: x[k] for k in ('data', 'recipe', 'order', 'mask', 'first')} == {k: t[k] for k in ('data', 'recipe', 'order', 'mask', 'first')}
    assert f['start'] == wc.dense(c, 'low', 0).at('end') and t['first'] == 0 and t['recipe'].lr == .02 and w['optimizer'] == 'fresh'
    for bad,f in (('magic', lambda: wc.sparse(c, 'low', 0, 'magic', None, 1)), ('magic', lambda: wc.mask_of(c, 'low', 0, 'magic', .5))):
        with pytest.raises(ValueError, match=f"'{bad}': use one of"): f()

def test_masks_have_equal_counts(store):
    c = CASES['smoke']
    ms = compute([wc.mask_of(c, 'high', 0, how, .5) for how in figs.MASKS], store=store, workers=1, quiet=True)
    counts = [{k: int(v.sum()) for k,v in m.items()} for m in ms]
    assert all(abs(counts[0][k] - n) <= 1 for x in counts[1:] for k,n in x.items())   # iterative rounding, twice
    assert all(n == (m.numel() if k in c.exempt else m.numel() - round(.5*m.numel())) for (k,n),m in zip(counts[1].items(), ms[1].values()))


def score(*accs): return [dict(test=dict(error=100 - a)) for a in accs]

@pytest.mark.parametrize('high,verdict', [((90.1, 90.2, 90.0), True), ((95.0, 95.1, 94.9), False)])
def test_wc1(high, verdict):
    "Yes if the property is there at the low rate and missing at the high one."
    c = CASES['quick']
    s = c.judged
    at = lambda ticket, reinit: dict(dense=score(95, 95.1, 94.9), ticket={s: score(*ticket)}, reinit={s: score(*reinit)})
    v = dict(low=at((95., 95.1, 94.9), (90, 90.1, 89.9)), high=at(high, (90, 90.1, 89.9)))
    assert figs.wc1({c: v}, 'quick').holds is verdict
    assert figs.wc1({c: {**v, 'high': dict(v['high'], dense=[None]*3)}}, 'quick').holds is None

def spread(R, n=3, N=4928): return [dict(p=list(figs.PS), layers={'w': dict(n=N, top=[round(p*N) for p in figs.PS], hits=[round((R + .001*i)*p*N) for p in figs.PS])}) for i in range(n)]

@pytest.mark.parametrize('low,high,wc2,wc3', [(.6, .2, True, True), (.6, .5, True, False), (.21, .2, False, True)])
def test_correlation_verdicts(low, high, wc2, wc3):
    c = CASES['quick']
    v = {c: dict(low=spread(low), high=spread(high))}
    assert figs.wc2(v, 'quick').holds is wc2 and figs.wc3(v, 'quick').holds is wc3

def test_mask_verdicts():
    c = CASES['quick']
    by = lambda a: {s: score(a, a + .1, a - .1) for s in c.read}
    of = lambda ft, ticket, reinit: dict(finetune=by(ft), ticket=by(ticket), reinit=by(reinit))
    good = dict(dense=score(95, 95.1, 94.9), iterative=of(95, 90, 89), admm=of(96, 91, 90), oneshot=of(94, 89, 88))
    assert all(f({c: good}, 'quick').holds is True for f in (figs.wc4, figs.wc5, figs.wc6))
    bad = {**good, 'oneshot': of(85, 95, 80)}
    assert figs.wc4({c: bad}, 'quick').holds is False and figs.wc5({c: bad}, 'quick').holds is False and figs.wc6({c: bad}, 'quick').holds is True
    assert figs.wc6({c: {**good, 'admm': of(90, 89, 88)}}, 'quick').holds is False

def test_one_part_against_a_claim_is_a_no():
    yes,no,open_ = Verdict(True, 1.), Verdict(False, 2.), Verdict(None, 3.)
    assert together(dict(a=yes, b=no, c=open_)).holds is False and together(dict(a=yes, c=open_)).holds is None and together({}).holds is None
    assert within([.1, 0, -.1], 1).holds is True and within([5, 5.1, 4.9], 1).holds is False and within([0.], 1).holds is None

def test_sanity_verdict():
    "Conditions 3 to 5 of the paper on sanity checks from the accuracies of a table; 2 stays open."
    c = CASES['quick']
    near = lambda a: np.array([a - .1, a, a + .1, a, a])
    at = lambda dense, ticket, reinit: dict(dense=near(dense), accuracy=near(ticket), reinit=near(reinit))
    assert '3 yes, 4 yes, 5 yes' in figs.sanity_verdict(c, dict(low=at(90, 90, 85), high=at(95, 94.9, 90)))
    assert '3 yes, 4 yes, 5 no' in figs.sanity_verdict(c, dict(low=at(90, 90, 85), high=at(95, 88, 84)))
    assert '3 no' in figs.sanity_verdict(c, dict(low=at(90, 90, 90), high=at(95, 90, 90))) and '2 open' in figs.sanity_verdict(c, dict(low=at(90, 90, 85), high=at(95, 95, 90)))
    assert figs.sanity_verdict(c, {}) == 'not computed yet'


def test_figure_5_has_both_sides_at_every_scale():
    "Accuracy and correlation, at two rates, for a case that stands for itself."
    for scale in ('quick', 'gpu', 'paper'):
        c = CASES[scale]
        v = {r: dict(dense=None, finetune={}, R=dict(ticket={}, reinit={})) for r in figs.RATES}
        assert len(figs.panels_5(c, v)) == 4, scale


def test_claims_about_resnet20_are_judged_by_it():
    "Another network does not decide what the paper says of ResNet-20 on CIFAR-10."
    conv,mlp = figs.cases('quick')
    by = lambda c, a: {s: score(a, a + .1, a - .1) for s in c.read}
    of = lambda c, dense, ft: dict(dense=score(dense, dense + .1, dense - .1), **{how: dict(finetune=by(c, ft), ticket=by(c, 80), reinit=by(c, 80)) for how in figs.MASKS})
    assert figs.wc6({conv: of(conv, 95, 95), mlp: of(mlp, 95, 70)}, 'quick').holds is True


def test_published_quick():
    "The numbers behind the chapter's figures are all there, and say what the chapter says of its main stand-in."
    s = Published(ROOT/'nbs/results')
    if not s.paths('correlation'): pytest.skip('no published results yet')
    for f in CHAPTER:
        there,wanted = f.count('quick', store=s)
        assert there == wanted, f'{f.id}: {there} of {wanted}'
    v = figs.FIG_4.values('quick', store=s, stored=True)
    c = CASES['quick']
    low,high = (figs.ratios(c, v[c][r])[:, 1].mean() for r in ('low', 'high'))
    assert low > 50 and 18 < high < 28
    assert figs.wc2(v, 'quick').holds is True


def test_smoke(store, monkeypatch):
    "All figures from stored values, missing ones included; the ledger."
    import matplotlib.pyplot as plt
    for f in CHAPTER: f.show('smoke', stored=True, store=store)
    plt.close('all')
    assert str(figs.ledger('smoke')).count('WC') >= 6

def test_explorer(store):
    "Each p and each point draws what `overlap` gave there; moving a slider draws again; nothing stored is said, not raised."
    import matplotlib.pyplot as plt
    c = CASES['quick']
    run = [spread(R, 1)[0] | dict(p=list(wc.GRID)) for R in (1., .6, .3)]
    for o in run:
        R = o['layers']['w']['hits'][0]/o['layers']['w']['top'][0]
        o['layers'] = {n: dict(n=N, top=(top := [max(1, round(p*N)) for p in wc.GRID]), hits=[round(R*k) for k in top]) for n,N in (('3.weight', 2000), ('6.weight', 3000))}
    c = replace(c, looks=(0, 5, '2ep'), exempt=())
    v = dict(low=dict(dense=[run]), high=dict(dense=[run[::-1]]))
    for at,low in ((0, 100), (5, 60), ('2ep', 30)):
        ax = figs.overlap_at(c, v, .2, at).axes[0]
        heights = [b.get_height() for b in ax.patches]
        assert heights[:2] == pytest.approx([low, low], abs=.2) and f'{low:.1f} %' in ax.get_legend_handles_labels()[1][0], at
    assert [x.get_text() for x in figs.overlap_at(c, dict(low=dict(dense=[None]), high=dict(dense=[None])), .2, 5).axes[0].texts] == ['not computed yet']
    with pytest.raises(ValueError, match='p=0.25.*has p in'): figs.overlap_at(c, v, .25, 5)
    plt.close('all')
    with pytest.raises(ValueError, match="case='ResNet-20'.*Conv, MLP"): figs.explorer('quick', 'ResNet-20')
    pytest.importorskip('ipywidgets')
    sliders,out = figs.explorer('quick').children
    drawn = []
    mp = pytest.MonkeyPatch(); mp.setattr(figs.along, 'overlap_at', lambda c, v, p, point: drawn.append((p, point)) or plt.figure())
    try: sliders.children[0].value = .5; sliders.children[1].value = 62
    finally: mp.undo(); plt.close('all')
    assert drawn == [(.5, 1000), (.5, 62)]

def test_the_gpu_scale_looks_every_epoch():
    assert CASES['gpu'].looks == tuple(f'{e}ep' for e in range(151)) == CASES['paper'].looks

def test_the_prize_needs_the_small_dense_network():
    c = CASES['quick']
    near = lambda a: np.array([a - .1, a, a + .1, a, a])
    at = lambda dense, ticket, reinit, **kw: dict(dense=near(dense), accuracy=near(ticket), reinit=near(reinit), **{k: near(v) for k,v in kw.items()})
    verdict = lambda **kw: figs.sanity_verdict(c, dict(low=at(90, 90, 85, **kw), high=at(95, 94.9, 90, **kw)))
    assert verdict().startswith('not decided') and verdict(small=80).startswith('Jackpot (1 yes, 2 yes') and verdict(small=94.9).startswith('no ticket')
