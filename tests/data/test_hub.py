"""TFDS and Hugging Face for real, with data prepared here: no network."""

import gzip
import io
import types

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from thinned.config import DataConfig
from thinned.data.source import open_source
from thinned.errors import RequestError

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
def test_the_true_mnist_of_tfds_is_read_without_tensorflow(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    from tensorflow_datasets.core.download import extractor
    from tensorflow_datasets.core.features import image_feature
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
