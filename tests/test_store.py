"""Keys, the store on disk, in memory and on S3, layers, writers at once, and compute's plans."""
import json, math, os, pickle, threading, time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np, pytest, torch
from lth_nb import data as D, networks as nets
from lth_nb.claims import Verdict, decide, mean_interval
from lth_nb.experiment import (Store, StoreError, Stores, close_pools, compute, default_store, expression, key_of,
                               missing, run_call, step, table)
from lth_nb.figures.kit import FIGURES, Needs, figure
from lth_nb.training import Recipe, Replica, init, train
from helpers import noted

pytestmark = pytest.mark.usefixtures('on_cpu')
RAN = []

@step
def square(x):
    RAN.append(x)
    return x*x

@step
def add(a, b, scale=1): return (a + b)*scale

@step
def tensors(seed, n=300):
    g = torch.Generator().manual_seed(seed)
    return dict(w=torch.randn(n, 7, generator=g), mask=torch.rand(n, 3, generator=g) < .5, step=seed)

@step(store=False)
def double(x):
    RAN.append(('double', x))
    return 2*x

@step(many=True)
def count(start, items, shelf):
    RAN.append(sorted(items))
    for i in items: shelf.save(i, start + int(i))

def run(x, store, **kw): return compute(x, store=store, workers=1, quiet=True, **kw)

def parts(folder): return [file for file in folder.rglob('*') if file.name.endswith('.part')]

def short_run(steps):
    return train(init(nets.mnist1d_mlp, seed=0), D.mnist1d(train=64, test=32), Recipe(steps, batch=16), order=0)


# ------------------------------------------------------------------ what identifies a result

@dataclass(frozen=True)
class Plan:
    rate: float
    steps: int = 5
    extra: tuple = ()
    note: str = field(default='', metadata={'identity': False})

def test_keys():
    "A function of what was asked, not of how it was spelled; and of all that was asked."
    a = add(square(3), 4)
    assert a.key == add(b=4, a=square(x=3), scale=1).key == a.label(figure='2').key
    others = [add(square(3), 5), add(square(4), 4), add(4, square(3)), add(square(3), 4, scale=2), add(square(3), 4.5),
              add(9, 4), add(square(3), '4'), add(square(3), [4]), add(square(3), None), add(square(3), True)]
    assert len({node.key for node in others} | {a.key}) == len(others) + 1
    assert square(Plan(.1)).key == square(Plan(.1, 5, (), note='said')).key != square(Plan(.1, 6)).key
    assert a.path == f'add/{a.key}'

@pytest.mark.parametrize('one,other', [
    ([1, 2], (1, 2)), ({'a': 1, 'b': 2}, {'b': 2, 'a': 1}), (np.float32(.5), .5), (np.int64(3), 3)],
    ids=('list', 'dict', 'float', 'int'))
def test_keys_of_values_written_alike(one, other):
    assert square(one).key == square(other).key

def test_keys_of_items():
    "An item has its own; the call is that of all of them."
    c = count(1)
    assert c['3'].key != c['4'].key
    assert c['3'].call == c['4'].call == c.call != count(2).call
    assert c['3'].path == f'count/{c.call}/3'


def test_a_version_is_another_result():
    one, two = (step(version=v)(square.fn) for v in (1, 2))
    assert one(3).key == square(3).key != two(3).key

def test_keys_do_not_move():
    "Results made with an earlier lth_nb are found again: these keys must never change."
    recipe = Recipe('24K', batch=60, optimizer='adam', lr=12e-4)
    run = train(init(nets.lenet_300_100, seed=1), D.mnist(), recipe, order=2)
    assert key_of({'a': [1, .5, None, 'x']}) == '077505fddd57afb6ed88'
    assert add(square(3), 4).key == 'fb51a6c945b87e590cb0'
    assert key_of(recipe) == '51844b2a8e4d990a243f'
    assert run.at('end').key == '206d320278a3367834e8'

