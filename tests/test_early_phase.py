"""The early phase: its plans, its perturbations' invariants, its verdicts."""
import math
from dataclasses import replace

import numpy as np, pytest, torch
from lth_nb import early_phase as ep, networks as nets
from lth_nb.claims import Verdict, together
from lth_nb.data import Data, Split, Turned, augmentation, blur, blurred, cifar10, mnist, mnist1d, random_labels, rotations
from lth_nb.figures.early_phase import pearson
from lth_nb.experiment import compute, missing, nodes_in
from lth_nb.figures import early_phase as figs
from lth_nb.figures.kit import FIGURES, accuracies
from lth_nb.pruning import prunable_weights
from lth_nb.training import init, train

CHAPTER = [f for f in FIGURES.values() if f.id.startswith('early_phase/')]
SMOKE = figs.studies('smoke')[0]


def score(a): return dict(test=dict(error=100 - a, loss=1., n=100))


@pytest.mark.parametrize('scale', ('smoke', 'quick', 'cpu', 'gpu', 'paper'))
def test_plans(scale):
    "Every figure has a plan at every scale, made without data on disk."
    for f in CHAPTER: assert set(nodes_in(f.nodes(scale))), f.id


def test_paper_plan_is_the_papers():
    ss = figs.paper_studies()
    assert [s.name for s in ss] == ['ResNet-20', 'ResNet-56', 'ResNet-18', 'WRN-16-8', 'VGG-13']
    s = ss[0]
    assert (s.length, s.recipe.lr, s.recipe.weight_decay, s.recipe.batch, s.seeds, s.pair) == (62500, .1, 1e-4, 128, 5, (500, 2000))
    assert round(s.percent(s.level), 1) == 26.2 and s.steps('40ep') == 15625 and len(ep.PERTURBATIONS) == 14
    assert {'10ep', '40ep'} <= set(s.epochs) and set(s.tasks) == set(ep.TASKS)


def test_every_claim_is_there():
    assert sorted((c for f in CHAPTER for c in f.claims), key=lambda c: int(c[2:])) == [f'EP{i}' for i in range(1, 18)]


def test_rungs_share_their_runs(store):
    "A ladder of L rounds is L + 1 trainings beside the run that gives the rewinding point."
    s,k = SMOKE,SMOKE.pair[0]
    tasks = missing(ep.ladder(s, ep.state_at(s, k, 0), k, 0, 2, s.fraction), store)
    assert sum(t.nodes[0].step.name == 'trajectory' for t in tasks.values()) == 4
    more = missing([*ep.ladder(s, ep.state_at(s, k, 0), k, 0, 2, s.fraction), ep.ticket(s, k, 0, 2)], store)
    assert len(more) == len(tasks)


def test_rewinding_restores_and_goes_on_at_k():
    s,k = SMOKE,SMOKE.pair[0]
    args = ep.retrained(s, ep.state_at(s, k, 0), k, 0, None, 1).args
    assert args['first'] == k and args['start'] == ep.state_at(s, k, 0) and args['optimizer'] == 'fresh'
    with pytest.raises(ValueError, match='it goes from 0 to 24'): ep.state_at(s, 25, 0)
    with pytest.raises(ValueError, match='it has 24 steps'): ep.retrained(s, ep.state_at(s, 0, 0), 25, 0, None, 1)


@pytest.fixture
def weights():
    g = torch.Generator().manual_seed(0)
    shapes = dict(conv1=(6, 3, 3, 3), conv2=(4, 6, 3), fc=(5, 4))
    w,w0 = ({n: torch.randn(s, generator=g) for n,s in shapes.items()} for _ in range(2))
    return w, {n: torch.rand(s, generator=g) > .6 for n,s in shapes.items()}, w0


def untouched(w, new, mask): return all(torch.equal(new[n][~mask[n]], w[n][~mask[n]]) for n in w)
def same_multiset(a, b): return torch.equal(a.flatten().sort().values, b.flatten().sort().values)


def test_exchange(weights):
    w,m,w0 = weights
    new = ep.exchange(w, m, signs=w0)
    assert untouched(w, new, m)
    for n in w: assert torch.equal(new[n].abs(), w[n].abs()) and torch.equal(new[n][m[n]].sign(), w0[n][m[n]].sign())
    new = ep.exchange(w, m, magnitudes=w0)
    for n in w: assert torch.equal(new[n][m[n]].abs(), w0[n][m[n]].abs()) and torch.equal(new[n].sign(), w[n].sign())
    assert all(torch.equal(x, w[n]) for n,x in ep.exchange(w, m).items())


