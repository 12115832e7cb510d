"""Linear mode connectivity: its plans, its verdicts, and the published numbers."""
import math
from dataclasses import replace

import numpy as np, pytest
from conftest import ROOT
from helpers import named
from lth_nb import linear_mode_connectivity as lmc
from lth_nb.experiment import Published, Store, compute, missing, nodes_in
from lth_nb.figures import linear_mode_connectivity as figures
from lth_nb.figures.kit import FIGURES, Needs
from lth_nb.training import evaluate, init, train

CHAPTER = [figure for figure in FIGURES.values() if figure.id.startswith('linear_mode_connectivity/')]
QUICK = figures.cases('quick')
CONV = named(QUICK, 'Conv') # 2,000 steps
HIGH = (40, 42, 44)   # barriers of three pairs
LOW = (.5, .6, .7)


def a_line(peak, ends=5., n=5):
    "What `line` would give: a curve with a barrier of `peak` points."
    errors = [ends]*n
    errors[n//2] = ends + peak
    part = dict(error=errors, loss=errors, n=100)
    return dict(alphas=np.linspace(0, 1, n).tolist(), train=part, test=part)


def lines_of(*peaks, ends=5.): return [a_line(peak, ends) for peak in peaks]


@pytest.mark.parametrize('scale', ('smoke', 'quick', 'cpu', 'gpu', 'paper'))
@pytest.mark.parametrize('figure', CHAPTER, ids=lambda figure: figure.id.split('/')[1])
def test_plans(figure, scale):
    "Every figure has a plan at every scale, made without data on disk; what cannot be had says what it needs."
    plan = figure.nodes(scale)
    if not plan: assert scale in ('cpu', 'gpu')   # cpu has no Figures 4 and 9, gpu no 9
    else: assert set(nodes_in(plan)) or any(isinstance(value, Needs) for value in plan.values())


def test_the_chapter_gives_its_figures_too():
    assert lmc.FIG_3 is figures.FIG_3
    assert lmc.cases is figures.cases
    with pytest.raises(AttributeError, match='no_such_name'): lmc.no_such_name


def test_a_scale_that_is_not_there():
    with pytest.raises(ValueError, match="'huge'.*smoke, quick"): figures.cases('huge')


PAPER = {case.name: case for case in figures.paper_cases()}


def test_paper_cases_are_the_rows_of_both_tables():
    assert list(PAPER) == list(figures.PAPER_TABLE_1)
    assert list(PAPER) == list(figures.PAPER_TABLE_2)


def test_lenets_plan_is_the_papers():
    case = PAPER['LeNet']
    assert case.recipe.end(case.data) == 24000
    assert (case.recipe.batch, case.recipe.optimizer, case.recipe.lr) == (60, 'adam', 12e-4)
    assert case.alphas == 30
    assert len(lmc.dense_lines(case)) == 9


@pytest.mark.parametrize('name,left', [
    ('LeNet', 3.5), ('ResNet-20', 16.8), ('ResNet-20 low', 8.6), ('ResNet-20 warmup', 8.6), ('VGG-16', 1.5),
    ('VGG-16 low', 5.5), ('VGG-16 warmup', 1.5), ('ResNet-50', 30), ('Inception-v3', 30)])
def test_densities_are_the_papers(name, left):
    "VGG-16's last layer is not pruned and is counted."
    assert round(PAPER[name].percent, 1) == left


@pytest.mark.parametrize('name,setting', [('LeNet', 'small'), ('VGG-16', 'standard'), ('VGG-16 low', 'low'),
                                          ('ResNet-20 warmup', 'warmup')])
def test_settings(name, setting): assert PAPER[name].setting == setting


def trained(nodes):
    "How many networks are trained for these results."
    tasks = missing(nodes, Store('memory://none'))
    return sum(task.nodes[0].step.name == 'trajectory' for task in tasks.values())


def test_pairs_share_their_runs():
    "Nine lines of nine children, each trained once; the first child is also the first round of pruning."
    nodes = lmc.dense_lines(PAPER['LeNet'])
    assert trained(nodes) == 9
    assert trained([*nodes, lmc.ticket(PAPER['LeNet'], 0, 0, level=1)]) == 9


def test_reset_starts_the_schedule_over():
    k = CONV.ks[2]
    rest, reset = (next(iter(lines[0].inputs)).args for lines in (lmc.dense_lines(CONV, k),
                                                                  lmc.dense_lines(CONV, k, reset=True)))
    assert rest['first'] == k
    assert reset['first'] == 0
    assert rest['start'] == reset['start']


def test_controls_keep_their_half():
    weights = {}
    masks = {}
    for kind in lmc.KINDS: weights[kind], masks[kind] = lmc.subnetwork(CONV, 50, 0, kind)
    assert weights['imp'] == weights['prune'] != weights['reinit']
    assert masks['imp'] == masks['reinit'] != masks['prune']
    assert masks['prune'].args['mask'] == masks['imp']


def test_an_unknown_kind():
    with pytest.raises(ValueError, match="'magic': use one of imp"): lmc.subnetwork(CONV, 50, 0, 'magic')


def test_a_choice_differs_from_lenet_in_what_it_says():
    case = figures.choice('kaiming_normal', 'standard')
    assert (case.network.init, case.data.scaling) == ('kaiming_normal', 'standard')
    assert figures.lines_of_choice(case)[0].labels['case'] == 'LeNet'


STABILITY = [((40, 44, 42), True, False), ((.5, .6, .4), False, True), ((1, 3, 2), None, None), ((40,), None, None)]


@pytest.mark.parametrize('peaks,large,small', STABILITY)
def test_stability_verdicts(peaks, large, small):
    lines = {'averaged': lines_of(*peaks)}
    assert figures.lm1({CONV: lines}, 'quick').holds is large
    assert figures.lm2({named(QUICK, 'MLP'): lines}, 'quick').holds is small


def test_nothing_computed_decides_nothing():
    assert figures.lm1({CONV: {'averaged': [None]*3}}, 'quick').holds is None


def test_onset():
    first = lmc.onset({0: np.array([9., 9, 9]), 10: np.array([1., 9, 9]), 20: np.array([1., 1, 9])}, 2)
    assert first[:2].tolist() == [1, 2]
    assert math.isnan(first[2])


def test_median_onset():
    by_k = {0: np.array([9., 9, 9]), 10: np.array([1., 9, 9]), 20: np.array([1., 1, 9])}
    assert figures.median_onset(by_k, 2) == 1.5
    assert math.isnan(figures.median_onset({0: np.array([9., 9, 1])}, 2))   # no majority


@pytest.mark.parametrize('low,holds', [(.1, True), (5., False)])
def test_table_2_verdicts(low, holds):
    full = lines_of(1, 1, 1)
    imp = [a_line(1, 5 + low + d) for d in (0, .01, .02)]
    assert figures.lm6({named(QUICK, 'Conv low'): dict(full=full, imp=imp)}, 'quick').holds is holds


@pytest.mark.parametrize('by_k,holds', [
    ({0: HIGH, 200: LOW, 800: LOW}, True),
    ({0: HIGH, 200: HIGH, 400: LOW}, True),
    ({0: HIGH, 200: HIGH, 800: LOW}, None),    # stable somewhere between a tenth and two fifths of training
    ({0: HIGH, 600: HIGH, 800: LOW}, False),   # too late to be early
    ({0: HIGH, 400: HIGH}, False),
    ({0: HIGH, 400: (1, 2, 6)}, None),
    ({0: LOW, 100: HIGH}, False),
    ({0: (40,), 100: (1,)}, None)])
def test_early_stability_verdict(by_k, holds):
    lines = {k: lines_of(*peaks) for k, peaks in by_k.items()}
    assert figures.lm3({CONV: lines}, 'quick').holds is holds


@pytest.mark.parametrize('imp,lost,dense,holds', [
    ((HIGH, LOW, LOW), (5, .1, .1), (HIGH, HIGH, LOW), True),
    ((HIGH, LOW, LOW), (5, 5, .1), (HIGH, HIGH, LOW), True),      # matching one place later
    ((HIGH, LOW, LOW), (5, .1, .1), (HIGH, LOW, LOW), None),      # the grid cannot tell who is first
    ((HIGH, HIGH, LOW), (5, .1, .1), (HIGH, LOW, LOW), False),    # after the whole network
    ((LOW, LOW, LOW), (5, 5, .1), (HIGH, HIGH, LOW), False),      # stable long before it matches
    ((HIGH, LOW, LOW), (5, 5, 5), (HIGH, HIGH, LOW), False),      # never matches
    ((HIGH, HIGH, HIGH), (5, .1, .1), (HIGH, HIGH, LOW), False)]) # never stable
def test_subnetworks_stable_and_matching_verdict(imp, lost, dense, holds):
    def lines(peaks, off): return [a_line(peak, 5 + off + d) for peak, d in zip(peaks, (-.02, 0, .02))]
    def by_k(peaks, off): return {k: lines(*at) for k, *at in zip(CONV.sub_ks, peaks, off)}
    values = dict(full=lines_of(*HIGH), dense=by_k(dense, (0, 0, 0)), imp=by_k(imp, lost))
    assert figures.lm8({CONV: values}, 'quick').holds is holds


@pytest.mark.parametrize('imp,prune,holds', [(.1, .1, True), (.1, 5, False), (5, .1, None)])
def test_sparsities_verdict(imp, prune, holds):
    """Stable from the second k on; matching from there, or a place later, which decides nothing;
    random pruning as good at low sparsity or not."""
    first, second, third = CONV.sub_ks
    found = {first: lines_of(*HIGH, ends=10.), second: lines_of(*LOW, ends=5 + imp), third: lines_of(*LOW, ends=5.1)}
    random = {k: lines_of(*HIGH, ends=5 + prune) for k in CONV.sub_ks}
    values = dict(full=lines_of(*HIGH), imp=dict.fromkeys(CONV.sweep, found), prune=dict.fromkeys(CONV.sweep, random))
    assert figures.lm10({CONV: values}, 'quick').holds is holds


def published(figure): return figure.values('paper', store=Published(ROOT/'nbs/results'), stored=True)


def test_published_lenet_is_as_accurate_as_the_papers():
    lines = published(figures.FIG_2)[PAPER['LeNet']]['averaged']
    assert len(figures.measured(lines)) == 9
    assert abs(figures.accuracy(lines, PAPER['LeNet'])[0] - 98.3) < .5


def test_published_lenet_is_stable_at_every_k():
    peaks = figures.sizes_of(published(figures.FIG_3)[PAPER['LeNet']], figures.barriers)
    assert len(peaks) > 1
    assert [k for k, found in peaks.items() if found.mean() >= 2] == []


def test_a_panel_without_values_says_so():
    sheet = figures.FIG_4.draw({CONV: dict(rest={0: [None]}, reset={0: [None]})}, 'quick')
    assert 'not computed yet' in [text.get_text() for text in sheet.axes[0].texts]


def test_the_explorer_says_which_cases_there_are():
    with pytest.raises(ValueError, match="'Dense'.*Conv"): figures.explorer('quick', case='Dense')


def test_lenet_learns_mnist(real_data, store):
    "A short real run, from raw files to an accuracy."
    case = PAPER['LeNet']
    run = train(init(case.network, seed=0), case.data, replace(case.recipe, steps=600), order=0)
    score = compute(evaluate(run.at('end'), case.data, splits=('test',)), store=store, workers=1, quiet=True)
    assert score['test']['error'] < 8
    assert score['test']['n'] == 10000
