import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import blobs, write_idx

import thinned
from thinned.cli.main import main
from thinned.core.config import Config, DataConfig, MlpConfig, OptimConfig, to_json, with_values
from thinned.core.errors import RequestError, ThinnedError
from thinned.core.types import Dataset
from thinned.data.sources.load import load_data
from thinned.engine.logs import MetricsLog
from thinned.engine.loop import Progress, StopSignal
from thinned.runs.doctor import diagnose
from thinned.runs.environment import (
    environment_changes,
    git_revision,
    recorded_digest,
    usable_cores,
)
from thinned.runs.run import Run
from thinned.runs.verify import differing
from thinned.studies.study import folder_of

pytestmark = pytest.mark.optimised


def config_for(tiny_data: Path, **changes) -> Config:
    base = Config(data=DataConfig(path=tiny_data), epochs=2, batch_size=16, learning_rate=0.01)
    return dataclasses.replace(base, **changes)


def small_for(tiny_data: Path, **changes) -> Config:
    """With a network that compiles quickly, where it is of no matter which."""
    return config_for(tiny_data, model="mlp", mlp=MlpConfig(hidden=(32,)), **changes)


# Of the module, not of the session: that would come before programs are compiled as is needed here.
@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory) -> thinned.Run:
    """A run of six epochs that nobody interrupted."""
    runs = tmp_path_factory.mktemp("finished")
    return thinned.train(small_for(tiny_data, epochs=6), name="whole", runs=runs)


def test_a_run_is_a_folder_that_says_everything(finished):
    names = {path.name for path in finished.folder.iterdir()}
    assert {"config.json", "environment.json", "metrics.jsonl", "checkpoints"} <= names
    environment = json.loads((finished.folder / "environment.json").read_text())
    assert set(environment["packages"]) >= {"jax", "flax", "optax", "thinned"}
    assert len(environment["data"]["sha256"]) == 64
    assert thinned.Run.open(finished.folder).config == finished.config
    last = finished.metrics[-1]
    assert (last["split"], last["epoch"], last["step"]) == ("test", 6, 6 * (200 // 16))
    assert last["count"] == 77
    assert last["accuracy"] > 0.9


def test_another_run_of_the_same_shapes_compiles_nothing(finished, tiny_data, tmp_path, caplog):
    with jax.log_compiles():
        run = thinned.train(
            small_for(tiny_data, epochs=3, seed=5, learning_rate=0.02),
            runs=tmp_path,
        )
        run.evaluate()
    assert not [message for message in caplog.messages if message.startswith("Compiling")]


def test_a_warm_up_longer_than_the_run_goes_on_as_if_never_stopped(tiny_data, tmp_path):
    config = small_for(tiny_data, epochs=3, optim=OptimConfig(warmup_epochs=2))
    whole = thinned.train(config, name="whole", runs=tmp_path)
    short = thinned.train(dataclasses.replace(config, epochs=1), name="short", runs=tmp_path)
    grown = thinned.resume(short.folder, config)
    assert not differing(whole, grown)
    assert [record["loss"] for record in whole.metrics] == [
        record["loss"] for record in grown.metrics
    ]


def test_evaluating_a_run_gives_what_its_training_recorded(finished):
    totals = finished.evaluate().totals
    assert totals.correct == finished.metrics[-1]["correct"]
    assert totals.mean_loss == finished.metrics[-1]["loss"]


def test_prediction_gives_probabilities_that_agree_with_evaluation(finished, tiny_data):
    test = load_data(finished.config).test
    probabilities = finished.predict(test.images)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    right = int((probabilities.argmax(1) == test.labels).sum())
    assert right == finished.evaluate().totals.correct


def test_the_same_seed_repeats_bit_by_bit_and_another_does_not(finished, tmp_path):
    again = thinned.train(finished.config, runs=tmp_path)
    assert differing(finished, again) == []
    other = thinned.train(dataclasses.replace(finished.config, seed=1), runs=tmp_path)
    assert differing(finished, other) != []


def test_more_epochs_later_are_the_same_as_at_once(finished, tmp_path):
    short = dataclasses.replace(finished.config, epochs=2)
    run = thinned.train(short, name="grown", runs=tmp_path)
    grown = thinned.resume(run.folder, dataclasses.replace(short, epochs=6))
    assert differing(finished, grown) == []


def test_names_never_collide(tiny_data, tmp_path):
    config = small_for(tiny_data, epochs=1)
    folders = {thinned.train(config, runs=tmp_path).folder for _ in range(3)}
    assert len(folders) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "--seed: was 0, asked for 1"),
        ({"dropout": {"rate": 0.1}}, "--dropout.rate: was unset"),
        ({"epochs": 1}, "can only grow"),
    ],
)
def test_what_would_change_the_past_is_refused(finished, changes, message):
    with pytest.raises(RequestError, match=message):
        thinned.resume(finished.folder, with_values(finished.config, changes, "test"))
    with pytest.raises(RequestError, match=message):
        thinned.train(
            with_values(finished.config, changes, "test"), name="whole", runs=finished.folder.parent
        )


