"Networks of one's own with what the papers' networks do not have: no wrong number in silence."
import random, threading
from dataclasses import replace

import numpy as np, pytest, strangers, torch
from lth_nb import networks as nets
from lth_nb.chance import drawn_from, seed_of
from lth_nb.engine import Probe, Replica, draws_in_training, module_of, reestimate
from lth_nb.experiment import ComputeError, Fleet, Store, compute
from lth_nb.measures.curvature import Hessian, spectrum
from lth_nb.networks import Network
from lth_nb.pruning import density, kept, magnitude_mask, prunable_weights
from lth_nb.training import evaluate, init, instability, line, train
from torch import nn
from helpers import (ADAM, SGD, assert_close, identical, plain_loop, plus_zero, pruned_places, random_mask, same,
                     toy)

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


# ------------------------------------------------------------------ chance in training

SHORT = replace(SGD, steps=130)

def trained(network, order=0, recipe=SHORT, until=None, chance=0):
    "A state, while the global generators stand anywhere."
    other_chance(chance)
    rep = Replica(init.fn(network, 0), toy, recipe, order, 0)
    rep.run(until or recipe.steps)
    return rep.state()

@pytest.mark.parametrize('network', **by_name(list(strangers.drawing)))
def test_noise_is_a_function_of_order_and_step(network):
    "Whatever the global generators stand at; stopped and forked the same; another order has other noise."
    assert draws_in_training(network) == strangers.drawing[network]
    whole = trained(network)
    expected = torch.rand(1), np.random.rand(), random.random()   # noqa: NPY002
    assert same(whole, trained(network, chance=1))
    other_chance(0)
    assert (torch.rand(1), np.random.rand(), random.random()) == expected, 'no generator is moved'   # noqa: NPY002
    fork = Replica(trained(network, until=47, chance=2), toy, SHORT, 0, 47)
    fork.run(130)
    assert same(fork.state(), whole)


def test_each_step_and_each_order_has_its_noise():
    "Of one dropout: its masks in the first steps."
    network = next(iter(strangers.drawing))
    def masks(order):
        rep = Replica(init.fn(network, 0), toy, SHORT, order, 0)
        seen = []
        rep.model.net[3].register_forward_hook(lambda module, given, gave: seen.append(given[0].bool() & ~gave.bool()))
        rep.run(3)
        return seen
    all_of_them = [mask for order in (0, 1) for mask in masks(order)]
    assert not any(torch.equal(a, b) for i, a in enumerate(all_of_them) for b in all_of_them[:i])
    assert all(.1 < mask.float().mean() < .4 for mask in all_of_them)


def test_dropout_replays(tmp_path):
    "The issue's case: two stores, a replay from step 100, two workers, among others in one process."
    network = next(iter(strangers.drawing))
    run = train(init(network, seed=0), toy, SHORT, order=3)
    again = train(run.at(100), toy, SHORT, order=3)
    wanted = [run.at('end'), again.at('end'), line(run.at('end'), again.at('end'), toy, alphas=5),
              *[train(init(network, seed=seed), toy, SHORT, order=seed).at('end') for seed in (1, 2)]]
    other_chance(1)
    one = compute(wanted, store=Store(tmp_path/'one'), workers=1, quiet=True)
    other_chance(2)
    two = compute(wanted, store=Store(tmp_path/'two'), workers=2, quiet=True)
    many = compute(wanted, store=Store(tmp_path/'many'), executor=Fleet(8), quiet=True)
    assert identical(one, two)
    assert identical(one, many)
    assert one[2]['distance'] == instability(one[2]) == 0
    assert not same(one[0], one[3], ('weights',))


def test_dropout_is_pytorchs():
    "The plain loop, its generator started from the same seeds."
    network = next(iter(strangers.drawing))
    recipe = replace(SGD, precision='fp64')
    net = network.create(0).double().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1., momentum=.9, weight_decay=SGD.weight_decay)
    for step in range(20):
        x, y = toy.load().batches(32, 5, dtype=torch.float64)[step]
        optimizer.param_groups[0]['lr'] = SGD.lr*min(1, step/SGD.warmup)
        optimizer.zero_grad()
        with drawn_from(seed_of('noise', 5, step)): torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    got = trained(network, order=5, recipe=recipe, until=20)['weights']
    for name, p in net.named_parameters(): assert (got[name] - p.detach()).abs().max() < 1e-6, name


