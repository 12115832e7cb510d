"Networks of one's own with what the papers' networks do not have: no wrong number in silence."
import random, threading

import numpy as np, pytest, strangers, torch
from lth_nb import networks as nets
from lth_nb.experiment import Store, compute
from lth_nb.networks import Network
from lth_nb.training import init
from torch import nn
from helpers import identical

pytestmark = pytest.mark.usefixtures('on_cpu')
def by_name(networks): return dict(argvalues=networks, ids=[network.name for network in networks])


# ------------------------------------------------------------------ all that a network holds comes from its seed

def other_chance(seed):
    for start in (torch.manual_seed, np.random.seed, random.seed): start(seed)   # noqa: NPY002

def held(state): return {**state['weights'], **state['buffers']}

@pytest.mark.parametrize('network', **by_name(strangers.drawn))
def test_all_that_a_network_holds_comes_from_its_seed(network, tmp_path):
    "Whatever the global generators stand at; another seed has other numbers; two processes have the same."
    other_chance(1)
    first = init.fn(network, 0)
    expected = torch.rand(1), np.random.rand(), random.random()   # noqa: NPY002
    other_chance(1)
    assert (torch.rand(1), np.random.rand(), random.random()) == expected, 'no generator is moved'   # noqa: NPY002
    other_chance(2)
    again, other = (held(init.fn(network, seed)) for seed in (0, 1))
    assert identical(held(first), again)
    shared = [name for name, t in again.items() if torch.equal(t, other[name])]
    assert all(name.endswith('bias') or 'norm' in name for name in shared), shared
    two = compute([init(network, seed=seed) for seed in (0, 1)], store=Store(tmp_path), workers=2, quiet=True)
    assert identical([held(state) for state in two], [again, other])


def test_a_bare_matrix_is_not_the_first_layer_again():
    "What is drawn when a module is made, and what is drawn for its layers, are other numbers."
    net = strangers.drawn[0].create(0)
    numbers = [net.middle.matrix.detach().flatten(), net.first.weight.detach().flatten()[:144]]
    assert abs(float(torch.corrcoef(torch.stack(numbers))[0, 1])) < .3


def test_threads_that_make_networks_do_not_disturb_each_other():
    network = strangers.drawn[3]
    expected = held(init.fn(network, 0))
    made = []
    def make():
        for _ in range(20): made.append(held(init.fn(network, 0)))
    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert all(identical(one, expected) for one in made)


def as_before(network, seed):
    "The draws of the papers' networks, as they were published."
    module = network.build()
    generator = torch.Generator().manual_seed(seed)
    stds = nets.init_std(module, network.init)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, layer in module.named_modules():
            if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)):
                std = stds[f'{name}.weight']
                if network.init == 'pytorch': layer.reset_parameters()
                elif 'uniform' in network.init:
                    layer.weight.uniform_(-std*3**.5, std*3**.5, generator=generator)
                else: layer.weight.normal_(0, std, generator=generator)
                if network.init != 'pytorch' and layer.bias is not None: layer.bias.zero_()
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.reset_parameters()
                if network.bn_init == 'uniform': layer.weight.uniform_(0, 1, generator=generator)
    return module.state_dict()

HOW = [dict(), dict(init='glorot_uniform', bn_init='uniform'), dict(init='pytorch')]

@pytest.mark.parametrize('name', [name for name, family in nets.families.items() if not family.own])
def test_the_papers_networks_keep_their_draws(name):
    "Bit for bit, every family of them."
    if name.startswith(('imagenet', 'inception')): pytest.importorskip('torchvision')
    large = name in ('imagenet_resnet50', 'inception_v3', 'vgg19')
    for how in HOW[:1] if large else HOW:
        network = Network(name, **how)
        made = network.create(3).state_dict()
        assert identical(dict(made), dict(as_before(network, 3))), how
