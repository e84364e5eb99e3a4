"""Names for the values that pass between rooms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jax
import numpy as np

_PART = 1024

Key = jax.Array
"""A JAX PRNG key (typed, or a legacy uint32 key), used once."""

Bits = Literal["threefry", "fast"]
"""Generators of masks: ``threefry`` draws JAX's own bits, ``fast`` is a keyed mix hash."""

Rates = Mapping[str, Any]
"""Drop probabilities by site name, e.g. ``{"dropout": 0.5}``; each f32 [] (may be traced)."""

Variables = Mapping[str, Any]
"""Flax variables: collection name -> nested mapping of arrays."""


class StoredImages(Protocol):
    """Images outside the memory, u8 [example, height, width, channel], read by indexing."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(example, height, width, channel)."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Always u8."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that all would take in memory."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Any, /) -> np.ndarray: ...

    def select(self, indices: np.ndarray, /) -> StoredImages:
        """The images at `indices`, without reading them."""
        ...


@dataclass(frozen=True)
class Split:
    """A labelled set of images.

    Attributes:
        images: u8 [example, height, width, channel]; an array, or read from the disk by indexing.
        labels: i32 [example], each in ``range(classes)`` of the dataset.
    """

    images: np.ndarray | StoredImages
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Split:
        """The examples at `indices` (int [n]), in that order; those on the disk stay there."""
        images = self.images
        chosen = images[indices] if isinstance(images, np.ndarray) else images.select(indices)
        return Split(chosen, self.labels[indices])

    def parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Images and labels part by part, in order: those on the disk need not fit in memory."""
        for start in range(0, len(self), _PART):
            rows = np.arange(start, min(start + _PART, len(self)))
            yield self.images[rows], self.labels[rows]


@dataclass(frozen=True)
class LeftOut:
    """A file that could not be used.

    Attributes:
        path: of the file.
        reason: why, for people.
    """

    path: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """What a source loads: the training and the test split and what the labels mean.

    Attributes:
        name: a short name for people, e.g. ``"mnist"``.
        train: the training images.
        test: the test images; never used to select anything.
        classes: the names of the classes, in the order of the labels.
        validation: images held out for selecting, else None.
        left_out: files that could not be used.
        notes: what was decided about the data, a line each, for people.
        plain: whether images are used as they are, neither normalised nor varied, unless a config
            says otherwise: so the package's MNIST, and nothing else.
        drawn: whether the data named no test images, so that a part was set aside by the seed.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    validation: Split | None = None
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    plain: bool = False
    drawn: bool = False

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that there are, by name: train, validation, test."""
        given = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in given.items() if split is not None}
