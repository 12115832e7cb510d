"""The site as a reader gets it: built from a copy of the project, without Quarto, every page there and every link alive."""
import base64, json, os, re, subprocess, sys

import pytest
from conftest import ROOT, working_copy

CHAPTER = ROOT/'nbs/02_linear_mode_connectivity.ipynb'
ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'agg'}


def _site(cwd, *args):
    return subprocess.run([sys.executable, '-m', 'lth_nb.site', *args], cwd=cwd, env={**ENV, 'PYTHONPATH': str(cwd)}, capture_output=True, text=True)


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "What git would clone, at another place, without the published results."
    to = tmp_path_factory.mktemp('site')/'lth_nb'
    return working_copy(to, 'nbs/results/', 'benchmarks/')


@pytest.fixture(scope='module')
def site(copy):
    path = os.pathsep.join(p for p in ENV['PATH'].split(os.pathsep) if not os.path.exists(os.path.join(p, 'quarto')))
    r = subprocess.run([sys.executable, '-m', 'lth_nb.site', 'docs'], cwd=copy, env={**ENV, 'PATH': path, 'PYTHONPATH': str(copy)}, capture_output=True, text=True)
    assert r.returncode == 0, r.stdout[-2000:] + r.stderr[-4000:]
    return copy/'_docs'


def _pages():
    for nb in sorted((ROOT/'nbs').rglob('*.ipynb')):
        if '.ipynb_checkpoints' in nb.parts: continue
        yield nb, nb.relative_to(ROOT/'nbs').with_name(re.sub(r'^\d+[a-z]?_', '', nb.stem) + '.html')


def test_every_notebook_has_a_page_in_the_sidebar(site):
    index = (site/'index.html').read_text()
    for _, page in _pages():
        assert (site/page).is_file(), page
        assert f'href="{page.as_posix()}"' in index or f'href="./{page.as_posix()}"' in index, f'{page} is not in the navigation'


def test_links_are_alive(site):
    from lth_nb.site import dead_links
    assert dead_links(site) == []
    assert len(re.findall(r'href="', (site/'linear_mode_connectivity.html').read_text())) > 20


def test_pages_need_no_network(site):
    "No script, style sheet, font or picture from elsewhere."
    for f in site.rglob('*.html'):
        away = re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="(?:https?:)?//[^"]*|<link[^>]*rel="stylesheet"[^>]*href="(?:https?:)?//[^"]*', f.read_text())
        assert not away, f'{f.name}: {away[:3]}'
    for f in site.rglob('*.css'):
        away = re.findall(r'@import[^;]*//[^;]*|url\([\'"]?(?:https?:)?//[^)]*', f.read_text())
        assert not away, f'{f.name}: {away[:3]}'


def test_no_markup_is_left(site):
    "Callouts, labels, maths and cell options were understood, not printed."
    for f in site.rglob('*.html'):
        text = re.sub(r'<(pre|code|script|style)\b.*?</\1>', '', f.read_text(), flags=re.S)
        for raw in (':::', '{#eq-', '$$', '\\(', '#|', '[@', '\x00'):
            assert raw not in text, f'{f.name}: {raw!r} is printed: ...{text[max(0, text.find(raw) - 80):text.find(raw) + 80]}...'
    chapter = (site/'linear_mode_connectivity.html').read_text()
    assert 'callout-note' in chapter and '<math' in chapter


def test_figures_of_the_chapter_are_inline(site):
    saved = [o['data']['image/png'] for c in json.loads(CHAPTER.read_text())['cells'] for o in c.get('outputs', []) if 'image/png' in o.get('data', {})]
    assert len(saved) >= 8, f'{len(saved)} figures are saved in {CHAPTER.name}: python -m lth_nb.site refresh nbs/{CHAPTER.name}'
    page = (site/'linear_mode_connectivity.html').read_text()
    shown = {base64.b64decode(b) for b in re.findall(r'src="data:image/png;base64,([^"]+)"', page)}
    missing = [i for i, s in enumerate(saved) if base64.b64decode(''.join(s)) not in shown]
    assert not missing, f'figures {missing} of {len(saved)} are not on the page'


def test_readme_is_in_step(copy):
    r = _site(copy, 'readme')
    assert r.returncode == 0, r.stderr
    assert (copy/'README.md').read_text() == (ROOT/'README.md').read_text(), 'run python -m lth_nb.site readme'
    for link in re.findall(r'\]\(([^)]+)\)', (copy/'README.md').read_text()):
        assert link.startswith('http') or (ROOT/link).exists(), f'README.md links to {link}'


def test_citations_are_in_the_bibliography(site):
    from lth_nb.site import labels
    keys = set(re.findall(r'^@\w+\{([^,]+),', (ROOT/'nbs/refs.bib').read_text(), re.M))
    for nb, _ in _pages():
        texts = [''.join(c['source']) for c in json.loads(nb.read_text())['cells'] if c['cell_type'] == 'markdown']
        used = {k for t in texts for b in re.findall(r'\[[^\[\]]*@[^\[\]]*\]', re.sub(r'`[^`]*`', '', t)) for k in re.findall(r'@([\w:-]*\w)', b)}
        assert used <= keys | set(labels(texts)), f'{nb.name}: {used - keys} not in refs.bib'


def test_errors_are_one_line(tmp_path, copy):
    r = subprocess.run([sys.executable, '-m', 'lth_nb.site', 'docs'], cwd=tmp_path, env={**ENV, 'PYTHONPATH': str(copy)}, capture_output=True, text=True)
    assert r.returncode == 1 and 'pyproject.toml' in r.stderr and 'Traceback' not in r.stderr
    r = _site(copy, 'demo', 'nbs/no_such.ipynb', str(tmp_path))
    assert r.returncode == 1 and 'no_such.ipynb' in r.stderr and 'Traceback' not in r.stderr and not list(tmp_path.iterdir())