@pytest.mark.parametrize('scope', ep.SCOPES)
@pytest.mark.parametrize('same', (False, True))
@pytest.mark.parametrize('seed', (0, 1))
def test_permute(weights, scope, same, seed):
    w,m,_ = weights
    before = {n: x.clone() for n,x in w.items()}
    new = ep.permute(w, m, scope, seed, same)
    assert all(torch.equal(before[n], w[n]) for n in w)   # not in place
    assert untouched(w, new, m) and same_multiset(ep.survivors(new, m), ep.survivors(w, m))
    if scope != 'global': assert all(same_multiset(new[n][m[n]], w[n][m[n]]) for n in w)
    if scope == 'filter': assert all(same_multiset(new[n][c][m[n][c]], w[n][c][m[n][c]]) for n in w for c in range(len(w[n])))
    if same: assert torch.equal(ep.survivors(new, m).signbit(), ep.survivors(w, m).signbit())
    again,other = ep.permute(w, m, scope, seed, same),ep.permute(w, m, scope, seed + 10, same)
    assert all(torch.equal(again[n], new[n]) for n in w) and any(not torch.equal(other[n], new[n]) for n in w)
    if scope == 'global' and not same: assert any(not same_multiset(new[n][m[n]], w[n][m[n]]) for n in w)   # it does cross layers


def test_permute_is_uniform():
    w,m = {'a': torch.arange(3.)[None, None]},{'a': torch.ones(1, 1, 3, dtype=torch.bool)}
    seen = [tuple(ep.permute(w, m, 'layer', s)['a'].flatten().tolist()) for s in range(600)]
    assert len(set(seen)) == 6 and all(60 < seen.count(p) < 140 for p in set(seen))


def test_noise(weights):
    w,m,_ = weights
    stds = dict(conv1=.1, conv2=.2, fc=.3)
    new = ep.noisy(w, m, stds, 2, seed=1)
    assert untouched(w, new, m) and all(torch.equal(x, new[n]) for n,x in ep.noisy(w, m, stds, 2, seed=1).items())
    zero = ep.noisy(w, m, stds, 0, seed=1)
    assert all(torch.equal(zero[n], w[n]) for n in w) and ep.effective_std(w, zero, m) == 0
    big,all_ = {'a': torch.zeros(400, 400)},{'a': torch.ones(400, 400, dtype=torch.bool)}
    assert ep.effective_std(big, ep.noisy(big, all_, {'a': .1}, 3, 0), all_) == pytest.approx(.3, rel=.01)


def test_noise_is_not_the_initialisation():
    "Both are normal draws from a seed, layer by layer: the same seed must not give the same numbers."
    state = init.fn(nets.mnist1d_conv, seed=3)
    mask = {n: torch.ones_like(x, dtype=torch.bool) for n,x in prunable_weights(state).items()}
    d = ep.survivors(prunable_weights(ep.perturbed.fn(state, mask, 'noise 1', seed=3)), mask) - ep.survivors(prunable_weights(state), mask)
    assert abs(float(torch.corrcoef(torch.stack([d, ep.survivors(prunable_weights(state), mask)]))[0, 1])) < .06


def test_filters_need_convolutions(weights):
    w,m,_ = weights
    with pytest.raises(ValueError, match="no convolution filters; use 'layer' or 'global'"): ep.permute({'fc': w['fc']}, {'fc': m['fc']}, 'filter', 0)
    with pytest.raises(ValueError, match='global, layer, filter'): ep.permute(w, m, 'kernel', 0)
    state = init.fn(nets.mnist1d_conv, seed=0)
    with pytest.raises(ValueError, match='signs k'): ep.perturbed.fn(state, {}, 'magic')
    mlp = replace(SMOKE, network=nets.mnist1d_mlp)
    with pytest.raises(ValueError, match='no convolution filters'): figs.perturbed_scores(mlp, 4, 'filter, same sign', 1)   # before anything is trained
    assert len(figs.perturbed_scores(mlp, 4, 'layer', 1)) == SMOKE.seeds


