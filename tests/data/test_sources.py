"""Folders, arrays, tables and binary files: what is read, and what is refused in one line."""

import csv
import io
import os
import shutil
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import blobs, write_idx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import thinned
from thinned.core.config import Config, DataConfig, MlpConfig
from thinned.core.errors import RequestError, ThinnedError
from thinned.data.files import class_name, dataset_of
from thinned.data.pack import open_pack, write_pack
from thinned.data.sheet import _legible
from thinned.data.sources.arrays import Arrays, as_images, read_npz
from thinned.data.sources.cifar import read_batch
from thinned.data.sources.load import open_source
from thinned.data.sources.table import Table


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def photo(path, colour=(9, 9, 9), size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def tree(base, splits=("train", "test"), classes=("cat", "dog"), count=4):
    for split in splits:
        for label, name in enumerate(classes):
            for index in range(count):
                photo(base / split / name / f"{index}.png", (50 * label, 3 * index, len(split)))
    return base


def load(path, **options):
    return open_source(DataConfig(path=str(path), **options)).load()


def refused(path, **options):
    with pytest.raises(RequestError) as found:
        load(path, **options)
    assert "\n" not in str(found.value)
    return str(found.value)


def test_a_tree_with_splits_keeps_them(tmp_path):
    found = load(tree(tmp_path / "d", ("train", "validation", "test")))
    assert found.classes == ("cat", "dog")
    assert [len(split) for split in (found.train, found.validation, found.test)] == [8, 8, 8]
    assert found.train.labels.tolist() == [0] * 4 + [1] * 4
    images = np.asarray(found.train.images[np.arange(8)])
    assert images.shape == (8, 10, 12, 3)
    assert images[5, 0, 0].tolist() == [50, 3, 5]


def test_a_single_tree_is_split_by_the_seed_class_by_class(tmp_path):
    base = tree(tmp_path, ("d",), ("a", "b b", "日本"), 10) / "d"
    one, two = load(base), load(base)
    assert one.classes == ("a", "b b", "日本")
    assert np.bincount(one.test.labels).tolist() == [2, 2, 2]
    assert np.array_equal(one.test.images[np.arange(6)], two.test.images[np.arange(6)])
    other = load(base, split_seed=1)
    assert not np.array_equal(one.test.images[np.arange(6)], other.test.images[np.arange(6)])
    assert "held out" in one.notes[0]
    assert len(load(base, test_fraction=0.5).test) == 15


def test_sizes_and_channels_are_found_out_or_asked_for(tmp_path):
    base = tree(tmp_path / "d")
    assert load(base, size=7).train.images.shape[1:] == (7, 7, 3)
    assert load(base, channels=1).train.images.shape[1:] == (10, 12, 1)
    photo(base / "train" / "cat" / "large.jpg", size=(300, 200))
    mixed = load(base)
    assert mixed.train.images.shape[1:] == (64, 64, 3)
    assert "3 sizes" in mixed.notes[0] or "2 sizes" in mixed.notes[0]


def test_broken_files_are_listed_or_stop(tmp_path):
    base = tree(tmp_path / "d")
    (base / "train" / "cat" / "broken.png").write_bytes(b"\x89PNG nothing")
    (base / "train" / "cat" / "notes.txt").write_text("no image")
    (base / "train" / "cat" / ".hidden.png").write_bytes(b"")
    found = load(base)
    assert [out.path for out in found.left_out] == [str(base / "train" / "cat" / "broken.png")]
    assert len(found.train) == 8
    assert "broken.png" in refused(base, on_error="fail")


def test_decoded_images_are_kept_until_a_file_changes(tmp_path):
    base = tree(tmp_path / "d")
    load(base)
    packs = list((tmp_path / "cache" / "thinned" / "data").iterdir())
    load(base)
    assert list((tmp_path / "cache" / "thinned" / "data").iterdir()) == packs
    photo(base / "train" / "cat" / "0.png", (200, 200, 200))
    os.utime(base / "train" / "cat" / "0.png", ns=(1, 1))
    assert load(base).train.images[np.asarray([0])][0, 0, 0].tolist() == [200] * 3


def test_decoded_images_that_vanish_are_a_clear_error(tmp_path):
    found = load(tree(tmp_path / "d"))
    found.train.images.path.write_bytes(b"short")
    with pytest.raises(ThinnedError, match="cut short"):
        found.train.images[np.arange(4)]
    found.train.images.path.unlink()
    with pytest.raises(ThinnedError, match="cannot read"):
        found.train.images[np.arange(4)]


def test_what_is_wrong_with_a_folder_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "is empty" in refused(tmp_path / "empty")
    photo(tmp_path / "flat" / "a.png")
    assert "has no folders" in refused(tmp_path / "flat")
    base = tree(tmp_path / "hole")
    (base / "train" / "zebra").mkdir()
    assert "zebra holds no images" in refused(base)
    assert "one class only" in refused(tree(tmp_path / "one", classes=("cat",)))
    base = tree(tmp_path / "extra")
    photo(base / "test" / "fox" / "a.png")
    assert "class 'fox' is in test or validation only" in refused(base)
    base = tree(tmp_path / "bad", classes=("cat", "cow", "dog"))
    for path in (base / "train" / "dog").iterdir():
        path.write_bytes(b"junk")
    assert "class 'dog' is in test or validation only" in refused(base)
    for path in (base / "test" / "dog").iterdir():
        path.write_bytes(b"junk")
    assert "class 'dog' is without a readable image" in refused(base)
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "data_batch_1").write_bytes(b"\x80\x04")
    assert "pickles" in refused(tmp_path / "pickled")


