"""How fast the engine trains, beside the usual script (plain.py) and beside what the machine could do at best.

    make bench          one core of a CPU, about fifteen minutes; writes benchmarks/cpu.json
    make bench-gpu      a CUDA device, at most 150 seconds; writes benchmarks/cuda.json
    python benchmarks/engine.py --device cpu --only replicas --cases lenet-60 --seconds 2
    python benchmarks/engine.py --dry-run     what bench-gpu does, on a CPU with tiny networks: no speeds

On a CPU whatever is compared is measured in turns in one run, so that both meet the same neighbours; times are CPU
seconds, medians of five. On a GPU a short burst flatters, for the device works off what was sent ahead: there a
measurement is one stretch of at least five windows (500 steps) of every replica, in wall seconds, waited for at its
end; a row that would take longer than `--box` seconds ends at a later window, and says how many steps it had. Rows come
in the order of their importance, none begins that would end after `--limit`, and the file is written after every row.
The row `compute` is what a user gets: trajectories through `compute` into a store, from when all of them train until
each has had its five windows. MNIST and CIFAR-10 must be there (LTH_NB_DATA).

Floors: FLOP are two a multiplication of the convolutions and linear layers, forward once and backward twice (the first
layer once); bytes are 14 passes over each convolution's output (2 of the convolution, 3 of BatchNorm and ReLU forward,
5 and 4 of them backward) and 32 a weight. Both are divided by what this device was measured to do in this run: a copy,
and a matrix product in the same precision.
"""
import argparse, gc, json, math, os, platform, statistics, subprocess, sys, tempfile, time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import numpy as np, torch

torch.set_num_threads(1)
torch.set_flush_denormal(True)
sys.path.insert(0, str(Path(__file__).parent))
import plain
from lth_nb import networks as nets
from lth_nb.data import MissingData, cifar10, mnist, mnist1d, npz
from lth_nb.engine import WINDOW, Replica, Trace, enter
from lth_nb.experiment import Fleet, Store, compute
from lth_nb.pruning import magnitude_mask, prunable_weights
from lth_nb.training import TABLE_1, Recipe, init, line, train

LONG = 10**6
PARTS = ['plain', 'plain fp32', 'replicas', 'stacks', 'compute', 'profile', 'processes', 'compiled', 'data', 'maps',
         'parts']
CIFAR = Recipe(LONG, weight_decay=1e-4, augment=True)
CASES = {
    'lenet-60': (nets.lenet_300_100, mnist, replace(TABLE_1['LeNet'], steps=LONG)),
    'lenet-128': (nets.lenet_300_100, mnist, Recipe(LONG)),
    'resnet20': (nets.resnet20, cifar10, CIFAR),
    'resnet20-bf16': (nets.resnet20, cifar10, replace(CIFAR, precision='bf16')),
    'vgg16': (nets.vgg16, cifar10, CIFAR),
    'vgg16-bf16': (nets.vgg16, cifar10, replace(CIFAR, precision='bf16')),
    'resnet20-tf32': (nets.resnet20, cifar10, replace(CIFAR, precision='tf32')),
    'mnist1d_conv': (nets.mnist1d_conv, mnist1d, Recipe(LONG, batch=32, lr=.1)),
    'mnist1d_res, width 16': (nets.Network('mnist1d_res', width=16), mnist1d, Recipe(LONG, batch=32, lr=.1)),
    'mnist1d_mlp': (nets.mnist1d_mlp, mnist1d, Recipe(LONG, batch=64, lr=.1)),
}
CURVES = [case for case in CASES if case.startswith('mnist1d')]
IMAGES = [case for case in CASES if case not in CURVES and 'tf32' not in case]


class Clock:
    "Seconds of a function: CPU time on a CPU, wall time on a GPU."
    def __init__(self, device): self.cuda = device != 'cpu'
    def now(self):
        if self.cuda: torch.cuda.synchronize()
        return time.perf_counter() if self.cuda else time.process_time()
    def __call__(self, f):
        before = self.now()
        f()
        return self.now() - before

def in_turns(clock, ways, seconds, rounds=5):
    "Median seconds a step of each of several `run(n)`, measured in turns."
    steps = {}
    least = WINDOW if clock.cuda else 1
    for name,run in ways.items():
        run(1)
        one = max(clock(partial(run, 2))/2, 1e-6)
        steps[name] = max(least, min(5000, round(seconds/rounds/one)))
    took = {name: [] for name in ways}
    for _ in range(rounds):
        for name,run in ways.items(): took[name].append(clock(partial(run, steps[name]))/steps[name])
    return {name: statistics.median(times) for name,times in took.items()}