@pytest.mark.parametrize('kind', (*ep.PERTURBATIONS, *ep.BASELINE))
def test_perturbed_states(kind):
    start,state = (init.fn(nets.mnist1d_conv, seed=i) for i in range(2))
    state = {**state, 'step': 7, 'slots': {'momentum_buffer': state['weights']}}
    g = torch.Generator().manual_seed(0)
    w = prunable_weights(state)
    mask = {n: torch.rand(x.shape, generator=g) > .5 for n,x in w.items()}
    p,q,r = (ep.perturbed.fn(state, mask, kind, start, seed=s) for s in (3, 3, 4))
    new = prunable_weights(p)
    assert p['step'] == 7 and not p['slots'] and untouched(w, new, mask)
    assert all(torch.equal(p['weights'][n], state['weights'][n]) for n in state['weights'] if n not in w)   # BatchNorm and biases
    assert all(torch.equal(p['weights'][n], q['weights'][n]) for n in p['weights'])
    random_ = kind not in ('signs k, magnitudes 0', 'signs 0, magnitudes k', *ep.BASELINE)
    assert any(not torch.equal(p['weights'][n], r['weights'][n]) for n in w) == random_
    if kind == 'layer, signs 0':
        w0 = prunable_weights(start)
        for n in w: assert torch.equal(new[n][mask[n]].sign(), w0[n][mask[n]].sign()) and same_multiset(new[n][mask[n]].abs(), w[n][mask[n]].abs())
    e = figs.effect.fn(state, p, mask)
    assert e['std'] == pytest.approx(float((ep.survivors(new, mask) - ep.survivors(w, mask)).std(correction=0)), rel=1e-5)
    assert len(e['before']) == len(e['after']) and e['layer'] in w


@pytest.mark.parametrize('kind,signs,magnitudes', (('signs k, magnitudes fresh', 'k', None), ('signs k, magnitudes 0', 'k', '0'), ('signs 0, magnitudes k', '0', 'k'), ('signs 0, magnitudes 0', '0', '0')))
def test_exchanges_are_what_they_are_called(kind, signs, magnitudes):
    start,state = (init.fn(nets.mnist1d_conv, seed=i) for i in range(2))
    k,zero = prunable_weights(state),prunable_weights(start)
    mask = {n: torch.ones_like(x, dtype=torch.bool) for n,x in k.items()}
    new,of = prunable_weights(ep.perturbed.fn(state, mask, kind, start, seed=0)),{'k': k, '0': zero}
    for n in k:
        assert torch.equal(new[n].sign(), of[signs][n].sign())
        if magnitudes: assert torch.equal(new[n].abs(), of[magnitudes][n].abs())
        else: assert not torch.equal(new[n].abs(), zero[n].abs()) and new[n].std() == pytest.approx(float(zero[n].std()), rel=.35)   # another draw of the same


@pytest.mark.parametrize('kind', [n for n in ep.PERTURBATIONS if 'scope' in ep.PERTURBATIONS[n]])
def test_permutations_are_what_they_are_called(kind):
    "Global ones cross layers, layers' cross filters, filters' do not; signs stay or not."
    start,state = (init.fn(nets.mnist1d_conv, seed=i) for i in range(2))
    w = prunable_weights(state)
    mask = {n: torch.ones_like(x, dtype=torch.bool) for n,x in w.items()}
    new = prunable_weights(ep.perturbed.fn(state, mask, kind, start, seed=0))
    in_layers = all(same_multiset(new[n].abs(), w[n].abs()) for n in w)
    in_filters = all(same_multiset(a.abs(), b.abs()) for n in w for a,b in zip(new[n], w[n]))
    assert (in_layers, in_filters) == (not kind.startswith('global'), kind.startswith('filter'))
    assert all(torch.equal(new[n].sign(), w[n].sign()) for n in w) == ('same sign' in kind)


@pytest.mark.parametrize('n', (.5, 1, 2, 3))
def test_noise_is_in_units_of_the_initialisation(n):
    "Layer by layer: Kaiming's sqrt(2/fan_in)."
    state = init.fn(nets.mnist1d_conv, seed=3)
    w = prunable_weights(state)
    new = prunable_weights(ep.perturbed.fn(state, {k: torch.ones_like(x, dtype=torch.bool) for k,x in w.items()}, f'noise {n:g}', seed=0))
    for k,x in w.items(): assert float((new[k] - x).std()) == pytest.approx(n*(2/x[0].numel())**.5, rel=5/x.numel()**.5), k


