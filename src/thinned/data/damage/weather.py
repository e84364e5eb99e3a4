"""Fog, frost, snow and mud, as Hendrycks & Dietterich (2019) define them."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from thinned.data.damage.common import Randoms, grey, smoothed, swept, whole_levels, zoomed


def fog(
    images: np.ndarray, randoms: Randoms, strength: float, decay: float, size: int | None = None
) -> np.ndarray:
    """Adds a plasma fractal.

    Args:
        images: f32 [image, height, width, channel].
        randoms: a generator for each.
        strength: of the fog where it is thickest.
        decay: by which the fractal's steps shrink as they become finer.
        size: the fractal's side, a power of two of which the images see a corner; by default the
            smallest that holds them.
    """
    height, width = images.shape[1:3]
    side = size or 2 ** max(1, (max(height, width) - 1).bit_length())
    maps = [plasma(side, decay, random)[:height, :width, None] for random in randoms]
    brightest = images.max((1, 2, 3), keepdims=True)
    return (images + strength * np.stack(maps)) * brightest / (brightest + strength)


def plasma(size: int, decay: float, random: np.random.Generator) -> np.ndarray:
    """A plasma fractal [`size`, `size`] from 0 to 1, by the diamond-square algorithm."""
    heights = np.zeros((size, size))
    step, wibble = size, 100.0

    def mean(total: np.ndarray) -> np.ndarray:
        return total / 4 + random.uniform(-(wibble**2), wibble**2, total.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        below = corners + np.roll(corners, -1, 0)
        heights[half::step, half::step] = mean(below + np.roll(below, -1, 1))
        middles = heights[half::step, half::step]
        upright = middles + np.roll(middles, 1, 0)
        heights[::step, half::step] = mean(upright + corners + np.roll(corners, -1, 1))
        level = middles + np.roll(middles, 1, 1)
        heights[half::step, ::step] = mean(level + below)
        step, wibble = half, wibble / decay
    heights -= heights.min()
    return heights / heights.max()


_PICTURES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
"""There is a sixth, which the authors' program never draws."""


def frost(
    images: np.ndarray, randoms: Randoms, kept: float, cover: float, nth: int = 1
) -> np.ndarray:
    """Lays a part of a photograph of ice over each image.

    Args:
        images: f32 [image, height, width, channel].
        randoms: a generator for each.
        kept: the part of an image that is seen.
        cover: the part of the photograph.
        nth: of its rows and columns every so manieth is taken.
    """
    folder, sides = _frost_folder(), images.shape[1:3]
    assert folder is not None  # Else nobody is offered this kind.
    ice: list[np.ndarray] = []
    for random in randoms:
        picture = _picture(folder / _PICTURES[random.integers(len(_PICTURES))], nth, *sides)
        rows, columns = (
            slice(start := random.integers(0, length - side), start + side)
            for length, side in zip(picture.shape, sides, strict=False)
        )
        ice.append(picture[rows, columns])
    levels = np.stack(ice).astype(np.float32)
    return kept * images + cover * (levels if images.shape[-1] == 3 else grey(levels)) / 255


def has_frost() -> bool:
    """Whether the photographs are here: they are no part of this package."""
    return _frost_folder() is not None


def _frost_folder() -> Path | None:
    """Where the package imagecorruptions keeps them; nothing else of it is read, or run."""
    found = find_spec("imagecorruptions")
    folders = (found and found.submodule_search_locations) or ()
    wanted = (Path(folder) / "frost" for folder in folders)
    return next(
        (each for each in wanted if all((each / name).is_file() for name in _PICTURES)), None
    )


@lru_cache(32)
def _picture(path: Path, nth: int, height: int, width: int) -> np.ndarray:
    """Levels u8 [row, column, 3], more rows and columns than those of an image."""
    with Image.open(path) as opened:
        whole = np.asarray(opened.convert("RGB"))[nth // 2 :: nth, nth // 2 :: nth]
    scale = max(height / whole.shape[0], width / whole.shape[1])
    if scale < 1:
        return whole
    # As imagecorruptions has it, for images that are larger than the authors'.
    size = (int(np.ceil(1.1 * scale * whole.shape[1])), int(np.ceil(1.1 * scale * whole.shape[0])))
    return np.asarray(Image.fromarray(whole).resize(size, Image.Resampling.BICUBIC))


def snow(
    images: np.ndarray,
    randoms: Randoms,
    mean: float,
    spread: float,
    zoom: float,
    threshold: float,
    radius: int,
    sigma: float,
    kept: float,
) -> np.ndarray:
    """Whitens, and adds flakes that fall from both sides.

    Args:
        images: f32 [image, height, width, channel].
        randoms: a generator for each.
        mean: of the normal noise that flakes are made of.
        spread: its standard deviation.
        zoom: how far flakes are enlarged.
        threshold: below which noise is no flake.
        radius: of the motion blur, in pixels.
        sigma: of the motion blur.
        kept: the part of an image that is not whitened.
    """
    flakes = np.stack([random.normal(mean, spread, images.shape[1:3]) for random in randoms])
    flakes = zoomed(flakes[..., None], zoom)
    flakes = whole_levels(np.where(flakes < threshold, 0, flakes)) / 255
    pairs = zip(flakes, randoms, strict=True)
    falling = np.stack(
        [swept(each, radius, sigma, random.uniform(-135, -45)) for each, random in pairs]
    )
    white = np.maximum(images, grey(images) * 1.5 + 0.5)
    return kept * images + (1 - kept) * white + falling + falling[:, ::-1, ::-1]


def mud(
    images: np.ndarray,
    randoms: Randoms,
    mean: float,
    spread: float,
    sigma: float,
    threshold: float,
    softness: float,
) -> np.ndarray:
    """Spatters of mud on grey images, as Mu & Gilmer (2019) have them.

    Args:
        images: f32 [image, height, width, channel].
        randoms: a generator for each.
        mean: of the normal noise that spatters are made of.
        spread: its standard deviation.
        sigma: of the Gaussian that smooths the noise, in pixels.
        threshold: above which it is a spatter.
        softness: of the Gaussian that smooths spatters, in pixels.
    """
    noise = np.stack([random.normal(mean, spread, images.shape[1:3]) for random in randoms])
    liquid = smoothed(noise[..., None], sigma)
    cover = smoothed((liquid > threshold).astype(np.float64), softness)
    cover[cover < 0.8] = 0
    return images * (1 - cover) + 63 / 255 * cover
