"""Recipes: schedules by hand, steps and epochs, Table 1 of Linear Mode Connectivity, what is refused."""
from dataclasses import replace
from fractions import Fraction

import pytest, torch
from conftest import ROOT
from lth_nb.cli import figures
from lth_nb.data import Dataset
from lth_nb.experiment import default_store, nodes_in
from lth_nb.training import TABLE_1, Recipe, learning_rates, steps
from helpers import toy


class Examples(Dataset):
    "50,000 examples that nobody loads."
    def __init__(self, n=50000): object.__setattr__(self, 'n', n)
    examples = property(lambda self: self.n)

def rates(recipe, *at, n=50000):
    lr = learning_rates(recipe, Examples(n))
    return [float(lr[i]) for i in at] if at else lr


def test_milestones():
    r = Recipe(100, lr=.4, milestones=(30, 60, 80))
    assert rates(r, 0, 29, 30, 59) == pytest.approx([.4, .4, .04, .04], rel=1e-12)
    assert rates(r, 60, 79, 80, 99) == pytest.approx([.004, .004, .0004, .0004], rel=1e-12)
    assert rates(replace(r, gamma=.5), 30, 99) == pytest.approx([.2, .05], rel=1e-12)
    assert (rates(replace(r, milestones=())) == .4).all()
    assert len(rates(r)) == 100


def test_linear_and_cosine():
    r = Recipe(8, lr=1., schedule='linear')
    assert rates(r).tolist() == pytest.approx([1, .875, .75, .625, .5, .375, .25, .125], rel=1e-12)
    assert rates(replace(r, final_lr=.2), 0, 4, 7) == pytest.approx([1, .6, .3], rel=1e-12)
    c = replace(r, schedule='cosine')
    assert rates(c, 0, 2, 4, 6) == pytest.approx([1, .853553390593274, .5, .146446609406726], rel=1e-12)
    assert rates(replace(c, final_lr=.5), 4) == pytest.approx([.75], rel=1e-12)


def test_warmup_multiplies_the_schedule():
    r = Recipe(10, lr=.3, milestones=(2,), warmup=6)
    assert rates(r, 0, 1, 2, 5, 6, 9) == pytest.approx([0, .05, .01, .025, .03, .03], rel=1e-12)
    r = Recipe(8, lr=1., schedule='linear', warmup=4)
    assert rates(r, 1, 2, 3, 4) == pytest.approx([.25*.875, .5*.75, .75*.625, .5], rel=1e-12)


def test_steps_and_epochs():
    "Epochs are fractions of steps: 50,000 in batches of 128 make 390.625."
    epoch = Fraction(50000, 128)
    assert [steps(when, epoch) for when in (7, '7', '7it', '2K', '.5K')] == [7, 7, 7, 2000, 500]
    assert [steps(when, epoch) for when in ('2ep', '160ep', '1.25ep')] == [781, 62500, 488]
    in_epochs = Recipe('2ep', milestones=('1ep', '1.5ep'), warmup='.5ep')
    in_steps = Recipe(781, milestones=(391, 586), warmup=195)
    assert in_epochs.end(Examples()) == 781
    assert torch.equal(rates(in_epochs), rates(in_steps))
    assert Recipe('1ep', batch=32).end(toy) == 8
    assert in_epochs.per_epoch(Examples()) == epoch


@pytest.mark.parametrize('bad', (-1, 1.5, '1.0001K', 'soon', None, '-2ep', True))
def test_what_is_no_point_in_training(bad):
    with pytest.raises(ValueError, match='cannot read'): steps(bad, 10)


@pytest.mark.parametrize('name,n,length,batch,optimizer,rate', [
    # examples, steps, batch, optimiser, {step: learning rate} by hand from Table 1
    ('LeNet', 60000, 24000, 60, 'adam', {0: 12e-4, 23999: 12e-4}),
    ('ResNet-20', 50000, 63000, 128, 'sgd', {0: .1, 31999: .1, 32000: .01, 47999: .01, 48000: .001, 62999: .001}),
    ('ResNet-20 low', 50000, 63000, 128, 'sgd', {0: .01, 32000: .001, 48000: .0001}),
    ('ResNet-20 warmup', 50000, 63000, 128, 'sgd', {0: 0, 15000: .015, 30000: .03, 32000: .003, 48000: .0003}),
    ('VGG-16', 50000, 63000, 128, 'sgd', {0: .1, 31999: .1, 32000: .01, 48000: .001}),
    ('VGG-16 low', 50000, 63000, 128, 'sgd', {0: .01, 32000: .001, 48000: .0001}),
    ('VGG-16 warmup', 50000, 63000, 128, 'sgd', {0: 0, 3000: .01, 15000: .05, 30000: .1, 32000: .01, 48000: .001}),
    ('ResNet-50', 1281167, 112603, 1024, 'sgd',
     {0: 0, 6256: .4, 37533: .4, 37534: .04, 75068: .004, 100091: .0004, 100090: .004}),
    ('Inception-v3', 1281167, 213945, 1024, 'sgd',
     {0: .03, 106972: .0175 + .025/213945/2, 213944: .005 + .025/213945}),
])
def test_table_1(name, n, length, batch, optimizer, rate):
    r = TABLE_1[name]
    assert (r.end(Examples(n)), r.batch, r.optimizer) == (length, batch, optimizer)
    assert rates(r, *rate, n=n) == pytest.approx(list(rate.values()), rel=1e-9)
    assert r.augment == (name != 'LeNet')
    assert r.momentum == .9
    assert r.weight_decay == (0 if name == 'LeNet' else 1e-4)

def test_table_1_has_nine_rows(): assert len(TABLE_1) == 9


@pytest.mark.parametrize('bad,words', [(dict(milestones='50'), "milestones='50'"), (dict(betas=(.9,)), 'betas'),
                                       (dict(betas=(.9, 1.5)), 'betas')])
def test_recipes_refuse(bad, words):
    with pytest.raises(ValueError, match=words): Recipe(10, **bad)


# ------------------------------------------------------------------ which precision

def _in_bf16(nodes):
    "Those of some nodes, and of what they need, that are trained in bf16."
    found = {}
    def asks(node):
        if node.key not in found:
            inputs = [asks(needed) for needed in node.inputs]
            recipes = [x for x in node.args.values() if isinstance(x, Recipe)]
            found[node.key] = any(inputs) or any(recipe.precision == 'bf16' for recipe in recipes)
        return found[node.key]
    return [node for node in nodes if asks(node)]


@pytest.mark.parametrize('scale', ('smoke', 'quick', 'cpu'))
def test_no_scale_for_cpus_trains_in_bf16(scale):
    """bf16 is slower than fp32 on some CPUs. What scale cpu has in bf16 is published, all of it: it is read, and
    nobody trains for it. Anything new there is in fp32."""
    published = default_store(published=str(ROOT/'nbs/results')).layers[-1]
    nodes = {node for figure in figures() for node in nodes_in(figure.nodes(scale))}
    in_bf16 = _in_bf16(nodes)
    assert len(nodes) > 100
    if scale != 'cpu': assert not in_bf16, f'{len(in_bf16)} results, the first is {in_bf16[0]!r}'
    computed = [node for node in in_bf16 if not published.has(node.path)]
    assert not computed, f'{len(computed)} results, the first is {computed[0]!r}: use precision fp32'
