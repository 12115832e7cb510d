"""The command line: run, stop, kill, go on; status, results, publish."""
import io, json, os, re, shutil, signal, subprocess, sys, time

from pathlib import Path
import pytest, torch
from lth_nb import cli
from lth_nb.experiment import Published, Store, all_flaws, table

CHAPTER = 'linear_mode_connectivity'
RUN = ['run', CHAPTER, '--scale', 'smoke', '--figure', 'figure-3']

@pytest.fixture
def results(tmp_path, monkeypatch):
    "The reader's results folder; nothing published beneath it."
    for k,v in dict(LTH_NB_RESULTS=tmp_path/'r', LTH_NB_PUBLISHED='none', LTH_NB_DEVICE='cpu', LTH_NB_WORKERS='1', OMP_NUM_THREADS='1').items(): monkeypatch.setenv(k, str(v))
    monkeypatch.delenv('LTH_NB_SCALE', raising=False)
    return tmp_path/'r'

def call(*args): return cli.main([str(a) for a in args])

def values(folder):
    "Every stored value: the JSON as text, tensors as bytes."
    s = Store(folder)
    plain = lambda x: {k: plain(v) for k,v in x.items()} if isinstance(x, dict) else x.numpy().tobytes() if isinstance(x, torch.Tensor) else x
    return {p: (json.dumps(s.record(p)['value']), plain(s.read(p))) for p in s.paths()}

@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    "Figure 3 at scale smoke, computed in one go."
    at = tmp_path_factory.mktemp('undisturbed')/'r'
    with pytest.MonkeyPatch.context() as m:
        for k,v in dict(LTH_NB_RESULTS=at, LTH_NB_PUBLISHED='none', LTH_NB_DEVICE='cpu').items(): m.setenv(k, str(v))
        assert call(*RUN, '--workers', 1) == 0
    return at


