"""The engine: every way of running against a plain loop, replicas alone and among others, memory, hooks, evaluation in place."""
import math, time
from contextlib import nullcontext
from dataclasses import replace

import pytest, torch, torch.nn.functional as F
from lth_nb import networks as nets
from lth_nb.engine import WINDOW, Lane, Probe, Replica, Trace, Weights, adam, module_of, sgd
from lth_nb.experiment import Fleet, Progress, Store, compute, workers
from lth_nb.training import Recipe, evaluate, init, interpolate, line, train
from helpers import (ADAM, KINDS, SGD, assert_close, conv, identical, image_task, mlp, plain_loop, plus_zero, pruned_places,
                     random_mask, same, toy)

pytestmark = pytest.mark.usefixtures('on_cpu')
WAYS = [pytest.param(False, id='plain'), pytest.param(True, id='driven')]


# ------------------------------------------------------------------ every way of running is the plain loop

@pytest.mark.parametrize('driven', WAYS)
@pytest.mark.parametrize('masked', (False, True), ids=('dense', 'masked'))
@pytest.mark.parametrize('optimizer', ('sgd', 'adam'))
@pytest.mark.parametrize('name', ('lenet_300_100', 'resnet20'))
def test_every_way_is_the_plain_loop(images, name, optimizer, masked, driven):
    "In float64, across warmup, two milestones, the end of an epoch, and stops in between."
    network, data, batch, aug = image_task(name, images)
    recipe = Recipe(12, batch=batch, optimizer=optimizer, lr=.05 if optimizer == 'sgd' else 2e-3, milestones=(6, 9), warmup=4, weight_decay=1e-2,
                    augment=aug, precision='fp64')
    mask = random_mask(network) if masked else None
    net,slots = plain_loop(network, data.load().batches(batch, 5, aug, dtype=torch.float64), recipe, 12, mask)
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
    net,_ = plain_loop(conv, toy.load().batches(32, 3, dtype=torch.float64), recipe, WINDOW + 19)
    x,y = toy.load().batches(32, 3, dtype=torch.float64)[WINDOW + 19]
    rep.run(WINDOW + 19)
    got = float(rep.run(WINDOW + 20))
    assert got == pytest.approx(float(F.cross_entropy(net(x), y).detach()), rel=1e-5)
    assert 'momentum_buffer' not in rep.model.slots


@pytest.mark.parametrize('driven', WAYS)
@pytest.mark.parametrize('network,recipe', KINDS)
def test_fork_and_resume_bit_for_bit(network, recipe, driven):
    make = lambda state, first, o=1: Replica(state, toy, replace(recipe, steps=230), o, first, driven=driven)
    whole,parts = make(init.fn(network, 0), 0),make(init.fn(network, 0), 0)
    whole.run(230)
    for s in (3, 99, 100, 101, 170): parts.run(s)
    fork = make(parts.state(), 170)
    parts.run(230); fork.run(230)
    assert same(parts.state(), whole.state()) and same(fork.state(), whole.state())
    assert not same(make(init.fn(network, 0), 0, 2).state() | {}, whole.state(), ('weights',))


@pytest.mark.parametrize('network,recipe', [*KINDS, pytest.param(conv, replace(SGD, precision='bf16'), id='conv-bf16'),
                                            pytest.param(conv, replace(SGD, optimizer='adam', lr=1e-2), id='conv-adam')])
def test_pruned_is_plus_zero_after_every_driven_step(network, recipe):
    mask = random_mask(network)
    start = Replica(init.fn(network, 0), toy, recipe, 0, 0)
    start.run(5)
    rep = Replica(start.state(), toy, recipe, 0, 5, mask=mask, driven=True)
    for s in range(5, 15):
        assert plus_zero(pruned_places(rep.state(), mask)), f'before step {s}'
        rep.run(s + 1)
    alive = torch.cat([rep.state()['weights'][k][m] for k,m in mask.items()])
    assert bool((alive != 0).all()) and alive.isfinite().all()


