"What the data room's own cells do not show: damaged files, other machines' layouts, real data, CUDA."
import itertools, os, pickle, shutil, urllib.error
from dataclasses import fields, replace
from pathlib import Path
import numpy as np, pytest, torch
from lth_nb import data as D
from lth_nb.data.order import sample_order

torch.set_num_threads(1)
parts = 'train_images', 'train_labels', 'test_images', 'test_labels'
raw_names = 'train-images-idx3-ubyte', 'train-labels-idx1-ubyte', 't10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte'
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')

def real(name):
    "The data folder, or a skip where it does not have MNIST or CIFAR-10."
    root = os.environ.get('LTH_NB_DATA')
    file = dict(mnist='MNIST', cifar10='cifar10.npz')[name]
    if not root or not (Path(root)/file).exists(): pytest.skip(f'{name} is not in $LTH_NB_DATA')
    return Path(root)

def arrays(n=50, m=20, side=32, channels=3, classes=10, seed=0):
    "Four arrays of random images, labels in turn."
    rng = np.random.default_rng(seed)
    def images(k): return rng.integers(0, 256, (k, side, side, channels), np.uint8)
    def labels(k): return (np.arange(k) % classes).astype(np.uint8)
    return dict(train_images=images(n), train_labels=labels(n), test_images=images(m), test_labels=labels(m))

def saved(path, a):
    "An .npz file with these arrays."
    np.savez(path, **a)
    return path

def changed_byte(path, at, bit=1):
    b = bytearray(path.read_bytes())
    b[at] ^= bit
    path.write_bytes(bytes(b))

def pinned(monkeypatch, name, a):
    "Let `a` be what the handle `name` stands for."
    k = D.known[name]
    monkeypatch.setitem(D.known, name, replace(k, train=len(a['train_labels']), test=len(a['test_labels']),
        digests=tuple(D.array_digest(a[p]) for p in parts)))
    D.loaded.clear()

def write_mnist(root, a):
    raw = Path(root)/'MNIST'/'raw'
    raw.mkdir(parents=True, exist_ok=True)
    for p, f in zip(parts, raw_names):
        numbers = 2051 if 'images' in p else 2049, *a[p].shape[:3]
        (raw/f).write_bytes(b''.join(int(v).to_bytes(4, 'big') for v in numbers) + a[p].tobytes())
    return raw

def python2_pickle(x, y):
    "A CIFAR batch in the opcodes that Python 2 wrote: byte strings everywhere, the pixels as one of them."
    raw = x.transpose(0, 3, 1, 2).tobytes()
    def one(text): return b'U' + bytes([len(text)]) + text
    dtype = (b'cnumpy\ndtype\n' + one(b'u1') + b'K\x00K\x01\x87R(K\x03' + one(b'|') + b'NNN'
             + b'J\xff\xff\xff\xff' * 2 + b'K\x00tb')
    array = (b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85' + one(b'b')
             + b'\x87R(K\x01K' + bytes([len(x)]) + b'M\x00\x0c\x86' + dtype
             + b'\x89T' + len(raw).to_bytes(4, 'little') + raw + b'tb')
    labels = b'](' + b''.join(b'K' + bytes([v]) for v in y.tolist()) + b'e'
    return (b'\x80\x02}(' + one(b'data') + array + one(b'labels') + labels
            + one(b'batch_label') + one(b'a batch') + b'u.')

def python3_pickle(x, y):
    return pickle.dumps({'data': x.transpose(0, 3, 1, 2).reshape(len(x), -1), 'labels': y.tolist()}, protocol=2)

def write_batches(root, a, dump=python2_pickle):
    folder = Path(root)/'cifar-10-batches-py'
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(5):
        ten = slice(i * 10, i * 10 + 10)
        (folder/f'data_batch_{i + 1}').write_bytes(dump(a['train_images'][ten], a['train_labels'][ten]))
    (folder/'test_batch').write_bytes(dump(a['test_images'], a['test_labels']))
    return folder

# random numbers
@pytest.mark.parametrize('counter,key,words', [
    ([0] * 4, [0] * 2, [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]),
    ([0xffffffff] * 4, [0xffffffff] * 2, [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]),
    ([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0],
     [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1])])
def test_philox_known_answers(counter, key, words):
    assert [int(w) for w in D.philox(counter, key)] == words
    assert [w[1].item() for w in D.philox([torch.tensor([0, c]) for c in counter], key)] == words

