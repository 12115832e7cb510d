"""The engine: against a plain PyTorch loop, and against itself when it is stopped, forked, rewound."""
import math, time
from dataclasses import replace
from fractions import Fraction

import pytest, torch, torch.nn.functional as F
from lth_nb import data as D, networks as nets
from lth_nb.experiment import Store, compute, missing, run_call, step
from lth_nb.pruning import prune
from lth_nb.data import mnist1d
from lth_nb.networks import mnist1d_mlp
from helpers import (ADAM, KINDS, SGD, assert_close, conv, image_task, mlp, plain_loop, plus_zero, pruned_places, random_mask, same,
                     toy)
from lth_nb.training import (TABLE_1, Recipe, Replica, evaluate, init, instability, interpolate, learning_rates, line, module_of, reestimate,
                             steps, train)


pytestmark = pytest.mark.usefixtures('on_cpu')

def run(x, store): return compute(x, store=store, workers=1, quiet=True)

# ------------------------------------------------------------------ against a plain loop

@pytest.mark.parametrize('masked', (False, True), ids=('dense', 'masked'))
@pytest.mark.parametrize('optimizer', ('sgd', 'adam'))
@pytest.mark.parametrize('name', ('lenet_300_100', 'resnet20'))
def test_engine_is_the_plain_loop(images, name, optimizer, masked):
    "Weights, BatchNorm statistics and the optimiser's averages, across warmup, two milestones and the end of an epoch."
    network, data, batch, aug = image_task(name, images)
    recipe = Recipe(12, batch=batch, optimizer=optimizer, lr=.05 if optimizer == 'sgd' else 2e-3, milestones=(6, 9), warmup=4, weight_decay=1e-2,
                    augment=aug, precision='fp64')
    mask = random_mask(network) if masked else None
    net,slots = plain_loop(network, data.load().batches(batch, 5, aug, dtype=torch.float64), recipe, 12, mask)
    rep = Replica(init.fn(network, 0), data, recipe, order=5, first=0, mask=mask)
    rep.run(7); rep.run(12)
    got = rep.state()
    assert got['step'] == 12
    for k,p in net.named_parameters():
        assert got['weights'][k].dtype == torch.float64 and got['weights'][k].shape == p.shape
        assert_close(got['weights'][k], p.data, k)
        for slot in got['slots']: assert_close(got['slots'][slot][k], slots[k][slot], f'{slot} of {k}')
    assert set(got['slots']) == ({'momentum_buffer'} if optimizer == 'sgd' else {'exp_avg', 'exp_avg_sq'})
    assert got['count'] == (0 if optimizer == 'sgd' else 12)
    for k,b in net.named_buffers(): assert_close(got['buffers'][k].double(), b.double(), k)
    if masked: assert plus_zero(pruned_places(got, mask)) and not any(bool((got['weights'][k][m] == 0).any()) for k,m in mask.items())


def test_order_and_augmentation_reach_the_engine(images):
    "What the comparison above rests on: another order, or no crops, is another result."
    def end(order, aug):
        rep = Replica(init.fn(nets.resnet20, 0), images[1], Recipe(2, batch=8, augment=aug), order, 0)
        rep.run(2); return rep.state()
    a = end(5, True)
    assert same(a, end(5, True)) and not same(a, end(6, True)) and not same(a, end(5, False))


def test_a_callers_state_is_not_changed():
    a,b = init.fn(conv, 0),init.fn(conv, 0)
    Replica(a, toy, SGD, 0, 0, mask=random_mask(conv)).run(3)
    assert same(a, b)


# ------------------------------------------------------------------ fork, stop, resume, watch

@step
def norm(state, power=2): return dict(step=state['step'], norm=float(sum(w.double().abs().pow(power).sum() for w in state['weights'].values())))

@step
def shift(state, ref): return float(sum((w - ref['weights'][k]).double().square().sum() for k,w in state['weights'].items()))

