"""Images that are none of the known classes: scores of how strange, and where to draw the line.

A score is fitted to what a network makes of its training images, and then tells of any image how
little it is like these; higher is stranger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import linalg
from scipy.special import logsumexp

from thinned.core.errors import RequestError, nearest
from thinned.trust.conformal import quantile

Fitted = Mapping[str, np.ndarray]
"""What a score keeps of the training images, by name."""

_NEIGHBOURS = 50
_TOGETHER = 256


class Seen(NamedTuple):
    """What a network makes of images, with dropout off.

    Attributes:
        features: f32 [image, feature], what enters its last dense layer.
        logits: f32 [image, class].
    """

    features: np.ndarray
    logits: np.ndarray


class LastLayer(NamedTuple):
    """The dense layer that makes logits of features.

    Attributes:
        kernel: f32 [feature, class].
        bias: f32 [class].
    """

    kernel: np.ndarray
    bias: np.ndarray


class Score(NamedTuple):
    """One way to tell how strange an image is.

    Attributes:
        fit: from training images, their labels i32 [image], and the last layer.
        score: f64 [image], higher is stranger.
    """

    fit: Callable[[Seen, np.ndarray, LastLayer], Fitted]
    score: Callable[[Fitted, Seen], np.ndarray]


def _nothing(seen: Seen, labels: np.ndarray, last: LastLayer) -> Fitted:
    return {}


def _energy(fitted: Fitted, seen: Seen) -> np.ndarray:
    return -np.asarray(logsumexp(seen.logits.astype(np.float64), 1))


def _max_logit(fitted: Fitted, seen: Seen) -> np.ndarray:
    return -seen.logits.max(1).astype(np.float64)


def _gaussians(seen: Seen, labels: np.ndarray, last: LastLayer) -> Fitted:
    means, within, _ = _moments(seen, labels)
    return {"means": means, "whitening": _whitening(within)}


def _moments(seen: Seen, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means by class, the covariance within classes, shrunk, and how many images each class has."""
    features = seen.features.astype(np.float64)
    present, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.stack([features[labels == label].mean(0) for label in present])
    return means, shrunk_covariance(features - means[place]), counts


def _mahalanobis(fitted: Fitted, seen: Seen) -> np.ndarray:
    white = seen.features @ fitted["whitening"]
    return _square_distances(white, fitted["means"] @ fitted["whitening"]).min(1)


def _with_background(seen: Seen, labels: np.ndarray, last: LastLayer) -> Fitted:
    means, within, counts = _moments(seen, labels)
    mean = np.average(means, 0, counts)
    # Not shrunk by itself: where nothing varies, how much either was shrunk would decide.
    between = np.atleast_2d(np.cov(means.T, fweights=counts, ddof=0))
    background = {"mean": mean, "background": _whitening(within + between)}
    return {"means": means, "whitening": _whitening(within), **background}


def _relative(fitted: Fitted, seen: Seen) -> np.ndarray:
    from_all = (seen.features - fitted["mean"]) @ fitted["background"]
    return _mahalanobis(fitted, seen) - np.square(from_all).sum(1)


def _directions(seen: Seen, labels: np.ndarray, last: LastLayer) -> Fitted:
    return {"directions": _unit(seen.features)}


