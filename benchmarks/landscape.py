"""Points a second on a loss map: `map_loss`, against a module built and loaded for every point. python benchmarks/landscape.py [--seconds 2]"""
import argparse, os, time
os.environ.setdefault('OMP_NUM_THREADS', '1')
import numpy as np, torch
from lth_nb.data import Data, Split, mnist1d
from lth_nb.engine import Probe, device_of, module_of
from lth_nb.landscape import map_loss
from lth_nb.networks import Network
from lth_nb.training import init


def images(n, device):
    g = torch.Generator().manual_seed(0)
    split = lambda: Split(torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=g).to(device), torch.randint(0, 10, (n,), generator=g).to(device))
    return Data('noise', split(), split(), 10, (.5,)*3, (.25,)*3, '0'*64)


def rate(f, seconds, sync):
    f(2); sync(); n,t = 0,time.perf_counter()
    while time.perf_counter() - t < seconds: f(4); sync(); n += 4
    return n/(time.perf_counter() - t)


def main(seconds, device):
    dev = device_of(device)
    sync = torch.cuda.synchronize if dev.startswith('cuda') else lambda: None
    cpu = dev == 'cpu'
    rows = [('mnist1d_conv', None, mnist1d().load(dev), 500), ('mnist1d_res', 16, mnist1d().load(dev), 500),
            ('resnet20', None, images(500 if cpu else 10000, dev), 200 if cpu else 10000)]
    for name,width,data,n in rows:
        net = Network(name, width=width)
        a,b = (init.fn(net, s) for s in (0, 1))
        p = Probe(net, data)
        va,vb = p.vector(a),p.vector(b)
        axes = torch.stack([vb - va, vb + va])
        def plain(k):
            for i in range(k):
                mix = lambda part: {q: a[part][q] + .1*i*(b[part][q] - a[part][q]) if a[part][q].is_floating_point() else a[part][q] for q in a[part]}
                m = module_of({**a, 'weights': mix('weights'), 'buffers': mix('buffers')}, dev).eval()
                total = 0.
                with torch.no_grad():
                    for x,y in data.evaluation('train', 100 if cpu else 2000, limit=n): total += torch.nn.functional.cross_entropy(m(x), y, reduction='sum').item()
        slow = rate(plain, seconds, sync)
        fast = rate(lambda k: map_loss(p, va, axes, np.linspace(0, 1, k).tolist(), [0.], limit=n), seconds, sync)
        print(f'{name:14} {n:6} examples, {dev}: plain {slow:8.1f} points/s, in place {fast:8.1f} points/s, x {fast/slow:.2f}', flush=True)


if __name__ == '__main__':
    p = argparse.ArgumentParser()
    p.add_argument('--seconds', type=float, default=2.); p.add_argument('--device', default='auto')
    torch.set_num_threads(1)
    main(**vars(p.parse_args()))
