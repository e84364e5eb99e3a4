"""From photos to a trained run: streaming, balance, normalisation, prediction without the data."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
from conftest import blobs
from PIL import Image

import thinned
from thinned.cli.main import main
from thinned.core.config import AugmentConfig, Config, DataConfig, DropoutConfig, MlpConfig
from thinned.core.errors import RequestError
from thinned.core.types import Split
from thinned.data import inspect as datatools
from thinned.data.batch import Batch, class_weights
from thinned.data.facts import Facts, statistics_of
from thinned.data.sources.load import load_data
from thinned.engine.build import Built
from thinned.engine.devices import on_device
from thinned.engine.feed import Resident, Streamed, steps_within
from thinned.engine.plan import Plan
from thinned.engine.step import train_step
from thinned.runs.train import train


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos of three colours in several sizes, unequally many; one of them broken."""
    base = tmp_path_factory.mktemp("photos") / "colours"
    random = np.random.default_rng(0)
    for split, counts in (("train", (60, 20, 10)), ("test", (8, 7, 6))):
        for label, count in enumerate(counts):
            folder = base / split / ("red", "green", "blue")[label]
            folder.mkdir(parents=True)
            for index in range(count):
                size = (int(random.integers(20, 90)), int(random.integers(20, 90)), 3)
                pixels = random.integers(0, 120, size).astype(np.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels).save(folder / f"{index}.png")
    (base / "train" / "red" / "broken.jpg").write_bytes(b"nothing")
    return base


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def config(photos, **data):
    options = {"path": str(photos), "size": 16, **data}
    return Config(data=DataConfig(**options), batch_size=10, epochs=4, learning_rate=0.01)


def small(photos, **data):
    """The same with a network that compiles quickly, where it is of no matter which."""
    options = config(photos, **data)
    return dataclasses.replace(options, model="mlp", mlp=MlpConfig((8,)), epochs=1)


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    return train(config(photos), runs=tmp_path_factory.mktemp("runs"))


def final(run):
    return [record["loss"] for record in run.metrics]


def test_photos_are_learned_and_what_was_left_out_is_listed(finished):
    assert finished.evaluate().totals.accuracy > 0.8
    assert finished.folder.name == "colours-resnet-001"
    listed = (finished.folder / "left-out.txt").read_text()
    assert "broken.jpg\tno image of a format" in listed
    assert finished.facts.classes == ("blue", "green", "red")
    assert finished.facts.train_size == 90


def test_a_run_predicts_without_its_data_and_normalises_as_in_training(finished, tmp_path):
    dataset = load_data(finished.config)
    moved = tmp_path / "moved"
    shutil.copytree(finished.folder, moved)
    saved = json.loads((moved / "config.json").read_text())
    saved["data"]["path"] = "/gone"
    (moved / "config.json").write_text(json.dumps(saved))
    images = np.asarray(dataset.test.images[np.arange(21)])
    probabilities = thinned.Run.open(moved).predict(images)
    accuracy = np.mean(probabilities.argmax(1) == dataset.test.labels)
    assert accuracy == pytest.approx(finished.evaluate().totals.accuracy)
    mean, deviation = statistics_of(dataset.train)
    pixels = np.asarray(dataset.train.images[np.arange(90)]).reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(deviation, pixels.std(0), rtol=1e-6)
    assert thinned.Run.open(moved).facts.mean == pytest.approx(mean)


def test_a_run_is_evaluated_on_other_photos_by_the_names_of_their_classes(
    finished, photos, tmp_path, capsys
):
    other = tmp_path / "other"
    for name in ("green", "red"):
        shutil.copytree(photos / "test" / name, other / "train" / name)
        shutil.copytree(photos / "test" / name, other / "test" / name)
    assert main(["evaluate", str(finished.folder), "--data.path", str(other)]) == 0
    shown = capsys.readouterr().out
    assert "of 15 images" in shown
    assert re.search(r"^blue +0 .*-", shown, re.M)
    shutil.copytree(photos / "test" / "blue", other / "train" / "violet")
    shutil.copytree(photos / "test" / "blue", other / "test" / "violet")
    assert main(["evaluate", str(finished.folder), "--data.path", str(other)]) == 2
    assert "label violet is none of the run's 3 classes" in capsys.readouterr().err


def test_streaming_gives_the_same_course_as_memory_and_resumes_in_it(photos, tmp_path):
    held, streamed = (
        dataclasses.replace(small(photos, in_memory=where), epochs=4) for where in ("yes", "no")
    )
    whole = train(streamed, name="whole", runs=tmp_path)
    np.testing.assert_allclose(
        final(whole), final(train(held, name="held", runs=tmp_path)), rtol=1e-4
    )
    half = dataclasses.replace(streamed, epochs=2)
    train(half, name="cut", runs=tmp_path)
    cut = thinned.resume(tmp_path / "cut", dataclasses.replace(half, epochs=4))
    assert final(cut) == final(whole)


