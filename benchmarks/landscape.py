"""Places a second on a loss map: `map_loss`, in turns with a module built, loaded and read back for every place. A part of engine.py, and alone:

    python benchmarks/landscape.py [--seconds 4] [--device cuda]
"""
import argparse

from engine import Clock, in_turns, report   # first: it sets the threads
import numpy as np, torch
from lth_nb import networks as nets
from lth_nb.data import Data, Split, mnist1d
from lth_nb.engine import Probe, module_of
from lth_nb.measures import map_loss
from lth_nb.networks import Network
from lth_nb.training import init

CASES = {'mnist1d_conv': Network('mnist1d_conv'), 'mnist1d_res, width 16': Network('mnist1d_res', width=16), 'resnet20': nets.resnet20}


def noise(n, device):
    "Images of CIFAR's shape: how fast they go through a network is no matter of what is on them."
    g = torch.Generator().manual_seed(0)
    split = lambda: Split(torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=g).to(device), torch.randint(0, 10, (n,), generator=g).to(device))
    return Data('noise', split(), split(), 10, (.5,)*3, (.25,)*3, '0'*64)


def places(case, device, seconds):
    "Seconds a place, both ways, and of the evaluation alone. That the losses are the same is checked first."
    net,cuda = CASES[case],device != 'cpu'
    images = case.startswith('resnet')
    n = (200 if not cuda else 10000) if images else 500
    data = noise(n, device) if images else mnist1d().load(device)
    a,b = (init.fn(net, s) for s in (0, 1))
    probe = Probe(net, data)
    va,vb = probe.vector(a),probe.vector(b)
    def plain(k, losses=None):
        for i in range(k):
            mix = lambda part: {q: torch.lerp(a[part][q], b[part][q], i/k) if a[part][q].is_floating_point() else a[part][q] for q in a[part]}
            m,total = module_of({**a, 'weights': mix('weights'), 'buffers': mix('buffers')}, device).eval(),0.
            with torch.no_grad():
                for x,y in data.evaluation('train', probe.size, limit=n): total += torch.nn.functional.cross_entropy(m(x), y, reduction='sum').item()
            if losses is not None: losses.append(total)
    axes = torch.stack([vb - va, torch.zeros_like(va)])
    ours = lambda k: map_loss(probe, va, axes, (np.arange(k)/k).tolist(), [0.], limit=n)
    losses = []
    plain(5, losses)
    apart = float((ours(5)[0] - torch.tensor(losses)).abs().max()/max(losses))
    assert apart < 1e-3, f'{case}: the two ways differ by {apart}'
    def bare(k):   # the same examples through the same network, whose weights stay
        for _ in range(k): probe.measure('train', n)
    t = in_turns(Clock(device), dict(plain=plain, ours=ours, bare=bare), seconds, 15)   # short turns: differences are small
    return dict(case=case, examples=n, seconds=t, ratio=t['plain']/t['ours'], lost=1 - t['bare']/t['ours'])


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seconds', type=float, default=4., help='per side of a comparison'); p.add_argument('--device', default='cpu')
    a = p.parse_args()
    print(report(dict(maps=[places(c, a.device, a.seconds) for c in CASES])))
