"""Scale `gpu`: quarter schedules of the papers' networks on CIFAR-10, in bf16, within a budget of training steps."""
from collections import Counter

import pytest

from lth_nb import cli
from lth_nb.cli import figures
from lth_nb.experiment import Store, compute, missing, nodes_in
from lth_nb.figures import in_turn
from lth_nb.rooms import CHAPTERS

BUDGET = 1_500_000   # replica-steps of ResNet-20 a chapter


def nodes_of(chapter): return list(nodes_in([figure.nodes('gpu') for figure in figures(chapter)]))


def above(nodes):
    "Nodes and all that they are made from."
    seen = {}
    todo = list(nodes)
    while todo:
        node = todo.pop()
        if node.key in seen: continue
        seen[node.key] = node
        todo += node.inputs
    return list(seen.values())


def network_of(node):
    "The name of the network that a node trains."
    if 'network' in node.args: return node.args['network'].name
    return next(filter(None, map(network_of, node.inputs)), None)


def steps_by_network(nodes, store):
    calls = [task.nodes for task in missing(nodes, store).values() if task.nodes[0].step.size]
    total = Counter()
    for call in calls: total[network_of(call[0])] += call[0].step.size(call)
    return total


@pytest.mark.parametrize('chapter', CHAPTERS)
def test_a_chapter_is_within_its_budget(chapter, tmp_path):
    total = steps_by_network(nodes_of(chapter), Store(str(tmp_path)))
    assert 1e5 < total['resnet20'] <= BUDGET
    assert set(total) <= {'resnet20', 'vgg16'}


@pytest.mark.parametrize('chapter', CHAPTERS)
def test_every_training_is_in_bf16_on_cifar10(chapter):
    trained = [node for node in above(nodes_of(chapter)) if node.step.size]
    assert trained
    assert {node.args['recipe'].precision for node in trained} == {'bf16'}
    assert {node.args['data'].name for node in trained} == {'cifar10'}


def test_linear_mode_connectivity_begins_with_183_000_steps(tmp_path):
    "At k = 0 and 2000: three initialisations, two data orders."
    first = next(figure for figure in figures('linear_mode_connectivity') if figure.id.endswith('figure-3'))
    steps = steps_by_network(nodes_in(first.nodes('gpu')), Store(str(tmp_path)))
    assert steps['resnet20'] == 3*2*15750 + 3*(2000 + 2*13750) == 183_000


ORDER = '''linear_mode_connectivity figure-2, table-1, figure-3 (ResNet-20)
linear_mode_connectivity figure-2, table-1, figure-3 (VGG-16)
weight_correlation figure-4, z-scores (ResNet-20/C10)
linear_mode_connectivity table-2, figure-5 (ResNet-20)
linear_mode_connectivity figure-6, figure-7 (ResNet-20)
early_phase figure-1 (ResNet-20)
early_phase figure-4 (ResNet-20)
early_phase figure-5 (ResNet-20)
early_phase figure-6 (ResNet-20)
early_phase figure-7 (ResNet-20)
early_phase figure-8 (ResNet-20)
sanity_checks figure-3, table-3 (ResNet-20)
sanity_checks figure-3, table-3 (VGG-16)'''.split('\n')


def test_the_order():
    "Lines, R_p, IMP at 0 and at 500, the early phase, sanity checks; then all that has no turn, nothing left out."
    parts = in_turn(figures(), 'gpu')
    assert [cli.said_of(part) for part in parts[:len(ORDER)]] == ORDER
    everything = {node for chapter in CHAPTERS for node in nodes_of(chapter)}
    assert {node for part in parts for node in part.nodes} == everything
    left = [CHAPTERS.index(id.split('/')[0]) for part in parts[len(ORDER):] for id in part.figures]
    assert left == sorted(left)


