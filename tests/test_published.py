"""Published results: what is read, what is refused, what is added, and whether each lies at its address."""
import math, os, pickle, signal, subprocess, sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np, pytest, torch
from conftest import ROOT
from lth_nb import cli
from lth_nb.experiment import (Published, Store, StoreError, Stores, add_results, all_flaws, compute, default_store,
                               expression, flaws, record_of, step)
from lth_nb.experiment.address import left_out, read_expression
from lth_nb.experiment.published import result_line
from helpers import noted


@dataclass(frozen=True)
class Numbers:
    sha256: str
    n: int = 10
    scale: float = 1.

@step
def squared(x): return x*x

@step(version=2)
def total(numbers, of=(), start=-1.5): return start + sum(of)

@step
def layers(n): return {f'{i}.weight': i for i in reversed(range(n))}

@step
def told(settings): return len(settings)

@step(many=True)
def states(start, items, shelf):
    for item in items: shelf.save(item, start)

@step
def weights(seed): return torch.zeros(seed)

@step
def diverged(x): return {'loss': math.inf}

ITEM = {'watch': [0, 5], 'observe': squared, 'args': {'other': squared(4), 'ps': [.1, 1e-05], 'mask': None}}
TOTAL = total(Numbers('c0ffee'*10 + 'beef', n=4), of=[squared(3), squared(4)])
NODES = [squared(3), squared(4), squared(-2.5), layers(12), TOTAL,
         told({'0.weight': np.float64(.5), 5: [True], 'ps': -0.25}),
         states(squared(3))['at-10'], states(squared(3))['end'], states(squared(4))[ITEM]]


@pytest.fixture
def computed(store):
    compute(NODES, store=store, workers=1, device='cpu', quiet=True)
    return store

@pytest.fixture(params=('a folder', 'memory'))
def published(request, tmp_path, computed):
    "The results of NODES, published."
    to = Published(tmp_path/'published' if request.param == 'a folder' else f'memory://{tmp_path.name}')
    add_results(to, records(NODES, computed))
    return to

@pytest.fixture
def folder(tmp_path, computed):
    "The same, in a folder, as a Path."
    add_results(Published(tmp_path/'folder'), records(NODES, computed))
    return tmp_path/'folder'

def records(nodes, store): return {n.path: record_of(n, store) for n in nodes}

def contents(folder): return {f.name: f.read_bytes() for f in folder.iterdir()}

def ask(folder): return Published(folder).read(NODES[0].path)


# ------------------------------------------------------------------ reading

def test_it_reads_as_the_store_does(published, computed):
    assert published.paths() == computed.paths()
    for n in NODES:
        assert published.has(n.path)
        assert published.read(n.path) == computed.read(n.path)

def test_a_record_is_the_stores_and_what_the_address_needs(published, computed):
    for n in NODES:
        record = published.record(n.path)
        assert {k: record.pop(k) for k in ('versions', 'sha256')} == left_out(n)
        assert record == computed.record(n.path)

def test_the_order_inside_a_value_is_kept(published):
    assert list(published.read(layers(12).path)) == [f'{i}.weight' for i in reversed(range(12))]

def test_paths_under_a_folder(published):
    call = states(squared(3)).call
    assert published.paths('squared') == sorted(n.path for n in NODES if n.step.name == 'squared')
    assert published.paths(f'states/{call}') == [f'states/{call}/at-10', f'states/{call}/end']
    assert published.paths('squ') == published.paths('nothing') == []

def test_what_is_not_there(published):
    assert not published.has('squared/nothing')
    assert not published.has('nothing/at/all')
    with pytest.raises(StoreError, match=r'no result squared/nothing in .*squared\.jsonl'):
        published.read('squared/nothing')

def test_a_folder_that_is_not_there(tmp_path):
    assert Published(tmp_path/'nowhere').paths() == []
    assert not Published(tmp_path/'nowhere').has('squared/x')

def test_it_crosses_to_another_process(published):
    again = pickle.loads(pickle.dumps(published))
    assert again.url == published.url
    assert again.paths() == published.paths()

