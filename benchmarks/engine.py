"""How fast the engine trains, beside the usual script (plain.py) and beside what the machine could do at best.

    make bench          one core of a CPU, about ten minutes; writes benchmarks/cpu.json
    make bench-gpu      a CUDA device, about eight minutes; writes benchmarks/cuda.json
    python benchmarks/engine.py --device cpu --only lenet replicas --seconds 2

Whatever is compared is measured in turns in one run, so that both meet the same neighbours. On a CPU the times are CPU seconds,
on a GPU wall seconds around work that has been waited for; medians of five. MNIST and CIFAR-10 must be there (LTH_NB_DATA).

Floors: FLOP are two a multiplication of the convolutions and linear layers, forward once and backward twice (the first layer once);
bytes are 14 passes over each convolution's output (2 of the convolution, 3 of BatchNorm and ReLU forward, 5 and 4 of them backward)
and 32 a weight. Both are divided by what this device was measured to do in this run: a copy, and a matrix product in the same precision.
"""
import argparse, gc, json, os, platform, statistics, subprocess, sys, tempfile, time
from dataclasses import replace
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
from lth_nb.training import TABLE_1, Recipe, init

LONG = 10**6
PARTS = ['plain', 'plain fp32', 'replicas', 'processes', 'compiled', 'data', 'maps', 'parts']
CIFAR = Recipe(LONG, weight_decay=1e-4, augment=True)
CASES = {'lenet-60': (nets.lenet_300_100, mnist, replace(TABLE_1['LeNet'], steps=LONG)),
         'lenet-128': (nets.lenet_300_100, mnist, Recipe(LONG)),
         'resnet20': (nets.resnet20, cifar10, CIFAR), 'resnet20-bf16': (nets.resnet20, cifar10, replace(CIFAR, precision='bf16')),
         'vgg16': (nets.vgg16, cifar10, CIFAR), 'vgg16-bf16': (nets.vgg16, cifar10, replace(CIFAR, precision='bf16'))}


class Clock:
    "Seconds of a function: CPU time on a CPU, wall time on a GPU."
    def __init__(self, device): self.cuda = device != 'cpu'
    def now(self):
        if self.cuda: torch.cuda.synchronize()
        return time.perf_counter() if self.cuda else time.process_time()
    def __call__(self, f):
        t = self.now(); f(); return self.now() - t


def in_turns(clock, fs, seconds, rounds=5):
    "Median seconds a step of each of several `run(n)`, measured in turns."
    n = {}
    for k,f in fs.items():
        f(1)
        n[k] = max(1, min(5000, round(seconds/rounds/max(clock(lambda f=f: f(2))/2, 1e-6))))
    rows = {k: [] for k in fs}
    for _ in range(rounds):
        for k,f in fs.items(): rows[k].append(clock(lambda f=f, k=k: f(n[k]))/n[k])
    return {k: statistics.median(r) for k,r in rows.items()}


def replica(case, device, seed=0, **kw):
    network,data,recipe = CASES[case]
    return Replica(init.fn(network, seed), data(), recipe, order=seed, first=0, device=device, **kw)


def together(reps):
    "A function that takes all replicas so many steps on, side by side."
    def run(n):
        goals = [r.step + n for r in reps]
        while not all([r.pump(g) for r,g in zip(reps, goals)]): pass
    return run


# ---------------------------------------------------------------- what the machine could do

def ceilings(device, dtype):
    "Bytes and FLOP a second: a copy, and a matrix product."
    cuda = device != 'cpu'
    clock,n = Clock(device),2**28 if cuda else 2**25
    a,b = torch.rand(n, device=device),torch.empty(n, device=device)
    m = 8192 if cuda else 1024
    p,q = (torch.randn(m, m, device=device, dtype=dtype) for _ in range(2))
    copy,matmul = (lambda: b.copy_(a)),(lambda: p @ q)
    for f in (copy, matmul): f(); f()
    t = [statistics.median(clock(f) for _ in range(7)) for f in (copy, matmul)]
    return 8*n/t[0], 2*m**3/t[1]


def floors(case, device):
    "Seconds a replica-step by bytes and by FLOP."
    network,_,recipe = CASES[case]
    net,layers = network.create(0).eval(),[]
    def see(m, x, y):
        if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear)): layers.append((y.numel()*m.weight[0].numel(), y.numel(), isinstance(m, torch.nn.Conv2d)))
    for m in net.modules(): m.register_forward_hook(see)
    with torch.no_grad(): net(torch.zeros(1, *network.input))
    flop = 2*recipe.batch*(3*sum(l[0] for l in layers) - layers[0][0])
    half = recipe.precision == 'bf16'
    moved = recipe.batch*sum(o*(14 if c else 4) for _,o,c in layers)*(2 if half else 4) + 32*sum(p.numel() for p in net.parameters())
    bandwidth,rate = ceilings(device, torch.bfloat16 if half else torch.float32)
    return dict(flop=flop, bytes=moved, seconds_by_bytes=moved/bandwidth, seconds_by_flop=flop/rate, bandwidth=bandwidth, flop_rate=rate)


