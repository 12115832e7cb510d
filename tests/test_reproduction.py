"What is published comes out again: one small result of each chapter, computed anew by the engine that made it."
import os, subprocess, sys

import pytest, torch
from conftest import ROOT
from lth_nb.cli import CHAPTERS, figures
from lth_nb.experiment import Published, Store, missing, nodes_in, processor

PUBLISHED = Published(ROOT/'nbs/results')
# Of the 2,121 results of scale quick, all but a cost in seconds have the same bits with either, on one processor
ALIKE = {'2.14', '2.15'}

class Nothing:
    "A store with nothing in it."
    def has(self, path): return False

def steps_to(node):
    "Steps of training from nothing to a result."
    firsts = [task.nodes for task in missing([node], Nothing()).values()]
    return sum(nodes[0].step.size(nodes) for nodes in firsts if nodes[0].step.size)

def engine_of(made):
    "What trained: what a record says, and before there were stacks the loop; '' where nobody knows."
    return made.get('engine') or ('loop' if made['date'] < '2026-11-30' else '')

def quickest(chapter):
    "The published result of scale quick that takes the fewest steps of training, but some."
    wanted = dict.fromkeys(n for f in figures(chapter) for n in nodes_in(f.nodes('quick')))
    steps = {n: steps_to(n) for n in wanted if PUBLISHED.has(n.path) and engine_of(PUBLISHED.record(n.path)['made'])}
    return min((n for n in steps if steps[n]), key=lambda n: (steps[n], n.path))

def alike(one, other):
    "Whether two versions of torch give the same bits."
    return one == other or {'.'.join(version.split('.')[:2]) for version in (one, other)} <= ALIKE

ANEW = """
import sys
from lth_nb.cli import figures
from lth_nb.experiment import Store, compute, nodes_in
chapter, path, folder = sys.argv[1:]
plan = [f.nodes('quick') for f in figures(chapter)]
node = next(n for n in nodes_in(plan) if n.path == path)
compute(node, store=Store(folder), workers=1, device='cpu', quiet=True, plan=plan)
"""

@pytest.mark.parametrize('chapter', CHAPTERS)
def test_a_published_result_comes_out_again(chapter, tmp_path):
    """To the bit where processor and torch are those it was made with, or alike.
    Elsewhere training may round another way, and the test is skipped."""
    path = quickest(chapter).path
    made = PUBLISHED.record(path)['made']
    if made['machine'] != processor() or not alike(made['torch'], torch.__version__):
        here = f'torch {torch.__version__} on {processor()}'
        pytest.skip(f'made with torch {made["torch"]} on {made["machine"]}, this is {here}')
    command = [sys.executable, '-c', ANEW, chapter, path, tmp_path]
    env = {**os.environ, 'LTH_NB_STACK': '0' if engine_of(made) == 'loop' else 'auto'}
    anew = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    assert anew.returncode == 0, anew.stderr[-2000:]
    assert Store(tmp_path).record(path)['value'] == PUBLISHED.record(path)['value'], f'{path} of {made}'
