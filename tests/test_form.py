"""The form of the notebooks: prose that the eye takes in at once, small exported cells, each tried at once.
Code is held by ruff."""
import ast
import itertools
import json
import re
import statistics

import pytest
from conftest import ROOT, notebooks

WIDTH = 120 # Characters of a line, as ruff has it in pyproject.toml
CELL = 40 # Lines of an exported cell, at most
MEDIAN = 12 # Lines of an exported cell, in the middle


def _cells(kind):
    "(where it stands, lines) of every cell of a kind."
    for file in notebooks():
        for i, cell in enumerate(json.loads(file.read_text())['cells']):
            where = f'{file.relative_to(ROOT/"nbs")}, cell {i}'
            if cell['cell_type'] == kind: yield where, ''.join(cell['source']).split('\n')


def _is_exported(lines): return any(re.match(r'#\|\s*exports?i?\b', line) for line in lines)


def _exported():
    "{where: lines without directives} of the exported cells."
    return {where: sum(not line.startswith('#|') for line in lines)
            for where, lines in _cells('code') if _is_exported(lines)}


def _width(line):
    "Of a line of Markdown: 0 for what must not break, and without what cannot."
    if line.startswith(('|', '$$')): return 0
    return len(re.sub(r'\$[^$]+\$', '$', re.sub(r'\]\([^)]*\)', ']', line)))


def test_prose_is_not_wide():
    wide = [(where, line[:80]) for where, lines in _cells('markdown') for line in lines if _width(line) > WIDTH]
    assert not wide, f'{len(wide)} lines of Markdown are over {WIDTH} characters: {wide[:20]}'


def test_exported_cells_are_small():
    sizes = _exported()
    large = {where: n for where, n in sizes.items() if n > CELL}
    assert not large, f'split them: {large}'
    assert statistics.median(sizes.values()) <= MEDIAN


def _defined(lines):
    """Names by which what a cell defines can be tried; none if it has no `def` and no `class` at column 0.
    They are what it defines and assigns there, and `f` of `@f.register`: who is registered is called through `f`."""
    body = ast.parse('\n'.join(lines)).body
    definitions = [node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    if not definitions: return set()
    assigned = [name for node in body if isinstance(node, ast.Assign | ast.AnnAssign) for name in ast.walk(node)]
    calls = [part for node in definitions for decorator in node.decorator_list for part in ast.walk(decorator)]
    registers = [part.value for part in calls if isinstance(part, ast.Attribute) and part.attr == 'register']
    return {node.name for node in definitions} | {register.id for register in registers} | {
        name.id for name in assigned if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}


def _used(lines):
    "Names that a cell reads, not those in its strings and comments."
    names = [node for node in ast.walk(ast.parse('\n'.join(lines))) if isinstance(node, ast.Name)]
    return {name.id for name in names if isinstance(name.ctx, ast.Load)}


def _untried(cells):
    "Where a cell stands that defines something and has no trial, and what it defines. Cells: (where, lines)."
    for (where, lines), (_, after) in itertools.pairwise([*cells, ('', [])]):
        names = _defined(lines) if _is_exported(lines) else set()
        if names and (_is_exported(after) or not names & _used(after)): yield where, sorted(names)


def test_what_is_exported_is_tried_at_once():
    """The code cell after an exported cell with a `def` or `class` is not exported, and reads a name that was defined.
    Markdown may stand between. A name in a string, in a comment or assigned to is not read. A constant of the cell will
    do (a figure that draws with the cell's functions), and for a function that is registered with another the other:
    `_defined` says which names count. One of them is enough, so that a small helper is tried with whom it helps."""
    files = itertools.groupby(_cells('code'), lambda cell: cell[0].split(', cell ')[0])
    untried = [found for _, cells in files for found in _untried(cells)]
    assert not untried, f'no trial follows at once: {untried}'


EXPORTED = '#| export\n'
DOUBLE = EXPORTED + 'def double(x): return 2*x'


@pytest.mark.parametrize('cells', [
    [DOUBLE],
    [DOUBLE, EXPORTED + 'four = double(2)'],
    [DOUBLE, 'print("double")   # double', 'double(2)'],
    [DOUBLE, 'double = None'],
    [EXPORTED + 'class Double:\n    by = 2', 'by'],
    [EXPORTED + '@written.cache\ndef _one(x): return x', 'written(2)'],
])
def test_a_missing_trial_is_seen(cells):
    lines = [(i, cell.split('\n')) for i, cell in enumerate(cells)]
    assert len(list(_untried(lines))) == 1


@pytest.mark.parametrize('cells', [
    [DOUBLE, 'double(2)'],
    [EXPORTED + 'FOUR = 4'],
    [EXPORTED + 'TABLE = {}\ndef _fill(): pass', 'TABLE'],
    [EXPORTED + '@written.register(int)\ndef _int(x): return x', 'written(2)'],
])
def test_a_trial_is_seen(cells):
    assert not list(_untried([(i, cell.split('\n')) for i, cell in enumerate(cells)]))