def test_who_draws_takes_plain_steps():
    "Also where driven ones are asked for; who does not draw is driven, and pays nothing."
    for network in (next(iter(strangers.drawing)), nets.mnist1d_conv):
        rep = Replica(init.fn(network, 0), toy, SHORT, 0, 0, driven=True)
        assert rep.driven == (rep.draws is None) == (network is nets.mnist1d_conv)
    assert draws_in_training(nets.inception_v3) == 'dropout (Dropout)'
    own = [network for network in nets.families if not nets.families[network].own and network != 'inception_v3']
    assert all(draws_in_training(Network(name)) is None for name in own)
    assert draws_in_training(strangers.drawn[0]) is None


def test_evaluation_and_reestimation_draw_nothing():
    network = list(strangers.drawing)[-1]
    state = trained(network)
    found = []
    for chance in (1, 2):
        other_chance(chance)
        probe_line = line.fn(state, init.fn(network, 0), toy, alphas=3, batchnorm='reestimated')
        found.append((evaluate.fn(state, toy), probe_line))
    assert found[0] == found[1]
    net = network.create(0).eval()
    reestimate(net, toy.load())
    assert not net.training and not any(m.training for m in net.modules())


@pytest.mark.parametrize('network', **by_name(list(strangers.refused)))
def test_what_cannot_be_exact_is_refused(network, tmp_path):
    "Before a step is taken, and by name."
    node = train(init(network, seed=0), toy, SHORT).at('end')
    with pytest.raises(ComputeError, match=strangers.refused[network]) as said:
        compute(node, store=Store(tmp_path), workers=1, quiet=True)
    assert network.name in str(said.value)


# ------------------------------------------------------------------ odd parameters

RECIPES = {name: replace(recipe, precision='fp64', weight_decay=.05) for name, recipe in (('sgd', SGD), ('adam', ADAM))}

@pytest.mark.parametrize('masked', (False, True), ids=('dense', 'masked'))
@pytest.mark.parametrize('optimizer', RECIPES)
@pytest.mark.parametrize('network', **by_name(strangers.odd))
def test_odd_parameters_are_trained_as_pytorch_does(network, optimizer, masked):
    "A plain loop with torch.optim, in float64: weights, averages, statistics. What has no gradient stays."
    recipe = RECIPES[optimizer]
    if (network.name, optimizer) == ('unused', 'adam'): pytest.skip('Adam counts steps of the network, not of a layer')
    mask = random_mask(network) if masked else None
    net, slots = plain_loop(network, toy.load().batches(32, 5, dtype=torch.float64), recipe, 12, mask)
    start = init.fn(network, 0)
    rep = Replica(start, toy, recipe, 5, 0, mask=mask)
    for until in (5, 12): rep.run(until)
    got = rep.state()
    assert got['weights'].keys() == dict(net.named_parameters()).keys() == start['weights'].keys()
    assert got['buffers'].keys() == dict(net.named_buffers()).keys() == start['buffers'].keys()
    for name, p in net.named_parameters():
        if not p.numel(): continue
        assert_close(got['weights'][name], p.data, name)
        for slot, found in got['slots'].items():
            if slot in slots[name]: assert_close(found[name], slots[name][slot], f'{slot} of {name}')
            else: assert not found[name].any(), f'{name} never had a gradient'
        if not slots[name] and not masked:
            assert torch.equal(got['weights'][name], start['weights'][name].double()), f'{name} stays'
    for name, b in net.named_buffers(): assert_close(got['buffers'][name].double(), b.double(), name)
    if masked: assert plus_zero(pruned_places(got, mask))


@pytest.mark.parametrize('network', **by_name([*strangers.drawn, *strangers.odd]))
def test_odd_parameters_go_everywhere(network, tmp_path):
    "Trained, stored, measured, pruned and trained again; two workers and one process."
    w0 = init(network, seed=0)
    run = train(w0, toy, SHORT)
    again = train(run.at(30), toy, SHORT).at('end')
    wanted = [run.at('end'), again, evaluate(run.at('end'), toy), line(run.at('end'), again, toy, alphas=3)]
    one = compute(wanted, store=Store(tmp_path/'one'), workers=1, quiet=True)
    two = compute(wanted, store=Store(tmp_path/'two'), workers=2, quiet=True)
    assert identical(one, two)
    assert same(one[0], one[1], ('weights', 'buffers'))
    assert one[3]['distance'] == 0
    test = toy.load().test
    with torch.no_grad(): wrong = int((module_of(one[0]).eval()(test.x).argmax(1) != test.y).sum())
    if network.name != 'without_statistics': assert one[2]['test']['error'] == pytest.approx(100*wrong/len(test.y))
    weights = prunable_weights(one[0])
    mask = magnitude_mask(weights, .5)
    assert kept(mask) == sum(w.numel() for w in weights.values()) - round(.5*sum(w.numel() for w in weights.values()))
    ticket = Replica(init.fn(network, 0), toy, SHORT, 0, 0, mask=mask)
    ticket.run(5)
    assert plus_zero(pruned_places(ticket.state(), mask))
    assert density(mask) == pytest.approx(.5, abs=.01)


