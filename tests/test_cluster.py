"""Beyond one machine: any executor gives the numbers of a plain run, although a worker is killed on the way."""
import os, signal, threading, time
from concurrent.futures import ThreadPoolExecutor

import pytest
from lth_nb.experiment import Store, compute
from lth_nb.networks import mnist1d_conv
from lth_nb.pruning import prune
from lth_nb.training import Recipe, init, line, train
from helpers import identical, toy

pytestmark = pytest.mark.usefixtures('on_cpu')


@pytest.fixture(autouse=True)
def one_thread(monkeypatch): monkeypatch.setenv('OMP_NUM_THREADS', '1')

def grid(steps):
    "Two triples of copies, one of them a subnetwork: 6 trainings, 2 masks, 2 lines."
    recipe = Recipe(steps, batch=32, lr=.1)
    lines = []
    for seed in range(2):
        start = init(mnist1d_conv, seed=seed)
        first, second = (train(start, toy, recipe, order=order).at('end') for order in (0, 1))
        mask = prune(first, fraction=.5)
        third = train(start, toy, recipe, order=2, mask=mask).at('end')
        lines.append(line(second, third, toy, alphas=3))
    return lines

def stored(store): return {path: store.read(path) for path in store.paths()}


def test_threads_are_executors_too(tmp_path):
    there = Store(tmp_path/'threads')
    here = Store(tmp_path/'plain')
    with ThreadPoolExecutor(3) as pool: got = compute(grid(4), store=there, executor=pool, quiet=True)
    assert got == compute(grid(4), store=here, workers=1, quiet=True)
    assert identical(stored(there), stored(here))
    assert len(there.paths()) == 10


@pytest.fixture
def cluster():
    "Two worker processes of Dask."
    distributed = pytest.importorskip('distributed')
    kind = dict(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None)
    with distributed.LocalCluster(**kind) as cluster: yield cluster

def kill_amid(pids, store, killed):
    "Ends the first of the processes with -9 once two results are there; tells which, and how many there were."
    while len(store.paths()) < 2: time.sleep(.005)
    pid = next(iter(pids))
    os.kill(pid, signal.SIGKILL)
    killed.append((pid, len(store.paths())))

@pytest.mark.timeout(240)
def test_dask_loses_a_worker(tmp_path, cluster):
    "One of two worker processes is killed in the middle of the grid."
    store = Store(tmp_path/'dask')
    killed = []
    with cluster.get_client() as client:
        pids = client.run(os.getpid).values()
        thread = threading.Thread(target=kill_amid, args=(pids, store, killed), daemon=True)
        thread.start()
        got = compute(grid(60), store=store, executor=client.get_executor(pure=False), quiet=True)
        thread.join(10)
        now = client.run(os.getpid).values()
    (pid, done), = killed
    assert done < 8, 'there was work left'
    assert pid not in now
    plain = Store(tmp_path/'plain')
    assert got == compute(grid(60), store=plain, workers=1, quiet=True)
    assert identical(stored(store), stored(plain))
    assert len(store.paths()) == 10
    assert not list((tmp_path/'dask').rglob('.checkpoints/*'))
