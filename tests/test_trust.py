"""Prediction with uncertainty, from the command line and from Python."""

import csv
import json
import shutil

import numpy as np
import pytest
from conftest import blobs, write_idx
from PIL import Image
from scipy import special
from sklearn import metrics

from thinned import trust
from thinned.cli import main
from thinned.config import Config, DataConfig, DropoutConfig
from thinned.errors import RequestError
from thinned.run import train
from thinned.types import Split


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("trust")


@pytest.fixture(scope="module")
def data(base):
    return write_idx(base / "data", blobs(300, 0), blobs(77, 1))


def config(data, **options):
    held = DataConfig(path=str(data), validation=60)
    return Config(data=held, epochs=4, batch_size=20, **options)


@pytest.fixture(scope="module")
def runs(base, data):
    return [train(config(data, seed=seed), runs=base, name=f"s{seed}") for seed in (0, 1)]


@pytest.fixture(scope="module")
def pictures(base):
    folder = base / "pictures"
    folder.mkdir()
    images, _ = blobs(12, 5)
    for index, image in enumerate(images):
        Image.fromarray(image).resize((30, 24)).save(folder / f"{index:02}.png")
    return folder


def refused(capsys, *words, code=2):
    assert main(list(words)) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_a_plain_prediction_is_the_runs_own_and_samples_are_around_it(runs):
    test = runs[0].dataset.test
    plain = trust.predictions_of(runs[:1], test.images)
    np.testing.assert_allclose(
        plain.probabilities, runs[0].predict(np.asarray(test.images)), atol=1e-6
    )
    assert plain.samples == 1
    assert not plain.mutual_information.any()
    sampled = trust.predictions_of(runs[:1], test.images, samples=50)
    assert sampled.samples == 50
    assert np.abs(sampled.probabilities - plain.probabilities).mean() < 0.1
    assert sampled.mutual_information.max() > 0.001
    both = trust.predictions_of(runs, test.images)
    logits = runs[0].state.apply_fn(runs[0].state.variables, np.float32(test.images) / 255)
    np.testing.assert_allclose(plain.energy, -special.logsumexp(logits, 1), rtol=1e-4, atol=1e-5)
    mean = np.mean([run.predict(np.asarray(test.images)) for run in runs], 0)
    np.testing.assert_allclose(both.probabilities, mean, atol=1e-6)


def test_scores_on_the_terminal_are_those_of_scikit_learn(runs, capsys):
    assert main(["evaluate", str(runs[0].folder)]) == 0
    shown = capsys.readouterr().out
    test = runs[0].dataset.test
    p = runs[0].predict(np.asarray(test.images)).astype(float)
    p /= p.sum(1, keepdims=True)
    assert f"loss          {metrics.log_loss(test.labels, p):.4f} nats" in shown
    accuracy = metrics.accuracy_score(test.labels, p.argmax(1))
    assert f"accuracy      {accuracy:.2%}" in shown
    assert "of 77 images" in shown or "77 images" in shown
    f1 = metrics.f1_score(test.labels, p.argmax(1), average=None)
    assert f"{f1[0]:.2%}" in shown.splitlines()[-3]


def test_other_images_and_damage_are_scored(runs, base, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (60, 8, 8)).astype(np.uint8)
    other = write_idx(base / "noise", (noise, np.arange(60) % 3), (noise[:40], np.arange(40) % 3))
    words = ["evaluate", str(runs[0].folder), "--samples", "10", "--ood", str(other), "--corrupt"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "40 other images" in shown
    assert shown.count("AUROC") == 4
    assert shown.count("occlusion") == 3
    found = trust.appraise(runs[:1], runs[0].dataset.test, 10)
    told = trust.outsiders(runs[:1], str(other), found.predictions, 10)
    outside = trust.predictions_of(runs[:1], noise[:40, ..., None], 10)
    target = np.repeat([0, 1], [77, 40])
    expected = metrics.roc_auc_score(
        target, np.concatenate([found.predictions.entropy, outside.entropy])
    )
    assert told["entropy"]["auroc"] == pytest.approx(expected, abs=1e-6)
    same = refused(capsys, "evaluate", str(runs[0].folder), "--ood", runs[0].config.data.path)
    assert "the run's own test images" in same


@pytest.mark.parametrize("kind", trust.CORRUPTIONS)
def test_damage_grows_with_its_severity_and_repeats(kind):
    images, labels = blobs(6, 0, size=20)
    split = Split(images[..., None], labels.astype(np.int32))
    changes = [
        np.abs(trust.corrupted(split, kind, level).images - images[..., None].astype(float)).mean()
        for level in (1, 3, 5)
    ]
    assert 0 < changes[0] < changes[2]
    again = trust.corrupted(split, kind, 3).images
    assert np.array_equal(again, trust.corrupted(split, kind, 3).images)
    assert again.dtype == np.uint8


def test_a_temperature_is_fitted_saved_and_applied(runs, base, capsys):
    folder = base / "calibrated"
    shutil.copytree(runs[0].folder, folder)
    assert "is not calibrated" in refused(capsys, "evaluate", str(folder), "--calibrated")
    assert main(["calibrate", str(folder)]) == 0
    run = trust.load_runs([folder])[0]
    temperature = trust.temperature_of(run)
    assert f"temperature {temperature:.4f}" in capsys.readouterr().out
    held = run.dataset.validation
    plain, scaled = (trust.appraise([run], held, calibrated=on).scores for on in (False, True))
    assert scaled["nll"] <= plain["nll"] + 1e-9
    assert scaled["accuracy"] == plain["accuracy"]
    (folder / "calibration.json").write_text("{")
    assert "is not calibrated" in refused(capsys, "evaluate", str(folder), "--calibrated")


def test_the_worth_of_samples_is_one_table(runs, base, capsys):
    folder = base / "worth"
    shutil.copytree(runs[0].folder, folder)
    assert main(["calibrate", str(folder)]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(folder), str(runs[1].folder), "--worth"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:18].strip() for line in lines[1:]] == [
        "plain pass",
        "temperature",
        "MC, 1 samples",
        "MC, 10 samples",
        "MC, 30 samples",
        "MC, 100 samples",
        "ensemble of 2",
    ]
    methods = trust.worth(trust.load_runs([folder]), counts=(20,))
    plain, sampled = methods[0], methods[-1]
    assert plain.nll_difference == (0.0, 0.0, 0.0)
    assert plain.p_value == 1.0
    mean = sampled.appraisal.scores["nll"] - plain.appraisal.scores["nll"]
    assert sampled.nll_difference[0] == pytest.approx(mean)
    assert sampled.nll_difference[1] <= mean <= sampled.nll_difference[2]


