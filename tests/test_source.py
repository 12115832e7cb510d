"""One name, one thing: what made a result is remembered, and two things of one name are told apart."""
import importlib, subprocess, sys, textwrap, time, warnings

import pytest, torch
from conftest import ROOT
from torch import nn
from lth_nb.data import mnist1d
from lth_nb.experiment import OtherSource, Store, close_pools, compute, step, table
from lth_nb.experiment import origin
from lth_nb.experiment.call import Checkpoint, Shelf, Stopped
from lth_nb.engine.admission import draws_in_training
from lth_nb.engine.layers import unstackable
from lth_nb.networks import counts, register, small_dense
from lth_nb.source import changes, source_of
from lth_nb.training import Recipe, evaluate, init, line, train

pytestmark = pytest.mark.usefixtures('on_cpu')
toy = mnist1d(train=256, test=128)
SHORT = Recipe(6, batch=32, lr=.1)


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch): monkeypatch.setattr(origin, '_told', set())


def run(x, store, **how):
    "Its value, and what was said."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        value = compute(x, store=store, quiet=True, **{'workers': 1, **how})
    return value, [str(w.message) for w in caught if w.category is OtherSource]


def module(folder, name, text, monkeypatch):
    "A module of the reader's own."
    (folder/f'{name}.py').write_text(textwrap.dedent(text))
    if str(folder) not in sys.path: monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    return importlib.import_module(name)


def edited(made, text):
    "The module, loaded again with other text: by its time, Python may have compiled it already."
    with open(made.__file__, 'w') as f: f.write(textwrap.dedent(text))
    sys.dont_write_bytecode, kept = True, sys.dont_write_bytecode
    try: return importlib.reload(made)
    finally: sys.dont_write_bytecode = kept


def script(folder, text, name='script.py'):
    "What a script prints, and what it says on its error stream."
    (folder/name).write_text(textwrap.dedent(text))
    command = [sys.executable, '-W', 'always::UserWarning', name]
    env = dict(PATH='/usr/bin:/bin', PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', LTH_NB_DEVICE='cpu',
               LTH_NB_PUBLISHED='none', HOME=str(folder))
    r = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env)
    assert r.returncode == 0, r.stderr[-3000:]
    return r.stdout.split('\n')[:-1], r.stderr


# ------------------------------------------------------------------ networks

def net_of(layer):
    def build(width, classes, residual): return nn.Sequential(nn.Flatten(), nn.Linear(40, width), layer(),
                                                              nn.Linear(width, classes))
    return build

def relu_net(width, classes, residual):
    n = round(width)
    return nn.Sequential(nn.Flatten(), nn.Linear(40, n), nn.ReLU(), nn.Linear(n, classes))

def tanh_net(width, classes, residual):
    return nn.Sequential(nn.Flatten(), nn.Linear(40, round(width)), nn.Tanh(), nn.Linear(round(width), classes))

def known_as(name, build): return register(name, build, (1, 40), width=16)

def measured(network):
    "An evaluation and a line, neither of which trains: only the kept module could be wrong."
    states = [init(network, seed=seed) for seed in (0, 1)]
    return [evaluate(states[0], toy), line(*states, toy, alphas=3)]


@pytest.mark.parametrize('workers', (1, 2))
def test_a_name_that_is_registered_anew_is_another_network(tmp_path, workers):
    "In a fresh store, in this process and in workers that have seen the first: the number is the second's."
    right = [run(measured(known_as(name, build)), Store(tmp_path/name))[0]
             for name, build in (('only_relu', relu_net), ('only_tanh', tanh_net))]
    assert right[0] != right[1]
    for turn, (build, wanted) in enumerate([(relu_net, right[0]), (tanh_net, right[1]), (relu_net, right[0])]):
        value, said = run(measured(known_as('mine', build)), Store(tmp_path/f'{turn}'), workers=workers)
        assert value == wanted and not said


