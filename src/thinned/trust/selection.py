"""Which answers to give: a threshold of confidence above which few are wrong, with a guarantee."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

_PARTS = (1, 63 / 64, 31 / 32, 15 / 16, 7 / 8, 3 / 4, 1 / 2, 1 / 4, 1 / 8, 1 / 16)
"""Of the validation images, how many may be answered: what is tried, and paid for, is fixed."""


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
    return math.ceil(math.log1p(-level) / math.log1p(-risk) - 1e-9)


def select(confidence: np.ndarray, right: np.ndarray, risk: float, level: float) -> Selection:
    """The lowest threshold above which at most a part `risk` of new answers is wrong.

    Selection with guaranteed risk (Geifman & El-Yaniv 2017), but for its search. Ten thresholds are
    tried, each the confidence of a rank that is fixed beforehand. Given that confidence, the images
    above it are independent draws of those that will be, so that how many are wrong is binomial:
    that the risk is higher is tested exactly, at (1 - level) over the number of tries (Bonferroni;
    Learn then Test, Angelopoulos et al. 2021, section 2). Their search by halves chooses ranks by
    what it has seen; a sequence without Bonferroni's price would do so, too.

    Args:
        confidence: f64 [image], of images that nothing learned from and that are independent draws
            of those to come; larger is surer.
        right: bool [image].
        risk: above 0 and below 1.
        level: the probability, over draws of these images, with which the promise holds; above 0
            and below 1.
    """
    count, price = len(confidence), 1 - level
    descending = np.sort(confidence)[::-1]
    ranks = sorted({math.floor(part * count) for part in _PARTS}, reverse=True)
    # What could not be shown even without a mistake is not tried, and costs nothing.
    while ranks and ranks[-1] < least_images(risk, 1 - price / len(ranks)):
        ranks.pop()
    for rank in ranks:
        threshold = float(descending[rank]) if rank < count else -math.inf
        above = confidence > threshold
        answered, wrong = int(above.sum()), int(np.sum(above & ~right))
        if answered and stats.binom.cdf(wrong, answered, risk) <= price / len(ranks):
            return Selection(risk, level, threshold, answered, wrong, count)
    return Selection(risk, level, math.inf, 0, 0, count)