def test_updates_with_a_mask_are_pytorchs_where_weights_live():
    g = torch.Generator().manual_seed(1)
    draw = lambda: torch.randn(500, generator=g, dtype=torch.float64)
    keep = -(torch.rand(500, generator=g) < .5).long()
    lr = torch.tensor([.1], dtype=torch.float64)
    for rule in ('sgd', 'adam'):
        a = draw().view(torch.int64).bitwise_and_(keep).view(torch.float64)
        b = torch.nn.Parameter(a.clone())
        m,v,count = torch.zeros_like(a),torch.zeros_like(a),torch.zeros(1, dtype=torch.float64)
        opt = torch.optim.SGD([b], lr=.1, momentum=.9, weight_decay=.01) if rule == 'sgd' else torch.optim.Adam([b], lr=.1, weight_decay=.01)
        for _ in range(5):
            grad = draw()
            b.grad = grad*(keep != 0)
            opt.step()
            grad[3] = math.inf if keep[3] == 0 else grad[3]
            sgd(a, grad, v, keep, lr, .9, .01) if rule == 'sgd' else adam(a, grad, m, v, keep, lr, count, (.9, .999), 1e-8, .01)
        assert float((a - b.detach()).abs().max()) < 1e-12
        for t in (a, v) if rule == 'sgd' else (a, m, v): assert plus_zero(t[keep == 0])


def test_bf16_is_autocast():
    "One cast of all layers a step, against PyTorch's autocast: the same products of the same rounded numbers."
    recipe = Recipe(3, batch=32, lr=.05, milestones=(), precision='bf16')
    rep = Replica(init.fn(conv, 0), toy, recipe, 0, 0)
    rep.run(3)
    net = conv.create(0).train()
    opt = torch.optim.SGD(net.parameters(), lr=.05, momentum=.9)
    for s in range(3):
        x,y = toy.load().batches(32, 0)[s]
        with torch.autocast('cpu', torch.bfloat16): z = net(x)
        opt.zero_grad(); F.cross_entropy(z.float(), y).backward(); opt.step()
    first = conv.create(0)
    for (k,p),q in zip(net.named_parameters(), first.parameters()):
        moved = float((p.detach() - q.detach()).abs().max())
        assert float((rep.state()['weights'][k] - p.detach()).abs().max()) <= .02*moved + 1e-7, k
    assert all(w.dtype == torch.float32 for w in rep.state()['weights'].values())
    exact = Replica(init.fn(conv, 0), toy, replace(recipe, precision='fp32'), 0, 0); exact.run(3)
    assert not same(exact.state(), rep.state(), ('weights',)), 'the precision is used at all'


def test_weights_lie_in_one_vector():
    for network in (nets.resnet20, nets.lenet_300_100, nets.mobilenet_v2):
        net = network.create(0).to(memory_format=torch.channels_last)
        before = {n: p.detach().clone() for n,p in net.named_parameters()}
        w = Weights(net)
        assert len(w) == sum(p.numel() for p in before.values()) and all(torch.equal(p, before[n]) for n,p in net.named_parameters())
        w.vector.zero_()
        assert all(not p.any() for p in net.parameters())
        grads = [torch.full_like(p, i) for i,p in enumerate(w.params)]
        w.collect(grads)
        named = {id(p): n for n,p in net.named_parameters()}
        assert all(bool((w.view(w.grad, named[id(p)]) == i).all()) for i,p in enumerate(w.params))


# ------------------------------------------------------------------ alone and among others

def grid():
    "Trajectories of two networks, two optimisers, masks, schedules, that start and stop at different steps; one diverges."
    t = [train(init(n, seed=s), toy, replace(r, steps=T), order=o) for n,r,s,o,T in
         ((conv, SGD, 0, 0, 130), (conv, SGD, 1, 1, 60), (mlp, ADAM, 0, 2, 210), (mlp, replace(ADAM, lr=1e-2), 1, 0, 140), (conv, replace(SGD, precision='bf16'), 0, 0, 75),
          (mlp, replace(SGD, lr=1e6, warmup=0, milestones=()), 0, 0, 150))]
    later = train(t[0].at(40), toy, replace(SGD, steps=130), order=5)
    return [x.at(w) for x in t for w in (0, 33, 'end')] + [later.at('end'), t[2].watch([10, 100, 205], evaluate, data=toy), line(t[0].at('end'), later.at('end'), toy, alphas=3)]

@pytest.mark.filterwarnings('ignore:diverged')
def test_alone_and_among_others(tmp_path):
    "One after another, in turns in one process, over two processes: the same bits."
    wanted = grid()
    alone = compute(wanted, store=Store(tmp_path/'alone'), workers=1, quiet=True)
    fleet = Fleet(32)
    together = compute(wanted, store=Store(tmp_path/'together'), executor=fleet, quiet=True)
    spread = compute(wanted, store=Store(tmp_path/'spread'), workers=2, quiet=True)
    assert identical(alone, together) and identical(alone, spread)
    assert alone[17]['diverged'] < 50 and 'diverged' not in alone[2], 'one that diverges leaves the others alone'
    assert not identical(alone[2], alone[5])