def test_effective_deviation_is_of_survivors_about_their_mean():
    w = {'a': torch.zeros(4, 5)}
    m = {'a': torch.tensor([[True, True, False, False, False]]*4)}
    after = {'a': torch.tensor([[1., 3, 0, 0, 0]]*4)}
    assert ep.effective_std(w, after, m) == 1.   # 2 +- 1


def test_subnetworks_go_on_from_k_under_their_own_mask():
    "A perturbed subnetwork has the weights and the mask of its k and the steps from k on; so has the size of the perturbation."
    s = SMOKE
    for k in s.pair:
        mask = ep.ticket(s, k, 0, s.level)
        run = figs.perturbed_scores(s, k, 'layer', s.level)[0].args['state']
        trained = next(iter(run.inputs)).args if 'start' not in run.args else run.args
        assert trained['first'] == k and trained['mask'] == mask and trained['start'].args['mask'] == mask and trained['start'].args['state'] == ep.state_at(s, k, 0)
        assert figs.effects(s)[k]['layer']['effect'][0].args['mask'] == mask


def test_explorer(monkeypatch):
    "A slider over k, every perturbation, and each position draws what is stored."
    widgets = pytest.importorskip('ipywidgets')
    import matplotlib; matplotlib.use('agg')
    import matplotlib.pyplot as plt
    s = figs.studies('quick')[0]
    v = figs.FIG_8.values('quick', stored=True)[s]
    if not all(x for k in v for n in ep.PERTURBATIONS for x in v[k][n]['effect']): pytest.skip('no published results')
    seen = set()
    for k in s.pair:
        for kind in ep.PERTURBATIONS:
            title = figs.before_after(v, k, kind).axes[0].get_title()
            e = v[k][kind]['effect']
            assert kind in title and f'{np.mean([x["std"] for x in e]):.3f}' in title and f'accuracy {accuracies(v[k][kind]["score"]).mean():.1f} %' in title
            seen.add(title); plt.close('all')
    assert len(seen) == 28
    box = figs.explorer('quick')
    slider,choice = box.children[0].children
    assert isinstance(slider, widgets.SelectionSlider) and list(slider.options) == list(s.pair)
    assert isinstance(choice, widgets.Dropdown) and list(choice.options) == list(ep.PERTURBATIONS)
    drawn = []
    monkeypatch.setattr(figs.figure_8, 'before_after', lambda v, k, perturb: drawn.append((k, perturb)) or plt.figure())
    slider.value,choice.value = s.pair[1],'noise 2'
    assert drawn == [(s.pair[1], 'layer'), (s.pair[1], 'noise 2')]
    with pytest.raises(ValueError, match='this scale has Conv'): figs.explorer('quick', study='ResNet')


def test_telemetry_is_the_run(store):
    "Replayed telemetry ends at the run's end, and its sparse looks agree with states stored on the way."
    s = SMOKE
    run = ep.dense(s, 0)
    node = figs.telemetry(init(s.network, seed=0), s.data, s.recipe, 0, s.length, run.at('end'))
    seen,w0,w8,end = compute([node, init(s.network, seed=0), run.at(8), run.at('end')], store=store, workers=1, quiet=True)
    flat = lambda z: torch.cat([x.flatten() for x in prunable_weights(z).values()])
    a,b,c = flat(w0),flat(w8),flat(end)
    at = seen['steps'].index(8)
    want = {'from start': (b - a).norm(), 'from end': (b - c).norm(), 'magnitude': b.abs().mean(), 'sign changes': 100*(a.sign() != b.sign()).float().mean(),
            'cosine to start': torch.cosine_similarity(a, b, 0), 'cosine to end': torch.cosine_similarity(c, b, 0)}
    for n,x in want.items(): assert seen[n][at] == pytest.approx(float(x), rel=1e-4), n
    assert seen['from end'][-1] == 0 and seen['steps'] == sorted(seen['steps'])


