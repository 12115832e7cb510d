"""The Hessian: against exact matrices, known traces, and curvlinops."""
from dataclasses import replace

import numpy as np, pytest, torch
from lth_nb import networks as nets
from lth_nb.measures import curvature, Hessian, lanczos, ritz, share, smoothed, spectrum
from lth_nb.data import mnist1d
from lth_nb.engine import module_of
from lth_nb.training import init

SMALL = replace(nets.mnist1d_conv, width=3)
DATA = mnist1d(train=128, test=10)


@pytest.fixture(scope='module')
def exact():
    "State, operator and the whole matrix, in float64."
    state = init.fn(SMALL, seed=1)
    H = Hessian(state, DATA, dtype=torch.float64)
    return state, H, torch.stack([H @ e for e in torch.eye(H.n, dtype=torch.float64)])


def test_matrix_is_symmetric_and_its_ends_are_found(exact):
    _,H,full = exact
    assert torch.allclose(full, full.T, atol=1e-9)
    want = torch.linalg.eigvalsh(full)
    values,weights,bounds = ritz(*lanczos(lambda v: H @ v, H.start(0), 50))
    assert torch.allclose(values[[0, -1]], want[[0, -1]], rtol=1e-7)
    assert float(weights.sum()) == pytest.approx(1)
    near = (values[:, None] - want[None]).abs().min(1).values
    assert bool((near <= bounds + 1e-8).all())   # each Ritz value has an eigenvalue within its bound


def test_no_ghosts():
    "A converged eigenvalue appears once, however long the iteration goes on."
    A = torch.diag(torch.cat([torch.tensor([100., 50.]), torch.linspace(-1, 1, 198)]))
    start = torch.randn(200, generator=torch.Generator().manual_seed(0))
    values,_,_ = ritz(*lanczos(lambda v: A @ v, start, 80))
    assert int((values > 99).sum()) == 1
    assert int((values > 49).sum()) == 2


@pytest.mark.parametrize('n', (5, 40))
def test_known_traces(n):
    """All moments up to 2m - 1 of the start vector's spectral measure are exact: the mean over probes estimates the
    trace of A and of its square."""
    g = torch.Generator().manual_seed(n)
    Q = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64)).Q
    lam = torch.linspace(-2, 6, n, dtype=torch.float64)
    A = Q @ torch.diag(lam) @ Q.T
    for _ in range(3):
        v = torch.randn(n, generator=g, dtype=torch.float64)
        x,w,_ = ritz(*lanczos(lambda u: A @ u, v, 4))
        u = v/v.norm()
        for power in range(4):
            moment = float(u @ torch.linalg.matrix_power(A, power) @ u)
            assert float((w*x**power).sum()) == pytest.approx(moment, abs=1e-9)
    starts = [torch.randn(n, generator=g, dtype=torch.float64) for _ in range(400)]
    probes = [ritz(*lanczos(lambda u: A @ u, start, 4)) for start in starts]
    est = [n*float((w*x).sum()) for x,w,_ in probes]
    assert np.mean(est) == pytest.approx(float(lam.sum()), abs=4*np.std(est)/20)