def test_status_says_the_order_and_what_each_part_adds(store_of_its_own):
    lines = cli.status('linear_mode_connectivity', 'gpu').split('\n')
    todo = lines[lines.index('missing at scale gpu, in the order in which to compute it:') + 1:]
    assert todo[0].endswith(f'1. {ORDER[0]}: 183,000 steps')
    added = sum(int(line.split(': ')[1].removesuffix(' steps').replace(',', '')) for line in todo)
    assert added == cli.steps_in(nodes_of('linear_mode_connectivity'))
    assert 'in the order' not in cli.status('linear_mode_connectivity', 'smoke')


# ------------------------------------------------------------------ steps, counted by hand

@pytest.fixture
def store_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv('LTH_NB_RESULTS', str(tmp_path))
    monkeypatch.setenv('LTH_NB_PUBLISHED', 'none')


def rows_of_status(capsys, *args):
    assert cli.main(['status', 'linear_mode_connectivity', '--scale', 'smoke', *args]) == 0
    lines = capsys.readouterr().out.strip().split('\n')[1:]
    return {line.rsplit(None, 1)[0]: line.split()[-1] for line in lines}


def test_steps_are_those_of_a_count_by_hand(store_of_its_own, capsys):
    "Smoke's Figure 3: two networks, two initialisations, two orders, 30 steps, k = 0 and 10."
    rows = rows_of_status(capsys, '--steps')
    at_0 = 2*2*2*30
    at_10 = 2*2*(10 + 2*20)
    assert rows['linear_mode_connectivity/figure-2'] == rows['linear_mode_connectivity/table-1'] == f'{at_0}/{at_0}'
    assert rows['linear_mode_connectivity/figure-3'] == f'{at_0 + at_10}/{at_0 + at_10}'
    conv = (at_0 + at_10)//2
    anew = 2*2*30   # from the state at 10, the whole schedule
    assert rows['linear_mode_connectivity/figure-4'] == f'{conv + anew}/{conv + anew}'


def test_what_is_stored_is_not_missing(store_of_its_own, capsys):
    "One line of Figure 2 takes two trainings of 30 steps off every figure that has it, and off the chapter once."
    before = rows_of_status(capsys, '--steps')
    figure = next(figure for figure in figures('linear_mode_connectivity') if figure.id.endswith('figure-2'))
    compute(next(iter(nodes_in(figure.nodes('smoke')))), workers=1, quiet=True, device='cpu')
    after = rows_of_status(capsys, '--steps')
    def missing_in(rows, name): return int(rows[name].split('/')[0].replace(',', ''))
    for name in ('linear_mode_connectivity/figure-2', 'linear_mode_connectivity/figure-3',
                 'linear_mode_connectivity, each trajectory once'):
        assert missing_in(before, name) - missing_in(after, name) == 60, name
        assert before[name].split('/')[1] == after[name].split('/')[1]


# ------------------------------------------------------------------ a time box

@pytest.fixture
def asked(monkeypatch, store_of_its_own):
    "What `run` asks `compute` for: (nodes, minutes), each call taking four minutes."
    calls = []
    monkeypatch.setattr(cli, 'compute', lambda nodes, *, minutes, **how: calls.append((nodes, minutes)))
    monkeypatch.setattr(cli.time, 'monotonic', lambda: 240.*len(calls))
    return calls


def test_a_time_box_at_gpu_goes_in_turn(asked):
    "Until the time is over; each part has what is left."
    cli.run('early_phase', 'gpu', minutes=10)
    parts = in_turn(figures('early_phase'), 'gpu')
    assert [minutes for _, minutes in asked] == [10, 6, 2]
    assert [set(nodes) for nodes, _ in asked] == [set(part.nodes) for part in parts[:3]]


@pytest.mark.parametrize('scale,minutes', (('gpu', None), ('smoke', 10)))
def test_everything_at_once_otherwise(asked, scale, minutes):
    cli.run('early_phase', scale, minutes=minutes)
    assert len(asked) == 1 and asked[0][1] == minutes


def test_a_time_box_for_one_figure(asked):
    cli.run('early_phase', 'gpu', minutes=10, figure='figure-4')
    assert len(asked) == 1
