"""Folders of images: a folder for each class, with or without folders for the splits above them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from thinned.config import DataConfig
from thinned.data.files import Entry, SplitName, load_files
from thinned.data.images import SUFFIXES
from thinned.errors import RequestError
from thinned.types import Dataset

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
    ``CLASS/...`` alone. Inside a class, folders of any depth are searched; hidden files, and files
    that are no images by their name, are passed over. Links to folders are followed for classes,
    not below them, so that no loop can be walked.
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
        entries, classes = self.entries()
        return load_files(self.name, str(self.path), entries, classes, self.options, self.seed)

    def entries(self) -> tuple[list[Entry], tuple[str, ...]]:
        """The image files, sorted, and the names of the classes, sorted.

        Raises:
            RequestError: there are no class folders, or one holds no images.
        """
        found = list(self._files())
        classes = tuple(sorted({name for name, _, _ in found}))
        labels = {name: label for label, name in enumerate(classes)}
        return [Entry(path, labels[name], split) for name, split, path in found], classes

    def _files(self) -> Iterator[tuple[str, SplitName | None, Path]]:
        tops = _folders(self.path)
        splits = [top for top in tops if top.name.lower() in SPLITS]
        if not any(SPLITS[top.name.lower()] == "train" for top in splits):
            splits = []
        for root in splits or [self.path]:
            split: SplitName | None = SPLITS[root.name.lower()] if splits else None
            folders = _folders(root)
            if not folders:
                raise RequestError(
                    f"{root} has no folders: put the images of each class into a folder of its own"
                )
            for folder in folders:
                # A name that is no UTF-8 could neither be shown nor saved.
                name = os.fsencode(folder.name).decode("utf-8", "replace")
                for path in _images(folder):
                    yield name, split, path


def _folders(path: Path) -> list[Path]:
    try:
        found = [each for each in path.iterdir() if not each.name.startswith(".")]
        return sorted((each for each in found if each.is_dir()), key=lambda each: each.name)
    except OSError as error:
        raise RequestError(f"cannot read folder {path}: {error.strerror or error}") from error


def _images(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise RequestError(f"cannot read folder {error.filename}: {error.strerror}") from error

    found: list[Path] = []
    for base, inner, names in os.walk(folder, onerror=refuse):
        inner[:] = [name for name in inner if not name.startswith(".")]
        found += [
            Path(base, name)
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        ]
    if not found:
        raise RequestError(
            f"class folder {folder} holds no images (JPEG, PNG, WebP, BMP, GIF, TIFF): "
            "fill it, or take it away"
        )
    return sorted(found)
