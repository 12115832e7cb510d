"""The early phase: its plans, its perturbations' invariants, its verdicts."""
import math
from dataclasses import replace

import matplotlib.pyplot as plt, numpy as np, pytest, torch
from lth_nb import early_phase as ep, networks as nets
from lth_nb.claims import Verdict, together
from lth_nb.data import (Data, Split, Turned, augmentation, blur, blurred, cifar10, mnist, mnist1d, random_labels,
                         rotations)
from lth_nb.engine import Replica
from lth_nb.experiment import compute, missing, nodes_in
from lth_nb.figures import early_phase as figs
from lth_nb.figures.kit import FIGURES, accuracies
from lth_nb.pruning import prunable_weights
from lth_nb.training import init, train
from helpers import identical, named

CHAPTER = [figure for figure in FIGURES.values() if figure.id.startswith('early_phase/')]
SMOKE = named(figs.studies('smoke'), 'Conv')
QUICK = named(figs.studies('quick'), 'Conv')
CONV = nets.mnist1d_conv


def score(accuracy): return dict(test=dict(error=100 - accuracy, loss=1., n=100))

def all_of(weights): return {name: torch.ones_like(w, dtype=torch.bool) for name,w in weights.items()}

@pytest.fixture
def no_pictures_left():
    yield
    plt.close('all')


# ------------------------------------------------------------------ plans

@pytest.mark.parametrize('scale', ('smoke', 'quick', 'cpu', 'gpu', 'paper'))
def test_plans(scale):
    "Every figure has a plan at every scale, made without data on disk."
    without = ('figure-9', 'figure-10') if scale == 'gpu' else ()   # nothing is pretrained there
    for figure in CHAPTER: assert figure.id.endswith(without) or set(nodes_in(figure.nodes(scale))), figure.id


def test_paper_plan_is_the_papers():
    studies = figs.paper_studies()
    assert [study.name for study in studies] == ['ResNet-20', 'ResNet-56', 'ResNet-18', 'WRN-16-8', 'VGG-13']
    study = studies[0]
    recipe = study.recipe
    assert (study.length, study.seeds, study.pair) == (62500, 5, (500, 2000))
    assert (recipe.lr, recipe.weight_decay, recipe.batch) == (.1, 1e-4, 128)
    assert round(study.percent(study.level), 1) == 26.2
    assert study.steps('40ep') == 15625
    assert len(ep.PERTURBATIONS) == 14
    assert {'10ep', '40ep'} <= set(study.epochs)
    assert set(study.tasks) == set(ep.TASKS)


def test_every_claim_is_there():
    ids = [name for figure in CHAPTER for name in figure.claims]
    assert sorted(ids, key=lambda name: int(name[2:])) == [f'EP{i}' for i in range(1, 18)]


def test_rungs_share_their_runs(store):
    "A ladder of L rounds is L + 1 trainings beside the run that gives the rewinding point."
    k = SMOKE.pair[0]
    rungs = ep.ladder(SMOKE, ep.state_at(SMOKE, k, 0), k, 0, 2, SMOKE.fraction)
    tasks = missing(rungs, store)
    assert sum(task.nodes[0].step.name == 'trajectory' for task in tasks.values()) == 4
    assert len(missing([*rungs, ep.ticket(SMOKE, k, 0, 2)], store)) == len(tasks)


def test_rewinding_restores_and_goes_on_at_k():
    k = SMOKE.pair[0]
    args = ep.retrained(SMOKE, ep.state_at(SMOKE, k, 0), k, 0, None, 1).args
    assert args['first'] == k
    assert args['start'] == ep.state_at(SMOKE, k, 0)
    assert args['optimizer'] == 'fresh'
    with pytest.raises(ValueError, match='it goes from 0 to 24'): ep.state_at(SMOKE, 25, 0)
    start = ep.state_at(SMOKE, 0, 0)
    with pytest.raises(ValueError, match='it has 24 steps'): ep.retrained(SMOKE, start, 25, 0, None, 1)


def training_of(node):
    "The arguments of the training from which a score comes."
    state = node.args['state']
    return state.args if 'start' in state.args else next(iter(state.inputs)).args

@pytest.mark.parametrize('k', SMOKE.pair)
def test_subnetworks_go_on_from_k_under_their_own_mask(k):
    """A perturbed subnetwork has the weights and the mask of its k and the steps from k on; so has the size of the
    perturbation."""
    mask = ep.ticket(SMOKE, k, 0, SMOKE.level)
    trained = training_of(figs.perturbed_scores(SMOKE, k, 'layer', SMOKE.level)[0])
    assert trained['first'] == k
    assert trained['mask'] == mask
    assert trained['start'].args['mask'] == mask
    assert trained['start'].args['state'] == ep.state_at(SMOKE, k, 0)
    assert figs.effects(SMOKE)[k]['layer']['effect'][0].args['mask'] == mask


