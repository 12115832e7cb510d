"""Runs notebooks and test files in one process: `python tests/otherwise.py nbs/index.ipynb ...`. Those after a `--` are
run without oneDNN, and find no results of those before. Cells that draw figures are left out: what they show was
rounded elsewhere."""
import json
import os
import re
import sys
import time
from pathlib import Path

import pytest
import torch
from execnb.shell import CaptureShell

DRAWS = r'\.show\(|ledger\(|explorer\(|coverage\('
LEFT_OUT = re.compile(rf'#\|\s*(eval: false|default_exp)|nbdev_export|{DRAWS}')


def run_notebook(file):
    "The first error of a notebook, or None."
    cells = json.loads(file.read_text())['cells']
    os.chdir(file.parent)
    shell = CaptureShell()
    for number, cell in enumerate(cells):
        source = ''.join(cell['source'])
        if cell['cell_type'] != 'code' or LEFT_OUT.search(source): continue
        shell.run(source)
        if shell.exc: return f'{file}, cell {number}: {type(shell.exc).__name__}: {shell.exc}\n{source}'


def run_tests(file):
    "Whether tests have failed, in words, or None."
    how = '-q', '-p', 'no:cacheprovider', '-k', 'not plain_loop and not cuda' # float64, and near a limit of its own
    if pytest.main([str(file), *how]): return f'{file}: see above'


def run(file):
    began = time.process_time()
    error = (run_notebook if file.suffix == '.ipynb' else run_tests)(file)
    print(f'{file.name}: {time.process_time() - began:.1f} s', flush=True)
    return error


if __name__ == '__main__':
    with_onednn, _, without = ' '.join(sys.argv[1:]).partition(' -- ')
    files = [Path(name).resolve() for name in with_onednn.split()]
    others = [Path(name).resolve() for name in without.split()]
    errors = [run(file) for file in files]
    os.environ['LTH_NB_RESULTS'] += '-without-onednn'
    with torch.backends.mkldnn.flags(enabled=False): errors += [run(file) for file in others]
    sys.exit('\n'.join(filter(None, errors)) or 0)