def replica(case, device, seed=0, **kw):
    network, data, recipe = CASES[case]
    return Replica(init.fn(network, seed), data(), recipe, order=seed, first=0, device=device, **kw)


def loop(case, device, n):
    "Replicas side by side, each by itself."
    return [replica(case, device, seed) for seed in range(n)]

def stacked(case, device, n, size=None):
    "The same as whole stacks; none for a number that does not fill them."
    network, data, recipe = CASES[case]
    size = size or places(device)
    if n % size: return []
    return [enter(init.fn(network, seed), data(), recipe, seed, 0, device=device, size=size) for seed in range(n)]

# The ways to train n replicas of a case: {engine: (case, device, n) -> what has `step` and `pump(until)`}. One that
# cannot do it gives an empty list, and has no row.
ENGINES = {'loop': loop, 'stacks': stacked}

def places(device): return 8 if device != 'cpu' else 2   # two in a dry run


def sustained(clock, things, steps, box=math.inf):
    "Seconds a step of all things side by side, and how many steps were measured: fewer than asked for after `box`."
    together(things)(3)
    before = [thing.step for thing in things]
    goals = [step + steps for step in before]
    wall = time.perf_counter()
    start = clock.now()
    while not all([thing.pump(goal) for thing,goal in zip(things, goals)]):
        if time.perf_counter() - wall < box: continue
        goals = [min(goal, thing.step + 2*WINDOW) for thing,goal in zip(things, goals)]
        box = math.inf
    seconds = clock.now() - start
    taken = statistics.mean(thing.step - step for thing,step in zip(things, before))
    return seconds/taken, round(taken)


def together(reps):
    "A function that takes all replicas so many steps on, side by side."
    def run(n):
        goals = [rep.step + n for rep in reps]
        while not all([rep.pump(goal) for rep,goal in zip(reps, goals)]): pass
    return run


# ---------------------------------------------------------------- what the machine could do

def ceilings(device, dtype):
    "Bytes and FLOP a second: a copy, and a matrix product."
    cuda = device != 'cpu'
    clock = Clock(device)
    n = 2**28 if cuda else 2**25
    a = torch.rand(n, device=device)
    b = torch.empty(n, device=device)
    m = 8192 if cuda else 1024
    p, q = (torch.randn(m, m, device=device, dtype=dtype) for _ in range(2))
    def copy(): b.copy_(a)
    def matmul(): p @ q
    def best(f):
        f()
        f()
        return statistics.median(clock(f) for _ in range(7))
    return 8*n/best(copy), 2*m**3/best(matmul)


def layers_of(network):
    "(multiplications, outputs, whether it is a convolution) of each layer, for one example."
    layers = []
    def see(module, inputs, out):
        convolution = isinstance(module, torch.nn.Conv2d)
        if not convolution and not isinstance(module, torch.nn.Linear): return
        layers.append((out.numel()*module.weight[0].numel(), out.numel(), convolution))
    net = network.create(0).eval()
    for module in net.modules(): module.register_forward_hook(see)
    with torch.no_grad(): net(torch.zeros(1, *network.input))
    return layers, sum(p.numel() for p in net.parameters())


def floors(case, device):
    "Seconds a replica-step by bytes and by FLOP."
    network, _, recipe = CASES[case]
    layers, weights = layers_of(network)
    flop = 2*recipe.batch*(3*sum(multiplications for multiplications,_,_ in layers) - layers[0][0])
    half = recipe.precision == 'bf16'
    passes = sum(outputs*(14 if convolution else 4) for _,outputs,convolution in layers)
    moved = recipe.batch*passes*(2 if half else 4) + 32*weights
    bandwidth, rate = ceilings(device, torch.bfloat16 if half else torch.float32)
    return dict(flop=flop, bytes=moved, seconds_by_bytes=moved/bandwidth, seconds_by_flop=flop/rate,
                bandwidth=bandwidth, flop_rate=rate)


# ---------------------------------------------------------------- what is measured

def against_plain(case, device, seconds, many):
    "One replica, and on a GPU several side by side, in turns with the usual script in its best form."
    network, data, recipe = CASES[case]
    clock = Clock(device)
    usual, way = plain.best(network, data().load(), recipe, device, seconds, autocast=(recipe.precision == 'bf16',))
    tf32 = device != 'cpu' and recipe.precision == 'fp32'   # PyTorch's default for convolutions; ours are in fp32
    way['precision'] = 'tf32 convolutions' if tf32 else recipe.precision
    ways = dict(plain=usual, ours=together([replica(case, device)]))
    if many > 1: ways['ours side by side'] = together([replica(case, device, seed) for seed in range(many)])
    took = in_turns(clock, ways, seconds)
    if many > 1: took['ours side by side'] /= many
    best = min(t for name,t in took.items() if name != 'plain')
    return dict(case=case, seconds=took, replicas=many, ratio=took['plain']/best, way=way)


