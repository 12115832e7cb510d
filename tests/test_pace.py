"""A limited time: what begins, what is held, what is there at its end. The clock is the tests' own; nobody sleeps."""
from concurrent.futures import Future
from functools import partial

import pytest
from lth_nb.experiment import Fleet, Progress, compute, missing, step
from lth_nb.experiment.call import Checkpoint, checkpointed, turns
from lth_nb.experiment.compute import Schedule, Work
from lth_nb.experiment.pace import Box, Load, Speeds, Trained, ending, left_over, loads_of, preferred
from lth_nb.experiment.workers import SideBySide, Workers, going
from lth_nb.running import tick

pytestmark = pytest.mark.usefixtures('on_cpu')
RATE = 20 # Steps a second of a call that is alone
PIECE = 20 # Steps of a piece of work


class Device:
    "Time passes with the work of its calls alone: `wide` of them side by side are as fast as one."
    def __init__(self, wide=1, most=16):
        self.now = 1000.
        self.wide = wide
        self.rate = RATE
        self.fleet = Fleet(most, clock=lambda: self.now)
        self.log = []
        self.trained = 0
    def work(self, steps):
        side_by_side = len([call for call in going(self.fleet, self.fleet.running) if call.trained.steps]) or 1
        self.now += steps/self.rate/min(self.wide, side_by_side)
        self.trained += steps
        tick(steps)
    def compute(self, wanted, store, seconds):
        return compute(wanted, store=store, executor=self.fleet, minutes=seconds/60)

DEVICE = [Device()]

@pytest.fixture
def device():
    DEVICE[0] = Device()
    return DEVICE[0]

@pytest.fixture
def wide():
    DEVICE[0] = Device(wide=8)
    return DEVICE[0]


def _steps(nodes): return nodes[0].args['steps']

@step(many=True, size=_steps)
def training(seed, steps, start=None, *, items, shelf):
    "So many steps, in pieces, with a checkpoint when it is stopped."
    kept = shelf.resume() or dict(at=0)
    DEVICE[0].log.append(f'begin {seed}')
    def onwards():
        DEVICE[0].work(PIECE)
        kept['at'] += PIECE
        if kept['at'] >= steps: return True
        shelf.pause(lambda: kept, lambda: kept['at'])
        return False
    yield onwards
    DEVICE[0].log.append(f'end {seed}')
    shelf.save('end', seed)
    shelf.done()

@step
def measured(state):
    DEVICE[0].log.append(f'measure {state}')
    DEVICE[0].now += 1
    return state


def runs(n, seconds): return [training(seed, seconds*RATE)['end'] for seed in range(n)]
def done(values): return sum(value is not None for value in values)


# ------------------------------------------------------------------ one device

def test_a_limited_time_ends_with_results(device, store, capsys):
    "Twelve of 100 seconds each in 240: side by side none would be there."
    ends = runs(12, 100)
    found = device.compute([ends, [measured(end) for end in ends]], store, 240)
    assert done(found[0]) == done(found[1]) == 2
    assert device.now <= 1000 + 241
    left = loads_of(missing(ends, store), store)
    begun = [load for load in left.values() if load.done]
    assert len(begun) == 1, 'what time was left was used by one'
    share = 100*begun[0].done//begun[0].steps
    assert f'stopped with 1 training at {share} %, 19 calls not begun: run again to go on' in capsys.readouterr().out
    assert share >= 20


def test_a_wide_device_is_filled(wide, store):
    "Eight side by side are as fast as one: twelve of 100 seconds each take 150 and some."
    assert done(wide.compute(runs(12, 100), store, 240)) == 12
    assert wide.now < 1000 + 200


def test_without_a_limit_all_begin_at_once(device, store):
    found = compute(runs(5, 10), store=store, executor=device.fleet, quiet=True)
    assert found == list(range(5))
    assert device.log[:5] == [f'begin {seed}' for seed in range(5)]


@pytest.mark.parametrize('seconds', (120, 30))
def test_many_short_times_come_to_an_end(device, store, seconds):
    "Calls longer than the time there is; nothing is trained twice."
    ends = runs(3, 300)
    times = 0
    while times < 100:
        times += 1
        before = device.trained
        device.now += 1000
        if done(device.compute(ends, store, seconds)) == 3: break
        assert device.trained > before
    assert device.trained == 3*300*RATE
    assert times <= 3*300/seconds + 1
    assert not checkpointed(store)


