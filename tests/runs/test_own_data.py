"""A run's own data: the very images that it learned from, wherever they lie, or a clear refusal."""

import csv
import dataclasses
import io
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import blobs
from PIL import Image

import thinned
from thinned.cli.main import main
from thinned.core.config import Config, DataConfig, MlpConfig, load
from thinned.core.errors import RequestError
from thinned.data.facts import Facts
from thinned.data.sources.arrays import Arrays
from thinned.data.sources.folder import ImageFolder
from thinned.data.sources.load import load_data
from thinned.runs import predictions as trust
from thinned.runs.files import columns, predict_files, write_rows
from thinned.runs.train import _new_folder
from thinned.runs.verify import differing


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def pictures(base, count=60, seed=0):
    """A folder of classes without splits: which images are tested on is left to the seed."""
    for index, (image, label) in enumerate(zip(*blobs(count, seed), strict=True)):
        folder = base / "abc"[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index:03}.png")
    return base


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("trained")
    data = DataConfig(path=str(pictures(tmp_path / "data")), validation=9)
    wanted = Config(data=data, model="mlp", mlp=MlpConfig(hidden=(8,)), epochs=1, batch_size=10)
    return thinned.train(wanted, runs=tmp_path / "runs", name="r")


@pytest.fixture
def run(trained, tmp_path):
    """A run of data in ``tmp_path / "data"``, trained once for all tests."""
    held = Path(trained.config.data.path)
    shutil.copytree(held, tmp_path / "data")
    shutil.copytree(trained.folder, tmp_path / "runs" / "r")
    saved = tmp_path / "runs" / "r" / "config.json"
    saved.write_text(saved.read_text().replace(str(held), str(tmp_path / "data")))
    return thinned.Run.open(saved.parent)


def asks(run, tmp_path):
    """Every command that loads a run's own data again."""
    folder = str(run.folder)
    Image.new("L", (8, 8)).save(tmp_path / "one.png")
    return [
        ["evaluate", folder],
        ["evaluate", folder, "--data.path", run.config.data.path],
        ["calibrate", folder],
        ["report", folder, "--out", str(tmp_path / "page.html")],
        ["doctor", folder],
        ["predict", folder, str(tmp_path / "one.png"), "--risk", "0.5"],
        ["train", "--resume", folder, "--epochs", "2"],
    ]


def test_one_image_more_is_refused_wherever_a_run_loads_its_own_data(run, tmp_path, capsys):
    shutil.copy(tmp_path / "data" / "b" / "001.png", tmp_path / "data" / "a" / "0000.png")
    for words in asks(run, tmp_path):
        assert main(words) == 2, words
        error = capsys.readouterr().err
        assert "are no longer what" in error
        assert error.count("\n") == 1
    assert load(run.folder / "config.json").epochs == 1


def test_data_that_moved_are_found_again_once_it_is_said_where(run, tmp_path, capsys):
    before = run.evaluate().totals
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "data", moved)
    for words in asks(run, tmp_path):
        assert main(words) == 2, words
        assert f"--resume {run.folder} --data NEW" in capsys.readouterr().err
    # Not a fifth of it drawn anew, nor all of it: the very images that were held out.
    assert thinned.Run.open(run.folder).evaluate(moved).totals == before
    assert main(["train", "--resume", str(run.folder), "--data", str(moved)]) == 0
    again = thinned.Run.open(run.folder)
    assert again.config.data.path == str(moved)
    assert again.evaluate().totals == before
    assert differing(run, again) == []


def test_moved_data_tell_what_a_damaged_record_of_them_does_not(run, tmp_path, capsys):
    before, saved = run.evaluate().totals, run.folder / "data.json"
    whole = saved.read_text(encoding="utf-8")
    saved.write_text(whole[:40], encoding="utf-8")
    moved, other = tmp_path / "elsewhere", pictures(tmp_path / "other", seed=5)
    shutil.move(tmp_path / "data", moved)
    for words in asks(run, tmp_path):
        assert main(words) == 2, words
        error = capsys.readouterr().err
        assert f"--resume {run.folder} --data NEW" in error
        assert error.count("\n") == 1
    resume = ["train", "--resume", str(run.folder), "--data"]
    assert main([*resume, str(other)]) == 2
    assert "no longer what" in capsys.readouterr().err
    assert main([*resume, str(moved)]) == 0
    assert thinned.Run.open(run.folder).evaluate().totals == before
    # The record is whole again, but for the name of the folder.
    assert saved.read_text(encoding="utf-8") == whole.replace('"data"', '"elsewhere"')