def test_telemetry_takes_the_gradient(store):
    "Both panels of the gradient, against the gradient itself; the weights that are followed are weights."
    from lth_nb.engine import Replica
    s = SMOKE
    w0 = init.fn(s.network, seed=0)
    rep = Replica(w0, s.data, s.recipe, 0, 0, hooks=[hook := figs.Telemetry(w0)])
    hook.begin(rep); rep.run(3)
    g,w = (torch.cat([rep.weights.view(x, n).flatten() for n in nets.prunable(s.network.build())]) for x in (rep.weights.grad, rep.weights.vector))
    got = {n: float(x[2]) for n,x in hook.values().items()}
    assert got['gradient'] == pytest.approx(float(g.norm()), rel=1e-5) and got['gradient magnitude'] == pytest.approx(float(g.abs().mean()), rel=1e-5)
    assert got['loss'] == pytest.approx(float(rep.losses[2]), rel=1e-6) and all(float((w - got[f'weight {i}']).abs().min()) < 1e-6 for i in range(10))
    assert len({got[f'weight {i}'] for i in range(10)}) == 10


def test_saturation():
    ks,rng = (0, 10, 100, 1000),np.random.default_rng(0)
    a = np.array([[80, 85, 90, 90.1]]) + rng.normal(0, .1, (6, 4))
    k,lo,hi = figs.saturation(ks, a)
    assert lo <= k <= hi and 10 < k < 100
    assert math.isnan(figs.saturation(ks, a[:, ::-1])[0]) and math.isnan(figs.saturation(ks, a[:2])[1])
    lucky = [[90, 90, 90, 91]] + 3*[[90, 85, 84, 80]]   # one seed of four gains: most resamples do not, and count
    assert figs.saturation(ks, lucky)[2] in (math.inf, math.nan) or math.isnan(figs.saturation(ks, lucky)[2])


def test_pearson():
    x = np.linspace(0, 1, 14)
    c = pearson(x, 90 - 5*x + np.random.default_rng(0).normal(0, .5, 14))
    assert c['low'] < c['r'] < c['high'] < 0 and c['p'] < .01 and c['n'] == 14
    assert math.isnan(pearson([1., 2], [1., 2])['r'])


# pretext tasks

def test_tasks_have_their_own_hash():
    made = [f(d).sha256 for d in (mnist1d(), cifar10(), mnist()) for f in (random_labels, rotations, blurred, lambda d: rotations(blurred(d)), lambda d: d)]
    assert len(set(made)) == 15
    small = rotations(mnist1d(train=10, test=5))
    assert (small.train, small.test, small.examples) == (40, 20, 40) and small.sha256 == rotations(mnist1d()).sha256
    with pytest.raises(ValueError, match='rotations come last'): blurred(rotations(mnist1d()))
    with pytest.raises(ValueError, match='2 or more'): blurred(cifar10(), factor=1)


@pytest.mark.parametrize('crops', (False, True))
def test_exact_quarter_turns(crops):
    "Crop, flip, then the turn; so a flipped image is never mistaken for one that lies on its other side."
    g = torch.Generator().manual_seed(0)
    s = Split(torch.randint(0, 256, (6, 12, 12, 3), generator=g, dtype=torch.uint8), torch.arange(6))
    base = Data('noise', s, s, 6, (.5,)*3, (.25,)*3, '')
    t = Turned(base, 'turned', '')
    i = torch.arange(24)
    c = augmentation(24, 1, 0) if crops else None
    x,y = t.gather(i, c)
    plain = base.gather(i//4, c)[0]
    assert torch.equal(x, torch.stack([torch.rot90(p, int(k), (1, 2)) for p,k in zip(plain, y)])) and y.tolist() == [0, 1, 2, 3]*6
    assert torch.equal(torch.cat([b for b,_ in t.evaluation('train', 5)]), t.gather(i)[0])


def test_impossible_pictures():
    s = lambda h, w: Split(torch.zeros(4, h, w, 1, dtype=torch.uint8), torch.arange(4))
    oblong = Data('oblong', s(8, 12), s(8, 12), 4, (.5,), (.5,), '')
    with pytest.raises(ValueError, match='square'): Turned(oblong, '', '')
    with pytest.raises(ValueError, match='at least 8 wide'): blur(s(7, 7).x, 4)


def test_blur_is_pils():
    from PIL import Image
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (3, 32, 32, 3), generator=g, dtype=torch.uint8)
    for a,b in zip(x, blur(x, 4)):
        pil = np.asarray(Image.fromarray(a.numpy()).resize((8, 8), Image.BILINEAR).resize((32, 32), Image.BILINEAR)).astype(int)
        assert np.abs(pil - b.numpy().astype(int)).max() <= 2   # PIL rounds after each of its four passes, we once


