"Networks that somebody might bring along, each with something that the papers' networks do not have."
import random

import numpy as np, torch, torch.nn.functional as F
from lth_nb.networks import register
from torch import nn

INPUT = 1, 40


class Around(nn.Module):
    "A plain network with a stranger in its middle, of 12 numbers in and out."
    def __init__(self, middle):
        super().__init__()
        self.first = nn.Linear(40, 12)
        self.middle = middle
        self.last = nn.Linear(12, 10)
    def forward(self, x): return self.last(torch.tanh(self.middle(torch.tanh(self.first(x.flatten(1))))))


def around(name, middle):
    "A network, known as `name`, with what `middle()` makes in the middle."
    return register(name, lambda width, classes, residual: Around(middle()), INPUT)


# ------------------------------------------------------------------ with weights that are drawn when they are made

class Bare(nn.Module):
    "A matrix that is no layer's."
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(12, 12)/4)
    def forward(self, x): return x @ self.matrix

class Tokens(nn.Module):
    "An embedding of numbers cut into eight."
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(8, 12)
    def forward(self, x): return self.table((4*x + 4).long().clamp(0, 7)).mean(1)

class Attends(nn.Module):
    "Attention among three tokens and a learnt fourth, and a norm of layers."
    def __init__(self, dropout=0.):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.attention = nn.MultiheadAttention(4, 2, dropout, batch_first=True)
        self.norm = nn.LayerNorm(4)
    def forward(self, x):
        tokens = torch.cat([x.view(-1, 3, 4), self.token.expand(len(x), -1, -1)], 1)
        return self.norm(self.attention(tokens, tokens, tokens)[0])[:, :3].flatten(1)

class Recurrent(nn.Module):
    def __init__(self, dropout=0.):
        super().__init__()
        self.lstm = nn.LSTM(3, 3, 2, dropout=dropout, batch_first=True)
    def forward(self, x): return self.lstm(x.view(-1, 4, 3))[0].flatten(1)

class Waves(nn.Module):
    "Random frequencies, which are no weights."
    def __init__(self, persistent=True):
        super().__init__()
        self.register_buffer('frequencies', torch.randn(12, 12), persistent)
    def forward(self, x): return torch.sin(x @ self.frequencies)

class Shuffled(nn.Module):
    "Inputs in a random order: whole numbers."
    def __init__(self):
        super().__init__()
        self.register_buffer('order', torch.randperm(12))
    def forward(self, x): return x[:, self.order]

class Pythons(nn.Module):
    "Numbers from other generators than torch's."
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(np.random.rand(12), dtype=torch.float32))   # noqa: NPY002
        self.shift = nn.Parameter(torch.tensor(random.random()))
    def forward(self, x): return x*self.scale + self.shift

drawn = [around('bare', Bare), around('tokens', Tokens), around('attends', Attends), around('recurrent', Recurrent),
         around('waves', Waves), around('fleeting_waves', lambda: Waves(False)), around('shuffled', Shuffled),
         around('pythons', Pythons)]


# ------------------------------------------------------------------ that draw while they are trained

class Sampled(nn.Module):
    "Noise on what comes in; `always`: in evaluation, too."
    def __init__(self, always=False):
        super().__init__()
        self.always = always
    def forward(self, x): return x + .3*torch.randn_like(x) if self.training or self.always else x

class Depth(nn.Module):
    "A layer that some examples, or by `chance` of Python or NumPy whole batches, go around (Huang et al. 2016)."
    def __init__(self, chance=None):
        super().__init__()
        self.layer = nn.Linear(12, 12)
        self.chance = chance
    def forward(self, x):
        if not self.training: return x + .5*self.layer(x)
        if self.chance is None: return x + self.layer(x)*(torch.rand(len(x), 1) < .5)
        return x + self.layer(x) if self.chance() < .5 else x

def issue(width, classes, residual):
    return nn.Sequential(nn.Flatten(), nn.Linear(40, 32), nn.ReLU(), nn.Dropout(.5), nn.Linear(32, 10))

drawing = {register('dropout', issue, INPUT): '3 (Dropout)',
           around('sampled', Sampled): 'middle (Sampled)',
           around('depth', Depth): 'middle (Depth)',
           around('pythons_depth', lambda: Depth(random.random)): 'middle (Depth)',
           around('numpys_depth', lambda: Depth(np.random.rand)): 'middle (Depth)',   # noqa: NPY002
           around('attention_dropout', lambda: Attends(.5)): 'middle.attention (MultiheadAttention)',
           around('recurrent_dropout', lambda: Recurrent(.5)): 'middle.lstm (LSTM)',
           around('norm_and_dropout', lambda: nn.Sequential(nn.Dropout(.5), nn.BatchNorm1d(12))): 'middle.0 (Dropout)'}


