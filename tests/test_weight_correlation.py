"""R_p: by hand, at ties, its null distribution, files, bad input; the chapter's plans and verdicts."""
import math, time, warnings
from dataclasses import replace

import matplotlib.pyplot as plt, numpy as np, pytest, torch
from conftest import ROOT
from lth_nb import weight_correlation as wc
from lth_nb.claims import Verdict, together, within
from lth_nb.data import mnist1d
from lth_nb.experiment import Published, Store, compute, missing, nodes_in
from lth_nb.figures import weight_correlation as figs
from lth_nb.figures.kit import FIGURES, Needs
from lth_nb.measures import R_p, correlation, indicator, layers_of, null, overlap, pairwise, ranks, shared, z_score
from lth_nb.networks import mnist1d_conv as conv, resnet20
from lth_nb.pruning import dense_mask, lowest, magnitude_mask, prunable_weights
from lth_nb.training import Recipe, init, train
from safetensors.torch import save_file
from helpers import named

pytestmark = pytest.mark.usefixtures('on_cpu')
MAIN = dict(smoke='Conv', quick='Conv', gpu='ResNet-20/C10', paper='ResNet-20/C10')
CASES = {scale: named(figs.cases(scale), name) for scale,name in MAIN.items()}
CHAPTER = [figure for figure in FIGURES.values() if figure.id.startswith('weight_correlation/')]


def draw(*shapes, seed=0):
    "Random weights of these shapes."
    g = torch.Generator().manual_seed(seed)
    return {f'l{i}.weight': torch.randn(s, generator=g) for i,s in enumerate(shapes)}

def two(*shapes): return draw(*shapes), draw(*shapes, seed=1)

def under(weights, mask): return {name: w*mask[name] for name,w in weights.items()}

def top_of(w, alive, k):
    "The places of the k largest; of equal magnitudes the later place is the larger."
    sizes = w.flatten().abs().tolist()
    return set(sorted(alive, key=lambda place: (sizes[place], place))[-k:])

def by_hand(a, b, p, mask=None):
    "Sets of places, as the paper writes it."
    hits = 0
    total = 0
    for name in a:
        alive = [i for i in range(a[name].numel()) if mask is None or mask[name].flatten()[i]]
        k = max(1, round(p*len(alive)))
        hits += len(top_of(a[name], alive, k) & top_of(b[name], alive, k))
        total += k
    return hits/total


@pytest.mark.filterwarnings('ignore:.*are not 0')
@pytest.mark.parametrize('p', (.001, .05, .2, .5, .77, 1.))
@pytest.mark.parametrize('masked', (False, True))
def test_it_is_the_definition(p, masked):
    a, b = two((7, 3), (2, 3, 3), (1, 1))
    b = {name: (b[name] + a[name]).round(decimals=0) for name in b}   # many ties
    mask = None
    if masked:
        mask = {name: torch.rand(w.shape, generator=torch.Generator().manual_seed(5)) < .6 for name,w in a.items()}
        mask['l2.weight'][:] = True
    assert R_p(a, b, p, mask) == by_hand(a, b, p, mask) == R_p(b, a, p, mask)

def test_many_p_at_once():
    a, b = two((30, 20), (10, 30))
    ps = np.linspace(.01, 1, 34)
    assert indicator(overlap(a, b, ps)).tolist() == [R_p(a, b, p) for p in ps]

