"""Sanity checks: the plans, the loading code for larger data, claims, and the published numbers."""
from dataclasses import replace

import numpy as np, pytest
from conftest import ROOT
from lth_nb import networks as nets, sanity_checks as sc
from lth_nb.data import cifar10, mnist1d
from lth_nb.experiment import Published, Store, compute, missing, nodes_in
from lth_nb.figures import sanity_checks as figs
from lth_nb.figures.kit import FIGURES, Needs, accuracies
from lth_nb.figures.sanity_checks import conditions, redundancy
from lth_nb.measures import Rules
from lth_nb.networks import Network
from lth_nb.recipes import Recipe
from helpers import named

CHAPTER = [figure for figure in FIGURES.values() if figure.id.startswith('sanity_checks/')]
QUICK = named(figs.quick_cases(), 'Res')
PLAIN = named(figs.quick_cases(), 'Res plain')   # without residual connections
CPU = named(figs.cpu_cases(), 'ResNet-20')


def tiny(levels=(3,), **kw):
    "A trial that takes no time."
    net = Network('mnist1d_conv', width=8)
    how = dict(lrs=(.1,), levels=levels, seeds=1, exempt=sc.unpruned(net), rewind=2) | kw
    return figs.Trial('tiny', net, mnist1d(train=128, test=64), Recipe(6, batch=32), **how)

def trainings(wanted):
    "How many runs these take, with nothing there."
    tasks = missing(wanted, Store('memory://none'))
    return sum(task.nodes[0].step.name == 'trajectory' for task in tasks.values())


# ------------------------------------------------------------------ plans

@pytest.mark.parametrize('scale', ('smoke', 'quick', 'cpu', 'gpu'))
def test_plans(scale):
    "Every figure has a plan at every scale, made without data on disk; two need what some scales do not have."
    for figure in CHAPTER:
        plan = figure.nodes(scale)
        if figure.id.endswith(('table-2', 'all-rounds')) or scale in ('cpu', 'gpu'): continue
        assert set(nodes_in(plan)) or any(isinstance(value, Needs) for value in plan.values()), figure.id


@pytest.fixture
def paper(monkeypatch, tmp_path):
    "The paper's cases by name, with no data on the disk."
    monkeypatch.setenv('LTH_NB_DATA', str(tmp_path))
    return {case.name: case for case in figs.paper_cases()}

def test_larger_data_is_asked_for(paper):
    assert {name for name in paper if paper[name].needs} == {n for n in paper if 'CIFAR-100' in n or 'ImageNet' in n}
    planned = FIGURES['sanity_checks/figure-3'].nodes('paper')
    assert isinstance(planned[paper['ResNet-50, ImageNet']], Needs)

def test_paper_plan_is_the_papers(paper):
    case = paper['ResNet-20']
    assert [round(case.sparsity(level), 3) for level in case.levels] == [.59, .832, .914, .945, .956]
    assert case.rounds == 14
    assert case.recipe.end(case.data) == 125000
    assert case.recipe.weight_decay == 5e-4
    assert paper['ResNet-20, weight decay 1e-4'].recipe.weight_decay == 1e-4
    assert paper['VGG-16'].recipe.milestones == ('80ep', '120ep')
    assert paper['VGG-16, decay as in the code'].recipe.milestones == ('155ep',)
    assert {'figure-1', 'figure-3', 'figure-4', 'table-4'} <= {figure.id.split('/')[1] for figure in CHAPTER}

def test_parameters_are_those_of_table_2(paper):
    "It rounds or cuts; its ResNet-18 counts 100 classes, on Tiny-ImageNet 1000."
    for name,millions in figs.PAPER_PARAMETERS.items():
        if 'Tiny' in name: continue
        net = paper[name].network
        if name == 'ResNet-18': net = replace(net, classes=100)
        assert abs(nets.counts(net)[0]/1e6 - millions) < .011, name

