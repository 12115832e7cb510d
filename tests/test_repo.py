"""The repository is what it says: the library in step with the notebooks, the notebooks clean, imports light."""
import ast, filecmp, os, subprocess, sys

import pytest
from conftest import ROOT, working_copy
from lth_nb.cli import CHAPTERS


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "A copy of the working tree without what git ignores."
    to = tmp_path_factory.mktemp('repo')/'lth_nb'
    return working_copy(to, 'nbs/results/')


def _modules(root): return {p.relative_to(root/'lth_nb').as_posix() for p in (root/'lth_nb').rglob('*.py')}


def _run(code, cwd):
    r = subprocess.run([sys.executable, '-c', code], cwd=cwd, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(cwd)})
    assert r.returncode == 0, r.stderr[-3000:]


def test_library_is_in_step(copy):
    _run('from nbdev.export import nb_export; from nbdev.doclinks import nbdev_export; f = nbdev_export; getattr(f, "__wrapped__", f)()', copy)
    mine = _modules(ROOT)
    assert mine == _modules(copy)
    differ = [n for n in mine if not filecmp.cmp(ROOT/'lth_nb'/n, copy/'lth_nb'/n, shallow=False)]
    assert not differ, f'run nbdev-export: {differ} are not what the notebooks say'


def test_notebooks_are_clean(copy):
    _run('from nbdev.clean import nbdev_clean; f = nbdev_clean; getattr(f, "__wrapped__", f)()', copy)
    dirty = [p.relative_to(copy).as_posix() for p in (copy/'nbs').rglob('*.ipynb') if p.read_bytes() != (ROOT/p.relative_to(copy)).read_bytes()]
    assert not dirty, f'run nbdev-clean: {dirty}'


def test_one_quarto_yml():
    link = ROOT/'nbs/_quarto.yml'
    assert link.is_symlink() and os.readlink(link) == '../_quarto.yml' and (ROOT/'_quarto.yml').is_file()


@pytest.mark.parametrize('module', sorted(m.removesuffix('.py').removesuffix('/__init__').replace('/', '.') for m in _modules(ROOT)
    if m not in ('__init__.py', '_modidx.py') and not m.endswith('__main__.py')))
def test_imports_need_no_notebook_tools(module):
    "A bare machine with torch can run the library."
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {{'nbdev', 'execnb', 'fastcore', 'fastprogress', 'ipywidgets', 'IPython', 'jupyterlab', 'nbformat', 'nbclient', 'pandas'}}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import lth_nb.{module}
from lth_nb.experiment import compute, step, Store
"""
    _run(code, ROOT)


def test_import_is_light():
    "Importing the library does not load torchvision, scipy.stats or pandas, and starts no CUDA."
    _run("import sys, lth_nb.linear_mode_connectivity; assert not {'torchvision', 'pandas', 'scipy.stats'} & set(sys.modules)", ROOT)


def _imports(path):
    "The rooms of the library that a module imports from, at its head or inside a function, without its own."
    package = path.relative_to(ROOT).parent.parts
    out = set()
    for n in ast.walk(ast.parse(path.read_text())):
        if isinstance(n, ast.ImportFrom):
            base = package[:len(package) + 1 - n.level] if n.level else ()
            module = (*base, *(n.module or '').split('.')) if n.module else base
            if module == ('lth_nb',): out |= {a.name for a in n.names}
            elif module[0] == 'lth_nb': out.add(module[1])
        elif isinstance(n, ast.Import): out |= {a.name.split('.')[1] for a in n.names if a.name.startswith('lth_nb.')}
    return out - {'__version__', (*package, path.stem)[1]}


def test_who_imports_whom():
    "A chapter uses the foundations and no other chapter; the lowest foundations stand alone; steps know nothing of what they compute."
    by = {m.removesuffix('.py'): _imports(ROOT/'lth_nb'/m) for m in _modules(ROOT)}
    def room(name): return set().union(*(used for m, used in by.items() if m.split('/')[0] == name))
    assert 'training' in by['early_phase'] and 'measures' in by['weight_correlation']   # it sees both kinds of import
    assert not [m for m, used in by.items() if used & set(CHAPTERS) and not m.startswith('figures/')]
    assert not room('networks') | room('plotting') | room('settings')
    assert room('data') == {'settings'} and room('experiment') <= {'settings', 'running'}
    assert by['measures/tickets'] <= {'experiment', 'plotting'}                        # a table may come from anywhere


def test_lint():
    r = subprocess.run([sys.executable, '-m', 'ruff', 'check', '.'], cwd=ROOT, capture_output=True, text=True)
    assert r.returncode == 0, r.stdout


def test_nothing_is_left_to_be_written():
    "No placeholder stands in a published page."
    import json, re
    for p in (ROOT/'nbs').rglob('*.ipynb'):
        for c in json.loads(p.read_text())['cells']:
            text = ''.join(c['source'])
            assert not re.search(r'\b(TODO|FIXME|INTRO|PROSE|TBD|XXX)\b', text), f'{p.name}: {text[:80]}'
