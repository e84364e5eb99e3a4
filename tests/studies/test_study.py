"""Studies: every run once, paired by seed, through kills and failures; and what is said of them."""

import gzip
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import xml.dom.minidom
from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import gzipped
from jax.tree import leaves

from thinned.cli.main import main
from thinned.core.config import recipe, to_json, with_values
from thinned.core.errors import RequestError
from thinned.engine.loop import Pace, Stopped
from thinned.engine.step import train_steps
from thinned.runs import train as runs
from thinned.studies.arms import Arm, grid, varied
from thinned.studies.comparison import Difference
from thinned.studies.jobs import place_of, under_way
from thinned.studies.outcomes import Outcome, Row
from thinned.studies.page import told, verdict
from thinned.studies.study import Study, rows_of, run_of, run_study, search

pytestmark = pytest.mark.filterwarnings("ignore:.*experimental")


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_told_by_the_clock():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("thinned.studies.jobs._EVERY_S", 1e6)
        yield


@pytest.fixture(scope="module")
def base(tiny_data):
    values = {
        "model": "mlp",
        "mlp": {"hidden": [12]},
        "epochs": 2,
        "batch_size": 20,
        "data": {"path": str(tiny_data), "validation": 30, "normalise": "no"},
    }
    return with_values(recipe("tutorial"), values, "test")


def study(base, *vary: str, seeds=(0, 1), baseline=None) -> Study:
    return Study.of(base, grid(varied(vary, base)), seeds, baseline)


@pytest.fixture(scope="module")
def done(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies") / "done"
    wanted = study(base, "dropout.rate=0,0.5,0.9")
    lines: list[str] = []
    rows = run_study(wanted, folder, lines.append)
    return wanted, folder, rows, lines


def test_every_arm_is_run_with_every_seed_as_an_ordinary_run(done):
    wanted, folder, rows, lines = done
    assert len(lines) == 6
    assert lines[-1].startswith("6/6 dropout.rate=0.9, seed 1: test accuracy")
    for row in rows:
        assert [outcome.status for outcome in row.outcomes.values()] == ["finished"] * 2
        for seed in wanted.seeds:
            run = run_of(folder, row.arm, seed)
            assert run.config.dropout.rate == row.arm.changes["dropout.rate"]
            assert run.evaluate().totals.accuracy == row.outcomes[seed].scores["test"]["accuracy"]
            # Test images are read once, at the end; validation images after every epoch.
            epochs = [r["epoch"] for r in run.metrics if r["split"] == "test"]
            assert epochs == [2]
            assert [r["epoch"] for r in run.metrics if r["split"] == "validation"] == [1, 2]


def test_an_arms_run_is_the_same_as_a_run_by_itself(done, base, tmp_path):
    wanted, folder, rows, _ = done
    alone = runs.train(rows[1].arm.config(wanted.base, 1), name="alone", runs=tmp_path)
    ours = run_of(folder, rows[1].arm, 1)

    def untimed(run):
        return [{k: v for k, v in r.items() if not k.endswith("_s")} for r in run.metrics]

    assert untimed(alone) == untimed(ours)
    for mine, other in zip(leaves(alone.state.params), leaves(ours.state.params), strict=True):
        assert np.array_equal(mine, other)


def test_arms_of_one_seed_begin_alike_and_see_the_same_order(done):
    _, folder, rows, _ = done
    opened = [run_of(folder, row.arm, 1) for row in rows]
    plans = [run.built.plan for run in opened]
    states = [run.built.initial_state() for run in opened]
    for plan, state in zip(plans[1:], states[1:], strict=True):
        assert np.array_equal(plan.chunk(0, 5)[0].order, plans[0].chunk(0, 5)[0].order)
        pairs = zip(leaves(state.params), leaves(states[0].params), strict=True)
        assert all(np.array_equal(one, two) for one, two in pairs)


def test_arms_that_differ_in_numbers_share_one_compiled_program(base, tmp_path):
    scheduled = {"dropout": {"schedule": "linear", "schedule_epochs": 1}, "mlp": {"hidden": [11]}}
    wanted = study(
        with_values(base, scheduled, "test"),
        *("dropout.rate=0.1,0.3", "learning_rate=0.001,0.01", "dropout.schedule=linear,cosine"),
        seeds=(3,),
    )
    before = train_steps._cache_size()
    run_study(wanted, tmp_path / "s")
    assert train_steps._cache_size() == before + 1


def test_going_on_repeats_nothing_and_adds_seeds(done, base, tmp_path):
    wanted, folder, _, _ = done
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "dropout.rate=0.5" / "seed-1" / "outcome.json").unlink()
    lines: list[str] = []
    run_study(wanted, copy, lines.append)
    assert [line.split(":")[0] for line in lines] == ["6/6 dropout.rate=0.5, seed 1"]
    more = study(base, "dropout.rate=0,0.5,0.9", seeds=(0, 1, 2))
    lines.clear()
    rows = run_study(more, copy, lines.append)
    assert len(lines) == 3
    assert all(len(row.outcomes) == 3 for row in rows)
    # It was planned with two seeds, and says at which look it stands.
    again = Study.open(copy)
    assert (again.looks, again.planned) == ((2, 3), (0, 1))
    assert "Look 2 (seeds: 2, 3; the first planned)" in verdict(again, rows)
    lines.clear()
    rows = run_study(study(base, "dropout.rate=0,0.2,0.5,0.9", seeds=(0, 1, 2)), copy, lines.append)
    assert [line.split(":")[0] for line in lines] == [
        f"{10 + seed}/12 dropout.rate=0.2, seed {seed}" for seed in range(3)
    ]
    assert all(len(row.outcomes) == 3 for row in rows)