@pytest.mark.parametrize('bad', (lambda x: x, object(), open, b'bytes', {1, 2}, float('nan'), float('inf'),
                                 torch.ones(2)))
def test_what_has_no_written_form_is_refused(bad):
    with pytest.raises((TypeError, ValueError), match='written form|finite'): square(bad)

def test_wrong_arguments_are_refused_at_once():
    for bad in (lambda: add(1), lambda: add(1, 2, 3, 4), lambda: add(1, 2, size=3)):
        with pytest.raises(TypeError): bad()
    with pytest.raises(TypeError, match='not computed yet'): list(square(3))

def test_expression():
    "The program of a result; shared links once."
    s = square(3)
    assert expression(add(s, [s, double(2)], scale=2)) == [
        'v0 = square(x=3)', 'v1 = double(x=2)', 'v2 = add(a=v0, b=[v0, v1], scale=2)']


# ------------------------------------------------------------------ any store

VALUE = dict(mask=torch.rand(5, 7) < .5, empty=torch.zeros(0, 3), one=torch.tensor(True),
             loss=[.1, 1/3, 1e-300, -0., 5], n=None, s='ü"\\\n', yes=True,
             deep=[{'w': torch.arange(6.).view(2, 3).t()}], i=torch.arange(3), d=torch.rand(3, dtype=torch.float64),
             h=torch.rand(4).bfloat16())

def equal(a, b):
    "Types and signs of zeros included."
    if isinstance(a, torch.Tensor): return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, float) and isinstance(b, float) and math.copysign(1, a) != math.copysign(1, b): return False
    return type(a) is type(b) and a == b

@pytest.fixture(scope='module')
def s3():
    "An S3 of our own on the loopback; the client to it."
    server, s3fs, boto3 = (pytest.importorskip(m) for m in ('moto.server', 's3fs', 'boto3'))
    moto = server.ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    environment = dict(AWS_ENDPOINT_URL=f'http://{host}:{port}', AWS_ACCESS_KEY_ID='x', AWS_SECRET_ACCESS_KEY='y',
                       AWS_DEFAULT_REGION='us-east-1')
    with pytest.MonkeyPatch.context() as patch:
        for name,value in environment.items(): patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        client = boto3.client('s3')
        client.create_bucket(Bucket='bucket')
        yield client
        close_pools()
        s3fs.S3FileSystem.clear_instance_cache()
    moto.stop()

@pytest.fixture(params=('local', 'memory', 's3'))
def anywhere(request, tmp_path):
    "A fresh store of each kind."
    if request.param == 's3': request.getfixturevalue('s3')
    urls = {'local': str(tmp_path/'r'), 'memory': f'memory://{tmp_path.name}', 's3': f's3://bucket/{tmp_path.name}'}
    return Store(urls[request.param])


def test_round_trip(anywhere):
    "What goes in comes out: types, shapes, bits; in a second look, by a store that knows nothing, and after pickling."
    s = anywhere
    assert not s.has('a/b')
    assert s.paths() == s.paths('nowhere') == []
    s.write('a/b', VALUE, made_by='hand')
    s.write('a/c/d', 7)
    for t in (s, Store(s.url), pickle.loads(pickle.dumps(s))):
        assert [t.has(path) for path in ('a/b', 'a/c/d', 'a/c', 'a/x')] == [True, True, False, False]
        assert equal(t.read('a/b'), VALUE)
        assert t.read('a/c/d') == 7
        assert t.record('a/b')['made_by'] == 'hand'
        assert t.paths() == ['a/b', 'a/c/d']
        assert t.paths('a/c') == ['a/c/d']
    s.write('a/b', {'new': 1})
    assert s.read('a/b') == {'new': 1}

def test_removed_is_gone(anywhere):
    "Removing twice is no error."
    s = anywhere
    s.write('a/b', 1)
    s.write('a/c/d', 7)
    s.remove('a/b')
    s.remove('a/b')
    assert not s.has('a/b')
    assert not Store(s.url).has('a/b')
    assert s.paths() == ['a/c/d']
    with pytest.raises(StoreError, match='no result at .*a/b.json'): s.read('a/b')


