"""The site as a reader gets it: built from a copy of the project, without Quarto; all pages there, all links alive."""
import base64
import json
import os
import re
import subprocess
import sys
from collections import Counter

import pytest
import yaml
from conftest import ROOT, working_copy
from lth_nb.rooms import CHAPTERS, ROOMS

CHAPTER = ROOT/'nbs/02_linear_mode_connectivity.ipynb'
ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'agg'}
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)


def _site(cwd, *args, package=None, **env):
    env = {**ENV, 'PYTHONPATH': str(package or cwd), **env}
    command = [sys.executable, '-m', 'lth_nb.site', *args]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "What git would clone, at another place, without the published results."
    to = tmp_path_factory.mktemp('site')/'lth_nb'
    return working_copy(to, 'nbs/results/', 'benchmarks/')


@pytest.fixture(scope='module')
def site(copy):
    folders = ENV['PATH'].split(os.pathsep)
    path = os.pathsep.join(p for p in folders if not os.path.exists(os.path.join(p, 'quarto')))
    r = _site(copy, 'docs', PATH=path)
    assert r.returncode == 0, r.stdout[-2000:] + r.stderr[-4000:]
    return copy/'_docs'


def _page(notebook):
    "Where a notebook's page is in the site: its path, without the number."
    return notebook.relative_to(ROOT/'nbs').with_name(re.sub(r'^\d+[a-z]?_', '', notebook.stem) + '.html')


def _paths(entries):
    "All notebooks that a part of the navigation names."
    for entry in entries:
        if isinstance(entry, str): entry = dict(href=entry)
        if 'href' in entry: yield entry['href']
        yield from _paths(entry.get('contents', []))


@pytest.fixture(scope='module')
def navigation(): return yaml.safe_load((ROOT/'_quarto.yml').read_text())['website']


def test_pages_have_names_of_their_own():
    twice = [str(page) for page, n in Counter(map(_page, NOTEBOOKS)).items() if n > 1]
    assert not twice, f'two notebooks would become {twice}'


def test_the_sidebar_names_every_notebook(navigation):
    named = list(_paths(navigation['sidebar']['contents']))
    assert sorted(named) == sorted(p.relative_to(ROOT/'nbs').as_posix() for p in NOTEBOOKS)


def test_the_menu_has_one_entry_a_room(navigation):
    library = next(entry for entry in navigation['navbar']['left'] if entry['text'] == 'Library')
    rooms = [path.split('/')[1].removesuffix('.ipynb') for path in _paths(library['menu']) if path.startswith('lib/')]
    assert sorted(rooms) == sorted({'rooms', *ROOMS} - set(CHAPTERS))


def test_every_notebook_has_a_page_in_the_sidebar(site):
    index = (site/'index.html').read_text()
    for page in map(_page, NOTEBOOKS):
        assert (site/page).is_file(), page
        assert re.search(rf'href="(\./)?{re.escape(page.as_posix())}"', index), f'{page} is not in the navigation'


def test_links_are_alive(site):
    from lth_nb.site import dead_links
    assert dead_links(site) == []
    assert len(re.findall(r'href="', (site/'linear_mode_connectivity.html').read_text())) > 20


def test_pages_need_no_network(site):
    "No script, style sheet, font or picture from elsewhere."
    loaded = re.compile(r'<(?:script|img|iframe)[^>]*\ssrc="(?:https?:)?//[^"]*'
        r'|<link[^>]*rel="stylesheet"[^>]*href="(?:https?:)?//[^"]*')
    for f in site.rglob('*.html'):
        away = loaded.findall(f.read_text())
        assert not away, f'{f.name}: {away[:3]}'
    for f in site.rglob('*.css'):
        away = re.findall(r'@import[^;]*//[^;]*|url\([\'"]?(?:https?:)?//[^)]*', f.read_text())
        assert not away, f'{f.name}: {away[:3]}'


def test_no_markup_is_left(site):
    "Callouts, labels, maths and cell options were understood, not printed."
    for f in site.rglob('*.html'):
        text = re.sub(r'<(pre|code|script|style)\b.*?</\1>', '', f.read_text(), flags=re.S)
        for raw in (':::', '{#eq-', '$$', '\\(', '#|', '[@', '\x00'):
            at = text.find(raw)
            assert at < 0, f'{f.name}: {raw!r} is printed: ...{text[max(0, at - 80):at + 80]}...'
    chapter = (site/'linear_mode_connectivity.html').read_text()
    assert 'callout-note' in chapter
    assert '<math' in chapter


INLINE = re.compile(r'src="data:image/(?:png|svg\+xml);base64,([^"]+)"')