@pytest.mark.parametrize(
    ("vary", "options", "message"),
    [
        ("dropout.rate=0,0.5", {}, "arm dropout.rate=0.9 is gone"),
        ("dropout.rate=0,0.5,0.9", {"epochs": 3}, "epochs: was 2, asked for 3"),
        ("dropout.rate=0,0.5,0.9", {"seeds": (1, 2)}, r"seeds \[0\] are gone"),
        ("dropout.rate=0,0.5,0.9", {"baseline": "dropout.rate=0.5"}, "baseline: was"),
    ],
)
def test_another_study_in_the_same_folder_is_refused(done, base, vary, options, message):
    _, folder, _, _ = done
    values = {key: options.pop(key) for key in list(options) if key == "epochs"}
    with pytest.raises(RequestError, match=message):
        run_study(study(with_values(base, values, ""), vary, **options), folder)


def test_a_changed_arm_is_refused_with_what_changed(base, tmp_path):
    before = Study.of(base, [Arm("a", {"epochs": 1}), Arm("b", {"mlp.hidden": (9,)})], [0])
    run_study(before, tmp_path / "s")
    changes = {"mlp.hidden": [9], "learning_rate": 0.01}
    after = Study.of(base, [Arm("a", {"epochs": 2}), Arm("b", changes)], [0])
    with pytest.raises(RequestError) as caught:
        run_study(after, tmp_path / "s")
    assert str(caught.value).endswith(
        "holds another study: arm a, epochs: was 1, asked for 2; "
        "arm b, learning_rate: was unchanged, asked for 0.01"
    )


def test_a_study_that_runs_is_not_run_twice_at_once(done):
    import fcntl

    wanted, folder, _, _ = done
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RequestError, match="by another process"):
            run_study(wanted, folder)


def test_an_arm_that_diverges_or_fails_is_recorded_and_the_others_go_on(base, tmp_path):
    wanted = study(base, "learning_rate=0.001,1e30", "batch_size=20,5000")
    lines: list[str] = []
    rows = run_study(wanted, tmp_path / "s", lines.append)
    found = {row.arm.name: {o.status for o in row.outcomes.values()} for row in rows}
    assert found == {
        "learning_rate=0.001,batch_size=20": {"finished"},
        "learning_rate=0.001,batch_size=5000": {"failed"},
        "learning_rate=1e+30,batch_size=20": {"diverged"},
        "learning_rate=1e+30,batch_size=5000": {"failed"},
    }
    text = " ".join(told(wanted, rows).split())
    assert "diverged" in text
    assert "6 runs did not finish and are left out of the means" in text
    lines.clear()
    run_study(wanted, tmp_path / "s", lines.append)
    # What diverged would diverge again; what failed is tried again.
    assert len(lines) == 4
    assert all("failed: --batch-size 5000" in line for line in lines)


