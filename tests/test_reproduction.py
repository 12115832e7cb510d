"What is published comes out again: one small result of each chapter, computed anew."
import subprocess, sys

import pytest, torch
from conftest import ROOT
from lth_nb.cli import CHAPTERS, figures
from lth_nb.experiment import Published, Store, missing, nodes_in, processor

published = Published(ROOT/'nbs/results')
ALIKE = {'2.14', '2.15'}   # of the 2,121 results of scale quick all but a cost in seconds have the same bits with either, on one processor

def quickest(chapter):
    "The published result of scale quick that takes the fewest steps to compute from nothing, and those steps."
    steps = lambda n: sum(t.nodes[0].step.size(t.nodes) for t in missing([n], _nothing).values() if t.nodes[0].step.size)
    seen = {n.path: n for f in figures(chapter) for n in nodes_in(f.nodes('quick')) if published.has(n.path)}
    return min(((steps(n), p, n) for p, n in seen.items() if steps(n)), key=lambda spn: spn[:2])

class _Nothing:
    def has(self, path): return False
_nothing = _Nothing()


@pytest.mark.parametrize('chapter', CHAPTERS)
def test_a_published_result_comes_out_again(chapter, tmp_path):
    "To the bit where processor and torch are those it was made with, or alike; elsewhere training may round another way, and the test is skipped."
    _, path, node = quickest(chapter)
    made = published.record(path)['made']
    minor = lambda v: '.'.join(v.split('.')[:2])
    same = made['torch'] == torch.__version__ or {minor(made['torch']), minor(torch.__version__)} <= ALIKE
    if not same or made['machine'] != processor(): pytest.skip(f'made with torch {made["torch"]} on {made["machine"]}, this is {torch.__version__} on {processor()}')
    code = f"""
from lth_nb.cli import figures
from lth_nb.experiment import Store, compute, nodes_in
n = next(n for f in figures({chapter!r}) for n in nodes_in(f.nodes('quick')) if n.path == {path!r})
compute(n, store=Store({str(tmp_path)!r}), workers=1, device='cpu', quiet=True)
"""
    r = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-2000:]
    assert Store(tmp_path).record(path)['value'] == published.record(path)['value'], f'{path} of {made}'
