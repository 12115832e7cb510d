"A part of a set stands for all of it, whatever order the set lies in: limit=, examples=, train=, test=."
from dataclasses import replace

import numpy as np, pytest, torch
from lth_nb import data as D
from lth_nb.data.order import sample_order
from lth_nb.engine import Probe, Replica, module_of, reestimate
from lth_nb.engine.weights import batchnorms
from lth_nb.experiment import key_of
from lth_nb.measures import Hessian, landscape, spectrum
from lth_nb.networks import Network
from lth_nb.recipes import Recipe
from lth_nb.training import evaluate, init, line

CLASSES = 5
network = Network('resnet8', CLASSES, width=4)
recipe = Recipe(40, batch=30, lr=.05)


def pictures(n, seed):
    "n images of each class, the classes one after another: a pattern of the class, its own brightness, and noise."
    g = np.random.default_rng(seed)
    patterns = np.random.default_rng(7).integers(0, 256, (CLASSES, 32, 32, 3))
    labels = np.repeat(np.arange(CLASSES), n)
    x = .4*patterns[labels] + 25*labels[:, None, None, None] + g.normal(0, 50, (len(labels), 32, 32, 3))
    return x.clip(0, 255).astype(np.uint8), labels


def arrays(order='sorted'):
    parts = {}
    for split, n in (('train', 60), ('test', 20)):
        x, y = pictures(n, len(split))
        at = np.arange(len(y)) if order == 'sorted' else np.random.default_rng(1).permutation(len(y))
        parts |= {f'{split}_images': x[at], f'{split}_labels': y[at]}
    return parts


def as_folder(path, parts):
    Image = pytest.importorskip('PIL.Image')
    for split, folder in (('train', 'train'), ('test', 'val')):
        for i, (x, y) in enumerate(zip(parts[f'{split}_images'], parts[f'{split}_labels'])):
            file = path/folder/f'class {y}'/f'{i:03}.png'
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(x).save(file)
    return path


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
    "The same images by class in a file, in a folder, streamed, and in a file in random order."
    root = tmp_path_factory.mktemp('sets')
    for order in ('sorted', 'mixed'): np.savez(root/f'{order}.npz', **arrays(order))
    folder = as_folder(root/'folder', arrays())
    return dict(npz=D.npz(root/'sorted.npz'), folder=D.image_folder(folder), mixed=D.npz(root/'mixed.npz'),
                stream=D.imagenet(path=folder, size=32))


def labels(data, split, **how): return torch.cat([y for _, y in data.evaluation(split, **how)])
def classes(y): return torch.bincount(y, minlength=CLASSES).tolist()


@pytest.fixture(scope='module')
def trained(sets):
    rep = Replica(init.fn(network, 0), sets['npz'], recipe, order=0, first=0)
    rep.run(recipe.steps)
    return rep.state()


# which examples a part has
KINDS = 'npz', 'folder', 'stream'
KNOWN = {'mnist part': '5ae1deb0583a173e2c64', 'cifar10 blurred part': 'cf8f14427026293746dd',
         'mine': '69d94b03b80694a2065d', 'first of mine': '42a998156006661d4488'}
TASKS = dict(plain=lambda data: data, blurred=D.blurred, twice=lambda data: D.blurred(D.blurred(data, 2)))

@pytest.mark.parametrize('kind', KINDS)
def test_a_part_of_a_sorted_set_has_every_class(sets, kind):
    whole = sets[kind].load()
    for split in ('train', 'test'):
        n = len(getattr(whole, split))//2
        assert min(classes(labels(whole, split, limit=n))) > n/CLASSES/2
        assert min(classes(labels(replace(sets[kind], **{split: n}).load(), split))) > n/CLASSES/2

@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('kind', ('npz', 'folder'))
def test_a_part_of_a_derived_set_has_every_class(sets, kind, task):
    derived = TASKS[task](sets[kind])
    assert not derived.shuffled
    assert min(classes(labels(derived.load(), 'train', limit=100))) > 10
    part = TASKS[task](replace(sets[kind], train=100))
    assert part.subset == 'drawn'
    assert torch.equal(labels(part.load(), 'train'), labels(derived.load(), 'train', limit=100))

