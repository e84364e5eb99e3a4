"""Blurs, as Hendrycks & Dietterich (2019) define them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage, signal

from thinned.data.damage.common import Randoms, smoothed, swept, whole_levels, zoomed


def defocus_blur(
    images: np.ndarray, randoms: Randoms, radius: float, softness: float
) -> np.ndarray:
    """The mean over a disk of this radius, its edge smoothed by a Gaussian of `softness`."""
    kernel = _disk(radius, softness)
    reach = len(kernel) // 2
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), "reflect")
    weights = kernel[None, :, :, None].astype(images.dtype)
    return signal.fftconvolve(padded, weights, "valid", axes=(1, 2))


def _disk(radius: float, softness: float) -> np.ndarray:
    reach, taps = (8, 1) if radius <= 8 else (int(radius), 2)
    line = np.arange(-reach, reach + 1)
    disk = (line[:, None] ** 2 + line**2 <= radius**2).astype(np.float64)
    disk /= disk.sum()
    soft = np.exp(-(np.arange(-taps, taps + 1) ** 2) / (2 * softness**2))
    for axis in (0, 1):
        disk = ndimage.correlate1d(disk, soft / soft.sum(), axis, mode="mirror")
    used = np.flatnonzero(disk.any(1))
    return disk[used[0] : used[-1] + 1, used[0] : used[-1] + 1]


def motion_blur(images: np.ndarray, randoms: Randoms, radius: int, sigma: float) -> np.ndarray:
    """Along a line within 45 degrees of the horizontal; see `thinned.data.damage.common.swept`."""
    pairs = zip(images, randoms, strict=True)
    return np.stack([swept(each, radius, sigma, random.uniform(-45, 45)) for each, random in pairs])


def zoom_blur(images: np.ndarray, randoms: Randoms, factors: Sequence[float]) -> np.ndarray:
    """The mean of an image and its enlargements."""
    return (images + sum(zoomed(images, each) for each in factors)) / (len(factors) + 1)


def glass_blur(
    images: np.ndarray,
    randoms: Randoms,
    sigma: float,
    reach: int,
    rounds: int,
    chance: float = 1,
) -> np.ndarray:
    """Blurs, carries pixels off to places nearby, and blurs again.

    The authors' loop exchanges pixels of images without channels only: of others, NumPy gives it
    views, and what it exchanges through them is one pixel written over another. The published
    images are made so, and so are these.

    Args:
        images: f32 [image, height, width, channel].
        randoms: a generator for each.
        sigma: of the Gaussian, in pixels.
        reach: how far a pixel may go, in pixels.
        rounds: how often all go.
        chance: of each pixel to go at all.
    """
    levels = whole_levels(smoothed(images, sigma)).astype(np.uint8)
    shape = (rounds, *(max(0, length - 2 * reach) for length in images.shape[1:3]))
    moves = np.stack([_moves(random, shape, reach, chance) for random in randoms])
    shuffle(levels, moves, reach, exchange=images.shape[-1] == 1)
    return smoothed(levels.astype(images.dtype) / 255, sigma)


def _moves(
    random: np.random.Generator, shape: tuple[int, ...], reach: int, chance: float
) -> np.ndarray:
    moves = random.integers(-reach, reach, (*shape, 2)).astype(np.int8)
    if chance < 1:
        moves[random.random(shape) >= chance] = 0
    return moves


def shuffle(pixels: np.ndarray, moves: np.ndarray, reach: int, exchange: bool) -> None:
    """Carry pixels to places nearby, one after another from the lower right to the upper left.

    Pixels at least twice `reach` apart do not meet, so that one of each row goes at a time, those
    of a row so far behind those of the row before: what comes out is the same.

    Args:
        pixels: [image, height, width, channel], changed in place.
        moves: int [image, round, row, column, 2], (column, row) offsets in
            ``range(-reach, reach)``, from the lower right, of all pixels `reach` from the edge.
        reach: how far a pixel may go.
        exchange: whether a pixel takes the place of the one that takes its own; else that stays.
    """
    rows, columns = moves.shape[2:4]
    every = np.arange(len(pixels))[:, None]
    behind = 2 * reach
    for turn in range(moves.shape[1]):
        for time in range((rows - 1) * behind + columns if columns else 0):
            row = np.arange(
                max(0, -((columns - 1 - time) // behind)), min(rows - 1, time // behind) + 1
            )
            column = time - behind * row
            right, down = np.moveaxis(moves[:, turn, row, column], -1, 0)
            height, width = pixels.shape[1] - reach - row, pixels.shape[2] - reach - column
            there = (every, height + down, width + right)
            coming = pixels[there]
            if exchange:
                pixels[there] = pixels[:, height, width]
            pixels[:, height, width] = coming