def test_tasks_on_real_images(real_data):
    r,b,l = rotations(cifar10(train=20, test=10)).load(),blurred(cifar10(train=20, test=10)).load(),random_labels(cifar10(train=2000)).load()
    base = cifar10(train=2000).load()
    assert len(r.train) == 80 and r.shape == (3, 32, 32) and b.train.x.float().var() < base.train.x[:20].float().var()
    assert .05 < float((l.train.y == base.train.y).float().mean()) < .15


def test_trade():
    "A ratio where there is something to buy; none where rewinding to 0 is as good."
    s = figs.studies('quick')[0]
    k,(short,long) = s.pair[0],s.epochs
    rows = lambda a: [[score(a)]*(s.rounds + 1) for _ in range(s.seeds)]
    def v(base, rotation): return {s: dict(rewind={'rewind to 0': rows(base), f'rewind to {k}': rows(90.)}, rotation=dict(zip(s.epochs, map(rows, rotation))))}
    last = lambda *a: figs.trade(v(*a), 'quick').rows[-1]
    assert last(80., (85., 89.8))['ratio'] == f'{long/k:.3g}' and last(80., (89.6, 91.))['ratio'] == f'{short/k:.3g}'
    assert last(80., (85., 89.))['ratio'] == f'> {long/k:.3g}' and last(80., (85., 89.))['length'] == f'not by {long}'
    assert 'ratio' not in last(89.7, (85., 91.))


def test_new_head():
    net = nets.mnist1d_conv
    four = replace(net, classes=4)
    a = init.fn(net, seed=0)
    p = ep.with_head.fn(a, four, seed=1)
    same = [k for k in a['weights'] if k in p['weights'] and torch.equal(a['weights'][k], p['weights'][k])]
    assert set(a['weights']) - set(same) == set(ep.head_of(net)) - {k for k in same} and p['network']['classes'] == 4 and not p['slots']
    with pytest.raises(ValueError, match='another body'): ep.with_head.fn(a, nets.mnist1d_res, seed=1)


def test_pretraining_trains_the_pretext(store):
    "From a pretext task to a score on the task itself, whole way."
    s = SMOKE
    for task in ep.TASKS:
        v = compute(ep.score(s, ep.pretrained(s, task, s.epochs[0], 0), 0, 0, None, 0), store=store, workers=1, quiet=True)
        assert v['test']['n'] == 64
    recipe = ep.pretext(replace(s, recipe=replace(s.recipe, warmup=3)), 'rotation')[2]
    assert (recipe.schedule, recipe.milestones, recipe.warmup, recipe.lr, recipe.steps) == ('milestones', (), 0, s.recipe.lr, 8)   # at the peak, throughout
    args = ep.retrained(s, ep.pretrained(s, 'rotation', 4, 0), 0, 0, None, 1).args
    assert args['first'] == 0 and args['start'].step.name == 'with_head'


def test_sparse_pretraining_keeps_the_mask(store):
    s = SMOKE
    data,network,recipe = ep.pretext(s, 'rotation')
    start,mask = ep.sparse_start(s, ep.SPARSE[1], 0)
    run = train(ep.with_head(start, network, seed=0), data, recipe, order=60, first=0, mask=ep.headless(mask, network))
    m,end = compute([mask, run.at(4)], store=store, workers=1, quiet=True)
    head = ep.head_of(network)[0]
    assert all(bool((end['weights'][n][~k] == 0).all()) for n,k in m.items() if n != head) and bool((end['weights'][head] != 0).all())


# verdicts

def pretend(s, base=80., k=90., **kinds):
    jitter = [.1*i for i in range(s.seeds)]
    rows = lambda a: [[score(a + j) for j in jitter] for _ in s.at]
    return {s: {kk: {'rewind to 0': rows(base), 'rewind to k': rows(k), **{n: rows(a) for n,a in kinds.items()}} for kk in s.pair}}


@pytest.mark.parametrize('layer,filter_,want', ((80.2, 84, True), (86, 88, False)))
def test_permutation_verdict(layer, filter_, want):
    s = figs.studies('quick')[0]
    v = pretend(s, **{'layer': layer, 'global': 80., 'filter': filter_})
    assert figs.ep7(v, 'quick').holds is want


