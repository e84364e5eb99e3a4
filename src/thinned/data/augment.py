"""Augmentation on the device: each image varied by a key of its own, inside the training step.

What moves pixels is one resampling: shifts, mirrors and crops act on rows and columns apart, so
that they are two small matrix products for each image, fast on CPUs and accelerators alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from thinned.core.config import AugmentConfig
from thinned.core.types import Key


class Varied(NamedTuple):
    """Augmented examples.

    Attributes:
        images: f32 [batch, height, width, channel] in [0, 1].
        targets: f32 [batch, class], each summing to 1, where images were mixed; else None.
    """

    images: jax.Array
    targets: jax.Array | None


@dataclass(frozen=True)
class Augment:
    """What is done to training images; hashable, since each choice is a program of its own.

    Attributes:
        shift: largest shift, as a part of the side; uncovered edges are filled by reflection.
        flip: chance of a mirror image.
        crop: least side of a random square crop (Szegedy et al. 2015), as a part of the side.
        rotate: largest angle, in degrees.
        colour: strength of random brightness, contrast and saturation.
        randaugment: how many changes are drawn for each image (Cubuk et al. 2020), from: nothing,
            brightness, contrast, saturation, posterise, solarise, rotate, shift.
        cutout: side of a greyed square (DeVries & Taylor 2017), as a part of the side.
        mixup: parameter of mixing (Zhang et al. 2018); 0 is off.
        cutmix: parameter of pasting (Yun et al. 2019); 0 is off. With both, each image gets one.
        classes: number of classes, for mixed targets.
    """

    shift: float = 0.0
    flip: float = 0.0
    crop: float = 1.0
    rotate: float = 0.0
    colour: float = 0.0
    randaugment: int = 0
    cutout: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    classes: int = 0

    def __call__(
        self, images: jax.Array, labels: jax.Array, key: Key, first: jax.Array | int = 0
    ) -> Varied:
        """Vary a batch, or a part of one.

        Args:
            images: f32 [batch, height, width, channel] in [0, 1].
            labels: i32 [batch].
            key: of the step; the image at position i draws from ``fold_in(key, i)``.
            first: the position of the first of these images; they are mixed with one another only.
        """
        positions = jnp.arange(len(images), dtype=jnp.uint32) + jnp.asarray(first, jnp.uint32)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, positions)
        images = jax.vmap(self._one)(images, keys)
        targets = None
        if self.mixup or self.cutmix:
            images, targets = self._mixed(images, labels, keys)
        return Varied(jnp.clip(images, 0.0, 1.0), targets)

    def _one(self, image: jax.Array, key: Key) -> jax.Array:
        move, turn, tint, draw, cut = jax.random.split(key, 5)
        if self.shift or self.flip or self.crop < 1:
            image = self._moved(image, move)
        if self.rotate:
            angle = jax.random.uniform(turn, minval=-self.rotate, maxval=self.rotate)
            image = rotated(image, angle)
        if self.colour:
            image = coloured(image, 1 + self.colour * jax.random.uniform(tint, (3,), minval=-1))
        for index in range(self.randaugment):
            image = _drawn_change(image, jax.random.fold_in(draw, index))
        return _cut_out(image, self.cutout, cut) if self.cutout else image

    def _moved(self, image: jax.Array, key: Key) -> jax.Array:
        across, down, mirror, scale = jax.random.split(key, 4)
        size = jax.random.uniform(scale, minval=self.crop, maxval=1.0) if self.crop < 1 else 1.0
        flipped = jax.random.bernoulli(mirror, self.flip) if self.flip else jnp.asarray(False)
        places = [self._start(own, size) for own in (down, across)]
        sides = [
            _sources(length, size, at) for length, at in zip(image.shape, places, strict=False)
        ]
        columns = jnp.where(flipped, sides[1][::-1], sides[1])
        return resampled(image, sides[0], columns)

    def _start(self, key: Key, size: jax.Array | float) -> jax.Array:
        """Where the window begins, as a part of the side: a crop's place, moved by a shift."""
        place, shift = jax.random.uniform(key, (2,))
        return place * (1.0 - size) + self.shift * (2.0 * shift - 1.0)

    def _mixed(
        self, images: jax.Array, labels: jax.Array, keys: Key
    ) -> tuple[jax.Array, jax.Array]:
        """Each image with its neighbour in the batch, whose order is random already."""
        partners, others = jnp.roll(images, 1, 0), jnp.roll(labels, 1, 0)
        mix, shares = jax.vmap(self._pair)(images, partners, keys)
        one, two = (jax.nn.one_hot(own, self.classes) for own in (labels, others))
        return mix, shares[:, None] * one + (1 - shares[:, None]) * two

    def _pair(self, image: jax.Array, other: jax.Array, key: Key) -> tuple[jax.Array, jax.Array]:
        chance, blend, paste, place = jax.random.split(jax.random.fold_in(key, 1), 4)
        if not self.cutmix:
            return _blended(image, other, _beta(blend, self.mixup))
        if not self.mixup:
            return _pasted(image, other, _beta(paste, self.cutmix), place)
        blended = _blended(image, other, _beta(blend, self.mixup))
        pasted = _pasted(image, other, _beta(paste, self.cutmix), place)
        first = jax.random.bernoulli(chance)
        return jax.tree.map(lambda a, b: jnp.where(first, a, b), blended, pasted)


PRESETS: dict[str, Augment] = {
    "none": Augment(),
    "digits": Augment(shift=0.08),
    "objects": Augment(shift=0.125, flip=0.5),
    "photos": Augment(shift=0.05, flip=0.5, crop=0.7, colour=0.2),
}


