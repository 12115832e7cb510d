"""The usual training script, as a measure: torchvision transforms, a DataLoader, one network, torch.optim.

    python benchmarks/plain.py --network resnet20 --steps 100 --device cuda --workers 8

It is written to be fair: worker processes and pinned memory, channels_last and autocast where they are asked for,
PyTorch's fused optimiser, cudnn.benchmark on. `best` tries the ways there are on this machine and keeps the fastest.
"""
import argparse, itertools, os, time

os.environ.setdefault('OMP_NUM_THREADS', '1')
import torch, torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset


class Images(Dataset):
    "uint8 images and labels, one at a time through torchvision's transforms."
    def __init__(self, data, augment):
        from torchvision import transforms as T
        self.pixels = data.train.x.cpu().numpy()
        self.labels = data.train.y.tolist()
        crop = [T.RandomCrop(32, 4), T.RandomHorizontalFlip()] if augment else []
        scale = T.Normalize([float(m) for m in data.mean], [float(s) for s in data.std])
        self.transform = T.Compose([T.ToPILImage(), *crop, T.ToTensor(), scale])
    def __len__(self): return len(self.labels)
    def __getitem__(self, i): return self.transform(self.pixels[i]), self.labels[i]


def optimizer_of(net, recipe):
    how = dict(lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    if recipe.optimizer == 'sgd': return torch.optim.SGD(net.parameters(), momentum=recipe.momentum, **how)
    return torch.optim.Adam(net.parameters(), **how)


def trainer(network, data, recipe, device='cpu', workers=0, channels_last=True, autocast=False):
    "A function that trains so many steps."
    torch.backends.cudnn.benchmark = True
    layout = torch.channels_last if channels_last else torch.contiguous_format
    loader = DataLoader(Images(data, recipe.augment), recipe.batch, shuffle=True, drop_last=True, num_workers=workers,
                        pin_memory=device != 'cpu', persistent_workers=workers > 0)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    net = network.create(0).to(device, memory_format=layout).train()
    optimizer = optimizer_of(net, recipe)
    kind = device.split(':')[0]
    def run(n):
        for _ in range(n):
            x, y = next(batches)
            x = x.to(device, memory_format=layout, non_blocking=True)
            y = y.to(device, non_blocking=True)
            optimizer.zero_grad()
            with torch.autocast(kind, torch.bfloat16, enabled=autocast): loss = F.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
        if device != 'cpu': torch.cuda.synchronize()
    return run


def ways_to_run(network, device, autocast):
    "Arguments of `trainer`. On a CPU the core that trains has nothing left over for workers."
    workers = (0,) if device == 'cpu' else (4, min(16, os.cpu_count()))
    colours = len(network.input) == 3 and network.input[0] == 3
    layouts = (True, False) if colours else (False,)
    choices = itertools.product(workers, layouts, autocast)
    return [dict(zip(('workers', 'channels_last', 'autocast'), choice)) for choice in choices]


def seconds_a_step(run, few, seconds):
    "Over `seconds`, at least two steps; a minute at most, the first two included, which are not counted."
    begun = time.perf_counter()
    run(2)
    n = 0
    start = time.perf_counter()
    def going():
        now = time.perf_counter()
        return now - start < seconds and now - begun < 60
    while n < 2 or going():
        run(few)
        n += few
    return (time.perf_counter() - start)/n


def best(network, data, recipe, device='cpu', seconds=3, autocast=(False, True)):
    "The fastest of the ways: what runs it, and its arguments."
    ways = ways_to_run(network, device, autocast)
    timed = []
    for way in ways:
        run = trainer(network, data, recipe, device, **way)
        timed.append((seconds_a_step(run, 1 if device == 'cpu' else 20, seconds/len(ways)), run, way))
    _, run, way = min(timed, key=lambda row: row[0])
    return run, way


def main():
    from lth_nb import networks
    from lth_nb.data import cifar10, mnist
    from lth_nb.training import TABLE_1, Recipe
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--network', default='resnet20')
    p.add_argument('--steps', type=int, default=100)
    p.add_argument('--device', default='cpu')
    p.add_argument('--workers', type=int, default=0)
    p.add_argument('--autocast', action='store_true')
    a = p.parse_args()
    torch.set_num_threads(1)
    lenet = a.network.startswith('lenet')
    data = mnist() if lenet else cifar10()
    recipe = TABLE_1['LeNet'] if lenet else Recipe(a.steps + 10, weight_decay=1e-4, augment=True)
    run = trainer(getattr(networks, a.network), data.load(), recipe, a.device, a.workers, autocast=a.autocast)
    run(3)
    start = time.perf_counter()
    run(a.steps)
    print(f'{a.network}: {1e3*(time.perf_counter() - start)/a.steps:.2f} ms a step')


if __name__ == '__main__': main()