def test_nothing_is_listed_or_read_twice(folder, monkeypatch):
    "A thousand questions are one listing, and one reading of each file; a copy in the same process reads nothing."
    p = Published(folder)
    asked = noted(monkeypatch, p.files.fs, ('find', 'cat_file'))
    for _ in range(1000): p.has('squared/nothing')
    assert asked.count('find') == 1
    assert asked.count('cat_file') <= 1
    p.paths()
    before = asked.count('cat_file')
    again = pickle.loads(pickle.dumps(p))
    assert again.read(squared(3).path) == 9
    assert asked.count('cat_file') == before

def test_what_others_add_is_seen_after_a_refresh(folder, computed):
    p = Published(folder)
    new = squared(5)
    assert not p.has(new.path)
    compute(new, store=computed, workers=1, quiet=True)
    add_results(Published(folder), records([new], computed))
    p.refresh()
    assert p.read(new.path) == 25

def test_compute_asks_it(folder, tmp_path):
    "Beneath a store of one's own, published inputs are not computed again."
    both = Stores(Store(tmp_path/'own'), Published(folder))
    assert compute(total(Numbers('c0'*32), of=[squared(3), squared(4)]), store=both, workers=1, quiet=True) == 23.5
    assert both.own.paths('squared') == []

@pytest.mark.parametrize('form', ('lines', 'files', 'empty'))
def test_default_store_takes_either_form(form, folder, computed, tmp_path, monkeypatch):
    where = {'lines': folder, 'files': computed.url, 'empty': tmp_path/'nowhere'}[form]
    monkeypatch.setenv('LTH_NB_RESULTS', str(tmp_path/'own'))
    monkeypatch.setenv('LTH_NB_PUBLISHED', str(where))
    store = default_store()
    assert store.paths() == ([] if form == 'empty' else computed.paths())
    assert isinstance(store.layers[1], Published if form == 'lines' else Store)


# ------------------------------------------------------------------ damage

def damage(folder, change, step='squared'):
    "Change one file."
    file = folder/f'{step}.jsonl'
    file.write_bytes(change(file.read_bytes()))
    return file

@pytest.mark.parametrize('change,line,said', [
    (lambda b: b[:-1], 3, 'the last line is cut short'),
    (lambda b: b[:-20], 3, 'the last line is cut short'),
    (lambda b: b[:-20] + b'\n', 3, 'this is no result'),
    (lambda b: b + b'\n', 4, 'this is no result'),
    (lambda b: b'<<<<<<< HEAD\n' + b, 1, 'this is no result'),
    (lambda b: b + b.split(b'\n')[1] + b'\n', 4, 'is in line 2 already'),
    (lambda b: b.replace(b'"path":"squared/', b'"path":"cube/', 1), 1, 'does not belong here'),
    (lambda b: b.replace(b'"expression":[', b'"expression":]'), 0, 'this cannot be read'),
    (lambda b: b.replace(b'"format":1', b'"format":2'), 0, 'has format 2, and this lth_nb reads format 1')])
def test_damage_is_named(folder, change, line, said):
    "File, line, what is wrong, and what to do."
    file = damage(folder, change)
    with pytest.raises(StoreError, match=said) as e: ask(folder)
    assert f'{file}, line {line or ""}' in str(e.value)
    assert 'git checkout' in str(e.value)

def test_damage_in_one_file_is_no_harm_to_others(folder):
    damage(folder, lambda b: b[:-1])
    assert Published(folder).read(layers(12).path)['3.weight'] == 3

def test_what_is_left_of_a_write_is_not_read(folder):
    before = Published(folder).paths()
    (folder/'cube.jsonl.1234.part').write_text('{"path":"cube/')
    assert Published(folder).paths() == before


# ------------------------------------------------------------------ adding

def test_adding_again_changes_no_byte(folder, computed):
    before = contents(folder)
    assert add_results(Published(folder), records(NODES, computed)) == 0
    assert contents(folder) == before

def test_the_order_of_adding_makes_no_difference(folder, computed, tmp_path):
    other = Published(tmp_path/'other')
    for n in reversed(NODES): assert add_results(other, records([n], computed)) == 1
    assert contents(tmp_path/'other') == contents(folder)