def test_a_new_path_with_other_images_or_an_unknown_digest_is_refused(run, tmp_path):
    other = str(pictures(tmp_path / "other", seed=5))
    elsewhere = Config(
        data=DataConfig(path=other, validation=9),
        model="mlp",
        mlp=MlpConfig(hidden=(8,)),
        epochs=1,
        batch_size=10,
    )
    with pytest.raises(RequestError, match="no longer what .* began with"):
        thinned.resume(run.folder, elsewhere)
    (run.folder / "environment.json").unlink()
    with pytest.raises(RequestError, match="no longer what .* began with"):
        thinned.resume(run.folder, elsewhere)
    assert load(run.folder / "config.json") == run.config


def test_other_data_without_a_test_split_are_evaluated_whole(run, tmp_path, capsys):
    other = pictures(tmp_path / "other", 30, seed=7)
    assert main(["evaluate", str(run.folder), "--data.path", str(other)]) == 0
    told = capsys.readouterr()
    assert "of 30 images" in told.out
    assert "names no test images: all 30 are evaluated" in told.err
    images, labels = blobs(30, 7)
    np.savez(tmp_path / "other.npz", images=images, labels=labels, classes=["a", "b", "c"])
    whole = run.evaluate(tmp_path / "other.npz").totals
    assert whole.count == 30
    assert whole.correct == run.evaluate(other).totals.correct
    assert len(load_data(Config(data=DataConfig(path=str(other)))).test) == 6


def test_other_data_from_which_nothing_could_be_learned_are_evaluated(run, tmp_path, capsys):
    whole = pictures(tmp_path / "whole", 30, seed=7)
    right = run.evaluate(whole).confusion
    shutil.copytree(whole / "b", tmp_path / "single" / "b")
    assert main(["evaluate", str(run.folder), "--data.path", str(tmp_path / "single")]) == 0
    told = capsys.readouterr()
    assert "of 10 images" in told.out
    assert "names no test images: all 10 are evaluated" in told.err
    found = run.evaluate(tmp_path / "single").confusion
    assert np.array_equal(found[1], right[1])
    assert found.sum() == 10
    # One image of each class: none could be set aside.
    pictures(tmp_path / "few", 3, seed=7)
    assert run.evaluate(tmp_path / "few").totals.count == 3
    # Test images alone, of two of the classes.
    images, labels = blobs(30, 7)
    two = labels < 2
    parts = {"x_test": images[two], "y_test": labels[two], "classes": ["a", "b", "c"]}
    np.savez(tmp_path / "test.npz", **parts)
    assert np.array_equal(run.evaluate(tmp_path / "test.npz").confusion[:2], right[:2])
    capsys.readouterr()
    for data in ("single", "few", "test.npz"):
        assert main(["train", "--data.path", str(tmp_path / data), "--runs", str(tmp_path)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_other_images_need_no_folders_of_classes_and_all_are_taken(run, tmp_path, capsys):
    flat = tmp_path / "flat"
    flat.mkdir()
    for index in range(7):
        Image.new("L", (9, 12), 30 * index).save(flat / f"{index}.png")
    one = pictures(tmp_path / "one", 12, seed=3)
    shutil.copytree(one / "a", tmp_path / "single" / "a")
    for folder, count in ((flat, 7), (one, 12), (tmp_path / "single", 4)):
        assert main(["evaluate", str(run.folder), "--ood", str(folder)]) == 0
        assert f"{count} other images" in capsys.readouterr().out
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "notes.txt").write_text("nothing")
    assert main(["evaluate", str(run.folder), "--ood", str(tmp_path / "none")]) == 2
    assert "holds no images" in capsys.readouterr().err


def test_predict_walks_over_the_files_that_training_does(run, tmp_path):
    base = pictures(tmp_path / "walk", 12)
    for name in (".ipynb_checkpoints/0.png", "._x.png", ".hidden.png"):
        (base / "a" / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(base / "a" / name)
    outside = pictures(tmp_path / "outside", 6)
    (base / "linked").symlink_to(outside / "b")
    (base / "a" / "deeper").symlink_to(outside / "c")
    (base / "a" / "circle").symlink_to(base / "a")
    found = {row["path"] for row in predict_files([run], [base])}
    trained = ImageFolder(base, DataConfig(), 0).entries()[0]
    assert found == {str(entry.path) for entry in trained}
    assert len(found) == 12 + 2 + 2


def test_a_file_name_is_no_formula_to_a_spreadsheet(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["=2+2.png", "+1.png", "-1.png", "@a.png", "\t=1.png", "plain.png", "a=b.png"]
    for name in names:
        Image.new("L", (8, 8)).save(name)
    rows = predict_files([run], [Path(name) for name in names])
    assert write_rows(rows, "csv", None, columns()) == 0
    read = [row["path"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out, newline=""))]
    assert read == [f"'{name}" for name in names[:5]] + names[5:]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.full((2, 8, 8, 1), 200.0), "floats go from 200 to 200; expected 0 to 1"),
        (np.full((2, 8, 8, 1), np.nan), "some pixels are NaN"),
        (np.zeros((0, 8, 8, 1), np.uint8), "no images"),
        (
            np.zeros((8, 8, 1), np.uint8),
            r"a single image of shape \(8, 8, 1\): give images\[None\]",
        ),
        (np.zeros((2, 9, 8, 1), np.uint8), r"images are \(9, 8, 1\), but the run learned from"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"images are \(8, 8, 3\), but the run learned from"),
        (np.full((2, 8, 8, 1), -1), "pixels go from -1 to -1"),
        (np.zeros((2, 64), np.uint8), r"images have shape \(2, 64\)"),
        ([["a"]], "predict: images have shape"),
        (None, "predict: images are Python objects"),
    ],
)
def test_what_are_no_images_of_the_run_is_refused(run, images, message):
    for ask in (run.predict, lambda given: trust.predictions_of([run], given)):
        with pytest.raises(RequestError, match=message):
            ask(images)