def test_a_network_that_raises_fails_alone(base, tmp_path, monkeypatch):
    real = runs.train

    def fragile(config, **rest):
        if config.dropout.rate == 0.5:
            raise ValueError("shapes do not fit\nand so on")
        return real(config, **rest)

    monkeypatch.setattr("thinned.studies.jobs.train", fragile)
    wanted = study(base, "dropout.rate=0.5,0", seeds=(0,))
    rows = run_study(wanted, tmp_path / "s")
    assert rows[0].outcomes[0].reason == "ValueError: shapes do not fit"
    assert [row.outcomes[0].status for row in rows] == ["failed", "finished"]


def test_a_run_that_went_astray_without_infinities_counts_as_diverged(base, tmp_path):
    wanted = study(with_values(base, {"optim": {"name": "sgd"}}, ""), "learning_rate=0.01,1000")
    rows = run_study(wanted, tmp_path / "s")
    assert {o.status for o in rows[0].outcomes.values()} == {"finished"}
    for outcome in rows[1].outcomes.values():
        assert outcome.status == "diverged"
        assert "that of guessing 1.1" in outcome.reason
        assert not outcome.scores


def test_a_time_that_nobody_could_take_is_null(base, tmp_path):
    wanted = study(with_values(base, {"epochs": 1, "batch_size": 170}, ""), seeds=(0,))
    rows = run_study(wanted, tmp_path / "s")
    text = (tmp_path / "s" / "all" / "seed-0" / "outcome.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["epoch_s"] is None
    assert "nan" not in told(wanted, rows)


def test_twice_the_epochs_cost_twice_the_time(base):
    wanted = study(base, "epochs=2,4,6", seeds=(0, 1))

    def row(arm, *times):
        outcomes = {s: Outcome("finished", "", {}, time_s) for s, time_s in enumerate(times)}
        return Row(arm, outcomes, None)

    one, two, three = wanted.arms
    cost = wanted.cost([row(one, 3.0, 3.0), row(two, 3.0, 3.0), row(three, None, None)])
    assert (cost[one.name], cost[two.name]) == (1.0, 2.0)
    assert np.isnan(cost[three.name])


def test_an_epochs_time_is_that_of_its_steps_without_the_first():
    pace = Pace()
    pace.took(1, 100.0)
    assert pace.lap(10) is None
    pace.took(2, 3.0)
    pace.took(3, 2.0)
    # Five steps in five seconds.
    assert pace.lap(10) == 10.0
    assert pace.lap(10) is None


def test_a_run_in_progress_tells_how_far_it_is(done, base, tmp_path, monkeypatch):
    wanted, folder, _, _ = done
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert under_way(copy, wanted.jobs) == []
    place = copy / "dropout.rate=0.5" / "seed-1"
    (place / "outcome.json").unlink()
    assert under_way(copy, wanted.jobs) == ["dropout.rate=0.5, seed 1: epoch 2/2 done"]
    first = {"split": "train", "epoch": 1, "step": 8, "epoch_s": 150.0}
    (place / "metrics.jsonl").write_text(json.dumps(first) + "\n")
    told = "dropout.rate=0.5, seed 1: epoch 1/2 done, 2 min left of this run"
    assert under_way(copy, wanted.jobs) == [told]
    (place / "metrics.jsonl").write_text("")
    assert under_way(copy, wanted.jobs) == ["dropout.rate=0.5, seed 1: epoch 0/2 done"]
    # The one who watches says so while the run lasts.
    heard, lines = threading.Event(), []

    def tell(line):
        lines.append(line)
        heard.set()

    def waits(config, **rest):
        assert heard.wait(60)
        raise RequestError("enough")

    monkeypatch.setattr("thinned.studies.jobs._EVERY_S", 0.001)
    monkeypatch.setattr("thinned.studies.jobs.train", waits)
    run_study(wanted, copy, tell)
    assert lines[0] == "dropout.rate=0.5, seed 1: epoch 0/2 done"
    assert any(line.endswith("failed: enough") for line in lines)


def killed(base, folder, *more: str) -> tuple[list[str], str]:
    """The words of a study ``s`` that was killed after its first run, and what it said of that."""
    words = [
        *("study", "--data", base.data.path, "--data.validation", "30", "--batch-size", "20"),
        *("--model", "mlp", "--mlp.hidden", "12", "--data.normalise", "no", "--epochs", "2"),
        *("--vary", "dropout.rate=0,0.5", "--name", "s", "--runs", str(folder), *more),
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "thinned", *words], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(2)]
        process.kill()
    return words, said[1]


