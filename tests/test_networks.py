"Parameter counts of the papers, initialisations, and that networks are what their names say."
import os, pickle, subprocess, sys
from dataclasses import replace
import pytest, torch
from conftest import ROOT
from torch import nn
from lth_nb import networks as N
from lth_nb.networks import Network

torch.set_num_threads(1)
def count(m, names=None): return sum(p.numel() for n, p in m.named_parameters() if names is None or n in names)

# where the number is from: the papers' tables, or the released code of Ma et al. 2021
counts = [
    (N.lenet_300_100, 266610), (N.mnist1d_mlp, 43410), (N.mnist1d_conv, 5146), (N.mnist1d_res, 14554),
    (N.resnet20, 272474), (N.resnet56, 855770), (replace(N.resnet20, classes=100), 278324),
    (replace(N.resnet32, width=32), 1860522), (replace(N.resnet32, width=32, residual=False), 1849898),
    (N.vgg16, 14724042), (N.mobilenet_v1, 3217226), (N.resnet18, 11173962),
    (replace(N.resnet18, classes=100), 11220132),
    (N.wrn_16_8, 10961370),
    (N.vgg11, 9228362), (N.vgg13, 9413066), (N.vgg19, 20035018), (N.mobilenet_v2, 2236682)]

@pytest.mark.parametrize('net,n', counts, ids=lambda v: v.name if isinstance(v, Network) else str(v))
def test_counts(net, n): assert count(net.build()) == n

@pytest.mark.parametrize('net,n', [(N.imagenet_resnet18, 11689512), (N.imagenet_resnet50, 25557032),
    (N.inception_v3, 27161264)], ids=lambda v: v.name if isinstance(v, Network) else str(v))
def test_imagenet_counts(net, n):
    pytest.importorskip('torchvision')
    assert count(net.build()) == n

def test_274k_counts_running_statistics():
    "Frankle et al. 2020, Table 1, prints 274K for the network whose trainable parameters are 272K."
    m = N.resnet20.build()
    assert count(m) + sum(b.numel() for n, b in m.named_buffers() if 'num_batches' not in n) == 274042

@pytest.mark.parametrize('sparsity,widths,thousands', [(.59, (10, 20, 41), 110.9), (.832, (7, 13, 26), 46.1),
    (.914, (5, 9, 19), 24.2), (.945, (4, 8, 15), 16.0), (.956, (3, 7, 13), 12.0)])
def test_small_dense_widths(sparsity, widths, thousands):
    m = replace(N.resnet20, width=16 * (1 - sparsity) ** .5).build()
    assert tuple(dict.fromkeys(b.conv2.out_channels for b in m.modules() if isinstance(b, N.Block))) == widths
    assert round(count(m) / 1000, 1) == thousands

@pytest.mark.parametrize('net,layers,weights', [(N.resnet20, 22, 270896), (N.vgg16, 14, 14715584),
    (N.lenet_300_100, 3, 266200), (N.mnist1d_conv, 4, 4976)], ids=lambda v: getattr(v, 'name', str(v)))
def test_prunable(net, layers, weights):
    m = net.build()
    names = N.prunable(m)
    assert len(names) == layers
    assert count(m, names) == weights
    assert {n for n, p in m.named_parameters() if p.dim() > 1} == set(names)

@pytest.mark.parametrize('name', [n for n, f in N.families.items() if f.input[-1] < 200])
@pytest.mark.parametrize('train', [True, False])
def test_forward_and_gradients(name, train):
    m = Network(name, classes=7).create(0).train(train)
    x = torch.randn(4, *Network(name).input, generator=torch.Generator().manual_seed(0))
    m(x).square().sum().backward()
    assert m(x).shape == (4, 7)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters())
    assert all(m.get_parameter(n).grad.abs().sum() > 0 for n in N.prunable(m))

@pytest.mark.parametrize('name', ['resnet20', 'mobilenet_v2', 'vgg11', 'wrn_16_8'])
def test_memory_layout_changes_nothing(name):
    m = Network(name, width=8).create(0).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    want = m(x)
    last = m.to(memory_format=torch.channels_last)
    assert torch.allclose(want, last(x.to(memory_format=torch.channels_last)), atol=1e-10)

@pytest.mark.parametrize('init', list(N.INITS))
@pytest.mark.parametrize('net', [N.mnist1d_res, N.lenet_300_100, N.mobilenet_v1], ids=lambda n: n.name)
def test_created_from_the_seed_alone(net, init):
    net = replace(net, init=init, bn_init='uniform')
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    a = net.create(3).state_dict()
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(2)
    torch.rand(5)
    b, c = (net.create(seed).state_dict() for seed in (3, 4))
    first = next(k for k in a if k.endswith('weight'))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a[first], c[first])

@pytest.mark.parametrize('init,normal,std', [
    ('kaiming_normal', True, (2 / 144) ** .5), ('kaiming_normal_fan_out', True, (2 / 288) ** .5),
    ('kaiming_uniform', False, (2 / 144) ** .5), ('glorot_normal', True, (2 / 432) ** .5),
    ('glorot_uniform', False, (2 / 432) ** .5), ('pytorch', False, (1 / 432) ** .5)])
