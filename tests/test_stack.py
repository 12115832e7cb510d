"""Stacks: replicas that train as one network have the numbers of the loop, and the same bits in any company."""
import re
from dataclasses import replace

import pytest, torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from lth_nb import networks as nets
from lth_nb.data import mnist1d
from lth_nb.engine import Member, Replica, Stack, stack_size, unstackable
from lth_nb.engine.layers import odd_parameter, stack_agrees, unknown_layer
from lth_nb.engine.stack import TURN, fill, places_in, run_all, stack_key
from lth_nb.engine.weights import ALIGN
from lth_nb.experiment import Fleet, Store, compute
from lth_nb.experiment.company import Company, beside_each, parts, units
from lth_nb.pruning import prune
from lth_nb.running import ticks
from lth_nb.training import Recipe, evaluate, init, train
from helpers import (ADAM, SGD, EagerStream, assert_close, conv, far, identical, mlp, plain_loop, plus_zero,
                     random_mask, same, toy)

EXACT_SGD, EXACT_ADAM = (replace(recipe, precision='fp64') for recipe in (SGD, ADAM))
res = nets.Network('mnist1d_res', width=8)
PLACES = 8


def joined(stack, network, seed, recipe, order=0, first=0, mask=None, **kw):
    return Member(stack, init.fn(network, seed), recipe, order, first, mask, **kw)

def stack_of(network, recipe, size=PLACES): return Stack(network, toy, recipe, size)


# ------------------------------------------------------------------ the same numbers as the loop, in float64

EXACT = [(conv, EXACT_SGD), (res, EXACT_SGD), (mlp, EXACT_ADAM), (conv, EXACT_ADAM)]

@pytest.mark.parametrize('masked', (False, True))
@pytest.mark.parametrize('network, recipe', EXACT, ids=['conv-sgd', 'res-sgd', 'mlp-adam', 'conv-adam'])
def test_a_stack_is_the_plain_loop(network, recipe, masked):
    "Warmup, milestones, weight decay, masks, each replica with its own order: after 40 steps, state and averages."
    stack = stack_of(network, recipe)
    masks = [random_mask(network, seed) if masked and seed else None for seed in range(3)]
    members = [joined(stack, network, 0, recipe, order=seed, mask=masks[seed]) for seed in range(3)]
    run_all(members, 40)
    for seed, member in enumerate(members):
        batches = toy.load().batches(recipe.batch, seed, dtype=torch.float64)
        net, averages = plain_loop(network, batches, recipe, 40, masks[seed])
        state = member.state()
        for name,p in net.named_parameters(): assert_close(state['weights'][name], p.detach(), name)
        for name,b in net.named_buffers(): assert_close(state['buffers'][name].double(), b.double(), name)
        for kind,slot in state['slots'].items():
            for name,average in slot.items(): assert_close(average, averages[name][kind], f'{kind} of {name}')
        if masks[seed]:
            tensors = (state['weights'], *state['slots'].values())
            assert all(plus_zero(t[name][~m]) for t in tensors for name,m in masks[seed].items())


@pytest.mark.parametrize('name', ['resnet8', 'resnet18', 'vgg11', 'mobilenet_v1', 'mobilenet_v2', 'wrn_16_8',
                                  'lenet_300_100', 'mnist1d_mlp', 'mnist1d_conv', 'mnist1d_res'])
@pytest.mark.parametrize('residual', (True, False))
def test_every_family_stacks(name, residual):
    family = nets.families[name]
    if not residual and not family.residual: pytest.skip('it has no residual connections')
    assert unstackable(replace(nets.Network(name, width=2 if name != 'wrn_16_8' else 4), residual=residual)) is None