def test_images_of_any_honest_kind_are_predicted_alike(run):
    images = blobs(4, 9)[0]
    expected = run.predict(images[..., None])
    for given in (images, images.astype(np.int64), images / 255, list(images)):
        np.testing.assert_array_equal(run.predict(given), expected)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "..", "", "x\ny", "é b", "n" * 300])
def test_the_name_of_data_leads_nowhere_out_of_the_runs(tmp_path, name):
    facts = Facts(name, ("a", "b"), (8, 8, 1), 10)
    folder = _new_folder(tmp_path / "runs", Config(model="mlp"), facts)
    assert folder.parent == tmp_path / "runs"
    assert folder.is_dir()
    assert not set(folder.name) & set("/\\\n \t")


def test_damaged_facts_of_arrays_are_not_those_of_the_package(tmp_path):
    arrays = Arrays({"train": blobs(40, 0), "test": blobs(20, 1)}, DataConfig()).load()
    config = Config(model="mlp", mlp=MlpConfig((8,)), epochs=1, batch_size=8)
    run = thinned.train(config, name="arrays", runs=tmp_path, dataset=arrays)
    (run.folder / "data.json").unlink()
    with pytest.raises(RequestError, match="are no longer what"):
        _ = thinned.Run.open(run.folder).facts
    (run.folder / "environment.json").unlink()
    with pytest.raises(RequestError, match="or from arrays: restore it"):
        _ = thinned.Run.open(run.folder).facts


def test_arrays_of_a_program_are_trained_on_evaluated_and_gone_on_with(tmp_path):
    images, labels = blobs(120, 0, size=28)
    data = Arrays({"": (images, labels)}, DataConfig()).load()
    config = Config(model="mlp", mlp=MlpConfig(hidden=(16,)), batch_size=24, epochs=2)
    whole = thinned.train(config, dataset=data, runs=tmp_path)
    # Neither taken for the package's MNIST, which is not normalised, nor evaluated on it.
    assert whole.facts.mean is not None
    assert whole.built.augment is not None
    assert whole.evaluate(dataset=data).totals.count == len(data.test)
    for ask in (whole.evaluate, partial(thinned.resume, whole.folder)):
        with pytest.raises(RequestError, match=r"learned from arrays of a program.*dataset="):
            ask()
    short = thinned.train(dataclasses.replace(config, epochs=1), dataset=data, runs=tmp_path)
    grown = thinned.resume(short.folder, config, dataset=data)
    assert differing(whole, grown) == []
