"""Scale `gpu`: quarter schedules of the papers' networks on CIFAR-10, in bf16, within a budget of training steps."""
from collections import Counter

import pytest

from lth_nb.cli import figures
from lth_nb.experiment import Store, missing, nodes_in
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
