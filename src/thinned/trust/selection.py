"""Which answers to give: a threshold of confidence above which few are wrong, with a guarantee."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from thinned.trust.conformal import LEAST_RATE

_STARTS = (0, 1 / 2, 3 / 4)
"""From which parts of the images on thresholds are lowered; at least from what can show it."""


class Selection(NamedTuple):
    """From where on answers count as sure, and what that promises; its text is a line for people.

    Attributes:
        risk: of new answers above the threshold, at most this part is wrong,
        level: unless validation images came out as they do with a probability of 1 - level.
        threshold: answers of a confidence above it are sure; -inf for all, inf for none.
        answered: how many of the validation images are above it,
        wrong: and how many of these are wrong.
        images: how many validation images there are.
    """

    risk: float
    level: float
    threshold: float
    answered: int
    wrong: int
    images: int

    def __str__(self) -> str:
        """The threshold with its promise, or that there is none."""
        promise = f"at most {self.risk:.4g} of them are wrong, with {self.level:.4g} confidence"
        if not self.answered:
            return (
                f"no answers can be told of which {promise}: too many of the surest on validation "
                "images are wrong; all are unsure"
            )
        above = (
            "all answers are sure"
            if math.isinf(self.threshold)
            else f"answers are sure above a probability of {self.threshold:.4f}"
        )
        return (
            f"{above}: {promise} ({self.wrong:,} of {self.answered:,} were, of {self.images:,} "
            "validation images)"
        )


def least_images(risk: float, level: float) -> int:
    """How many images, all answered rightly, are the fewest that can show so small a risk.

    Args:
        risk, level: above 0 and below 1.
    """
    # What is nearer to 0 or 1 than that is no other number once it was subtracted from 1.
    risk, level = max(risk, LEAST_RATE), min(level, 1 - LEAST_RATE)
    return math.ceil(math.log1p(-level) / math.log1p(-risk) - 1e-9)


def select(confidence: np.ndarray, right: np.ndarray, risk: float, level: float) -> Selection:
    """The lowest threshold above which at most a part `risk` of new answers is wrong.

    Selection with guaranteed risk (Geifman & El-Yaniv 2017) by fixed-sequence tests in place of
    their search (Learn then Test, Angelopoulos et al. 2021, section 2): from a rank that is fixed
    beforehand, the threshold is lowered image by image, for as long as an exact binomial test
    refutes that the risk above it is too high. There are up to three such ranks, each at its part
    of 1 - level (Bonferroni): a mistake among the surest ends the first sequence, but not the
    others.

    That the promise holds takes independent draws, and a risk that does not grow with confidence.
    The images above a first threshold are draws of those that will be, and so are those above the
    first threshold in the order at which the risk is too high, which is then a fixed number: to go
    below it, one test has to err. Where the risk grows with confidence over some stretch, one more
    test may.

    Args:
        confidence: f64 [image], of images that nothing learned from; larger is surer.
        right: bool [image].
        risk: above 0 and below 1.
        level: the probability, over draws of these images, with which the promise holds; above 0
            and below 1.
    """
    count, order = len(confidence), np.argsort(-confidence, kind="stable")
    descending, wrong = confidence[order], np.cumsum(~right[order])
    # A threshold cannot part images of the same confidence.
    ends = np.flatnonzero(np.r_[descending[1:] != descending[:-1], True][:count]) + 1
    starts, price = _starts(count, risk, 1 - level)
    held = stats.binom.cdf(wrong[ends - 1], ends, risk) <= price
    best = max((_last_held(ends, held, start) for start in starts), default=0)
    if not best:
        return Selection(risk, level, math.inf, 0, 0, count)
    threshold = float(descending[best]) if best < count else -math.inf
    return Selection(risk, level, threshold, best, int(wrong[best - 1]), count)


def _starts(count: int, risk: float, price: float) -> tuple[list[int], float]:
    """Ranks at which sequences begin, and the level of each: as many as so few images allow."""
    for number in range(len(_STARTS), 0, -1):
        least = least_images(risk, 1 - price / number)
        ranks = sorted({max(math.floor(part * count), least) for part in _STARTS})[:number]
        if ranks[0] <= count:
            return [rank for rank in ranks if rank <= count], price / number
    return [], price


def _last_held(ends: np.ndarray, held: np.ndarray, start: int) -> int:
    """The last rank of a sequence, of which all before it hold, too; 0 where not even the first."""
    first = int(np.searchsorted(ends, start, side="right")) - 1
    if first < 0 or not held[first]:
        return 0
    failed = np.flatnonzero(~held[first:])
    return int(ends[first + failed[0] - 1] if len(failed) else ends[-1])