def test_distributions(init, normal, std):
    "Of a 3 x 3 convolution from 16 to 32 filters, of which we draw many."
    m = nn.Conv2d(16, 32, 3)
    w = torch.cat([N.initialise(m, s, init).weight.detach().flatten().clone() for s in range(40)]).double()
    n = len(w)
    kurtosis = float((w / w.std()).pow(4).mean())
    assert N.init_std(m, init)['weight'] == pytest.approx(std)
    assert abs(float(w.std()) / std - 1) < 5 / (2 * n) ** .5
    assert abs(float(w.mean())) < 5 * std / n ** .5
    assert abs(kurtosis - (3 if normal else 1.8)) < .1
    assert (float(m.bias.detach().abs().max()) > 0) == (init == 'pytorch')

@pytest.mark.parametrize('init', ['ones', 'uniform'])
def test_batch_norm_starts(init):
    m = replace(N.resnet20, bn_init=init).create(0)
    norms = [b for b in m.modules() if isinstance(b, nn.BatchNorm2d)]
    scale = torch.cat([b.weight.detach() for b in norms])
    if init == 'ones': assert (scale == 1).all()
    else:
        assert 0 <= scale.min() <= scale.max() <= 1
        assert .35 < scale.mean() < .65
    for b in norms:
        assert (b.bias == 0).all()
        assert (b.running_mean == 0).all()
        assert (b.running_var == 1).all()

def test_lenets_first_two_modules():
    m = N.lenet_300_100.create(0)
    assert isinstance(m, nn.Sequential)
    assert [type(c) for c in m] == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]

def test_without_residual_is_a_chain():
    m = replace(N.resnet20, residual=False).create(0)
    assert not [b for b in m.modules() if isinstance(b, N.Block) and b.short is not None]
    b = next(b for b in m.modules() if isinstance(b, N.Block))
    x = torch.randn(2, 16, 8, 8)
    with torch.no_grad(): b.bn2.weight.zero_()
    assert (b(x) == 0).all()

def test_one_network_has_one_name():
    assert replace(N.resnet20, width=16) == N.resnet20 == replace(N.resnet20, width=16.)
    assert pickle.loads(pickle.dumps(N.resnet20)) == N.resnet20
    assert replace(N.resnet20, width=32) != N.resnet20
    papers = [n for n, family in N.families.items() if not family.own]
    assert len({getattr(N, n) for n in papers}) == len(papers)
    assert all(getattr(N, n).name == n for n in papers)

@pytest.mark.parametrize('bad,words', [(dict(name='resnet21'), 'resnet21.*resnet20'), (dict(classes=0), 'classes: 0'),
    (dict(classes=2.), '2.0'), (dict(width=0), 'width: 0'), (dict(width='16'), "'16'"),
    (dict(width=float('nan')), 'nan'), (dict(init='he'), 'he.*kaiming_normal'), (dict(bn_init='zeros'), 'zeros'),
    (dict(residual=1), 'residual: 1'), (dict(name='vgg16', residual=False), 'vgg16'),
    (dict(name='imagenet_resnet50', width=32), 'one width')])
def test_impossible_networks(bad, words):
    with pytest.raises(ValueError, match=words): replace(N.resnet20, **bad)


def test_a_network_of_ones_own_goes_to_other_processes(tmp_path):
    "Defined in a script, trained by two workers: as if its module were known to them."
    script = tmp_path/'mine.py'
    script.write_text('''
from torch import nn
from lth_nb.data import mnist1d
from lth_nb.experiment import Store, compute
from lth_nb.networks import register
from lth_nb.training import Recipe, evaluate, init, train

mine = register('two_layers', lambda width, classes, residual: nn.Sequential(
    nn.Flatten(), nn.Linear(40, width), nn.Tanh(), nn.Linear(width, classes)), (1, 40), width=16)
data = mnist1d(train=256, test=64)
ends = [evaluate(train(init(mine, seed=i), data, Recipe(5, batch=32, lr=.1)).at('end'), data) for i in (0, 1)]
for workers in (1, 2): print(compute(ends, store=Store(f'{workers}'), workers=workers, quiet=True))
''')
    env = {**os.environ, 'LTH_NB_PUBLISHED': 'none', 'PYTHONPATH': str(ROOT)}
    r = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, env=env)
    assert r.returncode == 0, r.stderr[-2000:]
    alone, among = r.stdout.splitlines()
    assert alone == among
    assert "'n': 64" in alone


@pytest.mark.parametrize('net,words', [
    (N.resnet20, r'resnet20 takes inputs of shape \(3, 32, 32\), this data has \(1, 40\)'),
    (Network('mnist1d_mlp', classes=3), '3 outputs.*10 classes')])
def test_a_network_that_does_not_fit_its_data(tmp_path, net, words):
    from lth_nb.data import mnist1d
    from lth_nb.experiment import ComputeError, Store, compute
    from lth_nb.training import Recipe, init, train
    trained = train(init(net, seed=0), mnist1d(train=64, test=32), Recipe(1, batch=8)).at('end')
    with pytest.raises(ComputeError, match=words): compute(trained, store=Store(tmp_path), workers=1, quiet=True)


def test_a_name_that_nobody_registered():
    with pytest.raises(ValueError, match='never_registered'): Network('never_registered')