@pytest.mark.parametrize('last,want', ((90., True), (95., False), (80., True)))
def test_saturation_verdict(last, want):
    "A last k that gains clearly more than the one before says no; one that gains nothing, yes."
    s = figs.studies('quick')[0]
    rows = lambda a: [[score(a + .1*i) for _ in range(s.levels + 1)] for i in range(s.seeds)]
    v = {k: rows({0: 80., s.ks[-1]: last}.get(k, 90.)) for k in s.ks}
    assert figs.ep2({s: v}, 'quick').holds is want
    assert figs.ep2({s: {**v, s.pair[1]: rows(80.)}}, 'quick').holds is not True   # no gain at all


def test_both_modes_of_batchnorm():
    "The running mode differs from the figure's spectra in that alone."
    s = figs.studies('paper')[0]
    v,same = figs.modes(s),figs.spectra(s)
    for k in s.both:
        assert v['batch'][k] == same[k][0] != v['running'][k]
        assert v['running'][k].args == v['batch'][k].args | {'batchnorm': 'running'}


def test_bulk_verdict():
    "EP4 is about what has changed since step 0: the spectrum of step 0 itself does not pass."
    s = figs.studies('quick')[0]
    def spec(low, big, n=5000): # eigenvalues: one bulk at 0, `big` of size 1, `big` at `low`
        return dict(nodes=[[low, 0., 1.]], weights=[[big/n, 1 - 2*big/n, big/n]], lowest=low, highest=1., n=n, batchnorm='batch')
    start,later = [spec(-1., 100 + i) for i in range(3)],[spec(-.05, 10 + i) for i in range(3)]
    of = lambda x: {s: {kk: (start if kk == 0 else x) for kk in s.spectra}}
    assert figs.ep4(of(later), 'quick').holds is True and figs.ep4(of(start), 'quick').holds is False
    assert figs.ep3(of(later), 'quick').holds is True and figs.ep3({s: {kk: later for kk in s.spectra}}, 'quick').holds is False


def _judge(claim, v): return getattr(figs, claim)(v, 'quick').holds

def _pretrained(s, zero=80., k=90., **tasks):
    "Scores of Figure 9 at one level, the same jitter in every seed; a task's are (short, long)."
    rows = lambda a: [[score(a + .1*i)]*(s.rounds + 1) for i in range(s.seeds)]
    return {s: dict(rewind={'rewind to 0': rows(zero), f'rewind to {s.pair[0]}': rows(k)}) | {t.replace('_', ' '): dict(zip(s.epochs, map(rows, a))) for t,a in tasks.items()}}

@pytest.mark.parametrize('claim,tasks,want', (
    ('ep12', dict(random_labels=(80.2, 70.)), True), ('ep12', dict(random_labels=(80.2, 81.)), False), ('ep12', dict(random_labels=(85., 70.)), False),
    ('ep13', dict(rotation=(81., 89.)), True), ('ep13', dict(rotation=(81., 79.)), False), ('ep13', dict(rotation=(91., 92.)), False),
    ('ep14', dict(rotation=(81., 89.), random_labels=(80., 70.)), True), ('ep14', dict(rotation=(91., 89.), random_labels=(80., 70.)), False),
    ('ep15', dict(blur=(81., 89.)), True), ('ep15', dict(blur=(91., 92.)), False),
    ('ep16', dict(blur_and_rotation=(80., 80.)), True), ('ep16', dict(blur_and_rotation=(80., 83.)), False)))
def test_pretraining_verdicts(claim, tasks, want):
    s = figs.studies('quick')[0]
    assert _judge(claim, _pretrained(s, **tasks)) is want


@pytest.mark.parametrize('mixed,zero,want', (((80.5, 80.5, 85.), 80., True), ((85., 85., 80.5), 80., False)))
def test_sign_verdict(mixed, zero, want):
    "EP6 of (fresh, magnitudes 0, magnitudes k) at the first k; at the second the two halves are level."
    s = figs.studies('quick')[0]
    fresh,m0,mk = mixed
    v = pretend(s, base=zero, **{'signs k, magnitudes fresh': fresh, 'signs k, magnitudes 0': m0, 'signs 0, magnitudes k': mk})
    v[s][s.pair[1]] |= {'signs 0, magnitudes k': v[s][s.pair[1]]['signs k, magnitudes 0']}
    assert _judge('ep6', v) is want
    v[s][s.pair[1]] |= {'signs 0, magnitudes k': v[s][s.pair[1]]['rewind to k']}   # no longer level
    assert _judge('ep6', v) is False


