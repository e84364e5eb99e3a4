"""Damaged test images, by published definitions.

CIFAR-10-C and ImageNet-C (Hendrycks & Dietterich 2019, section 3 and their code), MNIST-C (Mu &
Gilmer 2019, table 1 and their code). Frost is photographs, and there where `imagecorruptions` is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from thinned.core.types import Split
from thinned.data.damage import blurs, digits, pixels, weather
from thinned.data.damage.common import whole_levels

_SMALL = 64
"""The longest side of images that are damaged as those of CIFAR-10 and MNIST are."""

_BLOCK = 2**21
"""Values that are damaged at a time."""

_FROST = "frost"


@dataclass(frozen=True)
class Kind:
    """A kind of damage.

    Attributes:
        way: a function of images f32 [image, height, width, channel] in [0, 1], a generator for
            each image, and parameters; the result is clipped to [0, 1].
        levels: the parameters of each severity.
    """

    way: Callable[..., np.ndarray]
    levels: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Corruptions:
    """A published set of kinds.

    Attributes:
        name: of the set, for people.
        kinds: by name.
    """

    name: str
    kinds: Mapping[str, Kind]


def _each(way: Callable[..., np.ndarray], *values: Any) -> Kind:
    return Kind(way, tuple((value,) for value in values))


def _zooms(*steps: tuple[float, float]) -> Kind:
    return _each(blurs.zoom_blur, *(np.arange(1, end, step) for end, step in steps))


CIFAR_10_C = Corruptions(
    "CIFAR-10-C",
    {
        "gaussian_noise": _each(pixels.gaussian_noise, 0.04, 0.06, 0.08, 0.09, 0.10),
        "shot_noise": _each(pixels.shot_noise, 500, 250, 100, 75, 50),
        "impulse_noise": _each(pixels.impulse_noise, 0.01, 0.02, 0.03, 0.05, 0.07),
        "defocus_blur": Kind(
            blurs.defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
        ),
        "glass_blur": Kind(
            blurs.glass_blur, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))
        ),
        "motion_blur": Kind(blurs.motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
        "zoom_blur": _zooms((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        "snow": Kind(
            weather.snow,
            (
                (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
                (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
                (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
                (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
                (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
            ),
        ),
        _FROST: Kind(
            weather.frost,
            ((1, 0.2, 5), (1, 0.3, 5), (0.9, 0.4, 5), (0.85, 0.4, 5), (0.75, 0.45, 5)),
        ),
        "fog": Kind(weather.fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
        "brightness": _each(pixels.brightness, 0.05, 0.1, 0.15, 0.2, 0.3),
        "contrast": _each(pixels.contrast, 0.75, 0.5, 0.4, 0.3, 0.15),
        "elastic_transform": Kind(
            pixels.elastic_transform,
            (
                (0, 0, 0.08),
                (0.05, 0.2, 0.07),
                (0.08, 0.06, 0.06),
                (0.1, 0.04, 0.05),
                (0.1, 0.03, 0.03),
            ),
        ),
        "pixelate": _each(pixels.pixelate, 0.95, 0.9, 0.85, 0.75, 0.65),
        "jpeg_compression": _each(pixels.jpeg_compression, 80, 65, 58, 50, 40),
    },
)
"""For images of 32 pixels."""

# The authors take parts of 244 pixels, of images of 224.
_PHOTO = 244 / 224

IMAGENET_C = Corruptions(
    "ImageNet-C",
    {
        "gaussian_noise": _each(pixels.gaussian_noise, 0.08, 0.12, 0.18, 0.26, 0.38),
        "shot_noise": _each(pixels.shot_noise, 60, 25, 12, 5, 3),
        "impulse_noise": _each(pixels.impulse_noise, 0.03, 0.06, 0.09, 0.17, 0.27),
        "defocus_blur": Kind(
            blurs.defocus_blur, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))
        ),
        "glass_blur": Kind(
            blurs.glass_blur, ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))
        ),
        "motion_blur": Kind(blurs.motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
        "zoom_blur": _zooms((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        "snow": Kind(
            weather.snow,
            (
                (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
                (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
                (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
                (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
                (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
            ),
        ),
        _FROST: Kind(weather.frost, ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))),
        "fog": Kind(weather.fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
        "brightness": _each(pixels.brightness, 0.1, 0.2, 0.3, 0.4, 0.5),
        "contrast": _each(pixels.contrast, 0.4, 0.3, 0.2, 0.1, 0.05),
        "elastic_transform": Kind(
            pixels.elastic_transform,
            (
                (2 * _PHOTO, 0.7 * _PHOTO, 0.1 * _PHOTO),
                (2 * _PHOTO, 0.08 * _PHOTO, 0.2 * _PHOTO),
                (0.05 * _PHOTO, 0.01 * _PHOTO, 0.02 * _PHOTO),
                (0.07 * _PHOTO, 0.01 * _PHOTO, 0.02 * _PHOTO),
                (0.12 * _PHOTO, 0.01 * _PHOTO, 0.02 * _PHOTO),
            ),
        ),
        "pixelate": _each(pixels.pixelate, 0.6, 0.5, 0.4, 0.3, 0.25),
        "jpeg_compression": _each(pixels.jpeg_compression, 25, 18, 15, 10, 7),
    },
)
"""For photos of 224 pixels."""

MNIST_C = Corruptions(
    "MNIST-C",
    {
        "shot_noise": _each(pixels.shot_noise, 3),
        "impulse_noise": _each(pixels.impulse_noise, 0.17),
        "glass_blur": Kind(blurs.glass_blur, ((0.7, 1, 2, 0.5),)),
        "motion_blur": Kind(blurs.motion_blur, ((10, 3),)),
        "shear": _each(digits.shear, 0.4),
        "scale": _each(digits.scale, 1 / 0.7),
        "rotate": _each(digits.rotate, 0.4),
        "brightness": _each(pixels.brightness, 0.5),
        "translate": _each(digits.translate, 3),
        "stripe": Kind(digits.stripe, ((),)),
        "fog": Kind(weather.fog, ((3, 1.4, 256),)),
        "spatter": Kind(weather.mud, ((0.65, 0.3, 1, 0.65, 1.5),)),
        "dotted_line": Kind(digits.dotted_line, ((),)),
        "zigzag": Kind(digits.zigzag, ((),)),
        "canny_edges": Kind(digits.canny_edges, ((),)),
    },
)
"""For grey images of 28 pixels; each at the one severity that was published."""


def corruptions_for(shape: tuple[int, ...]) -> Corruptions:
    """The set for images of a shape, (..., height, width, channel).

    ImageNet-C with sides above 64 pixels; else MNIST-C of one channel, CIFAR-10-C of more. Without
    frost where its photographs are not here.
    """
    height, width, channels = shape[-3:]
    small = MNIST_C if channels == 1 else CIFAR_10_C
    chosen = small if max(height, width) <= _SMALL else IMAGENET_C
    if weather.has_frost():
        return chosen
    kinds = {name: kind for name, kind in chosen.kinds.items() if name != _FROST}
    return replace(chosen, kinds=kinds)


def lacks_frost(chosen: Corruptions) -> bool:
    """Whether a set was published with frost, and is without it here."""
    return chosen.name != MNIST_C.name and _FROST not in chosen.kinds


def corrupted(split: Split, kind: Kind, severity: int, seed: int = 0) -> Split:
    """A split with every image damaged in one way, each by a generator of its own.

    Args:
        split: the images, u8.
        kind: one of a set, see `corruptions_for`.
        severity: 1 to the number of its levels.
        seed: of the damage.
    """
    out = np.empty(split.images.shape, np.uint8)
    count = max(1, _BLOCK // int(np.prod(out.shape[1:])))
    for start in range(0, len(split), count):
        rows = np.arange(start, min(start + count, len(split)))
        images = np.asarray(split.images[rows]).astype(np.float32) / 255
        randoms = [np.random.default_rng([seed, severity, row]) for row in rows.tolist()]
        out[rows] = whole_levels(kind.way(images, randoms, *kind.levels[severity - 1]))
    return Split(out, split.labels)