def test_a_fleet_takes_turns(tmp_path):
    "All are begun before the first has ended; at most `most` at a time."
    began,ended,peak = [],[],[0]
    def call(n):
        def go():
            began.append(n); peak[0] = max(peak[0], len(began) - len(ended))
            left = [9]
            def work(): left[0] -= 1; return left[0] <= 0
            yield work
            yield work
            ended.append(n)
            return n*n
        return go
    for most in (4, 2, 1):
        for l in (began, ended): l.clear()
        peak[0] = 0
        fleet = Fleet(most)
        fs = [fleet.submit(call(n)) for n in range(4)]
        while not all(f.done() for f in fs): fleet.turn()
        assert [f.result() for f in fs] == [0, 1, 4, 9] and peak[0] == most


def test_errors_in_a_fleet_stay_with_their_call(tmp_path):
    "In the step, and in the work that it yields; a step may also catch what its work raises."
    def early():
        raise ValueError('early')
        yield
    def late():
        yield lambda: 1/0
    def brave():
        try: yield lambda: 1/0
        except ZeroDivisionError: return 'caught'
    fleet = Fleet(3)
    fs = [fleet.submit(f) for f in (early, late, brave)]
    while not all(f.done() for f in fs): fleet.turn()
    assert 'early' in str(fs[0].exception()) and isinstance(fs[1].exception(), ZeroDivisionError) and fs[2].result() == 'caught'


# ------------------------------------------------------------------ the lane of a GPU, with steps run eagerly instead of recorded

class Event:
    "Has come when it has been asked for twice, or waited for."
    def __init__(self): self.asked = 0
    def query(self):
        self.asked += 1
        return self.asked > 2
    def synchronize(self): self.asked = 9

class EagerStream:
    "What a CUDA stream is asked for, done at once."
    def here(self): return nullcontext()
    def mark(self): return Event()
    def record(self, work):
        try: work()   # leaves traces, as a real recording might, to be wiped away
        except IndexError: pass   # beyond the window's rows; a real recording takes no step
        return work
    def landing(self): return torch.zeros(WINDOW, dtype=torch.bool)
    def synchronize(self): pass

class WatchedLane(Lane):
    "Counts how many windows are under way."
    most = 0
    def push(self, n):
        super().push(n)
        self.most = max(self.most, len(self.flight))

def in_lane(state, recipe, order, first=0, **kw):
    rep = Replica(state, toy, recipe, order, first, driven=True, **kw)
    rep.lane = WatchedLane(rep, EagerStream())
    return rep

@pytest.mark.parametrize('network,recipe', KINDS)
def test_a_lane_is_the_plain_way(network, recipe):
    "Windows under way, odd stops, a state asked for in the middle, a fork: in float64 the weights of plain steps, bit for bit those of driven ones."
    r = replace(recipe, steps=430, precision='fp64')
    trace = Trace(norm=lambda rep: rep.weights.grad.norm())
    lane,driven,ordinary = in_lane(init.fn(network, 0), r, 1, hooks=[trace]),*(Replica(init.fn(network, 0), toy, r, 1, 0, driven=d) for d in (True, False))
    lane.pump(430); lane.pump(430)
    assert lane.step == 0 and len(lane.lane.flight) == 2, 'nothing is waited for'
    middle = lane.state()
    assert middle['step'] == lane.step == 200 and not lane.lane.flight, 'a state waits for what was sent'
    fork = in_lane(middle, r, 1, 200)
    for until in (233, 240, 430): lane.run(until)
    for rep in (fork, driven, ordinary): rep.run(430)
    assert lane.lane.most == 2 and set(lane.lane.way.calls) == ({1, 10} if len(lane.weights.params) <= 12 else {1})
    assert same(lane.state(), driven.state()) and same(fork.state(), driven.state())
    for k,w in ordinary.state()['weights'].items(): assert float((lane.state()['weights'][k] - w).abs().max()) < 1e-6, k
    assert trace.values()['norm'].isfinite().all()


