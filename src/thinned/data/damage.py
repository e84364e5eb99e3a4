"""Damaged test images: six ways to spoil them, in five severities."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from thinned.core.types import Split

SEVERITIES = (1, 3, 5)


_BLOCK = 500
_Randoms = Sequence[np.random.Generator]
"""A generator for each image, so that its damage does not depend on those beside it."""


def _noise(images: np.ndarray, level: int, randoms: _Randoms) -> np.ndarray:
    drawn = [random.normal(0, 0.08 * level, images.shape[1:]) for random in randoms]
    return images + np.stack(drawn)


def _blur(images: np.ndarray, level: int, randoms: _Randoms) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    # Of the side, so that it is the same to the eye at every size: 0.4 pixels a level at 28.
    sigma = 0.4 / 28 * level * min(images.shape[1:3])
    return gaussian_filter(images, (0, sigma, sigma, 0))


def _shift(images: np.ndarray, level: int, randoms: _Randoms) -> np.ndarray:
    signs = np.stack([[random.choice([-1, 1]) for _ in range(2)] for random in randoms])
    # What lies at the edge goes on beyond it: a mirror would paint strokes into a digit.
    rows, columns = (
        np.clip(np.arange(length) + sign[:, None] * round(0.04 * level * length), 0, length - 1)
        for length, sign in zip(images.shape[1:3], signs.T, strict=True)
    )
    return images[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None]]


def _rotation(images: np.ndarray, level: int, randoms: _Randoms) -> np.ndarray:
    from scipy.ndimage import rotate

    degrees = [random.choice([-1, 1]) * 9.0 * level for random in randoms]
    return np.stack(
        [
            rotate(image, angle, reshape=False, order=1, mode="nearest")
            for image, angle in zip(images, degrees, strict=True)
        ]
    )


def _contrast(images: np.ndarray, level: int, randoms: _Randoms) -> np.ndarray:
    means = images.mean((1, 2, 3), keepdims=True)
    return means + (1 - 0.17 * level) * (images - means)


def _occlusion(images: np.ndarray, level: int, randoms: _Randoms) -> np.ndarray:
    side = max(1, round(0.1 * level * min(images.shape[1:3])))
    hidden = images.copy()
    for image, random in zip(hidden, randoms, strict=True):
        row, column = (random.integers(0, length - side + 1) for length in image.shape[:2])
        image[row : row + side, column : column + side] = image.mean()
    return hidden


CORRUPTIONS: dict[str, Callable[[np.ndarray, int, _Randoms], np.ndarray]] = {
    "noise": _noise,
    "blur": _blur,
    "shift": _shift,
    "rotation": _rotation,
    "contrast": _contrast,
    "occlusion": _occlusion,
}
"""By name: a function of images f32 [image, height, width, channel] in [0, 1], severity 1 to 5, and
a generator for each image."""


def corrupted(split: Split, kind: str, severity: int, seed: int = 0) -> Split:
    """A split with every image damaged in one way, each by a generator of its own.

    Args:
        split: the images.
        kind: one of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: of the damage.
    """
    out = np.empty(split.images.shape, np.uint8)
    for start in range(0, len(split), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(split)))
        images = np.asarray(split.images[rows]).astype(np.float32) / 255
        randoms = [np.random.default_rng([seed, severity, row]) for row in rows.tolist()]
        damaged = CORRUPTIONS[kind](images, severity, randoms)
        out[rows] = np.rint(np.clip(damaged, 0, 1) * 255)
    return Split(out, split.labels)