def test_compute_anywhere(anywhere):
    "Computed once; a second asker, who knows nothing, reads."
    s = anywhere
    wanted = dict(sum=add(square(3), square(4)), t=tensors(5), c=[count(10)['1'], count(10)['2']], k=double(square(3)))
    RAN.clear()
    got = run(wanted, s)
    assert (got['sum'], got['c'], got['k'], got['t']['step']) == (25, [11, 12], 18, 5)
    assert RAN.count(3) == RAN.count(4) == 1
    assert RAN.count(['1', '2']) == 1
    RAN.clear()
    assert equal(run(wanted, Store(s.url)), got)
    assert RAN == [('double', 9)]
    assert len(s.paths()) == 6


def test_a_trajectory_anywhere(anywhere, monkeypatch):
    "Stopped, and gone on with by another process's eyes: the checkpoint is found."
    t = short_run(210)
    assert run_call([t.at('end')], anywhere, 'cpu', time.time() - 1) == 'stopped'
    assert anywhere.paths() == [], 'a checkpoint is no result'
    pump = Replica.pump
    begun = []
    def noting(self, until):
        begun.append(self.step)
        return pump(self, until)
    monkeypatch.setattr(Replica, 'pump', noting)
    end = run(t.at('end'), Store(anywhere.url))
    assert begun[0] == 100
    assert end['step'] == 210
    assert len(anywhere.paths()) == 1
    assert not anywhere.has(f'.checkpoints/{t.node.call}')


def test_remote_results_of_others_are_seen(s3):
    "A listing is made once, yet what another machine wrote since is there for the next question."
    s = Store('s3://bucket/others')
    n = square(11)
    s.write('x/y', {'w': torch.ones(3)})
    assert not s.has(n.path)
    assert Store(s.url).has('x/y')
    record = json.dumps(dict(format=1, step='square', version=1, key=n.key, value=-1)).encode()
    s3.put_object(Bucket='bucket', Key=f'others/{n.path}.json', Body=record)
    assert run(n, s) == -1
    assert n.path in s.paths()
    new = Store('s3://bucket/begun_elsewhere')
    assert not new.has(n.path)
    assert 'bucket/others' in new.files.fs.ls('bucket')   # by now the folder is known not to be there
    s3.put_object(Bucket='bucket', Key=f'begun_elsewhere/{n.path}.json', Body=record)
    assert run(n, new) == -1


def test_remote_store_is_listed_not_asked(s3, monkeypatch):
    "A thousand questions are not a thousand requests."
    Store('s3://bucket/asked').write('a/b', 1)
    s = Store('s3://bucket/asked')
    asked = noted(monkeypatch, s.files.fs, ('exists', 'find', 'cat_file', 'info', 'ls'))
    assert [s.has(f'a/{c}') for c in 'bcdefghijklmnop'] == [True] + [False]*14
    assert len(asked) <= 3


def test_worker_processes_write_to_s3(s3):
    "What two processes store is there when compute answers."
    close_pools()   # they would not know of this S3
    s = Store('s3://bucket/workers')
    assert not s.has('square/nothing')
    wanted = [square(i) for i in range(4)] + [add(square(1), square(3))]
    assert compute(wanted, store=s, workers=2, quiet=True) == [0, 1, 4, 9, 10]
    assert len(Store(s.url).paths()) == 5


def test_s3_that_is_not_there(s3, monkeypatch):
    "One clear error, which names the place."
    s = Store('s3://bucket/broken')
    def full(*args, **kw): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(s.files.fs, 'pipe_file', full)
    with pytest.raises(StoreError, match='bucket/broken/a/b.json.*No space left'): s.write('a/b', {'w': torch.ones(3)})
    monkeypatch.undo()
    assert Store(s.url).paths() == []


# ------------------------------------------------------------------ the files

