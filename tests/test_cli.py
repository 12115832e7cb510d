"""The command line: run, stop, kill, go on; status, results, publish."""
import io, json, os, re, shutil, signal, subprocess, sys, time

import pytest, torch
from conftest import ROOT
from lth_nb import __version__, cli
from lth_nb.experiment import Published, Store, all_flaws, table

CHAPTER = 'linear_mode_connectivity'
FIGURE = f'{CHAPTER}/figure-3'
RUN = ['run', CHAPTER, '--scale', 'smoke', '--figure', 'figure-3']
PUBLISH = ['publish', CHAPTER, '--scale', 'smoke', '--to']
ALONE = dict(LTH_NB_PUBLISHED='none', LTH_NB_DEVICE='cpu', LTH_NB_WORKERS='1', OMP_NUM_THREADS='1')

@pytest.fixture
def results(tmp_path, monkeypatch):
    "The reader's results folder; nothing published beneath it."
    for name, value in ALONE.items(): monkeypatch.setenv(name, value)
    monkeypatch.setenv('LTH_NB_RESULTS', str(tmp_path/'r'))
    monkeypatch.delenv('LTH_NB_SCALE', raising=False)
    return tmp_path/'r'

@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    "Figure 3 at scale smoke, computed in one go."
    at = tmp_path_factory.mktemp('undisturbed')/'r'
    with pytest.MonkeyPatch.context() as m:
        for name, value in ALONE.items(): m.setenv(name, value)
        m.setenv('LTH_NB_RESULTS', str(at))
        assert call(*RUN) == 0
    return at

def call(*args): return cli.main([str(a) for a in args])

def plain(x):
    "A value with its tensors as bytes."
    if isinstance(x, dict): return {k: plain(v) for k, v in x.items()}
    return x.numpy().tobytes() if isinstance(x, torch.Tensor) else x

def values(folder):
    "Every stored value: the JSON as text, tensors as bytes."
    store = Store(folder)
    return {p: (json.dumps(store.record(p)['value']), plain(store.read(p))) for p in store.paths()}

def fails(capsys, *args):
    "What a call that fails says, which is one line."
    capsys.readouterr()
    assert call(*args) == 1
    line, = capsys.readouterr().err.splitlines()
    return line


# ------------------------------------------------------------------ run

@pytest.mark.timeout(240)
@pytest.mark.parametrize('workers,after', ((2, 2), (1, 15)))
def test_kill_9_and_run_again(results, undisturbed, workers, after, capsys):
    "The whole process group, in the middle of the work; the second run completes it, to the bit of a run undisturbed."
    command = [sys.executable, '-m', 'lth_nb.cli', *RUN, '--workers', str(workers)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        store = Store(results)
        until = time.monotonic() + 120
        while len(store.paths()) < after:
            assert process.poll() is None, 'it ended before it could be killed'
            assert time.monotonic() < until, 'it takes too long'
            time.sleep(.002)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    time.sleep(.1)
    expected = values(undisturbed)
    had = values(results)
    kept = {f: f.stat().st_mtime_ns for f in results.rglob('*.json') if '.checkpoints' not in f.parts}
    assert after <= len(had) < len(expected)
    assert had.items() <= expected.items(), 'what is there is whole'
    assert call(*RUN) == 0
    assert values(results) == expected
    assert all(f.stat().st_mtime_ns == t for f, t in kept.items()), 'what was there is not made again'
    assert '8 of 8 results after' in capsys.readouterr().out


def test_minutes(results, undisturbed, capsys):
    "Stopped again and again: each time cleanly, each time further; in the end as if never stopped."
    counts = []
    while not counts or counts[-1] < len(values(undisturbed)):
        assert call(*RUN, '--minutes', .004) == 0
        counts.append(len(values(results)))
        assert not list(results.rglob('*.part'))
        assert len(counts) < 200
        out = capsys.readouterr().out
        assert ('run again to go on' in out) == ('8 of 8 results after' not in out)
    assert len(counts) > 2
    assert counts == sorted(counts)
    assert values(results) == values(undisturbed)
    assert not list(results.glob('.checkpoints/*'))


def test_a_run_with_nothing_to_do(undisturbed, results, monkeypatch, capsys):
    monkeypatch.setenv('LTH_NB_RESULTS', str(undisturbed))
    assert call(*RUN) == 0
    assert '8 of 8 results are there' in capsys.readouterr().out


def test_interrupted(results, monkeypatch, capsys):
    "Ctrl-C is one line, and an exit code of its own."
    def stop(*args, **keywords): raise KeyboardInterrupt
    monkeypatch.setattr(cli, 'compute', stop)
    assert call(*RUN) == 130
    assert 'run again to go on' in capsys.readouterr().err


# ------------------------------------------------------------------ status

def status_rows(capsys, *args):
    "The scales, and {figure: what is there at each}."
    capsys.readouterr()
    assert call('status', *args) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line and not line.startswith('+:')]
    return lines[0], {line[0]: [cell.rstrip('+') for cell in line[1:]] for line in lines[1:]}

