"""Sentences of the report: what the scores of a run mean, and what to do next. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from thinned.core.pages import percent, points
from thinned.dropout.audit.findings import Audit
from thinned.trust.appraisal import Appraisal

_FALLING = 0.99
"""A loss that is still lower than this part of the lowest before has not come to rest."""
_GAP = 0.01
_STEPS = 3


class Trained(NamedTuple):
    """What decides what to do next with a run.

    Attributes:
        folder: of the run, as a word of a command.
        epochs: it was trained for.
        held_out: whether there are validation images.
        audit: of its dropout, if it could be had.
        falls: see `falls`.
        learned_by_heart: see `learned_by_heart`.
        tempered: whether a temperature makes it better calibrated.
    """

    folder: str
    epochs: int
    held_out: bool
    audit: Audit | None
    falls: bool
    learned_by_heart: bool
    tempered: bool


def headline(found: Appraisal) -> tuple[str, str]:
    """The accuracy with its interval, in per cent: the figure, and what it is."""
    low, high = found.scores["accuracy_low"], found.scores["accuracy_high"]
    told = points([found.scores["accuracy"], low, high], (high - low) / 2)
    return (
        f"{told[0]} %",
        f"of {len(found.labels):,} test images right (95 % interval {told[1]} to {told[2]} %)",
    )


def calibration(found: Appraisal, warmer: Appraisal | None = None, temperature: float = 1) -> str:
    """Whether answers are right as often as they say.

    Args:
        found: as the network says them.
        warmer: the same answers, divided by a temperature that validation images chose.
        temperature: that one.
    """
    if _is_calibrated(found):
        return f"It is well calibrated: ECE {_ece(found)} points, no more than chance makes."
    confidence = found.probabilities.max(1)
    gap = float(confidence.mean() - found.right.mean())
    (size,) = points([abs(gap)], found.bins.error / 10)
    if abs(gap) < found.bins.error / 2:
        said = "It is too sure of some answers and not sure enough of others"
    elif gap > 0:
        said = f"It is too sure, by {size} points on average"
    else:
        said = f"It is right more often than it says, by {size} points on average"
    said = f"{said} (ECE {_ece(found)} points)"
    if warmer is None or not needs_temperature(found, warmer):
        return f"{said}."
    then = "well calibrated" if _is_calibrated(warmer) else "better"
    return f"{said}; {then} after temperature {temperature:.2f} (ECE {_ece(warmer)} points)."


def needs_temperature(found: Appraisal, warmer: Appraisal) -> bool:
    """Whether answers are not right as often as they say, and a temperature mends that."""
    return warmer.bins.error < found.bins.error and not _is_calibrated(found)


def _is_calibrated(found: Appraisal) -> bool:
    return found.bins.error <= found.ece_by_chance


def _ece(found: Appraisal) -> str:
    return points([found.bins.error], found.bins.error / 10)[0]


def mistakes(found: Appraisal) -> str:
    """What is most often taken for what."""
    pairs = confusions(found)
    if not len(pairs):
        return "No class is mistaken for another."
    true, predicted, count = pairs[0]
    images = int(np.sum(found.labels == true))
    return (
        f"{found.classes[true]} is mistaken for {found.classes[predicted]} in "
        f"{percent(count / images)} of its images ({count:,} of {images:,})."
    )


def confusions(found: Appraisal) -> np.ndarray:
    """Rows i64 [pair, 3] of true class, other class and how often, most frequent first."""
    wrong = found.confused[found.confused[:, 0] != found.confused[:, 1]]
    return wrong[np.argsort(-wrong[:, 2], kind="stable")]


def dropout(audit: Audit | None) -> str:
    """Whether dropout does what it should; `audit` is None where none could be had."""
    if audit is None:
        return "Its dropout was not audited."
    if not audit.sites and not _fails(audit):
        return "It has no dropout."
    right = sum(site.seen and not audit.failures(site.name) for site in audit.sites)
    count = f"{right} of {len(audit.sites)} {'site' if len(audit.sites) == 1 else 'sites'} right"
    if _fails(audit):
        return f'Dropout fails its audit, {count}: "{audit.failures()[0].question}" does not hold.'
    return f"Dropout works: {count}." if not audit.unseen else f"Dropout is not proved: {count}."


def _fails(audit: Audit | None) -> bool:
    """Whether dropout that there is does not do what it should; a network may do without."""
    failures = [] if audit is None else audit.failures()
    return any(check.site for check in failures) or bool(audit and audit.sites and failures)


def difference(name: str, base: str, mean: float, low: float, high: float) -> str:
    """Whether a run is better than another, by the interval of the difference of accuracies."""
    told = points([abs(mean), low, high], (high - low) / 20)
    if low <= 0 <= high:
        return (
            f"{name} and {base} cannot be told apart: the interval of the difference is "
            f"{told[1]} to {told[2]} points."
        )
    kind = "better" if mean > 0 else "worse"
    return f"{name} is {kind} than {base} by {told[0]} points (95 %: {told[1]} to {told[2]})."


def falls(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the loss still fell in the last epoch, of validation images if there are any."""
    splits = {record["split"] for record in records}
    split = "validation" if "validation" in splits else "train"
    losses = [record["loss"] for record in records if record["split"] == split]
    return len(losses) > 1 and losses[-1] < _FALLING * min(losses[:-1])


def learned_by_heart(records: Sequence[Mapping[str, Any]], found: Appraisal) -> bool:
    """Whether more of the training images are right than chance and a point leave to others."""
    train = [record["accuracy"] for record in records if record["split"] == "train"]
    return bool(train) and train[-1] > found.scores["accuracy_high"] + _GAP


def next_steps(run: Trained) -> list[tuple[str, str]]:
    """What to do next: up to three times why, and the command."""
    found: list[tuple[str, str]] = []
    if _fails(run.audit):
        found.append(("See what is wrong with its dropout.", f"thinned doctor {run.folder}"))
    if run.falls:
        more = f"thinned train --resume {run.folder} --epochs {2 * run.epochs}"
        found.append(("The loss was still falling: train on.", more))
    if run.learned_by_heart:
        rates = f"thinned study -c {run.folder}/config.json --vary dropout.rate=0,0.2,0.5 --seeds 3"
        found.append(("It knows its training images better than others: try other rates.", rates))
    if run.tempered:
        words = f"thinned calibrate {run.folder}"
        found.append(("Make it as sure as it is right.", words))
    if not run.held_out:
        found.append(("Hold out images next time: they choose thresholds and temperatures.", ""))
    found.append(("Ask it.", f"thinned predict {run.folder} IMAGES --samples 100"))
    return found[:_STEPS]


def classes(counts: Mapping[str, np.ndarray], names: Sequence[str]) -> str:
    """How many classes there are, and how uneven they are among the training images."""
    train = counts["train"]
    few, many = int(train.argmin()), int(train.argmax())
    if train[few] == train[many]:
        return f"{len(names):,} classes of {train[few]:,} training images each."
    return (
        f"{len(names):,} classes; {names[few]} has {train[few]:,} training images, "
        f"{names[many]} {train[many]:,}."
    )


def rate(value: float | None) -> str:
    """A rate for people; ``-`` for none."""
    return "-" if value is None or math.isnan(value) else f"{value:.3g}"