def against_fp32(row, device, seconds):
    "Ours in bf16, and where the row says so compiled, against the usual script in fp32, as most scripts are."
    case, _, how = row.partition(', ')
    network, data, recipe = CASES[case]
    ours = together([replica(case, device, compiled_net=how == 'compiled')])
    usual, way = plain.best(network, data().load(), recipe, device, seconds, autocast=(False,))
    took = in_turns(Clock(device), dict(plain=usual, ours=ours), seconds)
    return dict(case=f'{row} against fp32', seconds=took, replicas=1, ratio=took['plain']/took['ours'],
                way=way | {'precision': 'fp32'})


def free(device):
    "Bytes left on a GPU when nothing is kept that is not used."
    gc.collect()
    if device == 'cpu': return 0
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def side_by_side(case, device, counts, seconds):
    "Replica-steps a second and memory, for more and more replicas in one process."
    floor = floors(case, device)
    CASES[case][1]().load(device)
    before = free(device)
    rows = []
    reps = []
    for n in counts:
        try:
            while len(reps) < n: reps.append(replica(case, device, len(reps)))
            took = in_turns(Clock(device), dict(ours=together(reps)), seconds, 3)['ours']/n
        except torch.OutOfMemoryError:
            rows.append(dict(replicas=n, seconds=None))
            break
        taken = before - free(device) if device != 'cpu' else None   # a process's own peak says nothing of one replica
        rows.append(dict(replicas=n, seconds=took, per_second=1/took, memory=taken,
                         floors_by_bytes=took/floor['seconds_by_bytes'], floors_by_flop=took/floor['seconds_by_flop']))
    return dict(case=case, floor=floor, rows=rows)


def stacks(case, seconds):
    "On a CPU: a replica alone, and as one of a stack of 4, 8 or 16, in turns; seconds a replica-step."
    sizes = {'loop': 1, **{f'stack of {size}': size for size in (4, 8, 16)}}
    ways = {engine: together(loop(case, 'cpu', 1) if size == 1 else stacked(case, 'cpu', size, size))
            for engine,size in sizes.items()}
    took = in_turns(Clock('cpu'), ways, seconds)
    return dict(case=case, seconds={engine: took[engine]/size for engine,size in sizes.items()})


def in_one_stretch(case, device, counts, steps, box):
    "The same for a GPU: one long stretch a row, for every engine."
    floor = floors(case, device)
    CASES[case][1]().load(device)
    rows = []
    for engine,n in ((engine, n) for engine in ENGINES for n in counts):
        before = free(device)
        try:
            things = ENGINES[engine](case, device, n)
            if not things: continue
            took, taken = sustained(Clock(device), things, steps, box)
            if took*taken < 1: took, taken = sustained(Clock(device), things, round(1/took), box)   # a second at least
        except torch.OutOfMemoryError:
            rows.append(dict(replicas=n, engine=engine, seconds=None))
            continue
        rows.append(dict(replicas=n, engine=engine, seconds=took/n, steps=taken, per_second=n/took,
                         memory=before - free(device) if device != 'cpu' else None,
                         floors_by_bytes=took/n/floor['seconds_by_bytes'],
                         floors_by_flop=took/n/floor['seconds_by_flop']))
        del things
    return dict(case=case, floor=floor, rows=rows)


class Enough(Exception): "All has been measured."

class Steady(Fleet):
    "Measures from when all of its calls train until each has trained so many windows more, or time is up."
    def __init__(self, most, device, windows, box):
        clock = time.perf_counter if device != 'cpu' else time.process_time
        super().__init__(most, device=device, clock=clock)
        self.windows = windows
        self.box = box
        self.since = None
    def turn(self, between=None): super().turn(partial(self.look, between))
    def look(self, between):
        if between: between()
        calls = [call.trained for call in self.running]
        if self.waiting or not all(call.lumps for call in calls): return
        if self.since is None:
            self.since = time.perf_counter()
            for call in calls: call.anew()
            return
        if min(call.lumps for call in calls) < 3: return   # or there is no speed
        seconds = time.perf_counter() - self.since
        through = all(call.last[1] - call.first[1] >= self.windows*WINDOW for call in calls)
        if seconds > self.box or through and seconds > 2: raise Enough
    def found(self):
        "Replica-steps a second over all calls, and how many were counted."
        calls = [call.trained for call in self.running]
        return sum(call.speed() for call in calls), sum(call.last[1] - call.first[1] for call in calls)