@pytest.mark.parametrize('masked', (False, True), ids=('dense', 'masked'))
@pytest.mark.parametrize('network,recipe', KINDS)
def test_fork_is_the_uninterrupted_run(tmp_path, network, recipe, masked):
    "From a state read back from the store, at a step within warmup, between milestones, and off the epoch's end."
    mask = random_mask(network) if masked else None
    whole = Replica(init.fn(network, 0), toy, recipe, 1, 0, mask=mask)
    whole.run(60)
    store,runs = Store(tmp_path),train(init(network, seed=0), toy, recipe, order=1, mask=mask and masked_node(network))
    forks = {k: train(runs.at(k), toy, recipe, order=1, mask=mask and masked_node(network)) for k in (3, 37)}
    states = run(dict(k3=runs.at(3), k37=runs.at(37), end=runs.at('end'), f3=forks[3].at('end'), f37=forks[37].at('end')), store)
    assert same(states['end'], whole.state(), ('weights', 'buffers')), 'through the store, or at once'
    for k in ('f3', 'f37'): assert same(states[k], states['end']) and states[k]['step'] == 60
    assert same(run(forks[3].at(37), store), states['k37']), 'in the middle, averages included'
    if masked: assert all(plus_zero(pruned_places(s, mask)) for s in states.values())
    assert not same(states['k37'], states['end'], ('weights',))

@step(store=False)
def half_mask(name): return random_mask(nets.Network(name))

def masked_node(network): return half_mask(network.name)


def test_fork_keeps_float64():
    "A state in double precision goes on in double precision."
    r = Recipe(20, batch=32, precision='fp64')
    whole,first = (Replica(init.fn(conv, 0), toy, r, 0, 0) for _ in range(2))
    whole.run(20); first.run(10)
    rest = Replica(first.state(), toy, r, 0, 10)
    rest.run(20)
    assert same(rest.state(), whole.state())


def nodes(network, recipe):
    t = train(init(network, seed=0), toy, recipe, order=2)
    return [t.at(7), t.watch([0, 5, 20, 33, 60], norm, power=1), t.at(45), t.watch([10, 60], norm), t.at('end')]

def go(wanted, store, deadline=None):
    "All calls that are missing, in order; True if one ran out of time."
    return 'stopped' in [run_call(t.nodes, store, 'cpu', deadline) for t in missing(wanted, store).values()]

@pytest.mark.parametrize('network,recipe', KINDS)
def test_stop_and_go_on(tmp_path, network, recipe):
    "Out of time at every opportunity, again and again; states and measurements are those of an undisturbed run."
    wanted,calm,restless = nodes(network, recipe),Store(tmp_path/'calm'),Store(tmp_path/'restless')
    expected = run(wanted, calm)
    stops = 0
    while go(wanted, restless, time.time() - 1):
        stops += 1
        assert stops < 50, 'it does not come to an end'
    got = run(wanted, restless)
    assert stops > 5
    assert got[1] == expected[1] and got[3] == expected[3] and [v['step'] for v in got[1]] == [0, 5, 20, 33, 60]
    assert all(same(got[i], expected[i]) for i in (0, 2, 4))
    assert not list(tmp_path.rglob('restless/.checkpoints/*.*')), 'the checkpoint goes when the run is done'


def counting(monkeypatch, seen):
    "Every step that any replica takes, by number."
    once = Replica.pump
    def pump(self, until):
        before = self.step
        try: return once(self, until)
        finally: seen.extend(range(before, self.step))
    monkeypatch.setattr(Replica, 'pump', pump)


def test_going_on_starts_where_it_stopped(tmp_path, monkeypatch):
    "A checkpoint counts although an earlier item has been stored since; nothing is trained twice."
    store,seen = Store(tmp_path),[]
    t = train(init(mlp, seed=0), toy, replace(ADAM, steps=450), order=0)
    counting(monkeypatch, seen)
    wanted,turns = [t.at(20), t.at('end')],0
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
    assert store.has(wanted[0].path) and not store.has(wanted[1].path)
    first = store.read(wanted[0].path)
    store.remove(wanted[0].path)
    assert same(run(wanted, store)[0], first)