def test_other_versions_are_told_first(finished, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(finished.folder, copy)
    path = copy / "environment.json"
    environment = json.loads(path.read_text())
    environment["packages"]["jax"] = "0.0.1"
    path.write_text(json.dumps(environment))
    thinned.resume(copy)
    assert capsys.readouterr().err == ""
    path.write_text(json.dumps(environment))
    thinned.resume(copy, quiet=False)
    told = capsys.readouterr()
    assert "note: jax was 0.0.1" in told.err
    # Where a table may be expected.
    assert "note" not in told.out


def test_a_damaged_newest_checkpoint_costs_an_epoch_but_no_bits(finished, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(finished.folder, copy)
    newest = finished.checkpoints.steps()[-1]
    for path in (copy / "checkpoints" / str(newest)).rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    assert main(["evaluate", str(copy), "--format", "json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)
    assert f"checkpoint {newest}: " in told.err
    assert "using the one before it" in told.err
    again = thinned.resume(copy, quiet=False)
    assert f"checkpoint {newest}" in capsys.readouterr().err
    assert differing(finished, again) == []
    assert again.checkpoints.steps()[-1] == newest


def test_divergence_stops_with_the_step_and_keeps_the_last_good_checkpoint(tiny_data, tmp_path):
    config = small_for(tiny_data, learning_rate=1e30)
    with pytest.raises(ThinnedError, match=r"not finite at step \d+; .*--learning-rate"):
        thinned.train(config, name="bad", runs=tmp_path)
    assert not list((tmp_path / "bad").glob("checkpoints/[0-9]*"))


def test_a_second_process_is_kept_out(finished):
    import fcntl

    with (finished.folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RequestError, match="being trained by another process"):
            thinned.resume(finished.folder)


def test_any_name_can_be_trained_in_and_gone_on_with(tiny_data, tmp_path):
    config = small_for(tiny_data, epochs=1)
    run = thinned.train(config, name="a[1]\\😀", runs=tmp_path / "b*" / "\udc80")
    grown = thinned.resume(run.folder, dataclasses.replace(config, epochs=2))
    assert grown.evaluate().totals.correct == grown.metrics[-1]["correct"]


@dataclasses.dataclass(frozen=True)
class Slow(Dataset):
    """Data that take so long to look at that meanwhile something else happens."""

    meanwhile: list = dataclasses.field(default_factory=list)

    def __getattribute__(self, name):
        if name == "train" and (waiting := object.__getattribute__(self, "meanwhile")):
            waiting.pop()()
        return super().__getattribute__(name)


def slow(dataset: Dataset, meanwhile) -> Slow:
    fields = {each.name: getattr(dataset, each.name) for each in dataclasses.fields(dataset)}
    return Slow(**fields, meanwhile=[meanwhile])


def test_a_name_that_another_process_took_meanwhile_is_refused(tiny_data, tmp_path):
    first, second = (small_for(tiny_data, epochs=1, seed=seed) for seed in (0, 1))

    def meanwhile() -> None:
        thinned.train(first, name="x", runs=tmp_path)

    dataset = slow(load_data(second), meanwhile)
    with pytest.raises(RequestError, match="begun by another process meanwhile"):
        thinned.train(second, name="x", runs=tmp_path, dataset=dataset)
    run = thinned.Run.open(tmp_path / "x")
    assert run.config == dataclasses.replace(first, parallel="no")
    assert len(run.metrics) == 2


def test_a_thread_can_train(finished, tmp_path):
    runs: list[thinned.Run] = []
    config = dataclasses.replace(finished.config, epochs=1)
    thread = threading.Thread(target=lambda: runs.append(thinned.train(config, runs=tmp_path)))
    thread.start()
    thread.join()
    assert len(runs[0].metrics) == 2


def test_a_second_signal_goes_to_whoever_listened_before():
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGINT)
            assert (stop.number, heard) == (signal.SIGINT, [])
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT] * 2


def test_the_revision_is_that_of_the_package_and_not_of_who_uses_it(tmp_path, monkeypatch):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    installed = tmp_path / ".venv" / "site-packages" / "thinned"
    source = tmp_path / "src" / "thinned"
    for folder in (installed, source):
        folder.mkdir(parents=True)
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "one"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    # As in a hook of another repository.
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert head.stdout.startswith(git_revision(source))
    assert git_revision(installed) is None


@pytest.mark.parametrize(
    "text", ["[]", "5", '{"packages": []}', '{"packages": 5}', '{"data": "x"}', "{", "\udcff"]
)
def test_any_environment_can_be_compared(tmp_path, text):
    path = tmp_path / "environment.json"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    now = {"packages": {"jax": "1"}, "device": {}, "data": {"sha256": "0"}}
    assert all(line.startswith("note: ") for line in environment_changes(path, now))
    assert recorded_digest(tmp_path) is None


def test_a_pipe_among_the_files_of_a_run_is_not_waited_for(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished.folder, copy)
    for name in ("environment.json", "data.json", "metrics.jsonl"):
        (copy / name).unlink()
        os.mkfifo(copy / name)
    with pytest.raises(ThinnedError, match="metrics.jsonl: it is no regular file"):
        thinned.resume(copy)


def test_damaged_facts_are_known_anew_from_the_same_data_only(finished, tiny_data, tmp_path):
    data, copy = tmp_path / "data", tmp_path / "copy"
    shutil.copytree(tiny_data, data)
    shutil.copytree(finished.folder, copy)
    config = dataclasses.replace(finished.config, data=DataConfig(path=str(data)))
    (copy / "config.json").write_text(to_json(config))
    (copy / "data.json").write_text("{")
    run = thinned.Run.open(copy)
    assert dataclasses.replace(run.facts, name=finished.facts.name) == finished.facts
    # One class more, and every class another name: what the network says would be misread.
    write_idx(data, blobs(200, 2, classes=4), blobs(77, 1))
    with pytest.raises(RequestError, match="are no longer what"):
        _ = thinned.Run.open(copy).facts


def test_lines_that_are_no_records_are_passed_over(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    whole = {"split": "train", "epoch": 1, "step": 2}
    log.path.write_text('5\n[]\n{}\n"x"\n{"split": "tr\n' + json.dumps(whole) + "\n")
    log.keep_until(2)
    assert log.read() == [whole]


@pytest.mark.parametrize("saved", [{"totals": {}}, {"step": 3}, {"step": 3, "totals": {"los": 1}}])
def test_damaged_progress_of_before_is_told(saved):
    with pytest.raises(ThinnedError, match="is damaged .*: delete it"):
        Progress.from_json(saved)


def test_cores_are_counted_where_the_system_does_not_say_which():
    assert usable_cores(None) == list(range(os.cpu_count()))
    assert usable_cores(lambda process: {5, 2}) == [2, 5]


def start(folder: Path, config: Config, *, name: str = "killed") -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(to_json(config))
    command = [sys.executable, "-m", "thinned", "train", "-c", str(folder / "config.json")]
    return subprocess.Popen(
        [*command, "--runs", str(folder), "--name", name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.long
def test_killed_at_random_moments_it_still_ends_with_the_same_bits(tiny_data, tmp_path):
    """SIGKILL after a random line of output, or while a checkpoint is being written."""
    chance = random.Random(1)
    config = config_for(tiny_data, epochs=6, checkpoint_every_s=0.001)
    whole = thinned.train(config, name="whole", runs=tmp_path)
    kills = 0
    for _ in range(5):
        process = start(tmp_path, config)
        for _ in range(chance.randrange(1, 4)):
            process.stdout.readline()
        # Saving never pauses at this interval, so the kill falls into a save more often than not.
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    out, errors = start(tmp_path, config).communicate()
    assert kills >= 3, out + errors
    killed = thinned.Run.open(tmp_path / "killed")
    assert differing(whole, killed) == []


def told_how_to_go_on(folder: Path, errors: str) -> None:
    assert errors.count("\n") == 1
    assert f"thinned train --resume {folder}" in errors
    run = thinned.Run.open(folder)
    step = run.checkpoints.steps()[-1]
    assert f"step {step}" in errors
    assert run.metrics[-1]["step"] <= step


BOTH = pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])


@pytest.mark.long
@BOTH
def test_a_signal_saves_and_says_how_to_go_on(tiny_data, tmp_path, number, code):
    process = start(tmp_path, small_for(tiny_data, epochs=30_000))
    process.stdout.readline()
    process.stdout.readline()
    os.kill(process.pid, number)
    _, errors = process.communicate()
    assert process.returncode == code
    told_how_to_go_on(tmp_path / "killed", errors)


@BOTH
def test_so_does_a_signal_in_this_process(tiny_data, tmp_path, monkeypatch, capsys, number, code):
    """In this process, as soon as something is recorded."""
    append = MetricsLog.append

    def interrupted(log, records):
        append(log, records)
        # Once: a second signal stops at once.
        monkeypatch.setattr(MetricsLog, "append", append)
        signal.raise_signal(number)

    monkeypatch.setattr(MetricsLog, "append", interrupted)
    (tmp_path / "config.json").write_text(to_json(small_for(tiny_data, epochs=30_000)))
    words = ["train", "-c", str(tmp_path / "config.json"), "--runs", str(tmp_path), "--name", "x"]
    assert main(words) == code
    told_how_to_go_on(tmp_path / "x", capsys.readouterr().err)


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_what_was_recorded(tiny_data, tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    config = small_for(tiny_data, log="tensorboard")
    run = thinned.train(config, runs=tmp_path)
    events = event_accumulator.EventAccumulator(str(run.folder / "tensorboard")).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("loss/test")]
    recorded = [(r["step"], r["loss"]) for r in run.metrics if r["split"] == "test"]
    np.testing.assert_allclose(shown, recorded, rtol=1e-6)
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(RequestError, match=r"thinned\[tensorboard\]"):
        thinned.train(config, runs=tmp_path)


def test_a_name_that_is_too_long_is_no_run_and_no_unexpected_error(tmp_path):
    """Some versions of Python let methods of paths raise for it, others do not."""
    for ask in (Run.open, diagnose):
        with pytest.raises(RequestError, match="is no run folder"):
            ask(tmp_path / ("n" * 300))
    assert folder_of(tmp_path / ("n" * 300), None).name == "study-001"
