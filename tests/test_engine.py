"""The engine: every way of running against a plain loop, alone and among others, hooks, evaluation in place."""
import math
from dataclasses import replace

import pytest, torch, torch.nn.functional as F
from lth_nb import networks as nets
from lth_nb.engine import WINDOW, Lane, Probe, Replica, Trace, Weights, adam, module_of, sgd
from lth_nb.engine.probe import into_vector
from lth_nb.engine.weights import ALIGN, averages
from lth_nb.experiment import Fleet, Store, compute
from lth_nb.recipes import PRECISIONS
from lth_nb.training import Recipe, evaluate, init, interpolate, line, train
from helpers import (ADAM, KINDS, MORE_KINDS, SGD, EagerStream, assert_close, conv, far, identical, image_task, mlp,
                     plain_loop, plus_zero, pruned_places, random_mask, same, toy)

pytestmark = pytest.mark.usefixtures('on_cpu')
WAYS = [pytest.param(False, id='plain'), pytest.param(True, id='driven')]
res = nets.Network('mnist1d_res', width=4)   # with more parameters than are recorded ten steps at a time
WILD = replace(SGD, lr=1e6, warmup=0, milestones=())


# ------------------------------------------------------------------ every way of running is the plain loop

@pytest.mark.parametrize('driven', WAYS)
@pytest.mark.parametrize('masked', (False, True), ids=('dense', 'masked'))
@pytest.mark.parametrize('optimizer', ('sgd', 'adam'))
@pytest.mark.parametrize('name', ('lenet_300_100', 'resnet20'))
def test_every_way_is_the_plain_loop(images, name, optimizer, masked, driven):
    "In float64, across warmup, two milestones, the end of an epoch, and stops in between."
    network, data, batch, aug = image_task(name, images)
    lr = .05 if optimizer == 'sgd' else 2e-3
    recipe = Recipe(12, batch=batch, optimizer=optimizer, lr=lr, milestones=(6, 9), warmup=4, weight_decay=1e-2,
                    augment=aug, precision='fp64')
    mask = random_mask(network) if masked else None
    net, slots = plain_loop(network, data.load().batches(batch, 5, aug, dtype=torch.float64), recipe, 12, mask)
    rep = Replica(init.fn(network, 0), data, recipe, order=5, first=0, mask=mask, driven=driven)
    assert rep.driven == driven
    for until in (1, 7, 12): rep.run(until)
    got = rep.state()
    for k,p in net.named_parameters():
        assert_close(got['weights'][k], p.data, k)
        for slot in got['slots']: assert_close(got['slots'][slot][k], slots[k][slot], f'{slot} of {k}')
    for k,b in net.named_buffers(): assert_close(got['buffers'][k].double(), b.double(), k)
    assert got['count'] == (0 if optimizer == 'sgd' else 12)


@pytest.mark.parametrize('driven', WAYS)
def test_losses_are_those_of_the_plain_loop(driven):
    "Across the border of a window, and without momentum."
    recipe = replace(SGD, steps=WINDOW + 20, momentum=0., precision='fp64')
    rep = Replica(init.fn(conv, 0), toy, recipe, 3, 0, driven=driven)
    net, _ = plain_loop(conv, toy.load().batches(32, 3, dtype=torch.float64), recipe, WINDOW + 19)
    x, y = toy.load().batches(32, 3, dtype=torch.float64)[WINDOW + 19]
    rep.run(WINDOW + 19)
    got = float(rep.run(WINDOW + 20))
    assert got == pytest.approx(float(F.cross_entropy(net(x), y).detach()), rel=1e-5)
    assert 'momentum_buffer' not in rep.model.slots


@pytest.mark.parametrize('driven', WAYS)
@pytest.mark.parametrize('network,recipe', KINDS)
def test_fork_and_resume_bit_for_bit(network, recipe, driven):
    def make(state, first, order=1):
        return Replica(state, toy, replace(recipe, steps=230), order, first, driven=driven)
    whole = make(init.fn(network, 0), 0)
    whole.run(230)
    parts = make(init.fn(network, 0), 0)
    for until in (3, 99, 100, 101, 170): parts.run(until)
    fork = make(parts.state(), 170)
    parts.run(230)
    fork.run(230)
    assert same(parts.state(), whole.state())
    assert same(fork.state(), whole.state())
    assert not same(make(init.fn(network, 0), 0, order=2).state(), whole.state(), ('weights',))