def test_a_lane_may_begin_at_the_end_of_a_window():
    "Warming up goes a few steps, and must not run out of the window's rows."
    lane,driven = in_lane(init.fn(conv, 0), replace(SGD, steps=430), 1, WINDOW - 1),Replica(init.fn(conv, 0), toy, replace(SGD, steps=430), 1, WINDOW - 1, driven=True)
    lane.run(130); driven.run(130)
    assert same(lane.state(), driven.state())


def test_batchnorm_counts_go_on(tmp_path):
    "Also where the schedule starts anew."
    rep = Replica(init.fn(conv, 0), toy, SGD, 0, 0)
    rep.run(40)
    reset = Replica(rep.state(), toy, SGD, 1, 0)
    reset.run(10)
    counts = lambda r: {int(v) for k,v in r.state()['buffers'].items() if k.endswith('num_batches_tracked')}
    assert counts(rep) == {40} and counts(reset) == {50} and reset.state()['step'] == 10


@pytest.mark.filterwarnings('ignore:diverged')
def test_a_lane_sees_divergence_in_time():
    "Found a window later, told by the step at which it happened."
    r = replace(SGD, lr=1e6, warmup=0, milestones=(), steps=900)
    lane,ordinary = in_lane(init.fn(mlp, 0), r, 0),Replica(init.fn(mlp, 0), toy, r, 0, 0)
    lane.run(900); ordinary.run(900)
    assert lane.diverged == ordinary.diverged < 100 and lane.step == 900 and lane.lane.sent <= 200
    assert same(lane.state(), ordinary.state())


@pytest.mark.filterwarnings('ignore:diverged')
def test_a_fleet_of_lanes(tmp_path, monkeypatch):
    "All that a GPU does, save the recording."
    once = Replica.__init__
    def begin(self, *args, **kw):
        once(self, *args, **{**kw, 'driven': True})
        self.lane = Lane(self, EagerStream())
    alone = compute(grid()[:-1], store=Store(tmp_path/'alone'), workers=1, quiet=True)
    monkeypatch.setattr(Replica, '__init__', begin)
    one,many = (compute(grid()[:-1], store=Store(tmp_path/str(n)), executor=Fleet(n), quiet=True) for n in (1, 16))
    assert identical(one, many)
    for a,b in zip(alone, many):
        if 'weights' in a: assert a['step'] == b['step'] and a.get('diverged') == b.get('diverged')


# ------------------------------------------------------------------ memory

def test_no_more_replicas_than_fit(capsys):
    "The first call shows what one takes; the others wait for their place, and a line says so."
    memory,running,peak = [10*2**30],[0],[0]
    def call():
        memory[0] -= 3*2**30; running[0] += 1; peak[0] = max(peak[0], running[0])
        left = [5]
        def work(): left[0] -= 1; return left[0] <= 0
        yield work
        memory[0] += 3*2**30; running[0] -= 1
    fleet = Fleet(16, free=lambda: memory[0])
    fs = [fleet.submit(call) for _ in range(6)]
    while not all(f.done() for f in fs): fleet.turn()
    assert peak[0] == 2 and memory[0] == 10*2**30 and fleet.need == 3*2**30
    said = capsys.readouterr().out
    assert said.count('side by side') == 1 and '2 calls' in said and '3.00 GiB' in said and '4.00 GiB' in said


def test_out_of_memory_is_no_crash(capsys):
    "A call that meets it beside others begins again when there is room; alone, it is an error."
    running,tries = [0],[]
    def call(n):
        def go():
            tries.append(n)
            running[0] += 1
            try:
                yield lambda: True
                if running[0] > 2: raise torch.OutOfMemoryError('no room')
                for _ in range(5): yield lambda: True
                return n
            finally: running[0] -= 1
        return go
    fleet = Fleet(16)
    fs = [fleet.submit(call(n)) for n in range(5)]
    while not all(f.done() for f in fs): fleet.turn()
    assert sorted(f.result() for f in fs) == list(range(5)) and len(tries) > 5 and fleet.most < 5
    assert 'out of memory: from here on' in capsys.readouterr().out
    def alone(): raise torch.OutOfMemoryError('far too large'); yield
    f = fleet.submit(alone)
    while not f.done(): fleet.turn()
    assert 'far too large' in str(f.exception())


