"""What runs are worth on labelled images: every score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from thinned.core.types import Split
from thinned.data.damage import corrupted, corruptions_for, lacks_frost
from thinned.runs.ood import measures_of
from thinned.runs.predictions import (
    Witness,
    appraise,
    common_test,
    enough_samples,
    other_images,
    predictions_of,
    sets_for,
)
from thinned.runs.run import Run
from thinned.trust.appraisal import Appraisal, other_measures, told_apart
from thinned.trust.conformal import SetKind, SetScores
from thinned.trust.intervals import crossed

_OF_KINDS = ("accuracy", "nll", "ece")


def evaluate_runs(
    runs: Sequence[Run],
    say: Callable[[str], None],
    *,
    data: str | None = None,
    samples: int | Literal["auto"] = 0,
    calibrated: bool = False,
    ood: str | None = None,
    corrupt: bool = False,
    coverage: float | None = None,
    sets: SetKind = "lac",
    per_class: bool = False,
) -> dict[str, Any]:
    """Score runs, as an ensemble where they are several.

    Args:
        runs: one, or several.
        say: called with each piece of the text for people as soon as it is known.
        data: other data whose test images to use, see `thinned.core.config.DataConfig`.
        samples, calibrated: see `thinned.runs.predictions.predictions_of`; ``auto`` takes as many
            samples as are needed, see `thinned.runs.predictions.enough_samples`.
        ood: other images, to be told from the test images.
        corrupt: whether to score damaged images, too, see `thinned.data.damage.corruptions_for`.
        coverage, sets, per_class: whether, and how, to score sets of classes as well, see
            `thinned.runs.predictions.sets_for`.

    Returns:
        Everything as plain values for JSON: those of `thinned.trust.appraisal.Appraisal.as_values`,
        ``runs``, ``samples``, ``calibrated``, and ``sets``, ``ood`` and ``damage`` where asked for:
        of that the ``set``, ``rows`` with every kind and severity, ``kinds`` with means over
        severities, and ``over_kinds`` with the mean of these and Student's 95 % interval.

    Raises:
        RequestError: see `common_test`, `predictions_of` and `other_images` in
            `thinned.runs.predictions`.
    """
    test = common_test(runs, data)
    other = None if ood is None else other_images(runs[0], ood, test)
    if samples == "auto":
        enough = enough_samples(runs, test.images)
        samples = enough.samples
        say(str(enough))
    how, made = Witness(runs, samples, calibrated), None
    if coverage is not None:
        made = sets_for(how, coverage, sets, per_class)
    appraisal = appraise(runs, test, samples, calibrated)
    say(str(appraisal))
    if samples and not appraisal.predictions.others:
        say("(intervals are over images: a single sample does not tell how masks vary)")
    values: dict[str, Any] = {
        "runs": [str(run.folder) for run in runs],
        "samples": samples,
        "calibrated": calibrated,
        **appraisal.as_values(),
    }
    if made is not None:
        scored = SetScores.of(made, appraisal.probabilities, test.labels, appraisal.classes)
        values["sets"] = scored.as_values()
        say(f"\n{scored}")
    if other is not None:
        say(f"\n{len(other):,} other images ({ood}), told apart by")
        told = _told_apart(how, test, other, appraisal, say)
        values["ood"] = {"data": ood, "images": len(other), "measures": told}
    if corrupt:
        # Seventy copies of the images, for which nobody asks again: they would fill the disk.
        passing = [run.passing() for run in runs]
        values["damage"] = _damaged(
            test, say, lambda split: appraise(passing, split, samples, calibrated, vary=False)
        )
    return values


def _told_apart(
    how: Witness, test: Split, other: Split, found: Appraisal, say: Callable[[str], None]
) -> dict[str, dict[str, float]]:
    """How well other images are told from test images, by each measure."""
    outside = predictions_of(how.runs, other.images, how.samples, how.calibrated, vary=True)
    told = told_apart(
        measures_of(how.runs, test.images, found.predictions),
        measures_of(how.runs, other.images, outside),
        other_measures(found.predictions, outside),
    )
    for name, score in told.items():
        shown = (
            f"{told_as} {score[key]:.4f} ({score[f'{key}_low']:.4f} to {score[f'{key}_high']:.4f})"
            for key, told_as in (("auroc", "AUROC"), ("fpr95", "FPR95"))
        )
        say(f"{name:<22}{', '.join(shown)}")
    return told


def _damaged(
    test: Split, say: Callable[[str], None], appraised: Callable[[Split], Appraisal]
) -> dict[str, Any]:
    chosen = corruptions_for(test.images.shape)
    rows: list[dict[str, Any]] = []
    kinds: dict[str, dict[str, float]] = {}
    say(f"\n{chosen.name:<20}accuracy     NLL     ECE")
    for name, kind in chosen.kinds.items():
        severities = range(1, len(kind.levels) + 1)
        found = [appraised(corrupted(test, kind, severity)).scores for severity in severities]
        rows += [
            {"kind": name, "severity": severity, "scores": scores}
            for severity, scores in zip(severities, found, strict=True)
        ]
        kinds[name] = {
            score: float(np.mean([each[score] for each in found])) for score in _OF_KINDS
        }
        say(_row(name, kinds[name]))
    over = {score: _over(np.array([each[score] for each in kinds.values()])) for score in _OF_KINDS}
    for title, end in (
        ("mean of the kinds", "mean"),
        ("  95 % from", "low"),
        ("         to", "high"),
    ):
        say(_row(title, {score: over[score][end] for score in _OF_KINDS}))
    if lacks_frost(chosen):
        say("without frost, whose photographs come by pip install --no-deps imagecorruptions")
    return {"set": chosen.name, "rows": rows, "kinds": kinds, "over_kinds": over}


def _row(title: str, scores: Mapping[str, float]) -> str:
    return f"{title:<20}{scores['accuracy']:>8.2%}{scores['nll']:>8.4f}{scores['ece']:>8.4f}"


def _over(values: np.ndarray) -> dict[str, float]:
    """The mean with Student's 95 % interval."""
    mean = float(values.mean())
    low, high = crossed(mean, 0.0, 0.0, values)
    return {"mean": mean, "low": low, "high": high}