def test_links_that_lead_in_a_circle_are_not_walked(tmp_path):
    base = tree(tmp_path / "d")
    (base / "train" / "cat" / "again").symlink_to(base / "train", target_is_directory=True)
    (base / "train" / "cat" / "gone.png").symlink_to(tmp_path / "nowhere")
    found = load(base)
    assert len(found.train) == 8
    assert found.left_out[0].reason == "No such file or directory"


def test_a_folder_of_very_many_files_is_listed(tmp_path):
    base = tree(tmp_path / "d", count=1)
    source = base / "train" / "cat" / "0.png"
    for index in range(1, 3000):
        os.link(source, source.with_name(f"{index}.png"))
    assert len(load(base).train) == 3001


# Arrays.


def parts(count=30, **changes):
    images, labels = blobs(count, 0)
    return {"images": images, "labels": labels, **changes}


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
    ],
)
def test_an_npz_of_keras_or_medmnist_is_read(tmp_path, names):
    (x, y), (u, v) = blobs(30, 0), blobs(9, 1)
    found = load(
        write_npz(tmp_path / "d.npz", **dict(zip(names, (x, y[:, None], u, v), strict=True)))
    )
    assert np.array_equal(found.train.images[..., 0], x)
    assert np.array_equal(found.test.labels, v)
    assert found.name == "d"
    assert load(tmp_path / "d.npz", size=5, channels=3).train.images.shape[1:] == (5, 5, 3)


def test_names_of_classes_are_taken_from_strings(tmp_path):
    images, labels = blobs(30, 0)
    names = np.asarray(["x", "y", "z"])
    by_text = load(write_npz(tmp_path / "a.npz", images=images, labels=names[labels]))
    by_name = load(write_npz(tmp_path / "b.npz", images=images, labels=labels, classes=names))
    assert by_text.classes == by_name.classes == ("x", "y", "z")
    assert np.array_equal(by_text.train.labels, by_name.train.labels)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint16, np.float32, np.float64, bool])
def test_arrays_of_any_honest_kind_become_bytes(dtype):
    whole = np.arange(256).reshape(1, 16, 16)
    given = {bool: whole > 127, np.float32: whole / 255, np.float64: whole / 255}.get(dtype, whole)
    expected = (whole > 127) * 255 if dtype is bool else whole
    assert np.array_equal(as_images(np.asarray(given, dtype), "x")[..., 0], expected)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.full((2, 4, 4), np.nan), "NaN"),
        (np.full((2, 4, 4), 1.5), "1.5"),
        (np.full((2, 4, 4), -1), "-1"),
        (np.full((2, 4, 4), 256), "256"),
        (np.zeros((2, 3, 4, 4)), "channels come last"),
        (np.zeros((2, 4, 4, 2)), "2 channels"),
        (np.zeros((2, 4)), "shape (2, 4)"),
        (np.zeros((0, 4, 4)), "no images"),
        (np.zeros((2, 0, 0)), "without pixels"),
        (np.zeros((2, 4, 4), complex), "complex"),
        (np.asarray([np.zeros((2, 2)), np.zeros((3, 3))], object), "Python objects"),
        (np.full((2, 4, 4), "a"), "not numbers"),
    ],
)
def test_arrays_that_are_no_images_are_refused(images, message):
    with pytest.raises(RequestError) as found:
        as_images(images, "x")
    assert message in str(found.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.zeros(30) + 0.5}, "expected integers"),
        ({"labels": np.zeros(29, int)}, "30 images but 29 labels"),
        ({"labels": np.zeros(30, int)}, "one class only"),
        ({"labels": np.arange(30) - 1}, "-1"),
        ({"labels": np.zeros((30, 3), int)}, "shape (30, 3)"),
        ({"classes": np.asarray(["a"])}, "1 class names"),
        ({"labels": np.asarray([None] * 30, object)}, "Python objects"),
    ],
)
def test_labels_that_make_no_sense_are_refused(tmp_path, changes, message):
    assert message in refused(write_npz(tmp_path / "d.npz", **parts(**changes)))