@pytest.mark.parametrize('network,recipe', MORE_KINDS)
def test_pruned_is_plus_zero_after_every_driven_step(network, recipe):
    mask = random_mask(network)
    start = Replica(init.fn(network, 0), toy, recipe, 0, 0)
    start.run(5)
    rep = Replica(start.state(), toy, recipe, 0, 5, mask=mask, driven=True)
    for s in range(5, 15):
        assert plus_zero(pruned_places(rep.state(), mask)), f'before step {s}'
        rep.run(s + 1)
    alive = torch.cat([rep.state()['weights'][k][m] for k,m in mask.items()])
    assert (alive != 0).all()
    assert alive.isfinite().all()


@pytest.mark.parametrize('rule', ('sgd', 'adam'))
def test_updates_with_a_mask_are_pytorchs_where_weights_live(rule):
    "Although a gradient is infinite where one is pruned."
    g = torch.Generator().manual_seed(1)
    def draw(): return torch.randn(500, generator=g, dtype=torch.float64)
    def zeros(n=500): return torch.zeros(n, dtype=torch.float64)
    keep = -(torch.rand(500, generator=g) < .5).long()
    dead = int((keep == 0).nonzero()[0])
    lr = torch.tensor([.1], dtype=torch.float64)
    ours = draw().view(torch.int64).bitwise_and_(keep).view(torch.float64)
    theirs = torch.nn.Parameter(ours.clone())
    if rule == 'sgd': optimizer = torch.optim.SGD([theirs], lr=.1, momentum=.9, weight_decay=.01)
    else: optimizer = torch.optim.Adam([theirs], lr=.1, weight_decay=.01)
    first = zeros()
    second = zeros()
    count = zeros(1)
    for _ in range(5):
        grad = draw()
        theirs.grad = grad*(keep != 0)
        optimizer.step()
        grad[dead] = math.inf
        if rule == 'sgd': sgd(ours, grad, first, keep, lr, .9, .01)
        else: adam(ours, grad, first, second, keep, lr, count, (.9, .999), 1e-8, .01)
    assert far(ours, theirs.detach()) < 1e-12
    for t in (ours, first, second): assert plus_zero(t[keep == 0])


def test_bf16_is_autocast():
    "One cast of all layers a step, against PyTorch's autocast: the same products of the same rounded numbers."
    recipe = Recipe(3, batch=32, lr=.05, milestones=(), precision='bf16')
    rep = Replica(init.fn(conv, 0), toy, recipe, 0, 0)
    rep.run(3)
    net = conv.create(0).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=.05, momentum=.9)
    for step in range(3):
        x, y = toy.load().batches(32, 0)[step]
        with torch.autocast('cpu', torch.bfloat16): z = net(x)
        optimizer.zero_grad()
        F.cross_entropy(z.float(), y).backward()
        optimizer.step()
    first = conv.create(0)
    for (name, p),q in zip(net.named_parameters(), first.parameters()):
        moved = far(p.detach(), q.detach())
        assert far(rep.state()['weights'][name], p.detach()) <= .02*moved + 1e-7, name
    assert all(w.dtype == torch.float32 for w in rep.state()['weights'].values())
    exact = Replica(init.fn(conv, 0), toy, replace(recipe, precision='fp32'), 0, 0)
    exact.run(3)
    assert not same(exact.state(), rep.state(), ('weights',)), 'the precision is used at all'


@pytest.mark.parametrize('network', (nets.resnet20, nets.lenet_300_100, nets.mobilenet_v2), ids=lambda n: n.name)
def test_weights_lie_in_one_vector(network):
    net = network.create(0).to(memory_format=torch.channels_last)
    before = {name: p.detach().clone() for name,p in net.named_parameters()}
    weights = Weights(net)
    assert len(weights) == sum(p.numel() for p in before.values())
    assert all(torch.equal(p, before[name]) for name,p in net.named_parameters())
    weights.vector.zero_()
    assert not any(p.any() for p in net.parameters())
    weights.collect([torch.full_like(p, i) for i,p in enumerate(weights.params)])
    names = {id(p): name for name,p in net.named_parameters()}
    for i,p in enumerate(weights.params): assert (weights.view(weights.grad, names[id(p)]) == i).all()


