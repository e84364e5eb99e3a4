"""Scores of predicted probabilities: right to the last example, in double precision.

All take arrays over every example at once, so that no batch size can matter. Definitions are those
of the field; where it has several, the docstring says which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy import stats

BINS = 15
TEMPERATURES = (math.exp(-4.0), math.exp(4.0))
"""Between these a temperature is searched."""
_LEAST = 1e-15
"""A probability below this counts as it in a loss."""
_TOGETHER = 1 << 18
"""Numbers that are worked on at once: their copies take 2 MB, and not what all of them take."""


@dataclass(frozen=True)
class Bins:
    """Reliability: confidence against accuracy, bin by bin.

    Attributes:
        edges: f64 [bin + 1], of the confidence.
        confidence: f64 [bin], mean confidence; NaN in empty bins.
        accuracy: f64 [bin]; NaN in empty bins.
        count: i64 [bin].
    """

    edges: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray

    @property
    def error(self) -> float:
        """ECE: distance of accuracy from confidence, weighted by count; empty bins count for 0."""
        filled = self.count > 0
        gaps = np.abs(self.accuracy[filled] - self.confidence[filled])
        return float(np.sum(gaps * self.count[filled]) / self.count.sum())


@dataclass(frozen=True)
class RiskCoverage:
    """Selective prediction: the error among the most confident part of the examples.

    Attributes:
        coverage: f64 [example], the part that is answered, growing to 1.
        risk: f64 [example], the error rate among those.
        threshold: f64 [example], the confidence down to which they reach.
    """

    coverage: np.ndarray
    risk: np.ndarray
    threshold: np.ndarray

    @property
    def area(self) -> float:
        """AURC, the mean risk over all coverages (Geifman & El-Yaniv 2017)."""
        return float(self.risk.mean())

    def accuracy_at(self, coverage: float) -> float:
        """Accuracy among the most confident part `coverage` of the examples, above 0, at most 1."""
        count = max(1, math.ceil(coverage * len(self.risk) - 1e-9))
        return float(1 - self.risk[count - 1])


def parts_of(values: np.ndarray) -> Iterator[slice]:
    """The rows of values [example, class], at least one part, of `_TOGETHER` numbers."""
    rows = max(1, _TOGETHER // max(1, values.shape[1]))
    return (slice(start, start + rows) for start in range(0, max(1, len(values)), rows))


def by_parts(
    function: Callable[..., np.ndarray], values: np.ndarray, *beside: np.ndarray
) -> np.ndarray:
    """What a function makes of each row, some rows at a time: of many classes, too, in little room.

    Args:
        function: of some rows of `values`, and the same of `beside`, to an array [row, ...].
        values: [example, class].
        beside: arrays [example, ...].
    """
    return np.concatenate(
        [function(values[rows], *(array[rows] for array in beside)) for rows in parts_of(values)]
    )


def nll(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean of `losses`, in nats."""
    return float(np.mean(losses(probabilities, labels)))


def losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Negative log-likelihood of each label, in nats; probabilities below 1e-15 count as it.

    Args:
        probabilities: f64 [example, class].
        labels: int [example].

    Returns:
        f64 [example].
    """
    own = probabilities[np.arange(len(labels)), labels]
    return -np.log(np.maximum(own, _LEAST))


def brier(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Brier score (1950): the squared distance to the label's one-hot vector, 0 to 2, averaged."""
    own = probabilities[np.arange(len(labels)), labels]
    # The squares of all, the label's exchanged for that of its distance to 1.
    others = np.einsum("ec,ec->e", probabilities, probabilities) - np.square(own)
    return float(np.mean(others + np.square(1 - own)))


def accuracy_interval(correct: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) of an accuracy."""
    if not count:
        return 0.0, 1.0
    interval: Any = stats.binomtest(correct, count).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def top_k(probabilities: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Part of the examples whose label is among the `k` most probable classes.

    Ties are decided as by a stable sort: among equals, the class of the lower index is taken first.
    """
    return float(np.mean(ranks(probabilities, labels) < k))