@contextmanager
def setting(name, value):
    before = os.environ.get(name)
    os.environ[name] = value
    try: yield
    finally:
        del os.environ[name]
        if before is not None: os.environ[name] = before


def through_compute(row, device, n, windows=5, box=12.):
    "Seconds a replica-step of n trajectories through `compute`, into a store that is thrown away."
    case = row.removesuffix(', alone')
    with setting('LTH_NB_STACK', '0' if row.endswith(', alone') else 'auto'):
        return dict(case=row) | steady_speed(case, device, n, windows, box)

def steady_speed(case, device, n, windows, box):
    network, data, recipe = CASES[case]
    ends = [train(init(network, seed), data(), recipe, order=seed).at('end') for seed in range(n)]
    floor = floors(case, device)['seconds_by_bytes']
    fleet = Steady(n, device, windows, box)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try: compute(ends, store=Store(folder), executor=fleet, quiet=True)
        except Enough: pass
    per_second, steps = fleet.found()
    for call in fleet.running: call.drop()
    return dict(replicas=n, seconds=1/per_second, per_second=per_second, steps=steps//n,
                until_all_train=fleet.since - begun, floors_by_bytes=1/per_second/floor)


def measured_before(case, found):
    "Ours: alone, and the most side by side, through compute if there is such a row; and how many these were."
    rows = [row for one in found.get('replicas', ()) if one['case'] == case for row in one['rows'] if row['seconds']]
    rows += [row for row in found.get('compute', ()) if row['case'] == case]
    many = max((row['replicas'] for row in rows), default=1)
    ours = {}
    for row in rows:
        if row['replicas'] == 1: ours['ours'] = row['seconds']
        elif row['replicas'] == many: ours['ours side by side'] = row['seconds']
    return ours, many


def plain_alone(case, device, seconds, found):
    "The usual script on a GPU in the way that has been its fastest, beside what was measured of ours before."
    network, data, recipe = CASES[case]
    colours = network.input[0] == 3
    way = dict(workers=min(14, os.cpu_count()) if device != 'cpu' else 0, channels_last=colours,
               autocast=recipe.precision == 'bf16')
    run = plain.trainer(network, data().load(), recipe, device, **way)
    took = plain.seconds_a_step(run, 20 if device != 'cpu' else 1, seconds)
    ours, many = measured_before(case, found)
    return dict(case=case, seconds=dict(plain=took) | ours, replicas=many,
                ratio=took/min(ours.values(), default=math.nan), way=way | dict(precision=recipe.precision))


def profiled(case, device, steps=10):
    import kernels
    return kernels.by_kind(case, replica(case, device), steps)


STEPPER = '''import sys, time
sys.path.insert(0, {here!r})
import engine
rep = engine.replica({case!r}, 'cpu')
rep.run(3)
print('ready', flush=True)
sys.stdin.readline()
steps, start = 0, time.perf_counter()
while time.perf_counter() - start < {seconds!r}:
    rep.run(rep.step + 1)
    steps += 1
print(steps/(time.perf_counter() - start))
'''

def processes(case, seconds):
    "CPU: the same replica in one process, and in two at once."
    code = STEPPER.format(here=str(Path(__file__).parent), case=case, seconds=seconds)
    out = {}
    for n in (1, 2):
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started = [subprocess.Popen([sys.executable, '-c', code], **pipes) for _ in range(n)]
        for process in started: process.stdout.readline()
        for process in started:
            process.stdin.write('\n')
            process.stdin.flush()
        out[n] = sum(float(process.communicate()[0]) for process in started)
    return dict(case=case, steps_per_second=out)


def compiled(case, device, many, seconds):
    "The network through torch.compile, against not."
    def way(how): return together([replica(case, device, seed, compiled_net=how) for seed in range(many)])
    took = in_turns(Clock(device), {how: way(how) for how in (False, True)}, seconds)
    each = {str(how): t/many for how,t in took.items()}
    return dict(case=case, replicas=many, seconds=each, gain=took[False]/took[True])


def data_path(case, device, seconds):
    "A batch: order, crops, gather, normalisation; as a share of a step."
    rep = replica(case, device)
    def batches(n):
        for i in range(n): rep.course.batches[rep.step + i]
    if rep.lane: batches = recorded(rep)
    took = in_turns(Clock(device), dict(step=together([rep]), data=batches), seconds, 5)
    return dict(case=case, seconds=took, share=took['data']/took['step'])


