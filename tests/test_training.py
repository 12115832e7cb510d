"""Training: against a plain loop, and against itself stopped, forked, rewound; errors, lines between networks."""
import math, time
from dataclasses import replace

import pytest, torch, torch.nn.functional as F
from lth_nb import networks as nets
from lth_nb.data import mnist1d
from lth_nb.experiment import Store, compute, missing, run_call, step
from lth_nb.networks import mnist1d_mlp
from lth_nb.pruning import prune
from lth_nb.training import (Recipe, Replica, evaluate, init, instability, interpolate, line, module_of, reestimate,
                             train)
from helpers import (ADAM, KINDS, MORE_KINDS, SGD, assert_close, conv, far, image_task, mlp, plain_loop, plus_zero,
                     pruned_places, random_mask, same, toy)

pytestmark = pytest.mark.usefixtures('on_cpu')

def run(x, store): return compute(x, store=store, workers=1, quiet=True)


# ------------------------------------------------------------------ against a plain loop

@pytest.mark.parametrize('masked', (False, True), ids=('dense', 'masked'))
@pytest.mark.parametrize('optimizer', ('sgd', 'adam'))
@pytest.mark.parametrize('name', ('lenet_300_100', 'resnet20'))
def test_engine_is_the_plain_loop(images, name, optimizer, masked):
    "Weights, BatchNorm statistics and the optimiser's averages, across warmup, two milestones and the end of an epoch."
    network, data, batch, aug = image_task(name, images)
    lr = .05 if optimizer == 'sgd' else 2e-3
    recipe = Recipe(12, batch=batch, optimizer=optimizer, lr=lr, milestones=(6, 9), warmup=4, weight_decay=1e-2,
                    augment=aug, precision='fp64')
    mask = random_mask(network) if masked else None
    net, slots = plain_loop(network, data.load().batches(batch, 5, aug, dtype=torch.float64), recipe, 12, mask)
    rep = Replica(init.fn(network, 0), data, recipe, order=5, first=0, mask=mask)
    rep.run(7)
    rep.run(12)
    got = rep.state()
    assert got['step'] == 12
    for name,p in net.named_parameters():
        w = got['weights'][name]
        assert (w.dtype, w.shape) == (torch.float64, p.shape)
        assert_close(w, p.data, name)
        for slot in got['slots']: assert_close(got['slots'][slot][name], slots[name][slot], f'{slot} of {name}')
    assert set(got['slots']) == ({'momentum_buffer'} if optimizer == 'sgd' else {'exp_avg', 'exp_avg_sq'})
    assert got['count'] == (0 if optimizer == 'sgd' else 12)
    for name,b in net.named_buffers(): assert_close(got['buffers'][name].double(), b.double(), name)
    if not masked: return
    assert plus_zero(pruned_places(got, mask))
    assert not any((got['weights'][name][m] == 0).any() for name,m in mask.items())


def test_order_and_augmentation_reach_the_engine(images):
    "What the comparison above rests on: another order, or no crops, is another result."
    def end(order, aug):
        rep = Replica(init.fn(nets.resnet20, 0), images[1], Recipe(2, batch=8, augment=aug), order, 0)
        rep.run(2)
        return rep.state()
    a = end(5, True)
    assert same(a, end(5, True))
    assert not same(a, end(6, True))
    assert not same(a, end(5, False))


def test_a_callers_state_is_not_changed():
    a, b = (init.fn(conv, 0) for _ in range(2))
    Replica(a, toy, SGD, 0, 0, mask=random_mask(conv)).run(3)
    assert same(a, b)


# ------------------------------------------------------------------ fork, stop, resume, watch

@step
def norm(state, power=2):
    size = sum(w.double().abs().pow(power).sum() for w in state['weights'].values())
    return dict(step=state['step'], norm=float(size))

@step
def shift(state, ref):
    return float(sum((w - ref['weights'][name]).double().square().sum() for name,w in state['weights'].items()))

@step(store=False)
def half_mask(name): return random_mask(nets.Network(name))

