"""Labelled images on the device: what a step looks at."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Batch(NamedTuple):
    """Labelled images.

    Attributes:
        images: u8 [batch, height, width, channel], or f32 in [0, 1].
        labels: i32 [batch].
        weights: f32 [batch], by which losses are multiplied in training; None for 1.
        targets: f32 [batch, class], distributions to learn instead of the labels; None for these.
    """

    images: jax.Array
    labels: jax.Array
    weights: jax.Array | None = None
    targets: jax.Array | None = None


def as_float(images: jax.Array) -> jax.Array:
    """u8 images as f32 in [0, 1]; floats pass unchanged."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255.0
    return images


def class_weights(labels: np.ndarray) -> np.ndarray:
    """Weights f32 [example] inversely proportional to the size of the class, of mean 1."""
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return (len(labels) / (len(counts) * counts[codes])).astype(np.float32)