def test_rewinding_verdict():
    s = figs.studies('quick')[0]
    def v(late, zero=80.):
        rows = lambda dense, a: [[score(x + .1*i) for x in [dense] + [a]*s.levels] for i in range(s.seeds)]
        return {s: {k: rows(93., zero if k == 0 else late) for k in s.ks}}
    assert _judge('ep1', v(92.8)) is True and _judge('ep1', v(88.)) is False and _judge('ep1', v(92.8, zero=94.)) is False


def test_sign_change_verdict():
    s = figs.studies('quick')[0]
    v = lambda top: {s: dict(trace=[{'steps': [1, 300], 'sign changes': [0, top + .1*i]} for i in range(s.seeds)])}
    assert _judge('ep5', v(60.)) is True and _judge('ep5', v(12.)) is False


def test_noise_verdict():
    s = figs.studies('quick')[0]
    v = pretend(s, **{'noise 0.5': 89.8, 'noise 2': 80.})
    assert _judge('ep9', v) is not True   # as much lost at the later k
    v[s][s.pair[1]] |= pretend(s, **{'noise 2': 88.})[s][s.pair[1]]
    assert _judge('ep9', v) is True
    v[s][s.pair[0]] |= pretend(s, **{'noise 0.5': 85.})[s][s.pair[0]]
    assert _judge('ep9', v) is False


def _effects(s, off=0., slope=-10.):
    "Figure 8 with every perturbation on a line, except the exchanges, `off` points away in turn."
    out = {}
    for k in s.pair:
        out[k] = {}
        for j,n in enumerate(ep.PERTURBATIONS):
            x = .1 + .05*((5*j) % 14)
            y = 90 + slope*x + (off*(-1)**j if j < 3 else .1*(-1)**j)
            out[k][n] = dict(effect=[dict(std=x + .001*i) for i in range(s.seeds)], score=[score(y + .05*i) for i in range(s.seeds)])
        out[k] |= {n: dict(effect=[], score=[score(90.)]*s.seeds) for n in ('rewind to k', 'rewind to 0')}
    return {s: out}

def test_effect_verdicts():
    s = figs.studies('quick')[0]
    assert _judge('ep10', _effects(s)) is True and _judge('ep10', _effects(s, slope=10.)) is False
    assert _judge('ep11', _effects(s, off=3.)) is True and _judge('ep11', _effects(s, off=0.)) is False


def test_equal_sign_verdict():
    s = figs.studies('quick')[0]
    plain = pretend(s, **dict.fromkeys(ep.SCOPES, 60.))
    sizes = {s: {k: {n: dict(effect=[dict(std=(.3 if 'same' in n else .8) + .01*i) for i in range(s.seeds)]) for n in ep.PERTURBATIONS} for k in s.pair}}
    v = lambda a: pretend(s, **{f'{n}, same sign': a for n in ep.SCOPES})
    judge = lambda a: figs.ep8(v(a), 'quick', plain, sizes).holds
    assert judge(85.) is True
    assert judge(55.) is False
    assert judge(95.) is False


def test_sparse_pretraining_verdict():
    s = figs.studies('quick')[0]
    v = lambda a: {s: {kind: {e: [score((a if e else 80.) + .1*i) for i in range(s.seeds)] for e in (0, *s.epochs)} for kind in ep.SPARSE}}
    assert _judge('ep17', v(79.)) is True and _judge('ep17', v(83.)) is False


def test_together():
    yes,no,open_ = Verdict(True, 1.), Verdict(False, 2.), Verdict(None, 3.)
    assert together(dict(a=yes, b=no, c=open_)).holds is False and together(dict(a=yes, c=open_)).holds is None
    assert together(dict(a=yes)).holds is True and together({}).holds is None


def test_ledger_without_results(tmp_path, monkeypatch):
    "Nothing computed: every claim is undecided, every figure says so."
    monkeypatch.setenv('LTH_NB_RESULTS', str(tmp_path)); monkeypatch.setenv('LTH_NB_PUBLISHED', 'none')
    import matplotlib; matplotlib.use('agg')
    assert {r['verdict'] for r in figs.ledger('gpu').rows} == {'not decided'}
    for f in CHAPTER: f.show('gpu', stored=True)
    assert figs.explorer_still('gpu') is not None
    import matplotlib.pyplot as plt; plt.close('all')
