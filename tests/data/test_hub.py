"""TFDS and Hugging Face for real, with data prepared here: no network."""

import gzip
import io
import os
import types
import unicodedata

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from thinned.core.config import DataConfig
from thinned.core.errors import RequestError
from thinned.data.sources import hub
from thinned.data.sources.load import open_source

MNIST = ROOT.parent / "shared" / "data" / "mnist"


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def load(path, **options):
    return open_source(DataConfig(path=str(path), **options)).load()


@pytest.mark.skipif(not MNIST.exists(), reason="the files of MNIST are not here")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.long
def test_the_true_mnist_of_tfds_is_read_without_tensorflow(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    from tensorflow_datasets.core.download import extractor
    from tensorflow_datasets.core.features import image_feature
    from tensorflow_datasets.core.utils import file_utils
    from tensorflow_datasets.image_classification import mnist

    def encode(_, image):
        buffer = io.BytesIO()
        Image.fromarray(image[..., 0]).save(buffer, "PNG")
        return buffer.getvalue()

    # TFDS reads without TensorFlow but prepares only with it: what it needs is little.
    opened = types.SimpleNamespace(gfile=types.SimpleNamespace(GFile=open))
    tensorflow = types.SimpleNamespace(compat=types.SimpleNamespace(as_text=str), io=opened)
    monkeypatch.setattr(extractor, "tf", tensorflow)
    monkeypatch.setattr(mnist, "tf", tensorflow)
    monkeypatch.setattr(image_feature._ImageEncoder, "_encode_image", encode)
    builder = tfds.builder("mnist", data_dir=tmp_path, file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=MNIST)
    builder.download_and_prepare(download_config=config)

    found = load(f"tfds:{builder.data_dir}")
    assert found.name == "mnist"
    assert found.classes == tuple("0123456789")
    assert (len(found.train), len(found.test)) == (60_000, 10_000)
    raw = gzip.decompress((MNIST / "t10k-images-idx3-ubyte.gz").read_bytes())
    ours = {image.tobytes() for image in np.asarray(found.test.images[np.arange(10_000)])}
    theirs = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 784)
    assert ours == {image.tobytes() for image in theirs}

    # The name alone, once its folder is among those where TFDS looks.
    monkeypatch.setattr(file_utils, "_REGISTERED_DATA_DIRS", {tmp_path})
    named = load("tfds:mnist")
    assert named.name == "mnist"
    assert np.array_equal(named.test.labels, found.test.labels)
    few = np.arange(0, 10_000, 100)
    assert np.array_equal(named.test.images[few], found.test.images[few])


@pytest.mark.filterwarnings("ignore")
def test_local_data_are_read_through_hugging_face(tmp_path):
    datasets = pytest.importorskip("datasets")
    base = tmp_path / "shapes"
    for split, count in (("train", 6), ("test", 3)):
        for label, name in enumerate(("a", "b")):
            (base / split / name).mkdir(parents=True)
            for index in range(count):
                image = Image.new("RGB", (9, 9), (100 * label, index, 0))
                image.save(base / split / name / f"{index}.png")
    folder = load(f"hf:{base}")
    assert folder.classes == ("a", "b")
    assert (len(folder.train), len(folder.test)) == (12, 6)
    files = sorted(map(str, base.glob("train/*/*.png")))
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    table = {"image": files, "label": [0] * 6 + [1] * 6}
    datasets.Dataset.from_dict(table, features=features).to_parquet(tmp_path / "t.parquet")
    parquet = load(f"hf:{tmp_path / 't.parquet'}")
    pixels = np.asarray(parquet.train.images[np.arange(len(parquet.train))])
    assert set(pixels[:, 0, 0, 0].tolist()) == {0, 100}
    assert pixels.shape[1:] == (9, 9, 3)
    with pytest.raises(RequestError, match="hf:no/such cannot be read"):
        load("hf:no/such")


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("tfds:mnist", "tensorflow_datasets", "tfds"), ("hf:x", "datasets", "hf")],
)
def test_a_missing_extra_is_named(monkeypatch, name, module, extra):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(RequestError, match=rf"pip install 'thinned\[{extra}\]'"):
        load(name)


def parquet(path, rows, label=None):
    """A Parquet file as Hugging Face writes it: rows of (content of an image file, label)."""
    datasets = pytest.importorskip("datasets")
    kind = datasets.ClassLabel(names=["a", "b"]) if label is None else datasets.Value(label)
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    table = {"image": [row[0] for row in rows], "label": [row[1] for row in rows]}
    path.parent.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(table, features=features).to_parquet(path)
    return path


