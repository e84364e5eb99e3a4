from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import uniform_values
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from thinned.core.config import AugmentConfig
from thinned.data.augment import PRESETS, Augment, augment_for, coloured, resampled, rotated

IMAGES = uniform_values(0, 6, 12, 10, 3)
LABELS = jnp.arange(6) % 3
KEY = jax.random.key(1)
EVERYTHING = Augment(0.2, 0.5, 0.6, 20, 0.3, 2, 0.4, 0.4, 1.0, classes=3)


def test_shifts_and_mirrors_are_those_of_numpy():
    image = np.asarray(IMAGES[0])
    rows, columns = np.arange(12.0) + 2, np.arange(10.0)[::-1] - 3
    padded = np.pad(image, ((5, 5), (5, 5), (0, 0)), mode="reflect")
    expected = padded[5 + 2 : 17 + 2, 5 - 3 : 15 - 3][:, ::-1]
    found = resampled(IMAGES[0], jnp.asarray(rows), jnp.asarray(columns))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@settings(max_examples=10)
@given(st.floats(-180, 180))
def test_turning_is_that_of_scipy(degrees):
    square = np.asarray(IMAGES[0])[:10]
    found = jax.jit(rotated)(square, jnp.float32(degrees))
    middle = np.full(2, 4.5)
    angle = np.deg2rad(degrees)
    turn = np.asarray([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    for channel in range(3):
        expected = ndimage.affine_transform(
            square[..., channel], turn, middle - turn @ middle, order=1, mode="mirror"
        )
        np.testing.assert_allclose(found[..., channel], expected, atol=1e-3)


def test_colours_times_one_stay_and_saturation_zero_is_grey():
    np.testing.assert_allclose(coloured(IMAGES, jnp.ones(3)), IMAGES, atol=1e-6)
    grey = coloured(IMAGES, jnp.asarray([1.0, 1.0, 0.0]))
    np.testing.assert_allclose(np.ptp(grey, axis=-1), 0, atol=1e-6)


@pytest.mark.parametrize(
    "augment",
    [
        *PRESETS.values(),
        # A change drawn once is a third less to compile than one drawn twice.
        replace(EVERYTHING, randaugment=1),
        pytest.param(EVERYTHING, marks=pytest.mark.long),
    ],
)
def test_an_address_gives_one_variation_and_values_stay_in_range(augment):
    whole = jax.jit(augment.__call__)
    one = whole(IMAGES, LABELS, KEY)
    # Whatever was varied in between.
    other, again = (whole(IMAGES, LABELS, key) for key in (jax.random.key(2), KEY))
    assert np.array_equal(one.images, again.images)
    assert one.images.shape == IMAGES.shape
    assert 0 <= float(one.images.min()) <= float(one.images.max()) <= 1
    assert np.array_equal(one.images, other.images) == (augment == Augment())


# Operation by operation each is a program of its own: those of some presets are most of them.
@pytest.mark.parametrize(
    "augment",
    [
        PRESETS["digits"],
        PRESETS["objects"],
        pytest.param(PRESETS["photos"], marks=pytest.mark.long),
        pytest.param(EVERYTHING, marks=pytest.mark.long),
    ],
)
def test_a_variation_is_the_same_in_one_program_and_in_many(augment):
    one, two = augment(IMAGES, LABELS, KEY), jax.jit(augment.__call__)(IMAGES, LABELS, KEY)
    np.testing.assert_allclose(one.images, two.images, atol=1e-5)


def test_an_image_is_varied_by_its_position_not_by_the_batch():
    # As in a training step: operation by operation, each would be a program of its own.
    single = jax.jit(PRESETS["photos"].__call__)
    whole, part = (single(IMAGES[:n], LABELS[:n], KEY).images for n in (6, 2))
    np.testing.assert_allclose(whole[:2], part, atol=1e-6)
    same = single(jnp.broadcast_to(IMAGES[0], IMAGES.shape), LABELS, KEY).images
    assert len({np.asarray(image).tobytes() for image in same}) == 6


def test_mirrors_come_as_often_as_asked_for():
    many = jnp.broadcast_to(IMAGES[0], (2000, 12, 10, 3))
    varied = jax.jit(Augment(flip=0.3).__call__)(many, jnp.zeros(2000, jnp.int32), KEY).images
    flipped = np.all(np.isclose(varied, IMAGES[0][:, ::-1], atol=1e-6), (1, 2, 3))
    plain = np.all(np.isclose(varied, IMAGES[0], atol=1e-6), (1, 2, 3))
    assert np.all(flipped | plain)
    assert abs(flipped.mean() - 0.3) < 4 * np.sqrt(0.21 / 2000)


@pytest.mark.parametrize("options", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 1, "cutmix": 1}])
def test_targets_are_mixed_as_the_images_are(options):
    """Images of one value each: their mean tells the share of each of the two."""
    flat = jnp.broadcast_to(jnp.linspace(0, 1, 6)[:, None, None, None], IMAGES.shape)
    varied = jax.jit(Augment(classes=6, **options).__call__)(flat, jnp.arange(6), KEY)
    np.testing.assert_allclose(varied.targets.sum(1), 1, rtol=1e-5)
    expected = varied.targets @ jnp.linspace(0, 1, 6)
    np.testing.assert_allclose(varied.images.mean((1, 2, 3)), expected, atol=1e-5)
    assert np.any((varied.targets > 0.01) & (varied.targets < 0.99))


def test_cutout_greys_a_square():
    varied = jax.jit(Augment(cutout=0.5).__call__)(IMAGES, LABELS, KEY).images
    changed = np.any(varied != IMAGES, axis=-1).mean((1, 2))
    assert np.all(changed <= 0.31)
    assert np.all(changed > 0)


def test_presets_are_chosen_by_the_data_and_changed_by_options():
    wanted = AugmentConfig()
    assert augment_for(wanted, (28, 28, 1), 10, plain=True) is None
    assert augment_for(wanted, (28, 28, 1), 10, plain=False).flip == 0
    assert augment_for(wanted, (32, 32, 3), 10, plain=False).flip == 0.5
    assert augment_for(wanted, (64, 64, 3), 10, plain=False).crop < 1
    changed = augment_for(AugmentConfig(preset="none", mixup=0.2), (9, 9, 1), 7, plain=False)
    assert changed == Augment(mixup=0.2, classes=7)
    assert augment_for(AugmentConfig("photos", 0, 0, 1, 0, 0), (9, 9, 3), 7, plain=False) is None
