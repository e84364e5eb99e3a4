"""Studies on Dask's workers: made in this process, but for one that is killed."""

import os
import signal
import threading
import time

import pytest
from distributed import LocalCluster

from thinned.cli.main import main
from thinned.core.config import recipe, with_values
from thinned.core.errors import RequestError
from thinned.engine.checkpoint import digest
from thinned.engine.loop import arrays_of
from thinned.studies import cluster
from thinned.studies.arms import grid, varied
from thinned.studies.jobs import place_of
from thinned.studies.outcomes import read_outcome
from thinned.studies.study import Study, run_of, run_study, search

# Dask leaves sockets and loops to the collector.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def address():
    with LocalCluster(
        processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None
    ) as (cluster):
        yield cluster.scheduler_address


@pytest.fixture(scope="module")
def base(tiny_data):
    values = {
        "model": "mlp",
        "mlp": {"hidden": [12]},
        "epochs": 1,
        "batch_size": 20,
        "data": {"path": str(tiny_data), "validation": 30, "normalise": "no"},
    }
    return with_values(recipe("tutorial"), values, "test")


def study(base, *vary: str, seeds=(0,)) -> Study:
    return Study.of(base, grid(varied(vary, base)), seeds)


def bits(folder, wanted: Study) -> list[str]:
    return [digest(arrays_of(run_of(folder, arm, seed).state)) for seed, arm in wanted.jobs]


def test_workers_do_what_this_process_does(base, tmp_path, address):
    wanted, lines = study(base, "dropout.rate=0,0.5"), list[str]()
    run_study(wanted, tmp_path / "here")
    rows = run_study(wanted, tmp_path / "there", lines.append, cluster=address)
    assert [outcome.status for row in rows for outcome in row.outcomes.values()] == ["finished"] * 2
    assert [line[:3] for line in lines] == ["1/2", "2/2"]
    assert bits(tmp_path / "there", wanted) == bits(tmp_path / "here", wanted)
    again: list[str] = []
    run_study(wanted, tmp_path / "there", again.append, cluster=address)
    assert again == []


def test_a_search_on_workers_tries_as_many_arms_as_it_may(base, tmp_path, address):
    wanted, lines = study(base, "dropout.rate=0,0.3,0.6"), list[str]()
    rows = search(wanted, tmp_path / "s", 3, lines.append, processes=2, cluster=address)
    assert len(rows) == len(lines) == 3


def test_what_has_no_scheduler_is_refused(base, tmp_path, monkeypatch):
    monkeypatch.setattr("thinned.studies.cluster._MEET_S", 0.2)
    with pytest.raises(RequestError, match="there is no scheduler"):
        run_study(study(base, "dropout.rate=0"), tmp_path / "s", cluster="tcp://127.0.0.1:9")


def test_dask_is_asked_for_before_the_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    words = ["study", "--vary", "dropout.rate=0,0.5", "--cluster", "local"]
    assert main([*words, "--runs", str(tmp_path)]) == 2
    assert "pip install 'thinned[cluster]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_over_is_not_done_again_when_its_result_is_lost(base, tmp_path):
    wanted = study(base, "dropout.rate=0")
    run_study(wanted, tmp_path)
    seed, arm = job = wanted.jobs[0]
    kept = read_outcome(place_of(tmp_path, arm, seed))
    before = written(tmp_path)
    assert cluster._work(wanted.base, tmp_path, job) == kept
    assert written(tmp_path) == before


def written(folder) -> dict:
    """When each file of the runs that are over was written."""
    places = [path.parent for path in folder.glob("*/*/outcome.json")]
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    # The lock's file is touched by whoever looks whether the run is free.
    return {path: path.stat().st_mtime_ns for path in files if not path.name.startswith(".lock")}


@pytest.mark.long
def test_a_killed_worker_breaks_no_run_and_repeats_none(base, tmp_path):
    longer = with_values(base, {"epochs": 40}, "test")
    wanted, over, killed = study(longer, "dropout.rate=0,0.5", seeds=(0, 1)), {}, list[int]()
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:

        def kill() -> None:
            while not over:
                time.sleep(0.05)
                over.update(written(tmp_path / "there"))
            killed.append(next(iter(cluster.workers.values())).pid)
            os.kill(killed[0], signal.SIGKILL)

        thread = threading.Thread(target=kill, daemon=True)
        thread.start()
        rows = run_study(wanted, tmp_path / "there", cluster=cluster.scheduler_address)
        thread.join()
    assert killed
    outcomes = [outcome for row in rows for outcome in row.outcomes.values()]
    assert [outcome.status for outcome in outcomes] == ["finished"] * 4
    assert over.items() <= written(tmp_path / "there").items()
    run_study(wanted, tmp_path / "here")
    assert bits(tmp_path / "there", wanted) == bits(tmp_path / "here", wanted)