def recorded(rep):
    "The gather of a step as a CUDA graph of its own, and a new window of rows every hundred."
    rep.run(1)
    way = rep.way
    way.at.fill_(0)
    way.batch(rep)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph): way.batch(rep)
    def run(n):
        for i in range(n):
            if i % 100 == 0:
                way.window = None
                way.enter(rep, i)
            graph.replay()
    return run


def maps(device, seconds):
    "A place of a loss map, in turns with a module built and loaded for it."
    import landscape
    return lambda case: landscape.places(case, device, seconds)


def weight_norm(rep): return rep.weights.vector.norm()
def gradient_norm(rep): return rep.weights.grad.norm()


def a_line(case, device, limit):
    "Seconds of 30 points of a line."
    network, data, _ = CASES[case]
    ends = [init.fn(network, seed) for seed in (0, 1)]
    def go(): line.fn(*ends, data(), alphas=30, splits=('test',), limit=limit)
    os.environ['LTH_NB_DEVICE'] = device
    go()
    return Clock(device)(go)


def a_round(network, device):
    "Seconds of a round of global pruning."
    weights = {name: w.to(device) for name,w in prunable_weights(init.fn(network, 0)).items()}
    return statistics.median(Clock(device)(lambda: magnitude_mask(weights, .2)) for _ in range(3))


def watching(case, device, seconds):
    "What two norms at every step cost, as a share of a step."
    trace = Trace(gradient=gradient_norm, weights=weight_norm)
    ways = dict(bare=together([replica(case, device)]), watched=together([replica(case, device, hooks=[trace])]))
    took = in_turns(Clock(device), ways, seconds)
    return took['watched']/took['bare'] - 1


def to_disk(case, device):
    "Seconds to write a state."
    rep = replica(case, device)
    rep.run(1)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        return statistics.median(Clock(device)(lambda: store.write('x', rep.state())) for _ in range(5))


def parts(device, seconds):
    "What else an experiment spends its time on."
    out = {}
    for case,limit in (('lenet-60', None), ('resnet20', 2000 if device == 'cpu' else None)):
        out[f'30 alphas, {case}, {limit or 10000} test images'] = a_line(case, device, limit)
    for network in (nets.lenet_300_100, nets.vgg16):
        out[f'a round of global pruning, {network.name}'] = a_round(network, device)
    out['from nothing to the first step, resnet20, a new process'] = start_up(device)
    for case in ('lenet-60', 'resnet20'):
        out[f'two norms at every step, {case}, share of a step'] = watching(case, device, seconds)
        out[f'a state to the disk, {case}'] = to_disk(case, device)
    if device == 'cpu': out.update(telemetry())
    return out


def telemetry():
    "What the numbers of Early Figure 3 add to training, where all steps are looked at: the first fifty of a window."
    from lth_nb.figures import early_phase as early
    quick, = early.quick_studies()
    large, = early.gpu_studies()
    def cost(study, network, window): return early.overhead(replace(study, network=network, window=window))/100
    return {
        'telemetry at every step, mnist1d_conv, share of a step': cost(quick, nets.mnist1d_conv, 50),
        'telemetry at every step, resnet20, share of a step': cost(large, nets.resnet20, 10),
        f'telemetry over its window of {quick.window} steps, mnist1d_conv, share of a step': early.overhead(quick)/100,
    }


def start_up(device):
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); import engine; engine.replica('resnet20', {device!r}).run(1)"
    start = time.perf_counter()
    subprocess.run([sys.executable, '-c', code], check=True)
    return time.perf_counter() - start


# ---------------------------------------------------------------- the tables

def ms(seconds):
    if seconds is None: return '-'
    return f'{1e3*seconds:.3f}' if seconds < .1 else f'{1e3*seconds:.1f}'

def table(head, rows):
    lines = ['| ' + ' | '.join(head) + ' |', '| --- |' + ' --: |'*(len(head) - 1)]
    lines += ['| ' + ' | '.join(str(cell) for cell in row) + ' |' for row in rows]
    return '\n'.join(lines)

def load(path):
    "A file of results; keys that are numbers are numbers again."
    def numbered(d): return {int(key) if key.isdigit() else key: value for key,value in d.items()}
    return json.loads(Path(path).read_text(), object_hook=numbered)

