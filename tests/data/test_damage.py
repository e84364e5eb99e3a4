"""Damage to images: it grows with its severity, repeats, and knows nothing of other images."""

import numpy as np
import pytest
from conftest import blobs

from thinned.core.types import Split
from thinned.data import damage


def split(count=6):
    images, labels = blobs(count, 0, size=20)
    return Split(images[..., None], labels.astype(np.int32))


@pytest.mark.parametrize("kind", damage.CORRUPTIONS)
def test_damage_grows_with_its_severity_and_repeats(kind):
    whole = split()
    changes = [
        np.abs(damage.corrupted(whole, kind, level).images - whole.images.astype(float)).mean()
        for level in (1, 3, 5)
    ]
    assert 0 < changes[0] < changes[2]
    again = damage.corrupted(whole, kind, 3).images
    assert np.array_equal(again, damage.corrupted(whole, kind, 3).images)
    assert again.dtype == np.uint8


@pytest.mark.parametrize("kind", damage.CORRUPTIONS)
def test_an_image_is_damaged_alike_whatever_lies_beside_it(kind, monkeypatch):
    whole = damage.corrupted(split(), kind, 3).images.astype(int)
    monkeypatch.setattr(damage, "_BLOCK", 4)
    calls = []
    way = damage.CORRUPTIONS[kind]
    monkeypatch.setitem(damage.CORRUPTIONS, kind, lambda *a: calls.append(len(a[0])) or way(*a))
    parts = damage.corrupted(split(), kind, 3).images
    assert calls == [4, 2]
    assert np.abs(parts - whole).max() <= 1


@pytest.mark.parametrize("kind", ["shift", "rotation"])
@pytest.mark.parametrize("severity", damage.SEVERITIES)
def test_nothing_is_painted_where_a_digit_goes_beyond_the_edge(kind, severity):
    # A stroke near the edge, and nothing at it: a mirror would paint the stroke a second time.
    image = np.zeros((4, 28, 28, 1), np.uint8)
    image[:, 4:24, 2:4] = 255
    found = damage.corrupted(Split(image, np.zeros(4, np.int32)), kind, severity).images
    assert (found.sum((1, 2, 3), dtype=np.int64) <= 1.02 * image[0].sum(dtype=np.int64)).all()


def test_a_shift_moves_pixels_and_goes_on_with_the_edge():
    images = np.random.default_rng(0).integers(0, 256, (8, 20, 20, 1)).astype(np.uint8)
    found = damage.corrupted(Split(images, np.zeros(8, np.int32)), "shift", 5).images
    for before, after in zip(images, found, strict=True):
        padded = np.pad(before, ((4, 4), (4, 4), (0, 0)), "edge")
        corners = [(0, 0), (0, 8), (8, 0), (8, 8)]
        moved = [padded[row : row + 20, column : column + 20] for row, column in corners]
        assert sum(np.array_equal(after, each) for each in moved) == 1


def test_blur_is_the_same_part_of_the_image_at_every_size():
    def spread(side):
        images = np.zeros((1, side, side, 1), np.uint8)
        half = side // 8
        images[:, side // 2 - half : side // 2 + half, side // 2 - half : side // 2 + half] = 255
        found = damage.corrupted(Split(images, np.zeros(1, np.int32)), "blur", 5).images
        return found[0, side // 2, side // 2 - half, 0] / 255, found.max() / 255

    assert spread(56) == pytest.approx(spread(224), abs=0.05)