def test_what_was_begun_comes_first_and_counts_what_is_left(device, store):
    "The last of three has 10 seconds to go, the others 100."
    ends = runs(3, 100)
    Checkpoint(ends[2], store).write(dict(at=90*RATE), 90*RATE)
    assert device.compute(ends, store, 15) == [None, None, 2]
    assert device.log[0] == 'begin 2'


def test_measurements_come_before_trainings(device, store):
    "As soon as their inputs are there: no training begins in between."
    ends = runs(6, 20)
    device.fleet.most = 2
    device.compute([ends, [measured(end) for end in ends]], store, 200)
    for seed in range(6):
        between = device.log[device.log.index(f'end {seed}'):device.log.index(f'measure {seed}')]
        assert not [line for line in between if line.startswith('begin')]
    store.remove(measured(ends[0]).path)
    device.log.clear()
    device.compute([*runs(9, 20)[6:], measured(ends[0])], store, 200)
    assert device.log[0] == 'measure 0'


def test_the_longest_chain_comes_first(device, store):
    chain = training(7, 50*RATE, training(8, 50*RATE, training(9, 50*RATE)['end'])['end'])['end']
    device.compute([*runs(4, 50), chain], store, 80)
    assert device.log[0] == 'begin 9'
    device.now += 1000
    device.log.clear()
    device.compute([*runs(4, 50), chain], store, 70)
    assert 'begin 8' in device.log


def test_fewer_side_by_side_when_it_gets_slower(device, store, monkeypatch):
    "Half as fast as it began: of four that would all have ended two do, and two are held."
    ends = runs(4, 50)
    once = device.work
    def slower(steps):
        if device.now > 1020: device.rate = RATE/2
        once(steps)
    monkeypatch.setattr(device, 'work', slower)
    found = device.compute(ends, store, 240)
    assert len([line for line in device.log if line.startswith('begin')]) == 4
    assert done(found) == 2


def test_held_calls_keep_their_steps(device, store, monkeypatch):
    "They stop with a checkpoint, and the next time they go on from there."
    test_fewer_side_by_side_when_it_gets_slower(device, store, monkeypatch)
    begun = device.trained
    device.now += 1000
    assert done(device.compute(runs(4, 50), store, 10000)) == 4
    assert device.trained == 4*50*RATE > begun


def test_calls_of_another_kind_have_their_own_speed():
    "Small networks are quick; a large one that would not end is not begun on their account."
    small, large = frozenset(['small', 'data']), frozenset(['large', 'data'])
    loads = dict(a=Load(100, 0, small), b=Load(100, 0, large), c=Load(100, 0, frozenset(['large', 'other'])))
    box = Box(loads, 100, shared=True, clock=lambda: 0)
    box.speeds.update({small: 100., large: 1.})
    assert box.choose(['a', 'b', 'c'], []) == ['a']
    assert not box.held


def test_a_call_that_is_alone_goes_on(device, store):
    "One that cannot end is held for others only."
    fleet = device.fleet
    future = fleet.submit(partial(turns, [runs(1, 1)[0]], store, None, fleet.clock))
    fleet.held = {future}
    while not future.done(): fleet.turn()
    assert store.has(runs(1, 1)[0].path)


def test_speed_is_measured_from_lump_to_lump():
    "However long the first of them took."
    now = [0.]
    trained = Trained(lambda: now[0])
    speeds = []
    for seconds in (50, 2, 2, 4):
        now[0] += seconds
        trained.count(100)
        speeds.append(trained.speed())
    assert speeds == [None, None, 50, 37.5]
    assert trained.steps == 400
    trained.anew()
    assert trained.speed() is None


def test_speed_is_measured_anew_when_others_run():
    "What was true of one call is not of two. Side by side, each at 10 steps a second: 20 for a call that is alone."
    now = [0.]
    loads = [Load(10**6, 0, frozenset(), trained=Trained(lambda: now[0])) for _ in range(2)]
    speeds = Speeds()
    def pass_by(seconds, trained):
        for _ in range(4):
            now[0] += seconds
            for load in trained:
                load.trained.count(100)
            speeds.look(trained)
    pass_by(4, loads[:1])
    assert speeds.of(frozenset()) == 25
    pass_by(10, loads)
    assert speeds.of(frozenset()) == pytest.approx(20)


