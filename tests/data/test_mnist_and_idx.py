import hashlib
import lzma
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import blobs, gzipped, idx_bytes, write_idx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from thinned.core.errors import RequestError, ThinnedError
from thinned.data.sources import mnist
from thinned.data.sources.idx import read_idx
from thinned.data.sources.load import open_source
from thinned.data.split import fingerprint, hold_out, limit

ORIGINAL_MD5 = {
    "train-images": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels": "a25bea736e30d166cdddb491f175f624",
    "t10k-images": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels": "27ae3e4e09519cfbb04c329615203637",
}


def test_embedded_mnist_is_the_original_byte_for_byte():
    data = open_source(None).load()
    for prefix, split in (("train", data.train), ("t10k", data.test)):
        files = {"images": split.images[..., 0], "labels": split.labels}
        for kind, array in files.items():
            found = hashlib.md5(idx_bytes(array)).hexdigest()
            assert found == ORIGINAL_MD5[f"{prefix}-{kind}"]
    assert data.classes == tuple("0123456789")
    assert data.train.images.dtype == np.uint8
    assert data.train.labels.dtype == np.int32


def test_embedded_mnist_takes_little_room_and_carries_its_licence():
    folder = Path(mnist.__file__).parent.parent / "embedded"
    assert sum(path.stat().st_size for path in folder.glob("*.xz")) <= 9_500_000
    assert "CC BY-SA 3.0" in (folder / "LICENSE-mnist.md").read_text()


@pytest.mark.parametrize("damage", [b"", b"no xz at all", lzma.compress(b"other pixels")])
def test_a_damaged_package_file_is_told(monkeypatch, tmp_path, damage):
    (tmp_path / "embedded").mkdir()
    for name in ("mnist-pixels.xz", "mnist-labels.xz"):
        (tmp_path / "embedded" / name).write_bytes(damage)
    monkeypatch.setattr(mnist.resources, "files", lambda package: tmp_path)
    mnist._load.cache_clear()
    try:
        with pytest.raises(ThinnedError, match="damaged.*install thinned again"):
            mnist.EmbeddedMnist().load()
    finally:
        mnist._load.cache_clear()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dot", ["-", "."])
def test_idx_folders_are_read_in_every_usual_name(tmp_path, packed, dot):
    train, test = blobs(20, 0), blobs(9, 1)
    for prefix, (images, labels) in (("train", train), ("t10k", test)):
        for stem, array in ((f"images{dot}idx3", images), (f"labels{dot}idx1", labels)):
            content = idx_bytes(array)
            path = tmp_path / f"{prefix}-{stem}-ubyte"
            if packed:
                Path(f"{path}.gz").write_bytes(gzipped(content))
            else:
                path.write_bytes(content)
    data = open_source(tmp_path).load()
    assert np.array_equal(data.train.images[..., 0], train[0])
    assert np.array_equal(data.test.labels, test[1])
    assert data.classes == ("0", "1", "2")
    assert not data.train.images.flags.writeable


@given(arrays.arrays(np.uint8, arrays.array_shapes(min_dims=1, max_dims=4)), st.booleans())
def test_whatever_is_written_is_read_back(tmp_path_factory, array, packed):
    path = tmp_path_factory.mktemp("idx") / "file"
    content = idx_bytes(array)
    path.write_bytes(gzipped(content) if packed else content)
    assert np.array_equal(read_idx(path), array)


def refuses(path: Path) -> str | None:
    """None when the file is read; the message when it is refused; any other error fails."""
    try:
        read_idx(path)
    except RequestError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
        return str(error)
    return None


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "file"
    for begin in (b"", b"\0\0\x08", b"\0\0\x08\x01", b"\x1f\x8b\x08\0"):
        path.write_bytes(begin + content)
        refuses(path)


@given(
    where=st.floats(0, 1, exclude_max=True),
    flip=st.integers(1, 255),
    cut=st.booleans(),
    packed=st.booleans(),
)
def test_a_changed_byte_or_a_cut_is_read_or_refused(tmp_path_factory, where, flip, cut, packed):
    content = bytearray(idx_bytes(blobs(6, 0)[0]))
    content = bytearray(gzipped(content)) if packed else content
    at = int(where * len(content))
    content[at] ^= flip
    path = tmp_path_factory.mktemp("fuzz") / "file"
    path.write_bytes(content[:at] if cut else content)
    message = refuses(path)
    assert message or not cut or packed


