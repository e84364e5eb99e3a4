"""Looking at data before learning from them: inspect, show, convert."""

from __future__ import annotations

import collections
import hashlib
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from thinned.core.config import Config, DataConfig
from thinned.core.disk import cache_folder, whole
from thinned.core.errors import RequestError, printable
from thinned.core.rng import key_for, permutation
from thinned.core.types import Dataset, Split
from thinned.data import LARGEST_BYTES
from thinned.data.augment import augment_for
from thinned.data.batch import as_float
from thinned.data.decode import Header
from thinned.data.facts import Facts, statistics_of
from thinned.data.files import headers
from thinned.data.pack import Kept, PackedImages, largest_cache, open_pack, packs_in, trim
from thinned.data.sheet import write_sheet
from thinned.data.sources.folder import ImageFolder
from thinned.data.sources.load import load_data, open_source
from thinned.data.sources.table import Table

_PER_CLASS = 10
_SHOWN = 10
# Labels and names of classes need room, too.
_LARGEST_PACKED = LARGEST_BYTES - (1 << 30)


@dataclass(frozen=True)
class Inspection:
    """What a data set is like; its text is a report for people.

    Attributes:
        dataset: as it would be trained on.
        counts: split -> images of each class, in the order of the classes.
        forms: "height x width mode" -> files, most frequent first; empty for arrays.
        mean, deviation: of the training images in [0, 1], by channel.
        leaks: (split, other split) -> images of the other that are in the split, too, pixel for
            pixel.
        repeats: split -> images that equal another one of the same split.
        conflicts: images that equal one of another class.
        pairs: of each of the three, the first ten pairs of equal images, for people.
    """

    dataset: Dataset
    counts: dict[str, np.ndarray]
    forms: dict[str, int]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    leaks: dict[tuple[str, str], int]
    repeats: dict[str, int]
    conflicts: int
    pairs: dict[str, list[str]]

    def __str__(self) -> str:
        """Everything, a section after another."""
        return "\n".join([*self._classes(), "", *self._pixels(), "", *self._problems()])

    def _classes(self) -> Iterator[str]:
        shape = " x ".join(map(str, self.dataset.train.images.shape[1:]))
        yield f"{self.dataset.name}: {len(self.dataset.classes)} classes, images {shape}"
        names = [*self.dataset.classes, "all"]
        width = max(len("class"), *(len(name) for name in names))
        yield "class".ljust(width) + "".join(f"{split:>12}" for split in self.counts)
        for label, name in enumerate(names):
            cells = (
                counts[label] if label < len(counts) else counts.sum()
                for counts in self.counts.values()
            )
            yield name.ljust(width) + "".join(f"{int(cell):>12,}" for cell in cells)

    def _pixels(self) -> Iterator[str]:
        for form, count in list(self.forms.items())[:_SHOWN]:
            yield f"{count:>8,} of {form}"
        if len(self.forms) > _SHOWN:
            rest = sum(list(self.forms.values())[_SHOWN:])
            yield f"{rest:>8,} of {len(self.forms) - _SHOWN} other forms"
        yield "mean      " + " ".join(f"{value:.4f}" for value in self.mean)
        yield "deviation " + " ".join(f"{value:.4f}" for value in self.deviation)

    def _problems(self) -> Iterator[str]:
        for split, count in self.repeats.items():
            yield f"{count:>8,} images of {split} equal another one of {split}"
        yield from self._listed("repeats", "no image equals another one of its split")
        for (one, two), count in self.leaks.items():
            yield f"{count:>8,} images of {two} are in {one}, too"
        yield from self._listed("leaks", "no image is in two splits")
        if self.conflicts:
            yield f"{self.conflicts:>8,} images equal one of another class"
        yield from self._listed("conflicts", "no image equals one of another class")
        yield f"{len(self.dataset.left_out):>8,} files cannot be read"
        for out in self.dataset.left_out[:_SHOWN]:
            yield f"         {out.path}: {out.reason}"
        if len(self.dataset.left_out) > _SHOWN:
            yield f"         and {len(self.dataset.left_out) - _SHOWN} more"

        for note in self.dataset.notes:
            yield f"note: {note}"

    def _listed(self, kind: str, none: str) -> Iterator[str]:
        if not self.pairs[kind]:
            yield f"{0:>8,}: {none}"
        for pair in self.pairs[kind]:
            yield f"         {pair}"