def test_status(results, capsys):
    scales, rows = status_rows(capsys, CHAPTER, '--scale', 'smoke')
    assert scales == ['smoke']
    assert rows[FIGURE] == ['0/8']
    assert set(rows) == {f.id for f in cli.figures(CHAPTER)}
    assert not results.exists()


def test_published_results_count(results, undisturbed, monkeypatch, capsys):
    monkeypatch.setenv('LTH_NB_PUBLISHED', str(undisturbed))
    assert status_rows(capsys, CHAPTER, '--scale', 'smoke')[1][FIGURE] == ['8/8']
    assert not results.exists()


def test_status_of_several_scales(results, undisturbed, monkeypatch, capsys):
    "All five take half a minute: two."
    monkeypatch.setenv('LTH_NB_RESULTS', str(undisturbed))
    monkeypatch.setattr(cli, 'SCALES', ('smoke', 'quick'))
    scales, rows = status_rows(capsys, CHAPTER)
    assert scales == ['smoke', 'quick']
    assert all(len(cells) == 2 for cells in rows.values())
    smoke, quick = rows[FIGURE]
    assert smoke == '8/8'
    assert re.fullmatch('0/[1-9][0-9]', quick)


def test_coverage_counts_what_is_there(monkeypatch, tmp_path):
    "Nothing in an empty store; with the published results, whole where `status` says so, and a verdict for each claim."
    def row(): return cli.coverage(['weight_correlation'], ['quick']).splitlines()[-1]
    monkeypatch.setenv('LTH_NB_RESULTS', str(tmp_path))
    monkeypatch.setenv('LTH_NB_PUBLISHED', 'none')
    lines = cli.status('weight_correlation', 'quick').splitlines()
    n = sum('/' in line and not line.endswith('-') for line in lines)
    assert row() == f'| weight correlation | 0 of {n} |'
    monkeypatch.setenv('LTH_NB_PUBLISHED', str(ROOT/'nbs/results'))
    whole, claims = row().split('|')[2].strip().split('; ')
    assert whole == f'{n} of {n}'
    assert sum(int(count) for count in claims.split(', ')) == 6


# ------------------------------------------------------------------ results

@pytest.fixture
def lines(undisturbed, results, tmp_path, monkeypatch):
    "The results of step `line`, as CSV and as Parquet: the folder where both are."
    monkeypatch.setenv('LTH_NB_RESULTS', str(undisturbed))
    for kind in ('csv', 'parquet'): assert call('results', '--step', 'line', '--out', tmp_path/f'x.{kind}') == 0
    return tmp_path

def test_results_on_the_terminal(undisturbed, results, monkeypatch, capsys):
    import pandas as pd
    monkeypatch.setenv('LTH_NB_RESULTS', str(undisturbed))
    assert call('results') == 0
    rows = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert len(rows) == len(table(Store(undisturbed))) == len(Store(undisturbed).paths())

def test_results_as_csv(lines, undisturbed, capsys):
    "The numbers are those of the store."
    import pandas as pd
    store = Store(undisturbed)
    rows = pd.read_csv(lines/'x.csv')
    assert len(rows) == len(store.paths('line'))
    assert set(rows['step']) == {'line'}
    for row in rows.to_dict('records'):
        value = store.read(row['path'])
        assert json.loads(row['value.test.error']) == value['test']['error']
        assert row['value.distance'] == pytest.approx(value['distance'])

def test_results_as_parquet(lines):
    import pandas as pd
    pytest.importorskip('pyarrow')
    csv = pd.read_csv(lines/'x.csv')
    parquet = pd.read_parquet(lines/'x.parquet')
    assert list(parquet['path']) == list(csv['path'])
    assert list(parquet.columns) == list(csv.columns)
    assert parquet['value.distance'].tolist() == pytest.approx(csv['value.distance'].tolist())

def test_results_in_a_form_not_known(results, tmp_path, capsys):
    assert '.csv or .parquet' in fails(capsys, 'results', '--out', tmp_path/'x.xls')
    assert not (tmp_path/'x.xls').exists()

def test_results_of_an_empty_store(results, tmp_path, capsys):
    assert call('results') == 0
    assert call('results', '--out', tmp_path/'x.csv') == 0
    assert '0 rows' in capsys.readouterr().out


# ------------------------------------------------------------------ publish

@pytest.fixture
def published(undisturbed, results, tmp_path, monkeypatch):
    "The folder into which figure 3 is published."
    monkeypatch.setenv('LTH_NB_RESULTS', str(undisturbed))
    assert call(*PUBLISH, tmp_path/'published') == 0
    return tmp_path/'published'

