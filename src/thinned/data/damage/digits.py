"""What is done to digits only, as Mu & Gilmer (2019) define it.

Places and lengths are of images of 28 pixels, and in proportion of others.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import ndimage

from thinned.data.damage.common import Randoms

_SIDE = 28


def shear(images: np.ndarray, randoms: Randoms, angle: float) -> np.ndarray:
    """Slants to the left or the right, by an angle in radians."""
    return _mapped(images, [_slanted(angle * random.choice([-1, 1])) for random in randoms])


def _slanted(angle: float) -> np.ndarray:
    # That of scikit-image 0.15, with which the images were published (May 2019): it takes (x, y) to
    # (x - y sin, y cos). Since 0.21 a shear leaves y alone.
    return np.array([[np.cos(angle), 0], [-np.sin(angle), 1]])


def rotate(images: np.ndarray, randoms: Randoms, angle: float) -> np.ndarray:
    """Turns about the middle to the left or the right, by an angle in radians."""
    return _mapped(images, [_turned(angle * random.choice([-1, 1])) for random in randoms])


def _turned(angle: float) -> np.ndarray:
    sine, cosine = np.sin(angle), np.cos(angle)
    return np.array([[cosine, sine], [-sine, cosine]])


def scale(images: np.ndarray, randoms: Randoms, factor: float) -> np.ndarray:
    """Makes what an image shows smaller by a factor."""
    return _mapped(images, [factor * np.eye(2)] * len(images))


def translate(images: np.ndarray, randoms: Randoms, pixels: float) -> np.ndarray:
    """Shifts along both diagonals."""
    lengths = np.array(images.shape[1:3])
    by = np.rint(pixels * lengths / _SIDE)
    shifts = [by * random.choice([-1, 1], 2)[::-1] for random in randoms]
    return _mapped(images, [np.eye(2)] * len(images), shifts)


def _mapped(
    images: np.ndarray, matrices: Sequence[np.ndarray], shifts: Sequence[np.ndarray] | None = None
) -> np.ndarray:
    """Images looked up where matrices of (row, column) about the middle lead; black beyond."""
    middle = (np.array(images.shape[1:3]) - 1) / 2
    out = np.empty_like(images)
    for index, matrix in enumerate(matrices):
        start: Any = middle - matrix @ middle + (0 if shifts is None else shifts[index])
        for channel in range(images.shape[-1]):
            out[index, ..., channel] = ndimage.affine_transform(
                images[index, ..., channel], matrix, start, order=1, mode="grid-constant"
            )
    return out


def stripe(images: np.ndarray, randoms: Randoms) -> np.ndarray:
    """Inverts the outer quarters on the left and the right."""
    column = _grid(images.shape[2])
    return np.where(((column < 7) | (column >= 21))[:, None], 1 - images, images)


def dotted_line(images: np.ndarray, randoms: Randoms) -> np.ndarray:
    """A dotted line from the left to the right."""
    dots = _grid(images.shape[2]) // 2 % 2
    lines = [
        dots * _line(images.shape[1:3], 0, _row(random), 27, _row(random)) for random in randoms
    ]
    return images + np.stack(lines)[..., None]


def _row(random: np.random.Generator) -> int:
    return int(random.integers(0, 27))


def zigzag(images: np.ndarray, randoms: Randoms) -> np.ndarray:
    """A zigzag from the left to the right."""
    lines = [_zigzag(images.shape[1:3], random) for random in randoms]
    return images + np.stack(lines)[..., None]


def _zigzag(shape: Sequence[int], random: np.random.Generator) -> np.ndarray:
    left, right, width = 2, 25, 2.0
    row = _row(random)
    slope = random.integers(-5, 5) / (right - left)
    length = (right - left) * np.hypot(1, slope)
    turns = np.arange((length - width) // (2 * width) + 1)
    along = np.array([0, *(2 * turns + 1) * width, length])
    # The last corner is where the authors' code has it: off the line that the zigzag follows.
    rest = length - 2 * width * (length // (2 * width))
    across = np.array([0, *width * (-1) ** turns, width * (-1) ** turns[-1] / (2 * rest)])
    cosine, sine = np.array([1, slope]) / np.hypot(1, slope)
    columns, rows = left + cosine * along - sine * across, row + sine * along + cosine * across
    corners = list(zip(columns, rows, strict=True))
    return sum(
        (_line(shape, *one, *other) for one, other in pairwise(corners)),
        np.zeros(shape),
    )


def _line(
    shape: Sequence[int], column: float, row: float, other_column: float, other_row: float
) -> np.ndarray:
    """A soft stroke of at most 1 in an image of this (height, width); places in 28ths of a side."""
    rows, columns = (_grid(length) for length in shape)
    slope = (other_row - row) / (other_column - column)
    away = np.abs(rows[:, None] - (row + slope * (columns - column)))
    stroke = np.clip(1 + np.log(1 - np.clip(away, 0, 2.2) / 2.3), 0, 1)
    return stroke * ((columns >= np.floor(column)) & (columns < np.ceil(other_column)))


def _grid(length: int) -> np.ndarray:
    """The places of pixels in 28ths of a side."""
    return np.arange(length) * (_SIDE / length)


def canny_edges(images: np.ndarray, randoms: Randoms) -> np.ndarray:
    """Nothing but edges (Canny 1986), found as by scikit-image's defaults."""
    planes = np.moveaxis(images, -1, 1).astype(np.float64)
    edges = _edges(planes.reshape(-1, *images.shape[1:3])).reshape(planes.shape)
    return np.moveaxis(edges, 1, -1).astype(images.dtype)