def test_replicas_of_other_lengths_rates_and_steps_share_a_stack():
    "One enters in the middle, one leaves, the next takes its place; each ends where the loop ends."
    stack = stack_of(conv, EXACT_SGD, 4)
    slow, long = replace(EXACT_SGD, lr=.01, milestones=()), replace(EXACT_SGD, steps=90, milestones=(45,))
    early = Replica(init.fn(conv, 3), toy, long, 3, 0)
    early.run(30)
    first = [joined(stack, conv, 0, EXACT_SGD), joined(stack, conv, 1, slow, order=1),
             Member(stack, early.state(), long, 3, 30, None)]
    run_all(first, 25)
    gone = first[0].state()
    first[0].close()
    late = joined(stack, conv, 5, slow, order=5)
    assert late.place == 0
    run_all([late, *first[1:]], 30)
    alone = [Replica(init.fn(conv, seed), toy, recipe, order, 0) for seed,recipe,order in
             ((0, EXACT_SGD, 0), (1, slow, 1), (3, long, 3), (5, slow, 5))]
    for rep, until in zip(alone, (25, 55, 85, 30)): rep.run(until)
    for state, rep in zip([gone, *(m.state() for m in (first[1], first[2], late))], alone):
        for name,w in rep.state()['weights'].items(): assert_close(state['weights'][name], w, name)
        assert state['step'] == rep.step


# ------------------------------------------------------------------ the same bits in any company, in float32

SINGLE = [(conv, SGD), (res, SGD), (mlp, ADAM), (conv, replace(SGD, precision='bf16'))]

@pytest.mark.parametrize('network, recipe', SINGLE, ids=['conv', 'res', 'mlp-adam', 'conv-bf16'])
def test_the_same_bits_in_any_company(network, recipe):
    "Among strangers, among copies of itself, at another place, alone, stopped and gone on with."
    def company(others, place, mask=None):
        stack = stack_of(network, recipe)
        members = [joined(stack, network, seed, recipe, order=seed, mask=mask) for seed in others[:place]]
        me = joined(stack, network, 7, recipe, order=7)
        assert me.place == place
        members += [me, *(joined(stack, network, seed, recipe, order=seed) for seed in others[place:])]
        return stack, members, me
    stack, members, me = company([11, 12, 13, 14, 15, 16, 17], 3)
    run_all(members, 45)
    known = me.state()
    for others, place, mask in (([7]*7, 3, None), ([21, 22, 23, 24, 25], 5, random_mask(network)), ([], 0, None)):
        stack, members, me = company(others, place, mask)
        run_all(members, 45)
        assert same(me.state(), known), (others, place)
    stack, members, me = company([31, 32], 1)
    run_all(members, 17)
    other = stack_of(network, recipe)
    stranger = joined(other, network, 40, recipe)
    again = Member(other, me.state(), recipe, 7, 17)
    run_all([stranger, again], 28)
    assert same(again.state(), known), 'gone on with in another stack'


def test_one_that_diverges_leaves_the_others_alone():
    stack = stack_of(mlp, SGD)
    run_all([joined(stack, mlp, seed, SGD, order=seed) for seed in range(2)], 40)
    known = stack.members[0].state()
    stack = stack_of(mlp, SGD)
    wild = joined(stack, mlp, 1, replace(SGD, lr=1e6), order=1)
    calm = joined(stack, mlp, 0, SGD)
    with pytest.warns(UserWarning, match='diverged: the loss of step'): run_all([wild, calm], 40)
    assert same(calm.state(), known)
    state = wild.state()
    assert state['diverged'] == wild.diverged < 40 and state['step'] == 40
    assert all(w.isnan().all() for w in state['weights'].values())


def test_a_mask_that_comes_late_changes_no_bit_of_others():
    "On a CPU the masks' bits are made when the first mask comes."
    stack = stack_of(conv, SGD)
    run_all([joined(stack, conv, 0, SGD)], 30)
    known = stack.members[0].state()
    stack = stack_of(conv, SGD)
    first = joined(stack, conv, 0, SGD)
    run_all([first], 10)
    masked = joined(stack, conv, 1, SGD, mask=random_mask(conv))
    run_all([first, masked], 20)
    assert same(first.state(), known)