def test_splits_of_different_shapes_need_a_size():
    (x, y), (u, v) = blobs(30, 0), blobs(9, 1, size=6)
    given = {"train": (x, y), "test": (u, v)}
    with pytest.raises(RequestError, match="give --data.size"):
        Arrays(given, DataConfig()).load()
    assert Arrays(given, DataConfig(size=8)).load().test.images.shape == (9, 8, 8, 1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.integers(0, 2000), st.integers(0, 255))
def test_damaged_npz_files_are_refused_in_one_line(tmp_path, noise, place, value):
    buffer = io.BytesIO()
    np.savez(buffer, **parts(6))
    whole = bytearray(buffer.getvalue())
    whole[place % len(whole)] = value
    for content in (noise, bytes(whole), bytes(whole[:place])):
        path = tmp_path / "x.npz"
        path.write_bytes(content)
        try:
            read_npz(path)
        except RequestError as error:
            assert "\n" not in str(error)


# CIFAR and tables.


def cifar(path, count, classes=10):
    random = np.random.default_rng(count)
    rows = random.integers(0, 256, (count, 3073), np.uint8)
    rows[:, 0] = np.arange(count) % classes
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(rows.tobytes())
    return rows


def test_cifar_batches_are_read_in_order(tmp_path):
    one, two = (cifar(tmp_path / "c" / f"data_batch_{n}.bin", 20 + n) for n in (1, 2))
    cifar(tmp_path / "c" / "test_batch.bin", 10)
    (tmp_path / "c" / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    found = load(tmp_path / "c")
    assert found.classes == tuple("abcdefghij")
    rows = np.concatenate([one, two])
    assert np.array_equal(found.train.labels, rows[:, 0])
    pixels = rows[:, 1:].reshape(-1, 3, 32, 32)
    assert np.array_equal(found.train.images[:, 3, 5, 2], pixels[:, 2, 3, 5])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 9000))
def test_cifar_files_of_any_length_are_whole_or_refused(tmp_path, size):
    path = tmp_path / "b.bin"
    path.write_bytes(bytes(size))
    if size and size % 3073 == 0:
        assert len(read_batch(path, 1)[0]) == size // 3073
    else:
        with pytest.raises(RequestError, match="cut short or no CIFAR file"):
            read_batch(path, 1)


def write_csv(path, rows, header=("path", "label", "split")):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_a_table_names_files_labels_and_splits(tmp_path):
    rows = []
    for index in range(12):
        photo(tmp_path / "pics" / f"é {index}.png", (index, 0, 0))
        rows.append((f"pics/é {index}.png", str(8 + index % 3), "test" if index > 8 else "train"))
    found = load(write_csv(tmp_path / "t.csv", rows))
    # Sorted as numbers: 10 comes last.
    assert found.classes == ("8", "9", "10")
    assert found.train.labels.tolist() == [0, 1, 2] * 3
    assert found.train.images[np.arange(9)][:, 0, 0, 0].tolist() == list(range(9))


def test_a_parquet_table_is_read_alike(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for index in range(10):
        photo(tmp_path / f"{index}.png", (index, 0, 0))
    columns = {"file_name": [f"{i}.png" for i in range(10)], "class": ["a", "b"] * 5}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    assert load(tmp_path / "t.parquet").classes == ("a", "b")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    assert "no whole Parquet" in refused(tmp_path / "broken.parquet")


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (("file", "colour"), [("a.png", "b")], "no column label"),
        (("path", "label"), [], "has no rows"),
        (("path", "label"), [("a.png", "")], "line 2: label is empty"),
        (("path", "label", "split"), [("a.png", "b", "tset")], "split 'tset' is unknown"),
        (
            ("path", "label"),
            [("gone.png", "a"), ("lost.png", "b")],
            "none of 2 files can be read; the first is",
        ),
        (("path", "label"), [("a.png", "b"), ("./a.png", "c")], "with another label"),
        (
            ("path", "label", "split"),
            [("a.png", "b", "train"), ("c.png", "b", ""), ("a.png", "b", "test")],
            "line 4: a.png is in a row before with another split",
        ),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(tmp_path, header, rows, message):
    told = refused(write_csv(tmp_path / "t.csv", rows, header))
    assert message in told.replace(f"{tmp_path}/", "")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_content_of_a_csv_is_a_table_or_refused(tmp_path, content):
    path = tmp_path / "t.csv"
    for lead in (b"", b"path,label\n"):
        path.write_bytes(lead + content)
        try:
            Table(path, DataConfig(), 0).entries()
        except RequestError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["x.pkl", "x.pt", "x.npy", "x.zip"])
