"""What goes wrong: each time one clear error that names the thing, nothing lost, nothing half written."""
import json, os, resource, shutil, signal, subprocess, time
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np, pytest, torch
from lth_nb import data as D, networks as nets
from lth_nb.experiment import ComputeError, Files, Store, StoreError, close_pools, compute, run_call, step, workers
from lth_nb.pruning import prune
from lth_nb.settings import settings
from lth_nb.training import Recipe, evaluate, init, module_of, train
from helpers import identical

pytestmark = pytest.mark.usefixtures('on_cpu')
toy = D.mnist1d(train=64, test=32)
short = Recipe(8, batch=16)

@step
def numbers(i, n=1000): return dict(w=torch.full((n,), float(i)), about=list(range(i)))

@step
def reciprocal(x): return 1/x

@step
def plus(a, b): return a + b

def run(x, store, **kw): return compute(x, store=store, workers=1, quiet=True, **kw)

def trained(recipe=short, network=nets.mnist1d_mlp, data=toy, **kw):
    return train(init(network, seed=0), data, recipe, **kw)

def files(folder):
    "What lies in a folder: {path: bytes}."
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}

def whole(folder, killed=False):
    """No trace of half a result: every file belongs to a result that can be read. A process killed while it writes
    leaves a .part, which is in nobody's way."""
    store = Store(folder)
    there = {file for file in files(folder) if not (killed and file.endswith('.part'))}
    for path in store.paths(): store.read(path)
    return there <= {f'{path}.{kind}' for path in store.paths() for kind in ('json', 'safetensors')}


# ------------------------------------------------------------------ results on the disk

def cut(b): return b[:-1]
def half(b): return b[:len(b)//2]
def empty(b): return b''
def flipped(b): return b[:-2] + bytes([b[-2] ^ 1]) + b[-1:]
def noise(b): return os.urandom(300)

DAMAGES = [('json', how) for how in (cut, half, empty, noise)]
DAMAGES += [('safetensors', how) for how in (cut, half, empty, flipped, noise)]

@pytest.mark.parametrize('kind,how', DAMAGES, ids=lambda part: getattr(part, '__name__', part))
def test_damaged_result(store, kind, how):
    "Named when it is asked for, and when something needs it; deleting it as the message says brings it back."
    end = trained().at('end')
    found = evaluate(end, toy)
    good = run([end, numbers(2)], store)[0]
    folder = Path(store.url)
    file = folder/f'{end.path}.{kind}'
    file.write_bytes(how(file.read_bytes()))
    before = files(folder)
    with pytest.raises(StoreError, match='(?s)damaged.*delete') as e: run(end, store)
    assert str(file) in str(e.value)
    with pytest.raises(ComputeError, match='(?s)evaluate.*StoreError.*damaged') as e: run(found, store)
    assert str(file) in str(e.value)
    assert files(folder) == before, 'nothing is repaired or lost behind our back'
    store.remove(end.path)
    again = run([end, found, numbers(2)], store)[0]
    assert identical(again['weights'], good['weights'])
    assert whole(folder)


def test_tensors_that_are_gone(tmp_path):
    store = Store(tmp_path)
    run(numbers(1), store)
    file = tmp_path/f'{numbers(1).path}.safetensors'
    file.unlink()
    with pytest.raises(StoreError, match='is missing beside its .json') as e: run(numbers(1), store)
    assert str(file) in str(e.value)

@pytest.mark.parametrize('record,said', [
    ({'format': 2, 'value': 1}, 'format 2, this lth_nb reads format 1'),
    ({'value': 1}, 'format None'),
    ([1, 2], 'not a result'),
    ({'format': 1}, 'not a result')])
def test_result_of_another_version(tmp_path, record, said):
    store = Store(tmp_path)
    file = tmp_path/f'{reciprocal(2).path}.json'
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(record))
    with pytest.raises(StoreError, match=said) as e: run(reciprocal(2), store)
    assert str(file) in str(e.value)
    assert json.loads(file.read_text()) == record
    with pytest.raises(ComputeError, match=said): run(plus(reciprocal(2), 1), store)


