"""Headers, folders and files that are legal to write and easy to get wrong."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, blobs, gzipped, idx_bytes, write_idx
from hypothesis import given
from hypothesis import strategies as st

from thinned.core.errors import RequestError
from thinned.data.sources.idx import read_idx, read_images
from thinned.data.sources.load import open_source

IMAGES = "train-images-idx3-ubyte.gz"
FASHION = ROOT.parent / "shared" / "data" / "fashion-mnist"
SIZES = st.sampled_from([0, 1, 2, 3, 28, 2**16, 2**31 - 1, 2**31, 2**32 - 1])


def header(sizes: list[int]) -> bytes:
    return bytes([0, 0, 8, len(sizes)]) + np.asarray(sizes, ">u4").tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_idx(tmp_path / "idx", blobs(20, 0), blobs(9, 1))


@given(st.lists(SIZES, min_size=1, max_size=6), st.binary(max_size=40), st.booleans())
def test_any_sizes_in_a_header_are_read_or_refused(tmp_path_factory, sizes, content, packed):
    path = tmp_path_factory.mktemp("fuzz") / "file"
    whole = header(sizes) + content
    path.write_bytes(gzipped(whole) if packed else whole)
    tracemalloc.start()
    try:
        shape, message = read_idx(path).shape, ""
    except RequestError as error:
        shape, message = None, str(error)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert shape == tuple(sizes) or str(path) in message
    assert peak < 8 * 2**20


@pytest.mark.parametrize("sizes", [[0, *[2**32 - 1] * 3], [*[2**32 - 1] * 3, 0], [2**32 - 1] * 2])
def test_sizes_beyond_memory_are_refused_even_if_one_is_zero(tmp_path, sizes):
    (tmp_path / "file").write_bytes(header(sizes))
    with pytest.raises(RequestError, match="more than can be held"):
        read_idx(tmp_path / "file")


@pytest.mark.parametrize("rank", [5, 64, 65, 255])
def test_more_dimensions_than_images_have_are_refused(tmp_path, rank):
    (tmp_path / "file").write_bytes(header([1] * rank) + b"x")
    with pytest.raises(RequestError, match=f"has {rank} dimensions"):
        read_idx(tmp_path / "file")


def test_images_in_colour_keep_their_channels(tmp_path):
    images = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    (tmp_path / "file").write_bytes(idx_bytes(images))
    assert np.array_equal(read_images(tmp_path / "file"), images)


def test_a_gzip_file_of_several_members_is_read_whole(tmp_path):
    content = idx_bytes(np.arange(9))
    (tmp_path / "file").write_bytes(gzipped(content[:6]) + gzipped(content[6:]))
    assert np.array_equal(read_idx(tmp_path / "file"), np.arange(9))


@pytest.mark.parametrize("cut", [1, 8, 11, 30])
def test_a_gzip_file_cut_anywhere_is_refused(tmp_path, cut):
    (tmp_path / "file").write_bytes(gzipped(idx_bytes(np.arange(200)))[:-cut])
    with pytest.raises(RequestError, match=r"cut short|damaged"):
        read_idx(tmp_path / "file")


def test_a_folder_of_the_same_name_does_not_hide_the_file(folder):
    (folder / "train-images-idx3-ubyte").mkdir()
    assert len(open_source(folder).load().train) == 20


@pytest.mark.parametrize(
    ("target", "message"), [("nowhere", "No such file"), (IMAGES, "symbolic links")]
)
def test_a_link_that_leads_nowhere_is_named(folder, target, message):
    (folder / IMAGES).unlink()
    (folder / IMAGES).symlink_to(folder / target)
    with pytest.raises(RequestError, match=f"cannot read .*{IMAGES}.*{message}"):
        open_source(folder).load()


def test_a_folder_that_may_not_be_listed_is_refused(folder, monkeypatch):
    def refuse(self: Path):
        raise PermissionError(13, "Permission denied")

    # Root, who runs many tests, may list any folder: the system refuses in its name.
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(RequestError, match=r"cannot read folder .*Permission denied"):
        open_source(folder).load()


@pytest.mark.skipif(not FASHION.is_dir(), reason="needs ../shared/data/fashion-mnist")
def test_fashion_mnist_loads():
    data = open_source(FASHION).load()
    assert data.train.images.shape == (60_000, 28, 28, 1)
    assert data.test.images.shape == (10_000, 28, 28, 1)
    assert np.array_equal(np.bincount(data.test.labels), np.full(10, 1000))