@pytest.mark.parametrize('precision', PRECISIONS)
@pytest.mark.parametrize('name', [name for name,family in nets.families.items() if not family.own])
def test_on_a_gpu_every_tensor_begins_at_64_bytes(name, precision):
    "cuDNN reads words of 16 bytes: a weight between them is `CUDA error: misaligned address`."
    if not nets.families[name].width: pytest.importorskip('torchvision')
    with torch.device('meta'): net = nets.Network(name).build().to(PRECISIONS[precision])
    weights = Weights(net, precision == 'bf16', ALIGN)
    recipes = Recipe(1, precision=precision), Recipe(1, optimizer='adam', precision=precision)
    averaged = [slot for recipe in recipes for slot in averages(recipe, weights).values()]
    vectors = weights.vector, weights.grad, *averaged
    views = [weights.view(vector, name) for vector in vectors for name in weights.places]
    halves = [t[at:] for t in (weights.half, weights.half_grad) if t is not None
              for at,_,_ in list(weights.places.values())[:weights.layers]]
    where, vector = into_vector(net)
    for t in (*net.parameters(), *views, *halves, *(vector[at:] for at,_,_ in where.values())):
        assert t.storage_offset()*t.element_size() % 64 == 0
    assert all(b.storage_offset()*b.element_size() % 64 == 0 for b in net.buffers() if b.is_floating_point())


@pytest.mark.parametrize('half', (False, True))
def test_gaps_change_nothing_and_stay_zero(half):
    "The same gradients in the same places, with and without gaps."
    close, wide = (Weights(conv.create(0), half, align) for align in (1, ALIGN))
    grads = [torch.full_like(p, i + 1.) for i,p in enumerate(wide.params)]
    for weights in (close, wide): weights.collect(grads)
    for name in wide.places:
        for a,b in ((close.vector, wide.vector), (close.grad, wide.grad)):
            assert torch.equal(close.view(a, name), wide.view(b, name)), name
    lived = torch.zeros(len(wide), dtype=torch.bool)
    for name in wide.places: wide.view(lived, name).fill_(True)
    assert len(wide) > len(close) == int(lived.sum())
    assert not wide.vector[~lived].any() and not wide.grad[~lived].any()


# ------------------------------------------------------------------ alone and among others

def grid():
    "Trajectories of two networks and optimisers, of two precisions, of several lengths; the last diverges."
    def run(network, recipe, steps, seed=0, order=0):
        return train(init(network, seed=seed), toy, replace(recipe, steps=steps), order=order)
    runs = [run(conv, SGD, 130), run(conv, SGD, 60, seed=1, order=1), run(mlp, ADAM, 210, order=2),
            run(mlp, replace(ADAM, lr=1e-2), 140, seed=1), run(conv, replace(SGD, precision='bf16'), 75),
            run(mlp, WILD, 150)]
    states = [run.at(when) for run in runs for when in (0, 33, 'end')]
    later = train(runs[0].at(40), toy, replace(SGD, steps=130), order=5).at('end')
    seen = runs[2].watch([10, 100, 205], evaluate, data=toy)
    return [*states, later, seen, line(runs[0].at('end'), later, toy, alphas=3)]

@pytest.mark.filterwarnings('ignore:diverged')
def test_alone_and_among_others(tmp_path):
    "One after another, in turns in one process, over two processes: the same bits."
    wanted = grid()
    alone = compute(wanted, store=Store(tmp_path/'alone'), workers=1, quiet=True)
    together = compute(wanted, store=Store(tmp_path/'together'), executor=Fleet(32), quiet=True)
    spread = compute(wanted, store=Store(tmp_path/'spread'), workers=2, quiet=True)
    assert identical(alone, together)
    assert identical(alone, spread)
    assert alone[17]['diverged'] < 50
    assert 'diverged' not in alone[2], 'one that diverges leaves the others alone'
    assert not identical(alone[2], alone[5])


# ------------------------------------------------------------------ the lane of a GPU, steps run instead of recorded

def in_lane(state, recipe, order, first=0, sent=None, **kw):
    rep = Replica(state, toy, recipe, order, first, driven=True, **kw)
    rep.lane = Lane(rep, EagerStream(order, sent))
    return rep