def _neighbour(fitted: Fitted, seen: Seen) -> np.ndarray:
    known = fitted["directions"]
    place = max(1, min(_NEIGHBOURS, len(known) // 100))
    found = np.empty(len(seen.features))
    for start in range(0, len(found), _TOGETHER):
        rows = slice(start, start + _TOGETHER)
        distances = _square_distances(_unit(seen.features[rows]), known)
        found[rows] = np.partition(distances, place - 1, 1)[:, place - 1]
    return np.sqrt(np.maximum(found, 0.0))


def _residual_space(seen: Seen, labels: np.ndarray, last: LastLayer) -> Fitted:
    width = seen.features.shape[1]
    kept = 1000 if width >= 2048 else 512 if width >= 768 else width // 2
    origin = -np.linalg.pinv(last.kernel.T.astype(np.float64)) @ last.bias
    moved = seen.features - origin
    _, directions = linalg.eigh(moved.T @ moved / len(moved))
    rest = directions[:, : width - kept]
    residuals = np.linalg.norm(moved @ rest, axis=1)
    scale = seen.logits.max(1).mean() / max(residuals.mean(), np.finfo(float).tiny)
    return {"origin": origin, "rest": rest, "scale": np.asarray(scale, np.float64)}


def _virtual_logit(fitted: Fitted, seen: Seen) -> np.ndarray:
    residuals = np.linalg.norm((seen.features - fitted["origin"]) @ fitted["rest"], axis=1)
    return fitted["scale"] * residuals + _energy(fitted, seen)


OOD_SCORES: Mapping[str, Score] = {
    "energy": Score(_nothing, _energy),
    "max-logit": Score(_nothing, _max_logit),
    "mahalanobis": Score(_gaussians, _mahalanobis),
    "relative-mahalanobis": Score(_with_background, _relative),
    "knn": Score(_directions, _neighbour),
    "vim": Score(_residual_space, _virtual_logit),
}
"""By name:

- ``energy``: the free energy -log sum exp of the logits (Liu et al. 2020, section 3), at
  temperature 1.
- ``max-logit``: minus the largest logit (Hendrycks et al. 2022, section 3).
- ``mahalanobis``: squared distance of the features to the nearest class's mean, by one covariance
  of all classes (Lee et al. 2018, section 2.1), shrunk as by Ledoit & Wolf (2004): there may be
  fewer photos than features.
- ``relative-mahalanobis``: the same, less that to the mean of all by the covariance of all (Ren et
  al. 2021, section 3): that within classes, shrunk, and between them.
- ``knn``: distance of the features, as directions, to the k-th nearest of the training images (Sun
  et al. 2022, section 4.1); k is a hundredth of these, at most 50.
- ``vim``: the energy, and as a virtual logit the part of the features in the directions in which
  training images vary least (Wang et al. 2022, section 4): all but 1,000 of at least 2,048, but 512
  of at least 768, but half of fewer.
"""


def score_named(name: str) -> Score:
    """One of `OOD_SCORES`.

    Raises:
        RequestError: no score has that name.
    """
    if name not in OOD_SCORES:
        raise RequestError(f"unknown --ood-score {name}{nearest(name, OOD_SCORES)}")
    return OOD_SCORES[name]


def threshold_at(scores: np.ndarray, fpr: float) -> float:
    """The threshold above which at most a part `fpr` of new images of the same kind score.

    See `thinned.trust.conformal.quantile` for what that promises.

    Args:
        scores: f64 [image], of images that nothing learned from.
        fpr: above 0 and below 1.

    Returns:
        One of the scores; infinite, so that nothing is marked, where there are fewer than
        1 / fpr - 1.

    Raises:
        RequestError: `fpr` does not lie between 0 and 1.
    """
    if not 0 < fpr < 1:
        raise RequestError(f"--ood-fpr is {fpr:g}: must be a number above 0 and below 1")
    return quantile(scores, fpr)


def _whitening(covariance: np.ndarray) -> np.ndarray:
    """f64 [feature, feature] by which differences become such of covariance 1.

    By Cholesky's factor: eigenvectors give the same distances and take some ten times as long.
    """
    width, scale = len(covariance), float(np.trace(covariance))
    # Where nothing varies there is still a factor.
    floor = scale * width * np.finfo(np.float64).eps if scale > 0 else 1.0
    factor = linalg.cholesky(covariance + floor * np.eye(width), lower=True)
    return linalg.solve_triangular(factor, np.eye(width), lower=True).T


def shrunk_covariance(centred: np.ndarray) -> np.ndarray:
    """Covariance of rows of mean 0, shrunk towards a multiple of 1 (Ledoit & Wolf 2004, 3).

    Args:
        centred: f64 [image, feature].

    Returns:
        f64 [feature, feature]: the plain covariance in the limit of many images.
    """
    count, width = centred.shape
    plain = centred.T @ centred / count
    level = float(np.trace(plain)) / width
    spread = float(np.square(plain).sum()) - width * level**2
    fourth = float(np.square(np.square(centred).sum(1)).sum()) / count
    noise = min((fourth - float(np.square(plain).sum())) / count, spread)
    part = noise / spread if spread > 0 else 0.0
    return (1 - part) * plain + part * level * np.eye(width)


def _unit(features: np.ndarray) -> np.ndarray:
    lengths: Any = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(lengths, np.finfo(np.float32).tiny)


def _square_distances(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """f64 or f32 [row of one, row of two], squared Euclidean."""
    lengths = np.square(one).sum(1)[:, None] + np.square(two).sum(1)
    return lengths - 2 * one @ two.T
