"""The usual training script, as a measure: torchvision transforms, a DataLoader, one network, torch.optim.

    python benchmarks/plain.py --network resnet20 --steps 100 --device cuda --workers 8

It is written to be fair: worker processes and pinned memory, channels_last and autocast where they are asked for, PyTorch's
fused optimiser, cudnn.benchmark on. `best` tries the ways there are on this machine and keeps the fastest.
"""
import argparse, itertools, os, time

os.environ.setdefault('OMP_NUM_THREADS', '1')
import torch, torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset


class Images(Dataset):
    "uint8 images and labels, one at a time through torchvision's transforms."
    def __init__(self, data, augment):
        from torchvision import transforms as T
        self.pixels,self.labels = data.train.x.cpu().numpy(),data.train.y.tolist()
        crop = [T.RandomCrop(32, 4), T.RandomHorizontalFlip()] if augment else []
        self.transform = T.Compose([T.ToPILImage(), *crop, T.ToTensor(), T.Normalize([float(m) for m in data.mean], [float(s) for s in data.std])])
    def __len__(self): return len(self.labels)
    def __getitem__(self, i): return self.transform(self.pixels[i]), self.labels[i]


def trainer(network, data, recipe, device='cpu', workers=0, channels_last=True, autocast=False):
    "A function that trains so many steps."
    torch.backends.cudnn.benchmark = True
    layout = torch.channels_last if channels_last else torch.contiguous_format
    loader = DataLoader(Images(data, recipe.augment), recipe.batch, shuffle=True, drop_last=True, num_workers=workers,
                        pin_memory=device != 'cpu', persistent_workers=workers > 0)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    net = network.create(0).to(device, memory_format=layout).train()
    make = torch.optim.SGD if recipe.optimizer == 'sgd' else torch.optim.Adam
    kw = dict(momentum=recipe.momentum) if recipe.optimizer == 'sgd' else {}
    opt = make(net.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True, **kw)
    def run(n):
        for _ in range(n):
            x,y = next(batches)
            x,y = x.to(device, memory_format=layout, non_blocking=True),y.to(device, non_blocking=True)
            opt.zero_grad()
            with torch.autocast(device.split(':')[0], torch.bfloat16, enabled=autocast): loss = F.cross_entropy(net(x), y)
            loss.backward()
            opt.step()
        if device != 'cpu': torch.cuda.synchronize()
    return run


def best(network, data, recipe, device='cpu', seconds=3, autocast=(False, True)):
    "The fastest of the ways, and its name."
    workers = (0,) if device == 'cpu' else (4, min(16, os.cpu_count()))   # a core that trains has none left over for workers
    ways = [dict(workers=w, channels_last=c, autocast=a) for w in workers for c in ((True, False) if len(network.input) == 3 and network.input[0] == 3 else (False,))
            for a in autocast]
    timed = []
    for way in ways:
        run,n,t = trainer(network, data, recipe, device, **way),0,time.perf_counter()
        run(2)
        start = time.perf_counter()
        while n < 2 or time.perf_counter() - start < seconds/len(ways) and time.perf_counter() - t < 60: run(1 if device == 'cpu' else 20); n += 1 if device == 'cpu' else 20
        timed.append(((time.perf_counter() - start)/n, str(way), run, way))
    return min(timed, key=lambda t: t[:2])[2:]


def main():
    from lth_nb import networks
    from lth_nb.data import cifar10, mnist
    from lth_nb.training import TABLE_1, Recipe
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--network', default='resnet20'); p.add_argument('--steps', type=int, default=100); p.add_argument('--device', default='cpu')
    p.add_argument('--workers', type=int, default=0); p.add_argument('--autocast', action='store_true')
    a = p.parse_args()
    torch.set_num_threads(1)
    lenet = a.network.startswith('lenet')
    recipe = TABLE_1['LeNet'] if lenet else Recipe(a.steps + 10, weight_decay=1e-4, augment=True)
    run = trainer(getattr(networks, a.network), (mnist() if lenet else cifar10()).load(), recipe, a.device, a.workers, autocast=a.autocast)
    run(3)
    t = time.perf_counter()
    run(a.steps)
    print(f'{a.network}: {1e3*(time.perf_counter() - t)/a.steps:.2f} ms a step')


if __name__ == '__main__': main()