def test_a_new_result_is_a_new_line(folder, computed):
    before = contents(folder)
    compute(squared(5), store=computed, workers=1, quiet=True)
    assert add_results(Published(folder), records([squared(5)], computed)) == 1
    after = contents(folder)
    lines = after['squared.jsonl'].splitlines()
    assert len(set(lines) - set(before['squared.jsonl'].splitlines())) == 1
    assert lines == sorted(lines)
    assert {name for name in before if after[name] != before[name]} == {'squared.jsonl'}

def test_what_is_published_stays_as_it_is(folder, computed):
    before = contents(folder)
    other = {n.path: {**record_of(n, computed), 'value': 'other'} for n in NODES}
    assert add_results(Published(folder), other) == 0
    assert contents(folder) == before

@pytest.mark.parametrize('node,said', [(weights(3), 'holds tensors'), (diverged(1), 'a number that is not finite')])
def test_what_is_not_for_publishing(folder, computed, node, said):
    "Refused before anything is written, what could be published with it too."
    before = contents(folder)
    compute([node, squared(6)], store=computed, workers=1, quiet=True)
    both = records([squared(6), node], computed)
    with pytest.raises(StoreError, match=f'{node.path}.*{said}'): add_results(Published(folder), both)
    assert contents(folder) == before

def test_another_address_is_refused(folder, computed):
    with pytest.raises(StoreError, match=f'squared/elsewhere: .* belongs to {squared(3).path}'):
        add_results(Published(folder), {'squared/elsewhere': record_of(squared(3), computed)})

def test_a_folder_in_the_older_form_is_left_alone(computed):
    with pytest.raises(StoreError, match='results in the older form.*another folder'):
        add_results(Published(computed.url), records([squared(3)], computed))
    assert not list(Path(computed.url).glob('*.jsonl'))

def test_a_disk_that_is_full(folder, computed, monkeypatch):
    "An error that says so; what was there is whole."
    before = contents(folder)
    compute(squared(7), store=computed, workers=1, quiet=True)
    def full(fd): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(StoreError, match='could not write .*squared.jsonl: No space left on device'):
        add_results(Published(folder), records([squared(7)], computed))
    assert contents(folder) == before

KILLED = """
import os, pickle, signal, sys
from lth_nb.experiment.published import Published, add_results
folder, at, found = sys.argv[1], int(sys.argv[2]), sys.argv[3]
rename = os.replace
count = 0
def stop(*files):
    global count
    count += 1
    if count == at: os.kill(os.getpid(), signal.SIGKILL)
    rename(*files)
os.replace = stop
add_results(Published(folder), pickle.load(open(found, 'rb')))
"""

@pytest.mark.parametrize('at', (1, 2, 4))
def test_killed_in_the_middle(tmp_path, folder, computed, at):
    "At the first, second, last file: each is the old one or the new one; publishing again completes them."
    old = Published(tmp_path/'old')
    add_results(old, records(NODES[:1], computed))
    found = tmp_path/'records'
    found.write_bytes(pickle.dumps(records(NODES, computed)))
    p = subprocess.run([sys.executable, '-c', KILLED, tmp_path/'old', str(at), found], cwd=ROOT)
    assert p.returncode == -signal.SIGKILL
    whole = contents(folder)
    there = Published(tmp_path/'old')
    written = [name for name in ('layers', 'squared', 'states', 'total')][:at - 1]
    for name in written: assert (tmp_path/'old'/f'{name}.jsonl').read_bytes() == whole[f'{name}.jsonl']
    assert there.paths() == sorted({NODES[0].path} | {n.path for n in NODES if n.step.name in written})
    assert all_flaws(there) == []
    add_results(there, records(NODES, computed))
    assert {k: v for k,v in contents(tmp_path/'old').items() if not k.endswith('.part')} == whole


# ------------------------------------------------------------------ addresses

@pytest.mark.parametrize('node', NODES, ids=repr)
def test_an_expression_has_the_address_of_its_node(node):
    address = read_expression(expression(node), **left_out(node))
    assert address == (node.step.name, node.step.version, node.key, node.path)

@pytest.mark.parametrize('old,new', [
    ('x=3', 'x=5'), ('x=4', 'x=4.5'), ("'c0ffeec0ffee'", "'beefc0ffee12'"), ('n=4', 'n=5'), ('v0, v1', 'v1, v0'),
    ('Numbers', 'Figures'), ('total(', 'sum('), ('n=4', 'm=4'), ('[v0, v1]', '[v0]')])
