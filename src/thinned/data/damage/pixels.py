"""Noise, light, compression and stretching, as Hendrycks & Dietterich (2019) define them."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image
from scipy import ndimage

from thinned.data.damage.common import Randoms, whole_levels


def gaussian_noise(images: np.ndarray, randoms: Randoms, sigma: float) -> np.ndarray:
    """Adds normal noise."""
    return images + np.stack([random.normal(0, sigma, images.shape[1:]) for random in randoms])


def shot_noise(images: np.ndarray, randoms: Randoms, photons: float) -> np.ndarray:
    """Counts so many photons, on average, where an image is brightest."""
    pairs = zip(images, randoms, strict=True)
    return np.stack([random.poisson(image * photons) / photons for image, random in pairs])


def impulse_noise(images: np.ndarray, randoms: Randoms, part: float) -> np.ndarray:
    """Salt and pepper in this part of the values."""
    noisy = images.copy()
    for image, random in zip(noisy, randoms, strict=True):
        hit = random.random(image.shape) <= part
        salt = random.random(image.shape) <= 0.5
        image[hit] = salt[hit]
    return noisy


def brightness(images: np.ndarray, randoms: Randoms, more: float) -> np.ndarray:
    """Raises the value in HSV; hue and saturation stay, so all channels grow alike."""
    value = images.max(-1, keepdims=True)
    raised = np.minimum(value + more, 1)
    return np.where(value > 0, images * (raised / np.where(value > 0, value, 1)), raised)


def contrast(images: np.ndarray, randoms: Randoms, kept: float) -> np.ndarray:
    """Keeps this part of the distance from each channel's mean."""
    means = images.mean((1, 2), keepdims=True)
    return means + kept * (images - means)


def pixelate(images: np.ndarray, randoms: Randoms, part: float) -> np.ndarray:
    """Shrinks the sides to this part, and enlarges them again, both by means of boxes."""
    height, width = images.shape[1:3]
    small = max(1, int(width * part)), max(1, int(height * part))

    def coarse(channel: Image.Image) -> Image.Image:
        box = Image.Resampling.BOX
        return channel.resize(small, box).resize((width, height), box)

    return _by_channel(images, coarse)


def jpeg_compression(images: np.ndarray, randoms: Randoms, quality: int) -> np.ndarray:
    """Saves as JPEG of this quality; where there are not three channels, each by itself."""

    def compressed(picture: Image.Image) -> Image.Image:
        file = BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return Image.open(file)

    if images.shape[-1] != 3:
        return _by_channel(images, compressed)
    levels = whole_levels(images).astype(np.uint8)
    return np.stack([np.asarray(compressed(Image.fromarray(each))) for each in levels]) / 255


def _by_channel(images: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    planes = np.moveaxis(whole_levels(images).astype(np.uint8), -1, 1)
    changed = [[np.asarray(change(Image.fromarray(each))) for each in image] for image in planes]
    return np.moveaxis(np.array(changed), 1, -1) / 255


def elastic_transform(
    images: np.ndarray, randoms: Randoms, strength: float, sigma: float, reach: float
) -> np.ndarray:
    """A random affine map, then a smooth field of displacements (Simard et al. 2003).

    Args:
        images: f32 [image, height, width, channel].
        randoms: a generator for each.
        strength: of the displacements, in sides.
        sigma: of the Gaussian that smooths them, in sides.
        reach: how far a corner of the affine map may go, in sides.
    """
    side = min(images.shape[1:3])
    pairs = zip(images, randoms, strict=True)
    return np.stack(
        [
            _stretched(each, random, *(side * np.array([strength, sigma, reach])))
            for each, random in pairs
        ]
    )


def _stretched(
    image: np.ndarray, random: np.random.Generator, strength: float, sigma: float, reach: float
) -> np.ndarray:
    height, width = image.shape[:2]
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    middle, arm = np.array([width // 2, height // 2]), max(1, min(height, width) // 3)
    corners = middle + arm * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = corners + random.uniform(-reach, reach, corners.shape)
    back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners)
    x, y = (back[0, i] * columns + back[1, i] * rows + back[2, i] for i in (0, 1))
    image = _sampled(image, y, x, "mirror")
    dx, dy = (
        strength
        * ndimage.gaussian_filter(
            random.uniform(-1, 1, (height, width)), sigma, mode="reflect", truncate=3
        )
        for _ in range(2)
    )
    return _sampled(image, rows + dy, columns + dx, "reflect")


def _sampled(image: np.ndarray, rows: np.ndarray, columns: np.ndarray, mode: str) -> np.ndarray:
    planes = [
        ndimage.map_coordinates(image[..., channel], [rows, columns], order=1, mode=mode)
        for channel in range(image.shape[-1])
    ]
    return np.stack(planes, -1)