def test_a_killed_study_goes_on_where_it_was(base, tmp_path):
    words, said = killed(base, tmp_path, "--seeds", "2")
    assert said.startswith("1/4")
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("outcome.json")}
    assert 1 <= len(finished) < 4
    assert main(words) == 0
    assert len(list(tmp_path.rglob("outcome.json"))) == 4
    assert all(path.stat().st_mtime_ns == at for path, at in finished.items())
    unbroken = run_study(Study.open(tmp_path / "s"), tmp_path / "again")
    for one, two in zip(rows_of(tmp_path / "s"), unbroken, strict=True):
        assert one.values("nll") == two.values("nll")


def test_runs_that_go_on_in_other_processes_keep_their_threads_or_are_named(base, tmp_path):
    wanted, folder = study(base, seeds=(0, 1, 2)), tmp_path / "s"
    # Two were begun with other threads, as with a process for each core; JAX has not started.
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from thinned.runs.environment import describe_environment\n"
        "from thinned.studies.jobs import _keep_threads\n"
        "from thinned.studies.study import Study\n"
        "folder = Path(sys.argv[1])\n"
        "_keep_threads(folder, Study.open(folder).jobs)\n"
        "print(describe_environment('', '')['cpu_threads'])\n"
    )
    for seed, threads in ((1, 3), (2, 5)):
        place = place_of(folder, wanted.arms[0], seed)
        place.mkdir(parents=True)
        (place / "config.json").write_text(to_json(base), encoding="utf-8")
        (place / "environment.json").write_text(json.dumps({"cpu_threads": threads}))
    (folder / "study.json").write_text(wanted.to_json(), encoding="utf-8")
    words = [sys.executable, "-c", program, str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "3"
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{place}: note: JAX computed with 5 threads, now with 3")


@pytest.mark.long
def test_processes_end_with_a_study_that_is_killed_and_their_runs_go_on(base, tmp_path):
    words, said = killed(base, tmp_path, "--seeds", "2", "--processes", "2")
    assert said.startswith("1/4")
    # At once: a process of the killed study may still be saving a run that is begun again here.
    assert main(words) == 0
    statuses = [o.status for row in rows_of(tmp_path / "s") for o in row.outcomes.values()]
    assert statuses == ["finished"] * 4


def test_a_run_that_another_process_holds_is_waited_for(base, tmp_path, monkeypatch):
    real, tries = runs.train, []

    def held(config, **rest):
        tries.append(config.seed)
        if len(tries) < 3:
            raise runs.Busy("is being trained by another process")
        return real(config, **rest)

    monkeypatch.setattr("thinned.studies.jobs.train", held)
    monkeypatch.setattr("thinned.studies.jobs.time.sleep", lambda seconds: None)
    (row,) = run_study(study(base, seeds=(0,)), tmp_path / "s")
    assert row.outcomes[0].status == "finished"
    assert tries == [0, 0, 0]


def test_other_images_under_the_same_name_are_refused(base, tmp_path):
    data, folder = tmp_path / "data", tmp_path / "s"
    shutil.copytree(base.data.path, data)
    moved = with_values(base, {"data": {"path": str(data)}}, "")
    run_study(study(moved, "dropout.rate=0,0.5", seeds=(0,)), folder)
    more = study(moved, "dropout.rate=0,0.5")
    changed = next(data.glob("train-images*"))
    before = changed.read_bytes()
    pixels = gzip.decompress(before)
    changed.write_bytes(gzipped(pixels[:-1] + bytes([pixels[-1] ^ 1])))
    with pytest.raises(RequestError, match="holds other images than .*seed-0 learned from"):
        run_study(more, folder)
    assert Study.open(folder).seeds == (0,)
    changed.write_bytes(before)
    assert all(len(row.outcomes) == 2 for row in run_study(more, folder))


def test_processes_share_the_runs_even_after_a_signal_and_change_nothing(done, tmp_path):
    wanted, _, rows, _ = done
    lines: list[str] = []

    def stopping(line):
        lines.append(line)
        # Once: a second signal stops at once.
        if len(lines) == 1:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Stopped) as stopped:
        run_study(wanted, tmp_path / "s", stopping, processes=2)
    assert stopped.value.exit_code == 143
    before = len(lines)
    assert 1 <= before < 6
    assert multiprocessing.active_children() == []
    # Going on takes any number of them.
    shared = run_study(wanted, tmp_path / "s", lines.append)
    # One count for all of them; none is run twice.
    assert [line.split("/6 ")[0] for line in lines] == list("123456")
    assert len({line.split(" ", 1)[1].split(":")[0] for line in lines}) == 6
    assert "left" in lines[before]
    assert "left" not in lines[-1]
    for one, two in zip(rows, shared, strict=True):
        # Another number of threads may round otherwise.
        np.testing.assert_allclose(one.values("nll"), two.values("nll"), rtol=1e-4)


