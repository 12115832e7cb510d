"""Settings: what goes over what, and what is refused. The environment of whoever runs the tests plays no part."""
import os

import pytest
from lth_nb.settings import NAMES, Settings, find_settings, settings


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    for name in [n for n in os.environ if n.startswith('LTH_NB_')]: monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def ini(folder, text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder/'settings.ini').write_text('[DEFAULT]\n' + text)


def test_defaults(tmp_path):
    assert find_settings(tmp_path) is None
    assert settings() == Settings()
    s = settings()
    assert (s.scale, s.data, s.results, s.published, s.device, s.workers) == ('quick', 'data', 'results', '', 'auto', 0)


def test_file_then_environment_then_keyword(tmp_path, monkeypatch):
    ini(tmp_path, 'scale = gpu\nworkers = 3\ndevice = cpu\n')
    assert (settings().scale, settings().workers) == ('gpu', 3)
    monkeypatch.setenv('LTH_NB_SCALE', 'paper')
    assert (settings().scale, settings().workers) == ('paper', 3)
    assert settings(scale='smoke').scale == 'smoke'
    assert settings(scale=None).scale == 'paper'


def test_found_upwards_and_folders_are_the_files_own(tmp_path, monkeypatch):
    ini(tmp_path, 'data = sets\nresults = /else/where\n')
    (tmp_path/'a/b').mkdir(parents=True)
    monkeypatch.chdir(tmp_path/'a/b')
    s = settings()
    assert s.data == str(tmp_path.resolve()/'sets')
    assert s.results == '/else/where'
    monkeypatch.setenv('LTH_NB_RESULTS', 'mine')
    assert settings().results == str(tmp_path.resolve()/'mine')
    assert settings(results='here').results == 'here'


def test_default_folders_too_are_relative_to_the_file(tmp_path, monkeypatch):
    "Notebooks run in nbs/, where `results` is what is published."
    ini(tmp_path, 'scale = smoke\n')
    (tmp_path/'nbs/results').mkdir(parents=True)
    monkeypatch.chdir(tmp_path/'nbs')
    s = settings()
    assert s.results == str(tmp_path.resolve()/'results')
    assert s.data == str(tmp_path.resolve()/'data')


@pytest.mark.parametrize('url', ['s3://bucket/results', 'memory://x', 'file:///tmp/x'])
def test_urls_are_left_alone(tmp_path, url):
    ini(tmp_path, f'results = {url}\n')
    assert settings().results == url


def test_a_percent_sign_is_a_percent_sign(tmp_path):
    ini(tmp_path, 'data = 100%\n')
    assert settings().data.endswith('100%')


def test_published(tmp_path, monkeypatch):
    ini(tmp_path, '')
    assert settings().published == ''
    (tmp_path/'nbs/results').mkdir(parents=True)
    assert settings().published == str(tmp_path.resolve()/'nbs/results')
    monkeypatch.setenv('LTH_NB_PUBLISHED', 'none')
    assert settings().published == ''
    assert settings(published='x').published == 'x'


@pytest.mark.parametrize('where', ['file', 'environment', 'argument'])
def test_unknown_names_are_refused_and_the_known_ones_listed(tmp_path, monkeypatch, where):
    if where == 'file': ini(tmp_path, 'scail = gpu\n')
    if where == 'environment': monkeypatch.setenv('LTH_NB_SCAIL', 'gpu')
    with pytest.raises(ValueError, match='scail') as e: settings(**({'scail': 'gpu'} if where == 'argument' else {}))
    assert all(n in str(e.value) for n in NAMES)


@pytest.mark.parametrize('name,value,hint', [('scale', 'huge', 'smoke, quick, cpu, gpu, paper'),
    ('device', 'gpu', 'cuda'), ('device', 'cuda:x', 'cuda:N'), ('device', 'cuda:', 'cuda:N'),
    ('device', 'cpu:0:1', 'cuda:N'),
    ('workers', 'many', 'whole number'), ('workers', '-1', 'or more'), ('workers', '1.5', 'whole number')])
def test_bad_values_are_refused_with_what_would_be_right(monkeypatch, name, value, hint):
    monkeypatch.setenv('LTH_NB_' + name.upper(), value)
    with pytest.raises(ValueError, match=name) as e: settings()
    assert repr(value).strip("'") in str(e.value)
    assert hint in str(e.value)


def test_sections_and_broken_files_are_refused_by_name(tmp_path):
    (tmp_path/'settings.ini').write_text('scale = gpu\n')
    with pytest.raises(ValueError, match='settings.ini'): settings()
    (tmp_path/'settings.ini').write_text('[linear]\nscale = gpu\n')
    with pytest.raises(ValueError, match='linear'): settings()


def test_the_repositorys_own_file_is_good():
    from conftest import ROOT
    s = settings(ROOT)
    assert s.scale == 'quick'
    assert s.data == str(ROOT.resolve()/'data')


def test_empty_values_are_not_given(tmp_path, monkeypatch):
    ini(tmp_path, 'scale =\ndata = sets\n')
    assert settings().scale == 'quick'
    monkeypatch.setenv('LTH_NB_DATA', '')
    assert settings().data == str(tmp_path.resolve()/'sets')


def test_a_fraction_of_a_worker_is_refused():
    with pytest.raises(ValueError, match='workers=1.5'): settings(workers=1.5)


def test_settings_without_a_section(tmp_path):
    (tmp_path/'settings.ini').write_text('# mine\nscale = quick\n')
    words = r"line 2: 'scale = quick' stands before any section: begin the file with \[DEFAULT\]"
    with pytest.raises(ValueError, match=words): settings(tmp_path)