def report(results, *wanted):
    "The tables of a run, or some of them, as Markdown."
    out = []
    for part in wanted or PARTS:
        if part == 'plain fp32' or not results.get(part): continue   # its rows stand with the others
        found = results[part]
        if part == 'plain': found = found + results.get('plain fp32', [])
        out.append(TABLES[part](found))
    return '\n\n'.join(out)

def way_of(how):
    "The plain script's settings in words."
    def said(value): return {True: 'yes', False: 'no'}[value] if isinstance(value, bool) else value
    return ', '.join(f'{name} {said(value)}' for name,value in how.items())

def plain_table(rows):
    many = any(row['replicas'] > 1 for row in rows)
    def cells(row):
        seconds = row['seconds']
        beside = f"{ms(seconds.get('ours side by side'))} ({row['replicas']})" if row['replicas'] > 1 else '-'
        return [row['case'], ms(seconds['plain']), ms(seconds.get('ours')), *([beside] if many else []),
                f"{row['ratio']:.1f}", way_of(row['way'])]
    head = ['milliseconds a replica-step', 'plain script', 'ours, one', *(['ours, side by side'] if many else []),
            'plain / ours', 'the plain script at its best']
    return table(head, map(cells, rows))

def replicas_table(cases):
    known = any(row.get('memory') for case in cases for row in case['rows'])
    head = ['replicas in one process', 'milliseconds a replica-step', 'replica-steps a second',
            *(['memory, GiB'] if known else []), 'times the floor by bytes', 'times the floor by FLOP']
    def numbers(row):
        if not row['seconds']: return ['out of memory', *['']*(len(head) - 2)]
        memory = [f"{row['memory']/2**30:.2f}"] if known else []
        return [ms(row['seconds']), f"{row['per_second']:,.1f}", *memory,
                f"{row['floors_by_bytes']:.1f}", f"{row['floors_by_flop']:.1f}"]
    rows = [(case['case'], row) for case in cases for row in case['rows']]
    def named(name, row):
        engine = row.get('engine', 'loop')
        return f"{name}, {row['replicas']}" + ('' if engine == 'loop' else f', {engine}')
    return table(head, [[named(name, row), *numbers(row)] for name,row in rows])

def stacks_table(rows):
    def cells(row):
        loop = row['seconds']['loop']
        return [row['case'], ms(loop), *(f'{ms(t)} ({loop/t:.1f}x)' for t in list(row['seconds'].values())[1:])]
    return table(['milliseconds a replica-step', *rows[0]['seconds']], map(cells, rows))

def compute_table(rows):
    def cells(row):
        return [f"{row['case']}, {row['replicas']}", ms(row['seconds']), f"{row['per_second']:,.1f}", row['steps'],
                f"{row['floors_by_bytes']:.1f}", f"{row['until_all_train']:.1f}"]
    head = ['trajectories through `compute`', 'milliseconds a replica-step', 'replica-steps a second', 'steps of each',
            'times the floor by bytes', 'seconds until all train']
    return table(head, map(cells, rows))

def profile_table(rows):
    kinds = dict.fromkeys(kind for row in rows for kind in row['seconds'])
    def cells(row):
        whole = sum(row['seconds'].values())
        shares = [f"{100*row['seconds'].get(kind, 0)/whole:.0f} %" for kind in kinds]
        return [row['case'], ms(whole), f"{sum(row['count'].values()):.0f}", *shares]
    return table(['a step by kind', 'milliseconds', 'kernels, or operations', *kinds], map(cells, rows))

def processes_table(rows):
    def cells(row):
        one, two = (row['steps_per_second'][n] for n in (1, 2))
        return [row['case'], f'{one:.1f}', f'{two:.1f}', f'{two/one:.2f}']
    head = ['processes, one thread each', 'one: steps a second', 'two: steps a second', 'gain']
    return table(head, map(cells, rows))

def compiled_table(rows):
    def cells(row):
        many = f", {row['replicas']} replicas" if row['replicas'] > 1 else ''
        return [row['case'] + many, ms(row['seconds']['False']), ms(row['seconds']['True']), f"{row['gain']:.2f}"]
    head = ['torch.compile of the network', 'without, milliseconds', 'with, milliseconds', 'gain']
    return table(head, map(cells, rows))

def data_table(rows):
    def cells(row):
        seconds = row['seconds']
        return [row['case'], ms(seconds['data']), ms(seconds['step']), f"{100*row['share']:.1f} %"]
    return table(['data path', 'milliseconds a batch', 'milliseconds a step', 'share'], map(cells, rows))

