"""Every notebook runs, each in a process of its own, as many side by side as there are cores; some, twice."""
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import ROOT, notebooks

RUN = """
import sys
from nbdev.test import nbdev_test
sys.exit(getattr(nbdev_test, '__wrapped__', nbdev_test)({notebook!r}, n_workers=0) or 0)
"""


# Another order of summation, here and on other machines: what the CPU has in wide instructions is not used
OTHERWISE = dict(ATEN_CPU_CAPABILITY='default', MKL_CBWR='COMPATIBLE', ONEDNN_MAX_CPU_ISA='AVX2')
TRAINS = ['index', '01_early_phase', '02_linear_mode_connectivity', '03_sanity_checks', '04_weight_correlation',
          'lib/training', 'lib/pruning', 'lib/admm', 'lib/engine/replica', 'lib/measures/curvature',
          'lib/measures/landscape']


def run(name, results):
    "The process in which a notebook ran, at scale smoke, over the published results; or all that train, otherwise."
    env = {**os.environ, 'LTH_NB_SCALE': 'smoke', 'LTH_NB_RESULTS': str(results), 'OMP_NUM_THREADS': '1',
           'LTH_NB_PUBLISHED': str(ROOT/'nbs/results'), 'MPLBACKEND': 'agg', 'CI': 'true'}
    command = [sys.executable, '-c', RUN.format(notebook=str(ROOT/'nbs'/name))]
    if name == 'otherwise':
        env |= {**OTHERWISE, 'LTH_NB_PUBLISHED': 'none', 'LTH_NB_WORKERS': '1', 'LTH_NB_DEVICE': 'cpu'}
        files = [ROOT/f'nbs/{trains}.ipynb' for trains in TRAINS]
        command = [sys.executable, ROOT/'tests/otherwise.py', *files, ROOT/'tests/test_training.py',
                   '--', ROOT/'nbs/index.ipynb']
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.fixture(scope='module')
def running(request, tmp_path_factory):
    "{notebook: its run, perhaps not at its end yet} of those that this session tests."
    items = [item for item in request.session.items if item.path == request.path]
    names = [item.callspec.params['name'] for item in items]
    pool = ThreadPoolExecutor(os.cpu_count())
    yield {name: pool.submit(run, name, tmp_path_factory.mktemp('results')) for name in names}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize('name', ['otherwise'])
def test_what_holds_does_not_hang_on_one_machines_rounding(name, running):
    """Sums in another order differ in their last bits, and training makes much of them. What notebooks and training
    tests assert has to hold all the same, or it is true of one machine; the front page's example is tried twice."""
    r = running[name].result()
    assert r.returncode == 0, r.stdout[-3000:] + r.stderr[-6000:]
    print(r.stdout)


@pytest.mark.parametrize('name', [file.relative_to(ROOT/'nbs').as_posix() for file in notebooks()])
def test_notebook(name, running):
    r = running[name].result()
    assert r.returncode == 0, r.stdout[-6000:] + r.stderr[-3000:]
    assert 'Failed' not in r.stdout + r.stderr, r.stdout[-6000:]