# Of these, a single process is stopped as a run is, several as above; what is said then is below.
@pytest.mark.long
@pytest.mark.parametrize(
    ("more", "number"),
    [
        ([], signal.SIGINT),
        (["--processes", "2"], signal.SIGINT),
        (["--processes", "2"], signal.SIGTERM),
    ],
)
def test_a_signal_saves_and_says_how_to_go_on(base, tmp_path, more, number):
    words = ["--data", base.data.path, "--model", "mlp", "--mlp.hidden", "12", "--name", "s"]
    words += ["--epochs", "100000"]
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "thinned", "study", *words, *more, "--batch-size", "20"),
            *("--vary", "dropout.rate=0,0.5", "--runs", str(tmp_path)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        while not list(tmp_path.rglob("checkpoints/*/_CHECKPOINT_METADATA")):
            # As long as it lives; looking all the time would take a core from it.
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.05)
        if number == signal.SIGINT:
            # As a terminal does: to the whole group.
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, said = process.communicate()
    assert process.returncode == 128 + number, said
    assert said.strip().splitlines() == [
        "thinned: stopped; what was done is saved: go on with the same command, --name s"
    ]


@pytest.mark.parametrize(
    ("words", "place", "hint"),
    [
        (
            ["study", "--search", "2", "--vary", "dropout.rate=0,0.5"],
            "study.search",
            "command, --name",
        ),
        (["reproduce", "srivastava2014-table10"], "reproduce.reproduce", "command\n"),
    ],
)
def test_ctrl_c_is_told_how_to_go_on(tmp_path, capsys, monkeypatch, words, place, hint):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"thinned.studies.{place}", stopped)
    assert main([*words, "--runs", str(tmp_path)]) == 130
    said = capsys.readouterr().err
    assert "stopped; what was done is saved: go on with the same" in said
    assert hint in said


def test_the_seeds_that_are_lacking_are_those_beyond_the_finished_pairs(base):
    wanted = study(base, "dropout.rate=0,0.5", seeds=range(5))
    found = Difference(3, 0.01, -0.01, 0.03, 0.2, 0.2, 10)
    rows = [Row(wanted.arms[0], {}, None), Row(wanted.arms[1], {}, found)]
    assert "about 7 more would be needed" in verdict(wanted, rows)