def test_resnet_32_has_the_papers_count(paper):
    "Also without residual connections."
    case = paper['ResNet-32']
    assert nets.counts(case.network, case.exempt)[1] == 1843200
    plain = figs.without_residual(named(figs.cifar_cases(cifar10()), 'ResNet-32'))
    assert nets.counts(plain.network, plain.exempt) == (1849898, 1843200)


def test_lt_imp_is_a_round_of_imp():
    "14 rounds: LT-IMP at any round is trained in finding the mask of the next."
    case = tiny((14,))
    masks = [sc.mask_of(case, .1, 0, 14, 'IMP')]
    tickets = [sc.score(case, 'LT-IMP', .1, 0, level) for level in range(1, 14)]
    assert trainings(masks) == 14
    assert trainings([*masks, *tickets]) == 14


def test_rr_keeps_the_mask_and_not_the_start(store):
    case = tiny()
    ticket, control = (sc.run(case, kind, .1, 0, 3).node.args for kind in ('LT-IMP', 'RR-IMP'))
    assert ticket['mask'] == control['mask']
    assert ticket['order'] == control['order']
    assert ticket['start'] != control['start']
    wanted = [ticket['mask'], sc.run(case, 'RR-IMP', .1, 0, 3).at('end')]
    mask, end = compute(wanted, store=store, workers=1, quiet=True)
    for name,m in mask.items(): assert not end['weights'][name][~m].any(), name
    for name in case.exempt: assert mask[name].all(), name

def test_a_kind_that_is_not_there():
    with pytest.raises(ValueError, match='LT-IMP'): sc.run(tiny(), 'XX-IMP', .1, 0, 3)


@pytest.mark.parametrize('name', ('resnet20', 'resnet18', 'vgg16', 'mobilenet_v1', 'mnist1d_res'))
@pytest.mark.parametrize('s', (.59, .832, .956))
def test_small_dense_has_the_count(name, s):
    net = Network(name)
    total, pool = nets.counts(net, sc.unpruned(net))
    small = nets.small_dense(net, s, sc.unpruned(net))
    want = total - s*pool
    near = 2.5*max(.12*want, 60) if name == 'mnist1d_res' else .12*want   # few widths to choose from
    assert abs(nets.counts(small)[0] - want) < near
    assert small.name == net.name
    with pytest.raises(ValueError, match='between 0 and 1'): nets.small_dense(net, 1., ())