@contextmanager
def file_limit(n):
    "No file of this process may grow beyond n bytes."
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, hard))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

@pytest.mark.parametrize('value,limit', [
    pytest.param(numbers.fn(1), 2000, id='tensors'),
    pytest.param(numbers.fn(3000), 8000, id='json after tensors'),
    pytest.param(list(range(3000)), 5000, id='json')])
def test_no_room(tmp_path, value, limit):
    "Whichever file it strikes: one error that names the result and the cause; what was there stays, and nothing else."
    store = Store(tmp_path)
    store.write('a/old', {'w': torch.ones(9)})
    before = files(tmp_path)
    said = 'could not write .*a/new.json: File too large.*make room'
    with file_limit(limit), pytest.raises(StoreError, match=said) as e: store.write('a/new', value)
    assert str(tmp_path) in str(e.value)
    assert isinstance(e.value.__cause__, OSError)
    assert files(tmp_path) == before
    assert not store.has('a/new')
    store.write('a/new', value)
    assert store.has('a/new')
    assert whole(tmp_path)


@pytest.fixture
def small_disk(tmp_path):
    "A disk of 64 KiB."
    at = tmp_path/'disk'
    at.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', str(at)]
    if not shutil.which('mount') or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('may not mount a small disk')
    yield at
    subprocess.run(['umount', '-l', str(at)], check=True)

def test_full_disk(small_disk):
    "In the middle of a grid: what was done is there, and readable; with room made, the rest is as if nothing had been."
    folder = small_disk/'r'
    store = Store(folder)
    grid = [numbers(i) for i in range(20)]
    said = r'(?s)numbers.*could not write .*/disk/r/numbers/.*No space left on device.*of 20 calls failed'
    with pytest.raises(ComputeError, match=said): run(grid, store)
    assert 3 < len(store.paths()) < 20
    assert whole(folder)
    before = files(folder)
    subprocess.run(['mount', '-o', 'remount,size=4m', str(small_disk)], check=True)
    got = run(grid, store)
    assert [float(value['w'][0]) for value in got] == list(range(20))
    assert [value['about'] for value in got] == [list(range(i)) for i in range(20)]
    after = files(folder)
    assert all(after[file] == b for file,b in before.items())
    assert whole(folder)

def test_full_disk_in_training(small_disk):
    "A checkpoint or state that does not fit: the same error; the states before it stay."
    folder = small_disk/'r'
    store = Store(folder)
    t = trained(network=nets.mnist1d_conv, order=0)
    said = r'trajectory.*could not write .*at-\d.*No space left'
    with pytest.raises(ComputeError, match=said): run([t.at(i) for i in range(9)], store)
    n = len(store.paths())
    assert 0 < n < 9
    assert whole(folder)
    with pytest.raises(StoreError, match=r'\.checkpoints.*No space left'):
        run_call([t.at('end')], store, 'cpu', time.time() - 1)
    assert len(store.paths()) == n
    assert not list(folder.rglob('*.part'))
    assert not list((folder/'.checkpoints').glob('*'))


def test_killed_between_two_files(tmp_path, monkeypatch):
    "Tensors without their JSON are no result; the next run writes over them."
    store = Store(tmp_path)
    write = Files.write
    class Killed(BaseException): pass
    def dying(self, name, data):
        if name.endswith('.json'): raise Killed
        write(self, name, data)
    with monkeypatch.context() as m, pytest.raises(Killed):
        m.setattr(Files, 'write', dying)
        run(numbers(3), store)
    assert not store.has(numbers(3).path)
    assert store.paths() == []
    assert float(run(numbers(3), store)['w'][0]) == 3
    assert whole(tmp_path)