def test_both_modes_of_batchnorm():
    "The running mode differs from the figure's spectra in that alone."
    study = named(figs.studies('paper'), 'ResNet-20')
    modes = figs.modes(study)
    spectra = figs.spectra(study)
    for k in study.both:
        assert modes['batch'][k] == spectra[k][0] != modes['running'][k]
        assert modes['running'][k].args == modes['batch'][k].args | {'batchnorm': 'running'}


# ------------------------------------------------------------------ perturbations

@pytest.fixture
def weights():
    "Weights, a mask, other weights: of two convolutions and a linear layer."
    g = torch.Generator().manual_seed(0)
    shapes = dict(conv1=(6, 3, 3, 3), conv2=(4, 6, 3), fc=(5, 4))
    first, second = ({name: torch.randn(shape, generator=g) for name,shape in shapes.items()} for _ in range(2))
    return first, {name: torch.rand(shape, generator=g) > .6 for name,shape in shapes.items()}, second


def untouched(old, new, mask): return all(torch.equal(new[name][~mask[name]], old[name][~mask[name]]) for name in old)

def same_multiset(a, b): return torch.equal(a.flatten().sort().values, b.flatten().sort().values)


def test_exchange_of_signs(weights):
    w, mask, start = weights
    new = ep.exchange(w, mask, signs=start)
    assert untouched(w, new, mask)
    for name,m in mask.items():
        assert torch.equal(new[name].abs(), w[name].abs())
        assert torch.equal(new[name][m].sign(), start[name][m].sign())

def test_exchange_of_magnitudes(weights):
    w, mask, start = weights
    new = ep.exchange(w, mask, magnitudes=start)
    for name,m in mask.items():
        assert torch.equal(new[name].sign(), w[name].sign())
        assert torch.equal(new[name][m].abs(), start[name][m].abs())

def test_exchange_of_nothing(weights):
    w, mask, _ = weights
    assert all(torch.equal(new, w[name]) for name,new in ep.exchange(w, mask).items())


@pytest.mark.parametrize('scope', ep.SCOPES)
@pytest.mark.parametrize('same', (False, True))
@pytest.mark.parametrize('seed', (0, 1))
def test_permute(weights, scope, same, seed):
    w, mask, _ = weights
    before = {name: x.clone() for name,x in w.items()}
    new = ep.permute(w, mask, scope, seed, same)
    assert identical(before, w), 'not in place'
    assert untouched(w, new, mask)
    assert same_multiset(ep.survivors(new, mask), ep.survivors(w, mask))
    for name,m in mask.items():
        if scope != 'global': assert same_multiset(new[name][m], w[name][m])
        if scope != 'filter': continue
        for filter_,old,left in zip(new[name], w[name], m): assert same_multiset(filter_[left], old[left])
    if same: assert torch.equal(ep.survivors(new, mask).signbit(), ep.survivors(w, mask).signbit())
    assert identical(ep.permute(w, mask, scope, seed, same), new)
    assert not identical(ep.permute(w, mask, scope, seed + 10, same), new)

@pytest.mark.parametrize('seed', (0, 1))
def test_global_permutations_cross_layers(weights, seed):
    w, mask, _ = weights
    new = ep.permute(w, mask, 'global', seed, False)
    assert any(not same_multiset(new[name][m], w[name][m]) for name,m in mask.items())


def test_permute_is_uniform():
    w = {'a': torch.arange(3.)[None, None]}
    seen = [tuple(ep.permute(w, all_of(w), 'layer', seed)['a'].flatten().tolist()) for seed in range(600)]
    assert len(set(seen)) == 6
    assert all(60 < seen.count(order) < 140 for order in set(seen))


def test_noise(weights):
    w, mask, _ = weights
    stds = dict(conv1=.1, conv2=.2, fc=.3)
    new = ep.noisy(w, mask, stds, 2, seed=1)
    assert untouched(w, new, mask)
    assert identical(ep.noisy(w, mask, stds, 2, seed=1), new)

def test_no_noise(weights):
    w, mask, _ = weights
    new = ep.noisy(w, mask, dict(conv1=.1, conv2=.2, fc=.3), 0, seed=1)
    assert all(torch.equal(new[name], w[name]) for name in w)
    assert ep.effective_std(w, new, mask) == 0

def test_noise_has_its_size():
    w = {'a': torch.zeros(400, 400)}
    mask = all_of(w)
    assert ep.effective_std(w, ep.noisy(w, mask, {'a': .1}, 3, 0), mask) == pytest.approx(.3, rel=.01)


