"""Names for the values that pass between rooms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

Key = jax.Array
"""A JAX PRNG key (typed, or a legacy uint32 key), used once."""

Bits = Literal["threefry", "fast"]
"""Generators of masks: ``threefry`` draws JAX's own bits, ``fast`` is a keyed mix hash."""

Rates = Mapping[str, Any]
"""Drop probabilities by site name, e.g. ``{"dropout": 0.5}``; each f32 [] (may be traced)."""

Variables = Mapping[str, Any]
"""Flax variables: collection name -> nested mapping of arrays."""


@dataclass(frozen=True)
class Split:
    """A labelled set of images in host memory.

    Attributes:
        images: u8 [example, height, width, channel].
        labels: i32 [example], each in ``range(classes)`` of the dataset.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Split:
        """The examples at `indices` (int [n]), in that order."""
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class Dataset:
    """What a source loads: the training and the test split and what the labels mean.

    Attributes:
        name: a short name for people, e.g. ``"mnist"``.
        train: the training images.
        test: the test images; never used to select anything.
        classes: the names of the classes, in the order of the labels.
        validation: training images held out by the user's wish, else None.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    validation: Split | None = None
