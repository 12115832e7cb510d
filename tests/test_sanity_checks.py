"""Sanity checks: the plans, the loading code for larger data, claims, and the published numbers."""
from dataclasses import replace

import numpy as np, pytest
from conftest import ROOT
from lth_nb import networks as nets, sanity_checks as sc
from lth_nb.data import cifar10, mnist1d
from lth_nb.experiment import Published, Store, compute, missing, nodes_in as nodes
from lth_nb.figures import sanity_checks as figs
from lth_nb.figures.kit import FIGURES, Needs, accuracies
from lth_nb.figures.sanity_checks import conditions, redundancy
from lth_nb.networks import Network
from lth_nb.recipes import Recipe
from lth_nb.measures import Rules

CHAPTER = [f for f in FIGURES.values() if f.id.startswith('sanity_checks/')]


@pytest.mark.parametrize('scale', ('smoke', 'quick', 'cpu', 'gpu'))
def test_plans(scale):
    "Every figure has a plan at every scale, made without data on disk."
    for f in CHAPTER:
        plan = f.nodes(scale)
        assert f.id.endswith(('table-2', 'all-rounds')) or scale in ('cpu', 'gpu') or set(nodes(plan)) or any(isinstance(v, Needs) for v in plan.values())


def test_paper_plan_is_the_papers(monkeypatch, tmp_path):
    monkeypatch.setenv('LTH_NB_DATA', str(tmp_path))
    by = {c.name: c for c in figs.paper_cases()}
    assert {n for n in by if by[n].needs} == {n for n in by if 'CIFAR-100' in n or 'ImageNet' in n}
    r20 = by['ResNet-20']
    assert [round(r20.sparsity(l), 3) for l in r20.levels] == [.59, .832, .914, .945, .956] and r20.rounds == 14
    assert r20.recipe.end(r20.data) == 125000 and r20.recipe.weight_decay == 5e-4 and by['ResNet-20, weight decay 1e-4'].recipe.weight_decay == 1e-4
    assert by['VGG-16'].recipe.milestones == ('80ep', '120ep') and by['VGG-16, decay as in the code'].recipe.milestones == ('155ep',)
    for n,m in figs.PAPER_PARAMETERS.items():   # Table 2 rounds or cuts; its ResNet-18 counts 100 classes, on Tiny-ImageNet 1000
        if 'Tiny' in n: continue
        net = by[n].network if n != 'ResNet-18' else replace(by[n].network, classes=100)
        assert abs(nets.counts(net)[0]/1e6 - m) < .011, n
    assert nets.counts(by['ResNet-32'].network, by['ResNet-32'].exempt)[1] == 1843200
    assert {'figure-1', 'figure-3', 'figure-4', 'table-4'} <= {f.id.split('/')[1] for f in CHAPTER}
    assert isinstance(FIGURES['sanity_checks/figure-3'].nodes('paper')[by['ResNet-50, ImageNet']], Needs)


def test_no_residual_has_the_papers_count():
    c = next(c for c in figs.cifar_cases(cifar10()) if c.name == 'ResNet-32')
    plain = figs.without_residual(c)
    assert nets.counts(plain.network, plain.exempt) == (1849898, 1843200)


def tiny(levels=(3,)):
    net = Network('mnist1d_conv', width=8)
    return figs.Trial('tiny', net, mnist1d(train=128, test=64), Recipe(6, batch=32), lrs=(.1,), levels=levels, seeds=1, exempt=sc.unpruned(net), rewind=2)


def test_lt_imp_is_a_round_of_imp():
    "14 rounds: LT-IMP at any round is trained in finding the mask of the next."
    c = tiny((14,))
    masks = [sc.mask_of(c, .1, 0, 14, 'IMP')]
    tickets = [sc.score(c, 'LT-IMP', .1, 0, l) for l in range(1, 14)]
    n = lambda what: sum(t.nodes[0].step.name == 'trajectory' for t in missing(what, Store('memory://none')).values())
    assert n(masks) == 14 and n([*masks, *tickets]) == 14


