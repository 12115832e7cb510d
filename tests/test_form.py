"""The form of the notebooks: prose that the eye takes in at once, small exported cells. Code is held by ruff."""
import json
import re
import statistics

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


def _exported():
    "{where: lines without directives} of the exported cells."
    found = {}
    for where, lines in _cells('code'):
        options = [line for line in lines if line.startswith('#|')]
        if any(re.match(r'#\|\s*exports?i?\b', option) for option in options): found[where] = len(lines) - len(options)
    return found


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
