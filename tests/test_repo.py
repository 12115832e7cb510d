"""The repository is what it says: the library in step with the notebooks, the notebooks clean, imports light."""
import ast
import filecmp
import json
import os
import re
import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT, working_copy
from lth_nb.rooms import CHAPTERS, ROOMS

LIBRARY = ROOT/'lth_nb'
ABSENT = ('nbdev', 'execnb', 'fastcore', 'fastprogress', 'ipywidgets', 'IPython', 'jupyterlab', 'nbformat', 'nbclient',
          'pandas')


def _files(library=LIBRARY): return sorted(p.relative_to(library).as_posix() for p in library.rglob('*.py'))


def _name(file):
    "The module of a file; a package's face has the package's name."
    return '.'.join(['lth_nb', *file.removesuffix('.py').split('/')]).removesuffix('.__init__')


SOURCES = [f for f in _files() if f not in ('__init__.py', '_modidx.py')]


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "A copy of the working tree without what git ignores."
    to = tmp_path_factory.mktemp('repo')/'lth_nb'
    return working_copy(to, 'nbs/results/')


def _run(code, cwd):
    env = {**os.environ, 'PYTHONPATH': str(cwd)}
    r = subprocess.run([sys.executable, '-c', code], cwd=cwd, capture_output=True, text=True, env=env)
    assert r.returncode == 0, r.stderr[-3000:]


def test_library_is_in_step(copy):
    "Exporting all notebooks once more changes nothing, and no module is left of a notebook that has gone."
    _run('from nbdev.doclinks import nbdev_export as f; getattr(f, "__wrapped__", f)()', copy)
    assert _files() == _files(copy/'lth_nb')
    differ = [f for f in _files() if not filecmp.cmp(LIBRARY/f, copy/'lth_nb'/f, shallow=False)]
    assert not differ, f'run nbdev-export: {differ} are not what the notebooks say'


def test_every_module_has_its_notebook():
    for file in SOURCES:
        text = (LIBRARY/file).read_text()
        if not text: continue # the face of a room that offers nothing
        named = re.search(r'File to edit: (\S+\.ipynb)', text)
        assert named, f'{file} names no notebook'
        assert (LIBRARY/file).parent.joinpath(named[1]).is_file(), f'{file} is of {named[1]}, which is gone: remove it'


def test_notebooks_are_clean(copy):
    _run('from nbdev.clean import nbdev_clean as f; getattr(f, "__wrapped__", f)()', copy)
    books = [p.relative_to(copy) for p in (copy/'nbs').rglob('*.ipynb')]
    dirty = [str(p) for p in books if (copy/p).read_bytes() != (ROOT/p).read_bytes()]
    assert not dirty, f'run nbdev-clean: {dirty}'


def test_one_quarto_yml():
    link = ROOT/'nbs/_quarto.yml'
    assert link.is_symlink()
    assert os.readlink(link) == '../_quarto.yml'
    assert (ROOT/'_quarto.yml').is_file()


def test_an_installation_has_every_package():
    find_packages = pytest.importorskip('setuptools').find_packages
    include = tomllib.loads((ROOT/'pyproject.toml').read_text())['tool']['setuptools']['packages']['find']['include']
    packages = {_name(f) for f in _files() if f.endswith('__init__.py')}
    assert packages == set(find_packages(str(ROOT), include=include))
    homes = {_name(f).rpartition('.')[0] for f in SOURCES if not f.endswith('__init__.py')}
    assert homes <= packages, 'a folder has no face'


def test_imports_need_no_notebook_tools():
    "A bare machine with torch can run the library, whichever of its modules is imported first."
    _run(f"""
import importlib
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {ABSENT}: raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
for module in {[_name(f) for f in SOURCES]}:
    for name in [name for name in sys.modules if name.split('.')[0] == 'lth_nb']: del sys.modules[name]
    try: importlib.import_module(module)
    except Exception as e: raise ImportError(f'{{module}}, imported first: {{e!r}}') from e
""", ROOT)


def test_import_is_light():
    "Importing the library does not load torchvision, scipy.stats or pandas, and starts no CUDA."
    _run("import sys, lth_nb.linear_mode_connectivity; "
         "assert not {'torchvision', 'pandas', 'scipy.stats'} & set(sys.modules)", ROOT)


def _imports(file):
    "What a module imports of the library, at its head or inside a function: {(module in parts, without lth_nb; name)}."
    package = ['lth_nb', *file.split('/')[:-1]]
    out = set()
    for node in ast.walk(ast.parse((LIBRARY/file).read_text())):
        if isinstance(node, ast.Import):
            out |= {(tuple(a.name.split('.')[1:]), '') for a in node.names if a.name.startswith('lth_nb.')}
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) + 1 - node.level] if node.level else []
            module = tuple([*base, *(node.module.split('.') if node.module else [])])
            if module == ('lth_nb',): out |= {((a.name,), '') for a in node.names if a.name != '__version__'}
            elif module[0] == 'lth_nb': out |= {(module[1:], a.name) for a in node.names}
    return out


def _room(file): return file.removesuffix('.py').split('/')[0]


def _foreign(file): return {(module, name) for module, name in _imports(file) if module[0] != _room(file)}


def test_every_room_is_in_the_table():
    assert {_room(f) for f in SOURCES} == set(ROOMS)


def test_the_table_is_read_right():
    "Both kinds of import are seen, and those inside functions."
    assert 'training' in {module[0] for module, _ in _foreign('early_phase.py')}
    assert 'settings' in {module[0] for file in SOURCES if _room(file) == 'data' for module, _ in _foreign(file)}


@pytest.mark.parametrize('file', SOURCES)
def test_who_imports_whom(file):
    "A module uses the rooms that the table in nbs/lib/rooms.ipynb allows; figures of a chapter only their own method."
    used = {module[0] for module, _ in _foreign(file)}
    assert used <= set(ROOMS.get(_room(file), ())), f'{file} uses {sorted(used - set(ROOMS.get(_room(file), ())))}'
    if _room(file) == 'figures':
        own = file.removesuffix('.py').split('/')[1]
        assert used & set(CHAPTERS) <= {own}, f'{file} uses the method of another chapter'


@pytest.mark.parametrize('file', SOURCES)
def test_a_room_has_one_door(file):
    "From another room a module takes public names, at its face."
    private = sorted(name for _, name in _foreign(file) if name.startswith('_'))
    assert not private, f'{file} takes {private}, which belong to another room'
    inside = sorted('.'.join(module) for module, _ in _foreign(file) if len(module) > 1)
    assert not inside, f'{file} takes from {inside}: take it from the face'


def test_lint():
    r = subprocess.run([sys.executable, '-m', 'ruff', 'check', '.'], cwd=ROOT, capture_output=True, text=True)
    assert r.returncode == 0, r.stdout


def test_nothing_is_left_to_be_written():
    "No placeholder stands in a published page."
    for file in (ROOT/'nbs').rglob('*.ipynb'):
        for cell in json.loads(file.read_text())['cells']:
            text = ''.join(cell['source'])
            assert not re.search(r'\b(TODO|FIXME|INTRO|PROSE|TBD|XXX)\b', text), f'{file.name}: {text[:80]}'