def test_files_of_other_kinds_are_never_opened(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    assert "not read" in refused(tmp_path / name) or "nothing else" in refused(tmp_path / name)


def test_pipes_and_devices_are_refused_where_files_belong(tmp_path):
    base = tree(tmp_path / "d")
    os.mkfifo(base / "train" / "cat" / "pipe.png")
    assert [out.reason for out in load(base).left_out] == ["not a regular file"]
    for name in ("x.npz", "x.csv", "x.parquet", "c/test_batch.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.mkfifo(tmp_path / name)
    (tmp_path / "c" / "data_batch_1.bin").symlink_to("/dev/zero")
    (tmp_path / "zero.npz").symlink_to("/dev/zero")
    write_idx(tmp_path / "idx", blobs(9, 0), blobs(9, 1))
    (tmp_path / "idx" / "train-labels-idx1-ubyte.gz").unlink()
    os.mkfifo(tmp_path / "idx" / "train-labels-idx1-ubyte.gz")
    for name in ("x.npz", "x.csv", "x.parquet", "idx", "c", "zero.npz"):
        assert "not a regular file" in refused(tmp_path / name)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "parts are missing"),
        ({"trian": blobs(9, 0)}, "'trian'"),
        ({"": ([np.zeros((2, 2)), np.zeros((3, 3))], [0, 1])}, "images are no array of one shape"),
        ({"": (np.zeros((2, 4, 4)), [[0], [1, 2]])}, "labels are no array of one shape"),
        ({"train": blobs(9, 0), "test": (blobs(9, 0)[0], ["a"] * 9)}, "text in one part"),
        ({"": (np.full((2, 4, 4), np.nan), [0, 1])}, "some pixels are NaN"),
        ({"": (blobs(9, 0)[0], blobs(9, 0)[1] + 1)}, "label 0; do labels start at 1"),
        ({"": (blobs(9, 0)[0], blobs(9, 0)[1] * 2)}, "no training image has label 1"),
    ],
)
def test_arrays_of_a_program_that_make_no_sense_are_refused(parts, message):
    with pytest.raises(RequestError) as found:
        Arrays(parts, DataConfig()).load()
    assert message in str(found.value)
    assert "\n" not in str(found.value)


def test_two_classes_of_one_name_are_refused():
    with pytest.raises(RequestError, match="one name"):
        Arrays({"": blobs(9, 0)}, DataConfig(), classes=("a", "b", "a")).load()
    names = ("a\n", "b", "c")
    found = Arrays({"": blobs(9, 0)}, DataConfig(), classes=names).load()
    assert found.classes == (r"a\n", "b", "c")


def test_labels_outside_the_classes_are_refused_in_any_split():
    images = np.zeros((6, 4, 4, 1), np.uint8)
    splits = np.asarray(["train"] * 4 + ["test"] * 2)
    for strange in (-1, 2):
        labels = np.asarray([0, 1, 0, 1, 0, strange])
        with pytest.raises(RequestError, match=f"label {strange}; expected 0 to 1"):
            dataset_of("x", "x", images, labels, splits, ("a", "b"), DataConfig(), 0)


def test_a_failure_that_passes_is_not_remembered(tmp_path, monkeypatch):
    base = tree(tmp_path / "d")
    opened = Image.open

    def failing(error):
        def fail(file, **options):
            if str(file.name).endswith("train/cat/0.png"):
                raise error
            return opened(file, **options)

        return fail

    errors = (PermissionError(13, "Permission denied"), MemoryError(), FileNotFoundError(2, "Gone"))
    kept = []
    for error in errors:
        with monkeypatch.context() as patch:
            patch.setattr(Image, "open", failing(error))
            found = load(base, size=10)
        assert len(found.left_out) == 1
        kept.append((found.train.images[np.arange(7)], found.train.images))
    whole = load(base, size=10)
    assert (len(whole.train), whole.left_out) == (8, ())
    # What another process still reads was not replaced.
    for before, images in kept:
        assert np.array_equal(before, images[np.arange(7)])