def test_results_folder_that_is_a_file(tmp_path):
    (tmp_path/'r').write_text('mine')
    with pytest.raises(ComputeError, match='could not write .*/r/reciprocal.*Not a directory'):
        run(reciprocal(2), Store(tmp_path/'r'))
    assert (tmp_path/'r').read_text() == 'mine'


# ------------------------------------------------------------------ data

@pytest.fixture
def images(tmp_path):
    "Forty random images and labels for training, forty for testing, in one file."
    g = np.random.default_rng(1)
    arrays = {}
    for split in ('train', 'test'):
        arrays[f'{split}_images'] = g.integers(0, 256, (40, 28, 28), dtype=np.uint8)
        arrays[f'{split}_labels'] = np.arange(40) % 10
    np.savez(tmp_path/'small.npz', **arrays)
    return tmp_path/'small.npz'

def pixel(file):
    arrays = dict(np.load(file))
    arrays['train_images'][3, 5, 7] ^= 1
    np.savez(file, **arrays)

def label(file):
    arrays = dict(np.load(file))
    arrays['test_labels'][0] = 1
    np.savez(file, **arrays)

def byte(file):
    b = bytearray(file.read_bytes())
    b[5000] ^= 1
    file.write_bytes(b)

def shorter(file): file.write_bytes(file.read_bytes()[:-100])

@pytest.mark.parametrize('change,said', [
    pytest.param(pixel, 'CorruptData', id='pixel'), pytest.param(byte, 'CorruptData', id='byte'),
    pytest.param(shorter, 'CorruptData', id='cut'), pytest.param(label, 'CorruptData', id='label'),
    pytest.param(Path.unlink, 'MissingData.*not found', id='gone')])
def test_data_file_changed(store, images, change, said):
    "One byte of the file, one pixel in a sound file: no training on other data than its results say."
    data = D.npz(images)
    change(images)
    t = trained(Recipe(2, batch=10), nets.lenet_300_100, data, order=0)
    with pytest.raises(ComputeError, match=said) as e: run([t.at('end'), reciprocal(2)], store)
    assert str(images) in str(e.value)
    assert store.paths() == [reciprocal(2).path]
    assert whole(Path(store.url))

def test_data_is_what_it_was(store, images):
    "The control: the same bytes are accepted, also under another name."
    data = D.npz(images)
    images.write_bytes(images.read_bytes())
    assert run(trained(Recipe(2, batch=10), nets.lenet_300_100, data, order=0).at('end'), store)['step'] == 2


# ------------------------------------------------------------------ values that cannot be

@step(store=False)
def odd_mask(name, shape): return {name: torch.ones(shape).bool()}

@pytest.mark.parametrize('name,shape,said', [
    ('1.weight', (300, 41), r'mask of 1.weight has shape \(300, 41\), its weights have \(300, 40\)'),
    ('fc.weight', (3, 3), "mask names 'fc.weight', which mnist1d_mlp does not have")])
def test_mask_that_does_not_fit(tmp_path, name, shape, said):
    store = Store(tmp_path)
    t = trained(mask=odd_mask(name, shape))
    with pytest.raises(ComputeError, match=f'trajectory.*ValueError.*{said}'): run([t.at('end'), reciprocal(4)], store)
    assert store.paths() == [reciprocal(4).path]
    assert whole(tmp_path)

def test_mask_of_another_network_cannot_be_pruned_further(store):
    other = prune(init(nets.mnist1d_mlp, seed=0))
    with pytest.raises(ComputeError, match='prune.*ValueError.*different layers'):
        run(prune(init(nets.mnist1d_conv, seed=0), mask=other), store)