def test_parts_lie_within_each_other(sets):
    hundred, fifty = (replace(sets['npz'], train=n).load().train for n in (100, 50))
    assert torch.equal(hundred.x[:50], fifty.x)
    assert torch.equal(hundred.numbers[:50], fifty.numbers)
    first, _ = next(sets['npz'].load().evaluation('train', limit=50, size=50))
    assert torch.equal(first, next(replace(sets['npz'], train=50).load().evaluation('train', size=50))[0])

def test_a_part_is_the_same_in_a_folder_and_in_its_stream(sets):
    parts = [replace(sets[kind], train=70).load() for kind in ('folder', 'stream')]
    assert torch.equal(*(labels(part, 'train') for part in parts))
    assert torch.equal(*(labels(sets[kind].load(), 'test', limit=30, size=7) for kind in ('folder', 'stream')))

def test_a_random_label_is_the_same_in_a_part(sets):
    whole = D.random_labels(sets['npz'], seed=3).load().train
    part = D.random_labels(replace(sets['npz'], train=80), seed=3).load().train
    assert torch.equal(part.y, whole.y[part.numbers])
    assert torch.equal(part.x, whole.x[part.numbers])
    known = D.random_labels(D.mnist1d(), seed=3).load().train.y[:80]
    assert torch.equal(D.random_labels(D.mnist1d(train=80), seed=3).load().train.y, known)