@pytest.mark.parametrize("memory", [1.0, 0.07])
def test_a_stream_gives_the_rows_of_the_plan_in_bounded_buffers(photos, memory):
    options = config(photos)
    dataset = load_data(options)
    facts = Facts.of(dataset, options)
    plan = Built.of(options, facts).plan
    resident = Resident(plan, on_device(dataset.train))
    streamed = Streamed(plan, dataset.train, memory * 1e6)
    step = 3
    while step < 25:
        data, chunk, count = streamed.fetch(step, 4)
        everything, order, _ = resident.fetch(step, count)
        assert data.images.nbytes * 4 <= memory * 1e6 / 2
        for index in range(count):
            rows = order.order[index]
            assert np.array_equal(data.images[chunk.order[index]], everything.images[rows])
            assert np.array_equal(data.labels[chunk.order[index]], everything.labels[rows])
        step += count


def test_balanced_orders_draw_every_class_equally_often_and_each_image_in_turn():
    labels = np.repeat(np.arange(3), (60, 20, 10)).astype(np.int32)
    plan = Plan(Config(batch_size=9), 90, {}, labels=labels)
    rows = np.concatenate([plan.chunk(step, 1)[0].order[0] for step in range(10)])
    assert np.bincount(labels[rows]).tolist() == [30, 30, 30]
    assert len(np.unique(rows[labels[rows] == 0])) == 30
    assert np.bincount(rows[labels[rows] == 2]).max() == 3
    other = np.concatenate([plan.chunk(step, 1)[0].order[0] for step in range(10, 20)])
    assert not np.array_equal(rows, other)
    again = Plan(Config(batch_size=9), 90, {}, labels=labels)
    assert np.array_equal(again.chunk(4, 1)[0].order[0], plan.chunk(4, 1)[0].order[0])


def test_class_weights_have_mean_one_and_make_classes_equal():
    labels = np.repeat(np.arange(3), (60, 20, 10))
    weights = class_weights(labels)
    assert weights.mean() == pytest.approx(1)
    np.testing.assert_allclose(np.bincount(labels, weights), 30, rtol=1e-5)


EVERY = AugmentConfig("photos", randaugment=1, cutout=0.2, mixup=0.2, cutmix=1.0, rotate=5)


@pytest.mark.parametrize(
    ("balance", "augment"), [("weights", EVERY), ("sampling", AugmentConfig())]
)
def test_balance_and_every_augmentation_train(photos, tmp_path, balance, augment):
    options = dataclasses.replace(small(photos, balance=balance), augment=augment)
    assert len(train(options, runs=tmp_path).metrics) == 2


OTHERS = ("block", "channel", "connect", "concrete")


# In the branches, as no other network has them; the other places are as in the doctor's own tests.
@pytest.mark.parametrize(
    "kind", ["path", *(pytest.param(kind, marks=pytest.mark.long) for kind in OTHERS)]
)
def test_every_kind_of_dropout_works_in_the_residual_network(photos, tmp_path, kind, capsys):
    size = {"block_size": 2} if kind == "block" else {}
    dropout = DropoutConfig(kind=kind, rate=0.2, **size)
    options = dataclasses.replace(config(photos), dropout=dropout, epochs=1)
    run = train(options, runs=tmp_path)
    assert main(["doctor", str(run.folder), "--draws", "40"]) == 0, capsys.readouterr().out