def _edges(planes: np.ndarray) -> np.ndarray:
    sigmas = (0, 1, 1)
    inside = ndimage.gaussian_filter(np.ones_like(planes), sigmas, mode="constant")
    smooth = ndimage.gaussian_filter(planes, sigmas, mode="constant") / inside
    down, right = _slope(smooth, 1, 2), _slope(smooth, 2, 1)
    size = np.hypot(down, right)
    weak = _crest(size, down, right) & (size >= 0.1)
    # No edge at the frame, where the derivative looks beyond the image.
    weak[:, [0, -1]] = weak[:, :, [0, -1]] = False
    touching = np.zeros((3, 3, 3), bool)
    touching[1] = True
    found: Any = ndimage.label(weak, touching)
    labels, count = found
    strong = np.zeros(count + 1, bool)
    strong[labels[weak & (size >= 0.2)]] = True
    return strong[labels] & weak


def _slope(planes: np.ndarray, axis: int, other: int) -> np.ndarray:
    # Not `ndimage.sobel`, which would smooth along the images, too.
    return ndimage.correlate1d(ndimage.correlate1d(planes, [-1, 0, 1], axis), [1, 2, 1], other)


def _crest(size: np.ndarray, down: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Where a gradient is as large as those before and behind it, which lie between pixels."""
    steep = np.abs(down) >= np.abs(right)
    larger = np.where(steep, np.abs(down), np.abs(right))
    smaller = np.where(steep, np.abs(right), np.abs(down))
    weight = smaller / np.where(larger > 0, larger, 1)
    rows, columns = np.sign(down).astype(int), np.sign(right).astype(int)
    padded = np.pad(size, ((0, 0), (1, 1), (1, 1)))
    plane, row, column = np.ogrid[tuple(slice(length) for length in size.shape)]
    found = size > 0
    for side in (1, -1):
        beyond = padded[plane, row + 1 + side * rows, column + 1 + side * columns]
        straight = padded[
            plane,
            row + 1 + side * np.where(steep, rows, 0),
            column + 1 + side * np.where(steep, 0, columns),
        ]
        found &= beyond * weight + straight * (1 - weight) <= size
    return found
