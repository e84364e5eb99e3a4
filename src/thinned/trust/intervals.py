"""Intervals of scores that are no plain mean, over new images; all at 95 %."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import stats
from scipy.special import expit, logit

from thinned.trust import scores

_REPEATS = 500
_LEVELS = (0.025, 0.975)


def over_images(
    score: Callable[..., float],
    arrays: tuple[np.ndarray, ...],
    *,
    above_zero: bool = False,
    repeats: int = _REPEATS,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap interval of a score (Efron 1979), images drawn anew.

    Masks stay as they are.

    Args:
        score: of all arrays, in order.
        arrays: [image, ...] each.
        above_zero: whether to reflect the interval at the score (the basic bootstrap; Davison &
            Hinkley 1997, section 5.2) and to cut it at 0: for a sum of distances, as ECE is, which
            every resampling makes larger.
        repeats: how often they are drawn.
        seed: of what is drawn.
    """
    random, found = np.random.default_rng(seed), np.empty(repeats)
    count = len(arrays[0])
    for repeat in range(repeats):
        rows = random.integers(0, count, count)
        found[repeat] = score(*(array[rows] for array in arrays))
    low, high = np.quantile(found, _LEVELS)
    if above_zero:
        own = score(*arrays)
        low, high = max(2 * own - high, 0.0), max(2 * own - low, 0.0)
    return float(low), float(high)


def auroc_interval(inside: np.ndarray, outside: np.ndarray) -> tuple[float, float]:
    """Interval of `thinned.trust.scores.auroc`: DeLong's variance (1988), on the logit's scale.

    Where all outsiders score higher, or all lower, there is none: then Wilson's interval of as many
    images as there are in the smaller group.

    Args:
        inside: f64 [image], uncertainty of images like the training data.
        outside: f64 [image], of others.
    """
    area, few = scores.auroc(inside, outside), min(len(inside), len(outside))
    # How many of the others each one scores higher, or lower, than; ties count half.
    own = stats.rankdata(outside), stats.rankdata(inside)
    ranks = stats.rankdata(np.concatenate([inside, outside]))
    above = (ranks[len(inside) :] - own[0]) / len(inside)
    below = 1 - (ranks[: len(inside)] - own[1]) / len(outside)
    parts = [np.var(each, ddof=1) / len(each) for each in (above, below) if len(each) > 1]
    if area in (0.0, 1.0) or not parts or sum(parts) == 0:
        return scores.accuracy_interval(round(area * few), few)
    half = stats.norm.ppf(_LEVELS[1]) * math.sqrt(sum(parts)) / (area * (1 - area))
    return float(expit(logit(area) - half)), float(expit(logit(area) + half))


def fpr_interval(
    inside: np.ndarray, outside: np.ndarray, repeats: int = _REPEATS, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of `thinned.trust.scores.fpr_at_95`, images drawn anew in both groups.

    Without drawing them: a quantile of drawn images has the rank of a beta's draw, and how many of
    the others lie below it is a binomial's.

    Args:
        inside, outside: f64 [image], as for that.
        repeats: how often they are drawn.
        seed: of what is drawn.
    """
    random, count = np.random.default_rng(seed), len(inside)
    rank = math.ceil(0.95 * count)
    places = count * random.beta(rank, count + 1 - rank, repeats)
    thresholds = np.sort(inside)[np.minimum(places.astype(np.int64), count - 1)]
    below = np.searchsorted(np.sort(outside), thresholds, side="right") / len(outside)
    found = random.binomial(len(outside), below) / len(outside)
    low, high = np.quantile(found, _LEVELS)
    return float(low), float(high)
