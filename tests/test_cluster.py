"""Beyond one machine: any executor gives the numbers of a plain run, although a worker is killed on the way."""
import os, signal, threading, time
from concurrent.futures import ThreadPoolExecutor

import pytest, torch
from lth_nb.data import mnist1d
from lth_nb.experiment import Store, compute
from lth_nb.networks import mnist1d_conv
from lth_nb.pruning import prune
from lth_nb.training import Recipe, init, line, train


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch):
    monkeypatch.setenv('LTH_NB_DEVICE', 'cpu')
    monkeypatch.setenv('OMP_NUM_THREADS', '1')

def grid(steps):
    "Two triples of copies, one of them a subnetwork: 6 trainings, 2 masks, 2 lines."
    data,r,out = mnist1d(train=256, test=128),Recipe(steps, batch=32, lr=.1),[]
    for seed in range(2):
        w = init(mnist1d_conv, seed=seed)
        ends = [train(w, data, r, order=o).at('end') for o in (0, 1)]
        mask = prune(ends[0], fraction=.5)
        out.append(line(ends[1], train(w, data, r, order=2, mask=mask).at('end'), data, alphas=3))
    return out

def stored(store):
    "All values of a store, tensors as bytes."
    plain = lambda x: {k: plain(v) for k,v in x.items()} if isinstance(x, dict) else x.numpy().tobytes() if isinstance(x, torch.Tensor) else x
    return {p: plain(store.read(p)) for p in store.paths()}


def test_threads_are_executors_too(tmp_path):
    a,b = Store(tmp_path/'a'),Store(tmp_path/'b')
    with ThreadPoolExecutor(3) as ex: got = compute(grid(4), store=a, executor=ex, quiet=True)
    assert got == compute(grid(4), store=b, workers=1, quiet=True) and stored(a) == stored(b) and len(a.paths()) == 10


@pytest.mark.timeout(240)
def test_dask_loses_a_worker(tmp_path):
    "Two worker processes, one killed with -9 in the middle of the grid."
    distributed = pytest.importorskip('distributed')
    plain,store,killed = Store(tmp_path/'plain'),Store(tmp_path/'dask'),[]
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster, distributed.Client(cluster) as client:
        pids = client.run(os.getpid)
        def kill():
            while len(store.paths()) < 2: time.sleep(.005)
            os.kill(pid := next(iter(pids.values())), signal.SIGKILL)
            killed.append((pid, len(store.paths())))
        thread = threading.Thread(target=kill, daemon=True)
        thread.start()
        got = compute(grid(60), store=store, executor=client.get_executor(pure=False), quiet=True)
        thread.join(10)
        now = client.run(os.getpid)
    assert killed and killed[0][1] < 8 and killed[0][0] not in now.values(), 'a worker died while there was work left'
    assert got == compute(grid(60), store=plain, workers=1, quiet=True)
    assert stored(store) == stored(plain) and len(store.paths()) == 10
    assert not list((tmp_path/'dask').rglob('.checkpoints/*'))
