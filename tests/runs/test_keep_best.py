"""The best epoch is kept apart from the latest, and training stops early: both exact on resume."""

import collections
import dataclasses
import itertools
import json
import shutil
import types

import numpy as np
import pytest
from conftest import blobs, write_idx

import thinned
from thinned.cli.main import main
from thinned.core.config import Config, DataConfig, MlpConfig, OptimConfig
from thinned.core.errors import RequestError
from thinned.engine import loop
from thinned.engine.checkpoint import KEPT, Checkpoints, digest
from thinned.engine.evaluation import evaluate
from thinned.engine.loop import arrays_of
from thinned.runs.run import Run
from thinned.runs.verify import differing
from thinned.studies.arms import grid, varied
from thinned.studies.study import Study, run_study


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("best")


@pytest.fixture(scope="module")
def config(base):
    """Of labels that are partly wrong, so that learning them by heart costs validation."""
    (images, labels), random = blobs(160, 0), np.random.default_rng(0)
    wrong = np.where(random.random(160) < 0.4, random.integers(0, 3, 160), labels)
    data = DataConfig(path=write_idx(base / "data", (images, wrong), blobs(30, 1)), validation=40)
    mlp = MlpConfig(hidden=(16,))
    plain = {"batch_size": 20, "model": "mlp", "mlp": mlp, "epochs": 4, "learning_rate": 0.02}
    return Config(data=data, keep_best="nll", **plain)


@pytest.fixture(scope="module")
def whole(config, base):
    return thinned.train(config, name="whole", runs=base)


@pytest.fixture(scope="module")
def still(config):
    """A config of which no epoch is better than the first."""
    return dataclasses.replace(
        config, keep_best="accuracy", patience=2, learning_rate=1e-20, epochs=9, test="end"
    )


def validation_losses(run: Run) -> list[float]:
    return [record["loss"] for record in run.metrics if record["split"] == "validation"]


def test_the_best_epoch_is_what_predicts_and_the_latest_goes_on(whole, config, base):
    losses = validation_losses(whole)
    best = whole.best
    assert losses.index(min(losses)) == best.epoch - 1 < config.epochs - 1
    held = whole.dataset.validation
    found = evaluate(whole.state.apply_fn, whole.state.variables, held).totals
    assert found.mean_loss == best.value == min(losses)
    assert whole.checkpoints.steps()[-1] == 6 * 4
    # A shorter run has the same best as the longer one had by then, and goes on to the same end.
    short = thinned.train(dataclasses.replace(config, epochs=1), name="short", runs=base)
    assert short.best.epoch == 1
    grown = thinned.resume(short.folder, config)
    assert differing(whole, grown) == []


class Killed(BaseException):
    """As by kill -9: nothing that catches errors catches it."""


def test_killed_before_or_within_any_save_the_same_best_is_kept(whole, config, tmp_path):
    """Again and again, so that no attempt does more than an epoch; an epoch saves twice at most."""
    places = itertools.product(range(2), (False, True))
    kills = collections.Counter()
    for number, within in itertools.cycle(places):
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, number, within)
            try:
                killed = thinned.train(config, name="killed", runs=tmp_path)
                break
            except Killed:
                kills[number, within] += 1
    assert len(kills) == 4
    assert kills.total() > 2 * config.epochs
    assert differing(whole, killed) == []


def kill_at(patch: pytest.MonkeyPatch, number: int, within: bool) -> None:
    """Be killed at the save of that number: before it, or once it is on the disk."""
    save, forget, calls = Checkpoints.save, Checkpoints._forget, []

    def counted(self, *args):
        calls.append(0)
        if len(calls) > number and not within:
            raise Killed
        save(self, *args)

    def forgotten(self, step):
        if len(calls) > number:
            raise Killed
        forget(self, step)

    patch.setattr(Checkpoints, "save", counted)
    patch.setattr(Checkpoints, "_forget", forgotten)


def test_a_best_that_no_checkpoint_names_is_not_used(whole, tmp_path):
    copy = Run.open(shutil.copytree(whole.folder, tmp_path / "copy"))
    shutil.copytree(
        copy.best_checkpoints.folder / str(whole.best.step), copy.best_checkpoints.folder / "999"
    )
    assert copy.best == whole.best
    assert digest(arrays_of(copy.state)) == digest(arrays_of(whole.state))


def test_every_checkpoint_finds_the_best_that_it_names(config, tmp_path):
    """All epochs are better than those before; the newest checkpoint turns out damaged."""
    clean = DataConfig(path=config.data.path, validation=40)
    rising = dataclasses.replace(config, data=clean, learning_rate=1e-4, epochs=5)
    run = thinned.train(rising, name="rising", runs=tmp_path)
    steps = run.checkpoints.steps()
    assert [run.best.step, len(steps)] == [steps[-1], KEPT]
    assert len(run.best_checkpoints.steps()) == KEPT + 1
    for step in reversed(steps[1:]):
        shutil.rmtree(run.folder / "checkpoints" / str(step) / "arrays")
        before = Run.open(run.folder)
        assert before.best.step == step - 6
        assert before.best_checkpoints.restore(
            loop.to_predict(arrays_of(before.built.initial_state())), before.best.step
        )