def test_noise_is_not_the_initialisation():
    "Both are normal draws from a seed, layer by layer: the same seed must not give the same numbers."
    state = init.fn(CONV, seed=3)
    mask = all_of(prunable_weights(state))
    before = ep.survivors(prunable_weights(state), mask)
    after = ep.survivors(prunable_weights(ep.perturbed.fn(state, mask, 'noise 1', seed=3)), mask)
    assert abs(float(torch.corrcoef(torch.stack([after - before, before]))[0, 1])) < .06


def test_filters_need_convolutions(weights):
    w, mask, _ = weights
    with pytest.raises(ValueError, match="no convolution filters; use 'layer' or 'global'"):
        ep.permute({'fc': w['fc']}, {'fc': mask['fc']}, 'filter', 0)
    mlp = replace(SMOKE, network=nets.mnist1d_mlp)
    with pytest.raises(ValueError, match='no convolution filters'):   # before anything is trained
        figs.perturbed_scores(mlp, 4, 'filter, same sign', 1)
    assert len(figs.perturbed_scores(mlp, 4, 'layer', 1)) == SMOKE.seeds

def test_perturbations_that_are_not_there(weights):
    w, mask, _ = weights
    with pytest.raises(ValueError, match='global, layer, filter'): ep.permute(w, mask, 'kernel', 0)
    with pytest.raises(ValueError, match='signs k'): ep.perturbed.fn(init.fn(CONV, seed=0), {}, 'magic')


@pytest.fixture
def start(): return init.fn(CONV, seed=0)

@pytest.fixture
def state():
    "As if trained for seven steps, with momentum."
    fresh = init.fn(CONV, seed=1)
    return {**fresh, 'step': 7, 'slots': {'momentum_buffer': fresh['weights']}}

@pytest.fixture
def half(state):
    g = torch.Generator().manual_seed(0)
    return {name: torch.rand(w.shape, generator=g) > .5 for name,w in prunable_weights(state).items()}

SURE = ('signs k, magnitudes 0', 'signs 0, magnitudes k', *ep.BASELINE)   # what no seed changes

@pytest.mark.parametrize('kind', (*ep.PERTURBATIONS, *ep.BASELINE))
def test_perturbed_states(start, state, half, kind):
    new = ep.perturbed.fn(state, half, kind, start, seed=3)
    old = prunable_weights(state)
    others = [name for name in state['weights'] if name not in old]   # BatchNorm and biases
    assert new['step'] == 7
    assert not new['slots']
    assert untouched(old, prunable_weights(new), half)
    assert all(torch.equal(new['weights'][name], state['weights'][name]) for name in others)
    assert identical(ep.perturbed.fn(state, half, kind, start, seed=3)['weights'], new['weights'])
    another = prunable_weights(ep.perturbed.fn(state, half, kind, start, seed=4))
    assert identical(another, prunable_weights(new)) == (kind in SURE)

@pytest.mark.parametrize('kind', (*ep.PERTURBATIONS, *ep.BASELINE))
def test_the_effect_of_a_perturbation(start, state, half, kind):
    new = ep.perturbed.fn(state, half, kind, start, seed=3)
    moved = ep.survivors(prunable_weights(new), half) - ep.survivors(prunable_weights(state), half)
    effect = figs.effect.fn(state, new, half)
    assert effect['std'] == pytest.approx(float(moved.std(correction=0)), rel=1e-5)
    assert len(effect['before']) == len(effect['after'])
    assert effect['layer'] in prunable_weights(state)

def test_permuted_layers_with_the_first_signs(start, state, half):
    new = prunable_weights(ep.perturbed.fn(state, half, 'layer, signs 0', start, seed=3))
    old = prunable_weights(state)
    first = prunable_weights(start)
    for name,m in half.items():
        assert torch.equal(new[name][m].sign(), first[name][m].sign())
        assert same_multiset(new[name][m].abs(), old[name][m].abs())


@pytest.mark.parametrize('kind,signs,magnitudes', (
    ('signs k, magnitudes fresh', 'k', None),
    ('signs k, magnitudes 0', 'k', '0'),
    ('signs 0, magnitudes k', '0', 'k'),
    ('signs 0, magnitudes 0', '0', '0')))
def test_exchanges_are_what_they_are_called(start, state, kind, signs, magnitudes):
    of = {'k': prunable_weights(state), '0': prunable_weights(start)}
    new = prunable_weights(ep.perturbed.fn(state, all_of(of['k']), kind, start, seed=0))
    for name,w in new.items():
        assert torch.equal(w.sign(), of[signs][name].sign())
        if magnitudes: assert torch.equal(w.abs(), of[magnitudes][name].abs())
        else:   # another draw of the same
            first = of['0'][name]
            assert not torch.equal(w.abs(), first.abs())
            assert w.std() == pytest.approx(float(first.std()), rel=.35)