@pytest.mark.parametrize('batchnorm', ('batch', 'running'))
@pytest.mark.parametrize('batch', (None, 48))
def test_many_vectors_at_once(exact, batchnorm, batch):
    "The second gradient of all vectors together, as a GPU takes it, is that of each."
    state,_,_ = exact
    for keep in (False, True):
        kw = dict(batch=batch, batchnorm=batchnorm, dtype=torch.float64, keep=keep)
        one = Hessian(state, DATA, side=False, **kw)
        all_ = Hessian(state, DATA, side=True, **kw)
        V = torch.stack([one.start(i) for i in range(3)])
        want = torch.stack([one @ v for v in V])
        for H in (one, all_): assert torch.allclose(H @ V, want, atol=1e-12, rtol=1e-9)
        assert torch.allclose(all_ @ V[0], want[0], atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize('network', (nets.resnet20, nets.vgg13, nets.wrn_16_8, nets.resnet18), ids=lambda n: n.name)
def test_many_vectors_at_once_of_the_papers_networks(network):
    "Images, shortcuts and pooling; narrow."
    H = _images(init.fn(replace(network, width=2), seed=0), torch.Generator().manual_seed(0))
    V = torch.stack([H.start(i) for i in range(2)])
    want = H @ V
    H.side = True
    assert torch.allclose(H @ V, want, atol=1e-9*float(want.abs().max()), rtol=1e-7)


def test_starts_side_by_side():
    "Each row is the run from its vector alone, whenever its space is exhausted: rows that end after 1, 3 and 12 steps."
    n = 12
    A = torch.diag(torch.arange(1., n + 1).double())
    g = torch.Generator().manual_seed(0)
    V = torch.zeros(3, n, dtype=torch.float64)
    V[0, 4] = 2
    V[1, [0, 5, 9]] = torch.tensor([1., 2, 3]).double()
    V[2] = torch.randn(n, generator=g, dtype=torch.float64)
    both = lanczos(lambda u: u @ A, V, 20)
    rows = [ritz(*r) for r in zip(*both)]
    assert [len(r[0]) for r in rows] == [1, 3, 12]
    for v,got in zip(V, rows):
        want = ritz(*lanczos(lambda u: A @ u, v, 20))
        for a,b in zip(got, want): assert torch.allclose(a, b, atol=1e-9)
    assert rows[0][0].tolist() == [5]
    assert torch.allclose(rows[1][0], torch.tensor([1., 6, 10]).double())
    with pytest.raises(ValueError, match='zero'): lanczos(lambda u: u @ A, torch.stack([V[0], 0*V[0]]), 3)


def test_nothing_is_read_between_steps():
    "A value read from the device stops a GPU; here that is `_local_scalar_dense`. One look at the start, none a step."
    from torch.utils._python_dispatch import TorchDispatchMode
    class Reads(TorchDispatchMode):
        n = 0
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.n += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
            return func(*args, **(kwargs or {}))
    H = Hessian(init.fn(SMALL, seed=1), DATA, side=True)
    V = torch.stack([H.start(i) for i in range(3)])
    H @ V   # the graph of the gradient is there from now on
    def reads(steps):
        with Reads() as mode: lanczos(lambda v: H @ v, V, steps)
        return mode.n
    assert reads(8) == reads(2) == 1


def test_density_side_by_side(exact, monkeypatch):
    "The whole density, probes together: the same as one after another, and in halves where memory is short."
    state = exact[0]
    want = spectrum.fn(state, DATA, probes=5, steps=12)
    whole = Hessian
    at_once = []
    def on_gpu(*a, **kw): return whole(*a, **kw, side=True)
    def tight(matvec, v, steps):
        if len(v) > 2: raise torch.OutOfMemoryError('too much')
        at_once.append(len(v))
        return lanczos(matvec, v, steps)
    monkeypatch.setattr(curvature, 'Hessian', on_gpu)
    for limit in (False, True):
        if limit: monkeypatch.setattr(curvature, 'lanczos', tight)
        got = spectrum.fn(state, DATA, probes=5, steps=12)
        assert got['products'] == want['products'] == 60
        assert got['highest'] == pytest.approx(want['highest'], rel=1e-4)
        assert got['trace'] == pytest.approx(want['trace'], rel=1e-3, abs=1e-3)
        assert got['lowest'] == pytest.approx(want['lowest'], rel=1e-4)
    assert at_once == [2, 1, 2]
    def full(*_): raise torch.OutOfMemoryError('none at all')
    monkeypatch.setattr(curvature, 'lanczos', full)
    with pytest.raises(torch.OutOfMemoryError): spectrum.fn(state, DATA, probes=5, steps=12)


def test_density_of_a_network_against_its_exact_spectrum(exact):
    state,_,full = exact
    want = torch.linalg.eigvalsh(full)
    got = spectrum.fn(state, DATA, probes=20, steps=50)
    assert got['batchnorm'] == 'batch'
    assert got['n'] == len(want)
    assert got['examples'] == 128
    assert got['lowest'] == pytest.approx(float(want[0]), rel=1e-3)
    assert got['highest'] == pytest.approx(float(want[-1]), rel=1e-3)
    assert abs(got['trace'] - float(full.trace())) < 4*got['trace_error']
    t = .1*float(want[-1])
    assert share(got, high=-t) == pytest.approx(float((want <= -t).double().mean()), abs=.05)
    assert share(got, low=t) == pytest.approx(float((want > t).double().mean()), abs=.05)
    at = np.linspace(float(want[0]) - 1, float(want[-1]) + 1, 500)
    direct = smoothed(dict(batchnorm='batch', nodes=[want.tolist()], weights=[[1/len(want)]*len(want)]), at, .2)
    assert np.abs(smoothed(got, at, .2) - direct).sum()*(at[1] - at[0]) < .25


def test_masked_hessian_is_the_submatrix(exact):
    state,H,full = exact
    g = torch.Generator().manual_seed(0)
    mask = {'0.weight': torch.rand(state['weights']['0.weight'].shape, generator=g) > .5}
    M = Hessian(state, DATA, mask=mask, dtype=torch.float64)
    whole = {n: mask.get(n, torch.ones(p.shape, dtype=torch.bool)) for n,p in H.params.items()}
    alive = torch.cat([m.reshape(-1) for m in whole.values()])
    assert M.n == int(alive.sum()) < H.n
    values,_,_ = ritz(*lanczos(lambda v: M @ v, M.start(0), 50))
    want = torch.linalg.eigvalsh(full[alive][:, alive])
    assert float(values[-1]) == pytest.approx(float(want[-1]), rel=1e-6)
    assert float(values[0]) == pytest.approx(float(want[0]), rel=1e-6)


def test_batchnorm_mode_is_stated(exact):
    state,H,_ = exact
    v = H.start(3)
    assert not torch.allclose(H @ v, Hessian(state, DATA, batchnorm='running', dtype=torch.float64) @ v)
    with pytest.raises(ValueError, match="use 'batch'"): Hessian(state, DATA, batchnorm='train')
    with pytest.raises(ValueError, match='does not say how BatchNorm worked'): share(dict(nodes=[[0.]], weights=[[1.]]))
    assert Hessian(init.fn(nets.mnist1d_mlp, seed=0), DATA).batchnorm == 'none'


def test_images():
    "Two-dimensional convolutions, and a state that stays what it was."
    state = init.fn(replace(nets.resnet20, width=2), seed=0)
    g = torch.Generator().manual_seed(0)
    before = {k: v.clone() for k,v in state['buffers'].items()}
    H = _images(state, g)
    u = H.start(0)
    v = H.start(1)
    assert float(u @ (H @ v)) == pytest.approx(float(v @ (H @ u)), rel=1e-8)
    assert all(torch.equal(before[k], v) for k,v in state['buffers'].items())


def _images(state, g):
    from lth_nb.data import Data, Split
    x = torch.randint(0, 256, (16, 32, 32, 3), generator=g, dtype=torch.uint8)
    s = Split(x, torch.randint(0, 10, (16,), generator=g))
    class Handle:
        def load(self, device): return Data('noise', s, s, 10, (.5,)*3, (.25,)*3, '')
    return Hessian(state, Handle(), dtype=torch.float64)


def test_products_are_differences_of_gradients(exact):
    """In float64, BatchNorm on batch statistics included, where torch.func.hessian (which vmaps) is not even symmetric
    in torch 2.15."""
    _,H,full = exact
    def loss_at(flat):
        parts = zip(H.params.items(), flat.split(H.sizes))
        return H.loss({k: q.view_as(p) for (k,p),q in parts}, *H.batches[0])
    slope = torch.func.grad(loss_at)
    w = torch.cat([p.detach().reshape(-1) for p in H.params.values()])
    v = H.start(0)
    assert torch.allclose((slope(w + 1e-6*v) - slope(w - 1e-6*v))/2e-6, full @ v, atol=1e-7)
    assert torch.allclose(torch.func.jvp(slope, (w,), (v,))[1], full @ v, atol=1e-10)


@pytest.mark.parametrize('network,batchnorm', ((SMALL, 'running'), (replace(nets.mnist1d_mlp, width=8), 'batch')))
def test_agrees_with_curvlinops(network, batchnorm):
    "The oracle where it can be one: it vmaps, so BatchNorm on batch statistics is left to the differences above."
    curvlinops = pytest.importorskip('curvlinops')
    H = Hessian(init.fn(network, seed=1), DATA, batchnorm=batchnorm, dtype=torch.float64)
    net = module_of(init.fn(network, seed=1), dtype=torch.float64).eval()
    op = curvlinops.HessianLinearOperator(net, torch.nn.CrossEntropyLoss(), list(net.parameters()), H.batches,
                                          check_deterministic=False)
    v = H.start(5)
    assert torch.allclose(torch.as_tensor(op @ v), H @ v, atol=1e-9, rtol=1e-7)
    full = torch.as_tensor(op @ torch.eye(H.n, dtype=torch.float64))
    values,_,_ = ritz(*lanczos(lambda u: H @ u, v, 60))
    assert torch.allclose(values[[0, -1]], torch.linalg.eigvalsh(full)[[0, -1]], rtol=1e-5)