def test_seeds_that_are_added_come_last_and_are_not_planned(base):
    past = study(base, seeds=(4, 5))
    more = study(base, seeds=(3, 4, 5, 6)).with_past(past)
    assert (more.seeds, more.planned, more.looks) == ((4, 5, 3, 6), (4, 5), (2, 4))
    assert more.with_past(more) == more
    # Of a study that did not note its looks none counts as planned.
    unknown = replace(past, looks=())
    assert study(base, seeds=(4, 5, 6)).with_past(unknown).planned == ()


def test_arms_are_compared_within_what_parts_them(base):
    arms = grid(varied(["data.limit=60,90", "dropout.rate=0,0.5"], base))
    first, second, third, fourth = (arm.name for arm in arms)
    assert Study.of(base, arms, (0,), first, "data.limit").baselines == {
        second: first,
        fourth: third,
    }
    assert Study.of(base, arms, (0,), second).baselines == dict.fromkeys(
        (first, third, fourth), second
    )


def test_one_seed_and_one_arm_say_what_they_cannot(base, tmp_path):
    wanted = study(base, "dropout.rate=0,0.5", seeds=(0,))
    rows = run_study(wanted, tmp_path / "s")
    assert "at least two seeds" in verdict(wanted, rows)
    alone = study(base, seeds=(0,))
    assert verdict(alone, run_study(alone, tmp_path / "t")) == ""


def test_the_verdict_chooses_by_validation(done):
    wanted, _, rows, _ = done
    held = [row.mean("accuracy", "validation") for row in rows]
    best = rows[int(np.argmax(held))].arm.name
    assert f"By validation images, {best} is the one to choose." in verdict(wanted, rows)


def test_an_arm_that_not_every_seed_survives_is_not_the_one_to_choose(base):
    wanted = study(base, "learning_rate=0.001,0.01,1", seeds=(0, 1))

    def row(arm, *accuracies):
        scores = [{"test": {"accuracy": a}, "validation": {"accuracy": a}} for a in accuracies]
        outcomes = [Outcome("finished", "", each) for each in scores]
        outcomes += [Outcome("diverged", "the loss is NaN")] * (2 - len(outcomes))
        return Row(arm, dict(enumerate(outcomes)), None)

    one, two, three = wanted.arms
    rows = [row(one, 0.8, 0.8), row(two, 0.9, 0.8), row(three, 0.95)]
    assert "learning_rate=0.01 is the one to choose" in verdict(wanted, rows)


def test_the_page_shows_all_of_it(done, base, tmp_path):
    from thinned.studies.page import write_study_page

    wanted, folder, rows, _ = done
    page = write_study_page(folder, wanted, rows, tmp_path).read_text()
    body = page[page.index("<body>") : page.index("</body>") + 7]
    assert xml.dom.minidom.parseString(body).getElementsByTagName("svg").length >= 6
    assert not re.search(r"(src|href)=.(https?:|//)", body)
    assert (tmp_path / "accuracy-dropout-rate.png").stat().st_size > 1000
    assert page.count("aria-label") >= 6
    for folded in ("Table", "As text", "Definition"):
        assert f"<details><summary>{folded}" in page
    assert ">nan<" not in page


@pytest.mark.parametrize(
    ("option", "values", "scale"),
    [("learning_rate", (1e-4, 1e-3, 1e-2), "log"), ("dropout.rate", (0, 0.5, 0.9), "linear")],
)
def test_values_over_decades_have_a_logarithmic_axis(option, values, scale):
    from matplotlib.figure import Figure

    from thinned.studies.page import draw_against

    found = {0: Outcome("finished", "", {"test": {"nll": 0.1}})}
    axes = Figure().add_subplot()
    rows = [Row(Arm(f"{option}={value}", {option: value}), found, None) for value in values]
    draw_against(axes, option, "nll", rows)
    assert axes.get_xscale() == scale


