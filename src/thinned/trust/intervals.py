"""Intervals of scores over new images, and over new masks where these were drawn; all at 95 %.

The same masks look at all images, so that both vary a score, each by itself (crossed random
effects; Owen 2007, section 3). `crossed` is the one place where an interval over images becomes one
over both. How masks vary a score is told by several draws of them, or by the samples of one draw:
each part of these is left out in turn (the grouped jackknife; Shao & Tu 1995, section 1.3.2).
Drawing samples with repeats would not do: a mean of fewer different samples is another, and surer,
way to predict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats
from scipy.special import expit, logit

from thinned.trust import scores

_REPEATS = 500
_LEVELS = (0.025, 0.975)
_PARTS = 10
"""Of the samples, at most: Student's t of nine degrees is 1.15 times that of many."""
_Z = float(stats.norm.ppf(_LEVELS[1]))


def parts_for(samples: int) -> int:
    """How many parts of so many samples there are to leave out; 1 where nothing can be left out."""
    return min(samples, _PARTS) if samples > 1 else 1


def crossed(
    score: float,
    below: float,
    above: float,
    draws: Sequence[float] | np.ndarray,
    freedom: float = math.inf,
) -> tuple[float, float]:
    """An interval over images and masks both, from one over images alone.

    The variances of both are added, and the degrees of freedom are those of Satterthwaite (1946). A
    bootstrap over so few draws would be too narrow.

    Args:
        score: what it is around.
        below, above: its standard error over images, to either side.
        draws: independent values of which the score is the mean, one for each draw of masks; fewer
            than two tell nothing of masks.
        freedom: degrees of freedom of the standard errors.
    """
    count = len(draws)
    of_masks = float(np.var(draws, ddof=1)) / count if count > 1 else 0.0

    def half(error: float) -> float:
        variance = error**2 + of_masks
        if variance == 0:
            return 0.0
        unsure = error**4 / freedom + (of_masks**2 / (count - 1) if count > 1 else 0.0)
        degrees = variance**2 / unsure if unsure else math.inf
        return float(stats.t.ppf(_LEVELS[1], degrees)) * math.sqrt(variance)

    return score - half(below), score + half(above)


def pseudo_values(score: float, others: Sequence[float]) -> list[float]:
    """Values whose mean varies as the score does (Tukey 1958).

    Args:
        score: by all samples.
        others: by all but each part of them.
    """
    parts = len(others)
    return [parts * score - (parts - 1) * other for other in others]


def crossed_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of values f64 [draw, example], and its interval over new draws and new examples.

    Of a single draw, over examples alone.
    """
    mean, examples = float(values.mean()), values.shape[1]
    error = math.sqrt(values.mean(0).var(ddof=1) / examples)
    return mean, *crossed(mean, error, error, values.mean(1), examples - 1)


def accuracy_interval(right: np.ndarray, others: Sequence[np.ndarray] = ()) -> tuple[float, float]:
    """Wilson's interval of an accuracy, from whether each answer is right, bool [image].

    Args:
        right: of all samples.
        others: without each part of them, for masks that are drawn anew, too.
    """
    own = float(right.mean())
    low, high = scores.accuracy_interval(int(right.sum()), len(right))
    draws = pseudo_values(own, [float(each.mean()) for each in others])
    low, high = _widened(low, own, high, draws)
    return max(low, 0.0), min(high, 1.0)


def _widened(low: float, middle: float, high: float, draws: Sequence[float]) -> tuple[float, float]:
    """An interval over images, for masks that are drawn, too; just the same without them."""
    if len(draws) < 2:
        return low, high
    return crossed(middle, (middle - low) / _Z, (high - middle) / _Z, draws)


def over_images(
    score: Callable[..., float],
    arrays: tuple[np.ndarray, ...],
    others: Sequence[tuple[np.ndarray, ...]] = (),
    *,
    above_zero: bool = False,
    repeats: int = _REPEATS,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap interval of a score (Efron 1979), images drawn anew; with `others`, masks, too.

    Args:
        score: of all arrays, in order.
        arrays: [image, ...] each.
        others: the same arrays without each part of the samples.
        above_zero: whether to reflect the interval at the score (the basic bootstrap; Davison &
            Hinkley 1997, section 5.2) and to cut it at 0: for a sum of distances, as ECE is, which
            every resampling makes larger.
        repeats: how often they are drawn.
        seed: of what is drawn.
    """
    random, found = np.random.default_rng(seed), np.empty(repeats)
    count, own = len(arrays[0]), score(*arrays)
    for repeat in range(repeats):
        rows = random.integers(0, count, count)
        found[repeat] = score(*(array[rows] for array in arrays))
    draws = pseudo_values(own, [score(*each) for each in others])
    low, high = _widened(*_ends(found), draws)
    return (max(2 * own - high, 0.0), max(2 * own - low, 0.0)) if above_zero else (low, high)