def test_files_are_plain(tmp_path):
    "JSON with provenance, expression and labels; nothing hidden, nothing pickled."
    s = Store(tmp_path)
    n = tensors(3, n=101).label(case='LeNet', k=20)
    run(n, s)
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob('*') if p.is_file()}
    assert files == {f'{n.path}.json', f'{n.path}.safetensors'}
    record = json.loads((tmp_path/f'{n.path}.json').read_text())
    told = [record[name] for name in ('format', 'step', 'version', 'key', 'labels')]
    assert told == [1, 'tensors', 1, n.key, {'case': 'LeNet', 'k': 20}]
    assert record['expression'] == ['v0 = tensors(seed=3, n=101)']
    assert record['value']['step'] == 3
    made = record['made']
    assert (made['device'], made['threads'], made['torch']) == ('cpu', 1, torch.__version__)

def test_masks_are_stored_as_bits(tmp_path):
    from safetensors.torch import load_file
    n = tensors(3, n=101)
    got = run(n, Store(tmp_path))
    stored = load_file(tmp_path/f'{n.path}.safetensors')
    assert {name: tuple(t.shape) for name,t in stored.items()} == {'value/w': (101, 7), 'value/mask': (38,)}
    bits = np.unpackbits(stored['value/mask'].numpy())[:303].astype(bool).reshape(101, 3)
    assert np.array_equal(bits, got['mask'].numpy())

@pytest.mark.parametrize('bad', (object(), {'f': lambda: 1}, [b'x'], {1}, 1j))
def test_what_cannot_be_stored_is_refused(tmp_path, bad):
    value = {'w': torch.ones(3), 'bad': bad}
    with pytest.raises(TypeError, match='a step returned'): Store(tmp_path).write('a/b', value)
    assert not [p for p in tmp_path.rglob('*') if p.is_file()]


@pytest.fixture
def layers(tmp_path):
    "The reader's own store over a published one."
    return Stores(Store(tmp_path/'own'), Store(tmp_path/'published'))

def test_layers(layers):
    "Reads look through both, the reader's own first; writing and removing touch the own alone."
    own, published = layers.layers
    for path in ('a/1', 'a/2'): published.write(path, 'published')
    own.write('a/2', 'own')
    assert [layers.read(f'a/{i}') for i in (1, 2)] == ['published', 'own']
    assert layers.paths() == ['a/1', 'a/2']
    assert layers.has('a/1')
    assert not layers.has('a/3')
    layers.write('a/3', 'new')
    assert layers.own is own
    assert own.has('a/3')
    assert not published.has('a/3')
    layers.remove('a/2')
    assert layers.read('a/2') == 'published'
    assert published.paths() == ['a/1', 'a/2']
    with pytest.raises(StoreError, match='own/a/9.json'): layers.read('a/9')

def test_a_published_result_is_not_computed_again(layers, tmp_path):
    own, published = layers.layers
    n = square(7)
    run(n, published)
    before = sorted((tmp_path/'published').rglob('*'))
    RAN.clear()
    assert run(add(n, 1), layers) == 50
    assert RAN == []
    assert own.has(add(n, 1).path)
    assert not own.has(n.path)
    assert sorted((tmp_path/'published').rglob('*')) == before


def test_default_store(tmp_path, monkeypatch):
    monkeypatch.setenv('LTH_NB_RESULTS', str(tmp_path/'mine'))
    monkeypatch.setenv('LTH_NB_PUBLISHED', str(tmp_path/'theirs'))
    assert [s.url for s in default_store().layers] == [str(tmp_path/'mine'), str(tmp_path/'theirs')]
    monkeypatch.setenv('LTH_NB_PUBLISHED', 'none')
    assert [s.url for s in default_store().layers] == [str(tmp_path/'mine')]
    assert default_store(results='memory://x').own.url == 'memory://x'