@pytest.mark.parametrize('fraction', (.1, .25, .5, .9))
def test_ties_are_prunings(fraction):
    "The top is exactly what pruning the rest would leave, also where magnitudes are equal and signs differ."
    w = torch.randn(400, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    left = torch.ones(400, dtype=torch.bool)
    left[lowest(w.abs(), fraction)] = False
    assert torch.equal(ranks(w.abs()) < int(left.sum()), left)
    assert torch.equal(magnitude_mask({'w': w.view(20, 20)}, fraction)['w'].flatten(), left)

def test_signs_and_scale_do_not_matter():
    a = draw((40, 30))
    assert R_p(a, {name: -3*w for name,w in a.items()}, .2) == 1

def test_the_opposite_order_is_a_negative_correlation():
    a = draw((40, 30))
    smallest = {name: 1/w for name,w in a.items()}
    assert R_p(a, smallest, .5) == 0
    assert float(z_score(overlap(a, smallest, .5))[0]) < -30

def test_sparse_counts_what_remains():
    """Pruned weights are not in N_l; without the mask, p below the density counts them and gives the same for equal
    tops."""
    a, b = two((50, 40))
    mask = magnitude_mask(b, .5)
    o = overlap(under(a, mask), under(b, mask), (.2,), mask=mask)
    assert o['layers']['l0.weight']['n'] == 1000
    assert o['layers']['l0.weight']['top'] == [200]
    assert R_p(b, under(b, mask), .2) == 1   # the larger fifth survives: appendix F's reading
    assert indicator(o)[0] == R_p(a, b, .2, mask), 'masking the weights first changes nothing'


def test_a_mask_alone_can_bring_it_below_chance():
    """What the chapter says of survivors: one weight in five moves far, the others stay; dense it is above p, among the
    survivors below."""
    a = draw((400, 500))
    g = torch.Generator().manual_seed(3)
    far = torch.rand(400, 500, generator=g) < .2
    b = {name: w + torch.where(far, 3., .1)*torch.randn(400, 500, generator=g) for name,w in a.items()}
    mask = magnitude_mask(b, .7)
    assert R_p(a, b, .2) > .4
    assert float(z_score(overlap(a, b, .2, mask))[0]) < -10
    other = {name: w[:, torch.randperm(500, generator=g)] for name,w in a.items()}   # the same beginnings, elsewhere
    assert abs(float(z_score(overlap(other, b, .2, mask))[0])) < 4

@pytest.mark.parametrize('p', (.1, .2, .5))
def test_the_null_distribution(p):
    "Mean and deviation over 600 independent pairs are those computed, and those are (1 - p)/sqrt(N)."
    shapes = ((16, 3), (32, 16), (10, 32))
    pairs = [overlap(draw(*shapes, seed=2*i), draw(*shapes, seed=2*i + 1), p) for i in range(600)]
    r = np.array([indicator(o)[0] for o in pairs])
    mean, sd = (float(x[0]) for x in null(pairs[0]))
    assert abs(r.mean() - mean) < 4*sd/600**.5
    assert abs(r.std(ddof=1)/sd - 1) < .12
    assert mean == pytest.approx(p, rel=.01)
    assert sd == pytest.approx((1 - p)/sum(math.prod(shape) for shape in shapes)**.5, rel=.02)
    z = np.array([z_score(o)[0] for o in pairs])
    assert abs(z.mean()) < .2
    assert abs(z.std() - 1) < .12

def test_resnet_20_null():
    "The scale of chance for the paper's network: 0.15 points at p = 0.2."
    weights = prunable_weights(init.fn(resnet20, 0))
    assert float(null(overlap(weights, weights, .2))[1][0]) == pytest.approx(.0015, abs=1e-4)


def test_many_pairs():
    networks = [draw((40, 30), (20, 40), seed=seed) for seed in range(5)]
    networks.append({name: w + .3*torch.randn_like(w) for name,w in networks[0].items()})
    for mask in (None, {name: w > -.5 for name,w in networks[3].items()}):
        got = pairwise(networks, .15, mask)
        expected = [[R_p(a, b, .15, mask) for b in networks] for a in networks]
        assert np.abs(got - expected).max() <= 1e-12
        assert (np.diag(got) == 1).all()
        assert got[0, 5] > .5


def test_anything_with_weights(tmp_path):
    "A state, a module, its state_dict, a safetensors file, a file of the store: all the same network."
    state = init.fn(conv, 0)
    net = conv.create(0)
    save_file(net.state_dict(), tmp_path/'w.safetensors')
    Store(tmp_path/'s').write('trajectory/x/at-1', {**state, 'slots': {'momentum_buffer': state['weights']}})
    stored = str(tmp_path/'s/trajectory/x/at-1.safetensors')
    forms = [state, net, net.state_dict(), tmp_path/'w.safetensors', stored]
    for form in forms: assert set(layers_of(form)) == set(prunable_weights(state))
    other = init.fn(conv, 1)
    assert len({R_p(form, other, .2) for form in forms}) == 1

def test_files_of_millions(tmp_path):
    "Four million weights in two files, several p: seconds, and one layer in memory at a time."
    big = draw((1000, 2000), (1000, 2000))
    one = tmp_path/'a.safetensors'
    other = tmp_path/'b.safetensors'
    for file,weights in ((one, big), (other, draw((1000, 2000), (1000, 2000), seed=9))):
        save_file({**weights, 'norm.weight': torch.ones(5)}, file)
    start = time.perf_counter()
    o = overlap(one, other, (.01, .1, .2, .5))
    assert time.perf_counter() - start < 30
    assert sum(layer['n'] for layer in o['layers'].values()) == 4_000_000
    assert (np.abs(z_score(o)) < 5).all()
    assert R_p(one, big, .1) == 1


# ------------------------------------------------------------------ what cannot be

@pytest.mark.parametrize('p', (0, -.1, 1.0001, 20, float('nan'), float('inf'), 'half', None))
def test_bad_p(p):
    a = draw((5, 5))
    for f in (lambda: R_p(a, a, p), lambda: pairwise([a, a], p), lambda: overlap(a, a, (.2, p))):
        with pytest.raises(ValueError, match=r'p=.*fraction in \(0, 1\]'): f()

SOUND = draw((5, 4), (3, 3))

def test_weights_that_do_not_fit():
    b = draw((5, 4), (3, 2))
    with pytest.raises(ValueError, match=r'l1.weight: shapes \(3, 3\) and \(3, 2\) differ'): R_p(SOUND, b, .2)
    with pytest.raises(ValueError, match='l1.weight: shapes'): pairwise([SOUND, b], .2)
    with pytest.raises(ValueError, match='different layers.*l1.weight'):
        R_p(SOUND, {'l0.weight': SOUND['l0.weight']}, .2)

def test_weights_that_are_nan():
    nan = {**SOUND, 'l0.weight': SOUND['l0.weight'].clone()}
    nan['l0.weight'][0, 0] = math.nan
    for f in (lambda: R_p(SOUND, nan, .2), lambda: R_p(nan, SOUND, .2), lambda: pairwise([SOUND, nan], .2),
              lambda: magnitude_mask(nan, .2)):
        with pytest.raises(ValueError, match='l0.weight: 1 of 20 weights are NaN'): f()

def test_layers_without_weights():
    gone = {**dense_mask(SOUND), 'l1.weight': torch.zeros(3, 3, dtype=torch.bool)}
    for f in (lambda: R_p(SOUND, SOUND, .2, gone), lambda: pairwise([SOUND, SOUND], .2, gone)):
        with pytest.raises(ValueError, match='l1.weight: no weights left.*exempt'): f()
    assert R_p(SOUND, SOUND, .2, gone, exempt=('l1.weight',)) == 1
    with pytest.raises(ValueError, match='l0.weight: no weights left'): R_p(draw((0, 4)), draw((0, 4)), .2)

@pytest.mark.parametrize('kind', (torch.int64, torch.float32), ids=str)
def test_masks_that_are_not_bool(kind):
    "Zeros and ones as an index would pick places 0 and 1."
    wrong = {name: torch.ones(w.shape, dtype=kind) for name,w in SOUND.items()}
    for f in (lambda: R_p(SOUND, SOUND, .2, wrong), lambda: pairwise([SOUND, SOUND], .2, wrong),
              lambda: magnitude_mask(SOUND, .2, wrong)):
        with pytest.raises(ValueError, match=f'l0.weight.*{kind}.*use bool'): f()

def test_bad_weights():
    first = SOUND['l0.weight']
    with pytest.raises(ValueError, match="exempt=.'fc'.*l0.weight"): R_p(SOUND, SOUND, .2, exempt=('fc',))
    with pytest.raises(ValueError, match=r'mask has shape \(4,\)'): shared(first, first, [.2], torch.ones(4).bool())
    with pytest.raises(ValueError, match='no layers to compare'): R_p({'b': torch.ones(3)}, {'b': torch.ones(3)}, .2)
    with pytest.raises(ValueError, match="layer='l9'.*l0.weight"): indicator(overlap(SOUND, SOUND, .2), 'l9')
    with pytest.raises(TypeError, match=r'\[1, 2\] is no network'): R_p([1, 2], SOUND, .2)

def test_what_is_no_safetensors_file(tmp_path):
    torch.save(draw((5, 4)), tmp_path/'w.pt')
    with pytest.raises(ValueError, match='w.pt is no safetensors file.*save_file'):
        R_p(tmp_path/'w.pt', draw((5, 4)), .2)
    with pytest.raises(FileNotFoundError, match='gone.safetensors'):
        R_p(tmp_path/'gone.safetensors', draw((5, 4)), .2)

def test_zeros_in_the_top_are_told():
    "Without the mask, two sparse networks agree on which zeros are large: by place, and for nothing."
    mask = magnitude_mask(draw((50, 40), seed=2), .7)
    a, b = (under(weights, mask) for weights in two((50, 40)))
    with pytest.warns(UserWarning, match='600 of 2000 weights .* top 1000 .*mask'): high = R_p(a, b, .5)
    assert high > .8
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert abs(R_p(a, b, .5, mask) - .5) < .1
        assert R_p(a, b, 1.) == 1


def test_along_training(tmp_path):
    "Watched on the way, R_p is what it is between the stored states; it starts at 1."
    start = init(conv, seed=0)
    run = train(start, mnist1d(train=128, test=64), Recipe(12, batch=32, lr=.3))
    wanted = [run.watch([0, 5, 12], correlation, other=start, ps=(.1, .5)), run.at(5), run.at(12)]
    watched, *states = compute(wanted, store=Store(tmp_path), workers=1, quiet=True)
    assert indicator(watched[0]).tolist() == [1, 1]
    assert watched[1:] == [overlap(state, init.fn(conv, 0), (.1, .5)) for state in states]


# ------------------------------------------------------------------ the chapter's plans

@pytest.mark.parametrize('scale', ('smoke', 'quick', 'cpu', 'gpu', 'paper'))
def test_plans(scale):
    "Every figure has a plan at every scale, made without data on disk; what cannot be had says what it needs."
    for figure in CHAPTER:
        plan = figure.nodes(scale)
        assert plan, figure.id
        assert set(nodes_in(plan)) or any(isinstance(value, Needs) for value in plan.values()), figure.id

def test_paper_plan_is_the_papers():
    by = {case.name: case for case in figs.paper_cases()}
    case = by['ResNet-20/C10']
    recipe = case.recipe
    assert (case.seeds, case.low) == (5, .01)
    assert (recipe.lr, recipe.batch, recipe.momentum, recipe.milestones) == (.1, 128, .9, ('80ep', '120ep'))
    assert recipe.end(case.data) == round(150*recipe.per_epoch(case.data))
    assert set(figs.PAPER_TABLE_1) <= set(by)
    assert set(figs.PAPER_DENSE) <= set(by)
    assert {39, 62, 86} <= {round(100*s) for s in case.rounds}   # 85.8 %, printed as 85
    assert len(case.exempt) == 1
    assert wc.path(case, .7) == (*(s for s in case.rounds if s < .7), .7)

def trainings(wanted):
    "How many runs these take, with nothing there."
    tasks = missing(list(nodes_in(wanted)), Store('memory://none'))
    return sum(task.nodes[0].step.name == 'trajectory' for task in tasks.values())

def test_trainings_are_shared():
    "A ticket under its own mask is the next round; a new sparsity costs one round and what is asked for."
    case = CASES['quick']
    first = wc.under(case, 'high', 0, 'ticket', 'iterative', .3).at('end')
    assert first in wc.iterative(case, 'high', 0, .5).inputs
    assert trainings(wc.iterative(case, 'high', 0, .9)) == 5
    tickets = [wc.under(case, 'high', 0, 'ticket', 'iterative', s).at('end') for s in case.rounds]
    assert trainings(tickets) == 6

def test_beginnings():
    "One recipe, one mask, one data order; fine-tuning starts at the dense end and at step 0 of the schedule."
    case = CASES['quick']
    kinds = ('ticket', 'reinit', 'finetune', 'rewind')
    asked = {kind: wc.under(case, 'low', 0, kind, 'oneshot', .5).node.args for kind in kinds}
    ticket = asked['ticket']
    for kind in kinds:
        for name in ('data', 'recipe', 'order', 'mask', 'first'): assert asked[kind][name] == ticket[name], (kind, name)
    assert asked['finetune']['start'] == wc.dense(case, 'low', 0).at('end')
    assert ticket['first'] == 0
    assert ticket['recipe'].lr == .02
    assert asked['rewind']['optimizer'] == 'fresh'

def test_beginnings_and_masks_that_are_not_there():
    case = CASES['quick']
    for f in (lambda: wc.sparse(case, 'low', 0, 'magic', None, 1), lambda: wc.mask_of(case, 'low', 0, 'magic', .5)):
        with pytest.raises(ValueError, match="'magic': use one of"): f()

def test_masks_have_equal_counts(store):
    case = CASES['smoke']
    wanted = {how: wc.mask_of(case, 'high', 0, how, .5) for how in figs.MASKS}
    masks = compute(wanted, store=store, workers=1, quiet=True)
    counts = [{name: int(m.sum()) for name,m in mask.items()} for mask in masks.values()]
    for other in counts[1:]:   # iterative rounding, twice
        assert all(abs(counts[0][name] - n) <= 1 for name,n in other.items())
    sizes = {name: m.numel() for name,m in list(masks.values())[1].items()}
    assert counts[1] == {name: n if name in case.exempt else n - round(.5*n) for name,n in sizes.items()}


# ------------------------------------------------------------------ verdicts

def scores(*accuracies): return [dict(test=dict(error=100 - accuracy)) for accuracy in accuracies]

def about(accuracy): return scores(accuracy, accuracy + .1, accuracy - .1)

@pytest.mark.parametrize('high,verdict', [((90.1, 90.2, 90.0), True), ((95.0, 95.1, 94.9), False)])
def test_wc1(high, verdict):
    "Yes if the property is there at the low rate and missing at the high one."
    case = CASES['quick']
    def at(ticket): return dict(dense=about(95), ticket={case.judged: ticket}, reinit={case.judged: about(90)})
    values = dict(low=at(about(95)), high=at(scores(*high)))
    assert figs.wc1({case: values}, 'quick').holds is verdict
    unknown = dict(values['high'], dense=[None]*3)
    assert figs.wc1({case: {**values, 'high': unknown}}, 'quick').holds is None

def spread(R, n=3, size=4928):
    "Overlaps of n pairs of one layer, whose indicators are R and a little more, at every p."
    tops = [round(p*size) for p in figs.PS]
    hits = [[round((R + .001*i)*p*size) for p in figs.PS] for i in range(n)]
    return [dict(p=list(figs.PS), layers={'w': dict(n=size, top=tops, hits=found)}) for found in hits]

@pytest.mark.parametrize('low,high,wc2,wc3', [(.6, .2, True, True), (.6, .5, True, False), (.21, .2, False, True)])
def test_correlation_verdicts(low, high, wc2, wc3):
    values = {CASES['quick']: dict(low=spread(low), high=spread(high))}
    assert figs.wc2(values, 'quick').holds is wc2
    assert figs.wc3(values, 'quick').holds is wc3

def masked(case, finetune, ticket=80, reinit=80):
    "Figure 6 under one mask: the same accuracies at every sparsity."
    def at(accuracy): return {s: about(accuracy) for s in case.read}
    return dict(finetune=at(finetune), ticket=at(ticket), reinit=at(reinit))

def test_mask_verdicts():
    case = CASES['quick']
    good = dict(dense=about(95), iterative=masked(case, 95, 90, 89), admm=masked(case, 96, 91, 90),
                oneshot=masked(case, 94, 89, 88))
    bad = {**good, 'oneshot': masked(case, 85, 95, 80)}
    worse = {**good, 'admm': masked(case, 90, 89, 88)}
    def holds(values): return [judge({case: values}, 'quick').holds for judge in (figs.wc4, figs.wc5, figs.wc6)]
    assert holds(good) == [True, True, True]
    assert holds(bad) == [False, False, True]
    assert holds(worse)[2] is False

def test_one_part_against_a_claim_is_a_no():
    yes = Verdict(True, 1.)
    no = Verdict(False, 2.)
    unknown = Verdict(None, 3.)
    assert together(dict(a=yes, b=no, c=unknown)).holds is False
    assert together(dict(a=yes, c=unknown)).holds is None
    assert together({}).holds is None

@pytest.mark.parametrize('samples,holds', [((.1, 0, -.1), True), ((5, 5.1, 4.9), False), ((0.,), None)])
def test_within(samples, holds): assert within(list(samples), 1).holds is holds


def near(accuracy): return np.array([accuracy - .1, accuracy, accuracy + .1, accuracy, accuracy])

def row(dense, ticket, reinit, **kw):
    "Accuracies of a table at one rate, five seeds each."
    return {name: near(value) for name,value in dict(dense=dense, accuracy=ticket, reinit=reinit, **kw).items()}

@pytest.mark.parametrize('low,high,said', [
    ((90, 90, 85), (95, 94.9, 90), '3 yes, 4 yes, 5 yes'),
    ((90, 90, 85), (95, 88, 84), '3 yes, 4 yes, 5 no'),
    ((90, 90, 90), (95, 90, 90), '3 no'),
    ((90, 90, 85), (95, 95, 90), '2 open')])
def test_sanity_verdict(low, high, said):
    "Conditions 3 to 5 of the paper on sanity checks from the accuracies of a table; 2 stays open."
    assert said in figs.sanity_verdict(CASES['quick'], dict(low=row(*low), high=row(*high)))

def test_no_sanity_verdict_without_values():
    assert figs.sanity_verdict(CASES['quick'], {}) == 'not computed yet'

@pytest.mark.parametrize('small,said', [
    ({}, 'not decided'), (dict(small=80), 'Jackpot (1 yes, 2 yes'), (dict(small=94.9), 'no ticket')])
def test_the_prize_needs_the_small_dense_network(small, said):
    table = dict(low=row(90, 90, 85, **small), high=row(95, 94.9, 90, **small))
    assert figs.sanity_verdict(CASES['quick'], table).startswith(said)


def test_figure_5_has_both_sides_at_every_scale():
    "Accuracy and correlation, at two rates, for a case that stands for itself."
    for scale in ('quick', 'gpu', 'paper'):
        values = {rate: dict(dense=None, finetune={}, R=dict(ticket={}, reinit={})) for rate in figs.RATES}
        assert len(figs.panels_5(CASES[scale], values)) == 4, scale


def test_claims_about_resnet20_are_judged_by_it():
    "Another network does not decide what the paper says of ResNet-20 on CIFAR-10."
    quick = figs.cases('quick')
    def values(case, finetune): return dict(dense=about(95), **{how: masked(case, finetune) for how in figs.MASKS})
    both = {case: values(case, accuracy) for case,accuracy in zip(quick, (95, 70))}
    assert [case.name for case in both] == ['Conv', 'MLP']
    assert figs.wc6(both, 'quick').holds is True


def test_published_quick():
    "The numbers behind the chapter's figures are all there, and say what the chapter says of its main stand-in."
    store = Published(ROOT/'nbs/results')
    if not store.paths('correlation'): pytest.skip('no published results yet')
    for figure in CHAPTER:
        there, wanted = figure.count('quick', store=store)
        assert there == wanted, f'{figure.id}: {there} of {wanted}'
    values = figs.FIG_4.values('quick', store=store, stored=True)
    main = CASES['quick']
    low, high = (figs.ratios(main, values[main][rate])[:, 1].mean() for rate in ('low', 'high'))
    assert low > 50
    assert 18 < high < 28
    assert figs.wc2(values, 'quick').holds is True


# ------------------------------------------------------------------ pictures

@pytest.fixture
def no_pictures_left():
    yield
    plt.close('all')

def test_smoke(store, no_pictures_left):
    "All figures from stored values, missing ones included; the ledger."
    for figure in CHAPTER: figure.show('smoke', stored=True, store=store)
    assert str(figs.ledger('smoke')).count('WC') >= 6

def looked(R):
    "What a look at a run gives: two layers, the same indicator at every p of the grid."
    layers = {}
    for name,size in (('3.weight', 2000), ('6.weight', 3000)):
        tops = [max(1, round(p*size)) for p in wc.GRID]
        layers[name] = dict(n=size, top=tops, hits=[round(R*top) for top in tops])
    return dict(p=list(wc.GRID), layers=layers)

WATCHED = replace(CASES['quick'], looks=(0, 5, '2ep'), exempt=())
RUN = [looked(R) for R in (1., .6, .3)]
SEEN = dict(low=dict(dense=[RUN]), high=dict(dense=[RUN[::-1]]))

@pytest.mark.parametrize('point,low', ((0, 100), (5, 60), ('2ep', 30)))
def test_explorer(point, low, no_pictures_left):
    "Each p and each point draws what `overlap` gave there."
    ax = figs.overlap_at(WATCHED, SEEN, .2, point).axes[0]
    heights = [bar.get_height() for bar in ax.patches]
    assert heights[:2] == pytest.approx([low, low], abs=.2)
    assert f'{low:.1f} %' in ax.get_legend_handles_labels()[1][0]

def test_explorer_without_values(no_pictures_left):
    "Nothing stored is said, not raised."
    nothing = dict(low=dict(dense=[None]), high=dict(dense=[None]))
    ax = figs.overlap_at(WATCHED, nothing, .2, 5).axes[0]
    assert [text.get_text() for text in ax.texts] == ['not computed yet']

def test_explorer_refuses_what_is_not_there():
    with pytest.raises(ValueError, match='p=0.25.*has p in'): figs.overlap_at(WATCHED, SEEN, .25, 5)
    with pytest.raises(ValueError, match="case='ResNet-20'.*Conv, MLP"): figs.explorer('quick', 'ResNet-20')

def test_moving_a_slider_draws_again(monkeypatch, no_pictures_left):
    pytest.importorskip('ipywidgets')
    sliders, _ = figs.explorer('quick').children
    p, point = sliders.children
    drawn = []
    def noted(case, values, p, point):
        drawn.append((p, point))
        return plt.figure()
    monkeypatch.setattr(figs.along, 'overlap_at', noted)
    p.value = .5
    point.value = 62
    assert drawn == [(.5, 1000), (.5, 62)]

def test_the_gpu_scale_looks_as_often_as_the_paper():
    "At the same shares of a quarter of the training."
    short, whole = CASES['gpu'], CASES['paper']
    assert whole.looks == tuple(f'{epoch}ep' for epoch in range(151))
    assert [float(look[:-2])*4 for look in short.looks] == [float(look[:-2]) for look in whole.looks]
    assert figs.steps_of(short)[-1] == short.recipe.end(short.data)
