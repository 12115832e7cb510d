"""Steps per second on one core: this library beside a plain PyTorch loop, measured in turns in one run.

    python benchmarks/speed.py [--seconds 5] [--out benchmarks/speed.json]

The plain loop is the usual script: torchvision transforms, a DataLoader, torch.optim, channels_last where it helps. It is given
its best number of workers on one core, which is none. MNIST and CIFAR-10 must be there (LTH_NB_DATA); what is not is left out.
CPU seconds are printed beside wall seconds: on a busy machine only the former say something about the code.
"""
import argparse, json, os, platform, statistics, time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import torch, torch.nn.functional as F

torch.set_num_threads(1)
torch.set_flush_denormal(True)
from lth_nb import networks as nets
from lth_nb.data import MissingData, cifar10, mnist
from lth_nb.training import TABLE_1, Recipe, Replica, init


def ours(network, data, recipe):
    "A function that trains so many steps."
    rep = Replica(init.fn(network, 0), data, recipe, order=1, first=0)
    return rep, lambda n: rep.run(rep.step + n)


def plain(network, data, recipe):
    "The same training as a script would have it."
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms as T
    d = data.load()
    pixels,labels = d.train.x.numpy(),d.train.y.tolist()
    mean,std = [float(m) for m in d.mean],[float(s) for s in d.std]
    crop = [T.RandomCrop(32, 4), T.RandomHorizontalFlip()] if recipe.augment else []
    transform = T.Compose([T.ToPILImage(), *crop, T.ToTensor(), T.Normalize(mean, std)])
    class Images(Dataset):
        def __len__(self): return len(labels)
        def __getitem__(self, i): return transform(pixels[i]), labels[i]
    def endless():
        while True: yield from DataLoader(Images(), recipe.batch, shuffle=True, drop_last=True)
    net = network.create(0).to(memory_format=torch.channels_last).train()
    make = torch.optim.SGD if recipe.optimizer == 'sgd' else torch.optim.Adam
    kw = dict(momentum=recipe.momentum) if recipe.optimizer == 'sgd' else {}
    opt,batches = make(net.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, **kw),endless()
    def run(n):
        for _ in range(n):
            x,y = next(batches)
            opt.zero_grad()
            F.cross_entropy(net(x.contiguous(memory_format=torch.channels_last)), y).backward()
            opt.step()
    return run


def timed(run, n):
    "Wall and CPU milliseconds a step."
    w,c = time.perf_counter(),time.process_time()
    run(n)
    return 1e3*(time.perf_counter() - w)/n, 1e3*(time.process_time() - c)/n


def case(name, network, data, recipe, seconds):
    try: rep,mine = ours(network, data, recipe)
    except MissingData as e: print(f'{name}: left out, {e}'); return None
    usual = plain(network, data, recipe)
    n = {}
    for k,f in (('ours', mine), ('plain', usual)):
        f(2)
        n[k] = max(2, round(1e3*seconds/5/timed(f, 3)[0]))
    rows = {k: [] for k in n}
    for _ in range(5):   # in turns, so that both meet the same neighbours
        for k,f in (('ours', mine), ('plain', usual)): rows[k].append(timed(f, n[k]))
    rep.batches[rep.step]
    data_ms = statistics.median(timed(lambda m: [rep.batches[rep.step + i] for i in range(m)], 20)[1] for _ in range(5))
    med = lambda k, i: statistics.median(r[i] for r in rows[k])
    return dict(case=name, ours_ms=med('ours', 0), ours_cpu_ms=med('ours', 1), plain_ms=med('plain', 0), plain_cpu_ms=med('plain', 1),
                steps_per_second=1e3/med('ours', 1), ratio=med('plain', 1)/med('ours', 1), data_ms=data_ms, data_share=data_ms/med('ours', 1))


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--seconds', type=float, default=5, help='per side and case')
    p.add_argument('--out', default=str(Path(__file__).with_name('speed.json')))
    a = p.parse_args()
    r20 = replace(TABLE_1['ResNet-20'], steps=10**6)
    cases = [('LeNet-300-100, MNIST, batch 60, Adam', nets.lenet_300_100, mnist(), replace(TABLE_1['LeNet'], steps=10**6)),
             ('LeNet-300-100, MNIST, batch 128, SGD', nets.lenet_300_100, mnist(), Recipe(10**6, batch=128)),
             ('ResNet-20, CIFAR-10, batch 128, fp32', nets.resnet20, cifar10(), r20),
             ('ResNet-20, CIFAR-10, batch 128, bf16', nets.resnet20, cifar10(), replace(r20, precision='bf16'))]
    print(f'{"one core":40}{"ours ms":>9}{"plain ms":>10}{"ratio":>7}{"steps/s":>9}{"data path":>11}   (CPU time)')
    rows = []
    for c in cases:
        if not (r := case(*c, a.seconds)): continue
        rows.append(r)
        print(f'{r["case"]:40}{r["ours_cpu_ms"]:9.2f}{r["plain_cpu_ms"]:10.2f}{r["ratio"]:7.1f}{r["steps_per_second"]:9.1f}{100*r["data_share"]:10.1f}%', flush=True)
    about = dict(machine=platform.processor() or platform.machine(), cores=os.cpu_count(), torch=torch.__version__, date=time.strftime('%Y-%m-%d'))
    Path(a.out).write_text(json.dumps(dict(about=about, rows=rows), indent=1) + '\n')


if __name__ == '__main__': main()
