"""`thinned doctor`: the audit of runs and configs, and its exit code."""

import json
import os

import numpy as np
import pytest

from thinned.cli.main import main
from thinned.core.config import Config, DataConfig, DropoutConfig
from thinned.runs import doctor
from thinned.runs.doctor import diagnose
from thinned.runs.train import train

SMALL = {"model": "mlp", "mlp": {"hidden": [16]}}
"""Where it is of no matter which network it is."""


def write(path, data, **options):
    path.write_text(json.dumps({"data": {"path": str(data)}, "batch_size": 20, **options}))
    return path


# What it says of learned rates is in tests/dropout/test_audit.py, too.
@pytest.mark.parametrize(
    "kind", ["element", "connect", pytest.param("concrete", marks=pytest.mark.long)]
)
def test_a_run_passes_with_its_own_keys_and_rates(tiny_data, tmp_path, kind):
    dropout = DropoutConfig(kind=kind, rate=0.4)
    config = Config(data=DataConfig(path=tiny_data), epochs=1, batch_size=20, dropout=dropout)
    run = train(config, runs=tmp_path)
    found = diagnose(run.folder)
    assert found.passed, str(found)
    (site,) = found.sites
    # Of kind connect it is the weights that are dropped.
    assert (site.shape[0] == 16) == (kind != "connect")
    if kind == "concrete":
        assert site.rate != pytest.approx(0.4, abs=1e-6)
        assert abs(site.effective - site.rate) < 5 * site.error
    else:
        assert site.rate == pytest.approx(0.4)


def test_the_printed_tutorial_fails_with_exit_code_1(tiny_data, tmp_path, capsys):
    flags = os.environ.get("XLA_FLAGS")
    config = write(tmp_path / "c.json", tiny_data, recipe="tutorial-as-printed")
    assert main(["doctor", str(config), "--draws", "8"]) == 1
    shown = capsys.readouterr()
    assert "FAIL  masks change from step to step: Dropout_0" in shown.out
    assert shown.err.strip() == f"thinned: {config} fails its audit"
    assert main(["doctor", str(write(tmp_path / "good.json", tiny_data)), "--draws", "8"]) == 0
    # The devices that a CPU passed for are nothing to processes begun later.
    assert os.environ.get("XLA_FLAGS") == flags


def test_a_schedule_that_never_turns_dropout_on_is_caught(tiny_data, tmp_path):
    late = {"schedule": "late", "schedule_epochs": 20.0}
    found = diagnose(
        write(tmp_path / "c.json", tiny_data, epochs=3, dropout=late, **SMALL), draws=8
    )
    # At each site.
    assert {check.question for check in found.failures()} == {
        "the schedule turns dropout on at some step"
    }
    assert diagnose(
        write(tmp_path / "d.json", tiny_data, epochs=21, dropout=late, **SMALL), draws=8
    ).passed


@pytest.mark.parametrize(
    ("change", "question"),
    [
        ({"randomness": {"shuffle": "frozen"}}, "images come in a new order in each epoch"),
        ({"learning_rate": 0.5}, "the learning rate is not too large"),
        ({"learning_rate": 1e30}, "the learning rate is not too large"),
    ],
    ids=["order", "rate", "no number"],
)
def test_an_order_that_is_frozen_and_a_rate_too_large_are_caught(
    tiny_data, tmp_path, change, question
):
    found = diagnose(write(tmp_path / "c.json", tiny_data, **SMALL, **change), draws=8)
    assert [check.question for check in found.failures()] == [question]


def test_a_run_of_few_steps_tells_nothing_of_its_learning_rate(tiny_data, tmp_path):
    found = diagnose(
        write(tmp_path / "c.json", tiny_data, learning_rate=0.5, epochs=1, **SMALL), draws=8
    )
    (check,) = (check for check in found.checks if "learning rate" in check.question)
    assert check.passed is None
    assert found.passed


def test_the_learning_rate_is_tried_on_images_from_all(tmp_path, monkeypatch):
    labels = np.repeat(np.arange(4), 100)
    images = np.repeat(labels, 64).reshape(-1, 8, 8, 1).astype(np.uint8)
    arrays = {"x_train": images, "y_train": labels, "x_test": images[::9], "y_test": labels[::9]}
    np.savez(tmp_path / "sorted.npz", **arrays)
    monkeypatch.setattr(doctor, "_EXAMPLES", 100)
    case = doctor._Case.open(write(tmp_path / "c.json", tmp_path / "sorted.npz", **SMALL))
    assert np.bincount(np.asarray(case.few_images.labels), minlength=4).min() > 10