@pytest.mark.parametrize('kind', [name for name in ep.PERTURBATIONS if 'scope' in ep.PERTURBATIONS[name]])
def test_permutations_are_what_they_are_called(start, state, kind):
    "Global ones cross layers, layers' cross filters, filters' do not; signs stay or not."
    w = prunable_weights(state)
    new = prunable_weights(ep.perturbed.fn(state, all_of(w), kind, start, seed=0))
    in_layers = all(same_multiset(new[name].abs(), w[name].abs()) for name in w)
    in_filters = all(same_multiset(a.abs(), b.abs()) for name in w for a,b in zip(new[name], w[name]))
    same_signs = all(torch.equal(new[name].sign(), w[name].sign()) for name in w)
    assert in_layers == (not kind.startswith('global'))
    assert in_filters == kind.startswith('filter')
    assert same_signs == ('same sign' in kind)


@pytest.mark.parametrize('n', (.5, 1, 2, 3))
def test_noise_is_in_units_of_the_initialisation(n):
    "Layer by layer: Kaiming's sqrt(2/fan_in)."
    state = init.fn(CONV, seed=3)
    old = prunable_weights(state)
    new = prunable_weights(ep.perturbed.fn(state, all_of(old), f'noise {n:g}', seed=0))
    for name,w in old.items():
        expected = n*(2/w[0].numel())**.5
        assert float((new[name] - w).std()) == pytest.approx(expected, rel=5/w.numel()**.5), name


def test_effective_deviation_is_of_survivors_about_their_mean():
    w = {'a': torch.zeros(4, 5)}
    mask = {'a': torch.tensor([[True, True, False, False, False]]*4)}
    after = {'a': torch.tensor([[1., 3, 0, 0, 0]]*4)}
    assert ep.effective_std(w, after, mask) == 1.   # 2 +- 1


# ------------------------------------------------------------------ the explorer

@pytest.fixture
def seen():
    "Figure 8's values, or a skip."
    values = figs.FIG_8.values('quick', stored=True)[QUICK]
    for k in values:
        if not all(all(values[k][kind]['effect']) for kind in ep.PERTURBATIONS): pytest.skip('no published results')
    return values

def test_explorer(seen, no_pictures_left):
    "Each position draws what is stored."
    titles = set()
    for k in QUICK.pair:
        for kind in ep.PERTURBATIONS:
            title = figs.before_after(seen, k, kind).axes[0].get_title()
            size = np.mean([x['std'] for x in seen[k][kind]['effect']])
            assert kind in title
            assert f'{size:.3f}' in title
            assert f'accuracy {accuracies(seen[k][kind]["score"]).mean():.1f} %' in title
            titles.add(title)
            plt.close('all')
    assert len(titles) == 28

def test_the_explorers_sliders(seen, monkeypatch, no_pictures_left):
    "One over k, one over every perturbation; moving one draws again."
    widgets = pytest.importorskip('ipywidgets')
    slider, choice = figs.explorer('quick').children[0].children
    assert isinstance(slider, widgets.SelectionSlider)
    assert list(slider.options) == list(QUICK.pair)
    assert isinstance(choice, widgets.Dropdown)
    assert list(choice.options) == list(ep.PERTURBATIONS)
    drawn = []
    def noted(values, k, perturb):
        drawn.append((k, perturb))
        return plt.figure()
    monkeypatch.setattr(figs.figure_8, 'before_after', noted)
    slider.value = QUICK.pair[1]
    choice.value = 'noise 2'
    assert drawn == [(QUICK.pair[1], 'layer'), (QUICK.pair[1], 'noise 2')]

def test_an_explorer_of_what_is_not_there(seen):
    pytest.importorskip('ipywidgets')
    with pytest.raises(ValueError, match='this scale has Conv'): figs.explorer('quick', study='ResNet')


# ------------------------------------------------------------------ telemetry

def flat(state): return torch.cat([w.flatten() for w in prunable_weights(state).values()])

def test_telemetry_is_the_run(store):
    "Replayed telemetry ends at the run's end, and its sparse looks agree with states stored on the way."
    start = init(SMOKE.network, seed=0)
    run = ep.dense(SMOKE, 0)
    node = figs.telemetry(start, SMOKE.data, SMOKE.recipe, 0, SMOKE.length, run.at('end'))
    seen, *states = compute([node, start, run.at(8), run.at('end')], store=store, workers=1, quiet=True)
    first, eighth, last = map(flat, states)
    want = {'from start': (eighth - first).norm(), 'from end': (eighth - last).norm(),
            'magnitude': eighth.abs().mean(), 'sign changes': 100*(first.sign() != eighth.sign()).float().mean(),
            'cosine to start': torch.cosine_similarity(first, eighth, 0),
            'cosine to end': torch.cosine_similarity(last, eighth, 0)}
    at = seen['steps'].index(8)
    for name,value in want.items(): assert seen[name][at] == pytest.approx(float(value), rel=1e-4), name
    assert seen['from end'][-1] == 0
    assert seen['steps'] == sorted(seen['steps'])


