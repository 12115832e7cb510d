"""Where a training step spends its time: by kind of kernel on a GPU, by kind of operation on a CPU.

A part of engine.py, and alone:

    python benchmarks/kernels.py mnist1d_conv --device cpu

A step is profiled as single kernels, not as the recorded graph: they are the same, and each still knows which operation
started it. Kinds: `data` (gather, crops, normalisation), `forward`, `BatchNorm` (forward and backward), `weight
gradients` and `data gradients` of convolutions, told apart by the kernels' names (cuDNN's have wgrad or dgrad in them);
`gradients` where a name says neither: linear layers, conversions of layout, and oneDNN on a CPU, which makes both in
one; `other backward` (ReLU, sums, the loss); `update` (the gradients into one vector,
optimiser, mask). Times are those of the profiler: on a CPU wall seconds, and what it costs to look is in them.
"""
import argparse
from bisect import bisect
from collections import Counter, defaultdict
from contextlib import ExitStack
from itertools import islice
from statistics import median

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from lth_nb.engine.lane import precisely
from lth_nb.engine.step import update
from lth_nb.engine.weights import loss_of

MARK = 'bench: '


def one_step(rep, step):
    "A replica's step in three phases, each with its name."
    model = rep.model
    with record_function(f'{MARK}data'):
        x, y = rep.way.batch(rep) if rep.driven else rep.course.batches[step]
    with record_function(f'{MARK}network'):
        model.weights.cast()
        grads = torch.autograd.grad(loss_of(model.forward(x), y), model.weights.params)
    with record_function(f'{MARK}update'):
        model.weights.collect(grads)
        if rep.driven: return update(model, rep.course.rates.index_select(0, rep.t))
        rep.way.optimizer.step()
        model.apply_mask()


def kind_of(names):
    "The kind of a kernel or operation, from its name and those of all that it was called by, innermost first."
    phase = next((name.removeprefix(MARK) for name in names if name.startswith(MARK)), None)   # the innermost
    backward = any(name.startswith('autograd::engine') for name in names)
    if phase in ('data', 'update') and not backward: return phase
    said = ' '.join(names).lower()
    if 'batch_norm' in said or 'batchnorm' in said: return 'BatchNorm'
    if not backward: return 'forward' if phase == 'network' else 'between phases'
    if 'wgrad' in said: return 'weight gradients'
    if 'dgrad' in said: return 'data gradients'
    if 'convolution' in said or 'mmbackward' in said: return 'gradients'
    return 'other backward'


def chain(event):
    "Names from an operation to the outermost one that called it."
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    return names


def spent(event, cuda):
    "(name, microseconds) of what an operation spends by itself."
    if cuda: return [(kernel.name, kernel.duration) for kernel in event.kernels]
    own = event.self_cpu_time_total
    return [(event.name, own)] if own > 0 and not event.name.startswith((MARK, 'autograd::engine')) else []


def profiled_steps(rep, steps):
    "The profiler's events of so many steps."
    cuda = rep.lane is not None
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with ExitStack() as stack:
        if cuda: stack.enter_context(rep.lane.here())
        stack.enter_context(precisely(rep.model.recipe))
        if rep.driven: rep.way.enter(rep, rep.step)
        for step in range(3): one_step(rep, step)
        with profile(activities=activities) as found:
            for step in range(steps):
                with record_function(f'{MARK}step'): one_step(rep, step)
            if cuda: torch.cuda.synchronize()
    return [event for event in found.events() if event.device_type == DeviceType.CPU]


def by_kind(case, rep, steps=10):
    "Seconds a step by kind and the largest kernels, medians over the steps; how many kernels there are in one."
    rep.run(rep.step + 3)
    events = profiled_steps(rep, steps)
    starts = sorted(event.time_range.start for event in events if event.name == f'{MARK}step')
    spent_on = defaultdict(lambda: [0.]*steps)
    kernels = defaultdict(lambda: [0.]*steps)
    count = Counter()
    for event in events:
        at = bisect(starts, event.time_range.start) - 1
        for name,microseconds in spent(event, rep.lane is not None):
            kind = kind_of([name, *chain(event)])
            spent_on[kind][at] += microseconds/1e6
            kernels[f'{kind}: {name[:90]}'][at] += microseconds/1e6
            count[kind] += 1
    def largest(seconds): return dict(sorted(((k, median(v)) for k,v in seconds.items()), key=lambda item: -item[1]))
    return dict(case=case, steps=steps, seconds=largest(spent_on), count={kind: n/steps for kind,n in count.items()},
                largest=dict(islice(largest(kernels).items(), 12)))


def main():
    from engine import replica, report   # it sets the threads
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('cases', nargs='*', default=['mnist1d_conv'])
    p.add_argument('--device', default='cpu')
    a = p.parse_args()
    rows = [by_kind(case, replica(case, a.device)) for case in a.cases]
    for row in rows:
        for name,seconds in row['largest'].items(): print(f'{1e3*seconds:8.4f} ms  {name}')
    print(report(dict(profile=rows)))


if __name__ == '__main__': main()
