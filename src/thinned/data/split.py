"""Setting training images apart, by seed; the test set is never touched."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from thinned.data import read_only
from thinned.errors import RequestError
from thinned.rng import key_for, permutation
from thinned.types import Dataset, Split


def hold_out(dataset: Dataset, count: int, seed: int) -> Dataset:
    """Move `count` training images, chosen by the seed, to the validation split.

    Args:
        dataset: what was loaded.
        count: images to hold out; 0 holds out none.
        seed: of the stream `split`.

    Returns:
        The dataset with both splits in their original order, read-only.

    Raises:
        RequestError: `count` is negative, or no training images, or a class without any, would be
            left.
    """
    size = len(dataset.train)
    if count < 0:
        raise RequestError(f"--data.validation {count} is negative: give 0 or more")
    if count == 0:
        return dataset
    if count >= size:
        raise RequestError(f"--data.validation {count} leaves none of {size} training images")
    chosen = np.zeros(size, bool)
    chosen[permutation(key_for(seed, "split"), size)[:count]] = True
    return dataclasses.replace(
        dataset,
        train=_kept(dataset, ~chosen, f"--data.validation {count}"),
        validation=_taken(dataset.train, chosen),
    )


def limit(dataset: Dataset, count: int, seed: int) -> Dataset:
    """Keep only `count` training images, chosen by the seed; fewer are a part of more.

    Raises:
        RequestError: `count` is below 1, there are fewer, or a class would be left without any.
    """
    size = len(dataset.train)
    if count < 1:
        raise RequestError(f"--data.limit {count} leaves no training images: give 1 or more")
    if count > size:
        raise RequestError(f"--data.limit {count} is more than the {size} training images")
    chosen = np.zeros(size, bool)
    chosen[permutation(key_for(seed, "split", 1), size)[:count]] = True
    return dataclasses.replace(dataset, train=_kept(dataset, chosen, f"--data.limit {count}"))


def fingerprint(dataset: Dataset) -> str:
    """SHA-256, as hex, over shapes, dtypes, pixels and labels of all splits."""
    total = hashlib.sha256()
    for split in (dataset.train, dataset.validation, dataset.test):
        for array in (split.images, split.labels) if split else ():
            total.update(f"{array.dtype.str}{array.shape}".encode())
            total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def _kept(dataset: Dataset, mask: np.ndarray, option: str) -> Split:
    kept = _taken(dataset.train, mask)
    lost = np.setdiff1d(dataset.train.labels, kept.labels)
    if len(lost):
        raise RequestError(f"{option} leaves no training image of class {lost[0]}")
    return kept


def _taken(split: Split, mask: np.ndarray) -> Split:
    taken = split.take(np.flatnonzero(mask))
    return Split(read_only(taken.images), read_only(taken.labels))
