"""One set of rules for what labels, values and names mean, whatever kind of data they come in."""

import io
import unicodedata

import numpy as np
import pytest
from conftest import blobs, write_idx
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from thinned.core.config import DataConfig
from thinned.core.errors import RequestError
from thinned.data.decode import Unreadable, decode
from thinned.data.sources.arrays import Arrays
from thinned.data.sources.load import open_source


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def load(path, **options):
    return open_source(DataConfig(path=str(path), **options)).load()


def refused(path, **options):
    with pytest.raises(RequestError) as found:
        load(path, **options)
    assert "\n" not in str(found.value)
    return str(found.value)


def pictures(base, names):
    for index, name in enumerate(names):
        path = base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), index).save(path)
    return base


@pytest.mark.parametrize(
    "header", ["path, label, split", "Path,LABEL,Split", " FILE ,class,SPLIT "]
)
def test_columns_are_found_however_their_names_are_written(tmp_path, header):
    pictures(tmp_path, [f"{i}.png" for i in range(6)])
    rows = [f"{i}.png, {'ab'[i % 2]}, {'Test' if i > 3 else 'train '}" for i in range(6)]
    (tmp_path / "t.csv").write_text("\n".join([header, *rows]))
    found = load(tmp_path / "t.csv")
    assert (len(found.train), len(found.test), found.drawn) == (4, 2, False)


def test_a_file_in_two_rows_is_one_image(tmp_path):
    pictures(tmp_path, [f"{i}.png" for i in range(10)])
    rows = [f"{i}.png,{'ab'[i % 2]}" for i in range(10)] * 3 + ["./0.png,a", "x/../1.png,b"]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows]))
    found = load(tmp_path / "t.csv")
    held = [int(image.max()) for split in found.splits.values() for image in split.images[:]]
    assert sorted(held) == list(range(10))


def text_labels():
    pandas = pytest.importorskip("pandas")
    words = ["zebra", "ant"] * 10
    return [
        words,
        np.asarray(words),
        np.asarray(words, object),
        np.asarray(words, np.dtypes.StringDType()),
        pandas.Series(words),
        pandas.Series(words, dtype="string"),
        pandas.Series(words, dtype="category"),
    ]


def test_text_labels_of_every_kind_are_one_and_the_same():
    images = blobs(20, 0)[0]
    for labels in text_labels():
        found = Arrays({"train": (images, labels), "test": (images, labels)}, DataConfig()).load()
        assert found.classes == ("ant", "zebra")
        assert found.train.labels.tolist() == [1, 0] * 10


@pytest.mark.parametrize("named", [("zebra", "ant"), ("ant", "zebra")])
def test_classes_keep_the_order_that_is_given(tmp_path, named):
    images = blobs(20, 0)[0]
    words = ["zebra", "ant"] * 10
    parts = {"train": (images, words), "test": (images, words)}
    np.savez(
        tmp_path / "d.npz",
        x_train=images,
        y_train=words,
        x_test=images,
        y_test=words,
        classes=np.asarray(named),
    )
    for found in (
        Arrays(parts, DataConfig(), classes=named).load(),
        load(tmp_path / "d.npz"),
    ):
        assert found.classes == named
        assert [found.classes[label] for label in found.train.labels] == words
    with pytest.raises(RequestError, match="label zebra is none of the classes"):
        Arrays(parts, DataConfig(), classes=("ant", "bee")).load()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(20).astype("m8[s]"), r"labels are timedelta64\[s\]; expected integers"),
        (np.arange(20).astype("M8[s]"), r"labels are datetime64\[s\]; expected integers"),
        (np.asarray([None, "a"] * 10, object), "labels are NoneType and str; expected"),
        (np.asarray([1, "a"] * 10, object), "labels are int and str; expected"),
        (np.asarray([2**70, 1] * 10, object), "labels are int; expected|labels are object"),
        (np.asarray([2**64 - 1, 1] * 10, np.uint64), "labels are -1 to 1; expected"),
        ([b"a", b"b"] * 10, r"labels are \|S1; expected"),
    ],
)
def test_labels_of_other_kinds_are_refused_in_a_line(labels, message):
    with pytest.raises(RequestError, match=message):
        Arrays({"": (blobs(20, 0)[0], labels)}, DataConfig()).load()


def test_integers_of_any_width_and_a_mix_of_them_are_labels():
    images, labels = blobs(20, 0)
    for one, two in (("u8", "i8"), ("i1", "u4"), (object, "i4")):
        parts = {"train": (images, labels.astype(one)), "test": (images, labels.astype(two))}
        found = Arrays(parts, DataConfig()).load()
        assert np.array_equal(found.train.labels, labels)
        assert np.array_equal(found.test.labels, labels)


