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