@pytest.mark.parametrize('network', **by_name(list(strangers.refused_at_init)))
def test_parameters_that_are_refused(network):
    said = f'^{network.name}: .*{strangers.refused_at_init[network]}'
    with pytest.raises(ValueError, match=said): init.fn(network, 0)


def by_differences(net, names, batch, v):
    "A product with the Hessian, from two gradients of a module."
    parameters = [net.get_parameter(name) for name in names]
    parts = [part.view_as(p) for part, p in zip(v.split([p.numel() for p in parameters]), parameters)]
    def gradient(step):
        with torch.no_grad():
            for p, part in zip(parameters, parts): p += step*part
        loss = torch.nn.functional.cross_entropy(net(batch[0]), batch[1])
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    ahead = gradient(1e-6)
    return (ahead - gradient(-2e-6))/2e-6

@pytest.mark.parametrize('name', ('frozen_ends', 'unused', 'tied', 'tied_tokens', 'scalars', 'orthogonal', 'tokens'))
def test_curvature_is_that_of_what_is_trained(name):
    "Frozen parameters and those that the loss does not depend on are no variables; shared ones are one."
    H = Hessian(init.fn(Network(name), 0), toy, examples=64, batchnorm='running', dtype=torch.float64)
    net = module_of(init.fn(Network(name), 0), dtype=torch.float64).eval()
    gone = {'frozen_ends': {'2.weight', '2.bias', '6.weight', '6.bias'}, 'tokens': {'first.weight', 'first.bias'},
            'unused': {'middle.never.weight', 'middle.never.bias'}}.get(name, set())
    parameters = dict(net.named_parameters())
    assert list(H.params) == [name for name in parameters if name not in gone]
    assert H.n == sum(parameters[name].numel() for name in H.params)
    v = H.start(0)
    assert_close(H @ v, by_differences(net, H.params, H.batches[0], v), name, within=1e-6)


def test_a_wrong_second_derivative_is_refused():
    "PyTorch's of weight_norm."
    with pytest.raises(ValueError, match='not symmetric.*weight_norm'):
        spectrum.fn(init.fn(Network('weight_norm'), 0), toy, probes=1, steps=5, examples=64)
    assert spectrum.fn(init.fn(Network('spectral_norm'), 0), toy, probes=1, steps=5, examples=64)['n'] == 778


def test_whole_numbers_are_not_interpolated():
    "An order of inputs is evaluated as the state has it, and there is no line between two orders."
    network = Network('shuffled')
    states = [init.fn(network, seed) for seed in (0, 1, 0)]
    test = toy.load().test
    for state in states:
        with torch.no_grad(): wrong = int((module_of(state).eval()(test.x).argmax(1) != test.y).sum())
        assert evaluate.fn(state, toy)['test']['error'] == pytest.approx(100*wrong/len(test.y))
    with pytest.raises(ValueError, match=r'middle\.order'): line.fn(*states[:2], toy, alphas=3)
    probe = Probe(network, toy.load())
    with pytest.raises(ValueError, match=r'middle\.order'): probe.lerp(*map(probe.vector, states[:2]), .3)
    large = {**states[0], 'buffers': {'middle.order': states[0]['buffers']['middle.order'] + 2**24}}
    with pytest.raises(ValueError, match=r'2\*\*24'): probe.put(probe.vector(large))


@pytest.mark.parametrize('name,all_of_them,prunable', [
    ('tied', 1338, ['encoder.weight', 'middle.weight', 'out.weight']),
    ('tied_tokens', 622, ['read.weight', 'table.weight']), ('weight_norm', 790, ['first.weight', 'last.weight'])])
def test_a_shared_weight_is_counted_once(name, all_of_them, prunable):
    "Under the name that comes first; a weight that is computed is none."
    network = Network(name)
    assert network.prunable == tuple(prunable)
    net = network.create(0)
    assert nets.counts(network) == (all_of_them, sum(net.get_parameter(name).numel() for name in prunable))
    assert set(prunable_weights(init.fn(network, 0))) == set(prunable)