def test_publish(published, undisturbed):
    "The numbers of the figures, with provenance, readable alone; weights and masks stay where they are."
    there = Published(published)
    assert [f.name for f in published.iterdir()] == ['line.jsonl']
    assert len(there.paths()) >= 8
    assert all_flaws(there) == []
    for path in there.paths():
        record = there.record(path)
        stored = Store(undisturbed).record(path)
        assert [record[k] for k in ('value', 'made', 'key')] == [stored[k] for k in ('value', 'made', 'key')]
        assert re.match(r'v\d+ = line\(', record['expression'][-1])

def test_publishing_again_has_nothing_to_do(published, undisturbed, capsys):
    before = values(undisturbed)
    first = (published/'line.jsonl').read_bytes()
    capsys.readouterr()
    assert call(*PUBLISH, published) == 0
    assert '0 results copied' in capsys.readouterr().out
    assert (published/'line.jsonl').read_bytes() == first
    assert values(undisturbed) == before

def test_nothing_published_is_computed(published, results, monkeypatch, capsys):
    monkeypatch.setenv('LTH_NB_RESULTS', str(results))
    monkeypatch.setenv('LTH_NB_PUBLISHED', str(published))
    assert call(*RUN) == 0
    assert '8 of 8 results are there' in capsys.readouterr().out
    assert not results.exists()

def test_a_number_that_is_not_finite_is_left_out(undisturbed, results, tmp_path, capsys):
    "A training that went astray is no reason to keep the others back."
    shutil.copytree(undisturbed, results)
    file = sorted(results.glob('line/*.json'))[0]
    record = json.loads(file.read_text())
    record['value']['distance'] = float('nan')
    file.write_text(json.dumps(record))
    assert call(*PUBLISH, tmp_path/'published') == 0
    out = capsys.readouterr().out
    assert f'left out: line/{file.stem}, a number in it is not finite' in out
    assert '7 results copied' in out
    assert set(Store(results).paths('line')) - set(Published(tmp_path/'published').paths()) == {f'line/{file.stem}'}


# ------------------------------------------------------------------ what is wrong is one line

NO_CHAPTER = "no chapter 'chapter_9'; there are .*linear_mode_connectivity"

@pytest.mark.parametrize('args,said', [
    (['run', 'chapter_9'], NO_CHAPTER), (['status', 'chapter_9'], NO_CHAPTER),
    (['publish', 'chapter_9', '--scale', 'smoke'], NO_CHAPTER),
    (['run', CHAPTER, '--figure', 'figure-99'], f"no figure 'figure-99' in {CHAPTER}; there are .*figure-3"),
    ([*RUN, '--device', 'gpu'], "device='gpu': use auto, cpu"), ([*RUN, '--workers', '-2'], 'workers=-2'),
    ([*RUN, '--minutes', '-3'], 'minutes=-3'), (['results', '--step', 'nosuch'], "'nosuch'; there are none")])
def test_names_that_are_not_known(results, capsys, args, said):
    "One line that says what there is; nothing is written."
    assert re.search(f'^lth-nb: .*{said}', fails(capsys, *args))
    assert not results.exists()

@pytest.mark.parametrize('args,said', [
    (['run', CHAPTER, '--scale', 'huge'], "invalid choice: 'huge'.*smoke"), (['walk'], "invalid choice: 'walk'.*run"),
    ([], 'required'), (['run', CHAPTER, '--minutes', 'long'], "invalid float value: 'long'"),
    (['publish', CHAPTER], '--scale'), (['results', 'mend'], "invalid choice: 'mend'.*verify")])
def test_calls_that_are_wrong(results, capsys, args, said):
    with pytest.raises(SystemExit) as stopped: call(*args)
    assert stopped.value.code == 2
    assert re.search(said, capsys.readouterr().err)
    assert not results.exists()

def test_settings_that_are_wrong(results, monkeypatch, capsys):
    monkeypatch.setenv('LTH_NB_SCALE', 'huge')
    assert "scale='huge': use one of smoke" in fails(capsys, 'run', CHAPTER)
    monkeypatch.setenv('LTH_NB_SCALE', 'smoke')
    monkeypatch.setenv('LTH_NB_SCAIL', 'smoke')
    assert 'unknown setting scail in the environment' in fails(capsys, 'run', CHAPTER)

def test_damage(results, undisturbed, tmp_path, capsys):
    "A truncated result under the store: the command says which file, and fails."
    shutil.copytree(undisturbed, results)
    file = sorted(results.glob('line/*.json'))[0]
    file.write_bytes(file.read_bytes()[:50])
    assert f'{file} is damaged' in fails(capsys, 'results')
    assert f'{file} is damaged' in fails(capsys, *PUBLISH, tmp_path/'published')

def test_no_results_to_publish(results, tmp_path, capsys):
    "An error, not an empty folder."
    assert f'no results of {CHAPTER} at scale smoke' in fails(capsys, *PUBLISH, tmp_path/'published')
    assert not (tmp_path/'published').exists()

def test_version(capsys):
    with pytest.raises(SystemExit) as stopped: call('--version')
    assert stopped.value.code == 0
    assert __version__ in capsys.readouterr().out
