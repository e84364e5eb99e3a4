"""Sets of classes that hold the right one as often as is promised: split-conformal prediction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from thinned.trust.scores import accuracy_interval, bootstrap, by_parts, parts_of, ranks

SetKind = Literal["lac", "aps", "raps"]
LEAST_RATE = 2.0**-53
"""Smaller parts count as this one: no images could show them."""
PENALTY, FREE = 0.01, 5
"""Of ``raps``, where there are too few images to choose them by."""
_PENALTIES = (0.001, 0.01, 0.1, 0.2, 0.5)
_TUNED = 0.3
"""The part of the images by which they are chosen; that and the penalties are the authors'."""
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
    penalty: float = PENALTY,
    free: int = FREE,
) -> np.ndarray:
    """How badly each class fits an image, f64 [image, class].

    ``lac``: 1 - p, so that sets are as small as can be on average, and empty for images that no
    class fits (Sadinle et al. 2019). ``aps``: the probability of all classes that are more
    probable, and the part `draws` of its own (Romano et al. 2020): sets grow with how hard an image
    is.
    ``raps``: that, and `penalty` for each rank beyond `free` (Angelopoulos et al. 2021), which
    keeps sets of many classes small; `Penalised` chooses them.

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


class Penalised(NamedTuple):
    """How ``raps`` counts ranks: `penalty` for each beyond `free`, by so many `images`."""

    penalty: float = PENALTY
    free: int = FREE
    images: int = 0

    @classmethod
    def for_small_sets(
        cls, rate: float, probabilities: np.ndarray, labels: np.ndarray
    ) -> Penalised:
        """Those that make sets of given images small (Angelopoulos et al. 2021, appendix E).

        No rank is penalised up to which the right classes of a part ``1 - rate`` are; of five
        penalties it is the one with the smallest sets of these images, made by themselves.

        Args:
            rate: above 0 and below 1.
            probabilities: f64 [image, class], of at least `fewest_images` images that choose
                nothing else: then the coverage of sets that others choose is kept.
            labels: int [image].
        """
        free = int(quantile(1 + ranks(probabilities, labels), rate))

        def size(penalty: float) -> int:
            fits = partial(nonconformity, "raps", penalty=penalty, free=free)
            own = by_parts(partial(_of_label, fits), probabilities, labels)
            inside = partial(_count_below, fits, quantile(own, rate))
            return int(by_parts(inside, probabilities).sum())

        return cls(min(_PENALTIES, key=size), free, len(labels))


_Fits = Callable[[np.ndarray], np.ndarray]
"""`nonconformity` of some kind, of probabilities."""


def _of_label(fits: _Fits, probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """That of the right class, f64 [image]."""
    return fits(probabilities)[np.arange(len(labels)), labels]


def _count_below(fits: _Fits, threshold: float, probabilities: np.ndarray) -> np.ndarray:
    return (fits(probabilities) <= threshold).sum(1)


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
        penalty, free: of ``raps``, see `nonconformity`.
        tuned: other validation images, by which these two were chosen; 0 where there were too few.
    """

    kind: SetKind
    coverage: float
    thresholds: np.ndarray
    images: int
    per_class: bool
    penalty: float = PENALTY
    free: int = FREE
    tuned: int = 0

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

        For ``raps``, three tenths of them, drawn, choose how ranks are penalised, and the others
        the threshold: it is no more chosen by what it is for than with one of the others. Where
        either part would be too few, ranks are penalised as they are by default.

        Args:
            kind: of `nonconformity`.
            coverage: above 0 and below 1.
            probabilities: f64 [image, class].
            labels: int [image].
            per_class: whether each class has a threshold, by its own images, that keeps the
                coverage among images of that class (Mondrian; Vovk 2012).
        """
        classes, rate = probabilities.shape[1], 1 - coverage
        # What each threshold is chosen by.
        groups = labels if per_class else np.zeros_like(labels)
        some, rest = _divided(groups, fewest_images(rate)) if kind == "raps" else _undivided(groups)
        how = Penalised()
        if len(some):
            how = Penalised.for_small_sets(rate, probabilities[some], labels[some])
        fits = partial(nonconformity, kind, penalty=how.penalty, free=how.free)
        own, groups = by_parts(partial(_of_label, fits), probabilities, labels)[rest], groups[rest]
        names = range(classes if per_class else 1)
        quantiles = np.asarray([quantile(own[groups == name], rate) for name in names])
        thresholds = np.broadcast_to(quantiles, classes)
        return cls(kind, coverage, thresholds, len(rest), per_class, *how)

    def sets(self, probabilities: np.ndarray) -> np.ndarray:
        """Which classes are in the set of each image, bool [image, class]."""
        inside = np.empty(probabilities.shape, bool)
        fits = partial(nonconformity, self.kind, penalty=self.penalty, free=self.free)
        for rows in parts_of(probabilities):
            # Without a name: it would be held while the next part is computed.
            inside[rows] = fits(probabilities[rows]) <= self.thresholds
        return inside

    def __str__(self) -> str:
        """What is promised, and by which images."""
        whose = "each class's" if self.per_class else "the"
        always = int(np.isinf(self.thresholds).sum())
        few = f"; too few of {always} classes, which are in every set" if always else ""
        ranked = (
            f"; {self.penalty:g} for each rank beyond {self.free}, chosen by {self.tuned:,} others"
            if self.tuned
            else ""
        )
        return (
            f"sets ({self.kind}) hold the right class of {self.coverage:.4g} of {whose} images, on "
            f"average over the {self.images:,} validation images that chose them{few}{ranked}"
        )


def _undivided(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(0), np.arange(len(groups))


def _divided(groups: np.ndarray, fewest: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that choose how ranks are penalised, and rows that choose thresholds.

    Of the images only the group of each is looked at, and how many there are.
    """
    order = np.random.default_rng(0).permutation(len(groups))
    some, rest = np.split(order, [math.ceil(_TUNED * len(groups))])
    size = int(groups.max(initial=0)) + 1
    enough, left = (np.bincount(groups[rows], minlength=size) >= fewest for rows in (order, rest))
    if len(some) < fewest or not np.array_equal(enough, left):
        return _undivided(groups)
    return some, rest


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
            "penalty": made.penalty if made.kind == "raps" else None,
            "free": made.free if made.kind == "raps" else None,
            "tuned": made.tuned,
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