def test_times_are_no_pixels():
    with pytest.raises(RequestError, match="images are timedelta64"):
        Arrays({"": (blobs(9, 0)[0].astype("m8[s]"), blobs(9, 0)[1])}, DataConfig()).load()


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=9))
def test_16_bits_keep_their_upper_8_whatever_else_the_image_holds(values):
    deep = np.asarray(values, np.uint16)[None]
    for array, form in ((deep, "PNG"), (deep, "TIFF"), (deep.astype(np.int32), "TIFF")):
        content = io.BytesIO()
        Image.fromarray(array).save(content, form)
        found = decode(content.getvalue(), deep.shape, 1)[..., 0]
        assert found.tolist() == (deep >> 8).tolist()


@pytest.mark.parametrize("kind", ["folder", "csv", "arrays"])
def test_a_class_is_the_same_in_every_form_of_unicode(tmp_path, kind):
    forms = {form: unicodedata.normalize(form, "été") for form in ("NFC", "NFD")}
    files = {
        split: [f"{split}/{name}/{i}.png" for name in (forms[form], "b") for i in range(2)]
        for split, form in (("train", "NFC"), ("test", "NFD"))
    }
    pictures(tmp_path / "d", files["train"] + files["test"])
    path = tmp_path / "d"
    if kind == "csv":
        rows = [",".join((f, f.split("/")[1], s)) for s, held in files.items() for f in held]
        path = path / "t.csv"
        path.write_text("\n".join(["path,label,split", *rows]), encoding="utf-8")
    if kind == "arrays":
        images = blobs(4, 0)[0]
        parts = {s: (images, [f.split("/")[1] for f in held]) for s, held in files.items()}
        found = Arrays(parts, DataConfig()).load()
    else:
        found = load(path)
    assert set(found.classes) == {"b", forms["NFC"]}
    assert found.train.labels.tolist() == found.test.labels.tolist()


def test_two_folders_whose_names_differ_in_unicode_only_are_refused(tmp_path):
    names = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    pictures(tmp_path / "d", [f"{name}/0.png" for name in names])
    assert "have one name" in refused(tmp_path / "d")


def test_channels_and_labels_of_idx_follow_the_rules_of_arrays(tmp_path):
    images, labels = blobs(20, 0)
    other = np.stack([images] * 5, -1)
    write_idx(tmp_path / "five", (other, labels), (other, labels))
    assert "have 5 channels, not 1 or 3" in refused(tmp_path / "five")
    strange = np.where(labels == 2, 255, labels)
    write_idx(tmp_path / "gap", (images, strange), (images, strange))
    assert "no training image has label 2" in refused(tmp_path / "gap")
    write_idx(tmp_path / "good", (images, labels), (images[:9], labels[:9]))
    found = load(tmp_path / "good", size=4)
    assert found.train.images.shape == (20, 4, 4, 1)
    assert not found.train.images.flags.writeable
    assert not found.test.labels.flags.writeable


def test_data_that_leave_nothing_to_test_on_are_refused(tmp_path):
    pictures(tmp_path / "d", ["a/0.png", "b/0.png"])
    assert "no test images are left: every class has one image" in refused(tmp_path / "d")
    images = blobs(3, 0)[0]
    with pytest.raises(RequestError, match="no test images are left"):
        Arrays({"": (images, [0, 1, 2])}, DataConfig()).load()


def test_test_images_that_cannot_be_read_are_not_replaced_by_training_images(tmp_path):
    base = pictures(
        tmp_path / "d",
        [f"{s}/{c}/{i}.png" for s in ("train", "test") for c in "ab" for i in range(3)],
    )
    for path in (base / "test").rglob("*.png"):
        path.write_bytes(b"broken")
    assert "none of the test images can be read" in refused(base)


def decoded_floats(values) -> list:
    content = io.BytesIO()
    image = np.asarray(values, np.float32)[None]
    Image.fromarray(image).save(content, "TIFF")
    return decode(content.getvalue(), image.shape, 1)[0, :, 0].tolist()


@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=9))
def test_what_a_float_means_does_not_depend_on_its_image(values):
    assert decoded_floats(values) == np.rint(np.float32(values) * np.float32(255)).tolist()
    assert decoded_floats([*values, 1])[:-1] == decoded_floats(values)


@pytest.mark.parametrize("values", [[0, 200], [0.5, 1.001], [-0.01, 0.5], [0, np.nan]])
def test_floats_of_another_range_are_refused(values):
    with pytest.raises(Unreadable, match="from 0 to 1; divide all|NaN"):
        decoded_floats(values)