def test_words_do_not_depend_on_their_neighbours():
    "A counter's words do not depend on the others in the batch."
    together = D.philox((torch.arange(1000), 0, 0, 3), (1, 2))
    alone = [D.philox((i, 0, 0, 3), (1, 2)) for i in (0, 17, 999)]
    assert [[int(w[i]) for w in together] for i in (0, 17, 999)] == [[int(w) for w in a] for a in alone]

def test_order_and_augmentation_are_pinned():
    "These numbers must never change: every stored result depends on them."
    assert D.permutation(10, 0, 0).tolist() == [2, 8, 0, 5, 9, 7, 6, 3, 4, 1]
    assert D.permutation(10, (5 << 32) + 1, 7).tolist() == [2, 1, 8, 5, 4, 6, 3, 9, 7, 0]
    assert D.augmentation(3, 1, 2).tolist() == [[7, 6, 0], [1, 6, 0], [4, 5, 0]]

@needs_cuda
def test_cuda_gives_the_same_bits():
    for f in (D.permutation, D.augmentation):
        assert torch.equal(f(50000, 12345678901, 3, 'cuda').cpu(), f(50000, 12345678901, 3))
    a, b = (D.mnist1d().load(d).batches(64, 5) for d in ('cpu', 'cuda'))
    assert all(torch.equal(p, q.cpu()) for s in (0, 62, 500) for p, q in zip(a[s], b[s]))

@needs_cuda
def test_gather_can_be_captured(tmp_path):
    d = D.npz(saved(tmp_path/'a.npz', arrays())).load('cuda')
    index = torch.arange(8, device='cuda')
    crops = D.augmentation(8, 0, 0, 'cuda')
    want = d.gather(index, crops)[0].clone()
    torch.cuda.synchronize()
    g = torch.cuda.CUDAGraph()
    with torch.cuda.graph(g): x, _ = d.gather(index, crops)
    g.replay()
    assert torch.equal(x, want)

def test_offsets_and_flips_are_uniform_and_independent():
    a = D.augmentation(162000, 9, 0)
    cells = torch.bincount(a[:, 0] * 18 + a[:, 1] * 2 + a[:, 2], minlength=162).double()
    assert len(cells) == 162
    assert float(((cells - 1000) ** 2 / 1000).sum()) < 161 + 5 * 322 ** .5

# handles
def test_a_handle_is_its_content():
    h = D.mnist(root='/nowhere', train=10)
    assert h == D.mnist(train=10)
    assert hash(h) == hash(D.mnist(train=10))
    assert pickle.loads(pickle.dumps(h)) == h
    counted = [f.name for f in fields(h) if f.metadata.get('identity', True)]
    assert counted == ['name', 'sha256', 'train', 'test', 'scaling', 'subset']
    assert '/nowhere' not in repr(h)
    assert len({D.mnist(), D.cifar10(), D.mnist1d(), D.mnist(scaling='unit'), D.mnist(test=5)}) == 5

def test_epochs_are_known_without_the_data():
    handles = D.mnist(), D.cifar10(), D.cifar10(train=7), D.mnist1d()
    assert [h.examples for h in handles] == [60000, 50000, 7, 4000]
    assert D.Dataset('mine', '0' * 64).examples is None
    assert replace(D.cifar10(train=7), train=None).examples == 50000

@pytest.mark.parametrize('bad', [dict(train=0), dict(train=60001), dict(train=True), dict(train='5'), dict(test=10001),
    dict(test=0), dict(scaling='imagenet'), dict(scaling=None)])
def test_impossible_handles(bad):
    with pytest.raises(ValueError, match=repr([*bad.values()][0])): D.mnist(**bad)

def test_missing_data_says_what_where_and_how(tmp_path, monkeypatch):
    with pytest.raises(D.MissingData) as e: D.mnist(tmp_path).load()
    assert str(tmp_path) in str(e.value)
    assert 'train-images' in str(e.value)
    assert "download('mnist')" in str(e.value)
    assert isinstance(e.value, FileNotFoundError)
    monkeypatch.setenv('LTH_NB_DATA', str(tmp_path/'other'))
    with pytest.raises(D.MissingData, match='other'): D.cifar10().load()
    for f in (D.cifar100, D.tiny_imagenet, D.imagenet):
        with pytest.raises(D.MissingData): f()
    with pytest.raises(D.MissingData): D.npz(tmp_path/'no.npz')
    with pytest.raises(D.MissingData): D.image_folder(tmp_path)
    with pytest.raises(D.MissingData, match='npz'): D.Dataset('mine', '0' * 64).load()