def test_a_header_that_promises_terabytes_allocates_nothing(tmp_path):
    path = tmp_path / "file"
    header = bytes([0, 0, 8, 3]) + np.asarray([60_000, 512, 512], ">u4").tobytes()
    for content in (header + b"x" * 100, gzipped(header + b"x" * 100)):
        path.write_bytes(content)
        tracemalloc.start()
        message = refuses(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert "cut short" in message
        assert peak < 20 * 2**20
    path.write_bytes(bytes([0, 0, 8, 4]) + b"\xff" * 16)
    assert "more than can be held" in refuses(path)


def test_a_gzip_bomb_is_unpacked_no_further_than_promised(tmp_path):
    path = tmp_path / "file"
    header = bytes([0, 0, 8, 1]) + np.asarray([1000], ">u4").tobytes()
    path.write_bytes(gzipped(header + bytes(300 * 2**20)))
    tracemalloc.start()
    message = refuses(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "too long" in message
    assert peak < 20 * 2**20


def folder(tmp_path: Path) -> Path:
    return write_idx(tmp_path / "données 数", blobs(20, 0), blobs(9, 1))


IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def packed(array: np.ndarray) -> bytes:
    return gzipped(idx_bytes(array))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (IMAGES, None, "lacks train-images"),
        ("t10k-labels-idx1-ubyte.gz", None, "lacks t10k-labels"),
        (LABELS, packed(blobs(20, 0)[0]), "labels have 1"),
        (IMAGES, packed(blobs(20, 0)[1]), "images have 3 or 4"),
        (IMAGES, packed(blobs(19, 0)[0]), "19 images, but .* 20 labels"),
        (IMAGES, packed(np.zeros((0, 8, 8))), "holds no images"),
        (IMAGES, packed(np.zeros((20, 0, 8))), "holds no images"),
        (LABELS, packed(np.zeros(0)), "holds no labels"),
        (LABELS, packed(np.zeros(20)), "one class only"),
        (LABELS, packed(np.arange(20) % 2), "class '2' is in test or validation only"),
        (IMAGES, packed(np.zeros((20, 9, 9))), "splits have images of"),
        (IMAGES, b"\x89PNG\r\n\x1a\n", "no IDX file"),
        (IMAGES, b"", "no IDX file"),
        (IMAGES, bytes([0, 0, 13, 1, 0, 0, 0, 1, 0, 0, 0, 0]), "type 0x0d"),
        (IMAGES, packed(blobs(20, 0)[0])[:-9], "cut short"),
        (IMAGES, packed(blobs(20, 0)[0]) + b"garbage", "damaged"),
    ],
)
def test_each_wrong_file_is_named_with_what_is_wrong(tmp_path, name, content, message):
    path = folder(tmp_path)
    (path / name).unlink()
    if content is not None:
        (path / name).write_bytes(content)
    with pytest.raises(RequestError, match=message) as caught:
        open_source(path).load()
    assert str(path) in str(caught.value)


def test_folders_that_are_none_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, message in (
        ("none", "does not exist"),
        ("file", "nothing else is read"),
        ("loop", "symbolic"),
    ):
        with pytest.raises(RequestError, match=message):
            open_source(tmp_path / name).load()
    path = folder(tmp_path)
    (path / IMAGES).unlink()
    (path / IMAGES).mkdir()
    with pytest.raises(RequestError, match="cannot read.*not a regular file"):
        open_source(path).load()


def test_a_file_without_permission_is_refused(tmp_path, monkeypatch):
    path = folder(tmp_path)
    (path / IMAGES).chmod(0)
    if os.geteuid() == 0:
        # Root may read anything: let the system refuse in its name.
        def refuse(self, *args, **kwargs):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(RequestError, match="cannot read.*Permission denied"):
        open_source(path).load()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return open_source(write_idx(tmp_path_factory.mktemp("s"), blobs(50, 0), blobs(9, 1))).load()


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_held_out_images_are_apart_from_those_that_stay(small, count, seed):
    data = hold_out(small, count, seed)
    assert (len(data.validation), len(data.train)) == (count, 50 - count)
    together = np.concatenate([data.train.images, data.validation.images])
    assert sorted(map(bytes, together)) == sorted(map(bytes, small.train.images))
    assert data.test is small.test
    assert fingerprint(data) == fingerprint(hold_out(small, count, seed))


@given(st.integers(20, 49), st.integers(0, 99))
def test_fewer_images_are_a_part_of_more(small, count, seed):
    fewer, more = limit(small, count, seed).train, limit(small, count + 1, seed).train
    assert len(fewer) == count
    assert set(map(bytes, fewer.images)) <= set(map(bytes, more.images))


def test_what_cannot_be_set_apart_is_refused(small):
    with pytest.raises(RequestError, match="--data.validation 50 leaves none"):
        hold_out(small, 50, 0)
    with pytest.raises(RequestError, match="leaves no training image of class"):
        hold_out(small, 48, 0)
    with pytest.raises(RequestError, match="--data.limit 51 is more than"):
        limit(small, 51, 0)
    with pytest.raises(RequestError, match="leaves no training image of class"):
        limit(small, 2, 0)


def test_the_fingerprint_sees_every_pixel_label_and_shape(small):
    import dataclasses

    from thinned.core.types import Split

    images, labels = small.train.images.copy(), small.train.labels.copy()
    images[3, 2, 1, 0] ^= 1
    labels[7] = (labels[7] + 1) % 3
    variants = [
        small,
        dataclasses.replace(small, train=Split(images, small.train.labels)),
        dataclasses.replace(small, train=Split(small.train.images, labels)),
        dataclasses.replace(
            small, train=Split(small.train.images.reshape(50, 4, 16, 1), small.train.labels)
        ),
        hold_out(small, 5, 0),
    ]
    assert len({fingerprint(variant) for variant in variants}) == len(variants)
