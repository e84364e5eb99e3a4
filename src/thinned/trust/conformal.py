"""Sets of classes that hold the right one as often as is promised: split-conformal prediction."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from thinned.trust.scores import accuracy_interval, bootstrap, by_parts, parts_of

SetKind = Literal["lac", "aps", "raps"]
LEAST_RATE = 2.0**-53
"""Smaller parts count as this one: no images could show them."""
_SIZES = (0, 1, 2, 3, 4, 11, 101)
"""Where classes of sizes begin, close to those of Angelopoulos et al. (2021), section 4."""


def quantile(scores: np.ndarray, rate: float) -> float:
    """The ceil((n + 1)(1 - rate))-th smallest of n scores.

    A new score that is exchangeable with these is above it with a probability of at most `rate`,
    and of more than ``rate - 1 / (n + 1)`` where no two are equal: on average over what was held
    out, not for each draw of it (Vovk et al. 2005; Angelopoulos & Bates 2021, section 1).

    Args:
        scores: f64 [image].
        rate: above 0 and below 1.

    Returns:
        One of the scores; infinite where there are fewer than 1 / rate - 1.
    """
    # Rounding must not cost one.
    above = min(math.floor((len(scores) + 1) * rate + 1e-9), len(scores))
    return float(np.sort(scores)[-above]) if above else math.inf


def fewest_images(rate: float) -> int:
    """Below how many scores `quantile` is infinite."""
    return math.ceil(1 / max(rate, LEAST_RATE) - 1 - 1e-9)


def nonconformity(
    kind: SetKind,
    probabilities: np.ndarray,
    draws: np.ndarray | float = 0.0,
    penalty: float = 0.01,
    free: int = 5,
) -> np.ndarray:
    """How badly each class fits an image, f64 [image, class].

    ``lac``: 1 - p, so that sets are as small as can be on average, and empty for images that no
    class fits (Sadinle et al. 2019). ``aps``: the probability of all classes that are more
    probable, and the part `draws` of its own (Romano et al. 2020): sets grow with how hard an image
    is.
    ``raps``: that, and `penalty` for each rank beyond `free` (Angelopoulos et al. 2021), which
    keeps sets of many classes small.

    Args:
        kind: which.
        probabilities: f64 [image, class]; of equal ones, the first class counts as more probable.
        draws: f64 [image] from 0 to 1. Drawn evenly, coverage is exact and some sets are empty. By
            0, nothing is drawn and the most probable class is always in the set; where it alone is
            right more often than the wanted coverage, so is the set.
        penalty: at least 0.
        free: at least 0.
    """
    if kind == "lac":
        return 1 - probabilities
    order = np.argsort(-probabilities, 1, kind="stable")
    ordered = np.take_along_axis(probabilities, order, 1)
    before = np.cumsum(ordered, 1) - ordered
    fit = before + np.reshape(draws, (-1, 1)) * ordered
    if kind == "raps":
        fit = fit + penalty * np.maximum(np.arange(1, fit.shape[1] + 1) - free, 0)
    back = np.empty_like(fit)
    np.put_along_axis(back, order, fit, 1)
    return back


def _of_label(kind: SetKind, probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`nonconformity` of the right class, f64 [image]."""
    return nonconformity(kind, probabilities)[np.arange(len(labels)), labels]


@dataclass(frozen=True)
class Conformal:
    """Which classes are in a set.

    Attributes:
        kind: of `nonconformity`.
        coverage: the part of the sets that hold the right class, on average over what was held out.
        thresholds: f64 [class], the highest nonconformity of a class in a set; inf for a class that
            is in every set.
        images: validation images by which they were chosen.
        per_class: whether the coverage is that of each class.
    """

    kind: SetKind
    coverage: float
    thresholds: np.ndarray
    images: int
    per_class: bool

    @classmethod
    def of(
        cls,
        kind: SetKind,
        coverage: float,
        probabilities: np.ndarray,
        labels: np.ndarray,
        per_class: bool = False,
    ) -> Conformal:
        """Thresholds from images that nothing learned from (Vovk et al. 2005, split conformal).

        Args:
            kind: of `nonconformity`.
            coverage: above 0 and below 1.
            probabilities: f64 [image, class].
            labels: int [image].
            per_class: whether each class has a threshold, by its own images, that keeps the
                coverage among images of that class (Mondrian; Vovk 2012).
        """
        classes, rate = probabilities.shape[1], 1 - coverage
        own = by_parts(partial(_of_label, kind), probabilities, labels)
        groups = [own[labels == name] for name in range(classes)] if per_class else [own]
        quantiles = np.asarray([quantile(group, rate) for group in groups])
        thresholds = np.broadcast_to(quantiles, classes)
        return cls(kind, coverage, thresholds, len(labels), per_class)

    def sets(self, probabilities: np.ndarray) -> np.ndarray:
        """Which classes are in the set of each image, bool [image, class]."""
        inside = np.empty(probabilities.shape, bool)
        for rows in parts_of(probabilities):
            inside[rows] = nonconformity(self.kind, probabilities[rows]) <= self.thresholds
        return inside

    def __str__(self) -> str:
        """What is promised, and by which images."""
        whose = "each class's" if self.per_class else "the"
        always = int(np.isinf(self.thresholds).sum())
        few = f"; too few of {always} classes, which are in every set" if always else ""
        return (
            f"sets ({self.kind}) hold the right class of {self.coverage:.4g} of {whose} images, on "
            f"average over the {self.images:,} validation images that chose them{few}"
        )


