"""What all tests share: one thread, and where the real data is, if it is anywhere."""
import os, shutil, subprocess
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import pytest, torch

torch.set_num_threads(1)
ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get('LTH_NB_DATA', ROOT/'data')).resolve()


def notebooks():
    "All notebooks, without what Jupyter keeps for itself."
    return sorted(file for file in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in file.parts)


def working_copy(to, *leave_out):
    "A copy of the working tree, without what git ignores and the folders left out. Links stay links."
    command = ['git', 'ls-files', '-co', '--exclude-standard']
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for f in listed.splitlines():
        if not os.path.lexists(ROOT/f) or f.startswith(leave_out): continue
        (to/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT/f, to/f, follow_symlinks=False)
    return to


@pytest.fixture
def store(tmp_path):
    from lth_nb.experiment import Store
    return Store(tmp_path/'results')


@pytest.fixture
def real_data(monkeypatch):
    "The folder of MNIST and CIFAR-10, or a skip."
    if not (DATA/'MNIST/raw').is_dir(): pytest.skip(f'no MNIST in {DATA}')
    monkeypatch.setenv('LTH_NB_DATA', str(DATA))
    return DATA


@pytest.fixture
def on_cpu(monkeypatch): monkeypatch.setenv('LTH_NB_DEVICE', 'cpu')


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    "Two tiny sets of random images: (28 x 28 grey, 16 x 16 colour)."
    import numpy as np
    from lth_nb.data import npz
    g = np.random.default_rng(0)
    out = []
    for name,shape,n in (('grey', (28, 28), 200), ('colour', (16, 16, 3), 60)):
        arrays = {}
        for split,m in (('train', n), ('test', 40)):
            arrays[f'{split}_images'] = g.integers(0, 256, (m, *shape), dtype=np.uint8)
            arrays[f'{split}_labels'] = np.r_[np.arange(10), g.integers(0, 10, m - 10)]
        file = tmp_path_factory.mktemp('images')/f'{name}.npz'
        np.savez(file, **arrays)
        out.append(npz(file))
    return out