def test_processes_are_as_many_as_memory_holds(monkeypatch):
    "By the most that a worker has taken so far; without workers, or without Linux, all of them."
    files = {'/proc/1/status': 'VmHWM:  4000000 kB\nVmRSS: 1000000 kB\n', '/proc/2/status': 'VmHWM: 1000000 kB\nVmRSS: 500000 kB\n',
             '/proc/meminfo': 'MemTotal: 9 kB\nMemAvailable: 3000000 kB\n'}
    import io
    monkeypatch.setattr(workers, 'open', lambda f: io.StringIO(files[f]), raising=False)
    assert workers.processes_that_fit([1, 2], 2) == 1
    files['/proc/meminfo'] = 'MemAvailable: 7000000 kB\n'
    assert workers.processes_that_fit([1, 2], 2) == 2
    assert workers.processes_that_fit([1, 2], 8) == 2
    assert workers.processes_that_fit([], 2) == 2
    def gone(f): raise FileNotFoundError(f)
    monkeypatch.setattr(workers, 'open', gone, raising=False)
    assert workers.processes_that_fit([3], 5) == 5


# ------------------------------------------------------------------ progress

def test_progress_counts_steps(tmp_path, capsys):
    "Steps a second over all replicas, workers' steps included, and the time left by them."
    t = [train(init(mlp, seed=s), toy, replace(ADAM, steps=300), order=0) for s in range(3)]
    compute([x.at('end') for x in t], store=Store(tmp_path), workers=2)
    said = capsys.readouterr().out
    assert '3/3 calls' in said and 'steps/s' in said
    n = [0]
    p = Progress(4, steps=1000, counted=lambda: n[0])
    n[0],p.n,p.start = 250,1,time.monotonic() - 10
    rate,left = p.speed()
    assert rate == pytest.approx(25, rel=.05) and left == pytest.approx(30, rel=.05)
    assert train(init(mlp, seed=0), toy, ADAM, order=0).node.step.size([t[0].at(20), t[0].watch([5, 80], evaluate, data=toy)]) == 80


# ------------------------------------------------------------------ hooks

def step_of(rep): return int(rep.t) if rep.driven else rep.step

@pytest.mark.parametrize('driven', WAYS)
def test_a_trace_is_what_a_plain_loop_sees(driven):
    trace = Trace(grad=lambda r: r.weights.grad.norm(), loss=lambda r: r.losses[r.step % WINDOW] if not r.driven else r.losses.index_select(0, r.at)[0])
    r = replace(SGD, precision='fp64')
    rep = Replica(init.fn(conv, 0), toy, r, 0, 0, hooks=[trace], driven=driven)
    rep.run(10); rep.run(17)
    got = trace.values()
    net = conv.create(0).double().train()
    opt = torch.optim.SGD(net.parameters(), lr=1., momentum=.9, weight_decay=r.weight_decay)
    for s in range(17):
        x,y = toy.load().batches(32, 0, dtype=torch.float64)[s]
        opt.zero_grad(); loss = F.cross_entropy(net(x), y); loss.backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in net.parameters()))
        assert float(got['grad'][s]) == pytest.approx(norm, rel=1e-5) and float(got['loss'][s]) == pytest.approx(float(loss.detach()), rel=1e-5)
        opt.param_groups[0]['lr'] = r.lr*min(1, s/r.warmup); opt.step()
    assert got['grad'][17:].isnan().all()


@pytest.mark.parametrize('driven', WAYS)
def test_a_hook_changes_the_gradient(driven):
    "A quadratic pull towards a point, as ADMM has it, is what adding it to the loss gives."
    class Pull:
        def gradient(self, rep): rep.weights.grad.add_(rep.weights.vector - self.to, alpha=.3)
    pull = Pull()
    rep = Replica(init.fn(mlp, 0), toy, replace(SGD, precision='fp64'), 0, 0, hooks=[pull], driven=driven)
    pull.to = torch.full_like(rep.weights.vector, .01)
    rep.run(12)
    net = mlp.create(0).double().train()
    opt = torch.optim.SGD(net.parameters(), lr=1., momentum=.9, weight_decay=SGD.weight_decay)
    for s in range(12):
        x,y = toy.load().batches(32, 0, dtype=torch.float64)[s]
        loss = F.cross_entropy(net(x), y) + .15*sum((p - .01).square().sum() for p in net.parameters())
        opt.zero_grad(); loss.backward()
        opt.param_groups[0]['lr'] = SGD.lr*min(1, s/SGD.warmup); opt.step()
    for k,p in net.named_parameters(): assert_close(rep.state()['weights'][k], p.data, k)


