"""What runs are worth on labelled images: every score; and ways to predict, compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from thinned.core.errors import RequestError
from thinned.core.types import Split
from thinned.data.damage import CORRUPTIONS, SEVERITIES, corrupted
from thinned.runs.predictions import (
    appraise,
    common_test,
    enough_samples,
    fitted,
    other_images,
    predictions_of,
    scores,
    sets_for,
    tempered,
)
from thinned.runs.run import Run
from thinned.trust.appraisal import Appraisal, told_apart
from thinned.trust.conformal import SetKind, SetScores


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
        corrupt: whether to score damaged images, too.
        coverage, sets, per_class: whether, and how, to score sets of classes as well, see
            `thinned.runs.predictions.sets_for`.

    Returns:
        Everything as plain values for JSON: those of `thinned.trust.appraisal.Appraisal.as_values`,
        ``runs``, ``samples``, ``calibrated``, and ``sets``, ``ood`` and ``damage`` where asked for.

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
    made = None
    if coverage is not None:
        made = sets_for(runs, coverage, sets, per_class, samples, calibrated)
    found = appraise(runs, test, samples, calibrated)
    say(str(found))
    values: dict[str, Any] = {
        "runs": [str(run.folder) for run in runs],
        "samples": samples,
        "calibrated": calibrated,
        **found.as_values(),
    }
    if made is not None:
        scored = SetScores.of(made, found.probabilities, test.labels, found.classes)
        values["sets"] = scored.as_values()
        say(f"\n{scored}")
    if other is not None:
        outside = predictions_of(runs, other.images, samples, calibrated)
        told = told_apart(found.predictions, outside)
        values["ood"] = {"data": ood, "images": len(other), "measures": told}
        say(f"\n{len(other):,} other images ({ood}), told apart by")
        for name, score in told.items():
            say(f"{name:<22}AUROC {score['auroc']:.4f}, FPR95 {score['fpr95']:.4f}")
    if corrupt:
        values["damage"] = _damaged(
            test, say, lambda split: appraise(runs, split, samples, calibrated)
        )
    return values


def _damaged(
    test: Split, say: Callable[[str], None], appraised: Callable[[Split], Appraisal]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    say(f"\n{'damage':<11}severity  accuracy    NLL     ECE")
    for kind in CORRUPTIONS:
        for severity in SEVERITIES:
            score = appraised(corrupted(test, kind, severity)).scores
            rows.append({"kind": kind, "severity": severity, "scores": score})
            say(
                f"{kind:<11}{severity:>8}{score['accuracy']:>10.2%}{score['nll']:>8.4f}"
                f"{score['ece']:>8.4f}"
            )
    return rows


@dataclass(frozen=True)
class Method:
    """One way to predict, compared with a plain pass of the first run.

    Attributes:
        name: for people.
        time: wall time over that of a plain pass; 1 for itself.
        appraisal: its scores.
        nll_difference: mean difference of the loss per example, in nats, and its 95 % interval by
            the paired bootstrap; negative is better.
        p_value: of McNemar's exact test (1947) that both are right equally often.
    """

    name: str
    time: float
    appraisal: Appraisal
    nll_difference: tuple[float, float, float]
    p_value: float


@dataclass(frozen=True)
class Comparison:
    """Ways to predict, the plain pass first; its text is a table for people.

    Attributes:
        methods: the ways.
        notes: what is not among them, and why; a line each.
    """

    methods: tuple[Method, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The table, then the notes."""
        return "\n".join([*_table(self.methods), *self.notes])


def compare(
    runs: Sequence[Run], data: str | None = None, counts: Sequence[int] = (1, 10, 30, 100)
) -> Comparison:
    """Is Monte Carlo dropout worth it? A plain pass against samples, a temperature, an ensemble.

    Args:
        runs: the first is the one in question; several make an ensemble, too, beside as many
            samples of the first as take the same time.
        data: other data whose test images to use; the runs' own when absent.
        counts: of samples.

    Raises:
        RequestError: see `common_test` and `predictions_of` in `thinned.runs.predictions`.
    """
    test, one = common_test(runs, data), runs[:1]
    plain = _timed("plain pass", lambda: appraise(one, test))
    found, notes = [plain], list[str]()
    try:
        temperature = _temperature(runs[0])
    except RequestError as error:
        notes.append(f"no temperature: {error}")
    else:
        found.append(_timed("temperature", lambda: _tempered(one, test, temperature), plain))
    for count in counts:
        found.append(_sampled(one, test, count, plain))
    if len(runs) > 1:
        ensemble = _timed(f"ensemble of {len(runs)}", lambda: appraise(runs, test), plain)
        times = [method.time for method in found[-len(counts) :]]
        count = _affordable(counts, times, ensemble.time)
        found += [ensemble, _sampled(one, test, count, plain, ", as long")]
    return Comparison(
        tuple(replace(method, time=method.time / plain.time) for method in found), tuple(notes)
    )


def _temperature(run: Run) -> float:
    return fitted([run]).temperature


def _tempered(runs: Sequence[Run], test: Split, temperature: float) -> Appraisal:
    found = appraise(runs, test)
    return replace(found, predictions=tempered(found.predictions, temperature))


def _sampled(runs: Sequence[Run], test: Split, count: int, plain: Method, why: str = "") -> Method:
    name = f"MC, {count} {'sample' if count == 1 else 'samples'}{why}"
    return _timed(name, lambda: appraise(runs, test, count), plain)


def _affordable(counts: Sequence[int], times: Sequence[float], wanted: float) -> int:
    """Samples that take a wanted time, read off a straight line through what others took."""
    if len(counts) < 2:
        return max(1, round(counts[0] * wanted / times[0]))
    slope, start = np.polyfit(counts, times, 1)
    return int(np.clip((wanted - start) / slope, 1, 1000)) if slope > 0 else max(counts)


def _timed(name: str, way: Callable[[], Appraisal], plain: Method | None = None) -> Method:
    """A way compared with the plain pass; its time is in seconds."""
    way()  # Compiled first: what is timed is the work.
    started = time.perf_counter()
    appraisal = way()
    taken = time.perf_counter() - started
    base = appraisal if plain is None else plain.appraisal
    difference = appraisal.losses - base.losses
    low, high = scores.bootstrap(difference)
    interval = (float(difference.mean()), low, high)
    return Method(name, taken, appraisal, interval, _mcnemar(base.right, appraisal.right))


def _table(methods: Sequence[Method]) -> list[str]:
    width = max(len(method.name) for method in methods)
    lines = [
        f"{'method'.ljust(width)}{'time':>8}{'accuracy':>10}{'p':>7}{'NLL':>9}"
        f"{'difference (95 %)':>30}{'ECE':>8}{'AURC':>9}"
    ]
    for method in methods:
        score = method.appraisal.scores
        mean, low, high = method.nll_difference
        lines.append(
            f"{method.name.ljust(width)}{method.time:>8.2f}{score['accuracy']:>10.2%}"
            f"{method.p_value:>7.3f}{score['nll']:>9.4f}"
            f"{f'{mean:+.4f} ({low:+.4f} to {high:+.4f})':>30}"
            f"{score['ece']:>8.4f}{score['aurc']:>9.5f}"
        )
    return lines


def _mcnemar(one: np.ndarray, two: np.ndarray) -> float:
    from scipy.stats import binomtest

    first, second = int(np.sum(one & ~two)), int(np.sum(~one & two))
    return float(binomtest(first, first + second).pvalue) if first + second else 1.0