def test_samples_are_enough_when_the_interval_is_narrow(runs):
    images = np.asarray(runs[0].dataset.test.images)
    few, many = (trust.enough_samples(runs[:1], images, wide) for wide in (0.5, 0.0005))
    assert few == 16
    assert many > few
    found = trust.predictions_of(runs[:1], images, many)
    assert 1.96 * found.deviation.mean() / np.sqrt(many) <= 0.0005 or many == 1024


def test_parquet_and_auto(runs, pictures, base, capsys):
    parquet = pytest.importorskip("pyarrow.parquet")
    out = base / "out.parquet"
    words = ["predict", str(runs[0].folder), str(pictures), "--samples", "auto"]
    assert main([*words, "--format", "parquet", "--out", str(out)]) == 0
    assert "samples" in capsys.readouterr().err
    assert main(["evaluate", str(runs[0].folder), "--samples", "auto"]) == 0
    assert capsys.readouterr().out.startswith("16 samples")
    assert parquet.read_table(out).num_rows == 12
    assert "needs --out" in refused(capsys, *words[:3], "--format", "parquet")


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_files_are_predicted_in_every_format(runs, pictures, form, capsys):
    words = ["predict", str(runs[0].folder), str(pictures), "--samples", "5", "--risk", "0.1"]
    assert main([*words, "--format", form]) == 0
    lines = capsys.readouterr().out.splitlines()
    if form == "json":
        rows = [json.loads(line) for line in lines]
    elif form == "csv":
        rows = list(csv.DictReader(lines))
    else:
        assert lines[0].split()[:2] == ["class", "probability"]
        assert len(lines) == 13
        return
    assert [row["path"] for row in rows] == [str(pictures / f"{i:02}.png") for i in range(12)]
    assert set(rows[0]) == {
        "path",
        "class",
        "probability",
        "entropy",
        "mutual_information",
        "deviation",
        "unsure",
    }
    assert all(row["class"] in "012" for row in rows)


def test_a_broken_file_is_named_and_the_others_are_written_whole(runs, pictures, base, capsys):
    folder = base / "mixed"
    shutil.copytree(pictures, folder)
    (folder / "03.png").write_bytes(b"broken")
    out = base / "out.csv"
    words = ["predict", str(runs[0].folder), str(folder), "--format", "csv", "--out", str(out)]
    assert main(words) == 1
    assert "03.png: no image" in capsys.readouterr().err
    assert len(out.read_text().splitlines()) == 12
    assert main([*words[:-1], "/nowhere/out.csv"]) == 1


def test_unsure_marks_leave_only_the_wanted_risk(runs):
    held = runs[0].dataset.validation
    threshold = trust.threshold_for(runs[:1], 0.05, 0, calibrated=False)
    p = runs[0].predict(np.asarray(held.images))
    answered = p.max(1) >= threshold - 1e-7
    assert answered.any()
    assert np.mean(p.argmax(1)[answered] != held.labels[answered]) <= 0.05 + 1e-9
    assert trust.threshold_for(runs[:1], 1.0, 0, calibrated=False) <= p.max(1).min() + 1e-6


def test_what_makes_no_sense_is_refused_in_one_line(runs, base, data, pictures, capsys):
    run, folder = str(runs[0].folder), str(pictures)
    assert "no images are given" in refused(capsys, "predict", run)
    assert "does not exist" in refused(capsys, "predict", run, "/nowhere")
    assert "is no run folder" in refused(capsys, "predict", folder)
    assert "--risk is 2.0" in refused(capsys, "predict", run, folder, "--risk", "2")
    assert "--samples is -1" in refused(capsys, "predict", run, folder, "--samples", "-1")
    empty = base / "empty"
    empty.mkdir()
    assert "no images are given" in refused(capsys, "predict", run, str(empty))
    plain = DataConfig(path=str(data))
    none = Config(data=plain, epochs=1, batch_size=20, dropout=DropoutConfig(rate=0.0))
    bare = train(none, runs=base, name="bare")
    assert "has no validation images" in refused(capsys, "calibrate", str(bare.folder))
    words = ["predict", str(bare.folder), folder]
    assert "has no validation images" in refused(capsys, *words, "--risk", "0.1")
    assert "trained without dropout" in refused(capsys, *words, "--samples", "5")
    other = write_idx(base / "two", blobs(60, 0, classes=2), blobs(20, 1, classes=2))
    two = Config(data=DataConfig(path=str(other)), epochs=1, batch_size=20)
    pair = train(two, runs=base, name="two")
    assert "they are no ensemble" in refused(capsys, "evaluate", run, str(pair.folder))
    with pytest.raises(RequestError, match="no run is given"):
        trust.load_runs([])
