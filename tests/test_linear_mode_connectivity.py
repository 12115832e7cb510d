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


def ends_at(*errors): return [a_line(1, error) for error in errors]


LOW_RATE, WARM = named(QUICK, 'Conv low'), named(QUICK, 'Conv warmup')

@pytest.mark.parametrize('low,holds', [(.1, True), (5., False)])
def test_low_rates_and_warmup_match_and_are_stable(low, holds):
    lines = dict(full=lines_of(1, 1, 1), imp=ends_at(5 + low, 5.01 + low, 5.02 + low))
    assert figures.lm6({LOW_RATE: lines, WARM: lines}, 'quick').holds is holds
    unstable = dict(lines, imp=lines_of(*HIGH))
    assert figures.lm6({LOW_RATE: lines, WARM: unstable}, 'quick').holds is False


def test_a_yes_on_low_rates_and_warmup_takes_both():
    lines = dict(full=lines_of(1, 1, 1), imp=ends_at(5.1, 5.11, 5.12))
    verdict = figures.lm6({LOW_RATE: lines}, 'quick')
    assert verdict.holds is None and 'only low was run' in verdict.why


# What varies from one initialisation to the next is in both of a pair
DENSE = (3, 5, 7)

@pytest.mark.parametrize('lost,holds', [((.1, .12, .08), True), ((2, 2.1, 1.9), False), ((-1, .5, 2), None)])
def test_subnetworks_are_compared_with_their_own_whole_network(lost, holds):
    lines = dict(full=ends_at(*DENSE), imp=ends_at(*(a + b for a, b in zip(DENSE, lost))))
    assert figures.matching(CONV, lines['full'], lines['imp']).holds is holds
    assert figures.lm6({LOW_RATE: lines, WARM: lines}, 'quick').holds is holds


def test_controls_are_compared_with_their_own_ticket():
    """IMP's errors are 3, 5 and 7; the control's are 4, 2 and 7 higher. As if the control's mean were a constant the
    lead is 5.3 to 3.3 points lower or higher; in pairs it is what it is."""
    lead = np.array([1., 12.9, 7.])
    lines = dict(imp=ends_at(*DENSE), reinit=ends_at(*(DENSE + lead)), prune=ends_at(40, 41, 42))
    verdict = figures.lm5({CONV: lines}, 'quick')
    assert math.isclose(verdict.effect, lead.mean())
    assert verdict.holds is None
    lines['reinit'] = ends_at(*(DENSE + np.array([2., 2.1, 1.9])))
    assert figures.lm5({CONV: lines}, 'quick').holds is False


def test_a_hopeless_control_changes_nothing():
    lines = dict(imp=ends_at(*DENSE), reinit=ends_at(*(np.array(DENSE) + .1)))
    near, far = (figures.lm5({CONV: dict(lines, prune=ends_at(*errors))}, 'quick')
                 for errors in ((8, 9, 9), (20, 90, 50)))
    assert near.holds is far.holds is True


def test_one_pair_shares_its_networks_with_the_others():
    "Nine lines of three initialisations are three samples."
    case = PAPER['LeNet']
    lines = lines_of(*[1.]*3, *[1.1]*3, *[9.]*3)
    assert figures.by_initialisation(lines, case).tolist() == pytest.approx([1, 1.1, 9])
    assert figures.stability(lines, case).holds is None


def test_barriers_are_judged_by_factors():
    verdict = figures.lm1({CONV: {'averaged': lines_of(14, 14, 25)}}, 'quick')
    assert verdict.holds is True
    low, high = verdict.interval
    assert 7 < low < 8 and 38 < high < 40


REST = {50: (.65, .45, 7.5), 200: (.4, .4, .4)}
RESET = {50: (2.3, 2.4, 9.85), 200: (.4, .4, .4)}

def schedules(rest, reset):
    return {CONV: {end: {0: lines_of(*HIGH), **{k: lines_of(*peaks) for k, peaks in by_k.items()}}
                   for end, by_k in dict(rest=rest, reset=reset).items()}}


def test_a_stable_k_says_nothing_about_the_schedule():
    "Instability doubles at k = 50 in all three; that both are .4 at k = 200 must not hide it."
    verdict = figures.lm4(schedules(REST, RESET), 'quick')
    assert verdict.holds is None
    assert 'k = 50' in verdict.why and 'k = 200' not in verdict.why
    assert figures.lm4(schedules({50: (4, 5, 6)}, {50: (20, 26, 29)}), 'quick').holds is False
    assert figures.lm4(schedules({50: (4, 5, 6)}, {50: (4.2, 4.8, 6.3)}), 'quick').holds is True
    assert figures.lm4(schedules({200: LOW}, {200: LOW}), 'quick').holds is None