# ---------------------------------------------------------------- what is measured

def against_plain(case, device, seconds, many):
    "One replica, and on a GPU several side by side, in turns with the usual script in its best form."
    network,data,recipe = CASES[case]
    clock = Clock(device)   # in fp32 the script has PyTorch's defaults: convolutions in TF32 on a GPU, which ours are not
    usual,way = plain.best(network, data().load(), recipe, device, seconds, autocast=(recipe.precision == 'bf16',))
    way['precision'] = 'tf32 convolutions' if device != 'cpu' and recipe.precision == 'fp32' else recipe.precision
    fs = dict(plain=usual, ours=together([replica(case, device)]))
    if many > 1: fs['ours side by side'] = together([replica(case, device, s) for s in range(many)])
    t = in_turns(clock, fs, seconds)
    if many > 1: t['ours side by side'] /= many
    best = min(v for k,v in t.items() if k != 'plain')
    return dict(case=case, seconds={k: v for k,v in t.items()}, replicas=many, ratio=t['plain']/best, way=way)


def against_fp32(row, device, seconds):
    "Ours in bf16, and where the row says so through torch.compile, against the usual script in fp32, as most scripts are."
    case,_,how = row.partition(', ')
    network,data,recipe = CASES[case]
    ours = together([replica(case, device, compiled_net=how == 'compiled')])
    usual,way = plain.best(network, data().load(), recipe, device, seconds, autocast=(False,))
    t = in_turns(Clock(device), dict(plain=usual, ours=ours), seconds)
    return dict(case=f'{row} against fp32', seconds=t, replicas=1, ratio=t['plain']/t['ours'], way=way | {'precision': 'fp32'})


def free(device):
    "Bytes left on a GPU when nothing is kept that is not used."
    gc.collect()
    if device == 'cpu': return 0
    torch.cuda.synchronize(); torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def side_by_side(case, device, ks, seconds):
    "Replica-steps a second and memory, for more and more replicas in one process."
    floor,rows,reps = floors(case, device),[],[]
    CASES[case][1]().load(device)
    before = free(device)
    for k in ks:
        try:
            while len(reps) < k: reps.append(replica(case, device, len(reps)))
            run = together(reps)
            t = in_turns(Clock(device), dict(ours=run), seconds, 3)['ours']/k
        except torch.OutOfMemoryError: rows.append(dict(replicas=k, seconds=None)); break
        taken = before - free(device) if device != 'cpu' else None   # a process's own peak says nothing of one replica
        rows.append(dict(replicas=k, seconds=t, per_second=1/t, memory=taken,
                         floors_by_bytes=t/floor['seconds_by_bytes'], floors_by_flop=t/floor['seconds_by_flop']))
    return dict(case=case, floor=floor, rows=rows)


def processes(case, seconds):
    "CPU: the same replica in one process, and in two at once."
    code = ("import sys, time; sys.path[:0] = %r; import engine; r = engine.replica(%r, 'cpu'); r.run(3)\n"
            "print('ready', flush=True); sys.stdin.readline(); n, t = 0, time.perf_counter()\n"
            "while time.perf_counter() - t < %r: r.run(r.step + 1); n += 1\nprint(n/(time.perf_counter() - t))") % ([str(Path(__file__).parent)], case, seconds)
    out = {}
    for k in (1, 2):
        ps = [subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(k)]
        for p in ps: p.stdout.readline()
        for p in ps: p.stdin.write('\n'); p.stdin.flush()
        out[k] = sum(float(p.communicate()[0]) for p in ps)
    return dict(case=case, steps_per_second=out)


def compiled(case, device, many, seconds):
    "The network through torch.compile, against not."
    t = in_turns(Clock(device), {k: together([replica(case, device, s, compiled_net=k) for s in range(many)]) for k in (False, True)}, seconds)
    return dict(case=case, replicas=many, seconds={str(k): v/many for k,v in t.items()}, gain=t[False]/t[True])


def data_path(case, device, seconds):
    "A batch: order, crops, gather, normalisation; as a share of a step."
    rep = replica(case, device)
    def batches(n):
        for i in range(n): rep.course.batches[rep.step + i]
    if rep.lane: batches = recorded(rep)
    t = in_turns(Clock(device), dict(step=together([rep]), data=batches), seconds, 5)
    return dict(case=case, seconds=t, share=t['data']/t['step'])


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