def test_telemetry_takes_the_gradient():
    "Both panels of the gradient, against the gradient itself; the weights that are followed are weights."
    start = init.fn(SMOKE.network, seed=0)
    hook = figs.Telemetry(start)
    rep = Replica(start, SMOKE.data, SMOKE.recipe, 0, 0, hooks=[hook])
    hook.begin(rep)
    rep.run(3)
    names = nets.prunable(SMOKE.network.build())
    def all_in(vector): return torch.cat([rep.weights.view(vector, name).flatten() for name in names])
    gradient = all_in(rep.weights.grad)
    weights = all_in(rep.weights.vector)
    got = {name: float(values[2]) for name,values in hook.values().items()}
    followed = [got[f'weight {i}'] for i in range(10)]
    assert got['gradient'] == pytest.approx(float(gradient.norm()), rel=1e-5)
    assert got['gradient magnitude'] == pytest.approx(float(gradient.abs().mean()), rel=1e-5)
    assert got['loss'] == pytest.approx(float(rep.losses[2]), rel=1e-6)
    for weight in followed: assert float((weights - weight).abs().min()) < 1e-6
    assert len(set(followed)) == 10


# ------------------------------------------------------------------ numbers read off curves

STEPS = (0, 10, 100, 1000)

def test_saturation():
    a = np.array([[80, 85, 90, 90.1]]) + np.random.default_rng(0).normal(0, .1, (6, 4))
    k, low, high = figs.saturation(STEPS, a)
    assert low <= k <= high
    assert 10 < k < 100
    assert math.isnan(figs.saturation(STEPS, a[:, ::-1])[0])
    assert math.isnan(figs.saturation(STEPS, a[:2])[1])

def test_saturation_of_one_lucky_seed():
    "One of four gains: most resamples do not, and count."
    _, _, high = figs.saturation(STEPS, [[90, 90, 90, 91]] + 3*[[90, 85, 84, 80]])
    assert math.isnan(high) or high == math.inf


def test_pearson():
    x = np.linspace(0, 1, 14)
    c = figs.pearson(x, 90 - 5*x + np.random.default_rng(0).normal(0, .5, 14))
    assert c['low'] < c['r'] < c['high'] < 0
    assert c['p'] < .01
    assert c['n'] == 14
    assert math.isnan(figs.pearson([1., 2], [1., 2])['r'])


# ------------------------------------------------------------------ pretext tasks

def test_tasks_have_their_own_hash():
    def as_it_is(data): return data
    def both(data): return rotations(blurred(data))
    hashes = {task(data).sha256 for data in (mnist1d(), cifar10(), mnist())
              for task in (random_labels, rotations, blurred, both, as_it_is)}
    assert len(hashes) == 15

def test_rotations_are_four_times_as_many():
    small = rotations(mnist1d(train=10, test=5))
    assert (small.train, small.test, small.examples) == (40, 20, 40)
    assert small.sha256 == rotations(mnist1d()).sha256

def test_tasks_that_cannot_be():
    with pytest.raises(ValueError, match='rotations come last'): blurred(rotations(mnist1d()))
    with pytest.raises(ValueError, match='2 or more'): blurred(cifar10(), factor=1)


def pictures(images): return Split(images, torch.arange(len(images)))

@pytest.mark.parametrize('crops', (False, True))
def test_exact_quarter_turns(crops):
    "Crop, flip, then the turn; so a flipped image is never mistaken for one that lies on its other side."
    g = torch.Generator().manual_seed(0)
    split = pictures(torch.randint(0, 256, (6, 12, 12, 3), generator=g, dtype=torch.uint8))
    base = Data('noise', split, split, 6, (.5,)*3, (.25,)*3, '')
    turned = Turned(base, 'turned', '')
    index = torch.arange(24)
    crop = augmentation(24, 1, 0) if crops else None
    x, y = turned.gather(index, crop)
    plain = base.gather(index//4, crop)[0]
    assert y.tolist() == [0, 1, 2, 3]*6
    assert torch.equal(x, torch.stack([torch.rot90(image, int(k), (1, 2)) for image,k in zip(plain, y)]))
    assert torch.equal(torch.cat([batch for batch,_ in turned.evaluation('train', 5)]), turned.gather(index)[0])


def test_impossible_pictures():
    oblong = pictures(torch.zeros(4, 8, 12, 1, dtype=torch.uint8))
    with pytest.raises(ValueError, match='square'): Turned(Data('oblong', oblong, oblong, 4, (.5,), (.5,), ''), '', '')
    with pytest.raises(ValueError, match='at least 8 wide'): blur(torch.zeros(4, 7, 7, 1, dtype=torch.uint8), 4)


def test_blur_is_pils():
    from PIL import Image
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 32, 32, 3), generator=g, dtype=torch.uint8)
    for image,ours in zip(images, blur(images, 4)):
        small = Image.fromarray(image.numpy()).resize((8, 8), Image.BILINEAR)
        theirs = np.asarray(small.resize((32, 32), Image.BILINEAR)).astype(int)
        off = np.abs(theirs - ours.numpy().astype(int))
        assert off.max() <= 2, 'PIL rounds after each of its four passes, we once'


