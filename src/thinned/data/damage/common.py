"""What several kinds of damage share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

Randoms = Sequence[np.random.Generator]
"""A generator for each image, so that its damage does not depend on those beside it."""

_ALMOST = 1e-3
"""What rounding may take from a whole level."""


def whole_levels(images: np.ndarray) -> np.ndarray:
    """The level, 0 to 255, below each value in [0, 1], as the authors' conversion to u8 has it."""
    return np.floor(np.clip(images, 0, 1) * 255 + _ALMOST)


def smoothed(images: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian blur of [image, height, width, channel]; the edge goes on beyond itself."""
    return ndimage.gaussian_filter(images, (0, sigma, sigma, 0), mode="nearest")


def grey(images: np.ndarray) -> np.ndarray:
    """The luma (ITU-R BT.601) of images of three channels, else their mean; one channel."""
    if images.shape[-1] != 3:
        return images.mean(-1, keepdims=True)
    return images @ np.array([[0.299], [0.587], [0.114]], images.dtype)


def zoomed(images: np.ndarray, factor: float) -> np.ndarray:
    """The middle of images [image, height, width, channel], made as large as they are; linear."""
    for axis in (1, 2):
        length = images.shape[axis]
        part = int(np.ceil(length / factor))
        enlarged = round(part * factor)
        first, last = (length - part) // 2, (length - part) // 2 + part - 1
        kept = (enlarged - length) // 2 + np.arange(length)
        places = first + kept * (part - 1) / max(enlarged - 1, 1)
        below = np.floor(places).astype(int)
        weight = np.expand_dims(places - below, tuple({0, 1, 2, 3} - {axis})).astype(images.dtype)
        above = np.take(images, np.minimum(below + 1, last), axis)
        images = np.take(images, below, axis) * (1 - weight) + above * weight
    return images


def swept(image: np.ndarray, radius: int, sigma: float, degrees: float) -> np.ndarray:
    """Motion blur of one image [height, width, channel], as ImageMagick's ``MotionBlurImage``.

    Half of a Gaussian along a line of 2 `radius` + 1 pixels; the result has whole levels.
    """
    length = 2 * radius + 1
    steps = np.arange(length)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    angle = np.deg2rad(degrees)
    rows, columns = (
        np.ceil(steps * part - 0.5).astype(int) + length for part in (np.sin(angle), np.cos(angle))
    )
    padded = np.pad(image, ((length, length), (length, length), (0, 0)), "edge")
    height, width = image.shape[:2]
    total = np.zeros(image.shape)
    for weight, row, column in zip(weights / weights.sum(), rows, columns, strict=True):
        total += weight * padded[row : row + height, column : column + width]
    return np.rint(total * 255) / 255
