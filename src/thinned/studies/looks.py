"""A t-test that may be looked at after every seed: it errs once in so many studies, not looks.

Whoever adds seeds because a difference was nearly told, and tests again, errs in more than 5 % of
the studies: in a quarter of them, where every number from 3 to 30 is looked at. Half of the 5 % is
spent on the one look that was planned, by Student's t; the other half on all others together, by a
test that holds at any number of seeds, chosen for whatever reason.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

SPENT = 0.5
"""Part of the error that the planned look may use; the rest is for all others."""
_VARIANCE = 4.0
"""Of the true differences, in standard deviations of the pairs, that the test is sharpest for: what
kinds and rates of dropout differ by over seeds, about two. It holds whatever they are."""


def planned_p(values: np.ndarray) -> float:
    """Two-sided p value of the t-test of a mean of 0, for values f64 [n] with some spread."""
    return float(2 * stats.t.sf(abs(_statistic(values)), len(values) - 1))


def any_time_p(values: np.ndarray) -> float:
    """p value of a mean of 0 that holds at whatever number of values the test is looked at.

    The reciprocal of the likelihood ratio of the t statistic between means drawn from a normal
    distribution (in standard deviations: mean 0, variance 4) and a mean of 0. Under a mean of 0 it
    is a nonnegative martingale of mean 1 in the number of values, for normal values of any
    variance, so that it ever reaches 1 / level with a chance of at most `level` (Ville 1939).

    Args:
        values: f64 [n], n at least 2, with some spread.

    Source:
        Lai (1976), section 3; Wang & Ramdas (2025), "Anytime-valid t-tests and confidence
        sequences for Gaussian means with unknown variance", section 4.
    """
    count, square = len(values), _statistic(values) ** 2 / (len(values) - 1)
    growth = 1 + _VARIANCE * count
    log_ratio = count / 2 * math.log((1 + square) / (1 + square / growth)) - math.log(growth) / 2
    return math.exp(-max(log_ratio, 0.0))


def any_time_critical(count: int, level: float) -> float:
    """The t statistic at which `any_time_p` is `level`; infinite where so few values tell nothing.

    Args:
        count: of values, at least 2.
        level: above 0, below 1.
    """
    growth = 1 + _VARIANCE * count
    ratio = math.exp(2 / count * (math.log(growth) / 2 - math.log(level)))
    if ratio >= growth:
        return math.inf
    return math.sqrt((count - 1) * (ratio - 1) / (1 - ratio / growth))


def t_interval(values: np.ndarray, level: float) -> tuple[float, float]:
    """Student's interval of the mean that misses it with a chance of `level`; NaN below two."""
    if len(values) < 2:
        return math.nan, math.nan
    return _around(values, float(stats.t.ppf(1 - level / 2, len(values) - 1)))


def any_time_interval(values: np.ndarray, level: float) -> tuple[float, float]:
    """The means that `any_time_p` does not reject: all looks hold it but for a chance of `level`.

    A confidence sequence; infinite where there are too few values.
    """
    return _around(values, any_time_critical(len(values), level))


def _around(values: np.ndarray, critical: float) -> tuple[float, float]:
    mean, half = float(values.mean()), critical * _error(values)
    return mean - half, mean + half


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def _statistic(values: np.ndarray) -> float:
    return float(values.mean()) / _error(values)