def norm(rep): return rep.weights.grad.norm()

@pytest.mark.parametrize('network,recipe', KINDS)
def test_a_lane_is_the_plain_way(network, recipe):
    """Windows under way, odd stops, a state asked for in the middle, a fork:
    in float64 the weights of plain steps, bit for bit those of driven ones."""
    recipe = replace(recipe, steps=430, precision='fp64')
    start = init.fn(network, 0)
    trace = Trace(norm=norm)
    lane = in_lane(start, recipe, 1, hooks=[trace])
    few = len(lane.weights.params) <= 12
    lane.pump(430)
    lane.pump(430)
    assert lane.step == 0, 'nothing is waited for'
    assert len(lane.lane.flight) == 2
    middle = lane.state()
    assert middle['step'] == lane.step == (200 if few else 20), 'a state waits for what was sent'
    assert not lane.lane.flight
    fork = in_lane(middle, recipe, 1, middle['step'])
    driven = Replica(start, toy, recipe, 1, 0, driven=True)
    plain = Replica(start, toy, recipe, 1, 0, driven=False)
    for until in (233, 240, 430): lane.run(until)
    for rep in (fork, driven, plain): rep.run(430)
    assert set(lane.lane.way.calls) == ({1, 10} if few else {1})
    assert same(lane.state(), driven.state())
    assert same(fork.state(), driven.state())
    for name,w in plain.state()['weights'].items(): assert far(lane.state()['weights'][name], w) < 1e-6, name
    assert trace.values()['norm'].isfinite().all()


@pytest.mark.parametrize('network', (res, mlp))
def test_lanes_take_turns(network):
    """Ten calls each, then the next: no stream gets a hundred of them while another runs dry. At most two such pieces
    of a lane are under way, and nobody waits for an event."""
    recipe = replace(SGD, steps=230)
    calls = 10
    sent = []
    lanes = [in_lane(init.fn(network, seed), recipe, seed, sent=sent) for seed in range(3)]
    settled = [in_lane(init.fn(network, seed), recipe, seed) for seed in range(3)]
    rounds = []
    while not all([lane.pump(230) for lane in lanes]):
        rounds.append([sent.count(seed) for seed in range(3)])
        assert max(rounds[-1]) - min(rounds[-1]) <= calls
        for lane in lanes:
            assert len(lane.lane.flight) <= 2
            assert lane.step % WINDOW in (0, 230 % WINDOW), 'steps count by the window'
    assert rounds[0] == [calls]*3
    assert not any(lane.lane.stream.waits for lane in lanes)
    sizes = lanes[0].lane.sizes
    assert len(sent) == 3*(230//sizes[0] + 230 % sizes[0])
    for lane, other in zip(lanes, settled):
        other.run(230)
        assert same(lane.state(), other.state())


def test_a_nearer_stop_than_was_asked_for_first():
    "What was sent is looked at, although it goes beyond."
    lane = in_lane(init.fn(res, 0), replace(SGD, steps=330), 0)
    lane.pump(330)
    for _ in range(9):
        if lane.pump(5): break
    assert lane.step == 10


def test_a_lane_may_begin_at_the_end_of_a_window():
    "Warming up goes a few steps, and must not run out of the window's rows."
    recipe = replace(SGD, steps=430)
    lane = in_lane(init.fn(conv, 0), recipe, 1, WINDOW - 1)
    driven = Replica(init.fn(conv, 0), toy, recipe, 1, WINDOW - 1, driven=True)
    lane.run(130)
    driven.run(130)
    assert same(lane.state(), driven.state())


def test_batchnorm_counts_go_on():
    "Also where the schedule starts anew."
    rep = Replica(init.fn(conv, 0), toy, SGD, 0, 0)
    rep.run(40)
    reset = Replica(rep.state(), toy, SGD, 1, 0)
    reset.run(10)
    def counts(rep):
        return {int(b) for name,b in rep.state()['buffers'].items() if name.endswith('num_batches_tracked')}
    assert counts(rep) == {40}
    assert counts(reset) == {50}
    assert reset.state()['step'] == 10


@pytest.mark.filterwarnings('ignore:diverged')
def test_a_lane_sees_divergence_in_time():
    "Found a window later, told by the step at which it happened."
    recipe = replace(WILD, steps=900)
    lane = in_lane(init.fn(mlp, 0), recipe, 0)
    plain = Replica(init.fn(mlp, 0), toy, recipe, 0, 0)
    lane.run(900)
    plain.run(900)
    assert lane.diverged == plain.diverged < 100
    assert lane.step == 900
    assert lane.lane.sent <= 200
    assert same(lane.state(), plain.state())


@pytest.mark.filterwarnings('ignore:diverged')
def test_a_fleet_of_lanes(tmp_path, monkeypatch):
    "All that a GPU does, save the recording."
    once = Replica.__init__
    def begin(self, *args, **kw):
        once(self, *args, **{**kw, 'driven': True})
        self.lane = Lane(self, EagerStream())
    alone = compute(grid()[:-1], store=Store(tmp_path/'alone'), workers=1, quiet=True)
    monkeypatch.setattr(Replica, '__init__', begin)
    one = compute(grid()[:-1], store=Store(tmp_path/'one'), executor=Fleet(1), quiet=True)
    many = compute(grid()[:-1], store=Store(tmp_path/'many'), executor=Fleet(16), quiet=True)
    assert identical(one, many)
    for a,b in zip(alone, many):
        if 'weights' not in a: continue
        assert (a['step'], a.get('diverged')) == (b['step'], b.get('diverged'))


# ------------------------------------------------------------------ hooks

def loss(rep): return rep.losses.index_select(0, rep.at)[0] if rep.driven else rep.losses[rep.step % WINDOW]

@pytest.mark.parametrize('driven', WAYS)
def test_a_trace_is_what_a_plain_loop_sees(driven):
    trace = Trace(norm=norm, loss=loss)
    rep = Replica(init.fn(conv, 0), toy, replace(SGD, precision='fp64'), 0, 0, hooks=[trace], driven=driven)
    rep.run(10)
    rep.run(17)
    got = trace.values()
    net = conv.create(0).double().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1., momentum=.9, weight_decay=SGD.weight_decay)
    for step in range(17):
        x, y = toy.load().batches(32, 0, dtype=torch.float64)[step]
        optimizer.zero_grad()
        error = F.cross_entropy(net(x), y)
        error.backward()
        size = math.sqrt(sum(float(p.grad.square().sum()) for p in net.parameters()))
        assert float(got['norm'][step]) == pytest.approx(size, rel=1e-5)
        assert float(got['loss'][step]) == pytest.approx(float(error.detach()), rel=1e-5)
        optimizer.param_groups[0]['lr'] = SGD.lr*min(1, step/SGD.warmup)
        optimizer.step()
    assert got['norm'][17:].isnan().all()


