"""Places a second on a loss map: `map_loss`, in turns with a module built, loaded and read back for every place.

A part of engine.py, and alone:

    python benchmarks/landscape.py [--seconds 4] [--device cuda]
"""
import argparse

from engine import Clock, in_turns, report   # first: it sets the threads
import numpy as np, torch, torch.nn.functional as F
from lth_nb import networks as nets
from lth_nb.data import Data, Split, mnist1d
from lth_nb.engine import Probe, module_of
from lth_nb.measures import map_loss
from lth_nb.networks import Network
from lth_nb.training import init

CASES = {
    'mnist1d_conv': Network('mnist1d_conv'),
    'mnist1d_res, width 16': Network('mnist1d_res', width=16),
    'resnet20': nets.resnet20,
}


def noise(n, device):
    "Images of CIFAR's shape: how fast they go through a network is no matter of what is on them."
    g = torch.Generator().manual_seed(0)
    def split():
        images = torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=g)
        return Split(images.to(device), torch.randint(0, 10, (n,), generator=g).to(device))
    return Data('noise', split(), split(), 10, (.5,)*3, (.25,)*3, '0'*64)


def images_of(case, device):
    "Data, and the number of examples that a place is measured on."
    if not case.startswith('resnet'): return mnist1d().load(device), 500
    n = 200 if device == 'cpu' else 10000
    return noise(n, device), n


def between(a, b, t):
    "Tensors on the line between those of two states; counts are the first's."
    return {name: torch.lerp(w, b[name], t) if w.is_floating_point() else w for name,w in a.items()}


def by_modules(a, b, batches, device):
    "A function: the losses of k places on the line between two states, each as a module of its own."
    def run(k):
        losses = []
        for i in range(k):
            mixed = {part: between(a[part], b[part], i/k) for part in ('weights', 'buffers')}
            net = module_of({**a, **mixed}, device).eval()
            total = 0.
            with torch.no_grad():
                for x,y in batches(): total += F.cross_entropy(net(x), y, reduction='sum').item()
            losses.append(total)
        return losses
    return run


def by_map(probe, a, b, n):
    "The same places as a map of one row."
    start = probe.vector(a)
    axes = torch.stack([probe.vector(b) - start, torch.zeros_like(start)])
    def run(k): return map_loss(probe, start, axes, (np.arange(k)/k).tolist(), [0.], limit=n)[0]
    return run


def places(case, device, seconds):
    "Seconds a place, both ways, and of the evaluation alone. That the losses are the same is checked first."
    network = CASES[case]
    data, n = images_of(case, device)
    a, b = (init.fn(network, seed) for seed in (0, 1))
    probe = Probe(network, data)
    def batches(): return data.evaluation('train', probe.size, limit=n)
    def bare(k):   # the same examples through the same network, whose weights stay
        for _ in range(k): probe.measure('train', n)
    ways = dict(plain=by_modules(a, b, batches, device), ours=by_map(probe, a, b, n), bare=bare)
    losses = torch.tensor(ways['plain'](5))
    apart = float((ways['ours'](5) - losses).abs().max()/losses.max())
    assert apart < 1e-3, f'{case}: the two ways differ by {apart}'
    took = in_turns(Clock(device), ways, seconds, rounds=15)   # short turns: differences are small
    return dict(case=case, examples=n, seconds=took, ratio=took['plain']/took['ours'],
                lost=1 - took['bare']/took['ours'])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seconds', type=float, default=4., help='per side of a comparison')
    p.add_argument('--device', default='cpu')
    a = p.parse_args()
    print(report(dict(maps=[places(case, a.device, a.seconds) for case in CASES])))


if __name__ == '__main__': main()
