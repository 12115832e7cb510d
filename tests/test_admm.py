"""ADMM pruning: convex problems with known answers, the pull in every way of running, counts, resuming, several."""
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest, torch, torch.nn.functional as F
from lth_nb.admm import ADMM, admm, stage_edges, update_steps
from lth_nb.data import mnist1d
from lth_nb.engine import Replica
from lth_nb.experiment import Fleet, Store, compute, missing, run_call
from lth_nb.networks import mnist1d_conv as conv, mnist1d_mlp as mlp, prunable
from lth_nb.pruning import density, magnitude_mask, prunable_weights
from lth_nb.training import Recipe, init, train

toy = mnist1d(train=256, test=128)
R = Recipe(40, batch=32, lr=.05, momentum=.9, weight_decay=1e-3)

@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch): monkeypatch.setenv('LTH_NB_DEVICE', 'cpu')

def same(a, b): return all(torch.equal(a['weights'][k], b['weights'][k]) for k in a['weights'])

def box(n): # what has its weights in one vector
    return SimpleNamespace(vector=torch.zeros(n, dtype=torch.float64), view=lambda v, name: v)

def quadratic(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(n, n, dtype=torch.float64, generator=g)
    return root @ root.T/n + .3*torch.eye(n, dtype=torch.float64), torch.randn(n, dtype=torch.float64, generator=g)

def solve(A, a, project, rho, rounds=400):
    "ADMM on (W - a)' A (W - a)/2 with the W step solved exactly."
    b = box(len(a))
    pull = ADMM(b, project, ['w'])
    b.vector.copy_(a); pull.stage(rho)
    trace = []
    for _ in range(rounds):
        pulled = A + rho*torch.eye(len(a), dtype=torch.float64)
        b.vector.copy_(torch.linalg.solve(pulled, A @ a + rho*(pull.z - pull.u)))
        trace.append(pull.update())
    return pull,trace


@pytest.mark.parametrize('rho', (.1, 1., 10.))
@pytest.mark.parametrize('seed', range(3))
def test_a_convex_problem(rho, seed):
    "Vectors with a given support are a convex set; the best of them solves a linear system, whatever rho."
    A,a = quadratic(15, seed)
    on = torch.arange(15) % 3 != 1
    pull,trace = solve(A, a, lambda parts: {'w': on}, rho)
    known = torch.zeros_like(a)
    known[on] = torch.linalg.solve(A[on][:, on], (A @ a)[on])
    assert float((pull.z - known).abs().max()) < 1e-6 and float((pull.weights.vector - known).abs().max()) < 1e-6
    assert trace[-1]['primal'] < 1e-6 and trace[-1]['dual'] < 1e-6
    multiplier = rho*pull.u   # KKT: the gradient at the answer is minus rho U, and U is 0 on the support
    assert float((A @ (known - a) + multiplier).abs().max()) < 1e-6 and float(multiplier[on].abs().max()) < 1e-6

def test_sparsity_itself():
    "With curvatures all alike the best k-sparse vector keeps the k largest; ADMM finds it exactly."
    a = torch.tensor([3., -.2, 1., .5, -2., .1], dtype=torch.float64)
    pull,_ = solve(torch.eye(6, dtype=torch.float64), a, lambda parts: magnitude_mask(parts, .5), 1.)
    on = torch.tensor([1, 0, 1, 0, 1, 0]).bool()
    assert torch.equal(pull.z != 0, on)
    assert float((pull.z - a*on).abs().max()) < 1e-9

def test_it_is_not_magnitude_pruning():
    """With unlike curvatures the loss decides, not the size: of 1 and 1.2 the smaller stays where its loss is a hundred
    times as steep."""
    A,a = torch.diag(torch.tensor([10., .1], dtype=torch.float64)),torch.tensor([1., 1.2], dtype=torch.float64)
    pull,_ = solve(A, a, lambda parts: magnitude_mask(parts, .5), .5)
    assert (pull.z != 0).tolist() == [True, False]
    assert magnitude_mask({'w': a}, .5)['w'].tolist() == [False, True]


@pytest.mark.parametrize('driven', (False, True), ids=('plain', 'driven'))
@pytest.mark.parametrize('scope', ('layer', 'global'))
def test_it_is_the_textbook(driven, scope):
    "Z, U and two values of rho, in float64, against the penalty added to the loss of a plain PyTorch loop."
    r,names = replace(R, precision='fp64'),prunable(mlp.build())[1:]   # the first layer is exempt
    project = lambda parts: magnitude_mask(parts, .6, scope=scope)
    rep = Replica(init.fn(mlp, 0), toy, r, 3, 0, driven=driven)
    pull = ADMM(rep.weights, project, names); rep.hooks.append(pull)
    net = mlp.create(0).double().train()
    opt = torch.optim.SGD(net.parameters(), lr=r.lr, momentum=r.momentum, weight_decay=r.weight_decay)
    w = {n: p for n,p in net.named_parameters() if n in names}
    cut = lambda d: {n: t*project(d)[n] for n,t in d.items()}
    for rho,first in ((.1, 0), (2., 20)):
        pull.stage(rho)
        Z,U = cut({n: p.detach().clone() for n,p in w.items()}),{n: torch.zeros_like(p) for n,p in w.items()}
        for s in range(first, first + 20):
            x,y = toy.load().batches(32, 3, dtype=torch.float64)[s]
            loss = F.cross_entropy(net(x), y) + rho/2*sum((w[n] - Z[n] + U[n]).square().sum() for n in names)
            opt.zero_grad(); loss.backward(); opt.step()
            if s % 5 == 4:
                Z = cut({n: w[n].detach() + U[n] for n in names})
                U = {n: U[n] + w[n].detach() - Z[n] for n in names}
                rep.run(s + 1); got = pull.update()
        for n in names:
            assert torch.allclose(pull.parts(pull.z)[n], Z[n], atol=1e-9)
            assert torch.allclose(pull.parts(pull.u)[n], U[n], atol=1e-9)
        gap = sum((w[n] - Z[n]).square().sum() for n in names)/sum(w[n].square().sum() for n in names)
        assert got['primal'] == pytest.approx(float(gap.detach())**.5, rel=1e-6)
    for n,p in net.named_parameters(): assert torch.allclose(rep.state()['weights'][n].double(), p.data, atol=1e-6), n


def test_the_pull_is_captured_by_address():
    "A CUDA graph replays addresses: stages and updates fill the same tensors, never new ones."
    rep = Replica(init.fn(mlp, 0), toy, R, 0, 0, driven=True)
    pull = ADMM(rep.weights, lambda parts: magnitude_mask(parts, .5), prunable(mlp.build()))
    before = [t.data_ptr() for t in (pull.z, pull.u, pull.rho)]
    pull.stage(.1); rep.hooks.append(pull); rep.run(10); pull.update(); pull.stage(1.)
    assert [t.data_ptr() for t in (pull.z, pull.u, pull.rho)] == before and float(pull.rho.max()) == 1


def test_rounds():
    edges = stage_edges(100, 3)
    assert edges == [0, 33, 67, 100]
    assert update_steps(edges, 10) == [10, 20, 30, 33, 43, 53, 63, 67, 77, 87, 97, 100]
    assert update_steps(stage_edges(3, 4), 50) == [1, 2, 3]   # fewer steps than stages


DENSE = train(init(conv, seed=0), toy, replace(R, lr=.1), order=0).at('end')
FIRST = prunable(conv.build())[0]

def run(**kw): return admm(DENSE, toy, R, 0, .7, **{**dict(every=5, rhos=(.1, 1.), exempt=(FIRST,)), **kw})

def test_counts_and_exemption(tmp_path):
    "Exactly as many as asked for: in each layer, or in all; the exempt layer whole."
    a,b = compute([run()['mask'], run(scope='global')['mask']], store=Store(tmp_path), workers=1, quiet=True)
    for k,m in a.items(): assert int(m.sum()) == m.numel() - (0 if k == FIRST else round(.7*m.numel()))
    n = sum(m.numel() for k,m in b.items() if k != FIRST)
    assert b[FIRST].all() and sum(int(m.sum()) for k,m in b.items() if k != FIRST) == n - round(.7*n)
    assert any(int(a[k].sum()) != int(b[k].sum()) for k in a)

def test_it_converges_and_retrains(tmp_path):
    "W and Z meet; the mask is that of W; retraining under it keeps it."
    r = replace(R, steps=240)
    node = admm(DENSE, toy, r, 0, .7, rhos=(.1, 1.), every=10, exempt=(FIRST,))
    again = train(node['state'], toy, R, order=1, first=0, mask=node['mask'], optimizer='fresh').at('end')
    wanted = [node['mask'], node['trace'], node['state'], again]
    mask, trace, state, after = compute(wanted, store=Store(tmp_path), workers=1, quiet=True)
    assert [t['step'] for t in trace] == list(range(10, 241, 10)) and {round(t['rho'], 6) for t in trace} == {.1, 1.}
    assert trace[-1]['primal'] < .1 < trace[0]['primal']
    expected = magnitude_mask(prunable_weights(state), .7, scope='layer', exempt=(FIRST,))
    assert all(torch.equal(mask[k], expected[k]) for k in mask) and density(mask) < .33
    assert all(not bool((after['weights'][k][~m] != 0).any()) for k,m in mask.items())

def test_stopped_and_resumed(tmp_path):
    "Stopped at every update and taken up again: bit for bit the uninterrupted run."
    whole,parts = Store(tmp_path/'a'),Store(tmp_path/'b')
    wanted = [run()[i] for i in ('mask', 'trace', 'state')]
    m,t,s = compute(wanted, store=whole, workers=1, quiet=True)
    compute(DENSE, store=parts, workers=1, quiet=True)
    stops = 0
    while tasks := missing(wanted, parts):
        (task,) = tasks.values()
        if run_call(task.nodes, parts, 'cpu', deadline=time.time() - 1) == 'stopped': stops += 1
        assert stops < 20
    m2,t2,s2 = compute(wanted, store=parts, stored=True)
    assert stops >= 7 and t == t2 and same(s, s2) and all(torch.equal(m[k], m2[k]) for k in m)
    assert not list((tmp_path/'b/.checkpoints').glob('*.json'))

def test_side_by_side(tmp_path):
    "Several at once in one process: each is what it is alone."
    nodes = [admm(DENSE, toy, R, o, s, rhos=(.1, 1.), every=5)['mask'] for o in (0, 1) for s in (.5, .8)]
    alone = compute(nodes, store=Store(tmp_path/'a'), workers=1, quiet=True)
    beside = compute(nodes, store=Store(tmp_path/'b'), executor=Fleet(4, device='cpu'), quiet=True)
    assert all(torch.equal(a[k], b[k]) for a,b in zip(alone, beside) for k in a)

@pytest.mark.filterwarnings('ignore:diverged')
def test_divergence_is_told(tmp_path):
    node = admm(DENSE, toy, replace(R, lr=1e4), 0, .5, every=5)['mask']
    with pytest.raises(Exception, match='ADMM diverged at step .* a lower learning rate than 10000'):
        compute(node, store=Store(tmp_path), workers=1, quiet=True)

@pytest.mark.parametrize('bad,told', [(dict(rhos=()), r'rhos=\(\)'),
    (dict(rhos=(.1, -1.)), r'rhos=\(0.1, -1.0\).*above 0'), (dict(rhos=.1), 'rhos=0.1'),
    (dict(sparsity=1.), 'fraction=1.0'), (dict(exempt=('fc',)), "exempt=.'fc'"), (dict(scope='all'), "scope='all'")])
def test_bad_arguments_are_told_before_training(tmp_path, bad, told, monkeypatch):
    def train_(*_): raise AssertionError('it trains')
    compute(DENSE, store=Store(tmp_path), workers=1, quiet=True)
    monkeypatch.setattr(Replica, 'pump', train_)
    node = admm(DENSE, toy, R, 0, **{**dict(sparsity=.5, every=5, rhos=(.1, 1.)), **bad})
    with pytest.raises(Exception, match=told): compute(node['mask'], store=Store(tmp_path), workers=1, quiet=True)