def augment_for(
    wanted: AugmentConfig, shape: tuple[int, ...], classes: int, plain: bool
) -> Augment | None:
    """What a config asks for, or None for nothing.

    Args:
        wanted: preset and changes to it.
        shape: of the images, (height, width, channel); chooses the preset ``auto``.
        classes: number of classes.
        plain: whether ``auto`` means none.
    """
    preset = wanted.preset
    if preset == "auto":
        small = max(shape[:2]) <= 40
        kind = "digits" if shape[2] == 1 else "objects" if small else "photos"
        preset = "none" if plain else kind
    given = {
        name: value
        for name, value in vars(wanted).items()
        if name not in ("preset", "views") and value is not None
    }
    chosen = replace(PRESETS[preset], **given)
    return None if chosen == Augment() else replace(chosen, classes=classes)


def resampled(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """An image at other rows and columns, f32 [height, width, channel], between pixels linearly.

    Args:
        image: f32 [height, width, channel].
        rows: f32 [height], the row (from 0) that each row is taken from; reflected at the edges.
        columns: f32 [width], the same for columns.
    """
    vertical, horizontal = _weights(rows, image.shape[0]), _weights(columns, image.shape[1])
    return jnp.einsum("hi,wj,ijc->hwc", vertical, horizontal, image)


def rotated(image: jax.Array, degrees: jax.Array) -> jax.Array:
    """An image f32 [height, width, channel] turned about its centre, reflected at the edges."""
    angle = jnp.deg2rad(degrees)
    height, width = image.shape[:2]
    y, x = jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2
    y, x = jnp.meshgrid(y, x, indexing="ij")
    down = jnp.cos(angle) * y - jnp.sin(angle) * x + (height - 1) / 2
    across = jnp.sin(angle) * y + jnp.cos(angle) * x + (width - 1) / 2

    def channel(plane: jax.Array) -> jax.Array:
        return jax.scipy.ndimage.map_coordinates(plane, [down, across], order=1, mode="mirror")

    return jax.vmap(channel, -1, -1)(image)


def coloured(image: jax.Array, factors: jax.Array) -> jax.Array:
    """An image f32 [..., 1 or 3] with brightness, contrast and saturation times `factors` [3]."""
    image = image * factors[0]
    image = image.mean() + factors[1] * (image - image.mean())
    grey = image.mean(-1, keepdims=True)
    return jnp.clip(grey + factors[2] * (image - grey), 0.0, 1.0)


def _sources(length: int, size: jax.Array | float, start: jax.Array) -> jax.Array:
    middles = (jnp.arange(length) + 0.5) * size + start * length - 0.5
    # Whole pixels where nothing is scaled: a shift then keeps every value exactly.
    return jnp.where(jnp.asarray(size) == 1.0, jnp.round(middles), middles)


def _weights(sources: jax.Array, length: int) -> jax.Array:
    """Weights f32 [out, in] of linear interpolation at `sources`, reflected into the image."""
    period = max(2 * (length - 1), 1)
    folded = jnp.abs(jnp.mod(sources + length - 1, period) - (length - 1))
    return jnp.maximum(0.0, 1.0 - jnp.abs(folded[:, None] - jnp.arange(length)))


def _drawn_change(image: jax.Array, key: Key) -> jax.Array:
    """One change of RandAugment at its middle strength; all are computed, one is taken."""
    which, amount = jax.random.split(key)
    strength = jax.random.uniform(amount, minval=-1.0)
    ones = jnp.ones(3)
    length = image.shape[0]
    changes = [
        image,
        coloured(image, ones.at[0].set(1 + 0.5 * strength)),
        coloured(image, ones.at[1].set(1 + 0.7 * strength)),
        coloured(image, ones.at[2].set(1 + 0.7 * strength)),
        jnp.floor(image * 15.99) / 15,
        jnp.where(image > 0.6 + 0.4 * strength, 1 - image, image),
        rotated(image, 20 * strength),
        resampled(
            image,
            jnp.arange(length, dtype=jnp.float32),
            jnp.round(jnp.arange(image.shape[1]) + 0.2 * strength * image.shape[1]),
        ),
    ]
    return jnp.stack(changes)[jax.random.randint(which, (), 0, len(changes))]


def _box(shape: tuple[int, ...], sides: jax.Array | float, key: Key) -> jax.Array:
    """bool [height, width, 1], True inside a box of these sides (parts of the image's)."""
    centre = jax.random.uniform(key, (2,))
    axes = [
        jnp.abs((jnp.arange(length) + 0.5) / length - centre[axis]) < jnp.asarray(sides) / 2
        for axis, length in enumerate(shape[:2])
    ]
    return (axes[0][:, None] & axes[1][None, :])[..., None]


def _cut_out(image: jax.Array, side: float, key: Key) -> jax.Array:
    return jnp.where(_box(image.shape, side, key), image.mean((0, 1)), image)


def _beta(key: Key, alpha: float) -> jax.Array:
    return jax.random.beta(key, alpha, alpha)


def _blended(image: jax.Array, other: jax.Array, share: jax.Array) -> tuple[jax.Array, jax.Array]:
    return share * image + (1 - share) * other, share


def _pasted(
    image: jax.Array, other: jax.Array, share: jax.Array, key: Key
) -> tuple[jax.Array, jax.Array]:
    inside = _box(image.shape, jnp.sqrt(1 - share), key)
    # The box may stick out of the image: what counts is what was pasted.
    return jnp.where(inside, other, image), 1.0 - inside.mean()