def test_two_processes_may_decode_the_same_images_at_once(tmp_path):
    def images(value, meanwhile=None):
        for entry in range(4):
            yield entry, np.full((2, 2, 1), value, np.uint8)
        if meanwhile is not None:
            meanwhile()

    folder = tmp_path / "packs" / "one"
    first = []
    other = write_pack(
        folder, (2, 2, 1), images(7, lambda: first.append(write_pack(folder, (2, 2, 1), images(7))))
    )
    assert np.array_equal(other.images[np.arange(4)], first[0].images[np.arange(4)])
    assert [path.name for path in folder.parent.iterdir()] == ["one"]
    (folder / "images.u8").write_bytes(b"")
    assert open_pack(folder) is None
    assert write_pack(folder, (2, 2, 1), images(9)).images[0].max() == 9


def test_a_pack_that_appears_at_the_last_moment_is_taken(tmp_path, monkeypatch):
    folder = tmp_path / "one"
    images = [(0, np.zeros((2, 2, 1), np.uint8))]
    renamed = Path.rename

    def late(self, target):
        shutil.copytree(self, target)
        return renamed(self, target)

    monkeypatch.setattr(Path, "rename", late)
    assert len(write_pack(folder, (2, 2, 1), images).kept) == 1


def test_what_a_killed_process_left_is_swept_after_a_day(tmp_path):
    for name, age in (("old", 25 * 3600), ("new", 3600)):
        left = tmp_path / f".unfinished-{name}"
        left.mkdir()
        (left / "images.u8").write_bytes(b"x")
        for path in (left / "images.u8", left):
            os.utime(path, (time.time() - age,) * 2)
    write_pack(tmp_path / "one", (1, 1, 1), [])
    assert {path.name for path in tmp_path.iterdir()} == {".unfinished-new", "one"}


def test_a_folder_that_may_not_be_entered_is_named(tmp_path, monkeypatch):
    base = tree(tmp_path / "d")
    # Root, who runs many tests, may enter any folder.
    for closed in (base, base / "train", base / "train" / "cat"):
        with monkeypatch.context() as patch:
            patch.setattr(os, "access", lambda path, mode, closed=closed: path != closed)
            assert refused(base) == f"cannot read folder {closed}: Permission denied"


def test_without_a_home_a_cache_is_asked_for_only_where_images_are_decoded(tmp_path, monkeypatch):
    pwd = pytest.importorskip("pwd")

    def unknown(user):
        raise KeyError(user)

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(ThinnedError, match="set XDG_CACHE_HOME"):
        load(tree(tmp_path / "d"))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        config = Config(model="mlp", data=DataConfig(limit=100), mlp=MlpConfig((8,)), epochs=1)
        run = thinned.train(config, name="homeless", runs=tmp_path / "runs")
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert len(run.metrics) == 2


def test_names_that_are_no_text_stay_apart_and_are_written_in_ascii(tmp_path):
    base = tree(tmp_path / "d", classes=("cat", "n\udcff", "n\udcfe", "a\nb"))
    (base / "train" / "cat" / "x\x1b[1m\n.png").write_bytes(b"junk")
    found = load(base)
    assert found.classes == (r"a\nb", "cat", r"n\xfe", r"n\xff")
    assert found.left_out[0].path.endswith(r"x\x1b[1m\n.png")
    photo(base / "train" / r"n\xff" / "0.png")
    assert r"have one name, n\xff" in refused(base)
    for name in ("e\udcff", "e\n"):
        assert "cannot be saved in a run" in refused(tree(tmp_path / name))


def test_a_class_that_leads_above_itself_is_refused(tmp_path):
    base = tree(tmp_path / "d")
    for target in (base / "train", base):
        (base / "train" / "loop").symlink_to(target)
        assert "loop leads to a folder above itself" in refused(base)
        (base / "train" / "loop").unlink()


def test_folders_of_splits_are_told_from_classes_of_their_names(tmp_path):
    assert "has test and val, but no folder train" in refused(tree(tmp_path / "a", ("test", "val")))
    for name in ("train", "car", "bus"):
        for index in range(3):
            photo(tmp_path / "b" / name / f"{index}.png")
    assert load(tmp_path / "b").classes == ("bus", "car", "train")
    base = tree(tmp_path / "c")
    photo(base / "more" / "x" / "0.png")
    assert load(base).classes == ("cat", "dog")


