"""Masks: exact counts, ties, controls, and rounds of pruning with rewinding."""
import pytest, torch
from lth_nb.data import mnist1d
from lth_nb.experiment import Store, compute, step
from lth_nb.networks import lenet_300_100, mnist1d_conv, mnist1d_mlp, prunable, resnet20, vgg16
from lth_nb.pruning import (densities, dense_mask, density, imp, kept, lowest, magnitude_mask, mask_of,
                            prunable_weights, prune, random_mask, remaining, shuffle_mask)
from lth_nb.training import Recipe, init, train

pytestmark = pytest.mark.usefixtures('on_cpu')


def counts(mask): return {k: int(m.sum()) for k,m in mask.items()}

def random_weights(*sizes, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {f'l{i}.weight': torch.randn(s, generator=g) for i,s in enumerate(sizes)}

def by_hand(weights, fraction, mask, names):
    "One round over the given layers as a plain Python sort: by magnitude, then layer, then place."
    at = []
    for i,k in enumerate(names):
        alive = mask[k].flatten()
        at += [(abs(w), i, j, k) for j,w in enumerate(weights[k].flatten().tolist()) if alive[j]]
    out = {k: m.clone() for k,m in mask.items()}
    for _,_,j,k in sorted(at)[:round(fraction*len(at))]: out[k].view(-1)[j] = False
    return out


@pytest.mark.parametrize('sizes', [((7, 3), (5,), (2, 3, 3, 1)), ((1,), (1, 1)), ((13, 11), (101,)), ((4, 5), (4, 5))])
@pytest.mark.parametrize('fraction', (.2, .5, .3, .99, 0.))
@pytest.mark.parametrize('scope', ('global', 'layer'))
def test_counts_are_exact_in_every_round(sizes, fraction, scope):
    "Odd sizes, six rounds, every weight as a plain sort has it; nothing comes back."
    w = random_weights(*sizes)
    mask = None
    groups = [list(w)] if scope == 'global' else [[k] for k in w]
    for n in range(6):
        before = mask or dense_mask(w)
        expected = before
        for names in groups: expected = by_hand(w, fraction, expected, names)
        mask = magnitude_mask(w, fraction, mask, scope)
        for names in groups:
            left = sum(int(before[k].sum()) for k in names)
            assert sum(int(mask[k].sum()) for k in names) == left - round(fraction*left)
        assert all(torch.equal(mask[k], expected[k]) for k in w)
        assert not any((mask[k] & ~before[k]).any() for k in w)
        assert all(mask[k].dtype == torch.bool and mask[k].shape == w[k].shape for k in w)
        w = random_weights(*sizes, seed=n + 1)   # as if trained again


def test_ties_go_by_place():
    "Equal magnitudes, signs aside: the first layer's first weights go first, and exactly as many as asked for."
    w = {'b': torch.tensor([[1., -1., 1.], [-1., 1., 2.]]), 'a': torch.tensor([1., -1., .5, 1.])}
    m = magnitude_mask(w, .5)
    assert m['a'].tolist() == [True, True, False, True]
    assert m['b'].tolist() == [[False, False, False], [False, True, True]]
    m = magnitude_mask(w, .5, m)   # of the 5 left round(2.5) = 2
    assert m['b'].tolist() == [[False, False, False], [False, False, True]]
    assert m['a'].tolist() == [False, True, False, True]
    same = {'w': torch.full((33, 37), -.25)}
    mask = None
    left = 33*37
    for _ in range(8):
        mask = magnitude_mask(same, .2, mask)
        left -= round(.2*left)
        flat = mask['w'].flatten()
        assert kept(mask) == left
        assert flat[-left:].all()
        assert not flat[:-left].any()


def test_zeros_that_were_pruned_do_not_count():
    "A pruned weight is 0 and so the smallest of all; it must not be pruned twice."
    w = {'w': torch.tensor([0., 0., 3., 2., 1., 4.])}
    m = magnitude_mask(w, .5, {'w': torch.tensor([False, False, True, True, True, True])})
    assert m['w'].tolist() == [False, False, True, False, False, True]


def test_halves_go_to_the_even_neighbour():
    assert [len(lowest(torch.rand(n), .5)) for n in (1, 3, 5, 7, 9)] == [0, 2, 2, 4, 4]


@pytest.mark.parametrize('fraction', (1, 1.5, -.1, float('nan')))
def test_bad_fractions(fraction):
    with pytest.raises(ValueError, match=f'fraction={fraction}'): magnitude_mask(random_weights((3,)), fraction)

def test_nan_weights_are_not_ranked():
    w = {'w': torch.tensor([1., float('nan'), 2.])}
    with pytest.raises(ValueError, match='1 of 3 weights are NaN'): magnitude_mask(w, .2)

def test_masks_that_do_not_fit():
    w = random_weights((3, 4), (5,))
    longer = {**dense_mask(w), 'l1.weight': torch.ones(6).bool()}
    fewer = {'l0.weight': dense_mask(w)['l0.weight']}
    with pytest.raises(ValueError, match=r'mask of l1.weight has shape \(6,\).*\(5,\)'): magnitude_mask(w, .2, longer)
    with pytest.raises(ValueError, match='different layers.*l1.weight'): magnitude_mask(w, .2, fewer)
    with pytest.raises(ValueError, match="exempt=.'fc'.*l0.weight"): magnitude_mask(w, .2, exempt=('fc',))
    with pytest.raises(ValueError, match="scope='all'.*global"): magnitude_mask(w, .2, scope='all')
    with pytest.raises(ValueError, match="scope='all'.*global"): random_mask(dense_mask(w), 0, scope='all')

def test_arguments_are_not_changed():
    w = random_weights((9, 9))
    m = {'l0.weight': torch.rand(9, 9) < .8}
    w0 = w['l0.weight'].clone()
    m0 = m['l0.weight'].clone()
    magnitude_mask(w, .5, m)
    random_mask(m, 0)
    assert torch.equal(w['l0.weight'], w0)
    assert torch.equal(m['l0.weight'], m0)


@pytest.mark.parametrize('scope', ('global', 'layer'))
def test_exempt_layers(scope):
    "They keep every weight, and are not among those of which a fraction goes; whatever happens to the others."
    w = {k: v.clone() for k,v in prunable_weights(init.fn(mnist1d_conv, 0)).items()}
    first = list(w)[0]
    last = list(w)[-1]
    w[last] *= 1e-6   # the smallest of all: they would go first
    mask = None
    n = sum(v.numel() for k,v in w.items() if k not in (first, last))
    left = n
    for _ in range(4):
        mask = magnitude_mask(w, .2, mask, scope, (first, last))
        left -= round(.2*left)
        assert mask[first].all()
        assert mask[last].all()
        if scope == 'global': assert kept(mask) - w[first].numel() - w[last].numel() == left
    assert all(0 < int(m.sum()) < m.numel() for k,m in mask.items() if k not in (first, last))
    assert not magnitude_mask(w, .2)[last].all()


@pytest.mark.parametrize('net', (resnet20, lenet_300_100, vgg16))
def test_what_is_prunable(net):
    "Convolutions and linear layers, the first, the shortcuts and the last included; no bias, no BatchNorm."
    m = net.build()
    names = prunable(m)
    p = dict(m.named_parameters())
    assert names == [k for k,v in p.items() if v.dim() > 1], 'and in the network\'s order'
    if net is not vgg16: assert list(prunable_weights(init.fn(net, 0))) == names


def test_density_of_fifteen_rounds_on_lenet():
    "266,200 weights, 0.8 to the 15th of them: 3.5 % remain, to the rounding of 15 rounds."
    w = prunable_weights(init.fn(lenet_300_100, 0))
    mask = None
    left = 266200
    assert sum(v.numel() for v in w.values()) == left
    for n in range(1, 16):
        mask = magnitude_mask(w, .2, mask)
        left -= round(.2*left)
        assert kept(mask) == left
        assert abs(density(mask) - .8**n) < .5*5/266200   # 0.5 a round, each shrinking by 0.8: below 2.5 weights
        assert remaining(n) == pytest.approx(100*.8**n)
    d = densities.fn(mask)
    assert (d['kept'], d['total']) == (left, 266200)
    assert d['density'] == left/266200
    assert d['layers'] == pytest.approx({k: int(m.sum())/m.numel() for k,m in mask.items()}, rel=1e-6)


def test_random_masks_keep_counts():
    "In every layer, or in all; other places, other seeds other places, the same seed the same."
    w = prunable_weights(init.fn(mnist1d_conv, 0))
    m = magnitude_mask(w, .7)
    last = list(w)[-1]
    for seed in range(3):
        r = random_mask(m, seed)
        assert counts(r) == counts(m)
        assert all(r[k].shape == m[k].shape and r[k].dtype == torch.bool for k in m)
        assert all(torch.equal(r[k], random_mask(m, seed)[k]) for k in m)
        another = random_mask(m, seed + 1)
        assert any(not torch.equal(r[k], m[k]) for k in m)
        assert any(not torch.equal(r[k], another[k]) for k in m)
        g = random_mask(m, seed, 'global')
        assert kept(g) == kept(m)
        assert counts(g) != counts(m)
        for scope in ('layer', 'global'):
            e = random_mask(m, seed, scope, (last,))
            assert torch.equal(e[last], m[last])
            assert kept(e) == kept(m)
            assert any(not torch.equal(e[k], m[k]) for k in m)

def test_random_masks_are_uniform():
    "Over many seeds every place is kept as often as any other, within 6 standard deviations."
    m = {'w': torch.arange(40).view(5, 8) < 10}
    n = 800
    often = sum(random_mask(m, s)['w'].double() for s in range(n))
    assert float((often - n/4).abs().max()) < 6*(n*.25*.75)**.5


def test_imp_rounds(tmp_path):
    """Four rounds on a network that is really trained: exact counts, nested masks, and each round prunes the smallest
    of its own trained weights."""
    data = mnist1d(train=128, test=64)
    recipe = Recipe(12, batch=32, lr=.1)
    k = 3
    wk = train(init(mnist1d_conv, seed=0), data, recipe, order=0).at(k)
    ends = []
    def retrain(mask, n):
        ends.append(train(wk, data, recipe, order=n, mask=mask).at('end'))
        return ends[-1]
    masks,states,start = compute([imp(retrain, 4), ends, wk], store=Store(tmp_path), workers=1, quiet=True)
    assert len(masks) == len(states) == 4
    left = sum(m.numel() for m in masks[0].values())
    before = None
    for m,s in zip(masks, states):
        left -= round(.2*left)
        assert kept(m) == left
        expected = by_hand(prunable_weights(s), .2, before or dense_mask(m), list(m))
        assert all(torch.equal(m[n], expected[n]) for n in m)
        if before: assert all(not bool((s['weights'][n][~before[n]] != 0).any()) for n in m)
        before = m
    last = train(wk, data, recipe, order=9, mask=imp(retrain, 4)[-1])
    rewound = compute(last.at(k), store=Store(tmp_path), workers=1, quiet=True)
    for n,w in start['weights'].items():
        assert torch.equal(rewound['weights'][n], w*masks[-1].get(n, 1)), 'survivors go back to step k'


def test_steps_are_the_functions(tmp_path):
    state = init.fn(mnist1d_mlp, 0)
    last = prunable(mnist1d_mlp.build())[-1]
    node = prune(init(mnist1d_mlp, seed=0), fraction=.4, scope='layer', exempt=(last,))
    a,b = compute([node, shuffle_mask(node, seed=3, exempt=(last,))], store=Store(tmp_path), workers=1, quiet=True)
    expected = magnitude_mask(prunable_weights(state), .4, scope='layer', exempt=(last,))
    shuffled = random_mask(expected, 3, exempt=(last,))
    assert all(torch.equal(a[k], expected[k]) for k in expected)
    assert all(torch.equal(b[k], shuffled[k]) for k in b)


def test_one_shot_is_one_round():
    assert len(imp(lambda m, n: init(mnist1d_mlp, seed=0), 1, fraction=.7)) == 1
    assert imp(None, 0) == []


def test_the_lowest_scores_go_whatever_they_mean():
    "Scores may be negative; of magnitudes it is the magnitude mask."
    assert mask_of({'w': torch.tensor([1., -3., 2., -.5])}, .5)['w'].tolist() == [True, False, True, False]
    w = random_weights((7, 3), (5,))
    by_size = mask_of({k: v.abs() for k,v in w.items()}, .3)
    assert all(torch.equal(by_size[k], m) for k,m in magnitude_mask(w, .3).items())


def test_imp_takes_another_criterion():
    "Its default is `prune`: the same address, said or not. Another step has addresses of its own."
    @step
    def largest(state, mask=None, fraction=.2, scope='global', exempt=()): pass
    def retrain(mask, n): return init(mnist1d_mlp, seed=n)
    usual = [node.key for node in imp(retrain, 2)]
    assert [node.key for node in imp(retrain, 2, prune=prune)] == usual
    assert {node.key for node in imp(retrain, 2, prune=largest)}.isdisjoint(usual)


def test_imp_and_random_masks_refuse_what_makes_no_sense():
    for rounds, fraction in ((-2, .2), (1.5, .2), (True, .2)):
        with pytest.raises(ValueError, match=f'rounds={rounds}'): imp(lambda m, n: None, rounds, fraction)
    with pytest.raises(ValueError, match='fraction=1.5'): imp(lambda m, n: None, 2, 1.5)
    mask = {'a': torch.ones(3, dtype=torch.bool)}
    with pytest.raises(ValueError, match="'zzz'.*layers of this mask"): random_mask(mask, 0, exempt=('zzz',))


def test_pairwise_refuses_what_does_not_fit():
    from lth_nb.measures import overlap, pairwise
    a = {'l': torch.randn(4, 5)}
    b = {'l': torch.randn(4, 5), 'm': torch.randn(2, 2)}
    for nets in ([a, b], [b, a]):
        with pytest.raises(ValueError, match="different layers.*'m'"): pairwise(nets, .2)
    with pytest.raises(ValueError, match='no networks'): pairwise([], .2)
    with pytest.raises(ValueError, match="'typo'"): pairwise([a, a], .2, exempt=('typo',))
    for f in (lambda m: pairwise([a, a], .2, mask=m), lambda m: overlap(a, a, .2, mask=m)):
        with pytest.raises(ValueError, match="'typo'"): f({'typo': torch.ones(4, 5, dtype=torch.bool)})
        with pytest.raises(ValueError, match='shape'): f({'l': torch.ones(2, 5, dtype=torch.bool)})