def folder(root, size, classes=2, images=3):
    "Random pictures in folders, as ImageNet has them."
    from PIL import Image
    for part in ('train', 'val'):
        for k in range(classes):
            at = root/part/f'n{k}'
            at.mkdir(parents=True)
            for i in range(images):
                g = np.random.default_rng(i + 9*k)
                Image.fromarray(g.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(at/f'{i}.png')

@pytest.fixture
def large(monkeypatch, tmp_path):
    "The cases of Tiny-ImageNet and ImageNet by name, with generated folders."
    monkeypatch.setenv('LTH_NB_DATA', str(tmp_path))
    folder(tmp_path/'tiny-imagenet-200', 64)
    folder(tmp_path/'imagenet', 80)
    return {case.name: case for case in figs.large_cases()}

@pytest.mark.parametrize('name,batch', (('ResNet-18, Tiny-ImageNet', 4), ('ResNet-18, ImageNet', 2)))
def test_tiny_imagenet_and_imagenet_from_folders(large, store, name, batch):
    "The larger data's plans: the handles load, a step trains, a mask holds."
    case = large[name]
    case = replace(case, recipe=replace(case.recipe, steps=1, batch=batch, warmup=0, milestones=()))
    node = sc.score(case, 'LT-OMP', case.lrs[0], 0, case.levels[0])
    got = compute(node, store=store, workers=1, quiet=True)
    assert got['test']['n'] == 6
    assert 0 <= got['test']['error'] <= 100

def test_folders_are_seen(large):
    assert not any(case.needs for case in large.values())
    assert large['ResNet-50, ImageNet'].data.examples == 6
    with pytest.raises(ValueError, match='one width'): sc.run(large['ResNet-50, ImageNet'], 'small', .4, 0, 4)


@pytest.mark.parametrize('call,said', [
    (lambda: tiny(lrs=()), 'one or more'),
    (lambda: tiny(lrs=(-.1,)), 'above 0'),
    (lambda: tiny(seeds=0), 'seeds=0'),
    (lambda: tiny(levels=(0,)), '1 or more'),
    (lambda: tiny(levels=()), '1 or more'),
    (lambda: tiny(fraction=1.), 'between 0 and 1'),
    (lambda: sc.score(tiny(), 'LT-IMP', .1, 0), 'level=0'),
    (lambda: sc.score(tiny(), 'small', .1, 0), 'level=0'),
    (lambda: sc.mask_of(tiny(), .1, 0, 3, 'best'), "how='best'")])
def test_bad_input_names_what_is_wrong(call, said):
    with pytest.raises(ValueError, match=said): call()


def recipe_of(node): return node.inputs[0].args['recipe']

def test_the_steps_of_all_rounds():
    """The control trains as many steps as the dense network and every round up to the ticket's, and its ticket is the
    one of Figure 3."""
    level = CPU.levels[-1]
    lr = CPU.longer[0]
    by = figs.all_rounds(CPU)[lr]
    grid = figs.grid_of(CPU, level)
    assert recipe_of(by['dense'][0]) == recipe_of(by['LT-IMP'][0]) == CPU.at(lr)
    long = recipe_of(by['dense, all steps'][0])
    short = CPU.recipe
    assert long.steps == short.steps*(level + 1)
    assert [m/long.steps for m in long.milestones] == [m/short.steps for m in short.milestones]
    assert long.lr == lr
    assert by['LT-IMP'] == grid['LT-IMP'][lr]
    assert by['dense'] == grid['dense'][lr] != by['dense, all steps']

def test_only_cpu_trains_the_steps_of_all_rounds():
    assert not any(case.longer for case in (*figs.quick_cases(), *figs.paper_cases()))


# ------------------------------------------------------------------ the published numbers

def test_published_quick():
    "The published table is the one the page shows: complete, and within what these networks do."
    figure = FIGURES['sanity_checks/table-3']
    values = figure.values('quick', store=Published(ROOT/'nbs/results'), stored=True)
    tables = [(case.name, by) for case,levels in values.items() for by in levels.values()]
    cells = []
    for name,by in tables:
        for kind,rates in by.items(): cells += [(name, kind, scores) for scores in rates.values()]
    if not any(any(scores) for _,_,scores in cells): pytest.skip('no published results yet')
    for name,kind,scores in cells: assert np.isfinite(accuracies(scores)).all(), (name, kind)
    for name,by in tables: assert max(figs.means_of(by['dense']).values()) > 85, name


# ------------------------------------------------------------------ verdicts

def at(accuracy, seeds=3, spread=.1):
    "Scores of some seeds; of none where the accuracy is None."
    if accuracy is None: return [None]*seeds
    return [dict(test=dict(error=100 - accuracy - spread*i)) for i in range(seeds)]

def panel(lrs, seeds=3, **kinds):
    "{kind: {rate: scores}} of an accuracy for each rate, or None; of one for all rates."
    table = {}
    for kind,given in kinds.items():
        each = given if isinstance(given, tuple) else (given,)*len(lrs)
        table[kind.replace('_', '-')] = {lr: at(accuracy, seeds) for lr,accuracy in zip(lrs, each)}
    return table


def test_preferences():
    by = panel((.01, .1), dense=(88, 92), LT_IMP=(90, 87), LT_OMP=(86, 87))
    assert figs.prefers_small(by).holds is True
    assert figs.prefers_imp(by).holds is True
    assert figs.prefers_small({**by, **panel((.01, .1), dense=(93, 92))}).holds is None
    assert figs.prefers_imp({**by, **panel((.01, .1), LT_OMP=None)}).holds is None


def test_every_claim_of_the_slides_is_there():
    ids = [name for figure in CHAPTER for name in figure.claims]
    assert sorted(ids, key=lambda name: int(name[2:])) == [f'SC{i}' for i in range(1, 13)]

def test_nothing_is_decided_by_nothing():
    for figure in CHAPTER:
        for claim in figure.claims.values():
            values = figure.values('smoke', store=Store('memory://nothing'), stored=True)
            assert claim.judge(values, 'smoke').holds is None, claim.text


def test_what_is_half_computed_decides_nothing():
    "One rate of several: no preference, no claim about networks without residual connections."
    def some(*known): return known + (None,)*(len(PLAIN.lrs) - len(known))
    half = panel(PLAIN.lrs, dense=some(90, 92), LT_IMP=some(91, 88), LT_OMP=some(85), RR_IMP=some(80), RR_OMP=some(80),
                 small=some(70))
    assert figs.prefers_small(half).holds is None
    assert figs.prefers_imp(half).holds is None
    assert figs.sc7({PLAIN: {PLAIN.levels[-1]: half}}, 'quick').holds is None

def test_one_seed_decides_nothing():
    alone = panel(PLAIN.lrs, 1, dense=90, LT_IMP=90, LT_OMP=80, RR_IMP=70, RR_OMP=70, small=60)
    assert figs.sc7({PLAIN: {PLAIN.levels[-1]: alone}}, 'quick').holds is None


@pytest.mark.parametrize('imp,omp,holds', [(90, 90, True), (95, 90, False), (88, 90, True)])
def test_without_residual_no_advantage_can_be_confirmed(imp, omp, holds):
    by = panel(PLAIN.lrs, dense=92, LT_IMP=imp, LT_OMP=omp, RR_IMP=80, RR_OMP=80, small=70)
    assert figs.sc7({PLAIN: {PLAIN.levels[-1]: by}}, 'quick').holds is holds


def test_a_certain_secondary_prize_is_not_hidden():
    "By one method all is certain but a Jackpot that is none; by the other nothing is: the first counts."
    case = tiny(lrs=(.01, .1), seeds=3)
    by = panel(case.lrs, dense=(88, 92), LT_OMP=88, RR_IMP=70, RR_OMP=70, small=60)
    by['LT-IMP'] = {lr: at(88, spread=4) for lr in case.lrs}
    prize = figs.prize_of(case, 3, by, rules=Rules(sparsity=.3))
    assert prize.secondary is True
    assert prize.jackpot is False
    assert prize.method == 'OMP'


def figure_1(**kinds):
    "Figure 1 of one table: (accuracy at all rates but the last, accuracy at the last) of each kind."
    n = len(QUICK.lrs) - 1
    table = panel(QUICK.lrs, **{kind: (low,)*n + (high,) for kind,(low, high) in kinds.items()})
    return {max(QUICK.levels): table}

TICKET = figure_1(dense=(90, 92), LT_IMP=(90, 85), RR_IMP=(80, 85))

def test_figure_1_claims_need_the_ticket():
    "A lead at the small rate is no ticket where dense is out of reach."
    out_of_reach = figure_1(dense=(90, 92), LT_IMP=(75, 85), RR_IMP=(60, 85))
    assert figs.sc1({QUICK: {'full': TICKET, 'short': TICKET}}, 'quick').holds is True
    assert figs.sc1({QUICK: {'full': out_of_reach, 'short': out_of_reach}}, 'quick').holds is False

def test_nothing_misleads_where_both_recipes_agree():
    none = figure_1(dense=(90, 92), LT_IMP=(85, 85), RR_IMP=(80, 80))
    assert figs.sc2({QUICK: {'full': TICKET, 'short': TICKET}}, 'quick').holds is False
    assert figs.sc2({QUICK: {'full': none, 'short': TICKET}}, 'quick').holds is True


def test_figure_1_at_a_scale_with_one_recipe():
    "Its ticket is judged by the full recipe; what a short one does stays open."
    by = panel(CPU.lrs, dense=(50, 52, 54, 56), LT_IMP=(50, 52, 50, 48), RR_IMP=(40, 44, 48, 48))
    values = {CPU: {'full': {4: by}}}
    assert figs.sc1(values, 'cpu').holds is True
    assert figs.sc2(values, 'cpu').holds is None

def test_figure_1_trains_nothing_that_figure_3_does_not():
    def paths(figure): return {node.path for node in nodes_in(FIGURES[f'sanity_checks/{figure}'].nodes('cpu'))}
    assert paths('figure-1') < paths('figure-3')


@pytest.mark.parametrize('x,y,holds', [
    ([1, 2, 3, 4], [.5, .6, .7, .8], True), ([1, 2, 3, 4], [.8, .7, .6, .5], False), ([1, 2, 3], [.5, .6, .7], None),
    ([1, 2, 3, 4], [.5, .6, .8, .7], None)])
def test_trends(x, y, holds): assert figs.trend(x, y).holds is holds


def test_a_reduced_scale_takes_training_as_sufficient():
    "At cpu the first condition is not the one that decides; at the paper's length it can be."
    by = panel(CPU.lrs, dense=(88, 90, 92), LT_IMP=(88, 91, 92), LT_OMP=(88, 91, 92), RR_IMP=(80, 84, 86),
               RR_OMP=(80, 84, 86), small=(75, 80, 84))
    assert str(figs.prize_of(CPU, 4, by)) == 'Jackpot'
    assert figs.prize_of(replace(CPU, enough=False), 4, by).conditions[0].holds is False


def test_a_case_of_one_rate():
    "It draws, and decides nothing that needs other rates."
    case = tiny((5,), seeds=2)
    by = panel(case.lrs, 2, dense=90, LT_IMP=95, LT_OMP=94, RR_IMP=80, RR_OMP=80, small=70)
    assert str(figs.prize_of(case, 5, by)) == 'not decided'
    assert figs.prefers_small(by).holds is None
    figs.lights(case, 5, .1, by)
    with pytest.raises(ValueError, match='the rates are 0.1'): figs.prize_of(case, 5, by, at=.5)


JUST = np.array([1.2, 1.8, 2.4])   # a gain that one comparison would call clear

@pytest.mark.parametrize('gains,holds', [
    pytest.param({'a': JUST}, True, id='alone'),
    pytest.param({'a': JUST, **{str(i): JUST - 4 for i in range(7)}}, None, id='the best of eight'),
    pytest.param({'a': np.array([2., 2.01, 2.02]), 'b': JUST - 4}, True, id='a clear one'),
    pytest.param({'a': np.array([-2., -2.01, -2.02]), 'b': np.array([-3., -3.01, -3.02])}, False, id='losses'),
    pytest.param({}, None, id='none')])
def test_the_best_of_several_is_not_a_gain_by_chance(gains, holds): assert figs.best_of(gains).holds is holds


SIX = [replace(QUICK, levels=(4,), name=f'n{i}') for i in range(6)]
RATES = SIX[0].lrs
PRIZE = panel(RATES, dense=90, LT_IMP=95, LT_OMP=94, RR_IMP=80, RR_OMP=80, small=70)
NO_PRIZE = panel(RATES, dense=95, LT_IMP=80, LT_OMP=80, RR_IMP=90, RR_OMP=90, small=90)
NOTHING = panel(RATES, **dict.fromkeys(('dense', 'LT_IMP', 'LT_OMP', 'RR_IMP', 'RR_OMP', 'small')))

def first_of_six(table, n): return {case: {4: table if i < n else NOTHING} for i,case in enumerate(SIX)}

def test_most_counts_what_is_planned():
    "Three networks of six with a prize are not most of six: what is not computed is not decided."
    assert figs.sc4(first_of_six(PRIZE, 3), 'quick').holds is None
    assert figs.sc4(first_of_six(PRIZE, 4), 'quick').holds is True

def test_no_jackpot_anywhere_needs_them_all():
    assert figs.sc3(first_of_six(PRIZE, 3), 'quick').holds is False, 'a Jackpot is there already'
    assert figs.sc3(first_of_six(NO_PRIZE, 3), 'quick').holds is None, 'the others may have one'
    assert figs.sc3(first_of_six(NO_PRIZE, 6), 'quick').holds is True


def prizes(ends, data='cifar10', first=0):
    "Networks of growing size, and the bounds of the largest sparsity at which each has a prize."
    return {(f'n{i}', data): (i + first, *bounds) for i,bounds in enumerate(ends)}

SURE = [(.59, .59), (.832, .832), (.914, .914), (.945, .945)]

@pytest.mark.parametrize('ends,holds', [
    pytest.param(SURE, True, id='sure'),
    pytest.param(SURE[::-1], False, id='the other way'),
    pytest.param([(.59, .956), *SURE[1:]], None, id='the smallest may be larger'),
    pytest.param([*SURE[:3], (.945, .956)], True, id='the largest may be larger still')])
def test_trends_wait_for_open_prizes(monkeypatch, ends, holds):
    "SC5: a prize that is not decided at a higher sparsity may turn a trend."
    monkeypatch.setattr(redundancy, 'largest_prizes', lambda values: prizes(ends, first=1))
    assert figs.sc5({}, 'paper').holds is holds

HIGH = [(.945, .945)]*3
LOW = [(.59, .59), (.6, .6), (.61, .61)]

@pytest.mark.parametrize('ten,hundred,holds', [
    pytest.param(HIGH, LOW, True, id='lower'), pytest.param(LOW, HIGH, False, id='higher'),
    pytest.param(HIGH, [(.59, .956)]*3, None, id='open')])
def test_more_classes_wait_for_open_prizes(monkeypatch, ten, hundred, holds):
    "SC11."
    both = prizes(ten) | prizes(hundred, 'cifar100')
    monkeypatch.setattr(redundancy, 'largest_prizes', lambda values: both)
    assert figs.sc11({}, 'paper').holds is holds


T = np.linspace(-1, 1, 7)
X, Y = np.meshgrid(T, T)
BOWL = X**2 + Y**2
ROUGH = np.cos(6*X) + np.cos(5*Y)

def loss_map(loss, i):
    return dict(x=T.tolist(), y=T.tolist(), at=[[1., 0.], [0., 0.]], explained=[.8, .1],
                loss=(loss + 1e-3*i*np.cos(5*X)).tolist())

def panels(imp, omp):
    def three(loss): return dict(map=[loss_map(loss, i) for i in range(3)], accuracy=[])
    return {f'{how}, lr {lr}': three(loss) for how,loss in (('IMP', imp), ('OMP', omp)) for lr in (.01, .1)}

@pytest.mark.parametrize('with_residual,without,holds', [
    pytest.param((BOWL, ROUGH), (ROUGH, ROUGH), True, id='IMP smoother'),
    pytest.param((ROUGH, BOWL), (ROUGH, ROUGH), False, id='OMP smoother'),
    pytest.param((BOWL, ROUGH), (BOWL, ROUGH), False, id='as smooth without')])
def test_smoother_is_judged_in_both_readings(with_residual, without, holds):
    "SC8: IMP against OMP, and with residual connections against without."
    values = {'with residual': panels(*with_residual), 'without': panels(*without)}
    assert figs.sc8(values, 'quick').holds is holds


# ------------------------------------------------------------------ pictures

CPU_TABLE = panel(CPU.lrs, 2, dense=(40, 45, 50, 55), LT_IMP=(42, 46, 50, 52), LT_OMP=(41, 45, 49, 50),
                  RR_IMP=(30, 40, 50, 52), RR_OMP=(30, 40, 49, 51), small=(30, 35, 40, 45))

def every_second(table):
    "Without every other result: of two seeds the first is there."
    return {kind: {lr: [first, None] for lr,(first, _) in rates.items()} for kind,rates in table.items()}

@pytest.mark.parametrize('table,said', [
    pytest.param(CPU_TABLE, '', id='whole'),
    pytest.param(every_second(CPU_TABLE), '24 of 48 results so far', id='half'),
    pytest.param({kind: {lr: [None]*2 for lr in CPU.lrs} for kind in CPU_TABLE}, '', id='none')])
def test_half_computed_figures_say_so(table, said):
    below = figs.draw_main({CPU: {4: table}}, 'cpu').get_supxlabel().replace('\n', ' ')
    if said: assert said in below
    else: assert 'so far' not in below

def test_the_papers_numbers_stand_beside_ours():
    rows = figs.printed_beside(CPU, CPU_TABLE).rows
    assert '[89.6]' in rows[0]['dense']
    assert '[86.5]' in rows[1]['LT-OMP']
    assert '[' not in rows[2]['dense']


def is_ring(line):
    return line.get_marker() == 'o' and line.get_markerfacecolor() == 'none' and len(line.get_xdata()) == 1

@pytest.mark.parametrize('scale,level,n', (('paper', 11, 9), ('gpu', 5, 0), ('cpu', 4, 0)))
def test_the_papers_numbers_are_drawn_where_training_is_the_papers(scale, level, n):
    "Rings at s = .914 for ResNet-20 at full length, none at a reduced scale."
    case = figs.cases(scale)[0]
    assert round(case.sparsity(level), 3) == .914
    by = {kind: {lr: at(80 + i, case.seeds) for i,lr in enumerate(case.lrs)} for kind in sc.KINDS}
    figure = figs.draw_main({case: {level: by}}, scale)
    assert sum(map(is_ring, figure.axes[0].lines)) == n


def test_the_explorer_lights_up(monkeypatch):
    "Over the published results each slider redraws; a network with other sparsities changes the sliders."
    pytest.importorskip('ipywidgets')
    monkeypatch.setenv('LTH_NB_RESULTS', '/nonexistent')
    seen = []
    lights = figs.lights
    def noted(case, level, lr, by):
        seen.append((case.name, level, lr))
        return lights(case, level, lr, by)
    monkeypatch.setattr(conditions, 'lights', noted)
    box = figs.explorer('quick')
    def choosers(): return box.children[0], *box.children[1].children[0].children
    network, level, lr = choosers()
    assert seen == [('Res', 4, .03)]
    lr.value = .3
    network.value = named(figs.cases('quick'), 'Conv')
    network, level, lr = choosers()
    assert network.value.name == 'Conv'
    assert len(level.options) == 2
    level.value = 6
    assert ('Res', 4, .3) in seen
    assert seen[-1][:2] == ('Conv', 6)

def test_the_lights_are_the_conditions():
    "Those of `judge` at that rate."
    case = replace(QUICK, lrs=(.01, .1))
    by = panel(case.lrs, dense=(90, 92), LT_IMP=(90, 88), LT_OMP=80, RR_IMP=(85, 88), RR_OMP=70, small=(84, 86))
    colours = {True: '#00aa68', False: '#d33f3f', None: 'none'}
    lamps = [line.get_markerfacecolor() for line in figs.lights(case, 4, .01, by).axes[1].lines]
    assert lamps == [colours[condition.holds] for condition in figs.prize_of(case, 4, by, at=.01).conditions]
    assert len(set(lamps)) == 2
