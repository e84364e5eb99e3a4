import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import blobs

import thinned
from thinned.core.config import Config, DataConfig, MlpConfig, with_values
from thinned.core.errors import RequestError, ThinnedError
from thinned.data.facts import Facts
from thinned.data.sources.arrays import Arrays
from thinned.data.sources.load import load_data
from thinned.engine.build import make_augment
from thinned.runs.verify import differing


def config_for(tiny_data: Path, **changes) -> Config:
    base = Config(data=DataConfig(path=tiny_data), epochs=2, batch_size=16, learning_rate=0.01)
    return dataclasses.replace(base, **changes)


@pytest.fixture(scope="session")
def finished(tiny_data, tmp_path_factory) -> thinned.Run:
    """A run of six epochs that nobody interrupted."""
    runs = tmp_path_factory.mktemp("finished")
    return thinned.train(config_for(tiny_data, epochs=6), name="whole", runs=runs)


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
    config = config_for(tiny_data, epochs=1)
    folders = {thinned.train(config, runs=tmp_path).folder for _ in range(3)}
    assert len(folders) == 3


def test_validation_is_recorded_apart_and_shrinks_training(tiny_data, tmp_path):
    config = config_for(tiny_data, data=DataConfig(path=tiny_data, validation=33), epochs=1)
    run = thinned.train(config, runs=tmp_path)
    counts = {record["split"]: record["count"] for record in run.metrics}
    assert counts == {"train": 160, "validation": 33, "test": 77}


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
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(finished.folder, copy)
    path = copy / "environment.json"
    environment = json.loads(path.read_text())
    environment["packages"]["jax"] = "0.0.1"
    path.write_text(json.dumps(environment))
    thinned.resume(copy)
    assert "note: jax was 0.0.1" in capsys.readouterr().out


def test_a_damaged_newest_checkpoint_costs_an_epoch_but_no_bits(finished, tmp_path, capsys):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(finished.folder, copy)
    newest = finished.checkpoints.steps()[-1]
    for path in (copy / "checkpoints" / str(newest)).rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    again = thinned.resume(copy, quiet=False)
    assert f"checkpoint {newest}" in capsys.readouterr().out
    assert differing(finished, again) == []


def test_divergence_stops_with_the_step_and_keeps_the_last_good_checkpoint(tiny_data, tmp_path):
    config = config_for(tiny_data, learning_rate=1e30)
    with pytest.raises(ThinnedError, match=r"not finite at step \d+; .*--learning-rate"):
        thinned.train(config, name="bad", runs=tmp_path)
    assert not list((tmp_path / "bad").glob("checkpoints/[0-9]*"))


def test_a_second_process_is_kept_out(finished):
    import fcntl

    with (finished.folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RequestError, match="being trained by another process"):
            thinned.resume(finished.folder)


def start(folder: Path, config: Config, *, name: str = "killed") -> subprocess.Popen[str]:
    from thinned.core.config import to_json

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(to_json(config))
    command = [sys.executable, "-m", "thinned", "train", "-c", str(folder / "config.json")]
    return subprocess.Popen(
        [*command, "--runs", str(folder), "--name", name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_killed_at_random_moments_it_still_ends_with_the_same_bits(finished, tmp_path):
    """SIGKILL after a random line of output, or while a checkpoint is being written."""
    chance = random.Random(1)
    config = dataclasses.replace(finished.config, checkpoint_every_s=0.001)
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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(finished, tmp_path, number, code):
    config = dataclasses.replace(finished.config, epochs=3000)
    process = start(tmp_path, config)
    process.stdout.readline()
    process.stdout.readline()
    os.kill(process.pid, number)
    _, errors = process.communicate()
    assert process.returncode == code
    assert errors.count("\n") == 1
    assert f"thinned train --resume {tmp_path / 'killed'}" in errors
    run = thinned.Run.open(tmp_path / "killed")
    step = run.checkpoints.steps()[-1]
    assert f"step {step}" in errors
    assert run.metrics[-1]["step"] <= step


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_what_was_recorded(tiny_data, tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    config = Config(data=DataConfig(path=tiny_data), epochs=2, batch_size=20, log="tensorboard")
    run = thinned.train(config, runs=tmp_path)
    events = event_accumulator.EventAccumulator(str(run.folder / "tensorboard")).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("loss/test")]
    recorded = [(r["step"], r["loss"]) for r in run.metrics if r["split"] == "test"]
    np.testing.assert_allclose(shown, recorded, rtol=1e-6)
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(RequestError, match=r"thinned\[tensorboard\]"):
        thinned.train(config, runs=tmp_path)


def test_arrays_of_a_program_are_trained_on_evaluated_and_gone_on_with(tmp_path):
    images, labels = blobs(120, 0, size=28)
    data = Arrays({"": (images, labels)}, DataConfig()).load()
    config = Config(model="mlp", mlp=MlpConfig(hidden=(16,)), batch_size=24, epochs=2)
    whole = thinned.train(config, dataset=data, runs=tmp_path)
    # Neither taken for the package's MNIST, which is not normalised, nor evaluated on it.
    assert whole.facts.mean is not None
    assert make_augment(config, whole.facts) is not None
    assert whole.evaluate(dataset=data).totals.count == len(data.test)
    for ask in (whole.evaluate, partial(thinned.resume, whole.folder)):
        with pytest.raises(RequestError, match=r"learned from arrays of a program.*dataset="):
            ask()
    short = thinned.train(dataclasses.replace(config, epochs=1), dataset=data, runs=tmp_path)
    grown = thinned.resume(short.folder, config, dataset=data)
    assert differing(whole, grown) == []


def test_facts_saved_before_plain_data_were_told_apart_are_still_read(finished):
    values = json.loads(finished.facts.to_json())
    del values["plain"]
    for plain in (True, False):
        assert Facts.from_json(json.dumps(values), plain).plain is plain
