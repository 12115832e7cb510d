"""Every notebook runs, each in a process of its own, as many side by side as there are cores."""
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


def run(name, results):
    "The process in which a notebook ran, at scale smoke, over the published results."
    env = {**os.environ, 'LTH_NB_SCALE': 'smoke', 'LTH_NB_RESULTS': str(results), 'OMP_NUM_THREADS': '1',
           'LTH_NB_PUBLISHED': str(ROOT/'nbs/results'), 'MPLBACKEND': 'agg', 'CI': 'true'}
    command = [sys.executable, '-c', RUN.format(notebook=str(ROOT/'nbs'/name))]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.fixture(scope='module')
def running(request, tmp_path_factory):
    "{notebook: its run, perhaps not at its end yet} of those that this session tests."
    items = [item for item in request.session.items if item.path == request.path]
    names = [item.callspec.params['name'] for item in items]
    pool = ThreadPoolExecutor(os.cpu_count())
    yield {name: pool.submit(run, name, tmp_path_factory.mktemp('results')) for name in names}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize('name', [file.relative_to(ROOT/'nbs').as_posix() for file in notebooks()])
def test_notebook(name, running):
    r = running[name].result()
    assert r.returncode == 0, r.stdout[-6000:] + r.stderr[-3000:]
    assert 'Failed' not in r.stdout + r.stderr, r.stdout[-6000:]