class Pull:
    "Towards a point, as ADMM has it."
    def gradient(self, rep): rep.weights.grad.add_(rep.weights.vector - self.to, alpha=.3)

@pytest.mark.parametrize('driven', WAYS)
def test_a_hook_changes_the_gradient(driven):
    "A quadratic pull is what adding it to the loss gives."
    pull = Pull()
    rep = Replica(init.fn(mlp, 0), toy, replace(SGD, precision='fp64'), 0, 0, hooks=[pull], driven=driven)
    pull.to = torch.full_like(rep.weights.vector, .01)
    rep.run(12)
    net = mlp.create(0).double().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1., momentum=.9, weight_decay=SGD.weight_decay)
    for step in range(12):
        x, y = toy.load().batches(32, 0, dtype=torch.float64)[step]
        optimizer.zero_grad()
        error = F.cross_entropy(net(x), y) + .15*sum((p - .01).square().sum() for p in net.parameters())
        error.backward()
        optimizer.param_groups[0]['lr'] = SGD.lr*min(1, step/SGD.warmup)
        optimizer.step()
    for name,p in net.named_parameters(): assert_close(rep.state()['weights'][name], p.data, name)


# ------------------------------------------------------------------ evaluation in place

def trained(network, seed, data, recipe=Recipe(4, batch=8, lr=.1)):
    "A state at the end of a recipe."
    rep = Replica(init.fn(network, seed), data, recipe, seed, 0)
    rep.run(recipe.end(data))
    return rep.state()