@pytest.mark.parametrize('stable,lost,holds', [(LOW, .1, True), (HIGH, 3, True), (LOW, 3, False), (HIGH, .1, False)])
def test_matching_where_stable(stable, lost, holds):
    imp = [a_line(peak, 5 + lost) for peak in stable]
    assert figures.lm7({CONV: dict(full=ends_at(5, 5, 5), imp=imp)}, 'quick').holds is holds


def test_lm6_and_lm7_have_one_rule_for_matching():
    "A warmup network that LM6 leaves open is open in LM7, too."
    lines = dict(full=ends_at(*DENSE), imp=[a_line(.5, error) for error in (2.5, 5.5, 8.)])
    assert figures.lm6({LOW_RATE: lines, WARM: lines}, 'quick').holds is None
    assert figures.lm7({WARM: lines}, 'quick').holds is None


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


@pytest.mark.parametrize('imp,prune,sparse,holds', [
    (.1, .1, 3, True), (3, .1, 3, True),   # matching from the k of stability, or a place later
    (9, .1, 3, False),                     # two places later
    (.1, 5, 3, False),                     # random ones do not match at low sparsity
    (.1, .1, .1, False)])                  # one matches at extreme sparsity
def test_sparsities_verdict(imp, prune, sparse, holds):
    "Stable from the second k on."
    first, second, third = CONV.sub_ks
    last = 3 if imp == 9 else .1
    found = {first: lines_of(*HIGH, ends=10.), second: lines_of(*LOW, ends=5 + imp),
             third: lines_of(*LOW, ends=5 + last)}
    if imp == 9: found[first] = lines_of(*LOW, ends=14.)
    at_end = {k: lines_of(*HIGH, ends=5 + sparse) for k in CONV.sub_ks}
    random = {k: lines_of(*HIGH, ends=5 + prune) for k in CONV.sub_ks}
    imps = {level: found for level in CONV.sweep} | {CONV.sweep[-1]: at_end}
    prunes = {level: random for level in CONV.sweep} | {CONV.sweep[-1]: at_end}
    values = dict(full=lines_of(*HIGH), imp=imps, prune=prunes)
    assert figures.lm10({CONV: values}, 'quick').holds is holds


def test_never_takes_every_k():
    "Random subnetworks that are worse and unstable at some k do not tell that they never are better."
    def values(*ks):
        bad = {k: lines_of(*HIGH, ends=12.) if k in ks else [] for k in CONV.sub_ks}
        return {CONV: dict(full=lines_of(*HIGH), prune=bad, reinit=bad)}
    assert figures.lm9(values(*CONV.sub_ks), 'quick').holds is True
    assert figures.lm9(values(0), 'quick').holds is None


def scores(*errors): return [{2000: dict(test=dict(error=error))} for error in errors]

def at_rate(full, imp, reinit): # Errors of three initialisations each
    runs = zip(*(scores(*errors) for errors in (full, imp, reinit)))
    return [dict(full={0: a}, imp={3: b}, reinit={3: c}) for a, b, c in runs]

WINS = at_rate((3, 4, 5), (3.1, 4.1, 5), (6, 7.2, 8))
LEADS_ONLY = at_rate((3, 4, 5), (5, 6.1, 7), (7, 8.2, 9.1))
HOPELESS = at_rate((90, 90, 90), (90, 89, 90), (90, 90, 88))

@pytest.mark.parametrize('large,small,holds', [
    (LEADS_ONLY, WINS, True), (WINS, WINS, False), (LEADS_ONLY, LEADS_ONLY, False), (HOPELESS, WINS, None)])
def test_winning_tickets_by_learning_rate(large, small, holds):
    case = replace(figures.vgg19_cases('quick')[0], levels=(3,))
    assert figures.lm11({case: {'0.5': large, '0.05': small}}, 'quick').holds is holds


def published(figure): return figure.values('paper', store=Published(ROOT/'nbs/results'), stored=True)


def test_published_lenet_is_as_accurate_as_the_papers():
    lines = published(figures.FIG_2)[PAPER['LeNet']]['averaged']
    assert len(figures.measured(lines)) == 9
    assert abs(figures.accuracy(lines, PAPER['LeNet'])[0] - 98.3) < .5


def test_published_lenet_is_stable_at_every_k():
    case = PAPER['LeNet']
    seen = figures.stability_at(case, published(figures.FIG_3)[case])
    assert len(seen) > 1
    assert [k for k, verdict in seen.items() if not verdict.holds] == []


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