def inspect(data: DataConfig, sheet: Path | None = None) -> Inspection:
    """Look at every image of a source.

    Args:
        data: the source and how it is read.
        sheet: where to write a picture of examples of each class (PNG), if anywhere.

    Raises:
        RequestError: the source cannot be read.
    """
    source = open_source(data)
    dataset = source.load()
    splits = dataset.splits
    classes = len(dataset.classes)
    counts = {name: np.bincount(split.labels, minlength=classes) for name, split in splits.items()}
    mean, deviation = statistics_of(dataset.train)
    named = namer(source, splits)
    leaks, repeats, conflicts, pairs = duplicates(splits, named)
    if sheet is not None:
        write_sheet(_examples(dataset), sheet)
    forms = _forms(source)
    return Inspection(dataset, counts, forms, mean, deviation, leaks, repeats, conflicts, pairs)


def show(config: Config, path: Path) -> None:
    """Write a picture of what the network sees: training images as augmented in the first steps.

    The first row holds images as they are, those below the same images varied.

    Raises:
        RequestError: the data cannot be read.
        ThinnedError: the picture cannot be written.
    """
    dataset = load_data(config)
    facts = Facts.of(dataset, config)
    order = permutation(key_for(config.seed, "shuffle", 1), len(dataset.train))[:_PER_CLASS]
    images, labels = dataset.train.images[order], dataset.train.labels[order]
    rows = {"as they are": images}
    augment = augment_for(config.augment, facts.image_shape, len(facts.classes), facts.plain)
    if augment is None:
        rows = {"as they are; nothing is varied (--augment.preset)": images}
    else:
        # As one program: operation by operation, each would be compiled by itself.
        vary = jax.jit(augment.__call__)
        pixels = as_float(jnp.asarray(images))
        for step in range(5):
            varied = vary(pixels, jnp.asarray(labels), key_for(config.seed, "augment", step))
            shown = np.asarray(jnp.rint(varied.images * 255), np.uint8)
            rows[f"varied, step {step + 1}"] = shown
    write_sheet(rows, path)


def convert(data: DataConfig, out: Path) -> Dataset:
    """Pack a source into one ``.npz`` file that `thinned.data.sources.arrays.Npz` and NumPy read.

    Args:
        data: the source and how it is read.
        out: the file, ending in .npz; replaced only when it is whole.

    Returns:
        What was packed.

    Raises:
        RequestError: the source cannot be read, `out` has another ending, or it would be larger
            than the reader accepts.
        ThinnedError: the file cannot be written.
    """
    if out.suffix.lower() != ".npz":
        raise RequestError(f"{out}: the packed file must end in .npz")
    dataset = open_source(data).load()
    size = sum(split.images.nbytes for split in dataset.splits.values())
    if size > _LARGEST_PACKED:
        raise RequestError(
            f"{out} would hold {size:,} bytes, and none of more than {_LARGEST_PACKED:,} is read: "
            "give a smaller --data.size, or train on the source itself, which is streamed"
        )
    names = {"train": "train", "validation": "val", "test": "test"}
    with whole(out) as draft, zipfile.ZipFile(draft, "w", allowZip64=True) as archive:
        for split, part in dataset.splits.items():
            _add_images(archive, f"x_{names[split]}", part)
            _add(archive, f"y_{names[split]}", part.labels)
        _add(archive, "classes", np.asarray(dataset.classes))
    return dataset


def cache(clear: bool = False) -> str:
    """What is kept of images, decoded or as features: a line each and their sums.

    Args:
        clear: whether to delete first what no process is reading.

    Raises:
        ThinnedError: there is no place for a cache.
        RequestError: ``THINNED_CACHE_GB`` is no number.
    """
    return "\n".join(line for kind in ("data", "features") for line in _cached(kind, clear))


def _cached(kind: str, clear: bool) -> list[str]:
    folder, bound = cache_folder(kind), largest_cache()
    gone = trim(folder, 0) if clear else []
    packs = packs_in(folder)
    lines = [f"deleted {len(gone):,}, {_gigabytes(gone)} GB"] if clear else []
    for kept in reversed(packs):
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(kept.used))
        lines.append(f"{kept.size / 1e9:>9.3f} GB  used {used}  {kept.folder.name}")
    lines.append(
        f"{folder}: {len(packs):,} kept, {_gigabytes(packs)} GB; above {bound / 1e9:g} GB the "
        "longest unused are deleted (THINNED_CACHE_GB), but none that a process reads"
    )
    return lines


