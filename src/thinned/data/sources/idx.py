"""IDX files, the format of MNIST and Fashion-MNIST (LeCun, Cortes and Burges, 1998).

A file is a big-endian header (two zero bytes, a byte for the type, a byte for the number of
dimensions, one 32-bit size for each) and then the values. The header is not trusted: nothing is
allocated because of what it promises, and no more than promised is unpacked.
"""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from thinned.core.config import DataConfig
from thinned.core.errors import RequestError
from thinned.core.types import Dataset
from thinned.data import LARGEST_BYTES, read_only, regular
from thinned.data.sources.arrays import Arrays

UNSIGNED_BYTE = 0x08
_BLOCK_BYTES = 1 << 20
_MOST_DIMENSIONS = 4
_AGAIN = "fetch or unpack it again"


@dataclass(frozen=True)
class IdxFolder:
    """A folder with four IDX files, gzipped or not, named as MNIST's are.

    Attributes:
        path: the folder. It holds train-images-idx3-ubyte, train-labels-idx1-ubyte and the same
            with t10k, each with or without .gz, and with - or . before idx.
        options: size and channels to bring images to, if any.
    """

    path: Path
    options: DataConfig = field(default_factory=DataConfig)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name or "idx"

    def load(self) -> Dataset:
        """Read the four files; classes are 0 up to the largest label.

        Raises:
            RequestError: a file is missing, damaged or of another kind, or they do not fit.
        """
        parts = {
            part: self._part(prefix) for part, prefix in (("train", "train"), ("test", "t10k"))
        }
        dataset = Arrays(parts, self.options, name=str(self.path)).load()
        return replace(dataset, name=self.name)

    def _part(self, prefix: str) -> tuple[np.ndarray, np.ndarray]:
        images_at = self._find(f"{prefix}-images", "idx3")
        labels_at = self._find(f"{prefix}-labels", "idx1")
        images, labels = read_images(images_at), read_labels(labels_at)
        if len(images) != len(labels):
            raise RequestError(
                f"{images_at} has {len(images)} images, but {labels_at} has {len(labels)} labels: "
                "take both from one data set"
            )
        return images, labels

    def _find(self, stem: str, rank: str) -> Path:
        names = [f"{stem}{dot}{rank}-ubyte{end}" for dot in "-." for end in ("", ".gz")]
        try:
            # Listed, not probed one by one: a link to nowhere is then named as what it is.
            present = {entry.name for entry in self.path.iterdir()}
            files = [self.path / name for name in names if name in present]
            # Some archives of MNIST hold a folder of the same name beside the file.
            files.sort(key=Path.is_dir)
        except OSError as error:
            raise RequestError(
                f"cannot read folder {self.path}: {error.strerror or error}"
            ) from error
        if not files:
            raise RequestError(
                f"{self.path} lacks {names[0]} (or {names[1]}): IDX data need four files"
            )
        return files[0]


def read_images(path: Path) -> np.ndarray:
    """Images u8 [image, height, width, channel]; rank 3 in the file gets one channel.

    Raises:
        RequestError: the file is no whole IDX file of images, or holds none.
    """
    array = read_idx(path)
    if array.ndim not in (3, 4):
        raise RequestError(
            f"{path} has {array.ndim} dimensions: images have 3 or 4; swapped with labels?"
        )
    if not array.size:
        raise RequestError(f"{path} holds no images: its shape is {array.shape}; {_AGAIN}")
    return array[..., None] if array.ndim == 3 else array


def read_labels(path: Path) -> np.ndarray:
    """Labels i32 [example]; read-only.

    Raises:
        RequestError: the file is no whole IDX file of labels, or holds none.
    """
    array = read_idx(path)
    if array.ndim != 1:
        raise RequestError(
            f"{path} has {array.ndim} dimensions: labels have 1; swapped with images?"
        )
    if not array.size:
        raise RequestError(f"{path} holds no labels; {_AGAIN}")
    return read_only(array.astype(np.int32))


def read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file, gzipped or not: u8 of 1 to 4 dimensions, read-only.

    Raises:
        RequestError: the file cannot be read, is of another kind, is cut short or too long.
    """
    try:
        with regular(path).open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if packed:
                with gzip.open(raw) as unpacked:
                    return _parse(unpacked, path)
            return _parse(raw, path)
    except EOFError as error:
        raise RequestError(f"{path} is cut short: the gzip stream has no end; {_AGAIN}") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise RequestError(f"{path} is damaged ({error}): {_AGAIN}") from error
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror or error}") from error


def _parse(file: BinaryIO | gzip.GzipFile, path: Path) -> np.ndarray:
    shape = _header(file, path)
    size = math.prod(shape)
    # Zeros left out: NumPy refuses an empty array, too, whose other sizes are huge.
    if (spanned := math.prod(side for side in shape if side)) > LARGEST_BYTES:
        raise RequestError(f"{path} promises {spanned:,} bytes: more than can be held; {_AGAIN}")
    content = _read_at_most(file, size + 1)
    if len(content) != size:
        state = "cut short" if len(content) < size else "too long"
        raise RequestError(f"{path} is {state}: its header promises {size:,} values; {_AGAIN}")
    # Through a view, which is read-only without a second copy of all pixels.
    return np.frombuffer(memoryview(content).toreadonly(), np.uint8).reshape(shape)


def _header(file: BinaryIO | gzip.GzipFile, path: Path) -> tuple[int, ...]:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[3] == 0:
        raise RequestError(f"{path} is no IDX file: it does not begin as one; {_AGAIN}")
    if magic[2] != UNSIGNED_BYTE:
        raise RequestError(
            f"{path} holds values of type {magic[2]:#04x}: only u8 (0x08) is read, convert it"
        )
    if magic[3] > _MOST_DIMENSIONS:
        raise RequestError(f"{path} has {magic[3]} dimensions: images have 3 or 4, labels 1")
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise RequestError(f"{path} is cut short inside its header; {_AGAIN}")
    return tuple(int(size) for size in np.frombuffer(sizes, ">u4"))


def _read_at_most(file: BinaryIO | gzip.GzipFile, size: int) -> bytearray:
    content = bytearray()
    while len(content) < size:
        block = file.read(min(_BLOCK_BYTES, size - len(content)))
        if not block:
            break
        content += block
    return content
