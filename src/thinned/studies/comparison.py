"""Arms compared over seeds: intervals, paired tests, and how many seeds would be needed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from thinned.studies.looks import (
    SPENT,
    any_time_critical,
    any_time_interval,
    any_time_p,
    planned_p,
    t_interval,
)

LEVEL = 0.95
POWER = 0.8
_ERROR = 1 - LEVEL
_SAME = 1e-9
"""Differences of scores that are no further apart differ by the rounding of floats alone."""


@dataclass(frozen=True)
class Difference:
    """An arm less its baseline, over the seeds that both finished.

    Attributes:
        seeds: how many.
        mean: of the differences; NaN without any.
        low, high: 95 % interval, which holds however often the study was looked at, see
            `thinned.studies.looks`; NaN where there are too few seeds, and where all differences
            are the same.
        p_value: two-sided, paired, of the same test; NaN with fewer than two seeds, and where all
            differences are the same, but not 0.
        corrected: p value after Holm's correction (1979) for all arms of the study.
        needed: seeds with which a true difference of this size would be told at a later look with a
            chance of 80 %; None where it is told already, or cannot be said.
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
        # Two looks can contradict one another: then the interval holds 0.
        return self.corrected < _ERROR and not self.low <= 0 <= self.high


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean over seeds by Student's t.

    Returns:
        NaN with fewer than two values, or where all are the same: a score that moves in steps says
        nothing of its spread then.
    """
    held = np.asarray(values, float)
    return (math.nan, math.nan) if _without_spread(held) else t_interval(held, _ERROR)


def paired_differences(
    arms: Mapping[str, Mapping[int, float]],
    baseline: str | Mapping[str, str],
    planned: Sequence[int] | None = None,
) -> dict[str, Difference]:
    """Every other arm against its baseline, paired by seed.

    Args:
        arms: arm -> seed -> score; NaN for a run that is over and has none; seeds whose runs are
            not over are absent.
        baseline: one of the arms; or arm -> its own baseline, without the baselines themselves.
        planned: the seeds that were fixed before anything was known: once the runs of all are over,
            half of the 5 % is spent on a look at these; empty where none were, None for those of
            every pair.

    Returns:
        Arm -> its difference, in the order given, without the baselines.
    """
    bases = baseline
    if isinstance(bases, str):
        bases = {name: bases for name in arms if name != bases}
    pairs = {name: _Pairs.of(arms[name], arms[base], planned) for name, base in bases.items()}
    p_values = {name: pair.p_value for name, pair in pairs.items()}
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    tests = max(sum(not math.isnan(value) for value in p_values.values()), 1)
    return {
        name: _difference(pairs[name], corrected[name], tests) for name in arms if name in pairs
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
    """Seeds with which a later look tells a true difference with a chance of 80 %.

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
    critical = any_time_critical(seeds, (1 - SPENT) * _ERROR / tests)
    if math.isinf(critical):
        return 0.0
    if deviation == 0:
        return 1.0
    shift = abs(mean) / deviation * math.sqrt(seeds)
    if shift < 30:
        return float(stats.nct.sf(critical, seeds - 1, shift))
    # So far from 0 the chance lies in the estimated deviation alone, and SciPy's nct loses digits.
    return float(stats.chi2.cdf((seeds - 1) * (shift / critical) ** 2, seeds - 1))


@dataclass(frozen=True)
class _Pairs:
    """Differences f64 [seed]: all there are, and those of the planned look; empty if not over."""

    values: np.ndarray
    planned: np.ndarray

    @classmethod
    def of(
        cls, own: Mapping[int, float], base: Mapping[int, float], planned: Sequence[int] | None
    ) -> _Pairs:
        if planned is None:
            planned = [seed for seed in own if seed in base]
        over = all(seed in own and seed in base for seed in planned)
        return cls(_paired(own, base, own), _paired(own, base, planned if over else ()))

    @property
    def p_value(self) -> float:
        if len(self.values) < 2:
            return math.nan
        if _without_spread(self.values):
            # A score that moves in steps, not a certainty.
            return 1.0 if abs(self.values[0]) <= _SAME else math.nan
        p = any_time_p(self.values) / (1 - SPENT)
        if not _without_spread(self.planned):
            p = min(p, planned_p(self.planned) / SPENT)
        return min(p, 1.0)

    @property
    def interval(self) -> tuple[float, float]:
        if _without_spread(self.values):
            return math.nan, math.nan
        low, high = any_time_interval(self.values, (1 - SPENT) * _ERROR)
        if not _without_spread(self.planned):
            first = t_interval(self.planned, SPENT * _ERROR)
            both = max(low, first[0]), min(high, first[1])
            # Looks that contradict one another: one of them errs.
            apart = both[0] > both[1]
            low, high = (min(low, first[0]), max(high, first[1])) if apart else both
        return (low, high) if math.isfinite(low) else (math.nan, math.nan)


def _paired(
    own: Mapping[int, float], base: Mapping[int, float], seeds: Iterable[int]
) -> np.ndarray:
    values = np.asarray([own[seed] - base[seed] for seed in seeds if seed in base], float)
    return values[~np.isnan(values)]


def _without_spread(values: np.ndarray) -> bool:
    return len(values) < 2 or bool(np.ptp(values) <= _SAME)


def _difference(pairs: _Pairs, corrected: float, tests: int) -> Difference:
    values, count = pairs.values, len(pairs.values)
    mean = float(values.mean()) if count else math.nan
    needed = None
    if count > 1 and corrected >= _ERROR:
        needed = seeds_needed(mean, float(values.std(ddof=1)), tests)
    return Difference(count, mean, *pairs.interval, pairs.p_value, corrected, needed)