def test_files_passed_over_are_counted_by_their_ending(tmp_path):
    base = tree(tmp_path / "d")
    for name in ("a.cur", "b.txt", "c.txt", "none"):
        (base / "train" / "cat" / name).write_bytes(b"")
    shutil.copy(base / "train" / "cat" / "0.png", base / "train" / "cat" / "z.jfif")
    found = load(base)
    assert len(found.train) == 9
    assert found.notes[:3] == (
        ".txt: 2 files are no image by their name",
        "without ending: 1 file is no image by its name",
        ".cur: 1 file is no image by its name",
    )


def test_labels_that_only_look_like_numbers_are_text(tmp_path):
    labels = ("9", "10", "²", "①", "9" * 5000, "-1")
    rows = [(photo(tmp_path / f"{i}.png").name, labels[i % 6], "train") for i in range(12)]
    found = load(
        write_csv(tmp_path / "t.csv", [*rows, (photo(tmp_path / "t.png").name, "9", "test")])
    )
    assert found.classes == ("9", "10", "-1", "9" * 5000, "²", "①")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=30), min_size=1))
def test_any_text_is_a_label_or_refused(tmp_path, labels):
    path = write_csv(
        tmp_path / "t.csv",
        [(f"{i}.png", label) for i, label in enumerate(labels)],
        ("path", "label"),
    )
    try:
        classes = Table(path, DataConfig(), 0).entries()[1]
    except RequestError as error:
        assert "\n" not in str(error)
    else:
        assert set(classes) == {class_name(label.strip()) for label in labels}


def test_a_caption_that_the_font_lacks_is_given_by_number_and_codes():
    assert _legible("T-shirt & top", 3) == "T-shirt & top"
    assert _legible("Zürich", 3) == r"3: Z\xfcrich"
    assert _legible("日本", 3) == r"3: \u65e5\u672c"
    assert _legible("a\nb", 3) == r"a\nb"


def test_parquet_of_images_and_of_fractions_is_refused_with_advice(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    held = {"image": [{"bytes": b"x", "path": None}] * 2, "label": ["a", "b"]}
    parquet.write_table(pyarrow.table(held), tmp_path / "held.parquet")
    assert f"read it with --data hf:{tmp_path / 'held.parquet'}" in refused(
        tmp_path / "held.parquet"
    )
    parquet.write_table(
        pyarrow.table({"path": ["a.png"] * 2, "label": [1.5, 2.0]}), tmp_path / "half.parquet"
    )
    assert "line 2: label is 1.5, expected text or an integer" in refused(tmp_path / "half.parquet")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=100), st.integers(0, 4), st.integers(-1, 1), st.booleans())
def test_any_bytes_in_cifar_files_are_data_or_refused(tmp_path, noise, records, more, fine):
    folder = tmp_path / ("fine" if fine else "coarse")
    folder.mkdir(exist_ok=True)
    size = records * (3074 if fine else 3073) + more
    content = (noise * (size // max(len(noise), 1) + 1))[: max(size, 0)]
    for name in ("train.bin", "test.bin") if fine else ("data_batch_1.bin", "test_batch.bin"):
        (folder / name).write_bytes(content)
    try:
        found = load(folder)
    except RequestError as error:
        assert "\n" not in str(error)
    else:
        assert len(found.train) == len(found.test) == records


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["images", "labels", "classes", "x_train", "y_train", "x_test", "y_test"]),
    st.sampled_from(["u1", "i8", "f4", "c8", "U3", "S2", "?", "M8[s]", "V4"]),
    st.lists(st.integers(0, 4), max_size=5),
    st.integers(0, 2000),
    st.integers(0, 255),
)
def test_any_npz_is_data_or_refused(tmp_path, name, kind, shape, place, value):
    arrays = parts(12) | {"x_train": parts(12)["images"], "y_train": parts(12)["labels"]}
    arrays[name] = np.zeros(shape, kind)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    damaged = bytearray(buffer.getvalue())
    damaged[place % len(damaged)] = value
    for content in (buffer.getvalue(), bytes(damaged)):
        (tmp_path / "x.npz").write_bytes(content)
        try:
            found = load(tmp_path / "x.npz")
        except RequestError as error:
            assert "\n" not in str(error)
        else:
            assert len(found.train) >= 2
