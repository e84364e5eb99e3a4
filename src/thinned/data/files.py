"""Labelled image files, wherever their list comes from: inspected, decoded in parallel, packed."""

from __future__ import annotations

import collections
import hashlib
import os
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL

from thinned.core.config import DataConfig
from thinned.core.disk import cache_folder
from thinned.core.errors import RequestError, printable
from thinned.core.types import Dataset, LeftOut, Split
from thinned.data import read_only
from thinned.data.decode import Fit, Header, Size, decode, or_reason, read_header
from thinned.data.pack import Pack, PackedImages, open_pack, write_pack
from thinned.data.split import stratified

SplitName = Literal["train", "validation", "test"]
_LARGEST_NATIVE = 64
"""Images that all have one size up to this side keep it; others are brought to `_DEFAULT_SIDE`."""
_DEFAULT_SIDE = 64
MOST_CLASSES = 100_000
_VERSION = 4
_LONGEST_NUMBER = 18


@dataclass(frozen=True)
class Entry:
    """One labelled file.

    Attributes:
        path: where it is.
        label: index of its class.
        split: which split it was found in; None where that is left to the seed.
    """

    path: Path
    label: int
    split: SplitName | None = None


class Unlearnable(RequestError):
    """Data that can be looked at, but from which nothing could be learned.

    Attributes:
        dataset: what they hold.
    """

    def __init__(self, message: str, dataset: Dataset) -> None:
        super().__init__(message)
        self.dataset = dataset


def load_files(
    name: str,
    where: str,
    entries: Sequence[Entry],
    classes: tuple[str, ...],
    options: DataConfig,
    seed: int,
    notes: tuple[str, ...] = (),
) -> Dataset:
    """A dataset of labelled files, decoded at one size; decoded once, and kept in the cache.

    Args:
        name: of the dataset.
        where: what to name in errors.
        entries: the files, in an order that does not change.
        classes: names of the classes.
        options: size, channels, fit, what to do with broken files, and so on.
        seed: chooses the test images where the data name none.
        notes: what else is to be said of them.

    Returns:
        The dataset; its images are read from the disk when they are asked for.

    Raises:
        RequestError: nothing is left to learn from, or a file is broken and `options` say to fail.
    """
    if not entries:
        raise RequestError(f"{where} holds no images (JPEG, PNG, WebP, BMP, GIF, TIFF)")
    size, channels, formed = _form(entries, options)
    pack = _packed(entries, size, channels, options.fit)
    if not len(pack.kept):
        lost, why = printable(entries[0].path), pack.reasons[0]
        raise RequestError(
            f"{where}: none of {len(entries):,} files can be read; the first is {lost}: {why}"
        )
    left_out = tuple(LeftOut(printable(entries[i].path), why) for i, why in pack.reasons.items())
    labels = np.asarray([entries[i].label for i in pack.kept], np.int32)
    splits = np.asarray([entries[i].split or "" for i in pack.kept])
    refuse_lost_test(where, {entry.split or "" for entry in entries}, set(splits.tolist()))
    return dataset_of(
        name, where, pack.images, labels, splits, classes, options, seed, left_out, notes + formed
    )


def load_unlabelled(where: str, paths: Sequence[Path], options: DataConfig) -> Split:
    """Image files that nobody named a class of, at one size; labels are all 0 and mean nothing.

    Raises:
        RequestError: there are none, or none can be read.
    """
    entries = [Entry(path, 0) for path in paths]
    if not entries:
        raise RequestError(f"{where} holds no images (JPEG, PNG, WebP, BMP, GIF, TIFF)")
    size, channels, _ = _form(entries, options)
    pack = _packed(entries, size, channels, options.fit)
    if not len(pack.kept):
        raise RequestError(f"{where}: none of {len(paths):,} images can be read")
    return Split(pack.images, np.zeros(len(pack.kept), np.int32))