def test_writers_at_once(tmp_path):
    "Eight threads write the same forty results while others read: whoever sees one sees all of it."
    s = Store(tmp_path)
    stop = threading.Event()
    seen = []
    errors = []
    values = {f't/{i}': tensors.fn(i) for i in range(40)}
    def read():
        while not stop.is_set():
            for path in s.paths():
                try: seen.append(equal(s.read(path), values[path]))
                except Exception as e: errors.append(e)
    def write(path): return Store(tmp_path).write(path, values[path])
    readers = [threading.Thread(target=read) for _ in range(2)]
    for t in readers: t.start()
    with ThreadPoolExecutor(8) as pool: done = list(pool.map(write, list(values)*4))
    stop.set()
    for t in readers: t.join()
    assert len(done) == 160
    assert not errors
    assert all(seen)
    assert s.paths() == sorted(values)
    assert not parts(tmp_path)
    assert all(equal(s.read(path), v) for path,v in values.items())


def test_two_processes_and_this_one(tmp_path):
    "The same grid computed from two sides at once; nothing is broken, nothing is half there."
    s = Store(tmp_path/'r')
    grid = [add(square(i), square(i + 1)) for i in range(6)]
    got = {}
    def pool(): got['pool'] = compute(grid, store=Store(s.url), workers=2, quiet=True)
    side = threading.Thread(target=pool)
    side.start()
    got['here'] = run(grid, s)
    side.join()
    assert got['here'] == got['pool'] == [i*i + (i + 1)**2 for i in range(6)]
    assert not parts(tmp_path)


# ------------------------------------------------------------------ compute

def test_what_is_there_is_not_run_again(store):
    run(add(square(1), square(2)), store)
    RAN.clear()
    assert run(add(square(1), square(2)), store) == 5
    assert run(square(1), store) == 1
    assert RAN == []
    assert run(add(square(1), square(3)), store) == 10
    assert RAN == [3]
    store.remove(square(1).path)
    assert run(add(square(1), square(2)), store) == 5
    assert RAN == [3], 'an input is not made for a result that is there'

def test_items_that_are_there_are_not_made_again(store):
    RAN.clear()
    assert run(count(0)['1'], store) == 1
    assert run([count(0)['1'], count(0)['5']], store) == [1, 5]
    assert RAN == [['1'], ['5']]


def test_only_looking(store):
    wanted = {'a': square(1), 'b': (square(2), double(square(1)), double([square(1), square(2)])), 'c': 3}
    RAN.clear()
    assert compute(wanted, store=store, stored=True) == {'a': None, 'b': (None, None, None), 'c': 3}
    assert RAN == []
    assert run(wanted, store, minutes=0) == {'a': None, 'b': (None, None, None), 'c': 3}
    run(square(1), store)
    assert compute(wanted, store=store, stored=True) == {'a': 1, 'b': (None, 2, None), 'c': 3}


def test_longest_chain_first(store):
    chain = add(add(add(square(8), 1), 1), 1)
    RAN.clear()
    run([square(1), square(2), chain], store)
    assert RAN[0] == 8
    tasks = missing([square(20), add(add(square(21), 1), 1)], store)
    found = sorted((task.height, task.nodes[0].step.name) for task in tasks.values())
    assert found == [(0, 'add'), (0, 'square'), (1, 'add'), (2, 'square')]


def test_minutes(store):
    "Out of time at once: None for what is not there, no error; then the rest."
    run(square(1), store)
    assert run([square(1), square(2)], store, minutes=0) == [1, None]
    assert run([square(1), square(2)], store, minutes=5) == [1, 4]


def test_compute_leaves_settings_alone(store, monkeypatch):
    monkeypatch.delenv('LTH_NB_DEVICE')
    threads = torch.get_num_threads()
    run(square(1), store, device='cpu')
    assert 'LTH_NB_DEVICE' not in os.environ
    assert torch.get_num_threads() == threads


def test_items_that_need_other_calls(store):
    "Calls that wait for each other are an error, not an endless wait."
    t = short_run(10)
    turning = t.watch([5], either, other=either(t.at('end'), other=1))
    with pytest.raises(Exception, match='wait for'): run(turning, store)

@step
def either(state, other): return 1


# ------------------------------------------------------------------ getting results out