def maps_table(rows):
    def cells(row):
        lost = f"{100*row['lost']:.1f} %" if row['lost'] > 0 else 'within the noise'
        return [row['case'], row['examples'], f"{1/row['seconds']['plain']:.1f}", f"{1/row['seconds']['ours']:.1f}",
                f"{row['ratio']:.2f}", lost]
    head = ['a loss map', 'examples a place', 'plain: places a second', 'ours: places a second', 'gain',
            'of ours, not evaluation']
    return table(head, map(cells, rows))

def parts_table(parts):
    def size(name, value):
        if 'share' in name: return 'within the noise' if value < 0 else f'{100*value:.1f} %'
        return f'{value:.1f} s' if value > 10 else f'{ms(value)} ms'
    return table(['what else', ''], [[name, size(name, value)] for name,value in parts.items()])

TABLES = {'plain': plain_table, 'replicas': replicas_table, 'stacks': stacks_table, 'compute': compute_table,
          'profile': profile_table, 'processes': processes_table, 'compiled': compiled_table, 'data': data_table,
          'maps': maps_table, 'parts': parts_table}


# ---------------------------------------------------------------- a run

def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--device', default='cpu')
    p.add_argument('--seconds', type=float, default=6, help='per side of a comparison')
    p.add_argument('--only', nargs='*', help='parts; on a GPU by default those that fit into 150 seconds')
    p.add_argument('--cases', nargs='*', default=list(CASES))
    p.add_argument('--replicas', nargs='*', type=int, default=[1, 2, 4, 8, 16, 32])
    p.add_argument('--steps', type=int, default=5*WINDOW, help='of a stretch on a GPU')
    p.add_argument('--box', type=float, default=10, help='seconds after which a stretch on a GPU ends')
    p.add_argument('--trajectories', type=int, help='through compute; by default 16 on a GPU, 8 on a CPU')
    p.add_argument('--limit', type=float, default=150, help='seconds for all rows on a GPU')
    p.add_argument('--dry-run', action='store_true', help='the rows of a GPU, on a CPU with tiny networks')
    p.add_argument('--out')
    a = p.parse_args()
    a.gpu = a.device != 'cpu' or a.dry_run
    a.only = a.only or (GPU_PARTS if a.gpu else PARTS)
    a.trajectories = a.trajectories or (16 if a.device != 'cpu' else 8)
    if a.dry_run:
        a.trajectories = 2
        a.steps = 20
        a.seconds = .5
    out = Path(__file__).with_name('cuda.json' if a.gpu else 'cpu.json')
    if a.dry_run: out = Path(tempfile.gettempdir())/'lth_nb-dry-run.json'
    a.out = Path(a.out or out)
    return a

def about(device):
    machine = torch.cuda.get_device_name() if device != 'cpu' else f'one core of {cpu_name()}'
    return dict(machine=machine, cores=os.cpu_count(), torch=torch.__version__, date=time.strftime('%Y-%m-%d'))

def begun(out, now, only, whole):
    "Results so far. What was measured before keeps its date, and each part measured since has its own."
    if not out.exists() or set(only) >= set(whole): return dict(about=now)
    old = json.loads(out.read_text())
    said = f"{now['date']}, {now['machine']}, torch {now['torch']}"
    later = old['about'].get('later', {}) | {part: said for part in only}
    return old | dict(about=old['about'] | dict(later=later))

def planned(a):
    "(part, what measures a case of it, the case or None) on a CPU, and of the parts on a GPU that are asked for."
    cuda = a.device != 'cpu'
    many = 8 if cuda else 1
    images = [case for case in a.cases if case in IMAGES]
    half = [case for case in images if 'bf16' in case]
    small = [case for case in a.cases if case in CURVES or case == 'lenet-60']
    few = [n for n in a.replicas if n <= 8]
    def counts(case): return a.replicas if cuda or case not in IMAGES or 'lenet' in case else few[:1]
    rows = [*half, *(f'{case}, compiled' for case in half if case == 'resnet20-bf16')]
    some = [case for case in images if case in half or case == 'resnet20']
    plan = {
        'plain': (lambda case: against_plain(case, a.device, a.seconds, many), images),
        'plain fp32': (lambda row: against_fp32(row, a.device, a.seconds), rows),
        'replicas': (lambda case: side_by_side(case, a.device, counts(case), a.seconds/2),
                     [case for case in a.cases if 'tf32' not in case]),
        'stacks': (lambda case: stacks(case, a.seconds),
                   [case for case in [*CURVES, 'lenet-60'] if case in a.cases and not cuda]),
        'compute': (lambda row: through_compute(row, a.device, a.trajectories, 3, math.inf),
                    [*small, *(f'{case}, alone' for case in small if case in CURVES)]),
        'profile': (lambda case: profiled(case, a.device), [case for case in a.cases if case in half + small]),
        'processes': (lambda case: processes(case, a.seconds), [c for c in images if 'vgg' not in c and not cuda]),
        'compiled': (lambda case: compiled(case, a.device, many, a.seconds), some),
        'data': (lambda case: data_path(case, a.device, a.seconds/2), images),
        'maps': (maps(a.device, a.seconds), ['mnist1d_conv', 'mnist1d_res, width 16', 'resnet20']),
        'parts': (lambda _: parts(a.device, a.seconds/2), [None])}
    for part,(measure, cases) in plan.items():
        for case in cases: yield part, measure, case