@pytest.mark.parametrize('masked', (False, True), ids=('dense', 'masked'))
@pytest.mark.parametrize('network,recipe', KINDS)
def test_fork_is_the_uninterrupted_run(tmp_path, network, recipe, masked):
    "From a state read back from the store, at a step within warmup, between milestones, and off the epoch's end."
    mask = random_mask(network) if masked else None
    node = half_mask(network.name) if masked else None
    whole = Replica(init.fn(network, 0), toy, recipe, 1, 0, mask=mask)
    whole.run(60)
    store = Store(tmp_path)
    straight = train(init(network, seed=0), toy, recipe, order=1, mask=node)
    forks = {k: train(straight.at(k), toy, recipe, order=1, mask=node) for k in (3, 37)}
    at = run({when: straight.at(when) for when in (3, 37, 'end')}, store)
    ends = run({k: fork.at('end') for k,fork in forks.items()}, store)
    assert same(at['end'], whole.state(), ('weights', 'buffers')), 'through the store, or at once'
    for end in ends.values():
        assert same(end, at['end'])
        assert end['step'] == 60
    assert same(run(forks[3].at(37), store), at[37]), 'in the middle, averages included'
    assert not same(at[37], at['end'], ('weights',))
    if masked: assert all(plus_zero(pruned_places(state, mask)) for state in (*at.values(), *ends.values()))


def test_fork_keeps_float64():
    "A state in double precision goes on in double precision."
    recipe = Recipe(20, batch=32, precision='fp64')
    whole, first = (Replica(init.fn(conv, 0), toy, recipe, 0, 0) for _ in range(2))
    whole.run(20)
    first.run(10)
    rest = Replica(first.state(), toy, recipe, 0, 10)
    rest.run(20)
    assert same(rest.state(), whole.state())


def nodes(network, recipe):
    t = train(init(network, seed=0), toy, recipe, order=2)
    return [t.at(7), t.watch([0, 5, 20, 33, 60], norm, power=1), t.at(45), t.watch([10, 60], norm), t.at('end')]

def go(wanted, store, deadline=None):
    "All calls that are missing, in order; True if one ran out of time."
    tasks = missing(wanted, store).values()
    return 'stopped' in [run_call(task.nodes, store, 'cpu', deadline) for task in tasks]

@pytest.mark.parametrize('network,recipe', KINDS)
def test_stop_and_go_on(tmp_path, network, recipe):
    "Out of time at every opportunity, again and again; states and measurements are those of an undisturbed run."
    wanted = nodes(network, recipe)
    expected = run(wanted, Store(tmp_path/'calm'))
    restless = Store(tmp_path/'restless')
    stops = 0
    while go(wanted, restless, time.time() - 1):
        stops += 1
        assert stops < 50, 'it does not come to an end'
    got = run(wanted, restless)
    assert stops > 5
    assert [seen['step'] for seen in got[1]] == [0, 5, 20, 33, 60]
    assert got[1] == expected[1]
    assert got[3] == expected[3]
    assert all(same(got[i], expected[i]) for i in (0, 2, 4))
    assert not list(tmp_path.rglob('restless/.checkpoints/*.*')), 'the checkpoint goes when the run is done'


def counting(monkeypatch):
    "A list of every step that any replica takes from here on, by number."
    once = Replica.pump
    seen = []
    def pump(self, until):
        before = self.step
        try: return once(self, until)
        finally: seen.extend(range(before, self.step))
    monkeypatch.setattr(Replica, 'pump', pump)
    return seen


def test_going_on_starts_where_it_stopped(tmp_path, monkeypatch):
    "A checkpoint counts although an earlier item has been stored since; nothing is trained twice."
    store = Store(tmp_path)
    seen = counting(monkeypatch)
    t = train(init(mlp, seed=0), toy, replace(ADAM, steps=450), order=0)
    wanted = [t.at(20), t.at('end')]
    turns = 0
    while go(wanted, store, time.time() - 1):
        turns += 1
        assert turns < 20, 'it does not get on'
    assert sorted(seen) == list(range(450)), f'{len(seen)} steps were trained, 450 needed'