# ------------------------------------------------------------------ evaluation in place

def test_a_probe_is_the_module(images):
    "Errors, losses and predictions, for weights put in one after another; a limit, an odd rest, several batches."
    net,data = nets.resnet20,images[1]
    d = data.load()
    probe,states = Probe(net, d, size=17),[]
    for s in range(2):
        rep = Replica(init.fn(net, s), data, Recipe(4, batch=8, lr=.1), s, 0); rep.run(4); states.append(rep.state())
    for state in (*states, states[0]):
        m = module_of(state).eval()
        for split,limit in (('test', None), ('train', 30)):
            x,y = (torch.cat(t) for t in zip(*d.evaluation(split, limit=limit)))
            with torch.no_grad(): z = m(x)
            preds = torch.full((len(y),), -1)
            wrong,loss = probe.put(probe.vector(state)).measure(split, limit, preds).tolist()
            assert wrong == int((z.argmax(1) != y).sum()) and loss == pytest.approx(float(F.cross_entropy(z, y, reduction='sum')), rel=1e-4)
            assert torch.equal(preds, z.argmax(1))
    a,b = map(probe.vector, states)
    mid = module_of(interpolate(*states, .3)).eval()
    x,y = next(iter(d.evaluation('test')))
    with torch.no_grad(): assert probe.lerp(a, b, .3).measure('test')[1].item() == pytest.approx(float(F.cross_entropy(mid(x), y, reduction='sum')), rel=1e-4)
    with pytest.raises(ValueError, match='does not fit: '): probe.vector(init.fn(nets.lenet_300_100, 0))


def test_streamed_images_train_and_are_measured(tmp_path):
    "Images that are read from files as they are needed: the same replica twice, stopped and forked; worker processes change nothing."
    from PIL import Image
    import numpy as np
    from lth_nb.data import imagenet
    g = np.random.default_rng(0)
    for split,n in (('train', 8), ('val', 3)):
        for c in 'ab':
            (tmp_path/split/c).mkdir(parents=True)
            for i in range(n): Image.fromarray(g.integers(0, 256, (40, 44, 3), dtype=np.uint8)).save(tmp_path/split/c/f'{i}.png')
    data,net = imagenet(path=tmp_path, size=32),replace(nets.resnet20, classes=2)
    recipe = Recipe(6, batch=5, lr=.05, augment=True, milestones=())
    whole,part = (Replica(init.fn(net, 0), data, recipe, 1, 0) for _ in range(2))
    assert not whole.course.resident and not whole.driven
    whole.run(6); part.run(3)
    fork = Replica(part.state(), data, recipe, 1, 3)
    fork.course.batches = data.load().batches(5, 1, True, workers=2)
    fork.run(6)
    assert same(fork.state(), whole.state())
    got,m = evaluate.fn(whole.state(), data),module_of(whole.state()).eval()
    x,y = (torch.cat(t) for t in zip(*data.load().evaluation('test')))
    with torch.no_grad(): assert got['test']['loss'] == pytest.approx(float(F.cross_entropy(m(x), y)), rel=1e-4)
    assert got['test']['n'] == 6 and got['train']['n'] == 16


# ------------------------------------------------------------------ on a GPU

cuda = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')]

@pytest.mark.parametrize('x', [pytest.param(0, marks=cuda)])
def test_cuda_alone_and_among_others(images, tmp_path, x):
    "The same bits among 31 others, from the start or resumed."
    r = Recipe(230, batch=8, lr=.05, augment=True, precision='bf16')
    t = [train(init(nets.resnet20, seed=s), images[1], r, order=s) for s in range(32)]
    alone = compute([t[5].at(120), t[5].at('end')], store=Store(tmp_path/'alone'), device='cuda', workers=1, quiet=True)
    among = compute([u.at(w) for u in t for w in (120, 'end')], store=Store(tmp_path/'among'), device='cuda', workers=32, quiet=True)
    assert identical(alone, among[10:12])
    fork = compute(train(t[5].at(120), images[1], r, order=5).at('end'), store=Store(tmp_path/'among'), device='cuda', quiet=True)
    assert all(identical(fork[p], alone[1][p]) for p in ('weights', 'buffers'))