def dataset_of(
    name: str,
    where: str,
    images: np.ndarray | PackedImages,
    labels: np.ndarray,
    splits: np.ndarray,
    classes: tuple[str, ...],
    options: DataConfig,
    seed: int,
    left_out: tuple[LeftOut, ...] = (),
    notes: tuple[str, ...] = (),
) -> Dataset:
    """Set images apart into splits and check that they can be learned from.

    Args:
        splits: str [image]: train, validation, test, or empty where nothing is said; test images
            are then chosen by the seed, the same fraction of each class.

    Raises:
        Unlearnable: fewer than two classes, a class without training images, or no test images.
        RequestError: no images; or something was left out and `options` say to fail.
    """
    if left_out and options.on_error == "fail":
        raise RequestError(
            f"{left_out[0].path}: {left_out[0].reason}; {len(left_out):,} in all cannot be used "
            "(--data.on-error fail)"
        )
    classes = tuple(map(class_name, classes))
    if len(set(classes)) < len(classes):
        raise RequestError(f"{where}: two classes have one name")
    strange = labels[(labels < 0) | (labels >= len(classes))]
    if len(strange):
        raise RequestError(
            f"{where} has label {strange[0]}; expected 0 to {len(classes) - 1}, one for each class"
        )
    splits = np.where(splits == "", "train", splits)
    drawn = not np.any(splits == "test")
    if drawn:
        chosen = stratified(labels, options.test_fraction, seed, np.flatnonzero(splits == "train"))
        splits = splits.copy()
        splits[chosen] = "test"
        notes = (
            *notes,
            f"no test images were named: {options.test_fraction:.0%} of each class held out",
        )
    whole = Split(images, labels)
    parts = {name: _part(whole, np.flatnonzero(splits == name)) for name in np.unique(splits)}
    none = whole.take(np.zeros(0, np.int64))
    dataset = Dataset(
        name,
        parts.get("train", none),
        parts.get("test", none),
        classes,
        parts.get("validation"),
        left_out=left_out,
        notes=notes,
        drawn=drawn,
    )
    reason = _unlearnable(dataset)
    if reason:
        raise Unlearnable(f"{where}{reason}", dataset)
    return dataset


def _unlearnable(dataset: Dataset) -> str:
    """Why nothing could be learned from data, or not be tested; empty where it could."""
    train, test, classes = dataset.train, dataset.test, dataset.classes
    if not len(train):
        return " has no training images"
    present = np.unique(train.labels)
    missing = np.setdiff1d(np.arange(len(classes)), present).tolist()
    if len(test) and len(present) < 2:
        only = classes[present[0]]
        return f" has training images of one class only ({only}): give at least two"
    if not len(test):
        return (
            ": no test images are left: every class has one image only; add images, or "
            "test images of their own"
        )
    if not missing:
        return ""
    others = [split.labels for name, split in dataset.splits.items() if name != "train"]
    held = np.isin(np.concatenate(others), missing).any()
    if not held and not dataset.left_out:
        numbers = classes == tuple(map(str, range(len(classes))))
        hint = "; do labels start at 1?" if missing == [0] and numbers else ""
        return f": no training image has label {classes[missing[0]]}{hint}"
    why = "in test or validation only" if held else "without a readable image"
    return f": class {classes[missing[0]]!r} is {why}: nothing could be learned of it"


def _part(whole: Split, rows: np.ndarray) -> Split:
    """Those rows, read-only; of arrays in memory without a copy, where they lie together."""
    images = whole.images
    if isinstance(images, np.ndarray) and rows[-1] - rows[0] + 1 == len(rows):
        part = Split(images[rows[0] : rows[-1] + 1], whole.labels[rows])
    else:
        part = whole.take(rows)
    if isinstance(part.images, np.ndarray):
        read_only(part.images)
    return Split(part.images, read_only(part.labels))


def refuse_lost_test(where: str, named: Iterable[str], kept: Iterable[str]) -> None:
    """Refuse to test on other images than those that the data name.

    Raises:
        RequestError: test images were named, and none of them could be read.
    """
    if "test" in named and "test" not in kept:
        raise RequestError(
            f"{where}: none of the test images can be read: see thinned data inspect"
        )