def test_tasks_on_real_images(real_data):
    few = cifar10(train=20, test=10)
    turned = rotations(few).load()
    assert len(turned.train) == 80
    assert turned.shape == (3, 32, 32)
    assert blurred(few).load().train.x.float().var() < few.load().train.x.float().var()

def test_random_labels_on_real_images(real_data):
    base = cifar10(train=2000)
    agree = random_labels(base).load().train.y == base.load().train.y
    assert .05 < float(agree.float().mean()) < .15


def test_new_head():
    four = replace(CONV, classes=4)
    state = init.fn(CONV, seed=0)
    new = ep.with_head.fn(state, four, seed=1)
    kept = {name for name,w in state['weights'].items() if torch.equal(w, new['weights'][name])}
    assert set(state['weights']) - kept == set(ep.head_of(CONV)) - kept
    assert new['network']['classes'] == 4
    assert not new['slots']
    with pytest.raises(ValueError, match='another body'): ep.with_head.fn(state, nets.mnist1d_res, seed=1)


@pytest.mark.parametrize('task', ep.TASKS)
def test_pretraining_trains_the_pretext(store, task):
    "From a pretext task to a score on the task itself, whole way."
    node = ep.score(SMOKE, ep.pretrained(SMOKE, task, SMOKE.epochs[0], 0), 0, 0, None, 0)
    assert compute(node, store=store, workers=1, quiet=True)['test']['n'] == 64

def test_pretraining_is_at_the_peak_throughout():
    warm = replace(SMOKE, recipe=replace(SMOKE.recipe, warmup=3))
    recipe = ep.pretext(warm, 'rotation')[2]
    assert (recipe.schedule, recipe.milestones, recipe.warmup) == ('milestones', (), 0)
    assert (recipe.lr, recipe.steps) == (SMOKE.recipe.lr, 8)

def test_what_follows_pretraining_is_a_whole_run():
    args = ep.retrained(SMOKE, ep.pretrained(SMOKE, 'rotation', 4, 0), 0, 0, None, 1).args
    assert args['first'] == 0
    assert args['start'].step.name == 'with_head'


def test_sparse_pretraining_keeps_the_mask(store):
    data, network, recipe = ep.pretext(SMOKE, 'rotation')
    start, mask = ep.sparse_start(SMOKE, ep.SPARSE[1], 0)
    begin = ep.with_head(start, network, seed=0)
    run = train(begin, data, recipe, order=60, first=0, mask=ep.headless(mask, network))
    masks, end = compute([mask, run.at(4)], store=store, workers=1, quiet=True)
    head = ep.head_of(network)[0]
    for name,m in masks.items():
        if name != head: assert not end['weights'][name][~m].any(), name
    assert (end['weights'][head] != 0).all()


# ------------------------------------------------------------------ verdicts

def rows(accuracy, columns, study=QUICK):
    "Scores of every seed, the same in each column; each seed a little better than the one before."
    return [[score(accuracy + .1*i)]*columns for i in range(study.seeds)]

def row(accuracy, study=QUICK): return [score(accuracy + .1*i) for i in range(study.seeds)]

def holds(claim, values): return getattr(figs, claim)(values, 'quick').holds

def pretend(base=80., k=90., **kinds):
    "Figures 4 to 7: at both k, the accuracy of each kind."
    given = {'rewind to 0': base, 'rewind to k': k, **kinds}
    return {QUICK: {at: {kind: [row(accuracy) for _ in QUICK.at] for kind,accuracy in given.items()}
                    for at in QUICK.pair}}


@pytest.mark.parametrize('zero,late,want', ((80., 92.8, True), (80., 88., False), (94., 92.8, False)))
def test_rewinding_verdict(zero, late, want):
    def rungs(accuracy):
        return [[score(x + .1*i) for x in [93.] + [accuracy]*QUICK.levels] for i in range(QUICK.seeds)]
    values = {k: rungs(zero if k == 0 else late) for k in QUICK.ks}
    assert holds('ep1', {QUICK: values}) is want