def test_rr_keeps_the_mask_and_not_the_start(store):
    c = tiny()
    lt,rr = (sc.run(c, k, .1, 0, 3).node.args for k in ('LT-IMP', 'RR-IMP'))
    assert lt['mask'] == rr['mask'] and lt['start'] != rr['start'] and lt['order'] == rr['order']
    mask,end = compute([lt['mask'], sc.run(c, 'RR-IMP', .1, 0, 3).at('end')], store=store, workers=1, quiet=True)
    for n,m in mask.items(): assert not end['weights'][n][~m].any() and (n not in c.exempt or m.all())
    with pytest.raises(ValueError, match='LT-IMP'): sc.run(c, 'XX-IMP', .1, 0, 3)


@pytest.mark.parametrize('name', ('resnet20', 'resnet18', 'vgg16', 'mobilenet_v1', 'mnist1d_res'))
@pytest.mark.parametrize('s', (.59, .832, .956))
def test_small_dense_has_the_count(name, s):
    net = Network(name)
    total,pool = nets.counts(net, sc.unpruned(net))
    small = nets.small_dense(net, s, sc.unpruned(net))
    want = total - s*pool
    near = max(.12*want, 60) if name == 'mnist1d_res' else .12*want   # few widths to choose from
    assert abs(nets.counts(small)[0] - want) < (2.5*near if name == 'mnist1d_res' else near)
    assert small.name == net.name
    with pytest.raises(ValueError, match='between 0 and 1'): nets.small_dense(net, 1., ())


def folder(root, size, classes=2, images=3):
    from PIL import Image
    for part in ('train', 'val'):
        for k in range(classes):
            (root/part/f'n{k}').mkdir(parents=True)
            for i in range(images): Image.fromarray(np.random.default_rng(i + 9*k).integers(0, 255, (size, size, 3), dtype=np.uint8)).save(root/part/f'n{k}'/f'{i}.png')


def test_tiny_imagenet_and_imagenet_from_folders(tmp_path, monkeypatch, store):
    "The larger data's plans with generated folders: the handles load, a step trains, a mask holds."
    monkeypatch.setenv('LTH_NB_DATA', str(tmp_path))
    folder(tmp_path/'tiny-imagenet-200', 64)
    folder(tmp_path/'imagenet', 80)
    by = {c.name: c for c in figs.large_cases()}
    assert not any(c.needs for c in by.values()) and by['ResNet-50, ImageNet'].data.examples == 6
    for name,batch in (('ResNet-18, Tiny-ImageNet', 4), ('ResNet-18, ImageNet', 2)):
        c = replace(by[name], recipe=replace(by[name].recipe, steps=1, batch=batch, warmup=0, milestones=()))
        node = sc.score(c, 'LT-OMP', c.lrs[0], 0, c.levels[0])
        got = compute(node, store=store, workers=1, quiet=True)
        assert got['test']['n'] == 6 and 0 <= got['test']['error'] <= 100
    with pytest.raises(ValueError, match='one width'): sc.run(by['ResNet-50, ImageNet'], 'small', .4, 0, 4)


def test_preferences():
    at = lambda a: [dict(test=dict(error=100 - a - .1*i)) for i in range(3)]
    by = {'dense': {.01: at(88), .1: at(92)}, 'LT-IMP': {.01: at(90), .1: at(87)}, 'LT-OMP': {.01: at(86), .1: at(87)}}
    assert figs.prefers_small(by).holds is True and figs.prefers_imp(by).holds is True
    assert figs.prefers_small({**by, 'dense': {.01: at(93), .1: at(92)}}).holds is None
    assert figs.prefers_imp({**by, 'LT-OMP': {.01: [None]*3, .1: [None]*3}}).holds is None


def test_ledger_holds_every_claim_of_the_slides():
    assert sorted((id for f in CHAPTER for id in f.claims), key=lambda i: int(i[2:])) == [f'SC{i}' for i in range(1, 13)]
    for f in CHAPTER:
        for claim in f.claims.values():
            v = claim.judge(compute(f.nodes('smoke'), store=Store('memory://nothing'), stored=True), 'smoke')   # nothing is there: nothing is decided
            assert v.holds is None, claim.text


