"""Files that promise little and would take hours or gigabytes: refused soon, with the reason."""

import io
import tracemalloc
import zlib

import numpy as np
import pytest
from conftest import blobs
from PIL import Image

from thinned.core.config import DataConfig
from thinned.core.errors import RequestError
from thinned.data.decode import LONGEST_SIDE, Unreadable, decode, read_header
from thinned.data.sources.load import open_source
from thinned.data.split import stratified


def jpeg():
    content = io.BytesIO()
    Image.fromarray(np.zeros((50, 50, 3), np.uint8)).save(content, "JPEG")
    return content.getvalue()


def png(width, height):
    """A PNG of one bit a pixel, all black, in a few bytes for each million of pixels."""

    def chunk(kind, content):
        check = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + check

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    rows = zlib.compress(bytes((1 + -(-width // 8)) * height))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def test_zeros_within_a_jpeg_are_not_read_byte_by_byte_for_ever():
    for content in (jpeg()[:20], jpeg()[:300]):
        with pytest.raises(Unreadable, match="too many bytes between its parts"):
            decode(content + bytes(200_000), (8, 8), 3)
    whole = decode(jpeg(), (8, 8), 3)
    assert np.array_equal(decode(jpeg() + bytes(200_000), (8, 8), 3), whole)


@pytest.mark.parametrize("size", [(1, LONGEST_SIDE + 1), (LONGEST_SIDE + 1, 1)])
def test_the_thinnest_of_images_are_refused_before_they_are_unpacked(size):
    for read in (read_header, lambda content: decode(content, (8, 8), 3)):
        with pytest.raises(Unreadable, match="a side of more than 65,535 pixels"):
            read(png(*size))
    shorter = tuple(min(side, LONGEST_SIDE) for side in size)
    assert decode(png(*shorter), (8, 8), 3).shape == (8, 8, 3)


def test_a_parquet_table_of_very_many_rows_is_refused_unread(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    empty = pyarrow.nulls(6_000_000, pyarrow.string())
    parquet.write_table(pyarrow.table({"path": empty, "label": empty}), tmp_path / "t.parquet")
    tracemalloc.start()
    with pytest.raises(RequestError, match="has 6,000,000 rows: no more than 5,000,000 are read"):
        open_source(tmp_path / "t.parquet").load()
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


@pytest.mark.parametrize("other", [("train_images", "train_labels"), ("images", "labels")])
def test_two_kinds_of_names_in_one_file_are_refused(tmp_path, other):
    images, labels = blobs(30, 0)
    held = {"x_train": images, "y_train": labels, other[0]: images, other[1]: labels}
    np.savez(tmp_path / "d.npz", **held)
    with pytest.raises(RequestError, match=f"holds x_train and {other[0]}: which of them"):
        open_source(DataConfig(path=str(tmp_path / "d.npz"))).load()


def test_very_many_classes_are_split_in_one_pass():
    labels = np.tile(np.arange(2000), 5)
    chosen = stratified(labels, 0.2, 0, np.arange(len(labels)))
    assert np.array_equal(np.bincount(labels[chosen]), np.ones(2000, int))
    few = np.asarray([0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2])
    chosen = stratified(few, 0.5, 0, np.arange(11))
    assert np.bincount(few[chosen], minlength=3).tolist() == [0, 1, 4]