def test_a_damaged_checkpoint_costs_time_not_the_run(tmp_path):
    "A checkpoint is overwritten, in two files: a kill in between must not block every later run."
    store,calm = Store(tmp_path/'a'),Store(tmp_path/'b')
    t = train(init(mlp, seed=0), toy, ADAM, order=0)
    assert go([t.at('end')], store, time.time() - 1)
    for f in (tmp_path/'a/.checkpoints').glob('*.safetensors'): f.write_bytes(f.read_bytes()[:-8])
    assert same(run(t.at('end'), store), run(t.at('end'), calm))


def test_watch_takes_the_value_of_a_node(tmp_path):
    "An observer compares with another state, and with a value that is not stored."
    t,o = (train(init(conv, seed=0), toy, SGD, order=i) for i in (0, 1))
    far,start = run([t.watch([0, 60], shift, ref=o.at(30)), t.watch([0, 60], shift, ref=init(conv, seed=0))], Store(tmp_path))
    assert all(x > 0 for x in far) and start[0] == 0 and start[1] > 0


def test_watch_and_plain_evaluation_agree(tmp_path):
    t = train(init(conv, seed=0), toy, SGD, order=0)
    seen,state = run([t.watch([0, 60], evaluate, data=toy), t.at('end')], Store(tmp_path))
    assert seen[1] == evaluate.fn(state, toy) and seen[0] == evaluate.fn(init.fn(conv, 0), toy) and seen[0] != seen[1]


def test_stored_states_save_training(tmp_path, monkeypatch):
    "A later question starts from the last stored state before it."
    store,seen = Store(tmp_path),[]
    t = train(init(mlp, seed=0), toy, ADAM, order=0)
    run([t.at(10), t.at(40)], store)
    counting(monkeypatch, seen)
    run(t.at('end'), store); assert seen == list(range(40, 60))
    run(t.at(15), store); assert seen[20:] == list(range(10, 15))


# ------------------------------------------------------------------ masks

@pytest.mark.parametrize('network,recipe', [*KINDS, pytest.param(conv, replace(SGD, optimizer='adam', lr=1e-2), id='conv-adam'),
                                            pytest.param(conv, replace(SGD, precision='bf16'), id='conv-bf16')])
def test_pruned_weights_are_plus_zero_after_every_step(network, recipe):
    "In weights and averages, from the first moment on, under weight decay; although the state it starts from has values there."
    mask = random_mask(network)
    start = Replica(init.fn(network, 0), toy, recipe, 0, 0)
    start.run(5)
    rep = Replica(start.state(), toy, recipe, 0, 5, mask=mask)
    assert not plus_zero(pruned_places(start.state(), mask))
    for s in range(5, 20):
        assert plus_zero(pruned_places(rep.state(), mask)), f'before step {s}'
        rep.run(s + 1)
    alive = torch.cat([rep.state()['weights'][k][m] for k,m in mask.items()])
    assert bool((alive != 0).all()) and torch.isfinite(alive).all()


@pytest.mark.filterwarnings('ignore:diverged')
def test_an_infinite_gradient_does_not_wake_pruned_weights():
    "Weights there stay +0 while all around them goes to NaN."
    for recipe in (SGD, replace(SGD, optimizer='adam')):
        mask = random_mask(conv)
        rep = Replica(init.fn(conv, 0), toy, recipe, 0, 0, mask=mask)
        rep.run(10)
        x,y = rep.course.batches[10]
        rep.course.batches = {10: (torch.full_like(x, float('inf')), y)}
        rep.run(11)
        assert any(w.isnan().any() for w in rep.state()['weights'].values())
        assert plus_zero(pruned_places(rep.state(), mask))


def test_pruned_weights_are_zero_in_every_stored_state(tmp_path):
    "All files of two rounds of pruning and rewinding, read from the disk."
    store,w0,m = Store(tmp_path),init(conv, seed=0),None
    rewind = train(w0, toy, SGD, order=0).at(4)
    for n in range(3):
        t = train(rewind, toy, SGD, order=n, mask=m)
        run([t.at(w) for w in (4, 9, 33, 'end')], store)
        if m is not None:
            mask = run(m, store)
            files = [p for p in store.paths('trajectory') if p.startswith(f'trajectory/{t.node.call}/')]
            assert len(files) == 4 and all(plus_zero(pruned_places(store.read(p), mask)) for p in files)
        m = prune(t.at('end'), mask=m, fraction=.3)