def test_download_fails_in_words(tmp_path, monkeypatch):
    datasets = pytest.importorskip('torchvision').datasets
    def no(*a, **k): raise urllib.error.URLError('no network')
    monkeypatch.setattr(datasets, 'MNIST', no)
    with pytest.raises(ConnectionError, match='no network'): D.download('mnist', tmp_path)
    with pytest.raises(ValueError, match='mnist2'): D.download('mnist2', tmp_path)

# damage
@pytest.mark.parametrize('part', range(4))
@pytest.mark.parametrize('how', ['byte', 'short', 'long', 'empty'])
def test_damaged_mnist_is_refused_by_name(tmp_path, monkeypatch, part, how):
    a = arrays(side=28, channels=1)
    pinned(monkeypatch, 'mnist', a)
    raw = write_mnist(tmp_path, a)
    assert len(D.mnist(tmp_path).load().train) == 50
    f = raw/raw_names[part]
    whole = f.read_bytes()
    if how == 'byte': changed_byte(f, -3)
    else: f.write_bytes(dict(short=whole[:-1], long=whole + b'0', empty=b'')[how])
    D.loaded.clear()
    with pytest.raises(D.CorruptData, match=f.name) as e: D.mnist(tmp_path).load()
    assert isinstance(e.value, ValueError)
    assert sum(g.name in str(e.value) for g in raw.iterdir()) == 1

@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_damaged_npz_is_refused_by_name(tmp_path, monkeypatch, save):
    f = tmp_path/'mine.npz'
    save(f, **arrays())
    h = D.npz(f)
    whole = f.read_bytes()
    for at in range(0, len(whole), len(whole) // 40):
        f.write_bytes(whole)
        changed_byte(f, at, bit=4)
        D.loaded.clear()
        try: d = h.load()
        except D.CorruptData as e: assert 'mine.npz' in str(e)
        else: assert np.array_equal(d.train.x.numpy(), arrays()['train_images'])   # a byte that carries no content
    for n in (0, 10, len(whole) // 2, len(whole) - 1):
        f.write_bytes(whole[:n])
        with pytest.raises(D.CorruptData, match='mine.npz'): h.load()

@pytest.mark.parametrize('dump', [python2_pickle, python3_pickle])
def test_cifar_from_either_layout(tmp_path, monkeypatch, dump):
    a = arrays()
    pinned(monkeypatch, 'cifar10', a)
    (tmp_path/'n').mkdir()
    saved(tmp_path/'n'/'cifar10.npz', a)
    write_batches(tmp_path/'b', a, dump)
    x = D.cifar10(tmp_path/'n').load()
    D.loaded.clear()
    y = D.cifar10(tmp_path/'b').load()
    assert torch.equal(x.train.x, y.train.x)
    assert torch.equal(x.test.y, y.test.y)
    assert x.sha256 == y.sha256

def test_damaged_batches(tmp_path, monkeypatch):
    a = arrays()
    pinned(monkeypatch, 'cifar10', a)
    folder = write_batches(tmp_path, a)
    other = arrays(seed=1)
    other['train_images'][:40] = a['train_images'][:40]
    write_batches(tmp_path, other)
    with pytest.raises(D.CorruptData, match='data_batch_5'): D.cifar10(tmp_path).load()
    (folder/'data_batch_2').write_bytes((folder/'data_batch_2').read_bytes()[:500])
    with pytest.raises(D.CorruptData, match='data_batch_2'): D.cifar10(tmp_path).load()
    (folder/'data_batch_3').unlink()
    with pytest.raises(D.MissingData, match='data_batch_3'): D.cifar10(tmp_path).load()

def test_a_pickle_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'owned'),)
    folder = write_batches(tmp_path, arrays())
    (folder/'data_batch_1').write_bytes(pickle.dumps({b'data': Evil(), b'labels': [0]}, protocol=2))
    with pytest.raises(D.CorruptData, match='refuses .*mkdir'): D.cifar10(tmp_path).load()
    assert not (tmp_path/'owned').exists()