def test_optuna_chooses_arms_by_validation(base, tmp_path):
    wanted = study(base, "dropout.rate=0:0.9:0.1", "learning_rate=0.001,0.01,0.1", seeds=(0,))
    rows = search(wanted, tmp_path / "s", 4)
    assert rows[0].arm.name == wanted.baseline
    assert len(rows) == 4
    again: list[str] = []
    assert [row.arm for row in search(wanted, tmp_path / "s", 4, again.append)] == [
        row.arm for row in rows
    ]
    assert again == []
    few = study(base, "dropout.rate=0:0.9:0.3", seeds=(0,))
    assert len(search(few, tmp_path / "few", 9)) == 4
    bare = with_values(base, {"data": {"validation": 0}}, "")
    with pytest.raises(RequestError, match="--data.validation N"):
        search(study(bare, "dropout.rate=0,0.5"), tmp_path / "t", 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0"], "--seeds is 0"),
        (["--vary", "dropout.rat=1"], "did you mean 'dropout.rate'"),
        (["--vary", "dropout.rate=0,2"], "--dropout.rate is 2"),
        (
            ["--vary", "dropout.rate=0,1", "--baseline", "x"],
            "--baseline x is no arm; known: dropout.rate=0,",
        ),
        (["--vary", "model=cnn,mlpp"], "there is no such network; did you mean mlp?"),
        (["--vary", "dropout.sites=input"], "name a site, as in dropout.sites.input=0,0.2"),
        (["--random", "0"], "--random is 0"),
        (["--vary", "epochs=1:50:1", "--baseline", "x"], "epochs=10 and 40 more"),
        (["--vary", "epochs=1:50:1", "--baseline", "epoch=50"], "did you mean 'epochs=50'"),
        (["--search", "2", "--random", "2"], "--search and --random exclude"),
        (["--name", "a/../../x"], "leads out of"),
    ],
)
def test_a_study_that_cannot_be_is_refused(tmp_path, capsys, words, message):
    assert main(["study", "--runs", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_study_without_matplotlib_is_told_all_the_same(base, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    words = ["study", "--data", base.data.path, "--epochs", "1", "--model", "mlp", "--seeds", "1"]
    assert main([*words, "--runs", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "test accuracy" in said
    assert "pip install 'thinned[report]'" in said


def test_a_study_of_which_nothing_finished_is_a_failure(base, tmp_path, capsys):
    words = ["study", "--data", base.data.path, "--batch-size", "5000", "--seeds", "1"]
    assert main([*words, "--runs", str(tmp_path)]) == 1
    assert "no run finished; the first failed: --batch-size 5000" in capsys.readouterr().err


def test_a_run_is_not_put_into_the_folder_of_a_study(done, base, tmp_path):
    _, folder, _, _ = done
    with pytest.raises(RequestError, match="is a study: give the run another --name"):
        runs.train(base, name=folder.name, runs=folder.parent)
    assert not (folder / "config.json").exists()
    with pytest.raises(RequestError, match="leads out of"):
        runs.train(base, name="../x", runs=tmp_path)


def test_arms_of_one_folder_are_refused(base):
    arms = [Arm("a b", {}), Arm("a-b", {})]
    with pytest.raises(RequestError, match="would share a folder"):
        Study.of(base, arms, (0,))


def test_a_run_is_no_study_and_a_damaged_one_is_told(done, tmp_path):
    wanted, folder, _, _ = done
    with pytest.raises(RequestError, match="is a run"):
        run_study(wanted, folder / "dropout.rate=0" / "seed-0")
    with pytest.raises(RequestError, match="is no study"):
        rows_of(tmp_path)
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(RequestError, match="cannot be read"):
        rows_of(tmp_path)
    outcome = json.loads((folder / "dropout.rate=0" / "seed-0" / "outcome.json").read_text())
    assert set(outcome["scores"]) == {"test", "validation"}
    assert outcome["epoch_s"] > 0


def test_a_device_without_memory_fails_the_run_in_one_line(base, tmp_path, monkeypatch):
    def no_device(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")

    monkeypatch.setattr("thinned.runs.train.run_loop", no_device)
    (row,) = run_study(study(base, "learning_rate=0.001", seeds=(0,)), tmp_path / "none")
    assert row.outcomes[0].status == "failed"
    assert "too little memory: give a smaller" in row.outcomes[0].reason
