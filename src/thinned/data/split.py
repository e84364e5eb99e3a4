"""Setting training images apart, by seed; the test set is never touched."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from thinned.core.errors import RequestError
from thinned.core.rng import key_for, permutation
from thinned.core.types import Dataset, Split
from thinned.data import read_only
from thinned.data.pack import PackedImages


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
    if dataset.validation is not None:
        raise RequestError(
            f"--data.validation {count}: {dataset.name} has validation images of its own"
        )
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


def stratified(labels: np.ndarray, fraction: float, seed: int, among: np.ndarray) -> np.ndarray:
    """Choose the same fraction of each class, by the seed.

    Args:
        labels: i32 [example].
        fraction: above 0, below 1; of a class of two or more at least one is chosen, and one left.
        seed: of the stream `split`.
        among: i64 [n], the examples to choose from.

    Returns:
        i64, sorted.
    """
    chosen: list[np.ndarray] = []
    order = among[permutation(key_for(seed, "split", 2), len(among))]
    grouped = order[np.argsort(labels[order], kind="stable")]
    cuts = np.flatnonzero(np.diff(labels[grouped])) + 1
    for members in np.split(grouped, cuts):
        if len(members) > 1:
            count = min(max(round(fraction * len(members)), 1), len(members) - 1)
            chosen.append(members[:count])
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def everything(dataset: Dataset) -> Split:
    """All images of a dataset as one split, those of the training split first."""
    splits = list(dataset.splits.values())
    labels = np.concatenate([split.labels for split in splits])
    stored = [split.images for split in splits if isinstance(split.images, PackedImages)]
    if len(stored) == len(splits):
        rows = np.concatenate([images.rows for images in stored])
        return Split(dataclasses.replace(stored[0], rows=rows), labels)
    return Split(np.concatenate([np.asarray(split.images) for split in splits]), labels)


def fingerprint(dataset: Dataset) -> str:
    """SHA-256, as hex, over shapes, dtypes, pixels and labels of all splits."""
    total = hashlib.sha256()
    for split in dataset.splits.values():
        total.update(f"{split.images.dtype.str}{split.images.shape}".encode())
        for part, _ in split.parts():
            total.update(np.ascontiguousarray(part).data)
        total.update(f"{split.labels.dtype.str}{split.labels.shape}".encode())
        total.update(np.ascontiguousarray(split.labels).data)
    return total.hexdigest()


def image_digests(split: Split) -> list[bytes]:
    """SHA-256 over the pixels of each image of a split, in its order."""
    return [
        hashlib.sha256(np.ascontiguousarray(image).data).digest()
        for images, _ in split.parts()
        for image in images
    ]


def _kept(dataset: Dataset, mask: np.ndarray, option: str) -> Split:
    kept = _taken(dataset.train, mask)
    lost = np.setdiff1d(dataset.train.labels, kept.labels)
    if len(lost):
        raise RequestError(f"{option} leaves no training image of class {lost[0]}")
    return kept


def _taken(split: Split, mask: np.ndarray) -> Split:
    taken = split.take(np.flatnonzero(mask))
    images = taken.images
    return Split(
        read_only(images) if isinstance(images, np.ndarray) else images, read_only(taken.labels)
    )