@pytest.mark.parametrize('kw,said', [
    (dict(lr=-.1), 'lr=-0.1'),
    (dict(lr=float('nan')), 'lr=nan'),
    (dict(lr=float('inf')), 'lr=inf'),
    (dict(weight_decay=-1), 'weight_decay=-1'),
    (dict(momentum=1), 'momentum=1'),
    (dict(momentum=-.1), 'momentum=-0.1'),
    (dict(gamma=-1), 'gamma=-1'),
    (dict(batch=0), 'batch=0'),
    (dict(batch=1.5), 'batch=1.5'),
    (dict(optimizer='lbfgs'), "optimizer='lbfgs'.*sgd, adam"),
    (dict(schedule='step'), "schedule='step'.*milestones, linear, cosine"),
    (dict(precision='fp8'), "precision='fp8'.*fp32"),
    (dict(milestones=('soon',)), "'soon'"),
    (dict(warmup=-5), '-5'),
    (dict(final_lr=-1), 'final_lr=-1')])
def test_recipes_that_cannot_be(kw, said):
    with pytest.raises(ValueError, match=said): Recipe(100, **kw)

def test_length_that_cannot_be():
    for bad in (-3, 'long', 1.5, None):
        with pytest.raises(ValueError, match=str(bad)): Recipe(bad)

@pytest.mark.parametrize('kw,said', [
    (dict(name='lenet'), "'lenet'.*lenet_300_100"),
    (dict(name='resnet20', width=-2), '-2'),
    (dict(name='resnet20', classes=0), '0'),
    (dict(name='lenet_300_100', residual=False), 'no residual'),
    (dict(name='vgg16', init='he'), "'he'.*kaiming_normal"),
    (dict(name='resnet20', bn_init='zeros'), "'zeros'")])
def test_networks_that_cannot_be(kw, said):
    with pytest.raises(ValueError, match=said): nets.Network(**kw)

def test_state_of_an_unknown_network():
    state = init.fn(nets.mnist1d_mlp, 0)
    with pytest.raises(ValueError, match="'lenet_5'"): module_of({**state, 'network': {'name': 'lenet_5'}})
    with pytest.raises(ValueError, match='does not fit.*mnist1d_conv'):
        module_of({**state, 'network': {'name': 'mnist1d_conv'}})

def test_points_that_are_not_on_a_trajectory():
    t = trained()
    wrong = [
        (lambda: t.at(9), 'step 9.*0 to 8'),
        (lambda: t.watch([9], evaluate), 'step 9'),
        (lambda: train(t.at(6), toy, short).at(5), '6 to 8'),
        (lambda: trained(first=9), 'first=9.*8 steps'),
        (lambda: t.at('soon'), "'soon'"),
        (lambda: t.watch([1], evaluate.fn), 'no step')]
    for bad,said in wrong:
        with pytest.raises((ValueError, TypeError), match=said): bad()

def test_augmentation_of_curves(store):
    t = trained(Recipe(8, batch=16, augment=True))
    with pytest.raises(ComputeError, match='crops and flips are for images; mnist1d'): run(t.at('end'), store)

def test_batch_larger_than_the_data(store):
    t = trained(Recipe(8, batch=65))
    with pytest.raises(ComputeError, match='batch: 65 .*1..64'): run(t.at('end'), store)

def test_settings_that_cannot_be(tmp_path, monkeypatch):
    wrong = [
        ('LTH_NB_SCAIL', 'gpu', 'unknown setting scail in the environment; there are scale'),
        ('LTH_NB_SCALE', 'huge', "scale='huge'.*smoke"),
        ('LTH_NB_DEVICE', 'gpu', "device='gpu'"),
        ('LTH_NB_WORKERS', 'all', "workers='all'"),
        ('LTH_NB_WORKERS', '-1', 'workers=-1')]
    for name,value,said in wrong:
        with monkeypatch.context() as m:
            m.setenv(name, value)
            with pytest.raises(ValueError, match=said): settings(tmp_path)
    (tmp_path/'settings.ini').write_text('[DEFAULT]\nresult = x\n')
    with pytest.raises(ValueError, match=r'unknown setting result in .*settings.ini; there are'): settings(tmp_path)

