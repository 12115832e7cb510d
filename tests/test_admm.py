"""ADMM pruning: convex problems with known answers, the pull in every way of running, counts, resuming, several."""
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest, torch, torch.nn.functional as F
from lth_nb.admm import ADMM, admm, stage_edges, update_steps
from lth_nb.engine import Replica
from lth_nb.experiment import Fleet, Store, compute, missing, run_call
from lth_nb.networks import prunable
from lth_nb.pruning import density, magnitude_mask, prunable_weights
from lth_nb.training import Recipe, init, train
from helpers import conv, far, identical, mlp, toy

pytestmark = pytest.mark.usefixtures('on_cpu')
R = Recipe(40, batch=32, lr=.05, momentum=.9, weight_decay=1e-3)


# ------------------------------------------------------------------ problems with known answers

def box(n):
    "What has its weights in one vector."
    def view(vector, name): return vector
    return SimpleNamespace(vector=torch.zeros(n, dtype=torch.float64), view=view)

def half(parts): return magnitude_mask(parts, .5)

def quadratic(n, seed=0):
    "A positive definite matrix, and where its bowl has its lowest point."
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(n, n, dtype=torch.float64, generator=g)
    return root @ root.T/n + .3*torch.eye(n, dtype=torch.float64), torch.randn(n, dtype=torch.float64, generator=g)

def solve(A, a, project, rho, rounds=400):
    "ADMM on (W - a)' A (W - a)/2 with the W step solved exactly."
    weights = box(len(a))
    pull = ADMM(weights, project, ['w'])
    weights.vector.copy_(a)
    pull.stage(rho)
    pulled = A + rho*torch.eye(len(a), dtype=torch.float64)
    trace = []
    for _ in range(rounds):
        weights.vector.copy_(torch.linalg.solve(pulled, A @ a + rho*(pull.z - pull.u)))
        trace.append(pull.update())
    return pull, trace


@pytest.mark.parametrize('rho', (.1, 1., 10.))
@pytest.mark.parametrize('seed', range(3))
def test_a_convex_problem(rho, seed):
    "Vectors with a given support are a convex set; the best of them solves a linear system, whatever rho."
    A, a = quadratic(15, seed)
    on = torch.arange(15) % 3 != 1
    def support(parts): return {'w': on}
    pull, trace = solve(A, a, support, rho)
    known = torch.zeros_like(a)
    known[on] = torch.linalg.solve(A[on][:, on], (A @ a)[on])
    assert far(pull.z, known) < 1e-6
    assert far(pull.weights.vector, known) < 1e-6
    assert trace[-1]['primal'] < 1e-6
    assert trace[-1]['dual'] < 1e-6
    multiplier = rho*pull.u   # KKT: the gradient at the answer is minus rho U, and U is 0 on the support
    assert far(A @ (known - a), -multiplier) < 1e-6
    assert float(multiplier[on].abs().max()) < 1e-6

def test_sparsity_itself():
    "With curvatures all alike the best k-sparse vector keeps the k largest; ADMM finds it exactly."
    a = torch.tensor([3., -.2, 1., .5, -2., .1], dtype=torch.float64)
    pull, _ = solve(torch.eye(6, dtype=torch.float64), a, half, 1.)
    on = torch.tensor([1, 0, 1, 0, 1, 0]).bool()
    assert torch.equal(pull.z != 0, on)
    assert far(pull.z, a*on) < 1e-9

def test_it_is_not_magnitude_pruning():
    """With unlike curvatures the loss decides, not the size: of 1 and 1.2 the smaller stays where its loss is a hundred
    times as steep."""
    A = torch.diag(torch.tensor([10., .1], dtype=torch.float64))
    a = torch.tensor([1., 1.2], dtype=torch.float64)
    pull, _ = solve(A, a, half, .5)
    assert (pull.z != 0).tolist() == [True, False]
    assert half({'w': a})['w'].tolist() == [False, True]


# ------------------------------------------------------------------ in every way of running