@pytest.mark.parametrize('bad,words', [
    (dict(train_images=arrays()['train_images'] / 255), 'float64'),
    (dict(train_images=arrays()['train_images'][..., :2]), r'32, 32, 2'),
    (dict(train_images=arrays()['train_images'][:49]), '49 train_images but 50'),
    (dict(train_labels=arrays()['train_labels'].astype(float)), 'float64'),
    (dict(test_labels=arrays()['test_labels'] + 1), '10, should be in 0..9'),
    (dict(test_labels=arrays()['test_labels'].astype(int) - 1), '-1, should'),
    (dict(test_images=arrays(side=28)['test_images']), '28, 28'),
    (dict(test_images=None), 'object|allow_pickle'),
    (dict(train_images=arrays()['train_images'][:0], train_labels=np.zeros(0, int)), 'n > 0')])
def test_arrays_that_do_not_fit(tmp_path, bad, words):
    np.savez(tmp_path/'bad.npz', **(arrays() | bad))
    with pytest.raises(ValueError, match=words) as e: D.npz(tmp_path/'bad.npz')
    assert 'bad.npz' in str(e.value)

def test_npz_without_an_array(tmp_path):
    a = arrays()
    del a['test_labels']
    with pytest.raises(D.CorruptData, match="test_labels"): D.npz(saved(tmp_path/'bad.npz', a))

def test_many_classes(tmp_path):
    a = arrays(n=300, m=300, side=4, classes=300)
    a['train_labels'] = a['test_labels'] = np.arange(300)
    assert D.npz(saved(tmp_path/'a.npz', a)).load().test.y.tolist() == list(range(300))

# MNIST-1D
def test_mnist1d_is_the_published_one():
    "Against the authors' package, where somebody has installed it."
    theirs = pytest.importorskip('mnist1d.data').make_dataset()
    d = D.mnist1d().load()
    for s, x, y in ((d.train, 'x', 'y'), (d.test, 'x_test', 'y_test')):
        assert np.abs(s.x[:, 0].numpy() - theirs[x]).max() <= .5 / 4096 + 1e-6
        assert (s.y.numpy() == theirs[y]).all()

def test_mnist1d_leaves_global_generators_alone():
    def seed():
        np.random.seed(3)                     # noqa: NPY002
        torch.manual_seed(3)
    def draw(): return np.random.rand(), torch.rand(1)   # noqa: NPY002
    seed()
    a = draw()
    seed()
    D.mnist1d_arrays()
    D.mnist1d().load().batches(64, 0)[0]
    assert draw() == a

def test_mnist1d_refuses_pixels_scaling():
    with pytest.raises(ValueError, match='unit'): D.mnist1d(scaling='unit')

# batches
@pytest.fixture(params=[1, 3], ids=['grey', 'colour'])
def images(tmp_path, request):
    return D.npz(saved(tmp_path/'a.npz', arrays(side=16, channels=request.param))).load()

def test_crops_and_flips_pixel_by_pixel(images):
    "Every offset and flip against slicing one image, bit for bit."
    grid = torch.tensor(list(itertools.product(range(9), range(9), (0, 1))))   # down, right, flipped
    index = torch.arange(len(grid)) % 50
    x, y = images.gather(index, grid)
    plain = {s: v for s, v in zip(range(50), images.gather(torch.arange(50))[0])}
    black = images.inputs(torch.zeros(1, 16, 16, images.shape[0], dtype=torch.uint8), torch.float32)[0, :, 0, 0]
    for k, (i, (dy, dx, f)) in enumerate(zip(index.tolist(), grid.tolist())):
        p = black[:, None, None].expand(-1, 24, 24).clone()
        p[:, 4:20, 4:20] = plain[i]
        im = p[:, dy:dy + 16, dx:dx + 16]
        assert torch.equal(x[k], im.flip(2) if f else im)
    assert torch.equal(y, images.train.y[index])
    assert x.is_contiguous(memory_format=torch.channels_last)

def test_normalisation_is_torchvisions(images):
    F = pytest.importorskip('torchvision.transforms.functional')
    want = F.normalize(images.test.x.permute(0, 3, 1, 2).double() / 255, images.mean, images.std)
    got = torch.cat([x for x, _ in images.evaluation(dtype=torch.float64)])
    assert torch.allclose(got, want, rtol=0, atol=1e-12)
    assert torch.allclose(torch.cat([x for x, _ in images.evaluation()]).double(), want, rtol=0, atol=1e-6)

def test_scaling_unit(tmp_path):
    d = D.npz(saved(tmp_path/'a.npz', arrays()), scaling='unit').load()
    assert torch.allclose(d.gather(torch.arange(50))[0], d.train.x.permute(0, 3, 1, 2) / 255, atol=1e-7)
    assert d.gather(torch.arange(50))[0].max() <= 1

