"Networks that somebody might bring along, each with something that the papers' networks do not have."
import random

import numpy as np, torch
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