# ------------------------------------------------------------------ rewinding

@pytest.mark.parametrize('network,recipe', KINDS)
def test_rewinding_restores_everything(tmp_path, network, recipe):
    "Weights, BatchNorm statistics, averages, place in the schedule, place in the data order."
    k = 35 # past warmup and the first milestone, in the middle of an epoch of 8 steps
    t = train(init(network, seed=0), toy, recipe, order=3)
    rewound = train(t.at(k), toy, recipe, order=3)
    state,end = run([t.at(k), t.at('end')], Store(tmp_path))
    assert (rewound.first, rewound.end) == (k, 60) and state['step'] == k
    rep = Replica(state, toy, recipe, 3, k)
    assert same(rep.state(), state) and rep.step == k
    assert not same(state, end, ('weights',)) and (network is mlp or not same(state, end, ('buffers',)))
    assert float(rep.course.rates[rep.step]) == pytest.approx(recipe.lr*.1, rel=1e-12), 'after the milestone at 30'
    order = toy.load().batches(32, 3)
    x,y = rep.course.batches[rep.step]
    assert torch.equal(x, order[k][0]) and torch.equal(y, order[k][1]) and not torch.equal(x, order[0][0])
    rep.run(60)
    assert same(rep.state(), end, ('weights', 'buffers'))
    reset = Replica(state, toy, recipe, 3, 0)
    assert reset.course.rates[reset.step] == 0 and torch.equal(reset.course.batches[reset.step][0], order[0][0]), 'the schedule reset: from its first step'
    assert train(t.at(k), toy, recipe, order=3, first=0).first == 0


def test_fresh_and_kept_optimizer(tmp_path):
    for network,recipe in ((conv, SGD), (mlp, ADAM)):
        t = train(init(network, seed=0), toy, recipe, order=0)
        kept,fresh,still,end = run([*(train(t.at(20), toy, recipe, optimizer=o).at('end') for o in ('kept', 'fresh')),
                                    train(t.at(20), toy, recipe, optimizer='fresh').at(20), t.at('end')], Store(tmp_path/network.name))
        assert same(kept, end) and not same(fresh, end, ('weights',))
        assert all(plus_zero(v) for s in still['slots'].values() for v in s.values()) and still['count'] == 0
        new,again = (train(t.at(20), toy, recipe, optimizer='fresh') for _ in range(2))
        store = Store(tmp_path/f'{network.name}-stopped')   # fresh at its start only, not wherever it goes on
        run(new.at(40), store)
        assert same(run(again.at('end'), store), fresh), 'from a stored state'
        store = Store(tmp_path/f'{network.name}-paused')
        run(t.at(20), store)
        assert go([new.at(40), new.at('end')], store, time.time() - 1) and not store.has(new.at(40).path)
        assert same(run([new.at(40), new.at('end')], store)[1], fresh), 'from a checkpoint'
    with pytest.raises(ValueError, match="optimizer='old'.*'kept' or 'fresh'"): train(t.at(20), toy, recipe, optimizer='old')


def test_averages_of_another_optimizer_are_refused():
    rep = Replica(init.fn(mlp, 0), toy, ADAM, 0, 0); rep.run(2)
    with pytest.raises(ValueError, match='exp_avg.*momentum_buffer'): Replica(rep.state(), toy, SGD, 0, 2)
    Replica(rep.state(), toy, SGD, 0, 2, optimizer='fresh').run(3)


# ------------------------------------------------------------------ two copies, and the line between them

@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    "Two copies of a trained BatchNorm network that saw different orders."
    return run([train(init(conv, seed=0), toy, SGD, order=o).at('end') for o in (0, 1)], Store(tmp_path_factory.mktemp('pair')))