@pytest.mark.timeout(240)
@pytest.mark.parametrize('workers,after', ((2, 2), (1, 15)))
def test_kill_9_and_run_again(results, undisturbed, workers, after, capsys):
    "The whole process group, in the middle of the work; the second run completes it, to the bit of a run that nobody disturbed."
    p = subprocess.Popen([sys.executable, '-m', 'lth_nb.cli', *RUN, '--workers', str(workers)], start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        store,until = Store(results),time.monotonic() + 120
        while len(store.paths()) < after:
            assert p.poll() is None and time.monotonic() < until, 'it ended before it could be killed'
            time.sleep(.002)
    finally:
        os.killpg(p.pid, signal.SIGKILL)
        p.wait()
    assert p.returncode == -signal.SIGKILL
    time.sleep(.1)
    expected,had = values(undisturbed),values(results)
    kept = {f: f.stat().st_mtime_ns for f in results.rglob('*.json') if '.checkpoints' not in f.parts}
    assert after <= len(had) < len(expected) and had.items() <= expected.items(), 'what is there is whole'
    assert call(*RUN) == 0
    assert values(results) == expected
    assert all(f.stat().st_mtime_ns == t for f,t in kept.items()), 'what was there is not made again'
    assert '8 of 8 results after' in capsys.readouterr().out


def test_minutes(results, undisturbed, capsys):
    "Stopped again and again: each time cleanly, each time further; in the end as if never stopped."
    counts = []
    while not counts or counts[-1] < len(values(undisturbed)):
        assert call(*RUN, '--minutes', .004) == 0
        counts.append(len(values(results)))
        assert not [f for f in results.rglob('*.part')] and len(counts) < 200
        out = capsys.readouterr().out
        assert ('run again to go on' in out) == ('8 of 8 results after' not in out)
    assert len(counts) > 2 and counts == sorted(counts)
    assert values(results) == values(undisturbed)
    assert not list(results.glob('.checkpoints/*'))


def test_status(results, undisturbed, monkeypatch, capsys):
    "There / wanted, figure by figure; published results count."
    def rows(*args):
        assert call('status', *args) == 0
        head,*lines = [l.split() for l in capsys.readouterr().out.splitlines() if l and not l.startswith('+:')]
        return head,{l[0]: [c.rstrip('+') for c in l[1:]] for l in lines}
    head,before = rows(CHAPTER, '--scale', 'smoke')
    assert head == ['smoke'] and before[f'{CHAPTER}/figure-3'] == ['0/8'] and set(before) == {f.id for f in cli.figures(CHAPTER)}
    monkeypatch.setenv('LTH_NB_PUBLISHED', str(undisturbed))
    after = rows(CHAPTER, '--scale', 'smoke')[1]
    assert after[f'{CHAPTER}/figure-3'] == ['8/8'] and not results.exists()
    monkeypatch.setattr(cli, 'SCALES', ('smoke', 'quick'))   # all five take half a minute
    head,every = rows(CHAPTER)
    assert head == ['smoke', 'quick'] and all(len(r) == 2 for r in every.values())
    there,wanted = every[f'{CHAPTER}/figure-3'][1].split('/')
    assert every[f'{CHAPTER}/figure-3'][0] == '8/8' and there == '0' and int(wanted) > 8
    monkeypatch.setenv('LTH_NB_RESULTS', str(undisturbed))
    assert call(*RUN) == 0 and '8 of 8 results are there' in capsys.readouterr().out


def test_results(undisturbed, results, tmp_path, monkeypatch, capsys):
    "The store as CSV on the terminal, as CSV and as Parquet: the same rows, the numbers among them."
    import pandas as pd
    monkeypatch.setenv('LTH_NB_RESULTS', str(undisturbed))
    s,t = Store(undisturbed),table(Store(undisturbed))
    assert call('results') == 0
    assert len(pd.read_csv(io.StringIO(capsys.readouterr().out))) == len(t) == len(s.paths())
    assert call('results', '--step', 'line', '--out', tmp_path/'x.csv') == 0
    assert call('results', '--step', 'line', '--out', tmp_path/'x.parquet') == 0
    assert capsys.readouterr().out.count('rows in') == 2
    a = pd.read_csv(tmp_path/'x.csv')
    assert len(a) == len(s.paths('line')) and set(a['step']) == {'line'}
    for r in a.itertuples():
        v = s.read(r.path)
        assert json.loads(a.loc[r.Index, 'value.test.error']) == v['test']['error']
        assert a.loc[r.Index, 'value.distance'] == pytest.approx(v['distance'])
    pytest.importorskip('pyarrow')
    b = pd.read_parquet(tmp_path/'x.parquet')
    assert list(b['path']) == list(a['path']) and list(b.columns) == list(a.columns) and b['value.distance'].tolist() == pytest.approx(a['value.distance'].tolist())
    assert call('results', '--out', tmp_path/'x.xls') == 1 and '.csv or .parquet' in capsys.readouterr().err and not (tmp_path/'x.xls').exists()


def test_results_of_an_empty_store(results, tmp_path, capsys):
    assert call('results') == 0 and call('results', '--out', tmp_path/'x.csv') == 0 and '0 rows' in capsys.readouterr().out


def test_publish(undisturbed, results, tmp_path, monkeypatch, capsys):
    "The numbers of the figures, with provenance, readable alone; weights and masks stay; a second time there is nothing to do."
    monkeypatch.setenv('LTH_NB_RESULTS', str(undisturbed))
    before = values(undisturbed)
    assert call('publish', CHAPTER, '--scale', 'smoke', '--to', tmp_path/'pub') == 0
    p,s = Published(tmp_path/'pub'),Store(undisturbed)
    assert len(p.paths()) >= 8 and all(x.startswith('line/') for x in p.paths())
    assert [f.name for f in (tmp_path/'pub').iterdir()] == ['line.jsonl'] and all_flaws(p) == []
    assert f'{len(p.paths())} results copied' in capsys.readouterr().out
    first = (tmp_path/'pub/line.jsonl').read_bytes()
    for x in p.paths():
        a,b = p.record(x),s.record(x)
        assert a['value'] == b['value'] and a['made'] == b['made'] and a['key'] == b['key'] and a['expression'][-1].split('=')[1].strip().startswith('line(')
    assert call('publish', CHAPTER, '--scale', 'smoke', '--to', tmp_path/'pub') == 0 and '0 results copied' in capsys.readouterr().out
    assert (tmp_path/'pub/line.jsonl').read_bytes() == first and values(undisturbed) == before
    monkeypatch.setenv('LTH_NB_RESULTS', str(results)); monkeypatch.setenv('LTH_NB_PUBLISHED', str(tmp_path/'pub'))
    assert call(*RUN) == 0 and '8 of 8 results are there' in capsys.readouterr().out and not results.exists()


@pytest.mark.parametrize('args,said', [(['run', 'chapter_9'], "no chapter 'chapter_9'; there are .*linear_mode_connectivity"), (['status', 'chapter_9'], "no chapter 'chapter_9'"),
    (['publish', 'chapter_9', '--scale', 'smoke'], "no chapter 'chapter_9'"),
    (['run', CHAPTER, '--figure', 'figure-99', '--scale', 'smoke'], "no figure 'figure-99' in linear_mode_connectivity; there are .*figure-3"),
    ([*RUN, '--device', 'gpu'], "device='gpu': use auto, cpu"), ([*RUN, '--workers', '-2'], 'workers=-2')])
def test_names_that_are_not_known(results, capsys, args, said):
    "One line that says what there is; nothing is written."
    assert call(*args) == 1
    err = capsys.readouterr().err
    assert re.search('^lth-nb: ' + said, err) and len(err.splitlines()) == 1 and not results.exists()

@pytest.mark.parametrize('args,said', [(['run', CHAPTER, '--scale', 'huge'], "invalid choice: 'huge'.*smoke"), (['walk'], "invalid choice: 'walk'.*run"), ([], 'required'),
    (['run', CHAPTER, '--minutes', 'long'], "invalid float value: 'long'"), (['publish', CHAPTER], '--scale')])
def test_calls_that_are_wrong(results, capsys, args, said):
    with pytest.raises(SystemExit) as e: call(*args)
    assert e.value.code == 2 and re.search(said, capsys.readouterr().err) and not results.exists()

def test_interrupted(results, monkeypatch, capsys):
    "Ctrl-C is one line, and an exit code of its own."
    def stop(*a, **k): raise KeyboardInterrupt
    monkeypatch.setattr(cli, 'compute', stop)
    assert call(*RUN) == 130 and 'run again to go on' in capsys.readouterr().err

def test_settings_that_are_wrong(results, monkeypatch, capsys):
    monkeypatch.setenv('LTH_NB_SCALE', 'huge')
    assert call('run', CHAPTER) == 1 and "scale='huge': use one of smoke" in capsys.readouterr().err
    monkeypatch.setenv('LTH_NB_SCALE', 'smoke'); monkeypatch.setenv('LTH_NB_SCAIL', 'smoke')
    assert call('run', CHAPTER) == 1 and 'unknown setting scail in the environment' in capsys.readouterr().err

def test_damage_is_one_line(results, undisturbed, monkeypatch, tmp_path, capsys):
    "A truncated result under the store: the command says which file, and fails."
    shutil.copytree(undisturbed, results)
    f = sorted(results.glob('line/*.json'))[0]
    f.write_bytes(f.read_bytes()[:50])
    capsys.readouterr()
    assert call('results') == 1
    err = capsys.readouterr().err
    assert str(f) in err and 'damaged' in err and len(err.splitlines()) == 1
    assert call('publish', CHAPTER, '--scale', 'smoke', '--to', tmp_path/'pub') == 1 and str(f) in capsys.readouterr().err


def test_a_number_that_is_not_finite_is_left_out(undisturbed, results, tmp_path, capsys):
    "A training that went astray is no reason to keep the others back."
    shutil.copytree(undisturbed, results)
    file = sorted(results.glob('line/*.json'))[0]
    record = json.loads(file.read_text())
    record['value']['distance'] = float('nan')
    file.write_text(json.dumps(record))
    assert call('publish', CHAPTER, '--scale', 'smoke', '--to', tmp_path/'pub') == 0
    assert f'left out: line/{file.stem}, a number in it is not finite' in capsys.readouterr().out
    assert set(Store(results).paths('line')) - set(Published(tmp_path/'pub').paths()) == {f'line/{file.stem}'}


def test_nothing_there_is_said(results, tmp_path, capsys):
    "No results to publish, a step that nobody has run: an error, not an empty answer."
    assert call('publish', CHAPTER, '--scale', 'smoke', '--to', tmp_path/'out') == 1
    assert f'no results of {CHAPTER} at scale smoke' in capsys.readouterr().err and not (tmp_path/'out').exists()
    assert call('results', '--step', 'nosuch') == 1 and "'nosuch'; there are none" in capsys.readouterr().err
    assert call(*RUN, '--minutes', -3) == 1 and 'minutes=-3' in capsys.readouterr().err


def test_version(capsys):
    from lth_nb import __version__
    with pytest.raises(SystemExit) as e: call('--version')
    assert e.value.code == 0 and __version__ in capsys.readouterr().out


def test_coverage_counts_what_is_there(monkeypatch, tmp_path):
    "Nothing in an empty store; with the published results, whole where `status` says so, and a verdict for each claim."
    monkeypatch.setenv('LTH_NB_RESULTS', str(tmp_path))
    monkeypatch.setenv('LTH_NB_PUBLISHED', 'none')
    row = lambda: cli.coverage(['weight_correlation'], ['quick']).splitlines()[-1]
    n = sum('/' in l for l in cli.status('weight_correlation', 'quick').splitlines() if not l.rstrip().endswith('-'))
    assert row() == f'| weight correlation | 0 of {n} |'
    monkeypatch.setenv('LTH_NB_PUBLISHED', str(Path(__file__).parents[1]/'nbs/results'))
    whole,claims = row().split('|')[2].strip().split('; ')
    assert whole == f'{n} of {n}' and sum(map(int, claims.split(', '))) == 6