@pytest.mark.parametrize('builds', [(relu_net, tanh_net), (net_of(nn.ReLU), net_of(nn.Tanh)),
    (lambda w, c, r: relu_net(w, c, r), lambda w, c, r: tanh_net(w, c, r))], ids=['functions', 'closures', 'lambdas'])
def test_results_of_an_earlier_network_say_so(store, builds):
    "Once; in another store there is nothing to say, and nothing when the first is back."
    first, said = run(measured(known_as('mine', builds[0])), store)
    assert not said
    again, said = run(measured(known_as('mine', builds[0])), store)
    assert again == first and not said
    again, said = run(measured(known_as('mine', builds[1])), store)
    assert again == first and len(said) == 1 and 'another network mine' in said[0] and 'under another name' in said[0]
    assert run(measured(known_as('mine', builds[1])), store)[1] == []


def test_what_was_computed_of_an_earlier_network_is_not_kept(store):
    assert counts(known_as('mine', lambda width, classes, residual: nn.Linear(40, classes)))[0] == 41*10
    mine = known_as('mine', relu_net)
    assert counts(mine)[0] == 41*16 + 17*10
    assert mine.prunable == ('1.weight', '3.weight')
    assert small_dense(mine, .5).width < 16


class Head(nn.Linear): pass

def head_net(width, classes, residual): return nn.Sequential(nn.Flatten(), Head(40, classes))