def parts(device, seconds):
    "What else an experiment spends its time on."
    clock,out = Clock(device),{}
    for case,limit in (('lenet-60', None), ('resnet20', 2000 if device == 'cpu' else None)):
        network,data,_ = CASES[case]
        from lth_nb.training import line
        os.environ['LTH_NB_DEVICE'] = device
        a,b = (init.fn(network, s) for s in (0, 1))
        go = lambda: line.fn(a, b, data(), alphas=30, splits=('test',), limit=limit)
        go()
        out[f'30 alphas, {case}, {limit or 10000} test images'] = clock(go)
    for name in ('lenet_300_100', 'vgg16'):
        w = {k: v.to(device) for k,v in prunable_weights(init.fn(getattr(nets, name), 0)).items()}
        out[f'a round of global pruning, {name}'] = statistics.median(clock(lambda: magnitude_mask(w, .2)) for _ in range(3))
    out['from nothing to the first step, resnet20, a new process'] = start_up(device)
    for case in ('lenet-60', 'resnet20'):
        norms = dict(g=lambda r: r.weights.grad.norm(), w=lambda r: r.weights.vector.norm())
        t = in_turns(clock, dict(bare=together([replica(case, device)]), watched=together([replica(case, device, hooks=[Trace(**norms)])])), seconds)
        out[f'two norms at every step, {case}, share of a step'] = t['watched']/t['bare'] - 1
        rep = replica(case, device); rep.run(1)
        with tempfile.TemporaryDirectory() as tmp:
            s = Store(tmp)
            out[f'a state to the disk, {case}'] = statistics.median(clock(lambda: s.write('x', rep.state())) for _ in range(5))
    if device == 'cpu': out.update(telemetry())
    return out


def telemetry():
    "What the numbers of Early Figure 3 add to training, in the steps that are all looked at: the first fifty of a window."
    from dataclasses import replace
    from lth_nb import early_phase as early
    out = {}
    for name,network,window in (('mnist1d_conv', nets.mnist1d_conv, 50), ('resnet20', nets.resnet20, 10)):
        s = early.quick_studies()[0] if name == 'mnist1d_conv' else early.gpu_studies()[0]
        out[f'telemetry at every step, {name}, share of a step'] = early.overhead(replace(s, network=network, window=window))/100
    s = early.quick_studies()[0]
    out[f'telemetry over its window of {s.window} steps, mnist1d_conv, share of a step'] = early.overhead(s)/100
    return out


def start_up(device):
    code = f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]; import engine; engine.replica('resnet20', {device!r}).run(1)"
    t = time.perf_counter()
    subprocess.run([sys.executable, '-c', code], check=True)
    return time.perf_counter() - t


# ---------------------------------------------------------------- the tables

def ms(s): return '-' if s is None else f'{1e3*s:.3f}' if s < .1 else f'{1e3*s:.1f}'

def table(head, rows):
    out = ['| ' + ' | '.join(head) + ' |', '| --- |' + ' --: |'*(len(head) - 1)]
    return '\n'.join(out + ['| ' + ' | '.join(str(c) for c in r) + ' |' for r in rows])

def load(path): return json.loads(Path(path).read_text(), object_hook=lambda d: {int(k) if k.isdigit() else k: v for k,v in d.items()})

def report(r, *parts):
    "The tables of a run, or some of them, as Markdown."
    out = []
    for part in parts or PARTS:
        if part == 'plain fp32': continue   # its rows stand with the others
        if x := r.get(part): out.append(globals()[f'_{part}'](x + r.get('plain fp32', []) if part == 'plain' else x))
    return '\n\n'.join(out)

def _plain(x):
    beside = lambda o: f"{ms(o['seconds']['ours side by side'])} ({o['replicas']})" if o['replicas'] > 1 else '-'
    many = any(o['replicas'] > 1 for o in x)
    yes = lambda v: {True: 'yes', False: 'no'}.get(v, v) if isinstance(v, bool) else v
    return table(['milliseconds a replica-step', 'plain script', 'ours, one', *['ours, side by side']*many, 'plain / ours', 'the plain script at its best'],
        [[o['case'], ms(o['seconds']['plain']), ms(o['seconds']['ours']), *[beside(o)]*many, f"{o['ratio']:.1f}",
          ', '.join(f'{k} {yes(v)}' for k,v in o['way'].items())] for o in x])

def _replicas(x):
    known = any(q.get('memory') for o in x for q in o['rows'])
    numbers = lambda q: [ms(q['seconds']), f"{q['per_second']:,.1f}", *[f"{q['memory']/2**30:.2f}" for _ in range(known)], f"{q['floors_by_bytes']:.1f}", f"{q['floors_by_flop']:.1f}"]
    head = ['replicas in one process', 'milliseconds a replica-step', 'replica-steps a second', *['memory, GiB']*known, 'times the floor by bytes', 'times the floor by FLOP']
    return table(head, [[f"{o['case']}, {q['replicas']}", *(numbers(q) if q['seconds'] else ['out of memory'] + ['']*(len(head) - 2))] for o in x for q in o['rows']])

