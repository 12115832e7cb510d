"""The explorers of a chapter in JupyterLab, moved by keyboard: the one of a kernel and the one of the page.

It needs playwright and a Chromium, which nothing here installs; without them it is skipped."""
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from urllib.request import urlopen

import nbformat
import pytest
from conftest import ROOT

pytest.importorskip('jupyterlab')
playwright = pytest.importorskip('playwright.sync_api', reason='pip install playwright')
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
if not CHROMIUM: pytest.skip('no Chromium on the path', allow_module_level=True)
FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
    '--disable-background-networking', '--disable-component-update', '--disable-sync']
CELLS = ('from lth_nb.linear_mode_connectivity import explorer', "explorer('quick')")
IMAGES = '.jp-OutputArea .jupyter-widgets img'
STATIC = """from itertools import product
from lth_nb.figures.sliders import Axis, Curve, Explorer, Picture
choices = dict(k=(0, 10, 20), rule=('averaged', 're-estimated'))
def picture(k, rule):
    curve = Curve('error', (0, .5, 1), (5, 90 - k - len(rule), 5))
    return Picture(f'k is {k}, {rule}', (curve,), (.5, 5, 60 - k, 'high'))
pictures = {setting: picture(*setting) for setting in product(*choices.values())}
Explorer('A hill', Axis('place', 0, 1), Axis('error (%)', 0, 100), choices, pictures)"""
CHANGED = f"""([old]) => {{
    const all = document.querySelectorAll('{IMAGES}')
    return all.length && all[all.length - 1].src != old
}}"""


def _notebook(folder):
    from nbformat.v4 import new_code_cell, new_notebook
    book = new_notebook(cells=[new_code_cell(source) for source in CELLS])
    book.metadata['kernelspec'] = dict(name='python3', display_name='Python 3', language='python')
    folder.mkdir()
    nbformat.write(book, folder/'small.ipynb')
    book.cells = [new_code_cell(STATIC, execution_count=1, outputs=[_made(STATIC)])]
    nbformat.write(book, folder/'static.ipynb')


def _made(source):
    "What a cell ends on, as the output of an earlier session, which JupyterLab does not trust."
    from nbformat.v4 import new_output
    *before, last = source.split('\n')
    names = {}
    exec('\n'.join(before), names)
    return new_output('execute_result', {'text/html': eval(last, names)._repr_html_()}, execution_count=1)


def _environment(folder):
    "JupyterLab's settings in a folder of its own, without the question whether one wants news."
    names = ('_CONFIG_DIR', '_DATA_DIR', 'LAB_SETTINGS_DIR', 'LAB_WORKSPACES_DIR')
    own = {f'JUPYTER{name}': str(folder/name) for name in names}
    news = folder/'LAB_SETTINGS_DIR/@jupyterlab/apputils-extension/notification.jupyterlab-settings'
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false"}')
    ours = {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'LTH_NB_RESULTS': str(folder/'results'),
        'LTH_NB_PUBLISHED': str(ROOT/'nbs/results')}
    env = {**os.environ, **own, **ours}
    env.pop('MPLBACKEND', None)
    return env


def _free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def _wait(server, url, log):
    for _ in range(240):
        assert server.poll() is None, log.read_text()[-2000:]
        try: return urlopen(url, timeout=2).close()
        except OSError: time.sleep(.5)
    raise AssertionError(log.read_text()[-2000:])


@pytest.fixture
def lab(tmp_path):
    "A server over a folder with one notebook; its settings are its own."
    _notebook(tmp_path/'root')
    port = _free_port()
    command = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--expose-app-in-browser',
        '--ServerApp.ip=127.0.0.1', f'--ServerApp.port={port}', '--ServerApp.port_retries=0',
        '--IdentityProvider.token=t', f'--ServerApp.root_dir={tmp_path/"root"}']
    with open(tmp_path/'log', 'w') as log:
        server = subprocess.Popen(command, env=_environment(tmp_path), stdout=log, stderr=log)
        try:
            _wait(server, f'http://127.0.0.1:{port}/api/status?token=t', tmp_path/'log')
            yield f'http://127.0.0.1:{port}'
        finally:
            server.terminate()
            server.wait(30)