def test_different_orders_differ(pair):
    a,b = pair
    l = line.fn(a, b, toy, alphas=3)
    assert l['distance'] > .1 and l['disagreement'] > 0
    by_hand = math.sqrt(sum(float((a['weights'][k].double() - b['weights'][k].double()).square().sum()) for k in a['weights']))
    assert l['distance'] == pytest.approx(by_hand, rel=1e-4)
    x = torch.cat([x for x,_ in toy.load().evaluation('test')])
    na,nb = (module_of(s).eval() for s in (a, b))
    with torch.no_grad(): assert l['disagreement'] == pytest.approx(100*float((na(x).argmax(1) != nb(x).argmax(1)).float().mean()), abs=1e-3)


def test_nothing_lies_between_a_network_and_itself(pair):
    for rule in ('averaged', 'reestimated'):
        l = line.fn(pair[0], pair[0], toy, alphas=5, batchnorm=rule)
        assert instability(l) == 0 and instability(l, 'train') == 0 and l['distance'] == 0 and l['disagreement'] == 0


def test_line_by_hand(pair):
    "Errors and losses at five points, by making each network; BatchNorm's statistics averaged like the weights."
    a,b = pair
    l = line.fn(a, b, toy, alphas=5)
    for i,t in enumerate((0, .25, .5, .75, 1)):
        m = conv.create(9)
        m.load_state_dict({k: ((1 - t)*v + t*dict(b['weights'], **b['buffers'])[k]).to(v.dtype) for k,v in dict(a['weights'], **a['buffers']).items()})
        m.eval()
        for s in ('train', 'test'):
            xs,ys = zip(*toy.load().evaluation(s))
            with torch.no_grad(): z = m(torch.cat(xs))
            y = torch.cat(ys)
            assert l[s]['error'][i] == pytest.approx(100*float((z.argmax(1) != y).float().mean()), abs=100.5/len(y))
            assert l[s]['loss'][i] == pytest.approx(float(F.cross_entropy(z, y)), rel=1e-3)
            assert l[s]['n'] == len(y)
    e = l['test']['error']
    assert instability(l) == max(e) - (e[0] + e[4])/2


def test_line_of_an_mlp_is_that_of_any_network():
    "The short cut through the first layer, against going through every point."
    a,b = (init.fn(mlp, s) for s in (0, 1))
    l = line.fn(a, b, toy, alphas=5)
    slow = [evaluate.fn(interpolate(a, b, t), toy) for t in (0, .25, .5, .75, 1)]
    for s in ('train', 'test'):
        assert l[s]['loss'] == pytest.approx([o[s]['loss'] for o in slow], rel=1e-4)
        assert l[s]['error'] == pytest.approx([o[s]['error'] for o in slow], abs=1)


def test_batchnorm_rules_differ(pair):
    one,two = (line.fn(*pair, toy, alphas=3, batchnorm=r) for r in ('averaged', 'reestimated'))
    assert one['test']['loss'][1] != two['test']['loss'][1] and one['distance'] == two['distance']
    with pytest.raises(ValueError, match="batchnorm='none'.*averaged"): line.fn(*pair, toy, batchnorm='none')
    with pytest.raises(ValueError, match='alphas=1'): line.fn(*pair, toy, alphas=1)


def test_reestimate(pair):
    "Statistics of the training images, equally weighted batches; momentum, weights and mode are as before."
    net = module_of(pair[0]).eval()
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    for i,m in enumerate(norms): m.momentum = .1*(i + 1)
    before = {k: v.clone() for k,v in net.named_parameters()}
    seen = []
    h = norms[0].register_forward_hook(lambda m, i, o: seen.append(i[0].detach()))
    reestimate(net, toy.load(), n=200, size=50)
    h.remove()
    assert [m.momentum for m in norms] == pytest.approx([.1, .2, .3]) and not any(m.training for m in net.modules())
    assert all(torch.equal(before[k], v) for k,v in net.named_parameters())
    assert sum(len(x) for x in seen) == 200
    assert torch.allclose(norms[0].running_mean, torch.stack([x.mean((0, 2)) for x in seen]).mean(0), atol=1e-5)
    assert torch.allclose(norms[0].running_var, torch.stack([x.var((0, 2)) for x in seen]).mean(0), rtol=1e-4)
    assert not torch.allclose(norms[0].running_mean, pair[0]['buffers']['1.running_mean'], atol=1e-5)