def curve(known):
    "Figure 1: the accuracies from each k on; 90 where nothing else is said."
    return {k: rows(known.get(k, 90.), QUICK.levels + 1) for k in QUICK.ks}

@pytest.mark.parametrize('last,want', ((90., True), (95., False), (80., True)))
def test_saturation_verdict(last, want):
    "A last k that gains clearly more than the one before says no; one that gains nothing, yes."
    values = curve({0: 80., QUICK.ks[-1]: last})
    assert holds('ep2', {QUICK: values}) is want
    no_gain = rows(80., QUICK.levels + 1)
    assert holds('ep2', {QUICK: {**values, QUICK.pair[1]: no_gain}}) is not True


def spectrum(low, outliers, n=5000):
    "Eigenvalues: one bulk at 0, `outliers` of size 1, as many at `low`."
    few = outliers/n
    return dict(nodes=[[low, 0., 1.]], weights=[[few, 1 - 2*few, few]], lowest=low, highest=1., n=n, batchnorm='batch')

FIRST = [spectrum(-1., 100 + i) for i in range(3)]
LATER = [spectrum(-.05, 10 + i) for i in range(3)]

def test_bulk_verdict():
    "EP4 is about what has changed since step 0: the spectrum of step 0 itself does not pass."
    changed = {k: FIRST if k == 0 else LATER for k in QUICK.spectra}
    assert holds('ep4', {QUICK: changed}) is True
    assert holds('ep4', {QUICK: dict.fromkeys(QUICK.spectra, FIRST)}) is False
    assert holds('ep3', {QUICK: changed}) is True
    assert holds('ep3', {QUICK: dict.fromkeys(QUICK.spectra, LATER)}) is False


@pytest.mark.parametrize('top,want', ((60., True), (12., False)))
def test_sign_change_verdict(top, want):
    trace = [{'steps': [1, 300], 'sign changes': [0, top + .1*i]} for i in range(QUICK.seeds)]
    assert holds('ep5', {QUICK: dict(trace=trace)}) is want


@pytest.mark.parametrize('mixed,zero,want', (((80.5, 80.5, 85.), 80., True), ((85., 85., 80.5), 80., False)))
def test_sign_verdict(mixed, zero, want):
    "EP6 of (fresh, magnitudes 0, magnitudes k) at the first k; at the second the two halves are level."
    fresh, magnitudes_0, magnitudes_k = mixed
    values = pretend(base=zero, **{'signs k, magnitudes fresh': fresh, 'signs k, magnitudes 0': magnitudes_0,
                                   'signs 0, magnitudes k': magnitudes_k})
    late = values[QUICK][QUICK.pair[1]]
    late['signs 0, magnitudes k'] = late['signs k, magnitudes 0']
    assert holds('ep6', values) is want
    late['signs 0, magnitudes k'] = late['rewind to k']   # no longer level
    assert holds('ep6', values) is False


@pytest.mark.parametrize('layer,filter_,want', ((80.2, 84, True), (86, 88, False)))
def test_permutation_verdict(layer, filter_, want):
    assert holds('ep7', pretend(**{'layer': layer, 'global': 80., 'filter': filter_})) is want


@pytest.mark.parametrize('accuracy,want', ((85., True), (55., False), (95., False)))
def test_equal_sign_verdict(accuracy, want):
    plain = pretend(**dict.fromkeys(ep.SCOPES, 60.))
    same = pretend(**{f'{scope}, same sign': accuracy for scope in ep.SCOPES})
    def effect(kind): return [dict(std=(.3 if 'same' in kind else .8) + .01*i) for i in range(QUICK.seeds)]
    sizes = {kind: dict(effect=effect(kind)) for kind in ep.PERTURBATIONS}
    assert figs.ep8(same, 'quick', plain, {QUICK: dict.fromkeys(QUICK.pair, sizes)}).holds is want


def test_noise_verdict():
    values = pretend(**{'noise 0.5': 89.8, 'noise 2': 80.})
    early, late = (values[QUICK][k] for k in QUICK.pair)
    assert holds('ep9', values) is not True   # as much lost at the later k
    late['noise 2'] = [row(88.) for _ in QUICK.at]
    assert holds('ep9', values) is True
    early['noise 0.5'] = [row(85.) for _ in QUICK.at]
    assert holds('ep9', values) is False


def perturbation(i, off, slope):
    "The i-th of them: size and accuracy on a line, except the exchanges, `off` points away in turn."
    size = .1 + .05*((5*i) % 14)
    away = (off if i < 3 else .1)*(-1)**i
    effect = [dict(std=size + .001*seed) for seed in range(QUICK.seeds)]
    return dict(effect=effect, score=[score(90 + slope*size + away + .05*seed) for seed in range(QUICK.seeds)])