def by_module(state, data, split, limit=None, device='cpu'):
    "Predictions and summed loss of a state, by making a module of it; and the labels."
    net = module_of(state, device).eval()
    x, y = (torch.cat(t) for t in zip(*data.evaluation(split, limit=limit)))
    with torch.no_grad(): z = net(x)
    return z.argmax(1), float(F.cross_entropy(z, y, reduction='sum')), y

@pytest.mark.parametrize('split,limit', (('test', None), ('train', 30)))
def test_a_probe_is_the_module(images, split, limit):
    "Errors, losses and predictions, for weights put in one after another; a limit, an odd rest, several batches."
    data = images[1].load()
    probe = Probe(nets.resnet20, data, size=17)
    first, second = (trained(nets.resnet20, seed, images[1]) for seed in range(2))
    for state in (first, second, first):
        predicted, loss, y = by_module(state, data, split, limit)
        found = torch.full((len(y),), -1)
        wrong, total = probe.put(probe.vector(state)).measure(split, limit, found).tolist()
        assert wrong == int((predicted != y).sum())
        assert total == pytest.approx(loss, rel=1e-4)
        assert torch.equal(found, predicted)


def test_a_probe_between_two_states(images):
    data = images[1].load()
    probe = Probe(nets.resnet20, data, size=17)
    states = [trained(nets.resnet20, seed, images[1]) for seed in range(2)]
    _, loss, _ = by_module(interpolate(*states, .3), data, 'test')
    a, b = map(probe.vector, states)
    assert float(probe.lerp(a, b, .3).measure('test')[1]) == pytest.approx(loss, rel=1e-4)


def test_a_probe_refuses_another_network(images):
    probe = Probe(nets.resnet20, images[1].load())
    with pytest.raises(ValueError, match='does not fit: '): probe.vector(init.fn(nets.lenet_300_100, 0))


@pytest.fixture
def files(tmp_path):
    "Tiny pictures of two classes, in folders as ImageNet has them."
    import numpy as np
    from PIL import Image
    from lth_nb.data import imagenet
    g = np.random.default_rng(0)
    for split,n in (('train', 8), ('val', 3)):
        for c in 'ab':
            folder = tmp_path/split/c
            folder.mkdir(parents=True)
            for i in range(n): Image.fromarray(g.integers(0, 256, (40, 44, 3), dtype=np.uint8)).save(folder/f'{i}.png')
    return imagenet(path=tmp_path, size=32)

STREAMED = Recipe(6, batch=5, lr=.05, augment=True, milestones=())
TWO_CLASSES = replace(nets.resnet20, classes=2)

def test_streamed_images_train(files):
    "Images that are read as they are needed: stopped and forked the same replica; worker processes change nothing."
    whole, part = (Replica(init.fn(TWO_CLASSES, 0), files, STREAMED, 1, 0) for _ in range(2))
    assert not whole.course.resident
    assert not whole.driven
    whole.run(6)
    part.run(3)
    fork = Replica(part.state(), files, STREAMED, 1, 3)
    fork.course.batches = files.load().batches(5, 1, True, workers=2)
    fork.run(6)
    assert same(fork.state(), whole.state())


def test_streamed_images_are_measured(files):
    state = init.fn(TWO_CLASSES, 0)
    got = evaluate.fn(state, files)
    _, loss, y = by_module(state, files.load(), 'test')
    assert got['test']['loss'] == pytest.approx(loss/len(y), rel=1e-4)
    assert (got['test']['n'], got['train']['n']) == (6, 16)


# ------------------------------------------------------------------ on a GPU

def on_cuda(test):
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')(test))

@on_cuda
def test_cuda_alone_and_among_others(images, tmp_path, monkeypatch):
    "In the loop: the same bits among 31 others, from the start or resumed."
    monkeypatch.setenv('LTH_NB_STACK', '0')
    recipe = Recipe(230, batch=8, lr=.05, augment=True, precision='bf16')
    runs = [train(init(nets.resnet20, seed=seed), images[1], recipe, order=seed) for seed in range(32)]
    one = runs[5]
    wanted = [run.at(when) for run in runs for when in (120, 'end')]
    store = Store(tmp_path/'among')
    alone = compute([one.at(120), one.at('end')], store=Store(tmp_path/'alone'), device='cuda', workers=1, quiet=True)
    among = compute(wanted, store=store, device='cuda', workers=32, quiet=True)
    assert identical(alone, among[10:12])
    fork = compute(train(one.at(120), images[1], recipe, order=5).at('end'), store=store, device='cuda', quiet=True)
    assert same(fork, alone[1], ('weights', 'buffers'))