def test_a_part_of_the_poses_has_images_of_every_class(sets):
    posed = D.rotations(sets['npz']).load()
    base = sets['npz'].load()
    of_class = base.train.y[posed.train.order[:200]//4]
    assert min(classes(of_class)) > 20
    x, turn = next(posed.evaluation('train', limit=200, size=200))
    assert torch.equal(turn, torch.arange(4).repeat(50))
    assert torch.equal(x[::4], next(base.evaluation('train', limit=50, size=50))[0])
    few = D.rotations(replace(sets['npz'], train=50)).load()
    assert torch.equal(next(few.evaluation('train', size=200))[0], x)
    cut = replace(D.rotations(sets['npz']), train=198).load()
    assert torch.equal(next(cut.evaluation('train', size=200))[0], x[:198])

# sets in random order
@pytest.mark.parametrize('make', (lambda d: d, D.blurred, D.random_labels))
def test_known_sets_take_their_first(make):
    whole = make(D.mnist1d())
    part = make(D.mnist1d(train=300, test=100))
    assert whole.shuffled
    assert part.subset == 'first'
    assert torch.equal(part.load().train.x, whole.load().train.x[:300])
    x, y = next(whole.load().evaluation('test', limit=100, size=100))
    assert torch.equal(x, part.load().test.x)
    assert torch.equal(y, part.load().test.y)

def test_addresses_stay(sets):
    "Of known sets, with or without a part, and of any set as a whole."
    assert key_of(D.mnist(train=500)) == KNOWN['mnist part']
    assert key_of(D.blurred(D.cifar10(test=100))) == KNOWN['cifar10 blurred part']
    assert key_of(D.Dataset('mine', 'a'*64, source=D.Source('npz', 'x.npz'))) == KNOWN['mine']

def test_a_drawn_part_has_an_address_of_its_own(sets):
    "What was computed on the first so many is not read for it."
    assert key_of(D.Dataset('mine', 'a'*64, train=50)) != KNOWN['first of mine']
    part = replace(sets['npz'], train=50)
    assert part == replace(part, source=None)
    assert replace(part, train=None).subset == 'first'
    assert replace(part, train=None) == sets['npz']

def test_training_on_a_whole_set_stays(sets):
    "Batches of a sorted set, bit for bit what its arrays have at the places of `permutation`."
    data = sets['npz'].load()
    x, y = data.batches(30, order=4)[3]
    at = D.permutation(300, 4, 0)[90:120]
    assert torch.equal(y, torch.from_numpy(arrays()['train_labels'][at]))
    assert torch.equal(x, data.inputs(torch.from_numpy(arrays()['train_images'][at]), torch.float32))
    assert torch.equal(labels(data, 'train'), torch.from_numpy(arrays()['train_labels']))

# what is measured
def test_error_and_loss_of_a_part(sets, trained):
    "A fifth of a sorted set is not one class: its error is about that of all."
    found = {n: evaluate.fn(trained, sets['npz'], limit=n) for n in (None, 60)}
    drawn = {n: evaluate.fn(trained, replace(sets['npz'], train=n, test=n)) for n in (60,)}
    for split in ('train', 'test'):
        assert abs(found[60][split]['loss'] - found[None][split]['loss']) < .35*found[None][split]['loss'] + .02
        assert found[60][split]['n'] == 60
        assert drawn[60][split] == found[60][split]

def test_a_line_on_a_part(sets, trained):
    start = init.fn(network, 0)
    for rule in ('averaged', 'reestimated'):
        whole, part = (line.fn(start, trained, sets['npz'], 2, rule, limit=n)['train'] for n in (None, 60))
        assert part['loss'] == pytest.approx(whole['loss'], rel=.35, abs=.05)

def test_statistics_are_those_of_all_classes(sets):
    "Batches of one class lack what lies between classes, even where every example is used."
    def variance(data, **how):
        net = network.create(0)
        reestimate(net, data.load(), **how)
        return batchnorms(net)[0].running_var
    whole = variance(sets['npz'], size=300)
    assert torch.allclose(variance(sets['mixed'], size=60), whole, rtol=.02)
    assert torch.allclose(variance(sets['npz'], size=60), whole, rtol=.02)
    assert torch.allclose(variance(sets['npz'], n=60, size=60), whole, rtol=.15)

@pytest.mark.parametrize('batch', (None, 20))
def test_trace_of_the_hessian(sets, trained, batch):
    "The input of issue 15: of the same images in another order, the trace was of the other sign."
    def trace(data):
        H = Hessian(trained, data, examples=60, batch=batch)
        eye = [H.start(seed).sign() for seed in range(10)]
        return float(torch.stack([v @ (H @ v) for v in eye]).mean())
    by_order = [trace(sets[order]) for order in ('npz', 'mixed')]
    assert min(by_order) > 0
    assert max(by_order) < 2*min(by_order)

def test_a_hessian_on_a_part_is_that_of_the_part(sets, trained):
    whole, part = (spectrum.fn(trained, data, probes=2, steps=3, examples=60, batch=20)
                   for data in (sets['npz'], replace(sets['npz'], train=60)))
    assert whole == part

def test_a_loss_map_of_a_part(sets, trained):
    states = [init.fn(network, 0), init.fn(network, 1), trained]
    maps = [landscape.fn(states, sets[kind], points=3, limit=60)['loss'] for kind in ('npz', 'folder')]
    whole = landscape.fn(states, sets['npz'], points=3)['loss']
    assert np.allclose(*maps)
    assert np.allclose(maps[0], whole, rtol=.35, atol=.1)

def test_predictions_of_a_part(sets, trained):
    "In the order that the part is taken in, batch by batch."
    probe = Probe(network, sets['npz'].load(), size=7)
    probe.put(probe.vector(trained))
    found = torch.empty(50, dtype=torch.int64)
    errors, _ = probe.measure('test', 50, found).tolist()
    test = sets['npz'].load().test
    z = module_of(trained).eval()(sets['npz'].load().gather(sample_order(100)[:50], split='test')[0])
    assert torch.equal(found, z.argmax(1))
    assert errors == int((found != test.y[sample_order(100)[:50]]).sum())
    found = torch.empty(100, dtype=torch.int64)
    errors, _ = probe.measure('test', None, found).tolist()
    assert errors == int((found != test.y).sum())   # the whole split comes as it lies
    assert torch.equal(found[sample_order(100)[:50]], z.argmax(1))

@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_recorded_batches_take_the_same_part(sets, trained):
    on_cpu, on_gpu = (Probe(network, sets['npz'].load(device), size=20) for device in ('cpu', 'cuda'))
    for limit in (50, None, 50):
        totals = [probe.put(probe.vector(trained)).measure('test', limit).cpu() for probe in (on_cpu, on_gpu)]
        assert torch.allclose(*totals, rtol=1e-3)

@pytest.mark.parametrize('limit', (0, -1, 101, 2.5, True))
def test_impossible_parts(sets, trained, limit):
    "0 was once all of them."
    for measure in (lambda: evaluate.fn(trained, sets['npz'], ('test',), limit),
                    lambda: line.fn(trained, trained, sets['npz'], 2, splits=('test',), limit=limit),
                    lambda: landscape.fn([init.fn(network, 0), init.fn(network, 1), trained], sets['npz'], 3,
                                         split='test', limit=limit)):
        with pytest.raises(ValueError, match=f'limit: {limit}'): measure()