def test_published_quick():
    "The published table is the one the page shows: complete, and within what these networks do."
    store,f = Published(ROOT/'nbs/results'),FIGURES['sanity_checks/table-3']
    values = compute(f.nodes('quick'), store=store, stored=True)
    if not any(v for case in values.values() for by in case.values() for lrs in by.values() for vs in lrs.values() for v in vs): pytest.skip('no published results yet')
    for case,levels in values.items():
        name = case.name
        for by in levels.values():
            for kind,lrs in by.items():
                for vs in lrs.values():
                    acc = accuracies(vs)
                    assert np.isfinite(acc).all(), (name, kind)
            assert max(figs.means_of(by['dense']).values()) > 85, name


def at(a, seeds=3, spread=.1): return [None]*seeds if a is None else [dict(test=dict(error=100 - a - spread*i)) for i in range(seeds)]

def panel(lrs, **kinds): # {kind: {lr: values}}, a number for each rate or None
    return {k.replace('_', '-'): {lr: at(a) for lr,a in zip(lrs, accs)} for k,accs in kinds.items()}


def test_what_is_half_computed_decides_nothing():
    "One rate of several, one seed: no preference, no claim about networks without residual connections."
    conv = next(c for c in figs.cases('quick') if not c.residual)
    lrs,level = conv.lrs,conv.levels[-1]
    some_ = lambda *a: a + (None,)*(len(lrs) - len(a))
    half = panel(lrs, dense=some_(90, 92), LT_IMP=some_(91, 88), LT_OMP=some_(85), RR_IMP=some_(80), RR_OMP=some_(80), small=some_(70))
    assert figs.prefers_small(half).holds is None and figs.prefers_imp(half).holds is None
    assert figs.sc7({conv: {level: half}}, 'quick').holds is None
    alone = {k: {lr: at(a, 1) for lr in lrs} for k,a in (('dense', 90), ('LT-IMP', 90), ('LT-OMP', 80), ('RR-IMP', 70), ('RR-OMP', 70), ('small', 60))}
    assert figs.sc7({conv: {level: alone}}, 'quick').holds is None


@pytest.mark.parametrize('imp,omp,holds', [(90, 90, True), (95, 90, False), (88, 90, True)])
def test_without_residual_no_advantage_can_be_confirmed(imp, omp, holds):
    conv = next(c for c in figs.cases('quick') if not c.residual)
    full = lambda a: (a,)*len(conv.lrs)
    by = panel(conv.lrs, dense=full(92), LT_IMP=full(imp), LT_OMP=full(omp), RR_IMP=full(80), RR_OMP=full(80), small=full(70))
    assert figs.sc7({conv: {conv.levels[-1]: by}}, 'quick').holds is holds


def test_a_certain_secondary_prize_is_not_hidden():
    "By one method all is certain but a Jackpot that is none; by the other nothing is: the first counts."
    c = replace(tiny(), lrs=(.01, .1), seeds=3)
    wide = lambda a: [dict(test=dict(error=100 - a - 4*i)) for i in range(3)]
    by = {**panel(c.lrs, dense=(88, 92), LT_OMP=(88, 88), RR_IMP=(70, 70), RR_OMP=(70, 70), small=(60, 60)), 'LT-IMP': {.01: wide(88), .1: wide(88)}}
    p = figs.prize_of(c, 3, by, rules=Rules(sparsity=.3))
    assert p.secondary is True and p.jackpot is False and p.method == 'OMP'


def test_figure_1_claims_need_the_ticket():
    "SC1: a lead at the small rate is no ticket where dense is out of reach. SC2: nothing misleads where both recipes agree."
    c = next(c for c in figs.cases('quick') if c.short)
    level,lrs = max(c.levels),c.lrs
    three = lambda a, b: (a,)*(len(lrs) - 1) + (b,)
    of = lambda **kw: {'full': {level: panel(lrs, **kw)}, 'short': {level: panel(lrs, **kw)}}
    ticket = of(dense=three(90, 92), LT_IMP=three(90, 85), RR_IMP=three(80, 85))
    assert figs.sc1({c: ticket}, 'quick').holds is True
    assert figs.sc1({c: of(dense=three(90, 92), LT_IMP=three(75, 85), RR_IMP=three(60, 85))}, 'quick').holds is False
    assert figs.sc2({c: ticket}, 'quick').holds is False
    misled = {'full': of(dense=three(90, 92), LT_IMP=three(85, 85), RR_IMP=three(80, 80))['full'], 'short': ticket['short']}
    assert figs.sc2({c: misled}, 'quick').holds is True