def _processes(x):
    return table(['processes, one thread each', 'one: steps a second', 'two: steps a second', 'gain'],
        [[o['case'], f"{o['steps_per_second'][1]:.1f}", f"{o['steps_per_second'][2]:.1f}", f"{o['steps_per_second'][2]/o['steps_per_second'][1]:.2f}"] for o in x])

def _compiled(x):
    return table(['torch.compile of the network', 'without, milliseconds', 'with, milliseconds', 'gain'],
                 [[o['case'] + (f", {o['replicas']} replicas" if o['replicas'] > 1 else ''), ms(o['seconds']['False']), ms(o['seconds']['True']), f"{o['gain']:.2f}"] for o in x])

def _data(x): return table(['data path', 'milliseconds a batch', 'milliseconds a step', 'share'],
                           [[o['case'], ms(o['seconds']['data']), ms(o['seconds']['step']), f"{100*o['share']:.1f} %"] for o in x])

def _maps(x):
    return table(['a loss map', 'examples a place', 'plain: places a second', 'ours: places a second', 'gain', 'of ours, not evaluation'],
                 [[o['case'], o['examples'], f"{1/o['seconds']['plain']:.1f}", f"{1/o['seconds']['ours']:.1f}", f"{o['ratio']:.2f}",
                   f"{100*o['lost']:.1f} %" if o['lost'] > 0 else 'within the noise'] for o in x])

def _parts(x):
    size = lambda k, v: ('within the noise' if v < 0 else f'{100*v:.1f} %') if 'share' in k else f'{v:.1f} s' if v > 10 else f'{ms(v)} ms'
    return table(['what else', ''], [[k, size(k, v)] for k,v in x.items()])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--device', default='cpu'); p.add_argument('--seconds', type=float, default=6, help='per side of a comparison')
    p.add_argument('--only', nargs='*', default=PARTS); p.add_argument('--cases', nargs='*', default=list(CASES))
    p.add_argument('--replicas', nargs='*', type=int, default=[1, 2, 4, 8, 16, 32]); p.add_argument('--out')
    a = p.parse_args()
    cuda = a.device != 'cpu'
    r = dict(about=dict(machine=torch.cuda.get_device_name() if cuda else f'one core of {cpu_name()}', cores=os.cpu_count(), torch=torch.__version__, date=time.strftime('%Y-%m-%d')))
    out = Path(a.out or Path(__file__).with_name('cuda.json' if cuda else 'cpu.json'))
    if out.exists() and set(a.only) < set(PARTS):   # the rest was measured before: its date stays, and each part measured since has its own
        old,now = json.loads(out.read_text()),r['about']
        r = old | dict(about=old['about'] | dict(later=old['about'].get('later', {}) | {k: f"{now['date']}, {now['machine']}, torch {now['torch']}" for k in a.only}))
    def do(what, f, cases=(None,)):
        if what not in a.only: return
        got = []
        for c in cases:
            t = time.perf_counter()
            try: got.append(f(c))
            except MissingData as e: print(f'{c}: left out, {e}'); continue
            print(f'{what} {c or ""}: {time.perf_counter() - t:.0f} s', flush=True)
            gc.collect()
        r[what] = got if cases != (None,) else got[0]
        out.write_text(json.dumps(r, indent=1) + '\n')
    do('plain', lambda c: against_plain(c, a.device, a.seconds, 8 if cuda else 1), a.cases)
    do('plain fp32', lambda c: against_fp32(c, a.device, a.seconds), [*(c for c in a.cases if 'bf16' in c), *(f'{c}, compiled' for c in a.cases if c == 'resnet20-bf16')])
    few = [k for k in a.replicas if k <= 8]
    do('replicas', lambda c: side_by_side(c, a.device, a.replicas if cuda or 'lenet' in c else few[:1], a.seconds/2), a.cases)
    if not cuda: do('processes', lambda c: processes(c, a.seconds), [c for c in a.cases if 'vgg' not in c])
    do('compiled', lambda c: compiled(c, a.device, 8 if cuda else 1, a.seconds), [c for c in a.cases if 'bf16' in c or c == 'resnet20'])
    do('data', lambda c: data_path(c, a.device, a.seconds/2), a.cases)
    do('maps', maps(a.device, a.seconds), ['mnist1d_conv', 'mnist1d_res, width 16', 'resnet20'])
    do('parts', lambda c: parts(a.device, a.seconds/2))
    out.write_text(json.dumps(r, indent=1) + '\n')
    print('\n' + report(load(out)))


def cpu_name():
    try: return next(l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name'))
    except (OSError, StopIteration): return platform.processor() or platform.machine()


if __name__ == '__main__': main()