def headers(paths: Sequence[Path]) -> list[Header | str]:
    """The header of each file, or why it has none; in parallel, nothing is unpacked."""
    return list(in_parallel(partial(or_reason, read_header), paths))


def _form(
    entries: Sequence[Entry], options: DataConfig
) -> tuple[Size, Literal[1, 3], tuple[str, ...]]:
    """Size and channels of the images: as asked for, else as the files are."""
    if options.size is not None and options.channels is not None:
        return (options.size, options.size), options.channels, ()
    readable = [
        header for header in headers([e.path for e in entries]) if isinstance(header, Header)
    ]
    sizes = {header.size for header in readable}
    grey = bool(readable) and all(header.is_grey for header in readable)
    size, channels = form_for(sizes, grey, options)
    if options.size is not None or not sizes or sizes == {size}:
        return size, channels, ()
    note = f"images of {len(sizes)} sizes are brought to {size[0]} x {size[1]} (--data.size)"
    return size, channels, (note,)


def form_for(sizes: set[Size], grey: bool, options: DataConfig) -> tuple[Size, Literal[1, 3]]:
    """Size and channels for images of `sizes`, all `grey` or not, where `options` leave it open."""
    channels = options.channels or (1 if grey else 3)
    if options.size is not None:
        return (options.size, options.size), channels
    common = next(iter(sizes)) if len(sizes) == 1 else None
    small = common is not None and max(common) <= _LARGEST_NATIVE
    return (common if common and small else (_DEFAULT_SIDE, _DEFAULT_SIDE)), channels


def class_order(text: str) -> tuple[int, int, str]:
    """Sorts the names of classes: numbers as numbers, so that 10 comes after 9, before all others.

    What only looks like a number (``²``), or is longer than any that is meant as one, is text.
    """
    number = text.isascii() and text.isdigit() and len(text) <= _LONGEST_NUMBER
    return (0, int(text), text) if number else (1, 0, text)


def class_name(text: str) -> str:
    """The name of a class as it is shown and compared: printable, in Unicode's composed form.

    One system writes é as one character, another as two: that makes no two classes.
    """
    return unicodedata.normalize("NFC", printable(text))


def manner(size: Size, channels: int, fit: Fit) -> str:
    """Says how images are decoded: what was decoded in another manner is decoded anew."""
    return f"{_VERSION} {PIL.__version__} {size} {channels} {fit}"


def _packed(entries: Sequence[Entry], size: Size, channels: int, fit: Fit) -> Pack:
    states = [state_of(entry.path) for entry in entries]
    folder = cache_folder() / _digest(entries, states, manner(size, channels, fit))

    def one(known: tuple[Entry, str]) -> np.ndarray | str:
        decoded = or_reason(decode, known[0].path, size, channels, fit)
        # Of a file that was missing before, the pack's own name says so: it changes with the file.
        return str(decoded) if isinstance(decoded, str) and decoded == known[1] else decoded

    pairs = list(zip(entries, states, strict=True))
    return open_pack(folder) or write_pack(
        folder, (*size, channels), enumerate(in_parallel(one, pairs))
    )


def state_of(path: Path) -> str:
    """Changes with a file's content; why there is none where it cannot be reached.

    Size and time of change alone do not tell: copying programs set the time as it was.
    """
    try:
        stat = path.stat()
        return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
    except OSError as error:
        return error.strerror or "gone"


def _digest(entries: Sequence[Entry], states: Sequence[str], manner: str) -> str:
    """A name for decoded images that changes with the files and with how they are decoded."""
    total = hashlib.sha256(manner.encode())
    for entry, state in zip(entries, states, strict=True):
        total.update(os.fsencode(entry.path.absolute()) + b"\0" + state.encode() + b"\0")
    return total.hexdigest()[:32]


def in_parallel(function: Any, items: Iterable[Any]) -> Iterator[Any]:
    """`map` over threads, in order, with only a few results waiting: Pillow lets others run."""
    workers = os.cpu_count() or 1
    waiting: collections.deque[Future[Any]] = collections.deque()
    # Set once and not for each image: filters of warnings belong to the whole process.
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 4 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
