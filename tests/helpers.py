"""Toys that several test files share: a small task, networks and recipes, masks, a plain loop to compare with."""
from contextlib import nullcontext
from dataclasses import replace

import pytest, torch, torch.nn.functional as F
from lth_nb import networks as nets
from lth_nb.data import mnist1d
from lth_nb.engine import WINDOW
from lth_nb.pruning import prunable_weights
from lth_nb.training import Recipe, init

toy = mnist1d(train=256, test=128)
conv = nets.mnist1d_conv
mlp = nets.mnist1d_mlp
SGD = Recipe(60, batch=32, lr=.1, milestones=(30, 50), warmup=8, weight_decay=1e-3)
ADAM = Recipe(60, batch=32, optimizer='adam', lr=2e-3, milestones=(30, 50), warmup=8)
KINDS = [pytest.param(conv, SGD, id='conv-sgd'), pytest.param(mlp, ADAM, id='mlp-adam')]
MORE_KINDS = [*KINDS, pytest.param(conv, replace(SGD, precision='bf16'), id='conv-bf16'),
              pytest.param(conv, replace(SGD, optimizer='adam', lr=1e-2), id='conv-adam')]


def image_task(name, images):
    "Network, data, batch, and whether images are cropped: LeNet on the grey ones, ResNet-20 on the colour ones."
    if name == 'resnet20': return nets.resnet20, images[1], 8, True
    return nets.lenet_300_100, images[0], 60, False


# ------------------------------------------------------------------ comparing

def identical(a, b):
    "Two values, tensors in them byte for byte; a number that is none equals itself."
    if isinstance(a, torch.Tensor):
        if a.dtype != b.dtype or a.shape != b.shape: return False
        return a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()
    if isinstance(a, dict): return a.keys() == b.keys() and all(identical(a[k], b[k]) for k in a)
    if isinstance(a, list): return len(a) == len(b) and all(map(identical, a, b))
    return a == b or a != a and b != b

def same(a, b, parts=('weights', 'buffers', 'slots')):
    "Whether two states agree in some of their parts, byte for byte, signs of zeros included."
    return all(identical(a[part], b[part]) for part in parts)

def far(a, b):
    "The largest difference."
    return float((a - b).abs().max())

def assert_close(a, b, what, within=1e-10):
    "Relative to the largest entry."
    error = float((a - b).abs().max()/b.abs().max().clamp(min=1e-30))
    assert error < within, f'{what}: {error}'


# ------------------------------------------------------------------ masks

def random_mask(network, seed=0):
    "A mask with about half of every layer."
    g = torch.Generator().manual_seed(seed)
    return {name: torch.rand(w.shape, generator=g) < .5 for name,w in prunable_weights(init.fn(network, 0)).items()}

def pruned_places(state, mask):
    "What a state has where the mask prunes: in its weights and in each of the optimiser's averages."
    tensors = (state['weights'], *state['slots'].values())
    return torch.cat([t[name][~m].flatten() for t in tensors for name,m in mask.items()])

def plus_zero(t): return bool((t == 0).all()) and not bool(t.signbit().any())


# ------------------------------------------------------------------ the plain loop

def plain_loop(network, batches, recipe, n, mask=None):
    """The loop of the tutorials, in float64: the network, and the optimiser's state of each parameter.
    Masks the other way round: weights zeroed once, gradients masked before each step."""
    net = network.create(0).double().train()
    parameters = dict(net.named_parameters())
    how = dict(lr=1., weight_decay=recipe.weight_decay)
    if recipe.optimizer == 'sgd': optimizer = torch.optim.SGD(parameters.values(), momentum=recipe.momentum, **how)
    else: optimizer = torch.optim.Adam(parameters.values(), betas=recipe.betas, eps=recipe.eps, **how)
    mask = mask or {}
    for name,m in mask.items(): parameters[name].data.mul_(m)
    for step in range(n):
        passed = sum(step >= milestone for milestone in recipe.milestones)
        optimizer.param_groups[0]['lr'] = recipe.lr*min(1, step/recipe.warmup)*recipe.gamma**passed
        x, y = batches[step]
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        for name,m in mask.items():
            if parameters[name].grad is not None: parameters[name].grad.mul_(m)
        optimizer.step()
    return net, {name: optimizer.state[p] for name,p in parameters.items()}


# ------------------------------------------------------------------ a GPU's stream, without one

class Event:
    "Has come when it has been asked for twice, or waited for."
    def __init__(self, stream):
        self.stream = stream
        self.asked = 0
    def query(self):
        self.asked += 1
        return self.asked > 2
    def synchronize(self):
        self.stream.waits += 1
        self.asked = 9

class EagerStream:
    "What a CUDA stream is asked for, done at once; the name of the stream is added to `sent` with every call."
    def __init__(self, name=None, sent=None):
        self.name = name
        self.sent = [] if sent is None else sent
        self.waits = 0
    def here(self): return nullcontext()
    def mark(self): return Event(self)
    def record(self, work):
        try: work()   # leaves traces, as a real recording might, to be wiped away
        except IndexError: pass   # beyond the window's rows; a real recording takes no step
        def call():
            self.sent.append(self.name)
            work()
        return call
    def landing(self): return torch.zeros(WINDOW, dtype=torch.bool)
    def synchronize(self): pass


# ------------------------------------------------------------------ what is asked of a file system

def noted(monkeypatch, files, names):
    "A list to which the name of each method is added as it is called."
    asked = []
    def asking(name, method):
        def call(*args, **kw):
            asked.append(name)
            return method(*args, **kw)
        return call
    for name in names: monkeypatch.setattr(files, name, asking(name, getattr(files, name)))
    return asked


# ------------------------------------------------------------------ figures

def named(cases, name):
    "The case of that name: of a list of cases, or the values of that name in a dictionary with one entry a case."
    case = next(case for case in cases if case.name == name)
    return cases[case] if isinstance(cases, dict) else case