# ------------------------------------------------------------------ that cannot be exact

class Own(nn.Module):
    "Noise from a generator of its own, `seldom` used."
    def __init__(self, generator, seldom=False):
        super().__init__()
        self.generator = generator
        self.seldom = seldom
    def forward(self, x):
        if not self.training: return x
        if isinstance(self.generator, torch.Generator): noise = torch.randn(x.shape, generator=self.generator)
        else: noise = torch.tensor(self.generator.random())
        return x if self.seldom else x + noise

class Counts(nn.Module):
    "Noise is off now, and comes after a thousand calls."
    def __init__(self):
        super().__init__()
        self.calls = 0
    def forward(self, x):
        self.calls += self.training
        return x + torch.randn_like(x) if self.calls > 1000 else x

class Remembers(nn.Module):
    "The last batch, which no state has."
    def __init__(self):
        super().__init__()
        self.last = None
    def forward(self, x):
        mean = x.mean(0) if self.last is None or not self.training else self.last
        self.last = x.detach().mean(0)
        return x - mean

class Entropy(nn.Module):
    "Numbers that nobody can set."
    def forward(self, x): return x + random.SystemRandom().random() if self.training else x

class Shift(nn.Module):
    "A number that is drawn, in a plain attribute or, `hidden`, in none at all."
    def __init__(self, hidden=False):
        super().__init__()
        shift = torch.randn(12)
        if hidden: self.add = lambda x: x + shift
        else: self.shift = shift
        self.hidden = hidden
    def forward(self, x): return self.add(x) if self.hidden else x + self.shift

class Adapts(nn.Module):
    "A buffer that moves whenever it is looked at."
    def __init__(self):
        super().__init__()
        self.register_buffer('mean', torch.zeros(12))
    def forward(self, x):
        self.mean.lerp_(x.detach().mean(0), .1)
        return x - self.mean

kept = Around(nn.Tanh())
from_chance = random.SystemRandom()
def unseeded(): return nn.Parameter(torch.full((12,), from_chance.random()))

class Scale(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale
    def forward(self, x): return x*self.scale

# {network: what is said}
refused = {
    around('own', lambda: Own(torch.Generator())): r'generator of middle \(Own\) changes from step to step',
    around('own_numpy', lambda: Own(np.random.default_rng(0))): r'generator of middle \(Own\)',
    around('own_python', lambda: Own(random.Random(0))): r'generator of middle \(Own\)',
    around('own_seldom', lambda: Own(torch.Generator(), True)): r'generator of middle \(Own\)',
    around('counts', Counts): r'calls of middle \(Counts\) changes.*register_buffer',
    around('remembers', Remembers): r'middle \(Remembers\) gives something else when',
    around('entropy', Entropy): r'middle \(Entropy\) gives something else when it is asked again',
    around('always', lambda: Sampled(True)): r'middle \(Sampled\) is random in evaluation, too',
    around('shift', Shift): r'shift of middle \(Shift\) is drawn.*register_buffer',
    around('hidden_shift', lambda: Shift(True)): r'middle \(Shift\) computes with numbers that no state holds',
    around('adapts', Adapts): r'middle.mean changes in evaluation',
    around('unseeded', lambda: Scale(unseeded())): r'middle.scale is not the same twice from one seed',
    register('kept', lambda width, classes, residual: kept, INPUT): 'two networks share first.weight'}


# ------------------------------------------------------------------ with odd parameters

def frozen(module): return module.requires_grad_(False)

def frozen_ends(width, classes, residual):
    "As OpenLTH can have it: BatchNorm and the output layer stay."
    return nn.Sequential(nn.Flatten(), nn.Linear(40, 16), frozen(nn.BatchNorm1d(16)), nn.ReLU(), nn.Linear(16, 16),
                         nn.ReLU(), frozen(nn.Linear(16, 10)))

class Unused(nn.Module):
    "A layer that nobody asks, one that every other batch is asked, and a number that depends on nothing."
    def __init__(self):
        super().__init__()
        self.never = nn.Linear(12, 12)
        self.sometimes = nn.Linear(12, 12)
        self.register_buffer('calls', torch.zeros((), dtype=torch.int64))
    def forward(self, x):
        if not self.training: return x + .5*self.sometimes(x)
        self.calls += 1
        return x + self.sometimes(x) if self.calls % 2 else x

class Tied(nn.Module):
    "An encoder whose weight is a decoder's, too, and a layer with two names."
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(40, 16, bias=False)
        self.middle = nn.Linear(16, 16)
        self.again = self.middle
        self.same = nn.Linear(16, 16)
        self.same.weight = self.middle.weight
        self.out = nn.Linear(40, 10)
    def forward(self, x):
        z = torch.tanh(self.again(torch.tanh(self.middle(self.encoder(x.flatten(1))))))
        return self.out(F.linear(torch.tanh(self.same(z)), self.encoder.weight.T))

class TiedTokens(nn.Module):
    "An embedding that a linear layer decodes with."
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 12)
        self.read = nn.Linear(40, 12)
        self.decode = nn.Linear(12, 10)
        self.decode.weight = self.table.weight
    def forward(self, x):
        words = (2*x.flatten(1)[:, :6] + 5).long().clamp(0, 9)
        return self.decode(torch.tanh(self.read(x.flatten(1))) + self.table(words).mean(1))