def test_trends():
    assert figs.trend([1, 2, 3, 4], [.5, .6, .7, .8]).holds is True and figs.trend([1, 2, 3, 4], [.8, .7, .6, .5]).holds is False
    assert figs.trend([1, 2, 3], [.5, .6, .7]).holds is None and figs.trend([1, 2, 3, 4], [.5, .6, .8, .7]).holds is None


def test_a_reduced_scale_takes_training_as_sufficient():
    "At cpu the first condition is not the one that decides; at the paper's length it can be."
    c = figs.cpu_cases()[0]
    by = panel(c.lrs, dense=(88, 90, 92), LT_IMP=(88, 91, 92), LT_OMP=(88, 91, 92), RR_IMP=(80, 84, 86), RR_OMP=(80, 84, 86), small=(75, 80, 84))
    assert str(figs.prize_of(c, 4, by)) == 'Jackpot'
    assert figs.prize_of(replace(c, enough=False), 4, by).conditions[0].holds is False


@pytest.mark.parametrize('call,said', [
    (lambda: replace(tiny(), lrs=()), 'one or more'), (lambda: replace(tiny(), lrs=(-.1,)), 'above 0'), (lambda: replace(tiny(), seeds=0), 'seeds=0'),
    (lambda: replace(tiny(), levels=(0,)), '1 or more'), (lambda: replace(tiny(), levels=()), '1 or more'), (lambda: replace(tiny(), fraction=1.), 'between 0 and 1'),
    (lambda: sc.score(tiny(), 'LT-IMP', .1, 0), 'level=0'), (lambda: sc.score(tiny(), 'small', .1, 0), 'level=0'), (lambda: sc.mask_of(tiny(), .1, 0, 3, 'best'), "how='best'")])
def test_bad_input_names_what_is_wrong(call, said):
    with pytest.raises(ValueError, match=said): call()


def test_a_case_of_one_rate(store):
    "It draws, and decides nothing that needs other rates."
    c = replace(tiny((5,)), seeds=2)
    by = panel(c.lrs, dense=(90,), LT_IMP=(95,), LT_OMP=(94,), RR_IMP=(80,), RR_OMP=(80,), small=(70,))
    by = {k: {lr: vs[:2] for lr,vs in lrs.items()} for k,lrs in by.items()}
    assert str(figs.prize_of(c, 5, by)) == 'not decided' and figs.prefers_small(by).holds is None
    figs.lights(c, 5, .1, by)
    with pytest.raises(ValueError, match='the rates are 0.1'): figs.prize_of(c, 5, by, at=.5)


def half(values): # every second result
    seen = [0]
    def go(v):
        if isinstance(v, dict) and 'test' not in v: return {k: go(w) for k,w in v.items()}
        if isinstance(v, list): return [go(w) for w in v]
        seen[0] += 1
        return v if seen[0] % 2 else None
    return go(values)


def test_half_computed_figures_say_so():
    c = figs.cpu_cases()[0]
    by = panel(c.lrs, dense=(40, 45, 50, 55), LT_IMP=(42, 46, 50, 52), LT_OMP=(41, 45, 49, 50), RR_IMP=(30, 40, 50, 52), RR_OMP=(30, 40, 49, 51), small=(30, 35, 40, 45))
    whole = {c: {4: {k: {lr: vs[:2] for lr,vs in lrs.items()} for k,lrs in by.items()}}}
    said = lambda values: figs.draw_main(values, 'cpu')._supxlabel.get_text().replace('\n', ' ')
    assert 'so far' not in said(whole) and '24 of 48 results so far' in said(half(whole))
    none = {c: {4: {k: {lr: [None]*2 for lr in c.lrs} for k in by}}}
    assert 'so far' not in said(none)
    table = figs.printed_beside(c, whole[c][4]).rows
    assert '[89.6]' in table[0]['dense'] and '[86.5]' in table[1]['LT-OMP'] and '[' not in table[2]['dense']