def ranks(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes are more probable than the label's, i64 [example]; ties as for `top_k`."""
    return by_parts(_ahead, probabilities, labels)


def _ahead(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    own = probabilities[np.arange(len(labels)), labels, None]
    lower = np.arange(probabilities.shape[1]) < labels[:, None]
    return np.sum((probabilities > own) | ((probabilities == own) & lower), 1)


def confusion(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Counts i64 [true class, predicted class]."""
    cells = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return cells.reshape(classes, classes)


def confused(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Rows i64 [pair, 3] of true class, predicted class and how often, for pairs that occur.

    The confusion matrix without its zeros: no larger than the examples, however many classes.
    """
    cells, count = np.unique(labels.astype(np.int64) * classes + predicted, return_counts=True)
    return np.stack([*np.divmod(cells, classes), count], 1)


def per_class(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Precision, recall and F1 f64 [class, 3]; NaN for 0 / 0."""
    hits = np.bincount(labels, predicted == labels, classes)
    answers, examples = (np.bincount(column, minlength=classes) for column in (predicted, labels))
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = hits / answers, hits / examples
        f1 = 2 * hits / (answers + examples)
    return np.stack([precision, recall, f1], 1)


def reliability(
    probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS, adaptive: bool = False
) -> Bins:
    """Reliability bins of the most probable class (Guo et al. 2017, section 2).

    Args:
        probabilities: f64 [example, class].
        labels: int [example].
        bins: how many.
        adaptive: whether bins hold equally many examples (Nguyen & O'Connor 2015) instead of being
            equally wide. Equally wide bins hold their upper edge, the first also 0. Of bins that
            part examples of one confidence, the accuracy is what is expected when their order is
            drawn, so that the order of the examples does not matter.
    """
    return bins_of(probabilities.max(1), probabilities.argmax(1) == labels, bins, adaptive)


def bins_of(
    confidence: np.ndarray, right: np.ndarray, bins: int = BINS, adaptive: bool = False
) -> Bins:
    """The same from the confidence f64 [example] and whether each is right, bool [example]."""
    if adaptive:
        right = _expected_in_ties(confidence, right)
        order = np.argsort(confidence, kind="stable")
        parts = np.array_split(order, bins)
        place = np.empty(len(order), np.int64)
        for index, part in enumerate(parts):
            place[part] = index
        ends = [float(confidence[part].max()) for part in parts if len(part)]
        edges = np.asarray([0.0, *ends, *[1.0] * (bins - len(ends))])
    else:
        edges = np.linspace(0, 1, bins + 1)
        place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(place, confidence, bins) / count
        accuracy = np.bincount(place, right, bins) / count
    return Bins(edges, mean, accuracy, count)


def error_by_chance(
    confidence: np.ndarray, bins: int = BINS, repeats: int = 200, level: float = 0.95, seed: int = 0
) -> float:
    """The ECE below which a calibrated network's stays with a probability of `level`.

    Answers of these confidences f64 [example] are drawn to be right just as often as they say
    (consistency resampling; Broecker & Smith 2007, section 3): few images alone make an ECE.
    """
    random = np.random.default_rng(seed)
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    said = np.bincount(place, confidence, bins)
    errors = [
        np.abs(np.bincount(place, random.random(len(place)) < confidence, bins) - said).sum()
        for _ in range(repeats)
    ]
    return float(np.quantile(errors, level) / len(confidence))


def _expected_in_ties(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The part of right answers among all of the same confidence, f64 [example]."""
    _, tie = np.unique(confidence, return_inverse=True)
    return (np.bincount(tie, right) / np.bincount(tie))[tie]


def risk_coverage(confidence: np.ndarray, right: np.ndarray) -> RiskCoverage:
    """The risk-coverage curve (El-Yaniv & Wiener 2010).

    Args:
        confidence: f64 [example], larger is surer; within ties, the risk is what is expected when
            their order is drawn, so that the order of the examples does not matter.
        right: bool [example].
    """
    order = np.argsort(-confidence, kind="stable")
    threshold, wrong = confidence[order], ~right[order]
    answered = np.arange(1, len(order) + 1)
    starts = np.flatnonzero(np.r_[True, threshold[1:] != threshold[:-1]][: len(order)])
    sizes = np.diff(np.r_[starts, len(order)])
    errors = np.add.reduceat(wrong.astype(np.int64), starts) if len(starts) else starts
    tie = np.repeat(np.arange(len(starts)), sizes)
    before = (np.cumsum(errors) - errors)[tie]
    # Multiplied first: where a tie ends, this is a whole number, without rounding.
    within = (answered - starts[tie]) * errors[tie] / sizes[tie]
    return RiskCoverage(answered / len(order), (before + within) / answered, threshold)


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """Area under the ROC curve: the chance that an outsider scores higher; ties count half.

    Args:
        inside: f64 [example], uncertainty of examples like the training data.
        outside: f64 [example], of others.
    """
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([inside, outside]))[len(inside) :]
    wins = ranks.sum() - len(outside) * (len(outside) + 1) / 2
    return float(wins / (len(inside) * len(outside)))


def fpr_at_95(inside: np.ndarray, outside: np.ndarray) -> float:
    """False positive rate at 95 % true positives (Hendrycks & Gimpel 2017).

    The part of the outsiders that is taken for insiders by the threshold at or below which at least
    95 % of the insiders' uncertainties lie.
    """
    threshold = np.sort(inside)[math.ceil(0.95 * len(inside)) - 1]
    return float(np.mean(outside <= threshold))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature above 0 by which to divide logits for the least NLL (Guo et al. 2017).

    Args:
        logits: f64 [example, class]; log-probabilities serve as well.
        labels: int [example].
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    def own(part: np.ndarray, labels: np.ndarray, temperature: float) -> np.ndarray:
        found = log_softmax(part / temperature, 1)[np.arange(len(labels)), labels]
        # As `losses` counts it: a temperature is for the least of just that.
        return np.maximum(found, math.log(_LEAST))

    def loss(log_temperature: float) -> float:
        likelihood = partial(own, temperature=math.exp(log_temperature))
        return float(-by_parts(likelihood, logits, labels).mean())

    low, high = map(math.log, TEMPERATURES)
    least: Any = minimize_scalar(
        loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6}
    )
    return math.exp(float(least.x))


def with_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities as they would be had their logits been divided by `temperature`."""
    tempered = np.empty_like(probabilities)
    for rows in parts_of(probabilities):
        logs = np.log(np.maximum(probabilities[rows], 1e-30)) / temperature
        scaled = np.exp(logs - logs.max(1, keepdims=True))
        tempered[rows] = scaled / scaled.sum(1, keepdims=True)
    return tempered


def bootstrap(
    values: np.ndarray, repeats: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval (Efron 1979) of the mean of values f64 [example]; of their differences
    for a paired comparison.
    """
    random = np.random.default_rng(seed)
    means = [values[random.integers(0, len(values), len(values))].mean() for _ in range(repeats)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