def test_no_line_between_different_networks():
    with pytest.raises(ValueError, match='mnist1d_conv.*mnist1d_mlp'): interpolate(init.fn(conv, 0), init.fn(mlp, 0), .5)


def test_evaluate_by_hand(pair):
    got = evaluate.fn(pair[0], toy, limit=100)
    net = module_of(pair[0]).eval()
    for s,d in (('train', toy.load().train), ('test', toy.load().test)):
        with torch.no_grad(): z = net(d.x[:100])
        assert got[s]['n'] == 100 and got[s]['error'] == pytest.approx(100*float((z.argmax(1) != d.y[:100]).float().mean()), abs=1e-4)
        assert got[s]['loss'] == pytest.approx(float(F.cross_entropy(z, d.y[:100])), rel=1e-5)


@pytest.mark.filterwarnings('ignore:diverged')
def test_divergence_is_marked_and_others_go_on(tmp_path):
    "A loss that is no number ends its replica only; its states, and what is measured on them, say at which step."
    r = Recipe(300, batch=32, lr=1e6, milestones=())
    wild,calm = train(init(mlp, seed=0), toy, r, order=0),train(init(mlp, seed=0), toy, replace(r, lr=.1), order=0)
    run(dict(start=wild.at(0), end=wild.at('end'), other=calm.at('end'), seen=evaluate(wild.at('end'), toy),
             line=line(wild.at('end'), calm.at('end'), toy, alphas=3)), s := Store(tmp_path))
    start,end,other = (s.read(n.path) for n in (wild.at(0), wild.at('end'), calm.at('end')))
    when = end['diverged']
    assert 0 < when < 100 and end['step'] == 300 and 'diverged' not in start and 'diverged' not in other
    assert all(v.isnan().all() for v in end['weights'].values()) and all(v.isfinite().all() for v in other['weights'].values())
    assert s.read(evaluate(wild.at('end'), toy).path)['diverged'] == when
    assert s.read(line(wild.at('end'), calm.at('end'), toy, alphas=3).path)['diverged'] == [when]
    exact = Replica(init.fn(mlp, 0), toy, r, 0, 0)   # the step by hand: the first loss that is not finite
    assert [math.isfinite(exact.run(i + 1)) for i in range(when + 1)] == [True]*when + [False]
    assert same(run(wild.at(when + 50), Store(tmp_path/'b')), end, ('weights',)), 'the same from wherever it is asked'
    assert Replica(end, toy, r, 1, 0, optimizer='fresh').diverged == when, 'and it stays so'


@pytest.mark.filterwarnings('ignore:diverged')
@pytest.mark.parametrize('driven', (False, True), ids=('plain', 'driven'))
def test_an_infinite_gradient_ends_a_replica(driven):
    "The step after it is the first without a loss; pruned weights stay +0."
    class Blow:
        def gradient(self, rep): rep.weights.grad += torch.where(torch.tensor(self.step(rep) == 10), math.inf, 0.)
        def step(self, rep): return int(rep.t) if rep.driven else rep.step
    mask = random_mask(conv)
    rep = Replica(init.fn(conv, 0), toy, SGD, 0, 0, mask=mask, driven=driven, hooks=[Blow()])
    rep.run(10); assert rep.diverged is None and 'diverged' not in rep.state()
    rep.run(60)
    assert rep.diverged == 11 and rep.state()['diverged'] == 11 and plus_zero(pruned_places(rep.state(), mask))
    again = Replica(init.fn(conv, 0), toy, SGD, 0, 0, mask=mask, driven=driven, hooks=[Blow()])
    again.run(11)   # the weights are lost, no loss has said so yet
    assert again.state()['diverged'] == 11


# ------------------------------------------------------------------ recipes

class Examples(D.Dataset):
    "50,000 examples that nobody loads."
    def __init__(self, n=50000): object.__setattr__(self, 'n', n)
    examples = property(lambda self: self.n)

def rates(recipe, *at, n=50000):
    lr = learning_rates(recipe, Examples(n))
    return [float(lr[i]) for i in at] if at else lr