def test_a_deleted_item_is_made_again(tmp_path):
    "What the message about a damaged file says: delete it, run again. Also with a checkpoint lying there."
    store = Store(tmp_path)
    t = train(init(mlp, seed=0), toy, ADAM, order=0)
    wanted = [t.at(20), t.at(40), t.at('end')]
    for _ in range(2): assert go(wanted, store, time.time() - 1)
    assert store.has(wanted[0].path)
    assert not store.has(wanted[1].path)
    first = store.read(wanted[0].path)
    store.remove(wanted[0].path)
    assert same(run(wanted, store)[0], first)


def test_a_damaged_checkpoint_costs_time_not_the_run(tmp_path):
    "A checkpoint is overwritten, in two files: a kill in between must not block every later run."
    store = Store(tmp_path/'restless')
    t = train(init(mlp, seed=0), toy, ADAM, order=0)
    assert go([t.at('end')], store, time.time() - 1)
    for file in (tmp_path/'restless/.checkpoints').glob('*.safetensors'): file.write_bytes(file.read_bytes()[:-8])
    assert same(run(t.at('end'), store), run(t.at('end'), Store(tmp_path/'calm')))


def test_watch_takes_the_value_of_a_node(tmp_path):
    "An observer compares with another state, and with a value that is not stored."
    t, other = (train(init(conv, seed=0), toy, SGD, order=order) for order in (0, 1))
    from_other = t.watch([0, 60], shift, ref=other.at(30))
    from_start = t.watch([0, 60], shift, ref=init(conv, seed=0))
    others, starts = run([from_other, from_start], Store(tmp_path))
    assert min(others) > 0
    assert starts[0] == 0 < starts[1]


def test_watch_and_plain_evaluation_agree(tmp_path):
    t = train(init(conv, seed=0), toy, SGD, order=0)
    (first, last), state = run([t.watch([0, 60], evaluate, data=toy), t.at('end')], Store(tmp_path))
    assert first == evaluate.fn(init.fn(conv, 0), toy)
    assert last == evaluate.fn(state, toy)
    assert first != last


def test_stored_states_save_training(tmp_path, monkeypatch):
    "A later question starts from the last stored state before it."
    store = Store(tmp_path)
    t = train(init(mlp, seed=0), toy, ADAM, order=0)
    run([t.at(10), t.at(40)], store)
    seen = counting(monkeypatch)
    run(t.at('end'), store)
    assert seen == list(range(40, 60))
    run(t.at(15), store)
    assert seen[20:] == list(range(10, 15))


# ------------------------------------------------------------------ masks

@pytest.mark.parametrize('network,recipe', MORE_KINDS)
def test_pruned_weights_are_plus_zero_after_every_step(network, recipe):
    "In weights and averages, from the first moment on, under weight decay; although its start has values there."
    mask = random_mask(network)
    start = Replica(init.fn(network, 0), toy, recipe, 0, 0)
    start.run(5)
    rep = Replica(start.state(), toy, recipe, 0, 5, mask=mask)
    assert not plus_zero(pruned_places(start.state(), mask))
    for s in range(5, 20):
        assert plus_zero(pruned_places(rep.state(), mask)), f'before step {s}'
        rep.run(s + 1)
    alive = torch.cat([rep.state()['weights'][k][m] for k,m in mask.items()])
    assert (alive != 0).all()
    assert alive.isfinite().all()


@pytest.mark.filterwarnings('ignore:diverged')
@pytest.mark.parametrize('optimizer', ('sgd', 'adam'))
def test_an_infinite_gradient_does_not_wake_pruned_weights(optimizer):
    "Weights there stay +0 while all around them goes to NaN."
    mask = random_mask(conv)
    rep = Replica(init.fn(conv, 0), toy, replace(SGD, optimizer=optimizer), 0, 0, mask=mask)
    rep.run(10)
    x, y = rep.course.batches[10]
    rep.course.batches = {10: (torch.full_like(x, math.inf), y)}
    rep.run(11)
    assert any(w.isnan().any() for w in rep.state()['weights'].values())
    assert plus_zero(pruned_places(rep.state(), mask))