@pytest.mark.parametrize('x', [pytest.param(0, marks=cuda)])
def test_cuda_divergence(images, tmp_path, x):
    r = Recipe(300, batch=8, lr=1e9, milestones=())
    bad,good = (train(init(nets.resnet20, seed=0), images[1], replace(r, lr=l), order=0) for l in (1e9, .05))
    a,b = compute([bad.at('end'), good.at('end')], store=Store(tmp_path), device='cuda', quiet=True)
    assert a['diverged'] < 100 and 'diverged' not in b


@pytest.mark.parametrize('x', [pytest.param(0, marks=cuda)])
def test_cuda_probe_is_the_module(images, monkeypatch, x):
    d = images[1].load('cuda')
    probe,state = Probe(nets.resnet20, d, size=17),init.fn(nets.resnet20, 0)
    m = module_of(state, 'cuda').eval()
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    for _ in range(3):
        junk = [torch.full((n,), 7, device='cuda') for n in (17, 60, 512)]   # noqa: F841  whatever was given back too early is written over
        x,y = (torch.cat(t) for t in zip(*d.evaluation('train')))
        with torch.no_grad(): z = m(x)
        preds = torch.full((len(y),), -1, device='cuda')
        wrong,loss = probe.put(probe.vector(state)).measure('train', None, preds).tolist()
        assert loss == pytest.approx(float(F.cross_entropy(z, y, reduction='sum')), rel=1e-3) and torch.equal(preds, z.argmax(1))


@pytest.mark.parametrize('name,optimizer', [pytest.param(n, o, marks=cuda) for n in ('lenet_300_100', 'resnet20') for o in ('sgd', 'adam')])
def test_cuda_graphs_are_the_plain_loop(images, name, optimizer):
    "In float64, masked, through windows and graphs of ten steps; with a trace of every step."
    network, data, batch, aug = image_task(name, images)
    r = Recipe(WINDOW + 35, batch=batch, optimizer=optimizer, lr=.01 if optimizer == 'sgd' else 1e-3, warmup=3, milestones=(6,), weight_decay=1e-3, augment=aug, precision='fp64')
    mask,ends,norms = random_mask(network),[],[]
    n = WINDOW + 35 if network is nets.lenet_300_100 else 12   # a BatchNorm network drifts apart even in float64
    for device in ('cpu', 'cuda'):
        trace = Trace(norm=lambda rep: rep.weights.grad.norm())
        rep = Replica(init.fn(network, 0), data, r, 1, 0, mask=mask, device=device, hooks=[trace])
        rep.run(n); ends.append(rep.state()); norms.append(trace.values()['norm'][:n])
    for k,w in ends[0]['weights'].items(): assert float((ends[1]['weights'][k] - w).abs().max()/w.abs().max()) < 1e-7, k
    assert torch.allclose(*norms, rtol=1e-4) and plus_zero(pruned_places(ends[1], mask))


@pytest.mark.parametrize('rule', [pytest.param(r, marks=cuda) for r in ('averaged', 'reestimated')])
def test_cuda_line_is_near_the_cpus(images, monkeypatch, rule):
    a,b = (init.fn(nets.resnet20, s) for s in (0, 1))
    lines = []
    for device in ('cpu', 'cuda'):
        monkeypatch.setenv('LTH_NB_DEVICE', device)
        lines.append(line.fn(a, b, images[1], alphas=5, batchnorm=rule))
    assert lines[0]['test']['loss'] == pytest.approx(lines[1]['test']['loss'], rel=1e-2)


@pytest.mark.parametrize('x', [pytest.param(0, marks=cuda)])
def test_cuda_memory_goes_with_the_replica(images, x):
    left = []
    for s in range(12):
        rep = Replica(init.fn(nets.resnet20, s), images[1], Recipe(300, batch=8, lr=.05), s, 0, device='cuda')
        rep.run(5)
        del rep
        torch.cuda.empty_cache(); left.append(torch.cuda.mem_get_info()[0])
    assert left[-1] > left[2] - 2**27


@pytest.mark.parametrize('x', [pytest.param(0, marks=cuda)])
def test_cuda_many_shapes_change_nothing(images, x):
    "A replica alone, and after ten others of other sizes in the same process: the same bits."
    r = Recipe(30, batch=8, lr=.05)
    def end(width, decay=0.):
        rep = Replica(init.fn(nets.Network('resnet20', width=width), 0), images[1], replace(r, weight_decay=decay), 0, 0, device='cuda')
        rep.run(20); return rep.state()
    first = end(16)
    for w in range(4, 14): end(w, 1e-4)
    assert identical(first, end(16))