def test_the_order_of_preference():
    loads = dict(short=Load(10, 0, frozenset()), long=Load(99, 0, frozenset()), begun=Load(99, 5, frozenset()),
                 chain=Load(90, 0, frozenset(), height=2))
    assert preferred(loads, ['long', 'short', 'chain', 'begun', 'no training']) == ['begun', 'chain', 'short', 'long']


def test_an_evaluation_goes_ahead_of_trainings_that_wait(device, store):
    "There is memory for one call only, and two wait for it."
    device.fleet.memory.free = lambda: 2**31 if not device.fleet.running else 0
    device.fleet.memory.need = 2**20
    for node in (*runs(2, 2), measured(5)): SideBySide(device.fleet).start([node], store)
    while device.fleet.waiting or device.fleet.running: device.fleet.turn()
    assert [line for line in device.log if 'end' not in line] == ['measure 5', 'begin 0', 'begin 1']


# ------------------------------------------------------------------ a core each

class Inline(Workers):
    "One process, as it were: a call is run when it is handed out."
    def __init__(self, device):
        super().__init__(None, 1, 'cpu')
        self.clock = device.fleet.clock
    def start(self, nodes, store, deadline=None):
        future = Future()
        call = turns(nodes, store, deadline, self.clock)
        try:
            while True:
                work = next(call)
                while not work(): pass
        except StopIteration as end: future.set_result(end.value)
        except Exception as error:
            try: call.throw(error)
            except StopIteration as end: future.set_result(end.value)
        return future

def on_cores(device, wanted, store, seconds):
    tasks = missing(wanted, store)
    workers = Inline(device)
    box = Box(loads_of(tasks, store), device.now + seconds, workers.shared, workers.clock)
    work = Work(Schedule(tasks), workers, store, Progress(0, quiet=True), box)
    assert work.run() == {}
    return left_over(work.schedule.left(), store)


def test_a_core_runs_what_can_end(device, store):
    "Once a speed is known, short ones go before long ones that cannot end, and the rest of the time is used."
    ends = [training(0, 20*RATE)['end'], *(training(seed, 200*RATE)['end'] for seed in (1, 2)),
            training(3, 30*RATE)['end']]
    Checkpoint(ends[0], store).write(dict(at=0), PIECE)
    said = on_cores(device, [*ends, measured(ends[0])], store, 100)
    assert device.log == ['begin 0', 'end 0', 'measure 0', 'begin 3', 'end 3', 'begin 1']
    assert said == 'stopped with 1 training at 24 %, 1 call not begun: run again to go on'


def test_nothing_waits_at_a_workers_door(device, store):
    "Or it could not be chosen any more. Without a limit of time two calls a worker are handed out."
    workers = Workers(None, 3, 'cpu')
    started = []
    workers.start = lambda nodes, store, deadline: started.append(nodes) or Future()
    tasks = missing(runs(10, 10), store)
    box = Box(loads_of(tasks, store), device.now + 100, clock=device.fleet.clock)
    Work(Schedule(tasks), workers, store, None, box).hand_out(list(tasks))
    assert len(started) == 3
    Work(Schedule(tasks), workers, store, None).hand_out(list(tasks))
    assert len(started) == 9


# ------------------------------------------------------------------ arithmetic, and what is said

@pytest.mark.parametrize('needs,left,expected', (
    (dict(a=100, b=100, c=100), 250, ['a', 'b']), (dict(a=300, b=100, c=100), 250, ['b', 'c']),
    (dict(a=300, b=280), 250, ['b']), ({}, 250, []), (dict(a=0, b=1), -1, ['a'])))
def test_what_ends_in_time(needs, left, expected): assert ending(needs, left) == expected


def test_nothing_is_said_where_nothing_is_left(device, store, capsys):
    device.compute(runs(2, 5), store, 1000)
    assert 'stopped' not in capsys.readouterr().out
    compute(runs(9, 5), store=store, executor=device.fleet, minutes=0)
    assert 'stopped with 7 calls not begun: run again to go on' in capsys.readouterr().out
    compute(runs(9, 5), store=store, executor=device.fleet, minutes=0, quiet=True)
    assert capsys.readouterr().out == ''


def test_a_checkpoint_of_an_earlier_release_counts_as_nothing(store):
    node = runs(1, 10)[0]
    store.write(f'.checkpoints/{node.call}', dict(at=40))
    load, = loads_of(missing([node], store), store).values()
    assert (load.steps, load.done) == (200, 0)