class Scalars(nn.Module):
    "Numbers without a dimension, and a parameter without a number."
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.nothing = nn.Parameter(torch.empty(0))
        self.register_buffer('shift', torch.tensor(.5))
    def forward(self, x): return self.scale*x + self.shift + self.nothing.sum()

def parametrised(how): return lambda: nn.Sequential(how(nn.Linear(12, 12)), nn.ReLU())

def volumes(width, classes, residual):
    return nn.Sequential(nn.Unflatten(2, (2, 4, 5)), nn.Conv3d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(48, 10))

odd = [register('frozen_ends', frozen_ends, INPUT), around('unused', Unused),
       register('tied', lambda width, classes, residual: Tied(), INPUT),
       register('tied_tokens', lambda width, classes, residual: TiedTokens(), INPUT),
       around('scalars', Scalars), register('volumes', volumes, INPUT),
       around('weight_norm', parametrised(nn.utils.parametrizations.weight_norm)),
       around('spectral_norm', parametrised(nn.utils.parametrizations.spectral_norm)),
       around('orthogonal', parametrised(nn.utils.parametrizations.orthogonal)),
       around('old_weight_norm', parametrised(nn.utils.weight_norm)),
       around('without_statistics', lambda: nn.BatchNorm1d(12, track_running_stats=False)),
       around('without_momentum', lambda: nn.BatchNorm1d(12, momentum=None)),
       around('without_affine', lambda: nn.BatchNorm1d(12, affine=False)),
       around('instances', lambda: nn.Sequential(
           nn.Unflatten(1, (3, 4)), nn.InstanceNorm1d(3, track_running_stats=True), nn.Flatten()))]

class Number(nn.Module):
    def __init__(self, parameter=None, buffer=None):
        super().__init__()
        self.number = parameter
        self.register_buffer('held', buffer)
    def forward(self, x): return x

def in_one_memory(width, classes, residual):
    net = nn.Sequential(nn.Flatten(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 10))
    net[3].weight = nn.Parameter(net[1].weight.data)
    return net

def one_more_for_some(width, classes, residual):
    hidden = 8 + int(torch.randint(1000, ()))
    return nn.Sequential(nn.Flatten(), nn.Linear(40, hidden), nn.Linear(hidden, 10))

refused_at_init = {
    around('integers', lambda: Number(nn.Parameter(torch.arange(3), False))): 'middle.number is torch.int64',
    around('complex', lambda: Number(nn.Parameter(torch.ones(3)*1j))): 'middle.number is torch.complex64',
    around('complex_buffer', lambda: Number(None, torch.ones(3)*1j)): 'buffer middle.held is torch.complex64',
    around('lazy', lambda: nn.LazyLinear(12)): 'middle.weight has no shape yet',
    register('in_one_memory', in_one_memory, INPUT): '1.weight and 3.weight share memory',
    register('all_frozen', lambda width, classes, residual: frozen(Around(nn.Tanh())), INPUT): 'none of its parameters',
    register('no_parameters', lambda width, classes, residual: nn.Flatten(), INPUT): 'none of its parameters',
    register('of_any_size', one_more_for_some, INPUT): '1.weight is not there, or has another shape, with another seed'}
