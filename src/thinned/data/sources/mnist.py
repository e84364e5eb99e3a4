"""MNIST inside the package, so that training needs no network.

The files beside this one are made by ``scripts/embed_mnist.py`` and hold the original pixels and
labels, losslessly, packed with xz.
"""

from __future__ import annotations

import hashlib
import lzma
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

from thinned.core.errors import ThinnedError
from thinned.core.types import Dataset, Split
from thinned.data import read_only

TRAIN, TEST, SIDE = 60_000, 10_000, 28
DIGEST = "c2069063c1105f2bf96266aef1ff68c6e13bdda7a54e37bf19c16f1db24efc83"
"""SHA-256 of all pixels, then all labels: training images first."""


@dataclass(frozen=True)
class EmbeddedMnist:
    """The 60,000 training and 10,000 test digits of LeCun, Cortes and Burges (1998)."""

    name: str = "mnist"

    def load(self) -> Dataset:
        """Unpack and check, once in a process: about a second; later calls share the arrays.

        Returns:
            Images u8 [60000 and 10000, 28, 28, 1], labels i32, all read-only.

        Raises:
            ThinnedError: the package's own file is damaged.
        """
        return _load()


@cache
def _load() -> Dataset:
    pixels, labels = _unpack("mnist-pixels.xz"), _unpack("mnist-labels.xz")
    if hashlib.sha256(pixels + labels).hexdigest() != DIGEST:
        raise ThinnedError("the MNIST inside the package is damaged: install thinned again")
    images = np.frombuffer(pixels, np.uint8).reshape(TRAIN + TEST, SIDE, SIDE, 1)
    digits = read_only(np.frombuffer(labels, np.uint8).astype(np.int32))
    return Dataset(
        name="mnist",
        train=Split(images[:TRAIN], digits[:TRAIN]),
        test=Split(images[TRAIN:], digits[TRAIN:]),
        classes=tuple("0123456789"),
        plain=True,
    )


def _unpack(name: str) -> bytes:
    try:
        packed = resources.files("thinned.data").joinpath("embedded", name).read_bytes()
        return lzma.decompress(packed)
    except (OSError, lzma.LZMAError) as error:
        raise ThinnedError(
            f"the MNIST inside the package is damaged ({name}: {error}): install thinned again"
        ) from error