def test_measured_moments(tmp_path):
    a = arrays(n=400, side=8)
    d = D.npz(saved(tmp_path/'a.npz', a)).load()
    x = a['train_images'].reshape(-1, 3) / 255
    assert np.allclose(d.mean, x.mean(0), atol=6e-5)
    assert np.allclose(d.std, x.std(0), atol=6e-5)

@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_dtypes(images, dtype):
    crops = D.augmentation(50, 0, 0)
    x, ref = (images.gather(torch.arange(50), crops, dtype=t)[0] for t in (dtype, torch.float32))
    assert x.dtype == dtype
    assert torch.allclose(x.float(), ref, atol=1e-5 if dtype == torch.float64 else 3e-2)

@pytest.mark.parametrize('batch', [1, 7, 20, 50])
def test_any_step_can_be_entered(images, batch):
    b = images.batches(batch, 5, augment=True)
    through = [b[s] for s in range(160 // batch + 1)]
    for s in torch.randperm(len(through), generator=torch.Generator().manual_seed(0)).tolist():
        x, y = images.batches(batch, 5, augment=True)[s]
        assert torch.equal(x, through[s][0])
        assert torch.equal(y, through[s][1])
        assert len(y) == batch
    seen = torch.cat([b.indices(s)[0] for s in range(len(through))])[:150]
    for e in range(3): assert torch.equal(seen[e * 50:e * 50 + 50], D.permutation(50, 5, e))

def test_batches_keep_two_epochs(images):
    b = images.batches(20, 0)
    for s in range(100): b[s]
    assert len(b.epochs.kept) == 2

@pytest.mark.parametrize('args', [(0, 0), (51, 0), (2.5, 0), (8, -1), (8, 1 << 64), (8, 1.5)])
def test_impossible_batches(images, args):
    with pytest.raises(ValueError): images.batches(*args)
    with pytest.raises(ValueError, match='-1'): images.batches(8, 0)[-1]

def test_limits(images, tmp_path):
    h = D.npz(tmp_path/'a.npz')
    d = replace(h, train=10, test=5).load()
    assert torch.equal(d.train.x, images.train.x[sample_order(50)[:10]])
    assert len(d.test) == 5
    assert d.mean == images.mean
    assert d.sha256 == images.sha256
    with pytest.raises(ValueError, match='51'): replace(h, train=51)

def test_load_is_cached(tmp_path):
    h = D.npz(saved(tmp_path/'a.npz', arrays()))
    assert h.load() is D.npz(tmp_path/'a.npz').load('cpu')

# folders
def picture(path, seed, size=(20, 24)):
    from PIL import Image
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(path)

def test_folder(tmp_path):
    pytest.importorskip('PIL')
    for i in range(8): picture(tmp_path/'f'/('train' if i < 6 else 'test')/'xy'[i % 2]/f'{i}.png', i)
    h = D.image_folder(tmp_path/'f')
    d = h.load()
    assert d.train.y.tolist() == [0] * 3 + [1] * 3
    assert d.shape == (3, 20, 24)
    assert h.sizes == (6, 2)
    assert np.array_equal(d.train.x[1].numpy(), np.random.default_rng(2).integers(0, 256, (20, 24, 3), np.uint8))
    small = D.image_folder(tmp_path/'f', size=8)
    assert small.load().shape == (3, 8, 8)
    assert small.sha256 != h.sha256
    picture(tmp_path/'f'/'train'/'x'/'0.png', 99)
    assert D.image_folder(tmp_path/'f').sha256 != h.sha256
    with pytest.raises(D.CorruptData, match='not those'): replace(h, train=2).load()
    picture(tmp_path/'f'/'train'/'x'/'0.png', 0, (5, 5))
    with pytest.raises(ValueError, match='size='): D.image_folder(tmp_path/'f').load()
    picture(tmp_path/'f'/'test'/'z'/'0.png', 0)
    with pytest.raises(ValueError, match="'z'"): D.image_folder(tmp_path/'f')

def test_tiny_imagenets_validation_table(tmp_path):
    pytest.importorskip('PIL')
    root = tmp_path/'tiny-imagenet-200'
    for c in 'ab': picture(root/'train'/f'n{c}'/'images'/'0.JPEG', ord(c), (64, 64))
    for i in range(3): picture(root/'val'/'images'/f'val_{i}.JPEG', i, (64, 64))
    rows = ('val_2.JPEG', 'na'), ('val_0.JPEG', 'nb'), ('val_1.JPEG', 'na')
    table = ''.join(f'{file}\t{label}\t0\t0\t1\t1\n' for file, label in rows)
    (root/'val'/'val_annotations.txt').write_text(table)
    d = D.tiny_imagenet(tmp_path).load()
    assert d.classes == 2
    assert d.test.y.tolist() == [1, 0, 0]
    assert d.shape == (3, 64, 64)

def test_stream(tmp_path):
    pytest.importorskip('PIL')
    for i in range(24):
        split = 'train' if i < 18 else 'val'
        picture(tmp_path/'imagenet'/split/'xyz'[i % 3]/f'{i}.png', i, (30 + i, 50))
    h = D.imagenet(tmp_path, size=16)
    s = h.load()
    b = s.batches(4, 7)
    through = [b[i] for i in range(7)]
    assert through[0][0].shape == (4, 3, 16, 16)
    assert h.examples == 18
    assert s.classes == 3
    for i in (6, 0, 3):
        x, y = s.batches(4, 7)[i]
        assert torch.equal(x, through[i][0])
        assert torch.equal(y, through[i][1])
    c = s.batches(4, 7, workers=2)
    assert all(torch.equal(c[i][0], through[i][0]) for i in (2, 3, 4))
    assert not torch.equal(s.batches(4, 8)[0][0], through[0][0])
    whole = torch.cat([x for x, _ in s.evaluation(size=4)])
    assert whole.shape == (6, 3, 16, 16)
    assert torch.equal(whole[sample_order(6)[:3]], torch.cat([x for x, _ in s.evaluation(limit=3)]))
    with pytest.raises(ValueError, match='augment'): s.batches(4, 7, augment=False)
    (tmp_path/'imagenet'/'train'/'x'/'0.png').write_bytes(b'x' * 10)
    with pytest.raises(D.CorruptData): replace(h, train=5).load()

# real data
def test_real_sets_are_the_pinned_ones():
    real('mnist')
    real('cifar10')
    m = D.mnist().load()
    c = D.cifar10().load()
    assert torch.bincount(c.train.y).tolist() == [5000] * 10
    assert m.train.y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    for d in (m, c): assert D.moments(d.train.x.numpy()) == (d.mean, d.std)

def test_one_changed_byte_in_real_mnist(tmp_path):
    shutil.copytree(real('mnist')/'MNIST', tmp_path/'MNIST')
    changed_byte(tmp_path/'MNIST'/'raw'/'t10k-labels-idx1-ubyte', 5000)
    with pytest.raises(D.CorruptData, match='t10k-labels-idx1-ubyte'): replace(D.mnist(tmp_path), test=17).load()

def test_more_test_curves_leave_the_published_set_alone():
    "Another name and hash from 1,001 test examples on; up to then the set that all published results are of."
    small, large = D.mnist1d(), D.mnist1d(test=10000)
    assert D.mnist1d(test=1000).sha256 == D.mnist1d(test=128).sha256 == small.sha256 != large.sha256
    assert small.sha256.startswith('186c5f48c6162c87')
    assert (large.name, large.sizes, large.test, large.subset) == ('mnist1d-10k', (4000, 10000), None, 'first')
    part = D.mnist1d(test=2000).load()
    assert torch.equal(part.test.x, large.load().test.x[:2000])
    with pytest.raises(ValueError, match='mnist1d-10k has no pixels'): D.mnist1d(test=10000, scaling='unit')

def test_halved_is_the_mean_of_two_by_two(tmp_path):
    np.savez(tmp_path/'mine.npz', **arrays(classes=2))
    whole = D.npz(tmp_path/'mine.npz')
    half = D.halved(whole)
    assert half.sha256 != whole.sha256 and half.name == 'mine halved'
    base, small = whole.load(), half.load()
    assert small.shape == (3, 16, 16)
    for split in ('train', 'test'):
        full, part = getattr(base, split), getattr(small, split)
        mean = torch.nn.functional.avg_pool2d(full.x.permute(0, 3, 1, 2).double(), 2).permute(0, 2, 3, 1)
        assert (part.x.double() - mean).abs().max() <= .5
        assert abs(float((part.x.double() - mean).mean())) < .2
        assert torch.equal(part.y, full.y)
    with pytest.raises(ValueError, match='rotations come last'): D.halved(D.rotations(whole))
