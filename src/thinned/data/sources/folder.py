"""Folders of images: a folder for each class, with or without folders for the splits above them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from thinned.core.config import DataConfig
from thinned.core.errors import RequestError, printable
from thinned.core.types import Dataset, Split
from thinned.data import enterable
from thinned.data.decode import SUFFIXES
from thinned.data.files import Entry, SplitName, class_name, load_files, load_unlabelled

_NOTED = 5
SPLITS: Mapping[str, SplitName] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class ImageFolder:
    """A tree of image files whose folders name the classes.

    Either ``train/CLASS/...``, with ``validation/`` and ``test/`` where there are any, or
    ``CLASS/...`` alone. Inside a class, folders of any depth are searched, see `image_files`.
    """

    path: Path
    options: DataConfig
    seed: int

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name or "images"

    def load(self) -> Dataset:
        """Decode every image at one size.

        Raises:
            RequestError: see `thinned.data.files.load_files`.
        """
        passed: Counter[str] = Counter()
        entries, classes = self._listed(passed)
        notes = tuple(
            f"{suffix or 'without ending'}: {count:,} {'file is' if count == 1 else 'files are'} "
            f"no image by {'its' if count == 1 else 'their'} name"
            for suffix, count in sorted(passed.items(), key=lambda held: (-held[1], held[0]))[
                :_NOTED
            ]
        )
        where = str(self.path)
        return load_files(self.name, where, entries, classes, self.options, self.seed, notes)

    def unlabelled(self) -> Split:
        """The test images, or all images below where there are no folders of splits.

        Raises:
            RequestError: there are no images.
        """
        names = {top.name.lower() for top in _folders(self.path)}
        if "train" in (SPLITS.get(name) for name in names):
            return self.load().test
        return load_unlabelled(str(self.path), image_files(self.path), self.options)

    def entries(self) -> tuple[list[Entry], tuple[str, ...]]:
        """The image files, sorted, and the names of the classes, sorted.

        Raises:
            RequestError: there are no class folders, or one holds no images.
        """
        return self._listed(Counter())

    def _listed(self, passed: Counter[str]) -> tuple[list[Entry], tuple[str, ...]]:
        files = list(self._files(passed))
        classes = tuple(sorted({name for name, _, _ in files}))
        labels = {name: label for label, name in enumerate(classes)}
        return [Entry(path, labels[name], split) for name, split, path in files], classes

    def _splits(self) -> list[Path]:
        """The folders of the splits; none where the folders are those of the classes."""
        tops = _folders(self.path)
        splits = [top for top in tops if top.name.lower() in SPLITS]
        train = [top for top in splits if SPLITS[top.name.lower()] == "train"]
        if len(splits) < len(tops):
            # With others beside it, a folder called train that holds no folders is a class.
            return splits if any(map(_folders, train)) else []
        if splits and not train:
            raise RequestError(
                f"{self.path} has {' and '.join(top.name for top in splits)}, but no folder train"
            )
        return splits

    def _files(self, passed: Counter[str]) -> Iterator[tuple[str, SplitName | None, Path]]:
        splits = self._splits()
        for root in splits or [self.path]:
            split: SplitName | None = SPLITS[root.name.lower()] if splits else None
            folders = _folders(root)
            if not folders:
                raise RequestError(
                    f"{root} has no folders: put the images of each class into a folder of its own"
                )
            taken: dict[str, Path] = {}
            for folder in folders:
                # A name that is no UTF-8 could neither be shown nor saved as it is.
                name = class_name(folder.name)
                if taken.setdefault(name, folder) != folder:
                    raise RequestError(f"two class folders of {root} have one name, {name}")
                if root.resolve().is_relative_to(folder.resolve()):
                    raise RequestError(f"class folder {folder} leads to a folder above itself")
                for path in _images(folder, passed):
                    yield name, split, path


def _folders(path: Path) -> list[Path]:
    try:
        entries = [entry for entry in enterable(path).iterdir() if not entry.name.startswith(".")]
        return sorted((entry for entry in entries if entry.is_dir()), key=lambda entry: entry.name)
    except OSError as error:
        raise RequestError(f"cannot read folder {path}: {error.strerror or error}") from error


def _images(folder: Path, passed: Counter[str]) -> list[Path]:
    images = image_files(folder, passed)
    if not images:
        raise RequestError(
            f"class folder {folder} holds no images (JPEG, PNG, WebP, BMP, GIF, TIFF): "
            "fill it, or take it away"
        )
    return images


def image_files(folder: Path, passed: Counter[str] | None = None) -> list[Path]:
    """The image files in a folder and below it, sorted: the same for every command.

    Hidden files and folders, and files that are no images by their name, are passed over. Links to
    folders are followed, but not to a folder above; each folder is entered once, so that no loop
    can be walked.

    Args:
        folder: where to look.
        passed: counts the endings of files that are no images.

    Raises:
        RequestError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise RequestError(f"cannot read folder {error.filename}: {error.strerror}") from error

    images: list[Path] = []
    entered: set[str] = set()
    for base, inner, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(base)
        # Above would be the images of other classes, too.
        if real in entered or _is_above(real, base):
            inner.clear()
            continue
        entered.add(real)
        try:
            enterable(Path(base))
        except OSError as error:
            refuse(error)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in names:
            suffix = Path(name).suffix.lower()
            if suffix in SUFFIXES and not name.startswith("."):
                images.append(Path(base, name))
            elif not name.startswith(".") and passed is not None:
                passed[printable(suffix)] += 1
    return sorted(images)


def _is_above(real: str, base: str) -> bool:
    """Whether a link leads to a folder that holds the link."""
    around = os.path.realpath(os.path.dirname(base))
    return os.path.islink(base) and os.path.commonpath([real, around]) == real
