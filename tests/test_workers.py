"""Workers: calls that take turns in one process, what memory holds of them, what is said on the way."""
import io, time
from dataclasses import replace

import pytest, torch
from lth_nb.experiment import Fleet, Progress, Store, compute, workers
from lth_nb.training import evaluate, init, train
from helpers import ADAM, mlp, toy

pytestmark = pytest.mark.usefixtures('on_cpu')


def finish(fleet, calls):
    "Futures of calls, all of them done."
    futures = [fleet.submit(call) for call in calls]
    while not all(f.done() for f in futures): fleet.turn()
    return futures

def some_work(n):
    "A piece of work that is done when it has been asked for `n` times."
    left = [n]
    def work():
        left[0] -= 1
        return left[0] <= 0
    return work

@pytest.mark.parametrize('most', (4, 2, 1))
def test_a_fleet_takes_turns(most):
    "All are begun before the first has ended; at most `most` at a time."
    running = set()
    peak = []
    def call(n):
        def go():
            running.add(n)
            peak.append(len(running))
            work = some_work(9)
            yield work
            yield work
            running.remove(n)
            return n*n
        return go
    futures = finish(Fleet(most), [call(n) for n in range(4)])
    assert [f.result() for f in futures] == [0, 1, 4, 9]
    assert max(peak) == most


def test_errors_in_a_fleet_stay_with_their_call():
    "In the step, and in the work that it yields; a step may also catch what its work raises."
    def early():
        raise ValueError('early')
        yield
    def late():
        yield lambda: 1/0
    def brave():
        try: yield lambda: 1/0
        except ZeroDivisionError: return 'caught'
    first, second, third = finish(Fleet(3), [early, late, brave])
    assert 'early' in str(first.exception())
    assert isinstance(second.exception(), ZeroDivisionError)
    assert third.result() == 'caught'


# ------------------------------------------------------------------ memory

def test_no_more_replicas_than_fit(capsys):
    "The first call shows what one takes; the others wait for their place, and a line says so."
    running = set()
    peak = []
    def free(): return (10 - 3*len(running))*2**30
    def call(n):
        def go():
            running.add(n)
            peak.append(len(running))
            yield some_work(5)
            running.remove(n)
        return go
    fleet = Fleet(16, free=free)
    finish(fleet, [call(n) for n in range(6)])
    assert max(peak) == 2
    assert free() == 10*2**30
    assert fleet.need == 3*2**30
    said = capsys.readouterr().out
    assert said.count('side by side') == 1
    for words in ('2 calls', '3.00 GiB', '4.00 GiB'): assert words in said


def test_out_of_memory_is_no_crash(capsys):
    "A call that meets it beside others begins again when there is room."
    running = set()
    tries = []
    def call(n):
        def go():
            tries.append(n)
            running.add(n)
            try:
                yield lambda: True
                if len(running) > 2: raise torch.OutOfMemoryError('no room')
                for _ in range(5): yield lambda: True
                return n
            finally: running.remove(n)
        return go
    fleet = Fleet(16)
    futures = finish(fleet, [call(n) for n in range(5)])
    assert sorted(f.result() for f in futures) == list(range(5))
    assert len(tries) > 5
    assert fleet.most < 5
    assert 'out of memory: from here on' in capsys.readouterr().out


def test_out_of_memory_alone_is_an_error():
    def call():
        raise torch.OutOfMemoryError('far too large')
        yield
    future, = finish(Fleet(16), [call])
    assert 'far too large' in str(future.exception())


def test_processes_are_as_many_as_memory_holds(monkeypatch):
    "By the most that a worker has taken so far; without workers, or without Linux, all of them."
    files = {'/proc/1/status': 'VmHWM:  4000000 kB\nVmRSS: 1000000 kB\n',
             '/proc/2/status': 'VmHWM: 1000000 kB\nVmRSS: 500000 kB\n',
             '/proc/meminfo': 'MemTotal: 9 kB\nMemAvailable: 3000000 kB\n'}
    monkeypatch.setattr(workers, 'open', lambda f: io.StringIO(files[f]), raising=False)
    assert workers.processes_that_fit([1, 2], 2) == 1
    files['/proc/meminfo'] = 'MemAvailable: 7000000 kB\n'
    assert workers.processes_that_fit([1, 2], 2) == 2
    assert workers.processes_that_fit([1, 2], 8) == 2
    assert workers.processes_that_fit([], 2) == 2
    def gone(f): raise FileNotFoundError(f)
    monkeypatch.setattr(workers, 'open', gone, raising=False)
    assert workers.processes_that_fit([3], 5) == 5


# ------------------------------------------------------------------ progress

def test_progress_counts_steps(tmp_path, capsys):
    "Steps a second over all replicas, workers' steps included."
    runs = [train(init(mlp, seed=seed), toy, replace(ADAM, steps=300), order=0) for seed in range(3)]
    compute([run.at('end') for run in runs], store=Store(tmp_path), workers=2)
    said = capsys.readouterr().out
    assert '3/3 calls' in said
    assert 'steps/s' in said


def test_progress_tells_the_time_left():
    counted = [0]
    progress = Progress(4, steps=1000, counted=lambda: counted[0])
    counted[0] = 250
    progress.n = 1
    progress.start = time.monotonic() - 10
    assert progress.speed() == pytest.approx((25, 30), rel=.05)


def test_the_size_of_a_trajectory_is_its_last_step():
    run = train(init(mlp, seed=0), toy, replace(ADAM, steps=300), order=0)
    wanted = [run.at(20), run.watch([5, 80], evaluate, data=toy)]
    assert run.node.step.size(wanted) == 80
