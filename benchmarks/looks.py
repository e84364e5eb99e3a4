"""How often a study claims a difference that is not there, whenever it is looked at.

Simulates studies whose arms differ in nothing, looks after every seed, and counts the studies with
any claim at any look: with a plain t-test at each look, and with `thinned.studies.looks`. Then the
part of true differences that is told, and the mean width of an interval.

    python benchmarks/looks.py [studies]
"""

from __future__ import annotations

import math
import sys

import numpy as np
from scipy import stats

from thinned.studies.looks import SPENT, any_time_critical

ERROR, FIRST, LAST = 0.05, 3, 30


def main() -> None:
    """Print the tables."""
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    print(f"{studies:,} studies, a look at every number of seeds from {FIRST} to {LAST}")
    print(f"one standard error is at most {math.sqrt(0.05 * 0.95 / studies):.2%} at 5 %\n")
    print("studies with a false claim     t-test each time   ours")
    for title, draw in _draws().items():
        for arms in (1, 4):
            statistics = _statistics(draw(np.random.default_rng(arms), (studies, arms + 1, LAST)))
            plain, ours = (_any(statistics, way(arms)) for way in (_plain, _ours))
            print(f"{title:<14}{arms} arm{'s' if arms > 1 else ' '}{plain:>24.1%}{ours:>9.1%}")
    print("\ntrue difference of 1 arm, in deviations of the pairs: told at the look")
    print("           at 3 planned   5 planned  10 planned    10, 3 planned   30, 3 planned")
    for effect in (0.5, 1.0, 2.0, 3.0):
        print(f"{effect:<11}" + "".join(f"{part:>14.1%}" for part in _told(effect, studies)))


def _draws():
    """Scores of runs without any difference, [study, arm, seed], by the kind of their noise."""

    def tailed(random, shape):
        return random.standard_t(4, shape)

    def skewed(random, shape):
        return random.exponential(size=shape)

    def stepped(random, shape):
        # Right answers among 10,000 images at 99 %.
        return random.binomial(10_000, 0.99, shape) / 10_000

    def normal(random, shape):
        return random.normal(size=shape)

    return {"normal": normal, "t, 4 degrees": tailed, "exponential": skewed, "accuracy": stepped}


def _statistics(scores: np.ndarray) -> np.ndarray:
    """t statistics [look, study, arm] of the arms against the first."""
    pairs = scores[:, 1:] - scores[:, :1]
    found = []
    for seeds in range(FIRST, LAST + 1):
        with np.errstate(invalid="ignore", divide="ignore"):
            held = stats.ttest_1samp(pairs[..., :seeds], 0.0, axis=-1)
        # Equal differences are no proof.
        spread = np.ptp(pairs[..., :seeds], -1) > 1e-9
        found.append(np.where(spread, np.abs(held.statistic), 0.0))
    return np.stack(found)


def _any(statistics: np.ndarray, critical: list[float]) -> float:
    """Part of the studies of which any look claims anything; Holm's first step is Bonferroni's."""
    beyond = statistics.max(2) > np.asarray(critical)[:, None]
    return float(beyond.any(0).mean())


def _plain(arms: int) -> list[float]:
    return [stats.t.ppf(1 - ERROR / 2 / arms, n - 1) for n in range(FIRST, LAST + 1)]


def _ours(arms: int) -> list[float]:
    later = [any_time_critical(n, (1 - SPENT) * ERROR / arms) for n in range(FIRST, LAST + 1)]
    return [min(_planned(FIRST, arms), later[0]), *later[1:]]


def _planned(seeds: int, arms: int = 1) -> float:
    return float(stats.t.ppf(1 - SPENT * ERROR / 2 / arms, seeds - 1))


def _told(effect: float, studies: int) -> list[float]:
    draws = np.random.default_rng(0).normal(effect, 1, (studies, LAST))

    def beyond(seeds: int, critical: float) -> np.ndarray:
        return np.abs(stats.ttest_1samp(draws[:, :seeds], 0, axis=1).statistic) > critical

    found = [beyond(seeds, _planned(seeds)).mean() for seeds in (3, 5, 10)]
    early = beyond(3, _planned(3))
    later = (early | beyond(n, any_time_critical(n, (1 - SPENT) * ERROR)) for n in (10, 30))
    return [*map(float, found), *(float(each.mean()) for each in later)]


if __name__ == "__main__":
    main()
