"""The explorer of a chapter in JupyterLab, moved by keyboard. It needs playwright and a Chromium, which nothing here installs; without them it is skipped."""
import json, os, shutil, socket, subprocess, sys, time
from urllib.request import urlopen

import nbformat, pytest
from conftest import ROOT

pytest.importorskip('jupyterlab')
playwright = pytest.importorskip('playwright.sync_api', reason='pip install playwright, and a Chromium, to see JupyterLab at work')
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
if not CHROMIUM: pytest.skip('no Chromium on the path', allow_module_level=True)
FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']


@pytest.fixture
def lab(tmp_path):
    "A server over a folder with one notebook; its settings are its own."
    from nbformat.v4 import new_code_cell, new_notebook
    (tmp_path/'root').mkdir()
    nb = new_notebook(cells=[new_code_cell(s) for s in ('from lth_nb.linear_mode_connectivity import explorer', "explorer('quick')")])
    nb.metadata['kernelspec'] = dict(name='python3', display_name='Python 3', language='python')
    nbformat.write(nb, tmp_path/'root/small.ipynb')
    own = {f'JUPYTER{n}': str(tmp_path/n) for n in ('_CONFIG_DIR', '_DATA_DIR', 'LAB_SETTINGS_DIR', 'LAB_WORKSPACES_DIR')}
    news = tmp_path/'LAB_SETTINGS_DIR/@jupyterlab/apputils-extension/notification.jupyterlab-settings'
    news.parent.mkdir(parents=True); news.write_text('{"fetchNews": "false"}')
    env = {**os.environ, **own, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'LTH_NB_RESULTS': str(tmp_path/'results'), 'LTH_NB_PUBLISHED': str(ROOT/'nbs/results')}
    env.pop('MPLBACKEND', None)
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    with open(tmp_path/'log', 'w') as log:
        server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--expose-app-in-browser', '--ServerApp.ip=127.0.0.1',
            f'--ServerApp.port={port}', '--ServerApp.port_retries=0', '--IdentityProvider.token=t', f'--ServerApp.root_dir={tmp_path/"root"}'], env=env, stdout=log, stderr=log)
        try:
            for _ in range(240):
                assert server.poll() is None, (tmp_path/'log').read_text()[-2000:]
                try: urlopen(f'http://127.0.0.1:{port}/api/status?token=t', timeout=2).close(); break
                except OSError: time.sleep(.5)
            yield f'http://127.0.0.1:{port}'
        finally: server.terminate(); server.wait(30)


def test_the_explorer_moves(lab, tmp_path):
    "Each slider changes the picture and the number beside it; no cell fails, and nothing is asked of another machine."
    away,broken = [],[]
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch_persistent_context(str(tmp_path/'profile'), executable_path=CHROMIUM, headless=True, args=FLAGS)
        page = browser.new_page()
        page.set_default_timeout(120_000)
        def only_here(route):
            if (url := route.request.url).startswith((lab, lab.replace('http', 'ws'), 'data:', 'blob:')): return route.continue_()
            away.append(url); route.abort()
        page.route('**/*', only_here)
        page.on('pageerror', lambda e: broken.append(str(e)))
        page.goto(f'{lab}/lab/tree/small.ipynb?reset&token=t')
        page.get_by_text('| Idle').wait_for()
        page.locator('.jp-Notebook .jp-Cell').first.click()
        sliders = page.locator('.jp-OutputArea [role=slider]')
        for _ in range(40): # what is asked while the kernel connects is lost
            page.get_by_role('menuitem', name='Run', exact=True).click()
            page.get_by_text('Run All Cells', exact=True).click()
            try: sliders.first.wait_for(timeout=15_000); break
            except playwright.TimeoutError: pass
        picture = page.locator('.jp-OutputArea .jupyter-widgets img').last
        numbers = page.locator('.jp-OutputArea .widget-readout')
        picture.wait_for()
        assert sliders.count() == 2
        for i in range(2):
            drawn,said = picture.get_attribute('src'),numbers.nth(i).inner_text()
            sliders.nth(i).press('ArrowRight')
            page.wait_for_function("([old]) => { const all = document.querySelectorAll('.jp-OutputArea .jupyter-widgets img'); return all.length && all[all.length - 1].src != old }",
                                   arg=[drawn])
            assert numbers.nth(i).inner_text() != said
        cells = page.evaluate('() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells')
        browser.close()
    failed = [o for c in cells for o in c.get('outputs', []) if o['output_type'] == 'error' or o.get('name') == 'stderr']
    assert all(c['execution_count'] for c in cells) and not failed, json.dumps(failed)[:2000]
    assert not away and not broken, (away[:3], broken[:3])