def test_a_damaged_best_is_told_and_the_last_epoch_taken(whole, tmp_path, capsys):
    copy = Run.open(shutil.copytree(whole.folder, tmp_path / "copy"))
    shutil.rmtree(copy.best_checkpoints.folder / str(whole.best.step) / "arrays")
    held = copy.dataset.validation
    found = evaluate(copy.state.apply_fn, copy.state.variables, held).totals
    assert found.mean_loss == validation_losses(copy)[-1]
    assert "using the last epoch instead of the best" in capsys.readouterr().err


def test_commands_say_which_epoch_they_use(whole, capsys, tmp_path):
    told = f"epoch {whole.best.epoch}, the best on validation (nll {whole.best.value:.4f})"
    for words in (["evaluate", "--format", "json"], ["calibrate"], ["doctor", "--draws", "8"]):
        main([words[0], str(whole.folder), *words[1:]])
        out, err = capsys.readouterr()
        assert f"thinned: note: of {whole.folder}, {told} is used" in err or told in err
        assert told not in out
    page = tmp_path / "page.html"
    assert main(["report", str(whole.folder), "--out", str(page)]) == 0
    assert told in page.read_text()


def test_training_says_what_it_kept(config, tmp_path, capsys):
    words = ["--keep-best", "accuracy", "--epochs", "2", "--learning-rate", "1e-20"]
    words += ["--model", "mlp", "--mlp.hidden", "16", "--batch-size", "20"]
    words += ["--data.validation", "40"]
    assert main(["train", "--data", str(config.data.path), *words, "--runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "kept      epoch 1, the best on validation" in out
    assert "on all 30 images, after epoch 1" in out


def test_it_stops_early_and_a_stopped_run_is_done(still, tmp_path, capsys):
    run = thinned.train(still, name="still", runs=tmp_path, quiet=False)
    assert "stopped early at step 18: --patience 2 ended" in capsys.readouterr().out
    assert (run.best.epoch, run.metrics[-1]["epoch"]) == (1, 3)
    # The test images were read once, when it was over.
    assert [r["epoch"] for r in run.metrics if r["split"] == "test"] == [3]
    before = [run.metrics, run.checkpoints.steps()]
    again = thinned.resume(run.folder, quiet=False)
    assert [again.metrics, again.checkpoints.steps()] == before
    out = capsys.readouterr().out
    assert "stopped early at step 18" in out
    assert "resuming" not in out
    with pytest.raises(RequestError, match="--patience 2; it can only grow"):
        thinned.resume(run.folder, dataclasses.replace(still, patience=1))
    # More patience goes on, to what it would have been.
    patient = dataclasses.replace(still, patience=3, test="epoch")
    more = thinned.train(patient, name="more", runs=tmp_path)
    less = thinned.train(dataclasses.replace(patient, patience=1), name="less", runs=tmp_path)
    assert differing(more, thinned.resume(less.folder, patient)) == []
    assert more.metrics[-1]["epoch"] == 4


def test_an_average_is_kept_as_it_was_evaluated(config, tmp_path):
    averaged = dataclasses.replace(config, optim=OptimConfig(ema=0.9), epochs=2)
    run = thinned.train(averaged, name="averaged", runs=tmp_path)
    found = evaluate(run.state.apply_fn, run.state.variables, run.dataset.validation).totals
    assert found.mean_loss == run.best.value == min(validation_losses(run))


def test_an_arm_that_stops_early_is_finished(still, tmp_path):
    study = Study.of(still, grid(varied(("learning_rate=1e-20,1e-21",), still)), (0,))
    rows = run_study(study, tmp_path / "study")
    outcomes = [row.outcomes[0] for row in rows]
    assert [(each.status, each.epochs) for each in outcomes] == [("finished", 3)] * 2
    place = next((tmp_path / "study").glob("*/seed-0"))
    outcome = json.loads((place / "outcome.json").read_text())
    assert outcome["scores"]["validation"]["accuracy"] == Run.open(place).best.value


def test_what_cannot_be_is_refused(config, tmp_path, capsys):
    words = ["train", "--data", str(config.data.path), "--runs", str(tmp_path)]
    assert main([*words, "--keep-best", "accuracy"]) == 2
    assert "there are none: give --data.validation N" in capsys.readouterr().err
    assert main([*words, "--patience", "3"]) == 2
    assert "it goes with --keep-best accuracy or nll" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_long_run_says_so_before_it_takes_long(config, tmp_path, monkeypatch, capsys):
    """By a clock that goes eight seconds further at each look."""
    now = iter(range(10**6))
    clock = types.SimpleNamespace(monotonic=lambda: 8.0 * next(now), time=lambda: 0.0)
    monkeypatch.setattr(loop, "time", clock)
    thinned.train(config, name="long", runs=tmp_path, quiet=False)
    out = capsys.readouterr().out
    assert out.count("about 3 min for 4 epochs (0.125 steps a second, evaluation apart)") == 1
    assert out.index("about 3 min") < out.index("epoch 1/4")
    thinned.train(config, name="quiet", runs=tmp_path)
    assert "".join(capsys.readouterr()) == ""
