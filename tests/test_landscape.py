"""The plane of a path and the loss on it: equal to one evaluation at a time; its shape, to a plain computation."""
import itertools

import numpy as np, pytest, torch
from lth_nb.data import mnist1d
from lth_nb.engine import Probe
from lth_nb.experiment import compute
from lth_nb.measures import axis_of, bends, dent, landscape, map_loss, plane, shape
from lth_nb.networks import Network
from lth_nb.recipes import Recipe
from lth_nb.training import evaluate, init, train

DATA = mnist1d(train=128, test=64)
NET = Network('mnist1d_conv', width=8)


def short(mask=None):
    run = train(init(NET, seed=0), DATA, Recipe(24, batch=32, lr=.1))
    return [run.at(k) for k in range(0, 25, 6)]


def test_plane_is_pca():
    "Against the singular value decomposition of the centred path."
    g = torch.Generator().manual_seed(0)
    path = torch.randn(9, 40, generator=g)@torch.diag(torch.linspace(3, .1, 40))
    p = plane(path)
    c = (path - path.mean(0)).double()
    _,s,v = torch.linalg.svd(c, full_matrices=False)
    for i in (0, 1): assert abs(float(v[i]@p['axes'][i].double())) == pytest.approx(1, abs=1e-5)
    assert p['explained'] == pytest.approx((s[:2]**2/(s**2).sum()).tolist(), abs=1e-6)
    assert p['at'][-1].abs().max() == 0
    with pytest.raises(ValueError, match='not finite'): plane(torch.full((4, 3), float('nan')))


@pytest.mark.parametrize('rule', ('final', 'reestimated'))
def test_map_equals_one_network_a_place(store, rule):
    "Every place of a map, against a state that is put together and evaluated the ordinary way."
    states = short()
    m,states = compute([landscape(states, DATA, points=3, batchnorm=rule), states], store=store, workers=1, quiet=True)
    p = Probe(NET, DATA.load())
    vs = torch.stack([p.vector({**s, 'buffers': states[-1]['buffers']}) for s in states])
    f = plane(vs)
    for (i,y),(j,x) in itertools.product(enumerate(m['y']), enumerate(m['x'])):
        p.put(vs[-1] + x*f['axes'][0] + y*f['axes'][1])
        if rule == 'reestimated': p.reestimate()
        assert float(p.measure('train')[1])/128 == pytest.approx(m['loss'][i][j], rel=2e-4)


def test_pruned_weights_stay_zero_on_the_map():
    "The plane lies in the space of the mask: no place of the map has a pruned weight."
    g = torch.Generator().manual_seed(0)
    path = torch.randn(6, 50, generator=g)
    path[:, 20:] = 0
    assert plane(path)['axes'][:, 20:].abs().max() < 1e-7


def test_the_end_is_where_it_was(store):
    states = short()
    wanted = [landscape(states, DATA, points=3), evaluate(states[-1], DATA, splits=('train',))]
    m, e = compute(wanted, store=store, workers=1, quiet=True)
    p = Probe(NET, DATA.load())
    v = p.vector(compute(states[-1], store=store, quiet=True))
    assert float(map_loss(p, v, torch.zeros(2, len(v)), [0.], [0.]))/128 == pytest.approx(e['train']['loss'], rel=1e-5)
    assert m['explained'][0] >= m['explained'][1]
    assert sum(m['explained']) <= 1 + 1e-6
    with pytest.raises(ValueError, match='points=2'): landscape.fn([None], DATA, points=2)
    with pytest.raises(ValueError, match="use 'final'"): landscape.fn([None], DATA, batchnorm='other')


def test_axis_goes_past_the_path():
    a = axis_of([0., 2.], 5, .5)
    assert a[0] == -1
    assert a[-1] == 3
    assert len(a) == 5


def test_dent_against_all_pairs():
    "The sliced sum, against every pair by hand."
    f = np.random.default_rng(0).normal(size=(5, 6))
    places = list(itertools.product(range(5), range(6)))
    rise = 0.
    n = 0
    for (a,b),(c,d) in itertools.combinations(places, 2):
        if (a + c) % 2 or (b + d) % 2: continue
        rise += max(0, f[(a + c)//2, (b + d)//2] - (f[a, b] + f[c, d])/2)
        n += 1
    assert dent(f) == pytest.approx(rise/n/(f.max() - f.min()))


@pytest.mark.parametrize('a,b,c', [(1, 2, .5), (1, -2, 0), (3, 1, 1.7)])
def test_bends_of_a_quadratic(a, b, c):
    x,y = np.meshgrid(np.arange(6.), np.arange(5.))
    want = sorted(np.linalg.eigvalsh([[2*a, c], [c, 2*b]]))
    assert np.allclose(bends(a*x**2 + b*y**2 + c*x*y), want)


def test_shape_does_not_hide_infinities():
    t = np.linspace(-1, 1, 5).tolist()
    s = shape(dict(x=t, y=t, at=[[1., 1.], [0., 0.]], loss=np.full((5, 5), np.nan).tolist()))
    assert all(np.isnan(v) for v in s.values())
