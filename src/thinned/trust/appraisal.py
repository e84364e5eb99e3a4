"""What predictions of labelled images are worth: every usual score, and a text for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from thinned.trust import intervals, scores
from thinned.trust.sampling import Predictions, Told

COVERAGES = (0.8, 0.9, 0.95)
_MATRIX = 20
"""Classes up to which a confusion matrix fits a terminal."""
WIDEST = 1000
"""Classes up to which a confusion matrix is given whole: of 10,000 it would take 0.8 GB."""


@dataclass(frozen=True)
class Appraisal:
    """Every usual score of predictions of labelled images; its text is a report for people.

    Attributes:
        predictions: what was predicted.
        labels: int [example].
        classes: names of the classes.
    """

    predictions: Predictions
    labels: np.ndarray
    classes: tuple[str, ...]

    @property
    def probabilities(self) -> np.ndarray:
        """f64 [example, class]."""
        return self.predictions.probabilities

    @cached_property
    def right(self) -> np.ndarray:
        """bool [example], whether the most probable class is the label."""
        return self.predicted == self.labels

    @cached_property
    def predicted(self) -> np.ndarray:
        """i64 [example], the most probable class."""
        return self.probabilities.argmax(1)

    @cached_property
    def losses(self) -> np.ndarray:
        """f64 [example], negative log-likelihood of the label, in nats."""
        return scores.losses(self.probabilities, self.labels)

    @cached_property
    def confusion(self) -> np.ndarray:
        """Counts i64 [true class, predicted class]."""
        return scores.confusion(self.predicted, self.labels, len(self.classes))

    @cached_property
    def confused(self) -> np.ndarray:
        """Its cells that are not 0, see `thinned.trust.scores.confused`."""
        return scores.confused(self.predicted, self.labels, len(self.classes))

    @cached_property
    def per_class(self) -> np.ndarray:
        """Precision, recall and F1 f64 [class, 3]."""
        return scores.per_class(self.predicted, self.labels, len(self.classes))

    @cached_property
    def selective(self) -> scores.RiskCoverage:
        """Risk and coverage by the probability of the predicted class."""
        return scores.risk_coverage(self.probabilities.max(1), self.right)

    @cached_property
    def scores(self) -> dict[str, float]:
        """Every score by name; losses in nats per example, the others as parts of 1."""
        p, y = self.probabilities, self.labels
        low, high = intervals.accuracy_interval(self.right, [right for _, right in self.others])
        values = {
            "accuracy": float(self.right.mean()),
            "accuracy_low": low,
            "accuracy_high": high,
            "nll": scores.nll(p, y),
            "brier": scores.brier(p, y),
            "ece": self.bins.error,
            "adaptive_ece": scores.reliability(p, y, adaptive=True).error,
            "aurc": self.selective.area,
        }
        if len(self.classes) > 5:
            values["top5"] = scores.top_k(p, y, 5)
        for coverage in COVERAGES:
            values[f"accuracy_at_{coverage:g}"] = self.selective.accuracy_at(coverage)
        return values

    @cached_property
    def ece_by_chance(self) -> float:
        """Below this an ECE tells of no fault, see `thinned.trust.scores.error_by_chance`."""
        return scores.error_by_chance(self.probabilities.max(1))

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % intervals of ``ece`` and ``aurc``, over new images and, with samples, new masks."""
        seen, others = (self.probabilities.max(1), self.right), self.others
        return {
            "ece": intervals.over_images(
                lambda sure, right: scores.bins_of(sure, right).error, seen, others, above_zero=True
            ),
            "aurc": intervals.over_images(
                lambda sure, right: scores.risk_coverage(sure, right).area, seen, others
            ),
        }

    @cached_property
    def others(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Confidence f64 [example], and whether the answer is right, bool [example], without each
        part of the samples, see `thinned.trust.sampling.Predictions.others`.
        """
        return [
            (each.confidence, each.predicted == self.labels) for each in self.predictions.others
        ]

    @property
    def varied(self) -> str:
        """What its intervals are over."""
        return "images and masks" if self.predictions.others else "images"

    def __str__(self) -> str:
        """The scores, a line for each class, the confusion matrix, the reliability bins."""
        parts = [self._lines(), self._per_class(), self._matrix(), self._bins()]
        return "\n\n".join(filter(None, map("\n".join, parts)))

    @cached_property
    def bins(self) -> scores.Bins:
        """Reliability in bins of equal width."""
        return scores.reliability(self.probabilities, self.labels)

    def as_values(self) -> dict[str, Any]:
        """Everything as plain values for JSON; NaN is null.

        ``scores`` by name; ``varied``, what intervals are over; ``intervals`` and
        ``ece_by_chance``, see there; ``classes``; ``per_class`` rows of precision, recall and F1;
        ``confusion`` [true][predicted], null of more than `WIDEST` classes; ``confused`` rows of
        its cells that are not 0: true, predicted, count; ``reliability`` bins; ``risk_coverage``
        points.
        """
        parts = {
            "scores": self.scores,
            "varied": self.varied,
            "intervals": self.intervals,
            "ece_by_chance": self.ece_by_chance,
            "classes": self.classes,
            "per_class": self.per_class,
            "confusion": self.confusion if len(self.classes) <= WIDEST else None,
            "confused": self.confused,
            "reliability": vars(self.bins),
            "risk_coverage": vars(self.selective),
        }
        return {name: _plain(part) for name, part in parts.items()}

    def _lines(self) -> Iterator[str]:
        score, count = self.scores, len(self.labels)
        how = "95 %" if self.predictions.others else "Wilson 95 %"
        yield (
            f"accuracy      {score['accuracy']:.2%} ({score['accuracy_low']:.2%} to "
            f"{score['accuracy_high']:.2%}, {how}), "
            f"{int(self.right.sum()):,} of {count:,} images"
        )
        if "top5" in score:
            yield f"top 5         {score['top5']:.2%}"
        yield f"loss          {score['nll']:.4f} nats (NLL)"
        yield f"Brier         {score['brier']:.4f} (sum over classes, 0 to 2)"
        (low, high), chance = self.intervals["ece"], self.ece_by_chance
        yield (
            f"ECE           {score['ece']:.4f} ({low:.4f} to {high:.4f}; below {chance:.4f} if "
            f"calibrated; {scores.BINS} bins of equal width), {score['adaptive_ece']:.4f} (of "
            "equal count)"
        )
        parts = (f"{score[f'accuracy_at_{c:g}']:.2%} at {c:.0%}" for c in COVERAGES)
        low, high = self.intervals["aurc"]
        yield (
            f"selective     AURC {score['aurc']:.5f} ({low:.5f} to {high:.5f}); accuracy "
            f"{', '.join(parts)} coverage"
        )
        if self.predictions.others:
            yield f"              (intervals are over {self.varied})"

    def _per_class(self) -> Iterator[str]:
        width = max(5, *(len(name) for name in self.classes))
        yield f"{'class'.ljust(width)}  images  precision  recall      F1"
        examples = np.bincount(self.labels, minlength=len(self.classes))
        for name, row, images in zip(self.classes, self.per_class, examples, strict=True):
            cells = "".join(f"{value:>10.2%}" if value == value else f"{'-':>10}" for value in row)
            yield f"{name.ljust(width)}  {int(images):>6,} {cells}"

    def _matrix(self) -> Iterator[str]:
        if len(self.classes) > _MATRIX:
            return
        width = max(5, *(len(name) for name in self.classes))
        cell = max(len(f"{self.confusion.max()}"), *(min(len(name), 8) for name in self.classes))
        header = "  ".join(name[:8].rjust(cell) for name in self.classes)
        yield "confusion: a row for each true class, a column for each predicted one"
        yield f"{''.ljust(width)}  {header}"
        for name, row in zip(self.classes, self.confusion, strict=True):
            yield f"{name.ljust(width)}  " + "  ".join(str(count).rjust(cell) for count in row)

    def _bins(self) -> Iterator[str]:
        yield "confidence      images  mean confidence  accuracy"
        bins = self.bins
        for index in np.flatnonzero(bins.count):
            low, high = bins.edges[index : index + 2]
            yield (
                f"{low:.3f} to {high:.3f}{bins.count[index]:>8,}{bins.confidence[index]:>17.4f}"
                f"{bins.accuracy[index]:>10.4f}"
            )


def uncertainties(told: Told) -> dict[str, np.ndarray]:
    """Measures of uncertainty f64 [image] by name, larger is less sure."""
    measures = {
        "entropy": told.entropy,
        "1 - max probability": 1 - told.confidence,
        "energy": told.energy,
    }
    if told.samples > 1:
        measures["mutual information"] = told.mutual_information
    return measures


Measures = Mapping[str, np.ndarray]
"""How strange images are, f64 [image] by name; larger is stranger."""


def other_measures(inside: Predictions, outside: Predictions) -> list[tuple[Measures, Measures]]:
    """Uncertainties of test images and of others, without each part of the samples of both."""
    pairs = zip(inside.others, outside.others, strict=True)
    return [(uncertainties(own), uncertainties(other)) for own, other in pairs]


def told_apart(
    inside: Measures, outside: Measures, others: Sequence[tuple[Measures, Measures]] = ()
) -> dict[str, dict[str, float]]:
    """How well other images are told from the test images, by each of several measures.

    Args:
        inside: of the test images.
        outside: of the others, made in the same way.
        others: both without each part of the samples, see `other_measures`: intervals are over
            masks, too. A measure that is not among them knows no masks.

    Returns:
        Measure -> {"auroc", "fpr95"}, and the ends of their intervals, {"auroc_low", ...}.
    """
    found: dict[str, dict[str, float]] = {}
    for name in inside.keys() & outside.keys():
        pair = inside[name], outside[name]
        varied = [(own[name], other[name]) for own, other in others if name in own]
        area = intervals.auroc_interval(*pair, varied)
        rate = intervals.fpr_interval(*pair, varied)
        found[name] = {
            "auroc": scores.auroc(*pair),
            "auroc_low": area[0],
            "auroc_high": area[1],
            "fpr95": scores.fpr_at_95(*pair),
            "fpr95_low": rate[0],
            "fpr95_high": rate[1],
        }
    return {name: found[name] for name in inside if name in found}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    return None if isinstance(value, float) and value != value else value
