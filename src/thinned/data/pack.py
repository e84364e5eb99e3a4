"""Images of one size in one flat file: decoded once, read by row, never held whole.

The file is the u8 pixels of all images, one after another, with nothing around them; ``meta.json``
beside it says their shape and holds checksums of both. It is written under another name and
renamed when it is whole. A whole one is never replaced, and none is deleted while a process holds
its images.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
import weakref
import zlib
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from thinned.core.disk import lock
from thinned.core.errors import RequestError, ThinnedError

_BLOCK = 1 << 22
_ABANDONED_S = 24 * 3600
_CACHE_GB = 20.0


class _Hold:
    """Keeps a file from being trimmed as long as this object lives."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)
        try:
            lock(descriptor, shared=True)
        except BlockingIOError:
            # Just being deleted.
            raise
        except OSError:
            # A file system without locks: whoever trims there cannot know.
            pass


@dataclass(frozen=True)
class PackedImages:
    """Images on the disk that are read when they are asked for, by row.

    Attributes:
        path: the file of pixels.
        item: shape of one image, (height, width, channel).
        rows: i64 [image], where in the file each one is.
        hold: keeps the file from being deleted to free space.
    """

    path: Path
    item: tuple[int, ...]
    rows: np.ndarray
    hold: Any = field(default=None, repr=False, compare=False)

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
        return PackedImages(self.path, self.item, self.rows[indices], self.hold)

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
    """The pack in `folder`, or None where there is no whole one: every byte is checked."""
    pixels = folder / "images.u8"
    try:
        saved = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        meta = saved["held"]
        if saved["sha256"] != _digest(meta):
            return None
        item, count = tuple(meta["item"]), len(meta["kept"])
        if pixels.stat().st_size != count * math.prod(item):
            return None
        hold = _Hold(pixels)
        if _checksum(pixels) != meta["crc32"]:
            return None
        with contextlib.suppress(OSError):
            # When it was used last: what was not for longest is the first to be trimmed.
            os.utime(folder / "meta.json")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    images = PackedImages(pixels, item, np.arange(count), hold)
    reasons = {int(entry): reason for entry, reason in meta["reasons"].items()}
    return Pack(images, np.asarray(meta["kept"], np.int64), reasons, meta["beside"])


def _digest(meta: Any) -> str:
    return hashlib.sha256(json.dumps(meta).encode()).hexdigest()


def _checksum(path: Path) -> int:
    total, block = 0, memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            total = zlib.crc32(block[:count], total)
    return total


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
    passing, total = False, 0
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
                    content = np.ascontiguousarray(pixels).reshape(-1)
                    file.write(content.data)
                    total = zlib.crc32(content.data, total)
                    kept.append(entry)
        meta: dict[str, Any] = {"item": item, "kept": kept, "reasons": reasons, "crc32": total}
        meta["beside"] = dict(beside or {})
        saved = json.dumps({"sha256": _digest(meta), "held": meta})
        (unfinished / "meta.json").write_text(saved, encoding="utf-8")
        if passing:
            told = json.dumps(reasons).encode()
            folder = folder.with_name(f"{folder.name}-{hashlib.sha256(told).hexdigest()[:8]}")
        _settle(unfinished, folder)
    except OSError as error:
        raise ThinnedError(
            f"cannot write to the cache {folder.parent}: {error.strerror or error}; "
            "free some space, or set XDG_CACHE_HOME to a larger disk"
        ) from error
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
    pack = open_pack(folder)
    if pack is None:
        raise ThinnedError(f"{folder} was damaged while it was written")
    trim(folder.parent, largest_cache())
    return pack


def _settle(unfinished: Path, folder: Path) -> None:
    """Give a pack its final name, unless another process was first."""
    # One at a time: between a look and a deletion another could finish the very same pack.
    with _alone_in(folder.parent):
        if open_pack(folder) is not None:
            return
        # Damaged, so that nobody can be reading it.
        shutil.rmtree(folder, ignore_errors=True)
        try:
            unfinished.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


@contextlib.contextmanager
def _alone_in(folder: Path) -> Generator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


class Kept(NamedTuple):
    """A pack in the cache.

    Attributes:
        folder: where it is.
        size: of its files, in bytes.
        used: when it was opened last, in seconds as of `time.time`.
    """

    folder: Path
    size: int
    used: float


def packs_in(parent: Path) -> list[Kept]:
    """The packs in a folder, those that were not used for longest first."""
    packs: list[Kept] = []
    for meta in parent.glob("*/meta.json"):
        with contextlib.suppress(OSError):
            size = sum(file.stat().st_size for file in meta.parent.iterdir())
            packs.append(Kept(meta.parent, size, meta.stat().st_mtime))
    return sorted(packs, key=lambda kept: kept.used)


def largest_cache() -> float:
    """Bytes above which packs are deleted: 20 GB, or what ``THINNED_CACHE_GB`` says.

    Raises:
        RequestError: it says no number above 0.
    """
    said = os.environ.get("THINNED_CACHE_GB", str(_CACHE_GB))
    try:
        wanted = float(said)
    except ValueError:
        wanted = math.nan
    if not wanted >= 0:
        raise RequestError(f"THINNED_CACHE_GB is {said!r}: must be a number, at least 0")
    return wanted * 1e9


def trim(parent: Path, bound: float) -> list[Kept]:
    """Delete packs that no process holds, the longest unused first, until `bound` bytes are left.

    Returns:
        What was deleted.
    """
    packs = packs_in(parent)
    total, gone = sum(kept.size for kept in packs), list[Kept]()
    for kept in packs:
        if total <= bound:
            break
        if _deleted(kept.folder):
            gone.append(kept)
            total -= kept.size
    return gone


def _deleted(folder: Path) -> bool:
    try:
        descriptor = os.open(folder / "images.u8", os.O_RDONLY)
    except OSError:
        return False
    try:
        # Held by whoever reads it; whoever comes now finds it locked and decodes anew.
        lock(descriptor)
        shutil.rmtree(folder)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _sweep(parent: Path) -> None:
    """Delete what killed processes left half-written, once nobody has written to it for a day."""
    for left in parent.glob(".unfinished-*"):
        try:
            newest = max(path.stat().st_mtime for path in (left, *left.iterdir()))
            if newest < time.time() - _ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)
        except OSError:
            continue