class Share(NamedTuple):
    """A part of some images, with Wilson's 95 % interval.

    Attributes:
        part: from 0 to 1; NaN of none.
        low, high: of the interval.
        images: of how many.
    """

    part: float
    low: float
    high: float
    images: int

    @classmethod
    def of(cls, hits: np.ndarray) -> Share:
        """The share of the images, bool [image], that are hit."""
        low, high = accuracy_interval(int(hits.sum()), len(hits))
        return cls(float(hits.mean()) if len(hits) else math.nan, low, high, len(hits))

    def __str__(self) -> str:
        """The part and its interval."""
        part = "-" if math.isnan(self.part) else f"{self.part:.2%}"
        return f"{part:>7} ({self.low:.2%} to {self.high:.2%})"


@dataclass(frozen=True)
class SetScores:
    """What sets of classes are worth on labelled images; its text is for people.

    Attributes:
        promised: by what they were made.
        coverage: how many hold the right class.
        size: mean number of classes, and its 95 % interval by the bootstrap over images.
        by_size: coverage of sets of similar size, by name; those that occur (Angelopoulos et al.
            2021, section 4).
        by_class: coverage of the images of each class, by name.
    """

    promised: Conformal
    coverage: Share
    size: tuple[float, float, float]
    by_size: dict[str, Share]
    by_class: dict[str, Share]

    @classmethod
    def of(
        cls, made: Conformal, probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]
    ) -> SetScores:
        """Scores of the sets of test images.

        Args:
            made: which classes are in a set.
            probabilities: f64 [image, class].
            labels: int [image].
            classes: their names.
        """
        sets = made.sets(probabilities)
        held, sizes = sets[np.arange(len(labels)), labels], sets.sum(1)
        place = np.searchsorted(_SIZES, sizes, side="right") - 1
        by_size = {_range(span): Share.of(held[place == span]) for span in np.unique(place)}
        by_class = {name: Share.of(held[labels == row]) for row, name in enumerate(classes)}
        size = (float(sizes.mean()), *bootstrap(sizes))
        return cls(made, Share.of(held), size, by_size, by_class)

    def as_values(self) -> dict[str, Any]:
        """Everything as plain values for JSON; NaN is null.

        ``promised`` is the wanted coverage; shares are objects of ``part``, ``low``, ``high`` and
        ``images``.
        """
        made = self.promised
        size, low, high = self.size
        return {
            "kind": made.kind,
            "promised": made.coverage,
            "per_class": made.per_class,
            "validation_images": made.images,
            "thresholds": [_finite(threshold) for threshold in made.thresholds.tolist()],
            "coverage": _values(self.coverage),
            "size": {"mean": size, "low": low, "high": high},
            "by_size": {name: _values(share) for name, share in self.by_size.items()},
            "by_class": {name: _values(share) for name, share in self.by_class.items()},
        }

    def __str__(self) -> str:
        """What is promised, and what came of it: in all, by size, by class."""
        size, low, high = self.size
        lines = [
            str(self.promised),
            f"coverage    {self.coverage}",
            f"mean size   {size:>7.3f} ({low:.3f} to {high:.3f})",
            "",
            *_table("size", self.by_size),
            "",
            *_table("class", self.by_class),
        ]
        return "\n".join(lines)


def _range(place: int) -> str:
    begin = _SIZES[place]
    if place == len(_SIZES) - 1:
        return f"{begin} or more"
    end = _SIZES[place + 1] - 1
    return f"{begin}" if begin == end else f"{begin} to {end}"


def _table(head: str, shares: dict[str, Share]) -> Iterator[str]:
    width = max(len(head), *(len(name) for name in shares))
    yield f"{head.ljust(width)}  images  coverage (Wilson 95 %)"
    for name, share in shares.items():
        yield f"{name.ljust(width)}  {share.images:>6,}  {share}"


def _values(share: Share) -> dict[str, Any]:
    return {name: _finite(value) for name, value in share._asdict().items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