def figure_8(off=0., slope=-10.):
    plain = dict(effect=[], score=[score(90.)]*QUICK.seeds)
    at = {kind: perturbation(i, off, slope) for i,kind in enumerate(ep.PERTURBATIONS)}
    at |= {'rewind to k': plain, 'rewind to 0': plain}
    return {QUICK: dict.fromkeys(QUICK.pair, at)}

def test_effect_verdicts():
    assert holds('ep10', figure_8()) is True
    assert holds('ep10', figure_8(slope=10.)) is False
    assert holds('ep11', figure_8(off=3.)) is True
    assert holds('ep11', figure_8(off=0.)) is None, 'nothing is beyond a threshold of 0'


def figure_9(zero=80., k=90., **tasks):
    "At every level alike; a task's accuracies are (after the short, after the long pretraining)."
    columns = QUICK.rounds + 1
    rewind = {'rewind to 0': rows(zero, columns), f'rewind to {QUICK.pair[0]}': rows(k, columns)}
    pretrained = {}
    for task,given in tasks.items():
        pretrained[task.replace('_', ' ')] = {e: rows(a, columns) for e,a in zip(QUICK.epochs, given)}
    return {QUICK: dict(rewind=rewind) | pretrained}

@pytest.mark.parametrize('claim,tasks,want', (
    ('ep12', dict(random_labels=(80.2, 70.)), True),
    ('ep12', dict(random_labels=(80.2, 81.)), False),
    ('ep12', dict(random_labels=(85., 70.)), False),
    ('ep13', dict(rotation=(81., 89.)), True),
    ('ep13', dict(rotation=(81., 79.)), False),
    ('ep13', dict(rotation=(91., 92.)), False),
    ('ep14', dict(rotation=(81., 89.), random_labels=(80., 70.)), True),
    ('ep14', dict(rotation=(91., 89.), random_labels=(80., 70.)), False),
    ('ep15', dict(blur=(81., 89.)), True),
    ('ep15', dict(blur=(91., 92.)), False),
    ('ep16', dict(blur_and_rotation=(80., 80.)), True),
    ('ep16', dict(blur_and_rotation=(80., 83.)), False)))
def test_pretraining_verdicts(claim, tasks, want): assert holds(claim, figure_9(**tasks)) is want


SHORT, LONG = QUICK.epochs
K = QUICK.pair[0]

@pytest.mark.parametrize('zero,rotation,found', (
    (80., (85., 89.8), dict(ratio=f'{LONG/K:.3g}')),
    (80., (89.6, 91.), dict(ratio=f'{SHORT/K:.3g}')),
    (80., (85., 89.), dict(ratio=f'> {LONG/K:.3g}', length=f'not by {LONG}')),
    (89.7, (85., 91.), dict(ratio=None))))
def test_trade(zero, rotation, found):
    "A ratio where there is something to buy; none where rewinding to 0 is as good."
    columns = QUICK.rounds + 1
    def alike(accuracy): return [[score(accuracy)]*columns for _ in range(QUICK.seeds)]
    values = dict(rewind={'rewind to 0': alike(zero), f'rewind to {K}': alike(90.)},
                  rotation={epochs: alike(a) for epochs,a in zip(QUICK.epochs, rotation)})
    last = figs.trade({QUICK: values}, 'quick').rows[-1]
    assert {name: last.get(name) for name in found} == found


@pytest.mark.parametrize('accuracy,want', ((79., True), (83., False)))
def test_sparse_pretraining_verdict(accuracy, want):
    after = {epochs: row(accuracy if epochs else 80.) for epochs in (0, *QUICK.epochs)}
    assert holds('ep17', {QUICK: dict.fromkeys(ep.SPARSE, after)}) is want


def test_together():
    yes = Verdict(True, 1.)
    no = Verdict(False, 2.)
    unknown = Verdict(None, 3.)
    assert together(dict(a=yes, b=no, c=unknown)).holds is False
    assert together(dict(a=yes, c=unknown)).holds is None
    assert together(dict(a=yes)).holds is True
    assert together({}).holds is None


@pytest.fixture
def no_results(tmp_path, monkeypatch):
    monkeypatch.setenv('LTH_NB_RESULTS', str(tmp_path))
    monkeypatch.setenv('LTH_NB_PUBLISHED', 'none')

def test_ledger_without_results(no_results):
    "Nothing computed: every claim is undecided."
    assert {row['verdict'] for row in figs.ledger('gpu').rows} == {'not decided'}

def test_figures_without_results(no_results, no_pictures_left):
    for figure in CHAPTER: figure.show('gpu', stored=True)
    assert figs.explorer_still('gpu') is not None
