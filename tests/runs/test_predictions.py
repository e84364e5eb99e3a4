"""Prediction with uncertainty, from the command line and from Python."""

import csv
import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import blobs, write_idx
from PIL import Image
from scipy import special, stats
from sklearn import metrics

from thinned.cli.main import main
from thinned.core.config import Config, DataConfig, DropoutConfig
from thinned.core.errors import RequestError
from thinned.core.types import Split
from thinned.data.damage import MNIST_C, Corruptions, Kind, corrupted
from thinned.models.apply import features_by_batch, last_dense
from thinned.runs import calibration, ood, worth
from thinned.runs import evaluate as scoring
from thinned.runs import predictions as trust
from thinned.runs.answers import answers_of
from thinned.runs.calibration import Calibration, fit
from thinned.runs.files import columns, predict_files
from thinned.runs.train import train
from thinned.trust import scores
from thinned.trust.conformal import Conformal, SetScores
from thinned.trust.intervals import crossed_interval
from thinned.trust.ood import OOD_SCORES
from thinned.trust.sampling import Predictions
from thinned.trust.selection import select


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("trust")


@pytest.fixture(scope="module")
def data(base):
    return write_idx(base / "data", blobs(300, 0), blobs(77, 1))


def config(data, **options):
    # Each seed has a split of its own.
    held = DataConfig(path=str(data), validation=60, split_seed=None)
    return Config(data=held, epochs=4, batch_size=20, **options)


@pytest.fixture(scope="module")
def runs(base, data):
    return [train(config(data, seed=seed), runs=base, name=f"s{seed}") for seed in (0, 1)]


@pytest.fixture(scope="module")
def alike(runs, base, data):
    """Runs that held out the same images, as those of several seeds do by default."""
    asked = config(data, seed=1)
    asked = replace(asked, data=replace(asked.data, split_seed=0))
    return [runs[0], train(asked, runs=base, name="other")]


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
    row = next(line for line in shown.splitlines() if line.startswith("0 "))
    assert f"{f1[0]:.2%}" in row
    matrix = metrics.confusion_matrix(test.labels, p.argmax(1))
    for name, counts in enumerate(matrix):
        line = [str(name), *map(str, counts)]
        assert line in [each.split() for each in shown.splitlines()]
    assert "mean confidence" in shown