@on_cuda
def test_cuda_divergence(images, tmp_path):
    bad, good = (train(init(nets.resnet20, seed=0), images[1], Recipe(300, batch=8, lr=lr, milestones=()), order=0)
                 for lr in (1e9, .05))
    a, b = compute([bad.at('end'), good.at('end')], store=Store(tmp_path), device='cuda', quiet=True)
    assert a['diverged'] < 100
    assert 'diverged' not in b


@on_cuda
def test_cuda_probe_is_the_module(images, monkeypatch):
    "Again and again, whatever has been written over what was given back too early."
    data = images[1].load('cuda')
    probe = Probe(nets.resnet20, data, size=17)
    state = init.fn(nets.resnet20, 0)
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    for _ in range(3):
        junk = [torch.full((n,), 7, device='cuda') for n in (17, 60, 512)]
        predicted, loss, y = by_module(state, data, 'train', device='cuda')
        found = torch.full((len(y),), -1, device='cuda')
        _, total = probe.put(probe.vector(state)).measure('train', None, found).tolist()
        assert total == pytest.approx(loss, rel=1e-3)
        assert torch.equal(found, predicted)
        del junk


@on_cuda
@pytest.mark.parametrize('optimizer', ('sgd', 'adam'))
@pytest.mark.parametrize('name', ('lenet_300_100', 'resnet20'))
def test_cuda_graphs_are_the_plain_loop(images, name, optimizer):
    "In float64, masked, through windows and graphs of ten steps; with a trace of every step."
    network, data, batch, aug = image_task(name, images)
    lr = .01 if optimizer == 'sgd' else 1e-3
    recipe = Recipe(WINDOW + 35, batch=batch, optimizer=optimizer, lr=lr, warmup=3, milestones=(6,), weight_decay=1e-3,
                    augment=aug, precision='fp64')
    mask = random_mask(network)
    n = WINDOW + 35 if network is nets.lenet_300_100 else 12   # a BatchNorm network drifts apart even in float64
    ends = []
    norms = []
    for device in ('cpu', 'cuda'):
        trace = Trace(norm=norm)
        rep = Replica(init.fn(network, 0), data, recipe, 1, 0, mask=mask, device=device, hooks=[trace])
        rep.run(n)
        ends.append(rep.state())
        norms.append(trace.values()['norm'][:n])
    for name,w in ends[0]['weights'].items():
        assert far(ends[1]['weights'][name], w)/float(w.abs().max()) < 1e-7, name
    assert torch.allclose(*norms, rtol=1e-4)
    assert plus_zero(pruned_places(ends[1], mask))


@on_cuda
@pytest.mark.parametrize('rule', ('averaged', 'reestimated'))
def test_cuda_line_is_near_the_cpus(images, monkeypatch, rule):
    a, b = (init.fn(nets.resnet20, seed) for seed in (0, 1))
    losses = []
    for device in ('cpu', 'cuda'):
        monkeypatch.setenv('LTH_NB_DEVICE', device)
        losses.append(line.fn(a, b, images[1], alphas=5, batchnorm=rule)['test']['loss'])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


@on_cuda
def test_cuda_memory_goes_with_the_replica(images):
    left = []
    for seed in range(12):
        rep = Replica(init.fn(nets.resnet20, seed), images[1], Recipe(300, batch=8, lr=.05), seed, 0, device='cuda')
        rep.run(5)
        del rep
        torch.cuda.empty_cache()
        left.append(torch.cuda.mem_get_info()[0])
    assert left[-1] > left[2] - 2**27


@on_cuda
def test_cuda_many_shapes_change_nothing(images):
    "A replica alone, and after ten others of other sizes in the same process: the same bits."
    def end(width, decay=0.):
        network = nets.Network('resnet20', width=width)
        recipe = Recipe(30, batch=8, lr=.05, weight_decay=decay)
        rep = Replica(init.fn(network, 0), images[1], recipe, 0, 0, device='cuda')
        rep.run(20)
        return rep.state()
    first = end(16)
    for width in range(4, 14): end(width, 1e-4)
    assert identical(first, end(16))