def _gigabytes(packs: Sequence[Kept]) -> str:
    return f"{sum(kept.size for kept in packs) / 1e9:.3f}"


def _add(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def _add_images(archive: zipfile.ZipFile, name: str, split: Split) -> None:
    """Images part by part: they need not fit into the memory."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        header: dict[str, Any] = {
            "descr": "|u1",
            "fortran_order": False,
            "shape": tuple(map(int, split.images.shape)),
        }
        np.lib.format.write_array_header_1_0(file, header)
        for part, _ in split.parts():
            file.write(np.ascontiguousarray(part).data)


class Place(NamedTuple):
    """Where an image is: its split, its place there, and its label."""

    split: str
    row: int
    label: int


class Duplicates(NamedTuple):
    """Images that there are more than once; see `Inspection`, whose attributes these are."""

    leaks: dict[tuple[str, str], int]
    repeats: dict[str, int]
    conflicts: int
    pairs: dict[str, list[str]]


def duplicates(
    splits: dict[str, Split],
    named: Callable[[Place], str] = lambda place: f"{place.split}[{place.row}]",
) -> Duplicates:
    """Which images are equal, pixel for pixel.

    Args:
        splits: by name.
        named: what an image is called, for people.
    """
    leaks: collections.Counter[tuple[str, str]] = collections.Counter()
    repeats: collections.Counter[str] = collections.Counter()
    conflicts = 0
    pairs: dict[str, list[str]] = {"repeats": [], "leaks": [], "conflicts": []}
    names = list(splits)
    for places in _equal(splits):
        conflicts += len(places) if len({place.label for place in places}) > 1 else 0
        held = collections.Counter(place.split for place in places)
        for index, one in enumerate(names):
            repeats[one] += held[one] if held[one] > 1 else 0
            for two in names[index + 1 :]:
                leaks[one, two] += held[two] if held[one] else 0
        for kind, (one, two) in _kinds(places):
            if len(pairs[kind]) < _SHOWN:
                pairs[kind].append(f"{named(one)} = {named(two)}")
    return Duplicates(
        {pair: count for pair, count in leaks.items() if count},
        {name: count for name, count in repeats.items() if count},
        conflicts,
        pairs,
    )


def _equal(splits: dict[str, Split]) -> list[list[Place]]:
    """The places of every image that there is more than once."""
    seen: dict[bytes, list[Place]] = collections.defaultdict(list)
    for name, split in splits.items():
        row = 0
        for images, labels in split.parts():
            for image, label in zip(images, labels, strict=True):
                digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
                seen[digest].append(Place(name, row, int(label)))
                row += 1
    return [places for places in seen.values() if len(places) > 1]


def _kinds(places: list[Place]) -> Iterator[tuple[str, tuple[Place, Place]]]:
    """What is wrong with equal images, with the first of them and another."""
    first = places[0]
    for other in places[1:]:
        yield "repeats" if other.split == first.split else "leaks", (first, other)
        if other.label != first.label:
            yield "conflicts", (first, other)


def namer(source: Any, splits: dict[str, Split]) -> Callable[[Place], str]:
    """Names images by their files where the source has files, else by split and place.

    Args:
        source: as opened, see `thinned.data.sources.load.open_source`.
        splits: of what it loads.
    """
    images = splits["train"].images
    if not isinstance(source, ImageFolder | Table) or not isinstance(images, PackedImages):
        return lambda place: f"{place.split}[{place.row}]"
    entries, pack = source.entries()[0], open_pack(images.path.parent)

    def named(place: Place) -> str:
        held: Any = splits[place.split].images
        return printable(entries[pack.kept[held.rows[place.row]]].path) if pack else "?"

    return named


def _forms(source: Any) -> dict[str, int]:
    if not isinstance(source, ImageFolder | Table):
        return {}
    read = headers([entry.path for entry in source.entries()[0]])
    forms = collections.Counter(
        f"{header.size[0]} x {header.size[1]} {header.mode} {header.format}"
        for header in read
        if isinstance(header, Header)
    )
    return dict(forms.most_common())


def _examples(dataset: Dataset) -> dict[str, np.ndarray]:
    rows: dict[str, np.ndarray] = {}
    for label, name in enumerate(dataset.classes):
        members = np.flatnonzero(dataset.train.labels == label)[:_PER_CLASS]
        rows[f"{name}"] = dataset.train.images[members]
    return rows
