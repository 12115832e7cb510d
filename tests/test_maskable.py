"What may be pruned is chosen, what is left out is said, and masks hold over whatever they name."
import warnings
from dataclasses import replace

import pytest, torch
from helpers import plus_zero, pruned_places, same, toy
from lth_nb.admm import admm
from lth_nb.early_phase import head_of, perturbed
from lth_nb.engine import Replica, network_of
from lth_nb.experiment import Store, compute, expression
from lth_nb.experiment.address import left_out, read_expression
from lth_nb.measures import telemetry
from lth_nb.networks import (Network, chosen, counts, described, families, mnist1d_conv, mnist1d_mlp, not_prunable,
                             prunable, register, resnet20, small_dense)
from lth_nb.pruning import (account, densities, density, imp, kept, magnitude_mask, prunable_weights, prune,
                            shuffle_mask)
from lth_nb.recipes import Recipe
from lth_nb.training import evaluate, init, line, train
from torch import nn

pytestmark = pytest.mark.usefixtures('on_cpu')
INPUT = 1, 40


class Transformer(nn.Module):
    "Attention among five pieces of a curve, at places that are learnt; the scores come from a bare matrix."
    def __init__(self, width, classes):
        super().__init__()
        self.pieces = nn.Linear(8, width)
        self.places = nn.Embedding(5, width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.scores = nn.Parameter(torch.randn(width, classes)/4)
    def forward(self, x):
        z = self.pieces(x.view(-1, 5, 8)) + self.places(torch.arange(5, device=x.device))
        return self.norm(z + self.attention(z, z, z, need_weights=False)[0]).mean(1) @ self.scores

class Tied(nn.Module):
    "A table that reads tokens and gives the scores."
    def __init__(self, classes):
        super().__init__()
        self.table = nn.Embedding(classes, 12)
        self.middle = nn.Linear(12, 12)
        self.head = nn.Linear(12, classes, bias=False)
        self.head.weight = self.table.weight
    def forward(self, x):
        tokens = (2*x.flatten(1) + 5).long().clamp(0, self.table.num_embeddings - 1)
        return self.head(torch.tanh(self.middle(self.table(tokens).mean(1))))

def transformer(width, classes, residual): return Transformer(max(2, 2*round(width/2)), classes)
def tied(width, classes, residual): return Tied(classes)
def matrices(name, parameter): return parameter.dim() > 1

LEFT_OUT = 'places.weight', 'attention.in_proj_weight', 'scores'
with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    usual = register('masked_transformer', transformer, INPUT, width=16)
every = register('masked_transformer', transformer, INPUT, width=16, prunable=matrices)
bound = register('masked_tied', tied, INPUT, prunable=matrices)
SGD = Recipe(40, batch=32, lr=.1, momentum=.9, weight_decay=1e-2)
ADAM = Recipe(40, batch=32, optimizer='adam', lr=5e-3, weight_decay=1e-2)


def said_by(call):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        call()
    return [str(warning.message) for warning in said]

def some(network, share=.5, seed=0):
    "A mask that keeps a share of every matrix."
    g = torch.Generator().manual_seed(seed)
    return {name: torch.rand(w.shape, generator=g) < share for name, w in init.fn(network, 0)['weights'].items()
            if w.dim() > 1}


# ------------------------------------------------------------------ choosing

def test_the_usual_ones():
    assert usual.prunable == ('pieces.weight', 'attention.out_proj.weight')
    assert usual.maskable is None
    assert set(not_prunable(usual)) == set(LEFT_OUT)
    assert set(every.prunable) == {*usual.prunable, *LEFT_OUT}
    assert not not_prunable(every)

@pytest.mark.parametrize('choice', (
    ('scores', 'pieces.weight'), ['pieces.weight', 'scores'], ('scores', 'pieces.weight', 'scores'),
    lambda name, parameter: name in ('scores', 'pieces.weight')))
def test_names_or_a_function(choice):
    "One choice is one network, however it is written."
    network = replace(usual, maskable=choice)
    assert network.prunable == network.maskable == ('scores', 'pieces.weight')
    assert network == replace(usual, maskable=('pieces.weight', 'scores'))
    assert register('masked_transformer', transformer, INPUT, width=16, prunable=choice) == network

def test_the_usual_choice_is_none():
    for network in (usual, resnet20, mnist1d_mlp):
        assert replace(network, maskable=network.prunable) == network
        assert replace(network, maskable=matrices) == (every if network is usual else network)

@pytest.mark.parametrize('choice,words', [
    (('attention.in_proj',), "'attention.in_proj' is no parameter; there are scores, pieces.weight"),
    (('scores', 7), '7 is no parameter'), ((), 'chooses none'), ('scores', r"a tuple of names, such as \('scores',\)"),
    (lambda name, parameter: parameter.dim() > 9, 'chooses none')])
def test_a_choice_that_is_none(choice, words):
    for choose in (lambda: replace(usual, maskable=choice), lambda: prunable_weights(init.fn(usual, 0), choice),
                   lambda: register('masked_transformer', transformer, INPUT, width=16, prunable=choice)):
        with pytest.raises(ValueError, match=words): choose()

def test_a_function_is_no_argument_of_a_step():
    with pytest.raises(TypeError, match='cannot be an argument of a step'):
        prune(init(usual, seed=0), prunable=matrices).key

# ------------------------------------------------------------------ what is left out

def test_it_is_said_once_with_names_and_shares():
    said = said_by(lambda: register('masked_transformer', transformer, INPUT, width=16))
    assert len(said) == 1
    sizes = {name: p.numel() for name, p in usual.build().named_parameters()}
    assert counts(usual)[0] == sum(sizes.values())
    for name in LEFT_OUT: assert f'{name} ({100*sizes[name]/sum(sizes.values()):.1f} %)' in said[0]
    assert f"{100*sum(sizes[name] for name in LEFT_OUT)/sum(sizes.values()):.1f} % of its weights" in said[0]
    assert 'norm' not in said[0] and 'bias' not in said[0]

def test_nothing_is_said_of_a_choice_nor_of_the_papers_networks():
    assert not said_by(lambda: register('masked_transformer', transformer, INPUT, width=16, prunable=('scores',)))
    plain = lambda width, classes, residual: nn.Sequential(nn.Flatten(), nn.Linear(40, classes))   # noqa: E731
    assert not said_by(lambda: register('masked_plain', plain, INPUT))
    assert not said_by(lambda: register('masked_broken', lambda width, classes, residual: 1/0, INPUT))
    del families['masked_broken']
    for name, family in families.items():
        if not family.own: assert not not_prunable(Network(name))

@pytest.mark.parametrize('make,left', [
    (lambda: nn.GRU(8, 8), {'weight_ih_l0', 'weight_hh_l0'}), (lambda: nn.Bilinear(8, 8, 8), {'weight'}),
    (lambda: nn.EmbeddingBag(8, 8), {'weight'}), (lambda: nn.ParameterList([torch.randn(8, 8)]), {'0'}),
    (lambda: nn.MultiheadAttention(8, 2, kdim=4), {'q_proj_weight', 'k_proj_weight', 'v_proj_weight'}),
    (lambda: nn.LayerNorm((4, 4)), {'weight', 'bias'}), (lambda: nn.BatchNorm1d(8), set()),
    (lambda: nn.ConvTranspose1d(8, 8, 3), set())])
def test_other_layers(make, left):
    "Layers of torch whose weights no mask reaches by itself."
    module = make()
    reached = prunable(module)
    assert {name for name, p in module.named_parameters() if p.dim() > 1 and name not in reached} == left
    if left: assert left <= set(chosen(module, matrices))

def test_an_account_of_what_is_left():
    "The input of issue 15: a density of .2, and half of the weights are there."
    state = init.fn(usual, 0)
    mask = magnitude_mask(prunable_weights(state), .8)
    found = account(mask, usual)
    alive = sum(w.numel() for w in state['weights'].values()) - sum(int((~m).sum()) for m in mask.values())
    assert density(mask) == found['density'] == pytest.approx(.2, abs=.002)
    assert found['left'] == alive/found['total'] > .6
    assert set(found['uncounted']) == set(LEFT_OUT)
    assert found['uncounted']['attention.in_proj_weight'] == 3*16*16
    whole = account(magnitude_mask(prunable_weights(state, matrices), .8), usual)
    assert whole['left'] < .3
    assert whole['uncounted'] == {}

# ------------------------------------------------------------------ pruning

@pytest.mark.parametrize('how', ('network', 'argument'))
def test_rounds_of_pruning(store, how):
    "Exact counts over everything that is chosen; the weights that were left out before are pruned, too."
    network = every if how == 'network' else usual
    names = None if how == 'network' else every.prunable
    start = init(network, seed=0)
    def retrain(mask, n): return train(start, toy, SGD, order=n, mask=mask).at('end')
    masks = imp(retrain, 3, fraction=.5, prunable=names)
    ends = [retrain(mask, 9) for mask in masks]
    masks, ends, table = compute([masks, ends, densities(masks[-1])], store=store, workers=1, quiet=True)
    left = counts(every)[1]
    for mask, end in zip(masks, ends):
        left -= round(.5*left)
        assert kept(mask) == left
        assert plus_zero(pruned_places(end, mask))
        assert int(sum((w != 0).sum() for name, w in end['weights'].items() if name in mask)) == left
    assert 0 < table['layers']['attention.in_proj_weight'] < 1
    assert set(table['layers']) == set(every.prunable)

@pytest.mark.parametrize('driven', (False, True))
@pytest.mark.parametrize('recipe', (SGD, ADAM), ids=('sgd', 'adam'))
@pytest.mark.parametrize('network', (usual, bound), ids=('transformer', 'tied'))
def test_masks_hold_over_any_parameter(network, recipe, driven):
    "With momentum, decay and Adam's averages, at every step; also where the network itself would not prune."
    mask = some(network)
    rep = Replica(init.fn(network, 0), toy, recipe, order=0, first=0, mask=mask, driven=driven)
    for until in (1, 2, 17, 40):
        rep.run(until)
        assert plus_zero(pruned_places(rep.state(), mask))
    free = Replica(init.fn(network, 0), toy, recipe, order=0, first=0, driven=driven)
    free.run(40)
    assert all((free.state()['weights'][name] != 0).any() for name in mask)
    moved = rep.state()['weights']
    assert all((moved[name] != init.fn(network, 0)['weights'][name])[mask[name]].any() for name in mask)

def test_tied_weights_are_one(store):
    "One parameter, one mask, counted once, whichever of its names it is chosen by."
    assert set(bound.prunable) == {'middle.weight', 'table.weight'}
    assert bound.maskable is None   # the head is a linear layer, so its weight is among the usual ones
    assert counts(bound) == (10*12 + 12*12 + 12, 10*12 + 12*12)
    for names in (('head.weight',), ('table.weight',), ('head.weight', 'table.weight')):
        assert replace(bound, maskable=names).prunable == ('table.weight',)
    mask = magnitude_mask(prunable_weights(init.fn(bound, 0), ('head.weight',)), .5)
    assert account(mask, bound)['kept'] == 60
    end = compute(train(init(bound, seed=0), toy, SGD, mask=prune(init(bound, seed=0), fraction=.5)).at('end'),
                  store=store, workers=1, quiet=True)
    module = bound.build()
    module.load_state_dict({**end['weights'], 'head.weight': end['weights']['table.weight']})
    assert int((module.head.weight == 0).sum()) == int((end['weights']['table.weight'] == 0).sum()) > 0

def test_admm_over_a_choice(store):
    run = admm(train(init(usual, seed=0), toy, SGD).at('end'), toy, SGD, 1, .75, rhos=(1e-2,), prunable=every.prunable)
    mask = compute(run['mask'], store=store, workers=1, quiet=True)
    assert set(mask) == set(every.prunable)
    assert all(int(m.sum()) == m.numel() - round(.75*m.numel()) for m in mask.values())

def test_telemetry_counts_what_may_be_pruned(store):
    def norm(network):
        start = init(network, seed=0)
        found = telemetry(start, toy, SGD, order=0, until=3, final=train(start, toy, SGD).at('end'))
        return compute(found, store=store, workers=1, quiet=True)['from end'][0]
    assert norm(every) > norm(usual)

def test_early_phase_with_a_choice():
    "Noise is a multiple of a standard deviation that has to be known; the output layer is one, whatever is pruned."
    state = init.fn(every, 0)
    with pytest.raises(ValueError, match='attention.in_proj_weight is not drawn with a known standard deviation'):
        perturbed.fn(state, {name: w != 0 for name, w in prunable_weights(state).items()}, 'noise 1')
    assert head_of(replace(mnist1d_mlp, maskable=('1.weight',))) == ('5.weight', '5.bias')

# ------------------------------------------------------------------ addresses, states, processes

def test_addresses_stay_where_nothing_is_chosen():
    a = init(mnist1d_mlp, seed=0)
    assert a.key == '7ce88dc58112e21d6e82'
    assert prune(a, fraction=.5).key == prune(a, fraction=.5, prunable=None).key == '42b8f57008a651f42eb6'
    from lth_nb.data import mnist1d
    assert admm(a, mnist1d(), Recipe(100, batch=32, lr=.1), 1, .5)['mask'].key == 'ba13efcc4c128dd1c41f'

def test_a_choice_is_part_of_the_address():
    a = init(mnist1d_mlp, seed=0)
    few = replace(mnist1d_mlp, maskable=('1.weight',))
    nodes = [prune(a), prune(a, prunable=('1.weight',)), prune(a, prunable=('3.weight',)), prune(init(few, seed=0))]
    assert len({node.key for node in nodes}) == 4
    for node in nodes:
        assert read_expression(expression(node), **left_out(node)).key == node.key

def test_states_say_what_was_chosen(tmp_path):
    "And say nothing where nothing was; in memory and from a file alike."
    assert 'maskable' not in init.fn(usual, 0)['network']
    assert described(mnist1d_conv) == init.fn(mnist1d_conv, 0)['network']
    store = Store(tmp_path)
    run = train(init(every, seed=0), toy, SGD)
    compute([run.at(20), run.at('end')], store=store, workers=1, quiet=True)
    first = init.fn(every, 0)
    stored = compute(run.at(20), store=Store(tmp_path), workers=1, quiet=True)
    assert network_of(stored) == network_of(first) == every
    assert stored['network'] == first['network']
    assert line.fn(first, stored, toy, 2)['distance'] > 0

def test_the_choice_changes_nothing_of_a_dense_training(store):
    ends = compute([train(init(network, seed=0), toy, SGD).at('end') for network in (usual, every)], store=store,
                   workers=1, quiet=True)
    assert same(*ends)

def test_in_other_processes(tmp_path):
    start = init(every, seed=0)
    mask = prune(train(start, toy, SGD).at('end'), fraction=.5)
    wanted = dict(mask=mask, control=shuffle_mask(mask, seed=1),
                  score=evaluate(train(start, toy, SGD, mask=mask).at('end'), toy))
    one, two = (compute(wanted, store=Store(tmp_path/str(n)), workers=n, quiet=True) for n in (1, 2))
    assert one['score'] == two['score']
    assert all(torch.equal(one['mask'][name], two['mask'][name]) for name in every.prunable)

def test_a_small_dense_network_keeps_its_choice():
    small = small_dense(every, .9)
    assert small.prunable == every.prunable
    assert small.width < 16
    assert counts(small)[0] < .3*counts(every)[0]