def test_pruned_weights_are_zero_in_every_stored_state(tmp_path):
    "All files of two rounds of pruning and rewinding, read from the disk."
    store = Store(tmp_path)
    mask = None
    rewind = train(init(conv, seed=0), toy, SGD, order=0).at(4)
    for order in range(3):
        t = train(rewind, toy, SGD, order=order, mask=mask)
        run([t.at(when) for when in (4, 9, 33, 'end')], store)
        if mask is not None:
            files = store.paths(f'trajectory/{t.node.call}')
            assert len(files) == 4
            for file in files: assert plus_zero(pruned_places(store.read(file), run(mask, store))), file
        mask = prune(t.at('end'), mask=mask, fraction=.3)


# ------------------------------------------------------------------ rewinding

@pytest.mark.parametrize('network,recipe', KINDS)
def test_rewinding_restores_everything(tmp_path, network, recipe):
    "Weights, BatchNorm statistics, averages, place in the schedule, place in the data order."
    k = 35 # past warmup and the first milestone, in the middle of an epoch of 8 steps
    t = train(init(network, seed=0), toy, recipe, order=3)
    rewound = train(t.at(k), toy, recipe, order=3)
    state, end = run([t.at(k), t.at('end')], Store(tmp_path))
    assert (rewound.first, rewound.end, state['step']) == (k, 60, k)
    rep = Replica(state, toy, recipe, 3, k)
    assert rep.step == k
    assert same(rep.state(), state)
    assert not same(state, end, ('weights',))
    assert network is mlp or not same(state, end, ('buffers',))
    assert float(rep.course.rates[k]) == pytest.approx(recipe.lr*.1, rel=1e-12), 'after the milestone at 30'
    order = toy.load().batches(32, 3)
    x, y = rep.course.batches[k]
    assert torch.equal(x, order[k][0])
    assert torch.equal(y, order[k][1])
    assert not torch.equal(x, order[0][0])
    rep.run(60)
    assert same(rep.state(), end, ('weights', 'buffers'))


def test_rewinding_may_reset_the_schedule():
    "To its first step, of learning rates and of batches."
    rep = Replica(init.fn(conv, 0), toy, SGD, 3, 0)
    rep.run(35)
    reset = Replica(rep.state(), toy, SGD, 3, 0)
    assert reset.step == 0
    assert reset.course.rates[reset.step] == 0
    assert torch.equal(reset.course.batches[reset.step][0], toy.load().batches(32, 3)[0][0])
    t = train(init(conv, seed=0), toy, SGD, order=3)
    assert train(t.at(35), toy, SGD, order=3, first=0).first == 0


@pytest.mark.parametrize('network,recipe', KINDS)
def test_fresh_and_kept_optimizer(tmp_path, network, recipe):
    "Fresh at its start only, not wherever it goes on."
    t = train(init(network, seed=0), toy, recipe, order=0)
    def new(optimizer): return train(t.at(20), toy, recipe, optimizer=optimizer)
    nodes = [new('kept').at('end'), new('fresh').at('end'), new('fresh').at(20), t.at('end')]
    kept, fresh, still, end = run(nodes, Store(tmp_path/'all'))
    assert same(kept, end)
    assert not same(fresh, end, ('weights',))
    assert still['count'] == 0
    assert all(plus_zero(v) for slot in still['slots'].values() for v in slot.values())
    store = Store(tmp_path/'stored')
    run(new('fresh').at(40), store)
    assert same(run(new('fresh').at('end'), store), fresh), 'from a stored state'
    store = Store(tmp_path/'paused')
    run(t.at(20), store)
    wanted = [new('fresh').at(40), new('fresh').at('end')]
    assert go(wanted, store, time.time() - 1)
    assert not store.has(wanted[0].path)
    assert same(run(wanted, store)[1], fresh), 'from a checkpoint'


def test_an_optimizer_has_a_past_or_none():
    t = train(init(mlp, seed=0), toy, ADAM, order=0)
    with pytest.raises(ValueError, match="optimizer='old'.*'kept' or 'fresh'"):
        train(t.at(20), toy, ADAM, optimizer='old')


def test_averages_of_another_optimizer_are_refused():
    rep = Replica(init.fn(mlp, 0), toy, ADAM, 0, 0)
    rep.run(2)
    with pytest.raises(ValueError, match='exp_avg.*momentum_buffer'): Replica(rep.state(), toy, SGD, 0, 2)
    Replica(rep.state(), toy, SGD, 0, 2, optimizer='fresh').run(3)