GPU_PARTS = ['replicas', 'compute', 'profile', 'plain']

def planned_on_gpu(a, found):
    "The same for 150 seconds of a GPU: what matters most comes first."
    def stretch(*counts):
        if a.dry_run: counts = (1, 2)
        return lambda case: in_one_stretch(case, a.device, counts, a.steps, a.box)
    def steady(case): return through_compute(case, a.device, a.trajectories, a.steps//WINDOW, a.box)
    def profile(case): return profiled(case, a.device)
    def usual(case): return plain_alone(case, a.device, min(a.seconds, a.box), found)
    rows = [('replicas', stretch(1, 8, 16), 'resnet20-bf16'), ('compute', steady, 'resnet20-bf16'),
            ('profile', profile, 'resnet20-bf16'), ('plain', usual, 'resnet20-bf16'),
            ('replicas', stretch(1, 16), 'lenet-60'), ('compute', steady, 'lenet-60'), ('plain', usual, 'lenet-60'),
            *(('replicas', stretch(1, 16), case) for case in CURVES), ('compute', steady, CURVES[0]),
            ('replicas', stretch(1, 8), 'vgg16-bf16'), ('profile', profile, 'vgg16-bf16'),
            ('replicas', stretch(8), 'resnet20-tf32'), ('replicas', stretch(8), 'resnet20')]
    return [row for row in rows if row[2] in a.cases]


def noise(folder, shape, n=64):
    "A data set of random images."
    g = np.random.default_rng(0)
    arrays = {}
    for split in ('train', 'test'):
        arrays[f'{split}_images'] = g.integers(0, 256, (n, *shape), dtype=np.uint8)
        arrays[f'{split}_labels'] = np.arange(n) % 10
    file = Path(folder)/f'{shape[0]}.npz'
    np.savez(file, **arrays)
    return npz(file)

def tiny(folder):
    "Networks and images for a dry run: the same names, and nothing of their speed."
    images = {size: noise(folder, shape) for size,shape in ((28, (28, 28)), (32, (32, 32, 3)))}
    def small(network, data, recipe):
        if len(network.input) == 2: return replace(network, width=4), data, replace(recipe, batch=2)
        return replace(network, width=2), partial(images.get, network.input[1]), replace(recipe, batch=2)
    CASES.update({name: small(*case) for name,case in CASES.items()})


def row_of(part, measure, case):
    "What a case gives; None for what there is no data for."
    start = time.perf_counter()
    try: row = measure(case)
    except MissingData as e:
        print(f'{case}: left out, {e}')
        return None
    print(f'{part} {case or ""}: {time.perf_counter() - start:.0f} s', flush=True)
    gc.collect()
    return row

def main():
    a = arguments()
    if a.dry_run: tiny(tempfile.mkdtemp())
    start = time.perf_counter()
    results = begun(a.out, about(a.device), a.only, GPU_PARTS if a.gpu else PARTS)
    for part in a.only: results.pop(part, None)
    on_gpu = a.gpu and set(a.only) <= set(GPU_PARTS)
    for part,measure,case in planned_on_gpu(a, results) if on_gpu else planned(a):
        if part not in a.only: continue
        if on_gpu and time.perf_counter() - start > a.limit - 1.5*a.box:
            print(f'{part} {case}: left out, {a.limit:.0f} seconds are nearly over')
            continue
        row = row_of(part, measure, case)
        if row is None: continue
        if case is None: results[part] = row
        else: results.setdefault(part, []).append(row)
        a.out.write_text(json.dumps(results, indent=1) + '\n')
    print('\n' + report(load(a.out)))


def cpu_name():
    try: return next(line.split(':')[1].strip() for line in open('/proc/cpuinfo') if line.startswith('model name'))
    except (OSError, StopIteration): return platform.processor() or platform.machine()


if __name__ == '__main__': main()
