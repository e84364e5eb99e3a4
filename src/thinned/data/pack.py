"""Images of one size in one flat file: decoded once, read by row, never held whole.

The file is the u8 pixels of all images, one after another, with nothing around them; ``meta.json``
beside it says their shape. It is written under another name and renamed when it is whole. A whole
one is never replaced: another process may be reading it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thinned.core.errors import ThinnedError

_BLOCK = 1 << 22
_ABANDONED_S = 24 * 3600


@dataclass(frozen=True)
class PackedImages:
    """Images on the disk that are read when they are asked for, by row.

    Attributes:
        path: the file of pixels.
        item: shape of one image, (height, width, channel).
        rows: i64 [image], where in the file each one is.
    """

    path: Path
    item: tuple[int, ...]
    rows: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """(image, height, width, channel)."""
        return (len(self.rows), *self.item)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Always u8."""
        return np.dtype(np.uint8)

    @property
    def nbytes(self) -> int:
        """Bytes that all images would take in memory."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, indices: np.ndarray) -> PackedImages:
        """The images at `indices`, without reading them."""
        return PackedImages(self.path, self.item, self.rows[indices])

    def __getitem__(self, indices: Any) -> np.ndarray:
        """Read images: u8 of the shape that NumPy's indexing would give.

        Raises:
            ThinnedError: the file has vanished or was cut short since it was written.
        """
        wanted = self.rows[indices]
        flat = np.atleast_1d(wanted)
        out = np.empty((len(flat), *self.item), np.uint8)
        size = math.prod(self.item)
        try:
            with self.path.open("rb", buffering=0) as file:
                # One positioned read for each image: pages read this way are the kernel's to keep,
                # not ours, so that memory stays flat.
                for image, row in zip(out, flat, strict=True):
                    if os.preadv(file.fileno(), [memoryview(image).cast("B")], row * size) != size:
                        raise ThinnedError(f"{self.path} was cut short: delete it and run again")
        except OSError as error:
            raise ThinnedError(
                f"cannot read {self.path}: {error.strerror or error}; run again to decode anew"
            ) from error
        return out if np.ndim(wanted) else out[0]


@dataclass(frozen=True)
class Pack:
    """What a finished pack holds.

    Attributes:
        images: all of them.
        kept: i64 [image], which of the entries they are.
        reasons: entry -> why it was left out.
        beside: what else was written with it.
    """

    images: PackedImages
    kept: np.ndarray
    reasons: dict[int, str]
    beside: Mapping[str, Any]


class Passing(str):
    """Why an image is left out, if it may well be readable the next time."""


def open_pack(folder: Path) -> Pack | None:
    """The pack in `folder`, or None where there is no whole one."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        item, count = tuple(meta["item"]), len(meta["kept"])
        if (folder / "images.u8").stat().st_size != count * math.prod(item):
            return None
    except (OSError, ValueError, KeyError):
        return None
    images = PackedImages(folder / "images.u8", item, np.arange(count))
    reasons = {int(entry): reason for entry, reason in meta["reasons"].items()}
    return Pack(images, np.asarray(meta["kept"], np.int64), reasons, meta.get("beside", {}))


def write_pack(
    folder: Path,
    item: tuple[int, ...],
    images: Iterable[tuple[int, np.ndarray | str]],
    beside: Mapping[str, Any] | None = None,
) -> Pack:
    """Write a pack, whole or not at all.

    Args:
        folder: where; what is there already, and whole, is kept and given back.
        item: shape of one image.
        images: (entry, pixels u8 of that shape) or (entry, why there are none). Where a reason is
            `Passing`, the pack gets a name of its own, so that the next time all are tried again.
        beside: further values to keep, as JSON; looked at once all images have come.

    Raises:
        ThinnedError: the disk is full, or the folder cannot be written.
    """
    kept: list[int] = []
    reasons: dict[str, str] = {}
    passing = False
    unfinished: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
        with (unfinished / "images.u8").open("wb", buffering=_BLOCK) as file:
            for entry, pixels in images:
                if isinstance(pixels, str):
                    reasons[str(entry)] = pixels
                    passing = passing or isinstance(pixels, Passing)
                else:
                    file.write(np.ascontiguousarray(pixels).data)
                    kept.append(entry)
        meta = {"item": item, "kept": kept, "reasons": reasons, "beside": beside or {}}
        (unfinished / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        if passing:
            told = json.dumps(reasons).encode()
            folder = folder.with_name(f"{folder.name}-{hashlib.sha256(told).hexdigest()[:8]}")
        _settle(unfinished, folder)
    except OSError as error:
        raise ThinnedError(
            f"cannot write decoded images to {folder.parent}: {error.strerror or error}; "
            "free some space, or set XDG_CACHE_HOME to a larger disk"
        ) from error
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
    pack = open_pack(folder)
    if pack is None:
        raise ThinnedError(f"decoded images in {folder} were damaged while they were written")
    return pack


def _settle(unfinished: Path, folder: Path) -> None:
    """Give a pack its final name, unless another process was first."""
    if open_pack(folder) is not None:
        return
    # Damaged, so that nobody can be reading it.
    shutil.rmtree(folder, ignore_errors=True)
    try:
        unfinished.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _sweep(parent: Path) -> None:
    """Delete what killed processes left half-written, once nobody has written to it for a day."""
    for left in parent.glob(".unfinished-*"):
        try:
            newest = max(path.stat().st_mtime for path in (left, *left.iterdir()))
            if newest < time.time() - _ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)
        except OSError:
            continue