def test_the_papers_numbers_are_drawn_where_training_is_the_papers():
    "Rings at s = .914 for ResNet-20 at full length, none at a reduced scale."
    rings = lambda fig: sum(l.get_marker() == 'o' and l.get_markerfacecolor() == 'none' and len(l.get_xdata()) == 1 for l in fig.axes[0].lines)
    for scale,n in (('gpu', 9), ('cpu', 0)):
        c = figs.cases(scale)[0]; l = c.levels[0]
        by = {k: {lr: at(80 + i, c.seeds) for i,lr in enumerate(c.lrs)} for k in sc.KINDS}
        assert rings(figs.draw_main({c: {l: by}}, scale)) == n


def test_figure_1_at_a_scale_with_one_recipe():
    "Its ticket is judged by the full recipe; what a short one does stays open. Nothing is trained for it that Figure 3 does not train."
    paths = lambda f: {n.path for n in nodes(FIGURES[f'sanity_checks/{f}'].nodes('cpu'))}
    assert paths('figure-1') < paths('figure-3')
    c = figs.cpu_cases()[0]
    by = panel(c.lrs, dense=(50, 52, 54, 56), LT_IMP=(50, 52, 50, 48), RR_IMP=(40, 44, 48, 48))
    v = {c: {'full': {4: by}}}
    assert figs.sc1(v, 'cpu').holds is True and figs.sc2(v, 'cpu').holds is None


def test_the_best_of_several_is_not_a_gain_by_chance():
    "A gain that one comparison would call clear is not clear as the best of eight; a clear one is; losses everywhere refute."
    just = np.array([1.2, 1.8, 2.4])
    assert figs.best_of({'a': just}).holds is True
    assert figs.best_of({'a': just, **{str(i): just - 4 for i in range(7)}}).holds is None
    assert figs.best_of({'a': np.array([2., 2.01, 2.02]), 'b': just - 4}).holds is True
    assert figs.best_of({'a': np.array([-2., -2.01, -2.02]), 'b': np.array([-3., -3.01, -3.02])}).holds is False
    assert figs.best_of({}).holds is None


def test_most_counts_what_is_planned():
    "Three networks of six with a prize are not most of six: what is not computed is not decided."
    base = replace(figs.quick_cases()[0], levels=(4,))
    cs = [replace(base, name=f'n{i}') for i in range(6)]
    full = lambda a: (a,)*len(base.lrs)
    prize = panel(base.lrs, dense=full(90), LT_IMP=full(95), LT_OMP=full(94), RR_IMP=full(80), RR_OMP=full(80), small=full(70))
    nothing = panel(base.lrs, **{k: (None,)*len(base.lrs) for k in ('dense', 'LT_IMP', 'LT_OMP', 'RR_IMP', 'RR_OMP', 'small')})
    values = lambda n: {c: {4: prize if i < n else nothing} for i,c in enumerate(cs)}
    assert [figs.sc4(values(n), 'quick').holds for n in (3, 4)] == [None, True]
    assert figs.sc3(values(3), 'quick').holds is False        # a Jackpot is there already
    no = panel(base.lrs, dense=full(95), LT_IMP=full(80), LT_OMP=full(80), RR_IMP=full(90), RR_OMP=full(90), small=full(90))
    some_no = {c: {4: no if i < 3 else nothing} for i,c in enumerate(cs)}
    assert figs.sc3(some_no, 'quick').holds is None            # the others may have one
    assert figs.sc3({c: {4: no} for c in cs}, 'quick').holds is True


def test_trends_wait_for_open_prizes(monkeypatch):
    "SC5 and SC11: a prize that is not decided at a higher sparsity may turn a trend."
    rows = lambda ends: {(f'n{i}', 'cifar10'): (i + 1, *e) for i,e in enumerate(ends)}
    look = lambda ends: (monkeypatch.setattr(redundancy, 'largest_prizes', lambda values: rows(ends)), figs.sc5({}, 'paper').holds)[1]
    sure = [(.59, .59), (.832, .832), (.914, .914), (.945, .945)]
    assert look(sure) is True and look([(.59, .956), *sure[1:]]) is None and look(sure[::-1]) is False
    assert look([*sure[:3], (.945, .956)]) is True          # the largest may be larger still
    both = lambda ten, hundred: {**{(f'n{i}', 'cifar10'): (i, *e) for i,e in enumerate(ten)}, **{(f'n{i}', 'cifar100'): (i, *e) for i,e in enumerate(hundred)}}
    def eleven(ten, hundred):
        monkeypatch.setattr(redundancy, 'largest_prizes', lambda values: both(ten, hundred))
        return figs.sc11({}, 'paper').holds
    high,low = [(.945, .945)]*3,[(.59, .59), (.6, .6), (.61, .61)]
    assert eleven(high, low) is True and eleven(low, high) is False and eleven(high, [(.59, .956)]*3) is None