def test_milestones():
    r = Recipe(100, lr=.4, milestones=(30, 60, 80))
    assert rates(r, 0, 29, 30, 59, 60, 79, 80, 99) == pytest.approx([.4, .4, .04, .04, .004, .004, .0004, .0004], rel=1e-12)
    assert rates(replace(r, gamma=.5), 30, 99) == pytest.approx([.2, .05], rel=1e-12)
    assert (rates(replace(r, milestones=())) == .4).all() and len(rates(r)) == 100


def test_linear_and_cosine():
    r = Recipe(8, lr=1., schedule='linear')
    assert rates(r).tolist() == pytest.approx([1, .875, .75, .625, .5, .375, .25, .125], rel=1e-12)
    assert rates(replace(r, final_lr=.2), 0, 4, 7) == pytest.approx([1, .6, .3], rel=1e-12)
    c = replace(r, schedule='cosine')
    assert rates(c, 0, 2, 4, 6) == pytest.approx([1, .853553390593274, .5, .146446609406726], rel=1e-12)
    assert rates(replace(c, final_lr=.5), 4) == pytest.approx([.75], rel=1e-12)


def test_warmup_multiplies_the_schedule():
    assert rates(Recipe(10, lr=.3, milestones=(2,), warmup=6), 0, 1, 2, 5, 6, 9) == pytest.approx([0, .05, .01, .025, .03, .03], rel=1e-12)
    assert rates(Recipe(8, lr=1., schedule='linear', warmup=4), 1, 2, 3, 4) == pytest.approx([.25*.875, .5*.75, .75*.625, .5], rel=1e-12)


def test_steps_and_epochs():
    "Epochs are fractions of steps: 50,000 in batches of 128 make 390.625."
    assert [steps(o, Fraction(50000, 128)) for o in (7, '7', '7it', '2K', '.5K', '2ep', '160ep', '1.25ep')] == [7, 7, 7, 2000, 500, 781, 62500, 488]
    e,s = Recipe('2ep', milestones=('1ep', '1.5ep'), warmup='.5ep'),Recipe(781, milestones=(391, 586), warmup=195)
    assert e.end(Examples()) == 781 and torch.equal(rates(e), rates(s))
    assert Recipe('1ep', batch=32).end(toy) == 8 and e.per_epoch(Examples()) == Fraction(390625, 1000)
    for bad in (-1, 1.5, '1.0001K', 'soon', None, '-2ep', True):
        with pytest.raises(ValueError, match='cannot read'): steps(bad, 10)


@pytest.mark.parametrize('name,n,length,batch,optimizer,rate', [
    # examples, steps, batch, optimiser, {step: learning rate} by hand from Table 1
    ('LeNet', 60000, 24000, 60, 'adam', {0: 12e-4, 23999: 12e-4}),
    ('ResNet-20', 50000, 63000, 128, 'sgd', {0: .1, 31999: .1, 32000: .01, 47999: .01, 48000: .001, 62999: .001}),
    ('ResNet-20 low', 50000, 63000, 128, 'sgd', {0: .01, 32000: .001, 48000: .0001}),
    ('ResNet-20 warmup', 50000, 63000, 128, 'sgd', {0: 0, 15000: .015, 30000: .03, 32000: .003, 48000: .0003}),
    ('VGG-16', 50000, 63000, 128, 'sgd', {0: .1, 31999: .1, 32000: .01, 48000: .001}),
    ('VGG-16 low', 50000, 63000, 128, 'sgd', {0: .01, 32000: .001, 48000: .0001}),
    ('VGG-16 warmup', 50000, 63000, 128, 'sgd', {0: 0, 3000: .01, 15000: .05, 30000: .1, 32000: .01, 48000: .001}),
    ('ResNet-50', 1281167, 112603, 1024, 'sgd', {0: 0, 6256: .4, 37533: .4, 37534: .04, 75068: .004, 100091: .0004, 100090: .004}),
    ('Inception-v3', 1281167, 213945, 1024, 'sgd', {0: .03, 106972: .0175 + .025/213945/2, 213944: .005 + .025/213945}),
])
def test_table_1(name, n, length, batch, optimizer, rate):
    r = TABLE_1[name]
    assert (r.end(Examples(n)), r.batch, r.optimizer) == (length, batch, optimizer)
    assert rates(r, *rate, n=n) == pytest.approx(list(rate.values()), rel=1e-9)
    assert r.augment == (name != 'LeNet') and r.momentum == .9 and r.weight_decay == (0 if name == 'LeNet' else 1e-4)