@pytest.mark.skipif(torch.cuda.is_available(), reason='has CUDA')
def test_device_that_is_not_there(store):
    with pytest.raises((ComputeError, ValueError), match='cuda'): run(trained().at('end'), store, device='cuda')


# ------------------------------------------------------------------ steps and workers that fail

def test_failing_step_in_a_grid(tmp_path):
    """Every other result is stored; what waited for it is counted; the error names the call and the cause, and running
    again tries it again."""
    store = Store(tmp_path)
    grid = {i: reciprocal(i) for i in (1, 0, 2, 4)}
    behind = plus(plus(plus(reciprocal(0), 1), 1), 1)
    said = (r'(?s)reciprocal\(x\) .*ZeroDivisionError: division by zero.*1 of 8 calls failed, 3 more waited'
            '.*all others are stored')
    with pytest.raises(ComputeError, match=said) as e: run([grid, behind, plus(reciprocal(4), 1)], store)
    assert isinstance(e.value.__cause__, ZeroDivisionError)
    assert compute(grid, store=store, stored=True) == {1: 1., 0: None, 2: .5, 4: .25}
    assert len(store.paths()) == 4
    assert store.has(plus(reciprocal(4), 1).path)
    assert whole(tmp_path)

def test_a_long_chain_behind_a_failure(store):
    "With nothing else to do, the failure is what is reported."
    with pytest.raises(ComputeError, match='ZeroDivisionError.*1 of 5 calls failed, 4 more waited'):
        run(plus(plus(plus(plus(reciprocal(0), 1), 1), 1), 1), store)

@step(many=True)
def careless(x, items, shelf): shelf.save('a', x)

def test_items_that_a_step_forgets(store):
    with pytest.raises(ComputeError, match='careless left out.*b'): run([careless(1)['a'], careless(1)['b']], store)
    assert store.read(careless(1)['a'].path) == 1

@step
def returns_a_function(x): return {'f': print}

def test_a_value_that_cannot_be_stored(tmp_path):
    with pytest.raises(ComputeError, match='a step returned builtin_function_or_method at value/f'):
        run(returns_a_function(1), Store(tmp_path))
    assert not files(tmp_path)


@step
def deadly(flag, x):
    "Kills its process, the first time."
    if not Path(flag).exists() or x == 'always':
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 2*x

@pytest.fixture
def forked(monkeypatch):
    "Pools that start in no time."
    close_pools()
    monkeypatch.setattr(workers, 'get_context', lambda how: get_context('fork'))
    yield
    close_pools()

@pytest.mark.timeout(120)
@pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')
def test_worker_that_dies(tmp_path, forked):
    "Its calls are given out again; one that always dies is an error in the end, and all others are stored."
    store = Store(tmp_path/'r')
    flag = str(tmp_path/'flag')
    grid = [deadly(flag, 1), *(reciprocal(i) for i in range(1, 7))]
    assert compute(grid, store=store, workers=2, quiet=True) == [2, *(1/i for i in range(1, 7))]
    assert whole(tmp_path/'r', killed=True)
    more = [deadly(flag, 'always'), *(reciprocal(i) for i in range(7, 10))]
    with pytest.raises(ComputeError, match='deadly.*BrokenProcessPool'):
        compute(more, store=store, workers=2, quiet=True)
    assert compute(more, store=store, stored=True) == [None, *(1/i for i in range(7, 10))]
    assert whole(tmp_path/'r', killed=True)

@pytest.mark.timeout(60)
def test_executor_that_is_broken_for_good(store):
    "Somebody else's executor is theirs to mend: an error, no endless loop."
    class Broken:
        def submit(self, *args, **kw): raise BrokenProcessPool('a child process terminated abruptly')
    with pytest.raises(ComputeError, match='terminated abruptly'):
        compute([reciprocal(1), reciprocal(2)], store=store, executor=Broken(), quiet=True)