def test_another_expression_is_another_address(computed, old, new):
    record = record_of(TOTAL, computed)
    changed = [line.replace(old, new) for line in record['expression']]
    assert changed != record['expression']
    assert flaws(TOTAL.path, record | dict(expression=changed))

@pytest.mark.parametrize('change', [
    dict(step='cube'), dict(version=1), dict(key='0'*20), dict(versions={'total': 1, 'squared': 1}), dict(versions={}),
    dict(versions=3), dict(sha256=[]), dict(sha256=['c0ffee'*10 + 'f00d']), dict(expression=[]), dict(expression='v0'),
    dict(expression=[3]), dict(expression=['v0 = 1 +']), dict(expression=['v0 = total(numbers=open(1))']),
    dict(expression=['import os']), dict(value={'a': [1, math.nan]}), dict(made={'seconds': math.inf})])
def test_a_flaw_is_found(computed, change):
    path = TOTAL.path
    record = record_of(TOTAL, computed)
    assert flaws(path, record) == []
    assert len(flaws(path, record | change)) == 1

@pytest.mark.parametrize('line', [
    'squared(3)', 'squared(4, x=3)', 'squared(x=3, **{})', 'squared(x=b"3")', 'squared(x=...)', 'squared(x=3)[x][y]',
    'squared(x=3).value', "squared(x=Numbers(sha256=''))", "squared(x=Numbers(sha256='c0ffee'))", '3', 'squared'])
def test_what_no_expression_prints(line):
    "What would be skipped or guessed is refused."
    with pytest.raises((ValueError, TypeError)):
        read_expression([f'v0 = {line}'], {'squared': 1}, ['c0ffee'*10 + 'beef'])

def test_what_is_missing_is_a_flaw(computed):
    "As in a record of another store."
    assert flaws(squared(3).path, computed.record(squared(3).path)) == [f"{squared(3).path} has no 'versions'"]

def test_nothing_is_evaluated(tmp_path):
    with pytest.raises(ValueError, match='no argument of a step'):
        read_expression([f"v0 = squared(x=open('{tmp_path}/made', 'w').close())"], {'squared': 1}, [])
    assert not (tmp_path/'made').exists()


# ------------------------------------------------------------------ what comes with the repository

HERE = Published(ROOT/'nbs/results')

def test_every_published_result_is_at_its_address():
    "All keys worked out again from the expressions, all numbers finite."
    assert len(HERE.paths()) > 3000
    assert all_flaws(HERE) == []

def test_published_files_are_as_publish_writes_them():
    "One line a result, sorted, each as `result_line` has it: publishing again would change no byte."
    for name, file in HERE.by_step().items():
        lines = Path(file[0]).read_text().splitlines()
        assert lines == [result_line(path, HERE.record(path)) for path in HERE.paths(name)]

def test_nothing_else_lies_there():
    assert {f.suffix for f in (ROOT/'nbs/results').iterdir()} == {'.jsonl'}


# ------------------------------------------------------------------ the command

def test_verify(folder, capsys):
    assert cli.main(['results', 'verify', '--in', str(folder)]) == 0
    assert f'{len(NODES)} results in {folder}: each at its address, every number finite' in capsys.readouterr().out

def test_verify_names_every_flaw(folder, capsys):
    damage(folder, lambda b: b.replace(b'squared(x=3)', b'squared(x=30)').replace(b'squared(x=4)', b'squared(x=40)'))
    assert cli.main(['results', 'verify', '--in', str(folder)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2
    assert {line.split(':')[0] for line in out} == {squared(3).path, squared(4).path}

def test_verify_of_nothing(tmp_path, capsys):
    assert cli.main(['results', 'verify', '--in', str(tmp_path)]) == 1
    assert f'no published results in {tmp_path}' in capsys.readouterr().err

def test_unused(folder, capsys, monkeypatch):
    "What no figure asks for; at scale smoke alone, all scales take a minute."
    monkeypatch.setattr(cli, 'SCALES', ('smoke',))
    assert cli.main(['results', 'unused', '--in', str(folder)]) == 0
    assert capsys.readouterr().out.split() == Published(folder).paths()