def test_what_the_engine_knows_of_a_network_is_not_kept(monkeypatch):
    "Whether it draws, whether it can be admitted and stacked: asked again when a class in it is edited."
    mine = known_as('asked', head_net)
    assert draws_in_training(mine) is None and unstackable(mine)
    class Head(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.layer = nn.Linear(inputs, outputs)
            self.noise = nn.Dropout(.5)
        def forward(self, x): return self.noise(self.layer(x))
    monkeypatch.setitem(globals(), 'Head', Head)
    assert 'Dropout' in draws_in_training(mine)
    monkeypatch.setitem(globals(), 'Head', nn.Linear)
    assert draws_in_training(mine) is None and unstackable(mine) is None


def test_a_class_in_a_network_is_edited(tmp_path, monkeypatch):
    "The function that builds it stays the same, and is not registered again."
    mine = known_as('with_head', head_net)
    first, _ = run(measured(mine), Store(tmp_path/'0'))
    class Head(nn.Linear):
        def forward(self, x): return super().forward(x.abs())
    monkeypatch.setitem(globals(), 'Head', Head)
    other, said = run(measured(mine), Store(tmp_path/'1'))
    assert other != first and not said
    again, said = run(measured(mine), Store(tmp_path/'0'))
    assert again == first and len(said) == 1 and 'Head has changed' in said[0]
    assert run(measured(mine), Store(tmp_path/'2'))[0] == other


# ------------------------------------------------------------------ steps of one's own

BASE = '''
    from lth_nb.experiment import step
    K = 3

    class Shift:
        by = 1
        def __call__(self, x): return x + self.by

    def inner(x): return 2*x

    def helper(x): return inner(x) + K

    table = dict(inner=inner, more=[10])

    @step
    def result(x, start=0):
        """What it is."""
        return helper(x) + Shift()(start) + table['more'][0]
    '''

CHANGES = dict(itself=('return helper(x)', 'return 5 + helper(x)', 'result has changed'),
    helper=('inner(x) + K', 'inner(x) - K', 'helper has changed'),
    deeper=('return 2*x', 'return 4*x', 'inner has changed'),
    constant=('K = 3', 'K = 4', 'K was 3 and is 4'),
    default=('start=0', 'start=7', 'start in result was 0 and is 7'),
    method=('x + self.by', 'x - self.by', 'Shift.__call__ has changed'),
    of_a_class=('by = 1', 'by = 2', 'Shift.by was 1 and is 2'),
    lists=('more=[10]', 'more=[20]', "table['more'] was list(10) and is list(20)"))

@pytest.mark.parametrize('change', CHANGES)
def test_an_edited_step_says_so(tmp_path, monkeypatch, change):
    "Whatever of it has changed: the old result is given, once with a warning, and with `version` there is a new one."
    old, new, words = CHANGES[change]
    made = module(tmp_path, f'mine_{change}', BASE.replace('result', f'result_{change}'), monkeypatch)
    a_step = getattr(made, f'result_{change}')
    store = Store(tmp_path/'r')
    value, said = run([a_step(1), a_step(2)], store)
    assert not said and run([a_step(1), a_step(2)], store) == (value, [])
    text = BASE.replace(old, new).replace('result', f'result_{change}')
    made = edited(made, text)
    a_step = getattr(made, f'result_{change}')
    again, said = run([a_step(1), a_step(2)], store)
    assert again == value and len(said) == 1
    assert words.replace('result', f'result_{change}') in said[0] and 'raise the version' in said[0], said
    assert f"store.remove('{a_step(1).path}')" in said[0]
    assert run([a_step(1), a_step(2)], store) == (value, [])
    store.remove(a_step(1).path)
    assert run(a_step(1), store)[0] == a_step.fn(1) != value[0]
    made = edited(made, text.replace('@step', '@step(version=2)'))
    assert run(getattr(made, f'result_{change}')(2), store) == (a_step.fn(2), [])


@pytest.mark.parametrize('old,new', [('K = 3', '# a comment\n    K = 3'), ('"""What it is."""', '"More."'),
    ('(x, start=0):', '(x:int, start:int=0)->int:'), ('return inner(x) + K', 'return (inner(x) +\n        K) # so'),
    ('@step', '@step(size=None)')], ids=['comment', 'docstring', 'annotations', 'layout', 'decorator'])
def test_what_changes_nothing_is_not_said(tmp_path, monkeypatch, old, new):
    name = f'quiet_{abs(hash((old, new)))}'
    made = module(tmp_path, name, BASE.replace('result', name), monkeypatch)
    store = Store(tmp_path/'r')
    value, said = run(getattr(made, name)(1), store)
    made = edited(made, BASE.replace('result', name).replace(old, new))
    assert run(getattr(made, name)(1), store) == (value, said) == (value, [])


def test_a_result_says_so_through_those_that_need_it(tmp_path, monkeypatch):
    "A library's number of an edited step's state; and an edited observer on the way."
    text = '''
        from lth_nb.experiment import step
        @step
        def shrunk(state): return {**state, 'weights': {name: .5*w for name, w in state['weights'].items()}}
        @step
        def size_of(state): return sum(float(w.abs().sum()) for w in state['weights'].values())
        '''
    made = module(tmp_path, 'shrinking', text, monkeypatch)
    mine = known_as('shrunken', relu_net)
    trained = train(init(mine, seed=0), toy, SHORT)
    def wanted(made): return [evaluate(made.shrunk(trained.at(2)), toy), trained.watch([1, 3], made.size_of)]
    store = Store(tmp_path/'r')
    value, said = run(wanted(made), store)
    assert not said
    made = edited(made, text.replace('.5*w', '.25*w').replace('w.abs()', 'w.square()'))
    again, said = run(wanted(made), store)
    assert again == value and len(said) == 2
    assert 'evaluate' in said[0] and 'shrunk has changed' in said[0] and 'size_of has changed' in said[1]


def test_steps_without_source_and_results_without_digest(store):
    "Neither is an error, and neither says anything."
    def define(text):
        scope = dict(step=step)
        exec(text, scope)
        return scope['from_nowhere']
    first = define('@step\ndef from_nowhere(x): return x + 1')
    assert first.made_of() == {} and run(first(1), store) == (2, [])
    with pytest.raises(ValueError, match='version=2'): module_step()
    old = known(1)
    store.write(old.path, 17, step='known', version=1, key=old.key)
    assert run(old, store) == (17, [])
    assert 'source' not in store.record(old.path) and 'source' not in table(store).columns

def module_step():
    @step
    def from_nowhere(x): return x + 2

@step
def known(x): return x


def test_a_digest_is_the_same_everywhere():
    "In every version of Python: this one is written down."
    assert source_of(relu_net) == {'relu_net': '7f5c3fbf74e7'}


def test_what_a_function_counts_is_no_constant(store):
    "A list to which it appends, a number that it counts up, a dict that it fills."
    assert source_of(counting).keys() == {'counting'}
    value, said = run([counting_step(1), counting_step(2)], store)
    assert run([counting_step(1), counting_step(2)], store) == (value, said) == ([2, 4], [])

ASKED = []
N = 0
CACHE = {}

def counting(x):
    global N
    N += 1
    ASKED.append(x)
    CACHE[x] = 2*x
    return CACHE[x]

@step
def counting_step(x): return counting(x)


# ------------------------------------------------------------------ two of one name

def test_two_functions_of_one_name_are_refused(tmp_path, monkeypatch):
    "With the remedy; both remedies work. The second is not made."
    one = '''
        from lth_nb.experiment import step
        @step
        def shared(x): return x
        '''
    module(tmp_path, 'here', one, monkeypatch)
    there = one.replace('return x', 'return x + 1')
    with pytest.raises(ValueError, match=r'here\.shared and there\.shared.*rename one.*@step\(version=2\)'):
        module(tmp_path, 'there', there, monkeypatch)
    module(tmp_path, 'there2', there.replace('@step', '@step(version=2)'), monkeypatch)
    module(tmp_path, 'there3', there.replace('shared', 'unshared'), monkeypatch)


def test_one_function_in_two_places_is_one(tmp_path, monkeypatch):
    "A module imported under two names, a copy of a helper file, and loading it again."
    for name in ('copy_one', 'copy_two'):
        made = module(tmp_path, name, BASE.replace('result', 'copied'), monkeypatch)
        assert importlib.reload(made).copied(1).key == made.copied(1).key


def test_a_function_made_twice_is_refused():
    "Its numbers inside are not part of the address."
    def maker(by):
        @step
        def moved(x): return x + by
        return moved
    assert maker(1)(5).key == maker(1)(5).key
    with pytest.raises(ValueError, match=r'moved.*made twice \(by in moved was 1 and is 2\).*an argument'): maker(2)


@pytest.mark.parametrize('name', ('evaluate', 'prune', 'correlation', 'portrait'))
@pytest.mark.parametrize('version', (1, 9))
def test_names_of_the_library_are_taken(tmp_path, monkeypatch, name, version):
    "Whether its module has been imported or not, and in any version."
    text = f'''
        from lth_nb.experiment import step
        @step(version={version})
        def {name}(state, data): return 0
        '''
    with pytest.raises(ValueError, match=f'{name}: lth_nb.* has a step of this name.*my_{name}'):
        module(tmp_path, f'taking_{name}_{version}', text, monkeypatch)


def test_two_definitions_in_one_computation_are_refused(tmp_path, monkeypatch, store):
    text = '''
        from lth_nb.experiment import step
        @step
        def twofold(x): return x
        '''
    made = module(tmp_path, 'twofold_module', text, monkeypatch)
    before = made.twofold(1)
    after = edited(made, text.replace('return x', 'return x + 1')).twofold(1)
    with pytest.raises(ValueError, match='twofold.*two functions.*make all nodes anew'): run([before, after], store)
    with pytest.raises(ValueError, match='two functions'): run({'a': [before], 'b': known(after)}, store)
    assert not store.paths()


# ------------------------------------------------------------------ notebooks, scripts, workers

CELLS = '''
    import tempfile, warnings
    from IPython.core.interactiveshell import InteractiveShell
    warnings.simplefilter('ignore', UserWarning)
    shell = InteractiveShell.instance()
    def cell(text):
        result = shell.run_cell(text)
        result.raise_error()
    def show(text): cell(f'print(value({text}))')
    cell("""
    import warnings
    from lth_nb.experiment import OtherSource, Store, compute, step
    store = Store('r')
    def value(x, **how):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            found = compute(x, store=store, quiet=True, **{'workers': 1, **how})
        return found, [str(w.message).split(': ')[1].split('. ')[0] for w in caught if w.category is OtherSource]
    """)
    cell('K = 1')
    first = '@step\\ndef cube(x): return K*x**3'
    cell(first); show('cube(2)')
    cell(first); show('cube(2)')
    cell('# said\\n@step\\ndef cube(x): # more\\n    return K*x**3'); show('cube(2)')
    cell('@step\\ndef cube(x): return K*x**3 + 1'); show('cube(2)')
    show('[cube(2), cube(3)]')
    cell('K = 5'); show('cube(2)')
    cell('store = Store("w")'); show('[cube(2), cube(3)], workers=2')
    show('[cube(2), cube(3)]')
    cell('@step\\ndef cube(x): return K*x**3 + 2'); cell('store = Store("w2")')
    show('[cube(2), cube(3)], workers=2')
    '''

def test_cells(tmp_path):
    "Run again, commented, edited; and what worker processes make of a cell is known to be of that cell."
    lines, _ = script(tmp_path, CELLS)
    assert lines == ["(8, [])", "(8, [])", "(8, [])", "(8, ['cube has changed'])", "([8, 28], [])",
                     "(8, ['K was 1 and is 5, cube has changed'])", "([41, 136], [])", "([41, 136], [])",
                     "([42, 137], [])"]


SCRIPT = '''
    from torch import nn
    from lth_nb.data import mnist1d
    from lth_nb.experiment import Store, compute, step
    from lth_nb.networks import register
    from lth_nb.training import evaluate, init
    mine = register('of_a_script', lambda width, classes, residual: nn.Sequential(
        nn.Flatten(), nn.Linear(40, width), nn.ReLU(), nn.Linear(width, classes)), (1, 40), width=16)
    @step
    def halved(state): return {**state, 'weights': {name: w/2 for name, w in state['weights'].items()}}
    wanted = [evaluate(halved(init(mine, seed=i)), mnist1d(train=64, test=64)) for i in (0, 1)]
    store = Store('r')
    print(compute(wanted, store=store, workers=2, quiet=True))
    for path in store.paths(): print(sorted(store.record(path)['source']))
    '''

def test_a_script_and_its_workers(tmp_path):
    "What workers store says the same as what this process would, and the next run of the script is silent or not."
    first, said = script(tmp_path, SCRIPT)
    assert 'OtherSource' not in said
    assert first[1:] == ["['network of_a_script', 'step halved (version 1)']"]*4
    assert script(tmp_path, SCRIPT.replace("store = ", "store =   ") + '# more') == (first, said)
    again, said = script(tmp_path, SCRIPT.replace('w/2', 'w/3').replace('nn.ReLU', 'nn.Tanh'))
    assert again == first
    assert said.count('OtherSource: ') == 2
    assert 'another step halved (version 1): halved has changed' in said
    assert 'another network of_a_script' in said


def test_a_worker_that_imported_an_earlier_source(tmp_path, monkeypatch):
    "It does not go on with what it has: the error says what to do, and then it is right."
    text = '''
        from lth_nb.experiment import step
        @step
        def imported(x): return 10*x
        @step
        def after(x): return x + 1
        '''
    monkeypatch.setenv('PYTHONPATH', str(tmp_path), prepend=':')
    made = module(tmp_path, 'worked', text, monkeypatch)
    close_pools()
    assert run([made.imported(i) for i in (1, 2)], Store(tmp_path/'a'), workers=2) == ([10, 20], [])
    made = edited(made, text.replace('10*x', '11*x'))
    with pytest.raises(Exception, match=r'imported an.*close_pools\(\)'):
        run([made.imported(i) for i in (1, 2)], Store(tmp_path/'b'), workers=2)
    left = [Store(tmp_path/'b').read(path) for path in Store(tmp_path/'b').paths()]
    assert set(left) <= {11, 22}, 'nothing of the old source; a worker that had not begun to import has the new one'
    close_pools()
    assert run([made.imported(i) for i in (1, 2)], Store(tmp_path/'b'), workers=2) == ([11, 22], [])
    value, said = run([made.after(made.imported(i)) for i in (1, 2)], Store(tmp_path/'a'), workers=2)
    assert value == [11, 21] and len(said) == 1 and 'imported has changed' in said[0], 'said here, too'
    close_pools()


# ------------------------------------------------------------------ going on

def test_a_run_does_not_go_on_from_another_networks_states(tmp_path):
    "Neither from a stored state nor from a checkpoint: the end is that of a run of the second network alone."
    wanted = run(train(init(known_as('going', tanh_net), seed=0), toy, SHORT).at('end'), Store(tmp_path/'0'))[0]
    store = Store(tmp_path/'1')
    first = train(init(known_as('going', relu_net), seed=0), toy, SHORT)
    kept, _ = run(first.at(3), store)
    Checkpoint(first.node, store).write(dict(state=kept, seen={}))
    again, said = run(train(init(known_as('going', tanh_net), seed=0), toy, SHORT).at('end'), store)
    assert all(torch.equal(again['weights'][name], w) for name, w in wanted['weights'].items())


def test_a_checkpoint_of_other_source_is_dropped(tmp_path, monkeypatch, store):
    text = '''
        from lth_nb.experiment import step
        @step(many=True)
        def slow(start, items, shelf):
            at = shelf.resume() or start
            for i in range(at, 10): shelf.pause(lambda: i)
            for item in items: shelf.save(item, at)
            shelf.done()
        '''
    made = module(tmp_path, 'slowly', text, monkeypatch)
    late = Shelf(made.slow(0), store, deadline=0)
    with pytest.raises(Stopped): late.pause(lambda: 7)
    assert Shelf(made.slow(0), store).resume() == 7
    made = edited(made, text.replace('range(at, 10)', 'range(at, 11)'))
    assert Shelf(made.slow(0), store).resume() is None
    assert run(made.slow(0)['a'], store) == (0, [])


# ------------------------------------------------------------------ what stays as it was

def test_published_results_say_nothing():
    "Results of the library, whatever has become of its source."
    from lth_nb.figures.linear_mode_connectivity.rows import cases
    from lth_nb.experiment import default_store, nodes_in
    from lth_nb.cli import figures
    store = default_store(published=str(ROOT/'nbs/results'))
    figure = next(f for f in figures() if f.id.startswith('linear_mode_connectivity/'))
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter('error', OtherSource)
        values = figure.values('quick', store=store, stored=True)
    assert cases('quick') and values and time.process_time() - began < 60
    assert all(origin.makers(node) == [] for node in nodes_in(figure.nodes('quick')))


def test_results_of_other_source_are_told_apart_in_a_table(tmp_path, monkeypatch, store):
    text = '''
        from lth_nb.experiment import step
        @step
        def tabled(x): return dict(x=x)
        '''
    made = module(tmp_path, 'tables', text, monkeypatch)
    run([made.tabled(1), made.tabled(2)], store)
    made = edited(made, text.replace('x=x', 'x=x + 1'))
    run(made.tabled(3), store)
    assert sorted(table(store)['source'].value_counts()) == [1, 2]


def test_changes_in_words():
    assert changes({'f': '1', 'K': '= 3', 'gone': '1'}, {'f': '2', 'K': '= 4', 'new': '1'}) == [
        'f has changed', 'K was 3 and is 4']