def _pictures(notebook):
    cells = json.loads(notebook.read_text())['cells']
    data = [output.get('data', {}) for cell in cells for output in cell.get('outputs', [])]
    found = [''.join(d['image/png']) for d in data if 'image/png' in d]
    for d in data: found += INLINE.findall(''.join(d.get('text/html', '')))
    return [base64.b64decode(image) for image in found]


def test_figures_of_the_chapter_are_inline(site):
    saved = _pictures(CHAPTER)
    assert len(saved) >= 8, f'{len(saved)} figures are saved: python -m lth_nb.site refresh nbs/{CHAPTER.name}'
    page = (site/'linear_mode_connectivity.html').read_text()
    shown = {base64.b64decode(image) for image in INLINE.findall(page)}
    missing = [i for i, picture in enumerate(saved) if picture not in shown]
    assert not missing, f'figures {missing} of {len(saved)} are not on the page'


def test_figures_of_the_chapter_have_words_and_anchors(site):
    "Each image says what it shows; the verdicts link to figures that are there."
    page = (site/'linear_mode_connectivity.html').read_text()
    silent = [image[:80] for image in re.findall(r'<img [^>]*src="data:image/svg[^>]*>', page) if 'alt="' not in image]
    assert not silent, silent
    links = set(re.findall(r'<td[^>]*><a href="#([\w-]+)"', page))
    assert links >= {'figure-2', 'figure-3', 'table-2'}
    assert links <= set(re.findall(r'<(?:figure|div) id="([\w-]+)"', page))


def test_the_pages_explorer_moves(site):
    "The slider exchanges the line that is drawn, its words and its arrow; the page asks for nothing from elsewhere."
    pytest.importorskip('playwright.sync_api')
    from test_lab import CHROMIUM, FLAGS, playwright
    away = []
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        page = browser.new_page()
        page.on('request', lambda request: request.url.startswith('http') and away.append(request.url))
        page.goto((site/'linear_mode_connectivity.html').as_uri())
        slider = page.locator('input[type=range]').first
        box = page.locator('figure[id^=explorer]').first
        line = box.locator('path.part').nth(1)
        seen = [(line.get_attribute('d'), box.locator('[aria-live]').inner_text())]
        slider.press('ArrowRight')
        seen.append((line.get_attribute('d'), box.locator('[aria-live]').inner_text()))
        browser.close()
    assert 'k = 0,' in seen[0][1] and 'k = 0,' not in seen[1][1]
    assert seen[0][0] != seen[1][0]
    assert not away, away[:3]


def test_readme_is_in_step(copy):
    r = _site(copy, 'readme')
    assert r.returncode == 0, r.stderr
    assert (copy/'README.md').read_text() == (ROOT/'README.md').read_text(), 'run python -m lth_nb.site readme'
    for link in re.findall(r'\]\(([^)]+)\)', (copy/'README.md').read_text()):
        assert link.startswith('http') or (ROOT/link).exists(), f'README.md links to {link}'


@pytest.mark.parametrize('file', ['AGENTS.md', 'CONTRIBUTING.md'])
def test_links_of_the_guides_lead_somewhere(file):
    for link in re.findall(r'\]\(([^)]+)\)', (ROOT/file).read_text()):
        assert link.startswith('http') or (ROOT/link).exists(), f'{file} links to {link}'


def test_citations_are_in_the_bibliography():
    from lth_nb.site import labels
    keys = set(re.findall(r'^@\w+\{([^,]+),', (ROOT/'nbs/refs.bib').read_text(), re.M))
    for notebook in NOTEBOOKS:
        cells = json.loads(notebook.read_text())['cells']
        texts = [''.join(cell['source']) for cell in cells if cell['cell_type'] == 'markdown']
        used = set()
        for text in texts:
            brackets = re.findall(r'\[[^\[\]]*@[^\[\]]*\]', re.sub(r'`[^`]*`', '', text))
            used |= {key for bracket in brackets for key in re.findall(r'@([\w:-]*\w)', bracket)}
        unknown = used - keys - set(labels(texts))
        assert not unknown, f'{notebook.name}: {unknown} not in refs.bib'


def test_errors_are_one_line(tmp_path, copy):
    r = _site(tmp_path, 'docs', package=copy)
    assert r.returncode == 1
    assert 'pyproject.toml' in r.stderr
    assert 'Traceback' not in r.stderr
    r = _site(copy, 'demo', 'nbs/no_such.ipynb', str(tmp_path))
    assert r.returncode == 1
    assert 'no_such.ipynb' in r.stderr
    assert 'Traceback' not in r.stderr
    assert not list(tmp_path.iterdir())