def _ends(found: np.ndarray) -> tuple[float, float, float]:
    """The interval of scores of drawn images f64 [repeat], around their median."""
    low, middle, high = np.quantile(found, [_LEVELS[0], 0.5, _LEVELS[1]])
    return float(low), float(middle), float(high)


_Pair = tuple[np.ndarray, np.ndarray]
"""Uncertainty f64 [image] of images like the training data, and of others."""


def auroc_interval(
    inside: np.ndarray, outside: np.ndarray, others: Sequence[_Pair] = ()
) -> tuple[float, float]:
    """Interval of `thinned.trust.scores.auroc`: DeLong's variance (1988), on the logit's scale.

    Where all outsiders score higher, or all lower, there is none: then Wilson's interval of as many
    images as there are in the smaller group.

    Args:
        inside: f64 [image], uncertainty of images like the training data.
        outside: f64 [image], of others.
        others: the same two without each part of the samples, for masks that are drawn anew, too.
    """
    own = scores.auroc(inside, outside)
    areas = np.asarray([own, *_by_delong(own, inside, outside)])
    without = np.asarray([scores.auroc(*each) for each in others])
    # An area is skewed over masks as over images. One of 0 or 1 has no logit.
    straight = min([*areas, *without]) > 0 and max([*areas, *without]) < 1
    there, back = (logit, expit) if straight else (np.asarray, np.asarray)
    middle, low, high = map(float, there(areas))
    low, high = _widened(low, middle, high, pseudo_values(middle, list(there(without))))
    return max(float(back(low)), 0.0), min(float(back(high)), 1.0)


def _by_delong(area: float, inside: np.ndarray, outside: np.ndarray) -> tuple[float, float]:
    few = min(len(inside), len(outside))
    # How many of the others each one scores higher, or lower, than; ties count half.
    own = stats.rankdata(outside), stats.rankdata(inside)
    ranks = stats.rankdata(np.concatenate([inside, outside]))
    above = (ranks[len(inside) :] - own[0]) / len(inside)
    below = 1 - (ranks[: len(inside)] - own[1]) / len(outside)
    parts = [np.var(each, ddof=1) / len(each) for each in (above, below) if len(each) > 1]
    if area in (0.0, 1.0) or not parts or sum(parts) == 0:
        return scores.accuracy_interval(round(area * few), few)
    half = _Z * math.sqrt(sum(parts)) / (area * (1 - area))
    return float(expit(logit(area) - half)), float(expit(logit(area) + half))


def fpr_interval(
    inside: np.ndarray,
    outside: np.ndarray,
    others: Sequence[_Pair] = (),
    repeats: int = _REPEATS,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap interval of `thinned.trust.scores.fpr_at_95`, images drawn anew in both groups.

    Without drawing them: a quantile of drawn images has the rank of a beta's draw, and how many of
    the others lie below it is a binomial's.

    Args:
        inside, outside: f64 [image], as for that.
        others: as for `auroc_interval`.
        repeats: how often they are drawn.
        seed: of what is drawn.
    """
    random, count = np.random.default_rng(seed), len(inside)
    rank = math.ceil(0.95 * count)
    places = count * random.beta(rank, count + 1 - rank, repeats)
    thresholds = np.sort(inside)[np.minimum(places.astype(np.int64), count - 1)]
    below = np.searchsorted(np.sort(outside), thresholds, side="right") / len(outside)
    found = random.binomial(len(outside), below) / len(outside)
    own = scores.fpr_at_95(inside, outside)
    draws = pseudo_values(own, [scores.fpr_at_95(*each) for each in others])
    low, high = _widened(*_ends(found), draws)
    return max(low, 0.0), min(high, 1.0)
