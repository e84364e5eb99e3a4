"""Arms compared over seeds: intervals, paired tests, and how many seeds would be needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from thinned.trust import scores

LEVEL = 0.95
POWER = 0.8
_SAME = 1e-9
"""Differences of scores that are no further apart differ by the rounding of floats alone."""


@dataclass(frozen=True)
class Difference:
    """An arm less the baseline, over the seeds that both finished.

    Attributes:
        seeds: how many.
        mean: of the differences; NaN without any.
        low, high: 95 % interval by Student's t for paired values; NaN with fewer than two seeds.
        p_value: two-sided paired t-test; NaN likewise, and where all differences are the same.
        corrected: p value after Holm's correction (1979) for all arms of the study.
        needed: seeds with which a true difference of this size would be found with a chance of
            80 %; None where it is found already, or cannot be said.
    """

    seeds: int
    mean: float
    low: float
    high: float
    p_value: float
    corrected: float
    needed: int | None

    @property
    def is_told(self) -> bool:
        """Whether the difference is more than chance, at 5 % for the whole study."""
        return self.corrected < 1 - LEVEL


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean by the percentile bootstrap over seeds; NaN with fewer than two."""
    if len(values) < 2:
        return math.nan, math.nan
    return scores.bootstrap(np.asarray(values, float), 10_000, level=LEVEL)


def paired_differences(
    arms: Mapping[str, Mapping[int, float]], baseline: str
) -> dict[str, Difference]:
    """Every other arm against the baseline, paired by seed.

    Args:
        arms: arm -> seed -> score; seeds that failed are absent.
        baseline: one of the arms.

    Returns:
        Arm -> its difference, in the order given, without the baseline.
    """
    base = arms[baseline]
    paired = {
        name: np.asarray([found[seed] - base[seed] for seed in sorted({*found} & {*base})])
        for name, found in arms.items()
        if name != baseline
    }
    p_values = {name: _p_value(values) for name, values in paired.items()}
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    tests = max(sum(not math.isnan(value) for value in p_values.values()), 1)
    return {
        name: _difference(values, p_values[name], corrected[name], tests)
        for name, values in paired.items()
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for as many tests (Holm 1979); NaN stays, and counts as no test.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    given = np.asarray(p_values, float)
    real = np.flatnonzero(~np.isnan(given))
    out = np.full(len(given), math.nan)
    highest = 0.0
    for rank, index in enumerate(real[np.argsort(given[real], kind="stable")]):
        highest = max(highest, min(1.0, given[index] * (len(real) - rank)))
        out[index] = highest
    return out.tolist()


def seeds_needed(mean: float, deviation: float, tests: int = 1) -> int | None:
    """Seeds with which a paired t-test finds a true difference with a chance of 80 %.

    Args:
        mean: the true difference.
        deviation: standard deviation of the paired differences.
        tests: among how many this one is: all are tested at 5 % together, as by Bonferroni.

    Returns:
        At least 2; None where there is no difference to find, or more than a million are needed.
    """
    if mean == 0 or not math.isfinite(mean):
        return None
    low, high = 2, 1_000_000
    if _power(high, mean, deviation, tests) < POWER:
        return None
    while low < high:
        middle = (low + high) // 2
        if _power(middle, mean, deviation, tests) >= POWER:
            high = middle
        else:
            low = middle + 1
    return low


def _power(seeds: int, mean: float, deviation: float, tests: int) -> float:
    if deviation == 0:
        return 1.0
    shift = abs(mean) / deviation * math.sqrt(seeds)
    critical = stats.t.ppf(1 - (1 - LEVEL) / 2 / tests, seeds - 1)
    if shift < 30:
        return float(stats.nct.sf(critical, seeds - 1, shift))
    # So far from 0 the chance lies in the estimated deviation alone, and SciPy's nct loses digits.
    return float(stats.chi2.cdf((seeds - 1) * (shift / critical) ** 2, seeds - 1))


def _p_value(values: np.ndarray) -> float:
    if len(values) < 2:
        return math.nan
    if np.ptp(values) <= _SAME:
        # No spread at all: a score that moves in steps, not a certainty.
        return 1.0 if abs(values[0]) <= _SAME else math.nan
    tested: Any = stats.ttest_1samp(values, 0.0)
    return float(tested.pvalue)


def _difference(values: np.ndarray, p_value: float, corrected: float, tests: int) -> Difference:
    count = len(values)
    if count < 2:
        mean = float(values[0]) if count else math.nan
        return Difference(count, mean, math.nan, math.nan, math.nan, math.nan, None)
    mean, deviation = float(values.mean()), float(values.std(ddof=1))
    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * deviation / math.sqrt(count)
    open_ = corrected >= 1 - LEVEL
    needed = seeds_needed(mean, deviation, tests) if open_ else None
    return Difference(count, mean, mean - half, mean + half, p_value, corrected, needed)