class Textbook:
    "Z and U beside the weights of a plain PyTorch loop, whose loss has the penalty added."
    def __init__(self, weights, project):
        self.weights = weights
        self.project = project
    def cut(self, parts): return {name: t*self.project(parts)[name] for name,t in parts.items()}
    def stage(self, rho):
        self.rho = rho
        self.z = self.cut({name: w.detach().clone() for name,w in self.weights.items()})
        self.u = {name: torch.zeros_like(w) for name,w in self.weights.items()}
    def penalty(self):
        return self.rho/2*sum((w - self.z[name] + self.u[name]).square().sum() for name,w in self.weights.items())
    def update(self):
        self.z = self.cut({name: w.detach() + self.u[name] for name,w in self.weights.items()})
        self.u = {name: self.u[name] + w.detach() - self.z[name] for name,w in self.weights.items()}
    def gap(self):
        "Of W and Z, relative to W."
        with torch.no_grad():
            apart = sum((w - self.z[name]).square().sum() for name,w in self.weights.items())
            return float(apart/sum(w.square().sum() for w in self.weights.values()))**.5

@pytest.mark.parametrize('driven', (False, True), ids=('plain', 'driven'))
@pytest.mark.parametrize('scope', ('layer', 'global'))
def test_it_is_the_textbook(driven, scope):
    "Z, U and two values of rho, in float64, against the penalty added to the loss of a plain PyTorch loop."
    recipe = replace(R, precision='fp64')
    names = prunable(mlp.build())[1:]   # the first layer is exempt
    def project(parts): return magnitude_mask(parts, .6, scope=scope)
    rep = Replica(init.fn(mlp, 0), toy, recipe, 3, 0, driven=driven)
    pull = ADMM(rep.weights, project, names)
    rep.hooks.append(pull)
    net = mlp.create(0).double().train()
    parameters = dict(net.named_parameters())
    optimizer = torch.optim.SGD(parameters.values(), lr=R.lr, momentum=R.momentum, weight_decay=R.weight_decay)
    book = Textbook({name: parameters[name] for name in parameters if name in names}, project)
    batches = toy.load().batches(32, 3, dtype=torch.float64)
    for rho,first in ((.1, 0), (2., 20)):
        pull.stage(rho)
        book.stage(rho)
        for step in range(first, first + 20):
            x, y = batches[step]
            loss = F.cross_entropy(net(x), y) + book.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 5 != 4: continue
            book.update()
            rep.run(step + 1)
            got = pull.update()
        for name in names:
            assert torch.allclose(pull.parts(pull.z)[name], book.z[name], atol=1e-9)
            assert torch.allclose(pull.parts(pull.u)[name], book.u[name], atol=1e-9)
        assert got['primal'] == pytest.approx(book.gap(), rel=1e-6)
    weights = rep.state()['weights']
    for name,p in parameters.items(): assert torch.allclose(weights[name].double(), p.data, atol=1e-6), name


def test_the_pull_is_captured_by_address():
    "A CUDA graph replays addresses: stages and updates fill the same tensors, never new ones."
    rep = Replica(init.fn(mlp, 0), toy, R, 0, 0, driven=True)
    pull = ADMM(rep.weights, half, prunable(mlp.build()))
    def places(): return [t.data_ptr() for t in (pull.z, pull.u, pull.rho)]
    before = places()
    pull.stage(.1)
    rep.hooks.append(pull)
    rep.run(10)
    pull.update()
    pull.stage(1.)
    assert places() == before
    assert float(pull.rho.max()) == 1


# ------------------------------------------------------------------ the step

def test_rounds():
    edges = stage_edges(100, 3)
    assert edges == [0, 33, 67, 100]
    assert update_steps(edges, 10) == [10, 20, 30, 33, 43, 53, 63, 67, 77, 87, 97, 100]
    assert update_steps(stage_edges(3, 4), 50) == [1, 2, 3]   # fewer steps than stages


DENSE = train(init(conv, seed=0), toy, replace(R, lr=.1), order=0).at('end')
FIRST = prunable(conv.build())[0]

def run(**kw): return admm(DENSE, toy, R, 0, .7, **{**dict(every=5, rhos=(.1, 1.), exempt=(FIRST,)), **kw})

def kept(mask): return {name: int(m.sum()) for name,m in mask.items()}