def test_scores_are_written_whole_as_json(runs, base, capsys):
    out = base / "scores.json"
    words = ["evaluate", str(runs[0].folder), "--format", "json", "--out", str(out)]
    assert main(words) == 0
    assert not capsys.readouterr().out
    told = json.loads(out.read_text())
    found = trust.appraise(runs[:1], runs[0].dataset.test)
    assert told["scores"] == pytest.approx(found.scores)
    assert told["confusion"] == found.confusion.tolist()
    assert sum(count for _, _, count in told["confused"]) == 77
    assert sum(told["reliability"]["count"]) == 77
    assert len(told["risk_coverage"]["risk"]) == 77
    assert told["reliability"]["accuracy"][0] is None
    assert main([*words[:-1], "/nowhere/scores.json"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_other_images_and_damage_are_scored(runs, base, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (60, 8, 8)).astype(np.uint8)
    other = write_idx(base / "noise", (noise, np.arange(60) % 3), (noise[:40], np.arange(40) % 3))
    words = ["evaluate", str(runs[0].folder), "--samples", "10", "--ood", str(other), "--corrupt"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "40 other images" in shown
    assert shown.count("AUROC") == 4 + len(OOD_SCORES) - 1
    assert "mean of the kinds" in shown
    told = scoring.evaluate_runs(runs[:1], lambda _: None, samples=10, ood=str(other))["ood"]
    inside = trust.predictions_of(runs[:1], runs[0].dataset.test.images, 10)
    outside = trust.predictions_of(runs[:1], noise[:40, ..., None], 10)
    target = np.repeat([0, 1], [77, 40])
    expected = metrics.roc_auc_score(target, np.concatenate([inside.entropy, outside.entropy]))
    assert told["images"] == 40
    assert told["measures"]["entropy"]["auroc"] == pytest.approx(expected, abs=1e-6)


def test_damage_is_scored_by_kind_and_over_kinds(runs):
    lines = []
    told = scoring.evaluate_runs(runs[:1], lines.append, corrupt=True)["damage"]
    assert told["set"] == "MNIST-C"
    assert [row["kind"] for row in told["rows"]] == [*MNIST_C.kinds]
    test = runs[0].dataset.test
    for row in told["rows"][:2]:
        spoilt = corrupted(test, MNIST_C.kinds[row["kind"]], 1).images
        right = runs[0].predict(np.asarray(spoilt)).argmax(1) == test.labels
        assert row["scores"]["accuracy"] == pytest.approx(right.mean())
    values = [row["scores"]["accuracy"] for row in told["rows"]]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    over = told["over_kinds"]["accuracy"]
    assert (over["low"], over["high"]) == pytest.approx(expected)
    assert f"mean of the kinds   {np.mean(values):>8.2%}" in "\n".join(lines)


def test_damage_of_several_severities_is_their_mean(monkeypatch):
    images = np.full((4, 3, 3, 3), 128, np.uint8)
    kind = Kind(lambda images, randoms, by: images * 0 + by, ((0.0,), (1.0,)))
    few = Corruptions("few", {"one": kind, "two": Kind(kind.way, ((1.0,),))})
    monkeypatch.setattr(scoring, "corruptions_for", lambda shape: few)

    def appraised(split):
        value = split.images.mean() / 255
        return SimpleNamespace(scores={"accuracy": value, "nll": 2 * value, "ece": value})

    told = scoring._damaged(Split(images, np.zeros(4, np.int32)), lambda _: None, appraised)
    assert [row["severity"] for row in told["rows"]] == [1, 2, 1]
    assert told["kinds"]["one"] == {"accuracy": 0.5, "nll": 1, "ece": 0.5}
    assert told["over_kinds"]["nll"]["mean"] == 1.5


def test_the_test_images_in_another_order_are_no_others_and_nothing_is_printed(runs, base, capsys):
    images, labels = blobs(77, 1)
    order = np.random.default_rng(0).permutation(77)
    turned = write_idx(base / "turned", blobs(60, 0), (images[order], labels[order]))
    for command in ("evaluate", "report"):
        assert main([command, str(runs[0].folder), "--ood", str(turned)]) == 2
        told = capsys.readouterr()
        assert "these are the test images themselves" in told.err
        assert not told.out
    other = write_idx(base / "used", blobs(60, 0), blobs(50, 9))
    words = ["evaluate", str(runs[0].folder), "--data.path", str(other), "--ood"]
    assert "the test images themselves" in refused(capsys, *words, str(other))
    assert main([*words, str(turned)]) == 0


def test_outsiders_are_tempered_as_the_test_images_are(runs, base):
    folder = base / "tempered"
    shutil.copytree(runs[0].folder, folder)
    run = trust.load_runs([folder])[0]
    calibration.keep([run], 0, Calibration(3.0, 0.0, 0.0, 60))
    noise = np.random.default_rng(0).integers(0, 256, (50, 8, 8)).astype(np.uint8)
    other = write_idx(base / "noises", (noise, np.arange(50) % 3), (noise, np.arange(50) % 3))
    told = scoring.evaluate_runs([run], lambda _: None, calibrated=True, ood=str(other))["ood"]
    inside, outside = (
        trust.predictions_of([run], images, calibrated=True)
        for images in (run.dataset.test.images, noise[..., None])
    )
    expected = scores.auroc(inside.entropy, outside.entropy)
    assert told["measures"]["entropy"]["auroc"] == pytest.approx(expected)
    untempered = trust.predictions_of([run], noise[..., None])
    assert not np.allclose(outside.entropy, untempered.entropy)
    np.testing.assert_array_equal(outside.energy, untempered.energy)


def test_runs_of_different_data_are_no_ensemble(runs, base, pictures, capsys):
    other = write_idx(base / "elsewhere", blobs(300, 8), blobs(77, 9))
    stranger = train(config(other), runs=base, name="stranger")
    words = [str(runs[0].folder), str(stranger.folder)]
    assert "have different test images" in refused(capsys, "evaluate", *words)
    assert main(["evaluate", *words, "--data.path", str(other)]) == 0
    capsys.readouterr()
    assert main(["predict", *words, str(pictures)]) == 0
    assert "learned from other data" in capsys.readouterr().err
    assert main(["predict", *(str(run.folder) for run in runs), str(pictures)]) == 0
    assert not capsys.readouterr().err


def test_a_temperature_is_fitted_saved_and_applied(runs, base, capsys):
    folder = base / "calibrated"
    shutil.copytree(runs[0].folder, folder)
    assert "is not calibrated" in refused(capsys, "evaluate", str(folder), "--calibrated")
    assert main(["calibrate", str(folder)]) == 0
    run = trust.load_runs([folder])[0]
    temperature = calibration.temperature_of([run])
    assert f"temperature {temperature:.4f}" in capsys.readouterr().out
    held = run.dataset.validation
    plain, scaled = (trust.appraise([run], held, calibrated=on).scores for on in (False, True))
    assert scaled["nll"] <= plain["nll"] + 1e-9
    assert scaled["accuracy"] == plain["accuracy"]
    (folder / "calibration.json").write_text("{")
    assert "is not calibrated" in refused(capsys, "evaluate", str(folder), "--calibrated")


def test_a_temperature_that_nothing_supports_is_doubted(runs, monkeypatch, capsys, base):
    folder = base / "doubted"
    shutil.copytree(runs[0].folder, folder)
    monkeypatch.setattr(scores, "fit_temperature", lambda *_: scores.TEMPERATURES[1] * 0.9999)
    held = runs[0].dataset.validation
    right = np.eye(3)[held.labels]
    for told, reason in ((right, "validation images are right"), (right[::-1], "as far as")):
        found = Predictions(told, np.zeros(60), np.zeros(60), np.zeros(60), 1)
        monkeypatch.setattr(trust, "predictions_of", lambda *_, found=found: found)
        assert main(["calibrate", str(folder)]) == 0
        error = capsys.readouterr().err
        assert reason in error
        assert error.count("\n") == 1


WAYS = [
    "plain pass",
    "MC, 1 sample",
    "MC, 10 samples",
    "MC, 30 samples",
    "MC, 100 samples",
    "Laplace, last layer",
]


def test_the_worth_of_samples_is_a_table_as_they_are_and_one_with_temperatures(alike, capsys):
    folders = [str(run.folder) for run in alike]
    assert main(["evaluate", *folders, "--worth"]) == 0
    told = capsys.readouterr().out
    first, second, explained = told.split("\n\n")
    for table in (first.splitlines(), second.splitlines()[1:]):
        names = [line.split("  ")[0] for line in table[1:]]
        assert [*names[:6], names[7]] == [*WAYS, "ensemble of 2"]
        for name, other in ((names[6], "Laplace"), (names[8], "the ensemble")):
            assert re.fullmatch(rf"MC, \d+ samples?, as long as {other}", name)
    assert explained.startswith("scores and differences are means over 5 draws of masks")
    assert not (alike[0].folder / "calibration.json").exists()
    words = ["evaluate", folders[0], "--worth", "--samples", "5", "--corrupt"]
    assert "leave out --samples, --corrupt" in refused(capsys, *words)


def test_differences_are_over_draws_of_masks_and_of_like_with_like(runs, capsys):
    run, test, held = runs[0], runs[0].dataset.test, runs[0].dataset.validation
    found = worth.compare([run], counts=(20,), draws=3)

    def losses(samples, draw, own):
        new, old = (
            trust.predictions_of([run], each.images, samples, draw=draw) for each in (test, held)
        )
        if own:
            new = trust.tempered(new, fit(old.probabilities, held.labels).temperature)
        return scores.losses(new.probabilities, test.labels)

    for methods, own in ((found.methods, False), (found.tempered, True)):
        plain, sampled, *_ = methods
        assert plain.nll_difference == (0.0, 0.0, 0.0)
        assert plain.p_value == 1.0
        base, drawn = losses(0, 0, own), np.stack([losses(20, draw, own) for draw in range(3)])
        assert not np.array_equal(drawn[0], drawn[1])
        assert plain.scores["nll"] == pytest.approx(base.mean())
        assert sampled.scores["nll"] == pytest.approx(drawn.mean())
        assert sampled.nll_difference == pytest.approx(crossed_interval(drawn - base))
    assert found.methods[0].time == 1.0
    assert found.methods[0].temperature == 1.0
    assert found.tempered[0].temperature == trust.fitted([run]).temperature


def test_without_images_that_were_held_out_there_is_no_temperature(runs):
    found = worth.compare(runs, counts=(2,), draws=2)
    assert [method.name for method in found.tempered] == [
        method.name for method in found.methods if not method.name.startswith("ensemble")
    ]
    assert sum("no temperature of an ensemble: " in note for note in found.notes) == 1


def test_samples_take_as_long_as_a_line_through_their_times_says():
    times = [1 + 0.1 * count for count in (1, 10, 30, 100)]
    assert worth._affordable((1, 10, 30, 100), times, 3.05) == 20
    # Through one count, timed twice, goes no line.
    assert worth._affordable((2, 2), (1.0, 2.0), 8.0) == 8
    assert worth._affordable((1, 10, 30, 100), times, 0.5) == 1


def test_samples_are_enough_when_the_interval_is_narrow(runs, monkeypatch):
    images = np.asarray(runs[0].dataset.test.images)
    few, many = (trust.enough_samples(runs[:1], images, wide) for wide in (0.5, 0.005))
    assert few.samples == 16
    assert few.narrow
    found = trust.predictions_of(runs[:1], images, many.samples)
    half = 1.96 * found.deviation.mean() / np.sqrt(many.samples)
    assert many.half_width == pytest.approx(half)
    assert many.half_width <= 0.005
    monkeypatch.setattr(trust, "_MOST", 16)
    most = trust.enough_samples(runs[:1], images, 1e-9)
    assert str(most) == f"16 samples (the most), interval ±{most.half_width:.4f}"


def test_more_samples_do_not_have_to_narrow_what_lies_between_members(monkeypatch):
    apart = [
        Predictions(np.asarray([p]), np.asarray([0.01]), np.zeros(1), np.zeros(1), 16)
        for p in ([0.9, 0.1], [0.1, 0.9])
    ]
    monkeypatch.setattr(trust, "members_of", lambda *_: apart)
    found = trust.enough_samples([], np.zeros((1, 2, 2, 1)))
    assert found.samples == 16
    assert found.half_width == pytest.approx(1.96 * np.sqrt(2 * 0.01**2 / 16) / 2)


def test_the_number_of_samples_is_judged_by_images_from_all(monkeypatch):
    seen = []

    def members(runs, images, samples):
        seen.append(images.reshape(-1))
        return [Predictions(np.zeros((1, 2)), np.zeros(1), np.zeros(1), np.zeros(1), samples)]

    monkeypatch.setattr(trust, "members_of", members)
    trust.enough_samples([], np.arange(5000, dtype=np.float32).reshape(-1, 1, 1, 1))
    assert len(seen[0]) == 500
    # Of data sorted into ten classes, about 50 of each.
    assert np.bincount(seen[0].astype(int) // 500, minlength=10).min() > 15


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


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_table_of_nothing_has_its_columns(runs, base, form, capsys):
    broken = base / f"broken-{form}"
    (broken / "folder.png").mkdir(parents=True)
    (broken / "0.png").write_bytes(b"broken")
    out = base / f"nothing.{form}"
    words = ["predict", str(runs[0].folder), str(broken), "--samples", "2", "--format", form]
    assert main([*words, "--out", str(out)]) == 1
    assert "1 of the files could not be read" in capsys.readouterr().err
    columns = ["path", "class", "probability", "entropy", "mutual_information", "deviation"]
    if form == "csv":
        assert out.read_text().splitlines() == [",".join(columns)]
        return
    parquet = pytest.importorskip("pyarrow.parquet")
    schema = parquet.read_schema(out)
    assert schema.names == columns
    assert [str(kind) for kind in schema.types] == ["string"] * 2 + ["double"] * 4


def test_unsure_answers_are_those_below_what_keeps_the_risk(runs, pictures, capsys):
    run, held = runs[0], runs[0].dataset.validation
    found = trust.selection_for(trust.Witness([run]), 0.2, 0.9)
    p = trust.predictions_of([run], held.images).probabilities
    assert found == select(p.max(1), p.argmax(1) == held.labels, 0.2, 0.9)
    words = ["predict", str(run.folder), str(pictures), "--risk", "0.2", "--confidence", "0.9"]
    assert main([*words, "--format", "json"]) == 0
    told = capsys.readouterr()
    assert told.err == f"{found}\n"
    for row in map(json.loads, told.out.splitlines()):
        assert row["unsure"] == (row["probability"] <= found.threshold)
    assert "takes at least 299 validation images, and" in refused(
        capsys, *words[:3], "--risk", "0.01"
    )
    assert "--risk is 1: must" in refused(capsys, *words[:3], "--risk", "1")
    assert "--confidence says" in refused(capsys, *words[:3], "--confidence", "0.9")


def test_validation_images_are_predicted_once_for_all_promises(runs, monkeypatch):
    asked, own = [], trust.predictions_of

    def counted(*args, **options):
        asked.append(len(args[1]))
        return own(*args, **options)

    monkeypatch.setattr(trust, "predictions_of", counted)
    made = answers_of(runs[:1], risk=0.2, confidence=0.9, coverage=0.9, ood_fpr=0.1)
    assert len(made.promises) == 3
    assert asked == [60]
    assert answers_of(runs[:1]).promises == []
    assert asked == [60]


@pytest.mark.parametrize("samples", [0, 5])
def test_sets_are_those_of_validation_images(alike, pictures, samples, capsys):
    runs = alike
    held, test = runs[0].dataset.validation, runs[0].dataset.test
    p, new = (
        trust.predictions_of(runs, each.images, samples).probabilities for each in (held, test)
    )
    made = Conformal.of("aps", 0.9, p, held.labels)
    words = ["--coverage", "0.9", "--sets", "aps", "--samples", str(samples)]
    folders = [str(run.folder) for run in runs]
    assert main(["evaluate", *folders, *words]) == 0
    expected = SetScores.of(made, new, test.labels, runs[0].facts.classes)
    assert f"\n\n{expected}\n" in capsys.readouterr().out
    assert main(["evaluate", *folders, *words, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["sets"] == expected.as_values()
    assert main(["predict", *folders, str(pictures), *words, "--format", "json"]) == 0
    told = capsys.readouterr()
    assert told.err == f"{made}\n"
    sets = [json.loads(line)["set"] for line in told.out.splitlines()]
    assert all(1 <= len(each) <= 3 for each in sets)
    assert [each[0] for each in sets] == [
        json.loads(line)["class"] for line in told.out.splitlines()
    ]
    assert main(["predict", *folders, str(pictures), *words, "--format", "csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["set"].split("|") for row in rows] == sets
    assert main(["predict", *folders, str(pictures), *words]) == 0
    assert capsys.readouterr().out.splitlines()[0].split()[-2:] == ["set", "path"]


def test_sets_of_each_class_and_what_cannot_be_promised(runs, pictures, base, capsys):
    run, folder = str(runs[0].folder), str(pictures)
    made = trust.sets_for(trust.Witness(runs[:1]), 0.9, "lac", per_class=True)
    held = runs[0].dataset.validation
    p = trust.predictions_of(runs[:1], held.images).probabilities
    own = [np.sort(1 - p[held.labels == y, y]) for y in range(3)]
    ranks = [int(np.ceil((len(each) + 1) * 0.9 - 1e-9)) for each in own]
    assert made.thresholds.tolist() == [
        each[rank - 1] for each, rank in zip(own, ranks, strict=True)
    ]
    few = ["predict", run, folder, "--coverage"]
    assert "takes at least 99 validation images, and" in refused(capsys, *few, "0.99")
    assert "validation images of a class, and" in refused(capsys, *few, "0.98", "--per-class")
    assert "--coverage is 1: must" in refused(capsys, *few, "1")
    assert "give that, too" in refused(capsys, "evaluate", run, "--sets", "aps")
    assert "give that, too" in refused(capsys, *few[:3], "--per-class")
    parquet = pytest.importorskip("pyarrow.parquet")
    out = base / "sets.parquet"
    assert main([*few, "0.9", "--format", "parquet", "--out", str(out)]) == 0
    assert all(isinstance(row["set"], list) for row in parquet.read_table(out).to_pylist())


def test_a_threshold_for_several_runs_needs_images_that_none_learned_from(runs, alike):
    with pytest.raises(RequestError, match="s1 held out other validation images than .*s0"):
        trust.selection_for(trust.Witness(runs), 0.1, 0.9)
    assert trust.selection_for(trust.Witness(alike), 0.9, 0.9).answered == 60


def test_strange_images_are_marked_by_validation_photos(runs, base, pictures, capsys):
    run, held = runs[0], runs[0].dataset.validation
    known = ood.known_below(trust.Witness([run]), 0.1, "energy")
    energy = trust.predictions_of([run], held.images).energy
    # The ceil(61 * 0.9)-th smallest of 60.
    assert known.threshold == np.sort(energy)[54]
    assert (known.images, known.marked) == (60, int(np.sum(energy > known.threshold)))
    mixed = base / "strangers"
    shutil.copytree(pictures, mixed)
    Image.fromarray(np.full((8, 8), 120, np.uint8)).save(mixed / "flat.png")
    (mixed / "broken.png").write_bytes(b"no image")
    words = ["predict", str(run.folder), str(mixed), "--ood-fpr", "0.1"]
    assert main([*words, "--format", "json"]) == 1
    out, err = capsys.readouterr()
    rows = [row for row in map(json.loads, out.splitlines()) if "error" not in row]
    assert [row["known"] for row in rows] == [row["energy"] <= known.threshold for row in rows]
    strange = sum(not row["known"] for row in rows)
    assert not next(row for row in rows if row["path"].endswith("flat.png"))["known"]
    assert f"none of the classes above energy {known.threshold:.4f}: " in err
    assert f"{strange} of 13 {'is' if strange == 1 else 'are'} probably none of the classes" in err
    assert main(words) == 1
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["class", "probability", "energy", "known", "path"]
    assert [line.split()[3] for line in table[1:]] == [("no", "yes")[row["known"]] for row in rows]


def test_every_score_sees_the_features_and_is_kept_with_its_weights(runs, base, pictures, capsys):
    run, held = runs[0], runs[0].dataset.validation
    state = run.state
    features, logits = map(
        np.concatenate,
        zip(*features_by_batch(state.apply_fn, state.variables, held.images), strict=True),
    )
    kernel, bias = last_dense(state.apply_fn, state.variables, held.images[:1])
    np.testing.assert_allclose(features @ kernel + bias, logits, rtol=1e-4, atol=1e-4)
    plain = trust.predictions_of([run], held.images)
    np.testing.assert_allclose(special.softmax(logits, 1), plain.probabilities, atol=1e-5)
    for score in OOD_SCORES:
        known = ood.known_below(trust.Witness([run]), 0.1, score)
        found = ood.strangeness([run], score, held.images, plain)
        assert known.marked == int(np.sum(found > known.threshold)) <= 6
    words = ["predict", str(run.folder), str(pictures), "--ood-fpr", "0.1", "--ood-score"]
    capsys.readouterr()
    assert main([*words, "vim", "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert "training images once" not in err
    rows = [json.loads(line) for line in out.splitlines()]
    (run.folder / "ood-vim.npz").write_bytes(b"damaged")
    assert main([*words, "vim", "--format", "json"]) == 0
    again, err = capsys.readouterr()
    assert "vim looks at 240 training images once" in err
    assert [json.loads(line) for line in again.splitlines()] == rows
    assert "vin" in refused(capsys, *words, "vin")


def test_a_network_without_a_dense_layer_at_its_end_has_an_energy_alone(runs):
    def squared(variables, images, train):
        return runs[0].state.apply_fn(variables, images, train=train) ** 2

    with pytest.raises(RequestError, match="does not end in a dense layer of Linen"):
        last_dense(squared, runs[0].state.variables, runs[0].dataset.test.images[:1])


@pytest.mark.parametrize("samples", [0, 5])
def test_strangers_to_several_runs_and_samples_are_marked(runs, base, pictures, samples):
    twin = base / f"twin-{samples}"
    shutil.copytree(runs[0].folder, twin)
    both = trust.load_runs([runs[0].folder, twin])
    alone, together = (
        list(predict_files(each, [pictures], samples=samples, calibrated=False, ood_fpr=0.1))
        for each in (both[:1], both)
    )
    # The mean of equal energies.
    assert [row["energy"] for row in alone] == pytest.approx([row["energy"] for row in together])
    assert list(alone[0]) == list(columns(samples, ood_score="energy"))
    with pytest.raises(RequestError, match="--ood-fpr: .*s1 held out other validation images"):
        ood.known_below(trust.Witness(runs, samples), 0.1, "energy")


def test_a_temperature_changes_no_energy(runs, base):
    copy = base / "tempered-energy"
    shutil.copytree(runs[0].folder, copy)
    run = trust.load_runs([copy])[0]
    trust.calibrate([run])
    plain, tempered = (
        ood.known_below(trust.Witness([run], 0, c), 0.1, "energy") for c in (False, True)
    )
    assert plain == tempered


def test_what_makes_no_sense_is_refused_in_one_line(runs, base, data, pictures, capsys):
    run, folder = str(runs[0].folder), str(pictures)
    assert "no images are given" in refused(capsys, "predict", run)
    assert "does not exist" in refused(capsys, "predict", run, "/nowhere")
    assert "is no run folder" in refused(capsys, "predict", folder)
    assert "--risk is 2" in refused(capsys, "predict", run, folder, "--risk", "2")
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
    assert "has no validation images" in refused(capsys, *words, "--ood-fpr", "0.1")
    assert "trained without dropout" in refused(capsys, *words, "--samples", "5")
    few = ["predict", run, folder, "--ood-fpr"]
    assert "takes at least 99 validation images, and" in refused(capsys, *few, "0.01")
    assert "must be a number above 0 and below 1" in refused(capsys, *few, "0")
    other = write_idx(base / "two", blobs(60, 0, classes=2), blobs(20, 1, classes=2))
    two = Config(data=DataConfig(path=str(other)), epochs=1, batch_size=20)
    pair = train(two, runs=base, name="two")
    assert "they are no ensemble" in refused(capsys, "evaluate", run, str(pair.folder))
    with pytest.raises(RequestError, match="no run is given"):
        trust.load_runs([])