def test_smoother_is_judged_in_both_readings():
    "SC8: IMP against OMP, and with residual connections against without."
    t = np.linspace(-1, 1, 7)
    x,y = np.meshgrid(t, t)
    def m(f, i): return dict(x=t.tolist(), y=t.tolist(), at=[[1., 0.], [0., 0.]], explained=[.8, .1], loss=(f + 1e-3*i*np.cos(5*x)).tolist())
    bowl,rough = x**2 + y**2, np.cos(6*x) + np.cos(5*y)
    maps = lambda f: dict(map=[m(f, i) for i in range(3)], accuracy=[])
    panels = lambda imp, omp: {f'{how}, lr {lr}': maps(f) for how,f in (('IMP', imp), ('OMP', omp)) for lr in (.01, .1)}
    judge8 = lambda with_, without: figs.sc8({'with residual': panels(*with_), 'without': panels(*without)}, 'quick').holds
    assert judge8((bowl, rough), (rough, rough)) is True
    assert judge8((rough, bowl), (rough, rough)) is False    # OMP the smoother one
    assert judge8((bowl, rough), (bowl, rough)) is False     # as smooth without


def test_the_explorer_lights_up(monkeypatch):
    "Over the published results: each slider redraws, the lights are those of `judge` at that rate; a network with other sparsities changes the sliders."
    pytest.importorskip('ipywidgets')
    monkeypatch.setenv('LTH_NB_RESULTS', '/nonexistent')
    seen = []
    lights = figs.lights
    monkeypatch.setattr(conditions, 'lights', lambda c, level, lr, by: seen.append((c.name, level, lr)) or lights(c, level, lr, by))
    box = figs.explorer('quick')
    def choosers(): return box.children[0], *box.children[1].children[0].children
    net,s,lr = choosers()
    assert seen == [('Res', 4, .03)]
    lr.value = .3
    net.value = next(c for c in figs.cases('quick') if c.name == 'Conv')
    net,s,lr = choosers()
    assert net.value.name == 'Conv' and len(s.options) == 2
    s.value = 6
    assert ('Res', 4, .3) in seen and seen[-1][:2] == ('Conv', 6)
    by = {l: {k: {e: at(a) for e,a in ((.01, a1), (.1, a2))} for k,a1,a2 in (('dense', 90, 92), ('LT-IMP', 90, 88), ('LT-OMP', 80, 80), ('RR-IMP', 85, 88), ('RR-OMP', 70, 70), ('small', 84, 86))} for l in (4,)}
    c = replace(figs.quick_cases()[0], lrs=(.01, .1))
    lamps = [l.get_markerfacecolor() for l in lights(c, 4, .01, by[4]).axes[1].lines]
    assert lamps == [{True: '#00aa68', False: '#d33f3f', None: 'none'}[x.holds] for x in figs.prize_of(c, 4, by[4], at=.01).conditions] and len(set(lamps)) == 2


def test_the_steps_of_all_rounds():
    "The control trains as many steps as the dense network and every round up to the ticket's, and its ticket is the one of Figure 3."
    c = figs.cpu_cases()[0]
    l,at = c.levels[-1],c.longer[0]
    v = figs.all_rounds(c)[at]
    recipe = lambda n: n.inputs[0].args['recipe']
    assert recipe(v['dense'][0]) == c.at(at) and recipe(v['LT-IMP'][0]) == c.at(at)
    long = recipe(v['dense, all steps'][0])
    assert long.steps == c.recipe.steps*(l + 1) and [m/long.steps for m in long.milestones] == [m/c.recipe.steps for m in c.recipe.milestones] and long.lr == at
    assert v['LT-IMP'] == figs.grid_of(c, l)['LT-IMP'][at] and v['dense'] == figs.grid_of(c, l)['dense'][at] != v['dense, all steps']
    assert not any(x.longer for x in (*figs.quick_cases(), *figs.paper_cases()))
