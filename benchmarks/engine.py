"""How fast the engine trains, beside the usual script (plain.py) and beside what the machine could do at best.

    make bench          one core of a CPU, about ten minutes; writes benchmarks/cpu.json
    make bench-gpu      a CUDA device, about eight minutes; writes benchmarks/cuda.json
    python benchmarks/engine.py --device cpu --only lenet replicas --seconds 2

Whatever is compared is measured in turns in one run, so that both meet the same neighbours. On a CPU the times are CPU
seconds, on a GPU wall seconds around work that has been waited for; medians of five. MNIST and CIFAR-10 must be there
(LTH_NB_DATA).

Floors: FLOP are two a multiplication of the convolutions and linear layers, forward once and backward twice (the first
layer once); bytes are 14 passes over each convolution's output (2 of the convolution, 3 of BatchNorm and ReLU forward,
5 and 4 of them backward) and 32 a weight. Both are divided by what this device was measured to do in this run: a copy,
and a matrix product in the same precision.
"""
import argparse, gc, json, os, platform, statistics, subprocess, sys, tempfile, time
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import torch

torch.set_num_threads(1)
torch.set_flush_denormal(True)
sys.path.insert(0, str(Path(__file__).parent))
import plain
from lth_nb import networks as nets
from lth_nb.data import MissingData, cifar10, mnist
from lth_nb.engine import Replica, Trace
from lth_nb.experiment import Store
from lth_nb.pruning import magnitude_mask, prunable_weights
from lth_nb.training import TABLE_1, Recipe, init, line

LONG = 10**6
PARTS = ['plain', 'plain fp32', 'replicas', 'processes', 'compiled', 'data', 'maps', 'parts']
CIFAR = Recipe(LONG, weight_decay=1e-4, augment=True)
CASES = {
    'lenet-60': (nets.lenet_300_100, mnist, replace(TABLE_1['LeNet'], steps=LONG)),
    'lenet-128': (nets.lenet_300_100, mnist, Recipe(LONG)),
    'resnet20': (nets.resnet20, cifar10, CIFAR),
    'resnet20-bf16': (nets.resnet20, cifar10, replace(CIFAR, precision='bf16')),
    'vgg16': (nets.vgg16, cifar10, CIFAR),
    'vgg16-bf16': (nets.vgg16, cifar10, replace(CIFAR, precision='bf16')),
}


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
    for name,run in ways.items():
        run(1)
        one = max(clock(partial(run, 2))/2, 1e-6)
        steps[name] = max(1, min(5000, round(seconds/rounds/one)))
    took = {name: [] for name in ways}
    for _ in range(rounds):
        for name,run in ways.items(): took[name].append(clock(partial(run, steps[name]))/steps[name])
    return {name: statistics.median(times) for name,times in took.items()}


def replica(case, device, seed=0, **kw):
    network, data, recipe = CASES[case]
    return Replica(init.fn(network, seed), data(), recipe, order=seed, first=0, device=device, **kw)


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
        beside = f"{ms(seconds['ours side by side'])} ({row['replicas']})" if row['replicas'] > 1 else '-'
        return [row['case'], ms(seconds['plain']), ms(seconds['ours']), *([beside] if many else []),
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
    return table(head, [[f"{name}, {row['replicas']}", *numbers(row)] for name,row in rows])

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

TABLES = {'plain': plain_table, 'replicas': replicas_table, 'processes': processes_table, 'compiled': compiled_table,
          'data': data_table, 'maps': maps_table, 'parts': parts_table}


# ---------------------------------------------------------------- a run

def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--device', default='cpu')
    p.add_argument('--seconds', type=float, default=6, help='per side of a comparison')
    p.add_argument('--only', nargs='*', default=PARTS)
    p.add_argument('--cases', nargs='*', default=list(CASES))
    p.add_argument('--replicas', nargs='*', type=int, default=[1, 2, 4, 8, 16, 32])
    p.add_argument('--out')
    return p.parse_args()

def about(device):
    machine = torch.cuda.get_device_name() if device != 'cpu' else f'one core of {cpu_name()}'
    return dict(machine=machine, cores=os.cpu_count(), torch=torch.__version__, date=time.strftime('%Y-%m-%d'))

def begun(out, now, only):
    "Results so far. What was measured before keeps its date, and each part measured since has its own."
    if not out.exists() or set(only) >= set(PARTS): return dict(about=now)
    old = json.loads(out.read_text())
    said = f"{now['date']}, {now['machine']}, torch {now['torch']}"
    later = old['about'].get('later', {}) | {part: said for part in only}
    return old | dict(about=old['about'] | dict(later=later))

def planned(a):
    "(part, what measures a case of it, cases); the last has one case only."
    cuda = a.device != 'cpu'
    many = 8 if cuda else 1
    half = [case for case in a.cases if 'bf16' in case]
    few = [n for n in a.replicas if n <= 8]
    def counts(case): return a.replicas if cuda or 'lenet' in case else few[:1]
    yield 'plain', lambda case: against_plain(case, a.device, a.seconds, many), a.cases
    rows = [*half, *(f'{case}, compiled' for case in half if case == 'resnet20-bf16')]
    yield 'plain fp32', lambda row: against_fp32(row, a.device, a.seconds), rows
    yield 'replicas', lambda case: side_by_side(case, a.device, counts(case), a.seconds/2), a.cases
    if not cuda: yield 'processes', lambda case: processes(case, a.seconds), [c for c in a.cases if 'vgg' not in c]
    some = [case for case in a.cases if case in half or case == 'resnet20']
    yield 'compiled', lambda case: compiled(case, a.device, many, a.seconds), some
    yield 'data', lambda case: data_path(case, a.device, a.seconds/2), a.cases
    yield 'maps', maps(a.device, a.seconds), ['mnist1d_conv', 'mnist1d_res, width 16', 'resnet20']
    yield 'parts', lambda _: parts(a.device, a.seconds/2), None

def measured(part, measure, cases):
    "What there is data for."
    got = []
    for case in cases:
        start = time.perf_counter()
        try: got.append(measure(case))
        except MissingData as e:
            print(f'{case}: left out, {e}')
            continue
        print(f'{part} {case or ""}: {time.perf_counter() - start:.0f} s', flush=True)
        gc.collect()
    return got

def main():
    a = arguments()
    out = Path(a.out or Path(__file__).with_name('cuda.json' if a.device != 'cpu' else 'cpu.json'))
    results = begun(out, about(a.device), a.only)
    for part,measure,cases in planned(a):
        if part not in a.only: continue
        got = measured(part, measure, [None] if cases is None else cases)
        results[part] = got if cases is not None else got[0]
        out.write_text(json.dumps(results, indent=1) + '\n')
    print('\n' + report(load(out)))


def cpu_name():
    try: return next(line.split(':')[1].strip() for line in open('/proc/cpuinfo') if line.startswith('model name'))
    except (OSError, StopIteration): return platform.processor() or platform.machine()


if __name__ == '__main__': main()