def test_weights_multiply_losses():
    facts = Facts("x", ("a", "b"), (8, 8, 1), 4)
    config = Config(model="mlp", mlp=MlpConfig((8,)), batch_size=4)
    state = Built.of(config, facts).initial_state()
    images = np.ones((4, 8, 8, 1)) * np.linspace(0, 1, 4)[:, None, None, None]
    images, labels = images.astype(np.float32), np.asarray([0, 1, 0, 1])
    key, step = jax.random.key(0), jax.jit(train_step)
    halves = Batch(images, labels, np.asarray([2, 2, 0, 0], np.float32))
    part = Batch(images[:2], labels[:2])
    rates = {"Dropout_0": {"rate": np.float32(0)}}
    one, _ = step(state, halves, rates, key)
    two, _ = step(state, part, rates, key)
    flat = [jax.tree.leaves(each.params) for each in (one, two)]
    for a, b in zip(*flat, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_data_that_have_changed_cannot_be_gone_on_with(photos, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(photos, copy)
    run = train(small(copy), runs=tmp_path)
    shutil.rmtree(copy / "train" / "blue")
    shutil.rmtree(copy / "test" / "blue")
    assert main(["train", "--resume", str(run.folder), "--epochs", "2"]) == 2
    assert "are no longer what" in capsys.readouterr().err


def test_statistics_of_one_value_do_not_divide_by_zero():
    flat = Split(np.full((3, 4, 4, 1), 7, np.uint8), np.zeros(3, np.int32))
    assert statistics_of(flat)[1] == (1 / 255,)


# Tools.


def size_of(path):
    with Image.open(path) as image:
        return image.size


def test_inspect_finds_leaks_repeats_conflicts_and_broken_files(
    photos, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(photos, copy)
    shutil.copy(copy / "train" / "red" / "0.png", copy / "test" / "red" / "leak.png")
    shutil.copy(copy / "train" / "red" / "1.png", copy / "train" / "red" / "twice.png")
    shutil.copy(copy / "train" / "red" / "2.png", copy / "train" / "blue" / "wrong.png")
    assert main(["data", "inspect", str(copy)]) == 0
    shown = capsys.readouterr().out
    assert "1 images of test are in train, too" in shown
    assert "4 images of train equal another one of train" in shown
    assert "2 images equal one of another class" in shown
    assert "1 files cannot be read" in shown
    assert re.search(r"^red +61 +9$", shown, re.M)
    for one, two in (
        ("train/red/0.png", "test/red/leak.png"),
        ("train/red/1.png", "train/red/twice.png"),
        ("train/blue/wrong.png", "train/red/2.png"),
    ):
        assert f"{copy / one} = {copy / two}" in shown
    assert size_of("sheet.png")[0] > 100


def test_inspect_says_when_nothing_is_wrong_and_numbers_arrays(tmp_path, capsys):
    images, labels = blobs(30, 0)
    for name, changed in (("clean", images), ("twice", np.concatenate([images[:-1], images[:1]]))):
        parts = {"x_train": changed[:20], "x_test": changed[20:]}
        np.savez(tmp_path / f"{name}.npz", y_train=labels[:20], y_test=labels[20:], **parts)
    words = ["data", "inspect", "--sheet", str(tmp_path / "s.png")]
    assert main([*words, str(tmp_path / "clean.npz")]) == 0
    shown = capsys.readouterr().out
    for none in ("equals another one of its split", "is in two splits", "equals one of another"):
        assert f"0: no image {none}" in shown
    assert main([*words, str(tmp_path / "twice.npz")]) == 0
    assert capsys.readouterr().out.count("train[0] = test[9]") == 2


def test_convert_packs_what_can_be_trained_on(photos, tmp_path, capsys):
    out = tmp_path / "packed.npz"
    assert main(["data", "convert", str(photos), str(out), "--data.size", "16"]) == 0
    assert "90 training, 0 validation, 21 test images of 3 classes; 1 files left out" in (
        capsys.readouterr().out
    )
    packed, loose = load_data(config(out, size=None)), load_data(config(photos))
    assert packed.classes == loose.classes
    assert np.array_equal(packed.train.images, loose.train.images[np.arange(90)])
    assert main(["data", "convert", str(photos), str(tmp_path / "x.zip")]) == 2
    assert main(["data", "convert", str(photos), "/nowhere/x.npz", "--data.size", "16"]) == 1


def test_show_writes_what_the_network_sees(photos, tmp_path, capsys):
    out = tmp_path / "seen.png"
    words = ["data", "show", "--data.path", str(photos), "--data.size", "16", "--out", str(out)]
    assert main(words) == 0
    assert size_of(out)[1] > 300
    assert main([*words, "--augment.preset", "none"]) == 0
    assert size_of(out)[1] < 100


def test_too_little_memory_to_stream_is_refused_before_there_is_a_run(photos, tmp_path):
    wanted = dataclasses.replace(
        config(photos, memory_mb=1, in_memory="no", size=60), batch_size=40
    )
    with pytest.raises(RequestError, match=r"a step of 40 images need 4$"):
        train(wanted, runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    enough = dataclasses.replace(wanted, data=dataclasses.replace(wanted.data, memory_mb=4))
    images = load_data(enough).train.images
    assert steps_within(4e6, 40, images.shape[1:]) == 1


def test_packed_data_that_could_not_be_read_are_not_written(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(datatools, "_LARGEST_PACKED", 111 * 16 * 16 * 3 - 1)
    with pytest.raises(RequestError, match=r"would hold 85,248 bytes.*--data.size"):
        datatools.convert(DataConfig(path=str(photos), size=16), tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()


def test_where_images_are_streamed_from_is_said_as_it_is(photos, tmp_path, capsys):
    short = small(photos, in_memory="no")
    train(short, runs=tmp_path, quiet=False)
    assert "of images from the disk (--data.in-memory)" in capsys.readouterr().out
    datatools.convert(short.data, tmp_path / "c.npz")
    packed = DataConfig(path=str(tmp_path / "c.npz"), in_memory="no")
    train(dataclasses.replace(short, data=packed), runs=tmp_path, quiet=False)
    assert "of images from memory, where such a source is held" in capsys.readouterr().out