# ------------------------------------------------------------------ two copies, and the line between them

@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    "Two copies of a trained BatchNorm network that saw different orders."
    nodes = [train(init(conv, seed=0), toy, SGD, order=order).at('end') for order in (0, 1)]
    return run(nodes, Store(tmp_path_factory.mktemp('pair')))


def predictions(state, split='test'):
    "By a module, and the labels."
    x, y = (torch.cat(t) for t in zip(*toy.load().evaluation(split)))
    with torch.no_grad(): return module_of(state).eval()(x), y

def percent(wrong): return 100*float(wrong.float().mean())

def test_different_orders_differ(pair):
    a, b = pair
    got = line.fn(a, b, toy, alphas=3)
    squares = [(w.double() - b['weights'][name].double()).square().sum() for name,w in a['weights'].items()]
    assert got['distance'] == pytest.approx(math.sqrt(sum(map(float, squares))), rel=1e-4)
    assert got['distance'] > .1
    first, last = (predictions(state)[0].argmax(1) for state in pair)
    assert got['disagreement'] == pytest.approx(percent(first != last), abs=1e-3)
    assert got['disagreement'] > 0


@pytest.mark.parametrize('rule', ('averaged', 'reestimated'))
def test_nothing_lies_between_a_network_and_itself(pair, rule):
    got = line.fn(pair[0], pair[0], toy, alphas=5, batchnorm=rule)
    assert instability(got) == instability(got, 'train') == got['distance'] == got['disagreement'] == 0


@pytest.mark.parametrize('i,alpha', list(enumerate((0, .25, .5, .75, 1))))
def test_line_by_hand(pair, i, alpha):
    "Errors and losses at five points, by making each network; BatchNorm's statistics averaged like the weights."
    a, b = ({**state['weights'], **state['buffers']} for state in pair)
    got = line.fn(*pair, toy, alphas=5)
    net = conv.create(9)
    net.load_state_dict({name: ((1 - alpha)*t + alpha*b[name]).to(t.dtype) for name,t in a.items()})
    net.eval()
    for split in ('train', 'test'):
        x, y = (torch.cat(t) for t in zip(*toy.load().evaluation(split)))
        with torch.no_grad(): z = net(x)
        assert got[split]['error'][i] == pytest.approx(percent(z.argmax(1) != y), abs=100.5/len(y))
        assert got[split]['loss'][i] == pytest.approx(float(F.cross_entropy(z, y)), rel=1e-3)
        assert got[split]['n'] == len(y)


def test_instability_is_the_highest_error_above_the_ends(pair):
    got = line.fn(*pair, toy, alphas=5)
    errors = got['test']['error']
    assert instability(got) == max(errors) - (errors[0] + errors[4])/2


def test_line_of_an_mlp_is_that_of_any_network():
    "The short cut through the first layer, against going through every point."
    a, b = (init.fn(mlp, seed) for seed in (0, 1))
    got = line.fn(a, b, toy, alphas=5)
    slow = [evaluate.fn(interpolate(a, b, alpha), toy) for alpha in (0, .25, .5, .75, 1)]
    for split in ('train', 'test'):
        assert got[split]['loss'] == pytest.approx([point[split]['loss'] for point in slow], rel=1e-4)
        assert got[split]['error'] == pytest.approx([point[split]['error'] for point in slow], abs=1)


def test_batchnorm_rules_differ(pair):
    averaged, reestimated = (line.fn(*pair, toy, alphas=3, batchnorm=rule) for rule in ('averaged', 'reestimated'))
    assert averaged['test']['loss'][1] != reestimated['test']['loss'][1]
    assert averaged['distance'] == reestimated['distance']


def test_a_line_has_a_rule_and_two_ends(pair):
    with pytest.raises(ValueError, match="batchnorm='none'.*averaged"): line.fn(*pair, toy, batchnorm='none')
    with pytest.raises(ValueError, match='alphas=1'): line.fn(*pair, toy, alphas=1)