def png(value, side=9):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (value, 0, 0)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def bomb():
    buffer = io.BytesIO()
    Image.new("1", (10_001, 10_001)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def first(split):
    return split.images[np.arange(len(split))][:, 0, 0, 0].tolist()


@pytest.mark.filterwarnings("ignore")
def test_data_sets_of_one_name_are_not_taken_for_one_another(tmp_path):
    one = parquet(tmp_path / "1" / "t.parquet", [(png(1), i % 2) for i in range(8)])
    two = parquet(tmp_path / "2" / "t.parquet", [(png(2), i % 2) for i in range(8)])
    assert set(first(load(f"hf:{one}").train)) == {1}
    first_loaded = load(f"hf:{one}")
    assert set(first(load(f"hf:{two}").train)) == {2}
    assert set(first(first_loaded.train)) == {1}
    wide = {"bytes": png(9)["bytes"], "path": None}
    buffer = io.BytesIO()
    Image.new("RGB", (30, 10), (250, 0, 0)).save(buffer, "PNG")
    wide["bytes"] = buffer.getvalue()
    three = parquet(tmp_path / "3" / "t.parquet", [(wide, i % 2) for i in range(8)])
    assert set(first(load(f"hf:{three}", size=10).train)) == {250}
    assert set(first(load(f"hf:{three}", size=10, fit="pad").train)) == {0}


@pytest.mark.filterwarnings("ignore")
def test_what_was_decoded_is_not_decoded_again_until_the_data_change(tmp_path, monkeypatch):
    path = parquet(tmp_path / "t.parquet", [(png(1), i % 2) for i in range(8)])
    load(f"hf:{path}")
    with monkeypatch.context() as patch:
        patch.setattr(hub, "write_pack", None)
        again = load(f"hf:{path}")
    assert (len(again.train), again.train.labels.tolist()) == (6, [0, 1] * 3)
    parquet(path, [(png(7), i % 2) for i in range(8)])
    os.utime(path, (1, 1))
    assert set(first(load(f"hf:{path}").train)) == {7}


@pytest.mark.filterwarnings("ignore")
def test_rows_without_a_usable_image_or_label_are_left_out(tmp_path):
    good = [(png(1), i % 2) for i in range(8)]
    junk = {"bytes": b"\x89PNG nothing", "path": None}
    bad = [(junk, 0), (bomb(), 0), (None, 1), (png(5), None), (png(5), -1)]
    path = parquet(tmp_path / "t.parquet", good + bad)
    found = load(f"hf:{path}")
    assert set(first(found.train)) == {1}
    assert [out.path for out in found.left_out] == [f"hf:{path}[{i}]" for i in range(8, 13)]
    reasons = ("no image of a format", "more than 100,000,000", "no image", "no label", "label -1")
    for out, reason in zip(found.left_out, reasons, strict=True):
        assert reason in out.reason
    with pytest.raises(RequestError, match=r"5 .*--data.on-error fail"):
        load(f"hf:{path}", on_error="fail")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "labels", "classes"),
    [("int64", [10, 9], ("9", "10")), ("string", ["dog", "cat"], ("cat", "dog"))],
)
def test_labels_may_be_plain_integers_or_text(tmp_path, kind, labels, classes):
    rows = [(png(50 * (i % 2)), labels[i % 2]) for i in range(8)]
    found = load(f"hf:{parquet(tmp_path / 't.parquet', rows, kind)}")
    assert found.classes == classes
    assert found.train.labels.tolist() == [1 - value // 50 for value in first(found.train)]


@pytest.mark.filterwarnings("ignore")
def test_text_labels_in_two_forms_of_unicode_are_one_class(tmp_path):
    one, two = (unicodedata.normalize(form, "été") for form in ("NFC", "NFD"))
    rows = [(png(i), (one, two, "b")[i % 3]) for i in range(12)]
    found = load(f"hf:{parquet(tmp_path / 't.parquet', rows, 'string')}")
    assert found.classes == ("b", one)
    assert all(found.train.labels == [value % 3 != 2 for value in first(found.train)])


@pytest.mark.filterwarnings("ignore")
def test_columns_that_cannot_be_labels_are_refused(tmp_path):
    path = parquet(tmp_path / "t.parquet", [(png(1), 0.5)] * 4, "float32")
    with pytest.raises(RequestError, match=r"no column of kind ClassLabel.*label \(Value\)"):
        load(f"hf:{path}")


class Records(list):
    """What TFDS gives for a split: examples by their number, the damaged ones as errors."""

    def __getitem__(self, index):
        example = super().__getitem__(index)
        if isinstance(example, Exception):
            raise example
        return example


def stand_in(monkeypatch, folder, examples, kind="ClassLabel"):
    """TFDS with one prepared data set, of whose labels the kind is given."""
    label = type(kind, (), {"names": ["a", "b"]} if kind == "ClassLabel" else {})()
    features = {"image": type("Image", (), {})(), "label": label}
    builder = types.SimpleNamespace(
        info=types.SimpleNamespace(features=features, splits=["train"]),
        as_data_source=lambda split, decoders: Records(examples),
        data_dir=folder,
    )
    decode = types.SimpleNamespace(SkipDecoding=object)
    tfds = types.SimpleNamespace(builder=lambda name, file_format: builder, decode=decode)
    monkeypatch.setattr(hub, "_import", lambda module, extra: tfds)


def test_a_damaged_record_of_tfds_is_left_out(tmp_path, monkeypatch):
    good = [{"image": png(1)["bytes"], "label": np.int64(i % 2)} for i in range(8)]
    deep = io.BytesIO()
    Image.fromarray(np.full((9, 9), 65_535, np.uint16)).save(deep, "PNG")
    tall = {"image": deep.getvalue(), "label": np.int64(0)}
    stand_in(
        monkeypatch, tmp_path, [*good, tall, ValueError("crc. More."), {**good[0], "label": 2}]
    )
    found = load("tfds:any")
    assert [len(found.train), len(found.test)] == [7, 2]
    assert [out.reason for out in found.left_out] == [
        "damaged record: crc.",
        "label 2 is none of the data set's",
    ]


def test_labels_of_tfds_without_names_are_refused(tmp_path, monkeypatch):
    stand_in(monkeypatch, tmp_path, [], "Scalar")
    with pytest.raises(RequestError, match=r"has no label of kind ClassLabel.*label \(Scalar\)"):
        load("tfds:any")