def test_table(store):
    "One row a result; labels may be called anything."
    odd = dict(step=7, path='p', key='q', seconds=1, device='d', value=3)
    run([square(3).label(case='a', k=5), add(1, 2).label(**odd), tensors(1), count(1)['4']], store)
    t = table(store)
    assert sorted(t['step']) == ['add', 'count', 'square', 'tensors']
    assert t['path'].is_unique
    row = t[t['step'] == 'square'].iloc[0]
    assert (row['value'], row['case'], row['k'], row['key'], row['device']) == (9, 'a', 5, square(3).key, 'cpu')
    assert row['expression'] == 'v0 = square(x=3)'
    assert list(table(store, step='add')['value']) == [3]

def test_empty_tables(store, tmp_path):
    run(square(3), store)
    assert len(table(store, step='nothing')) == 0
    assert len(table(Store(tmp_path/'empty'))) == 0


def test_figures():
    "Registered under an id, replaced by the same id; a scale that does not exist is an error."
    def plan(scale): return {'a': square(1), 'b': Needs('data')}
    def draw(values, scale): return values, scale
    f = figure('here/figure-1', 'T', 'S', plan, draw)
    try:
        s = Store('memory://figures')
        assert f.count('smoke', s) == (0, 1)
        assert f.show('smoke', store=s, workers=1, quiet=True)[0] == {'a': 1, 'b': Needs('data')}
        assert f.count('smoke', s) == (1, 1)
        assert str(Needs('data')) == 'needs data'
        with pytest.raises(ValueError, match="no scale 'huge'; there are smoke"): f.nodes('huge')
        again = figure('here/figure-1', 'T', 'S', f.plan, f.draw)
        assert FIGURES['here/figure-1'] is again
    finally: del FIGURES['here/figure-1']


def test_intervals():
    "Student's, against numbers from a table: t(2, 97.5 %) = 4.303, t(1) = 12.706."
    half = 4.3027/3**.5
    assert mean_interval([1., 2., 3.]) == pytest.approx((2, 2 - half, 2 + half), abs=1e-3)
    assert mean_interval([0., 2.])[2] == pytest.approx(1 + 12.7062, abs=1e-3)
    with pytest.raises(ValueError, match='no samples'): mean_interval([])

@pytest.mark.parametrize('samples,bound,below,holds', [
    ([1, 2, 3], 10, True, True), ([1, 2, 3], -10, True, False), ([1, 2, 3], 4, True, None), ([1.], 5, True, None),
    ([1, 2, 3], -10, False, True), ([1, 2, 3], 10, False, False)])
def test_decisions(samples, bound, below, holds): assert decide(samples, bound, below=below).holds is holds

def test_verdicts_in_words():
    assert [str(Verdict(holds)) for holds in (True, False, None)] == ['yes', 'no', 'not decided']


def test_a_default_is_left_out_however_it_is_written():
    "1.0 for a default of 1 is the default; '1' is not, and an argument without a default is never left out."
    @step
    def f(x, n=1, ks=(1, 2), name=None): return x
    for alike in (f(3, 1), f(3, n=1.), f(3, ks=[1, 2]), f(3, name=None)): assert alike.key == f(3).key
    others = [f(3, n=2), f(3, n='1'), f(3, ks=(2, 1)), f(3, name=''), f(3.)]
    assert len({node.key for node in [f(3), *others]}) == 6


def test_a_written_form_is_never_stale():
    "A dataclass that can change is written anew each time; a replaced frozen one is another."
    @dataclass
    class Loose: n:int = 0
    @dataclass(frozen=True)
    class Fixed:
        n:int = 0
        ks:object = ()
    loose = Loose(1)
    inner = Fixed(1, [1])
    fixed = Fixed(1)
    before = [key_of(loose), key_of(inner), key_of(fixed)]
    loose.n = 2
    inner.ks.append(2)
    assert key_of(loose) != before[0]
    assert key_of(inner) != before[1]
    assert key_of(replace(fixed, n=2)) != before[2]
    assert key_of(Fixed(1)) == before[2]