@pytest.mark.parametrize('precision', ('fp32', 'bf16', 'fp64'))
def test_every_tensor_of_a_stack_begins_at_64_bytes(precision, images):
    stack = Stack(nets.resnet8, images[1], Recipe(1, batch=4, precision=precision), 3)
    weights = stack.weights
    rows = [t[k] for t in (weights.vector, weights.grad, *stack.slots.values()) for k in range(3)]
    at = [row[start:] for row in rows for start,_,_ in weights.places.values()]
    for t in (*weights.params, *at): assert t.data_ptr() % 64 == 0
    assert all(start % ALIGN == 0 for start,_,_ in weights.places.values())


NARROW = nets.resnet8, nets.Network('mobilenet_v2', width=4), nets.Network('vgg11', width=4)

@pytest.mark.parametrize('network', NARROW, ids=lambda n: n.name)
def test_images_with_crops(network, images):
    "Colour images, channels_last, cropped: in float64 the loop's numbers."
    recipe = Recipe(8, batch=8, lr=.05, augment=True, precision='fp64', weight_decay=1e-3)
    stack = Stack(network, images[1], recipe, 3)
    members = [joined(stack, network, seed, recipe, order=seed) for seed in range(2)]
    run_all(members, 3)
    for seed, member in enumerate(members):
        rep = Replica(init.fn(network, seed), images[1], recipe, seed, 0)
        rep.run(3)
        for name,w in rep.state()['weights'].items(): assert far(member.state()['weights'][name], w) < 1e-9, name


# ------------------------------------------------------------------ what cannot be stacked

def test_what_cannot_be_stacked_is_named():
    class Mine(nn.Module): forward = None
    assert unknown_layer(nn.Sequential(nn.Flatten(), nn.Linear(40, 10), nn.Dropout(.5))) == '2 (Dropout)'
    assert 'Mine' in unknown_layer(nn.Sequential(Mine()))
    frozen = nn.Sequential(nn.Flatten(), nn.Linear(40, 10))
    frozen[1].bias.requires_grad_(False)
    assert odd_parameter(frozen) == '1.bias (frozen)'
    hooked = nn.Sequential(nn.Flatten(), nn.Linear(40, 10))
    hooked[1].register_forward_hook(lambda *_: None)
    assert 'hooks' in unknown_layer(hooked)
    statistics = nn.Sequential(nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4, track_running_stats=False))
    assert 'BatchNorm' in unknown_layer(statistics)


def test_known_layers_in_an_unknown_order_are_found_by_trial():
    "BatchNorm behind a linear layer would mix replicas up: each of its layers is known."
    def build(width, classes, residual):
        return nn.Sequential(nn.Flatten(), nn.Linear(40, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10))
    network = nets.register('stack_norm_behind_linear', build, (1, 40))
    assert unknown_layer(build(None, 10, True)) is None
    assert not stack_agrees(network)
    assert unstackable(network) == 'its layers, stacked, compute something else'
    with pytest.raises(ValueError, match='compute something else'): Stack(network, toy, SGD, 4)