def test_reestimate(pair):
    "Statistics of the training images, equally weighted batches; momentum, weights and mode are as before."
    net = module_of(pair[0]).eval()
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    for i,m in enumerate(norms): m.momentum = .1*(i + 1)
    before = {name: p.clone() for name,p in net.named_parameters()}
    seen = []
    hook = norms[0].register_forward_hook(lambda module, inputs, out: seen.append(inputs[0].detach()))
    reestimate(net, toy.load(), n=200, size=50)
    hook.remove()
    assert [m.momentum for m in norms] == pytest.approx([.1, .2, .3])
    assert not any(m.training for m in net.modules())
    assert all(torch.equal(before[name], p) for name,p in net.named_parameters())
    assert sum(len(x) for x in seen) == 200
    mean = torch.stack([x.mean((0, 2)) for x in seen]).mean(0)
    variance = torch.stack([x.var((0, 2)) for x in seen]).mean(0)
    assert torch.allclose(norms[0].running_mean, mean, atol=1e-5)
    assert torch.allclose(norms[0].running_var, variance, rtol=1e-4)
    assert not torch.allclose(norms[0].running_mean, pair[0]['buffers']['1.running_mean'], atol=1e-5)


def test_no_line_between_different_networks():
    a = init.fn(conv, 0)
    b = init.fn(mlp, 0)
    with pytest.raises(ValueError, match='mnist1d_conv.*mnist1d_mlp'): interpolate(a, b, .5)


def test_evaluate_by_hand(pair):
    got = evaluate.fn(pair[0], toy, limit=100)
    for split in ('train', 'test'):
        z, y = (t[:100] for t in predictions(pair[0], split))
        assert got[split]['n'] == 100
        assert got[split]['error'] == pytest.approx(percent(z.argmax(1) != y), abs=1e-4)
        assert got[split]['loss'] == pytest.approx(float(F.cross_entropy(z, y)), rel=1e-5)


@pytest.mark.filterwarnings('ignore:diverged')
def test_divergence_is_marked_and_others_go_on(tmp_path):
    "A loss that is no number ends its replica only; its states, and what is measured on them, say at which step."
    recipe = Recipe(300, batch=32, lr=1e6, milestones=())
    wild = train(init(mlp, seed=0), toy, recipe, order=0)
    calm = train(init(mlp, seed=0), toy, replace(recipe, lr=.1), order=0)
    measured = dict(seen=evaluate(wild.at('end'), toy), line=line(wild.at('end'), calm.at('end'), toy, alphas=3))
    got = run(dict(start=wild.at(0), end=wild.at('end'), other=calm.at('end'), **measured), Store(tmp_path/'a'))
    when = got['end']['diverged']
    assert 0 < when < 100
    assert got['end']['step'] == 300
    assert 'diverged' not in got['start']
    assert 'diverged' not in got['other']
    assert all(w.isnan().all() for w in got['end']['weights'].values())
    assert all(w.isfinite().all() for w in got['other']['weights'].values())
    assert got['seen']['diverged'] == when
    assert got['line']['diverged'] == [when]
    later = run(wild.at(when + 50), Store(tmp_path/'b'))
    assert same(later, got['end'], ('weights',)), 'the same from wherever it is asked'
    assert Replica(got['end'], toy, recipe, 1, 0, optimizer='fresh').diverged == when, 'and it stays so'


@pytest.mark.filterwarnings('ignore:diverged')
def test_the_step_of_divergence_is_that_of_the_first_loss_that_is_none():
    recipe = Recipe(300, batch=32, lr=1e6, milestones=())
    rep = Replica(init.fn(mlp, 0), toy, recipe, 0, 0)
    losses = []
    while rep.diverged is None: losses.append(float(rep.run(rep.step + 1)))
    assert [math.isfinite(loss) for loss in losses] == [True]*rep.diverged + [False]


class Blow:
    "An infinite gradient at step 10."
    def gradient(self, rep):
        step = rep.t if rep.driven else torch.tensor(rep.step)
        rep.weights.grad += torch.where(step == 10, math.inf, 0.)