def test_counts_and_exemption(tmp_path):
    "Exactly as many as asked for: in each layer, or in all; the exempt layer whole."
    wanted = [run()['mask'], run(scope='global')['mask']]
    by_layer, global_ = compute(wanted, store=Store(tmp_path), workers=1, quiet=True)
    sizes = {name: m.numel() for name,m in by_layer.items()}
    total = sum(n for name,n in sizes.items() if name != FIRST)
    assert kept(by_layer) == {name: n if name == FIRST else n - round(.7*n) for name,n in sizes.items()}
    assert global_[FIRST].all()
    assert sum(kept(global_).values()) - sizes[FIRST] == total - round(.7*total)
    assert kept(by_layer) != kept(global_)

def test_it_converges_and_retrains(tmp_path):
    "W and Z meet; the mask is that of W; retraining under it keeps it."
    node = admm(DENSE, toy, replace(R, steps=240), 0, .7, rhos=(.1, 1.), every=10, exempt=(FIRST,))
    again = train(node['state'], toy, R, order=1, first=0, mask=node['mask'], optimizer='fresh').at('end')
    wanted = [node['mask'], node['trace'], node['state'], again]
    mask, trace, state, after = compute(wanted, store=Store(tmp_path), workers=1, quiet=True)
    assert [row['step'] for row in trace] == list(range(10, 241, 10))
    assert {round(row['rho'], 6) for row in trace} == {.1, 1.}
    assert trace[-1]['primal'] < .1 < trace[0]['primal']
    assert identical(mask, magnitude_mask(prunable_weights(state), .7, scope='layer', exempt=(FIRST,)))
    assert density(mask) < .33
    for name,m in mask.items(): assert not (after['weights'][name][~m] != 0).any(), name

def test_stopped_and_resumed(tmp_path):
    "Stopped at every update and taken up again: bit for bit the uninterrupted run."
    parts = Store(tmp_path/'parts')
    wanted = [run()[part] for part in ('mask', 'trace', 'state')]
    whole = compute(wanted, store=Store(tmp_path/'whole'), workers=1, quiet=True)
    compute(DENSE, store=parts, workers=1, quiet=True)
    stops = 0
    while tasks := missing(wanted, parts):
        (task,) = tasks.values()
        if run_call(task.nodes, parts, 'cpu', deadline=time.time() - 1) == 'stopped': stops += 1
        assert stops < 20
    assert stops >= 7
    assert identical(whole, compute(wanted, store=parts, stored=True))
    assert not list((tmp_path/'parts/.checkpoints').glob('*.json'))

def test_side_by_side(tmp_path):
    "Several at once in one process: each is what it is alone."
    grid = [(order, sparsity) for order in (0, 1) for sparsity in (.5, .8)]
    nodes = [admm(DENSE, toy, R, order, sparsity, rhos=(.1, 1.), every=5)['mask'] for order,sparsity in grid]
    alone = compute(nodes, store=Store(tmp_path/'alone'), workers=1, quiet=True)
    beside = compute(nodes, store=Store(tmp_path/'beside'), executor=Fleet(4, device='cpu'), quiet=True)
    assert identical(alone, beside)

@pytest.mark.filterwarnings('ignore:diverged')
def test_divergence_is_told(tmp_path):
    node = admm(DENSE, toy, replace(R, lr=1e4), 0, .5, every=5)['mask']
    with pytest.raises(Exception, match='ADMM diverged at step .* a lower learning rate than 10000'):
        compute(node, store=Store(tmp_path), workers=1, quiet=True)

@pytest.mark.parametrize('bad,told', [
    (dict(rhos=()), r'rhos=\(\)'),
    (dict(rhos=(.1, -1.)), r'rhos=\(0.1, -1.0\).*above 0'),
    (dict(rhos=.1), 'rhos=0.1'),
    (dict(sparsity=1.), 'fraction=1.0'),
    (dict(exempt=('fc',)), "exempt=.'fc'"),
    (dict(scope='all'), "scope='all'")])
def test_bad_arguments_are_told_before_training(tmp_path, bad, told, monkeypatch):
    def no_training(*_): raise AssertionError('it trains')
    compute(DENSE, store=Store(tmp_path), workers=1, quiet=True)
    monkeypatch.setattr(Replica, 'pump', no_training)
    node = admm(DENSE, toy, R, 0, **{**dict(sparsity=.5, every=5, rhos=(.1, 1.)), **bad})
    with pytest.raises(Exception, match=told): compute(node['mask'], store=Store(tmp_path), workers=1, quiet=True)