def test_table_1_has_nine_rows(): assert len(TABLE_1) == 9


# ------------------------------------------------------------------ on a GPU

@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('masked', (False, True), ids=('dense', 'masked'))
@pytest.mark.parametrize('name,optimizer', (('lenet_300_100', 'adam'), ('resnet20', 'sgd')))
def test_cuda_is_near_the_cpu(images, name, optimizer, masked):
    "The same replica in float64: crops, order, schedule and mask are the same, only sums are ordered differently."
    network, data, batch, aug = image_task(name, images)
    r = Recipe(8, batch=batch, optimizer=optimizer, lr=.05 if optimizer == 'sgd' else 2e-3, warmup=3, milestones=(6,), weight_decay=1e-3, augment=aug, precision='fp64')
    mask,ends = random_mask(network) if masked else None,[]
    for device in ('cpu', 'cuda'):
        rep = Replica(init.fn(network, 0), data, r, 1, 0, mask=mask, device=device)
        rep.run(8); ends.append(rep.state())
    for k,w in ends[0]['weights'].items():
        assert ends[1]['weights'][k].device.type == 'cpu'
        assert float((ends[1]['weights'][k] - w).abs().max()/w.abs().max()) < 1e-9, k
    if masked: assert plus_zero(pruned_places(ends[1], mask))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_fork_on_cuda(tmp_path):
    "From a state that went through the store, near the uninterrupted run in float64."
    r = replace(SGD, precision='fp64')
    t = train(init(conv, seed=0), toy, r, order=1)
    a,b = compute([t.at('end'), train(t.at(20), toy, r, order=1).at('end')], store=Store(tmp_path), device='cuda', quiet=True)
    assert all(float((a['weights'][k] - b['weights'][k]).abs().max()) < 1e-9 for k in a['weights'])


def test_train_says_what_it_needs(tmp_path):
    "A start, data or recipe of the wrong kind is refused where it is written, not in a worker."
    from lth_nb.experiment import step
    data, recipe = mnist1d(train=64, test=32), Recipe(4, batch=8)
    run = train(init(mnist1d_mlp, seed=0), data, recipe)
    @step
    def twice(state): return {**state, 'weights': {k: 2*v for k,v in state['weights'].items()}}
    for start, words in ((run, "run.at\\('end'\\)"), ([run.at('end')], 'init'), (3, 'init')):
        with pytest.raises(TypeError, match=words): train(start, data, recipe)
    with pytest.raises(TypeError, match='not loaded'): train(init(mnist1d_mlp, seed=0), data.load(), recipe)
    with pytest.raises(TypeError, match='no recipe'): train(init(mnist1d_mlp, seed=0), data, 4)
    with pytest.raises(ValueError, match='first='): train(twice(run.at(2)), data, recipe)
    assert train(twice(run.at(2)), data, recipe, first=2).first == 2
    with pytest.raises(TypeError, match="run.at"): compute(run)
    with pytest.raises(ValueError, match='minutes=-1'): compute(run.at('end'), store=Store(tmp_path), minutes=-1)


@pytest.mark.parametrize('bad,words', [(dict(milestones='50'), "milestones='50'"), (dict(betas=(.9,)), 'betas'), (dict(betas=(.9, 1.5)), 'betas')])
def test_recipes_refuse(bad, words):
    with pytest.raises(ValueError, match=words): Recipe(10, **bad)


def test_splits_and_alphas():
    data = mnist1d(train=64, test=32)
    a = init.fn(mnist1d_mlp, 0)
    with pytest.raises(ValueError, match="splits='test'"): evaluate.fn(a, data, splits='test')
    with pytest.raises(ValueError, match='alphas=\\[0, 1\\]'): line.fn(a, a, data, alphas=[0, 1])
