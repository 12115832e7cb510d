"""Every notebook runs, each in a process of its own."""
import os, subprocess, sys

import pytest
from conftest import ROOT

NOTEBOOKS = sorted(p.relative_to(ROOT/'nbs').as_posix() for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_notebook(name, tmp_path):
    env = {**os.environ, 'LTH_NB_SCALE': 'smoke', 'LTH_NB_RESULTS': str(tmp_path), 'LTH_NB_PUBLISHED': str(ROOT/'nbs/results'),
           'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'agg', 'CI': 'true'}
    code = f"import sys; from nbdev.test import nbdev_test as f; r = getattr(f, '__wrapped__', f)({str(ROOT/'nbs'/name)!r}, n_workers=0); sys.exit(r or 0)"
    r = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert r.returncode == 0, r.stdout[-6000:] + r.stderr[-3000:]
    assert 'Failed' not in r.stdout + r.stderr, r.stdout[-6000:]