def test_a_strangers_plain_network_is_stacked(tmp_path):
    def build(width, classes, residual):
        return nn.Sequential(nn.Conv1d(1, 6, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(114, 10))
    network = nets.register('stack_plain', build, (1, 40))
    runs = [train(init(network, seed=seed), toy, replace(SGD, steps=12), order=seed) for seed in range(6)]
    states = compute([run.at('end') for run in runs], store=Store(tmp_path), workers=1, quiet=True)
    assert {state['engine'] for state in states} == {'stack of 16'}


def test_a_state_of_another_network_is_refused():
    stack = stack_of(conv, SGD)
    with pytest.raises(ValueError, match='does not fit'): Member(stack, init.fn(mlp, 0), SGD, 0, 0)
    assert stack.members == [None]*PLACES


# ------------------------------------------------------------------ through compute

def grid(steps=30):
    recipe = replace(SGD, steps=steps)
    return [train(init(conv, seed=seed), toy, recipe, order=seed) for seed in range(7)]

def test_compute_stacks_and_says_so(tmp_path):
    "In one process and over two, with refilled places; the record says which engine, the loop's bits are others."
    store = {name: Store(tmp_path/name) for name in ('one', 'two', 'loop')}
    runs = grid()
    wanted = [run.at('end') for run in runs]
    one = compute(wanted, store=store['one'], workers=1, quiet=True)
    two = compute(wanted, store=store['two'], workers=2, quiet=True)
    assert identical(one, two)
    assert {state['engine'] for state in one} == {'stack of 16'}
    assert store['one'].record(wanted[0].path)['made']['engine'] == 'stack of 16'
    alone = compute(wanted[0], store=store['loop'], workers=1, quiet=True)
    assert alone['engine'] == 'loop' and not identical(alone['weights'], one[0]['weights'])


def test_a_few_take_the_loop(tmp_path):
    states = compute([run.at('end') for run in grid()[:5]], store=Store(tmp_path), workers=1, quiet=True)
    assert {state['engine'] for state in states} == {'loop'}


def test_the_setting_stack(tmp_path, monkeypatch):
    monkeypatch.setenv('LTH_NB_STACK', '0')
    states = compute([run.at('end') for run in grid()], store=Store(tmp_path/'0'), workers=1, quiet=True)
    assert {state['engine'] for state in states} == {'loop'}
    monkeypatch.setenv('LTH_NB_STACK', '4')
    states = compute([run.at('end') for run in grid()], store=Store(tmp_path/'4'), workers=1, quiet=True)
    assert [state['engine'] for state in states] == ['stack of 4']*7, 'four, then three in the places they left'
    monkeypatch.setenv('LTH_NB_STACK', 'many')
    with pytest.raises(ValueError, match="stack='many': use auto, 0"): compute(grid()[0].at(3), store=Store(tmp_path))


def test_what_goes_on_goes_on_with_its_engine(tmp_path):
    "A fork, the rest of a run, a state asked for later, a rewound ticket: each alone, and in the stack it came from."
    store = Store(tmp_path)
    runs = grid()
    ends = compute([run.at(when) for run in runs for when in (10, 'end')], store=store, workers=1, quiet=True)
    middle = compute(runs[2].at(20), store=store, workers=1, quiet=True)
    assert middle['engine'] == 'stack of 16'
    fork = train(runs[2].at(10), toy, replace(SGD, steps=30), order=2).at('end')
    forked = compute(fork, store=store, workers=1, quiet=True)
    assert forked['engine'] == 'stack of 16' and same(forked, ends[5]), 'the same order: the same run'
    mask = prune(runs[2].at('end'), fraction=.5)
    ticket = train(runs[2].at(10), toy, replace(SGD, steps=30), order=2, mask=mask)
    assert compute(ticket.at('end'), store=store, workers=1, quiet=True)['engine'] == 'stack of 16'


def test_asked_for_an_earlier_step_it_takes_the_engine_of_the_later(tmp_path):
    store = Store(tmp_path)
    runs = grid()
    ends = compute([run.at('end') for run in runs], store=store, workers=1, quiet=True)
    early = compute(runs[3].at(10), store=store, workers=1, quiet=True)
    assert early['engine'] == 'stack of 16'
    rest = train(runs[3].at(10), toy, replace(SGD, steps=30), order=3).at('end')
    assert same(compute(rest, store=store, workers=1, quiet=True), ends[3])


def test_what_the_loop_made_stays_with_the_loop(tmp_path):
    "States without a word about their engine are older than stacks."
    store = Store(tmp_path)
    run = grid()[0]
    old = compute(run.at(10), store=store, workers=1, quiet=True)
    record = store.record(run.at(10).path)
    assert record['made']['engine'] == 'loop'
    forks = [train(run.at(10), toy, replace(SGD, steps=30), order=order).at('end') for order in range(8)]
    assert {state['engine'] for state in compute(forks, store=store, workers=1, quiet=True)} == {'loop'}
    del old['engine']
    silent = Store(tmp_path/'silent')
    silent.write(run.at(10).path, old, **{k: v for k,v in record.items() if k not in ('value', 'tensors', 'format')})
    made = silent.record(run.at(10).path)['made']
    assert made.pop('engine')
    again = compute(forks[:7], store=silent, workers=1, quiet=True)
    assert {state['engine'] for state in again} == {'loop'}


def test_watches_in_a_stack(tmp_path):
    "Measurements on the way are those of the states on the way."
    runs = grid()
    seen = [run.watch([5, 30], evaluate, data=toy) for run in runs]
    states = [run.at(when) for run in runs for when in (5, 30)]
    seen, states = compute([seen, states], store=Store(tmp_path), workers=1, quiet=True)
    assert [value for two in seen for value in two] == [evaluate.fn(state, toy) for state in states]


def test_a_call_that_fails_takes_nobody_along(tmp_path):
    "One of seven has a start that does not fit its mask; six are stored."
    runs = grid()
    wrong = train(init(conv, seed=9), toy, replace(SGD, steps=30), mask=prune(init(mlp, seed=0), fraction=.5))
    store = Store(tmp_path)
    with pytest.raises(RuntimeError, match='the mask of 1.weight has shape'):
        compute([wrong.at('end'), *(run.at('end') for run in runs)], store=store, workers=1, quiet=True)
    assert all(store.has(run.at('end').path) for run in runs)


def test_stopped_by_time_and_gone_on_with(tmp_path):
    "No time, then all of it: the bits of an uninterrupted run."
    wanted = [run.at('end') for run in grid(steps=400)]
    known = compute(wanted, store=Store(tmp_path/'whole'), workers=1, quiet=True)
    store = Store(tmp_path/'parts')
    for _ in range(60):
        got = compute(wanted, store=store, workers=1, minutes=.01, quiet=True)
        if None not in got: break
    assert identical(got, known)


# ------------------------------------------------------------------ which calls run together

def test_parts():
    few = Company('x', 8)
    assert parts(list(range(20)), few, workers=1, timed=False) == [tuple(range(20))]
    assert parts(list(range(20)), few, workers=2, timed=False) == [tuple(range(10)), tuple(range(10, 20))]
    assert parts(list(range(10)), few, workers=1, timed=True) == [tuple(range(8)), (8, 9)]
    assert [n for n in range(9) if few.worth_it(n)] == [3, 4, 5, 6, 7, 8]

def test_units_keep_the_order():
    a, b = Company('a', 4), Company('b', 4)
    found = units(dict(p=a, q=None, r=b, s=a, t=b), dict(p=1, q=1, r=2, s=3, t=2).get, 1, False)
    assert found == [('s', 'p'), 'q', ('r', 't')]

def test_the_whole_plan_decides_what_runs_together():
    "By network and depth, whatever is there; what comes from training has no choice."
    runs = grid()
    alone = train(init(res, seed=0), toy, SGD)
    masks = [prune(run.at('end')) for run in runs[:2]]
    tickets = [train(init(conv, seed=seed), toy, replace(SGD, steps=30), mask=mask) for seed,mask in enumerate(masks)]
    fork = train(runs[0].at(10), toy, replace(SGD, steps=30))
    counts = beside_each([run.at('end') for run in (*runs, alone, *tickets, fork)], 'cpu')
    assert [counts[run.node.call] for run in (runs[0], alone, tickets[1])] == [7, 1, 2]
    assert fork.node.call not in counts


def test_a_disturbed_plan_ends_in_the_same_bits(tmp_path):
    "Five of seven are there already: the last two do not take the loop because they are few."
    wanted = [run.at('end') for run in grid()]
    known = compute(wanted, store=Store(tmp_path/'whole'), workers=1, quiet=True)
    disturbed = Store(tmp_path/'disturbed')
    compute(wanted, store=disturbed, workers=1, quiet=True)
    for node in wanted[5:]: disturbed.remove(node.path)
    assert identical(compute(wanted, store=disturbed, workers=1, quiet=True), known)


def test_who_shares_a_stack():
    "Other initialisations, schedules, masks and lengths do; other batches, momenta, precisions and data do not."
    key = stack_key(conv, toy, SGD)
    short = replace(SGD, lr=1., steps=7, warmup=0, milestones=())
    assert key == stack_key(replace(conv, init='glorot_normal'), toy, short)
    for changed in (dict(batch=16), dict(momentum=.8), dict(weight_decay=0.), dict(precision='bf16')):
        assert stack_key(conv, toy, replace(SGD, **changed)) != key
    assert stack_key(conv, mnist1d(train=128), SGD) != key and stack_key(res, toy, SGD) != key


def test_sizes(images):
    assert stack_size(conv, toy) == 16 and stack_size(conv, toy, 'cuda') == 8
    assert stack_size(nets.resnet8, images[1]) == 8 and stack_size(nets.lenet_300_100, images[0]) == 0
    assert places_in('loop') == 0 and places_in('stack of 16') == 16


# ------------------------------------------------------------------ what a step costs

def operations(size, network=conv, recipe=SGD):
    "Operations of a step by name, as PyTorch counts them."
    stack = Stack(network, toy, recipe, size)
    members = [joined(stack, network, seed, recipe) for seed in range(min(size, 3))]
    run_all(members, 2)
    fill(stack, 4)
    with profile(activities=[ProfilerActivity.CPU]) as seen: stack.step()
    return {event.key: event.count for event in seen.key_averages() if event.key.startswith('aten::')}

def test_a_step_has_as_many_operations_whatever_its_size():
    "So a GPU launches as many kernels for eight replicas as for two. (Copies of weights are gathered there, in one.)"
    few, many = operations(2), operations(16)
    assert few == many
    assert few['aten::convolution'] == 3


# ------------------------------------------------------------------ the stream of a GPU, steps run instead of recorded

@pytest.mark.parametrize('network, recipe', SINGLE, ids=['conv', 'res', 'mlp-adam', 'conv-bf16'])
def test_recorded_steps_are_the_same(network, recipe):
    "Warming up and recording leave no trace, in weights, averages, statistics, counts and losses."
    members = {}
    for stream in (None, EagerStream('a')):
        stack = stack_of(network, recipe)
        if stream: stack.stream = stream
        members[stream] = [joined(stack, network, seed, recipe, order=seed) for seed in range(2)]
        run_all(members[stream], 35)
    for plain, recorded in zip(*members.values()): assert same(plain.state(), recorded.state())
    assert len(stream.sent) == (35 if len(stack.weights.params) > 12 else 8), 'ten steps a call where they are small'


def test_two_stacks_have_turns():
    "Neither is sent more than two turns before the other has had its own."
    sent = []
    stacks = [stack_of(res, SGD) for _ in range(2)]
    for name, stack in zip('ab', stacks): stack.stream = EagerStream(name, sent)
    members = [joined(stack, res, seed, SGD) for stack in stacks for seed in range(2)]
    run_all(members, 60)
    order = ''.join(sent)
    assert order.count('a') == order.count('b') == 60
    assert max(map(len, re.findall('a+|b+', order))) <= 2*TURN
    assert not any(stack.stream.waits for stack in stacks), 'nobody waits inside one while another has nothing to do'


def test_what_a_failed_step_breaks_stays_broken():
    "Half a step is no step: everyone in the stack is told, and goes back to a checkpoint."
    stack = stack_of(conv, SGD)
    members = [joined(stack, conv, seed, SGD) for seed in range(2)]
    run_all(members, 3)
    stack.calls = {1: lambda: 1/0}
    with pytest.raises(ZeroDivisionError): run_all(members, 3)
    for member in members:
        with pytest.raises(ZeroDivisionError): member.pump(10)
        with pytest.raises(ZeroDivisionError): member.state()


# ------------------------------------------------------------------ on a GPU

@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('network', (nets.resnet20, nets.lenet_300_100, nets.vgg11), ids=lambda n: n.name)
@pytest.mark.parametrize('precision', ('bf16', 'fp32', 'tf32'))
def test_cuda_the_same_bits_in_any_company(network, precision, images):
    "Slot 3 among strangers, among copies of itself, another place, alone."
    colours = network.input[0] == 3
    recipe = Recipe(60, batch=8, lr=.05, augment=colours, precision=precision)
    def state(others, place):
        stack = Stack(network, images[int(colours)], recipe, 8, 'cuda')
        members = [joined(stack, network, seed, recipe, order=seed) for seed in others[:place]]
        me = joined(stack, network, 7, recipe, order=7)
        run_all([*members, me, *(joined(stack, network, seed, recipe, order=seed) for seed in others[place:])], 40)
        return me.state()
    known = state([11, 12, 13, 14, 15, 16, 17], 3)
    for others, place in (([7]*7, 3), ([21, 22, 23, 24, 25], 5), ([], 0)): assert same(state(others, place), known)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('network', (nets.resnet8, nets.mobilenet_v2, conv, mlp), ids=lambda n: n.name)
def test_cuda_a_stack_is_the_loop(network, images):
    "In float64, recorded, with masks and crops: a replica of a stack, and the same replica on a CPU."
    data = images[1] if len(network.input) == 3 else toy
    recipe = Recipe(20, batch=8, lr=.05, augment=data is not toy, precision='fp64', weight_decay=1e-3)
    stack = Stack(network, data, recipe, 8, 'cuda')
    members = [joined(stack, network, seed, recipe, order=seed, mask=random_mask(network)) for seed in range(3)]
    run_all(members, 5)
    alone = Replica(init.fn(network, 1), data, recipe, 1, 0, random_mask(network))
    alone.run(5)
    for name,w in alone.state()['weights'].items(): assert far(members[1].state()['weights'][name], w) < 1e-8, name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_cuda_through_compute(images, tmp_path):
    "Sixteen in two stacks; another nine; a fork: the same bits."
    recipe = Recipe(230, batch=8, lr=.05, augment=True, precision='bf16')
    runs = [train(init(nets.resnet20, seed=seed), images[1], recipe, order=seed) for seed in range(24)]
    def states(runs, folder, **kw):
        wanted = [run.at(when) for run in runs for when in (120, 'end')]
        return compute(wanted, store=Store(tmp_path/folder), device='cuda', quiet=True, **kw)
    many = states(runs[:16], 'many')
    few = states([*runs[16:], runs[5]], 'few')
    assert {state['engine'] for state in many} == {'stack of 8'}
    assert identical(many[10:12], few[-2:])
    fork = train(runs[5].at(120), images[1], recipe, order=5).at('end')
    forked = compute(fork, store=Store(tmp_path/'many'), device='cuda', quiet=True)
    assert same(forked, many[11], ('weights', 'buffers'))


# ------------------------------------------------------------------ within a limit of time

def test_a_limit_of_time_ends_whole_stacks(tmp_path, capsys, monkeypatch):
    "A replica-step takes 10 ms: twelve trainings of 300 steps in stacks of four, time for ten. Eight end."
    monkeypatch.setenv('LTH_NB_STACK', '4')
    recipe = replace(SGD, steps=300)
    wanted = [train(init(conv, seed=seed), toy, recipe, order=seed).at('end') for seed in range(12)]
    store = Store(tmp_path)
    def clock(): return ticks()/100
    def found(trainings):
        fleet = Fleet(16, device='cpu', clock=clock)
        states = compute(wanted, store=store, executor=fleet, minutes=trainings*300/100/60)
        return sum(state is not None for state in states)
    assert found(10) == 8
    assert 'stopped with 4 trajectories at' in capsys.readouterr().out
    assert found(12) == 12


def test_a_line_says_why_a_network_trains_alone(tmp_path, capsys):
    "Once, and only where there are enough of them for a stack; what is wrong with data is said by the call itself."
    def build(width, classes, residual): return nn.Sequential(nn.Flatten(), nn.Dropout(.1), nn.Linear(40, classes))
    network = nets.register('stack_dropout', build, (1, 40))
    runs = [train(init(network, seed=seed), toy, replace(SGD, steps=3), order=seed).at('end') for seed in range(7)]
    compute(runs[:2], store=Store(tmp_path/'few'), workers=1, quiet=True)
    assert 'stack_dropout' not in capsys.readouterr().out
    for name in ('many', 'more'):
        states = compute(runs, store=Store(tmp_path/name), workers=1, quiet=True)
        assert {state['engine'] for state in states} == {'loop'}
    assert capsys.readouterr().out.count('stack_dropout trains one by one: 1 (Dropout) cannot be stacked') == 1
