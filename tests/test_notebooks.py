"""Every notebook runs, each in a process of its own."""
import os, subprocess, sys

import pytest
from conftest import ROOT, notebooks

RUN = """
import sys
from nbdev.test import nbdev_test
run = getattr(nbdev_test, '__wrapped__', nbdev_test)
sys.exit(run({!r}, n_workers=0) or 0)
"""


@pytest.mark.parametrize('name', [file.relative_to(ROOT/'nbs').as_posix() for file in notebooks()])
def test_notebook(name, tmp_path):
    env = {**os.environ, 'LTH_NB_SCALE': 'smoke', 'LTH_NB_RESULTS': str(tmp_path),
           'LTH_NB_PUBLISHED': str(ROOT/'nbs/results'), 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'agg', 'CI': 'true'}
    command = [sys.executable, '-c', RUN.format(str(ROOT/'nbs'/name))]
    r = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert r.returncode == 0, r.stdout[-6000:] + r.stderr[-3000:]
    assert 'Failed' not in r.stdout + r.stderr, r.stdout[-6000:]