@contextmanager
def _page(lab, folder, away, broken, name='small.ipynb'):
    "The notebook in a browser. What it asks of other machines goes to `away` and fails; scripts' errors to `broken`."
    def only_here(route):
        url = route.request.url
        if url.startswith((lab, lab.replace('http', 'ws'), 'data:', 'blob:')): return route.continue_()
        away.append(url)
        route.abort()

    with playwright.sync_playwright() as p:
        browser = p.chromium.launch_persistent_context(str(folder), executable_path=CHROMIUM, headless=True, args=FLAGS)
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.route('**/*', only_here)
        page.on('pageerror', lambda error: broken.append(str(error)))
        page.goto(f'{lab}/lab/tree/{name}?reset&token=t')
        page.get_by_text('| Idle').wait_for()
        yield page
        browser.close()


def _run_all(page, wanted):
    "Run all cells until `wanted` is there: what is asked while the kernel connects is lost."
    page.locator('.jp-Notebook .jp-Cell').first.click()
    for _ in range(40):
        page.get_by_role('menuitem', name='Run', exact=True).click()
        page.get_by_text('Run All Cells', exact=True).click()
        try: return wanted.wait_for(timeout=15_000)
        except playwright.TimeoutError: pass
    raise AssertionError('the cells do not run')


def test_the_explorer_moves(lab, tmp_path):
    "Each slider changes the picture and the number beside it; no cell fails, and nothing is asked of another machine."
    away = []
    broken = []
    with _page(lab, tmp_path/'profile', away, broken) as page:
        sliders = page.locator('.jp-OutputArea [role=slider]')
        _run_all(page, sliders.first)
        picture = page.locator(IMAGES).last
        numbers = page.locator('.jp-OutputArea .widget-readout')
        picture.wait_for()
        assert sliders.count() == 2
        for i in range(2):
            drawn = picture.get_attribute('src')
            said = numbers.nth(i).inner_text()
            sliders.nth(i).press('ArrowRight')
            page.wait_for_function(CHANGED, arg=[drawn])
            assert numbers.nth(i).inner_text() != said
        cells = page.evaluate('() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells')
    outputs = [output for cell in cells for output in cell.get('outputs', [])]
    failed = [o for o in outputs if o['output_type'] == 'error' or o.get('name') == 'stderr']
    assert all(cell['execution_count'] for cell in cells)
    assert not failed, json.dumps(failed)[:2000]
    assert not away, away[:3]
    assert not broken, broken[:3]


def test_the_pages_explorer(lab, tmp_path):
    "In a notebook that is not trusted it is a picture; once run, the keyboard moves it. Nothing is fetched."
    away = []
    broken = []
    with _page(lab, tmp_path/'profile', away, broken, 'static.ipynb') as page:
        output = page.locator('.jp-OutputArea')
        still = output.locator('figure img')
        still.wait_for()
        assert still.evaluate('image => image.complete && image.naturalWidth > 0')
        assert output.get_by_text('in a notebook that is run or trusted').count() == 1
        assert output.locator('input').count() == 0
        slider = output.locator('input[type=range]')
        _run_all(page, slider)
        line = output.locator('path.part').nth(1)
        seen = [(line.get_attribute('d'), output.locator('[aria-live]').inner_text())]
        for control, key in ((slider, 'ArrowRight'), (output.locator('input[type=radio]').first, 'ArrowRight')):
            control.press(key)
            seen.append((line.get_attribute('d'), output.locator('[aria-live]').inner_text()))
    assert [said for _, said in seen] == ['k is 0, averaged', 'k is 10, averaged', 'k is 10, re-estimated']
    assert len({drawn for drawn, _ in seen}) == 3
    assert not away, away[:3]
    assert not broken, broken[:3]