@pytest.mark.filterwarnings('ignore:diverged')
@pytest.mark.parametrize('driven', (False, True), ids=('plain', 'driven'))
def test_an_infinite_gradient_ends_a_replica(driven):
    "The step after it is the first without a loss; pruned weights stay +0."
    mask = random_mask(conv)
    def make(): return Replica(init.fn(conv, 0), toy, SGD, 0, 0, mask=mask, driven=driven, hooks=[Blow()])
    rep = make()
    rep.run(10)
    assert rep.diverged is None
    assert 'diverged' not in rep.state()
    rep.run(60)
    assert rep.diverged == rep.state()['diverged'] == 11
    assert plus_zero(pruned_places(rep.state(), mask))
    again = make()
    again.run(11)   # the weights are lost, no loss has said so yet
    assert again.state()['diverged'] == 11


# ------------------------------------------------------------------ on a GPU

@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('masked', (False, True), ids=('dense', 'masked'))
@pytest.mark.parametrize('name,optimizer', (('lenet_300_100', 'adam'), ('resnet20', 'sgd')))
def test_cuda_is_near_the_cpu(images, name, optimizer, masked):
    "The same replica in float64: crops, order, schedule and mask are the same, only sums are ordered differently."
    network, data, batch, aug = image_task(name, images)
    lr = .05 if optimizer == 'sgd' else 2e-3
    recipe = Recipe(8, batch=batch, optimizer=optimizer, lr=lr, warmup=3, milestones=(6,), weight_decay=1e-3,
                    augment=aug, precision='fp64')
    mask = random_mask(network) if masked else None
    ends = []
    for device in ('cpu', 'cuda'):
        rep = Replica(init.fn(network, 0), data, recipe, 1, 0, mask=mask, device=device)
        rep.run(8)
        ends.append(rep.state())
    for k,w in ends[0]['weights'].items():
        assert ends[1]['weights'][k].device.type == 'cpu'
        assert far(ends[1]['weights'][k], w)/float(w.abs().max()) < 1e-9, k
    if masked: assert plus_zero(pruned_places(ends[1], mask))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_fork_on_cuda(tmp_path):
    "From a state that went through the store, near the uninterrupted run in float64."
    recipe = replace(SGD, precision='fp64')
    t = train(init(conv, seed=0), toy, recipe, order=1)
    fork = train(t.at(20), toy, recipe, order=1)
    a, b = compute([t.at('end'), fork.at('end')], store=Store(tmp_path), device='cuda', quiet=True)
    for name,w in a['weights'].items(): assert far(w, b['weights'][name]) < 1e-9, name


# ------------------------------------------------------------------ what is refused

@step
def twice(state): return {**state, 'weights': {name: 2*w for name,w in state['weights'].items()}}

def test_train_says_what_it_needs(tmp_path):
    "A start, data or recipe of the wrong kind is refused where it is written, not in a worker."
    data = mnist1d(train=64, test=32)
    recipe = Recipe(4, batch=8)
    run = train(init(mnist1d_mlp, seed=0), data, recipe)
    for start, words in ((run, "run.at\\('end'\\)"), ([run.at('end')], 'init'), (3, 'init')):
        with pytest.raises(TypeError, match=words): train(start, data, recipe)
    with pytest.raises(TypeError, match='not loaded'): train(init(mnist1d_mlp, seed=0), data.load(), recipe)
    with pytest.raises(TypeError, match='no recipe'): train(init(mnist1d_mlp, seed=0), data, 4)
    with pytest.raises(ValueError, match='first='): train(twice(run.at(2)), data, recipe)
    assert train(twice(run.at(2)), data, recipe, first=2).first == 2
    with pytest.raises(TypeError, match="run.at"): compute(run)
    with pytest.raises(ValueError, match='minutes=-1'): compute(run.at('end'), store=Store(tmp_path), minutes=-1)


def test_splits_and_alphas():
    data = mnist1d(train=64, test=32)
    a = init.fn(mnist1d_mlp, 0)
    with pytest.raises(ValueError, match="splits='test'"): evaluate.fn(a, data, splits='test')
    with pytest.raises(ValueError, match='alphas=\\[0, 1\\]'): line.fn(a, a, data, alphas=[0, 1])
