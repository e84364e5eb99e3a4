"""Is Monte Carlo dropout worth it? Ways to predict, compared at what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from thinned.core.errors import RequestError
from thinned.core.types import Split
from thinned.runs.calibration import fit
from thinned.runs.ood import last_layer_of, seen_by, some_training_images
from thinned.runs.predictions import common_test, held_alike, predictions_of, tempered
from thinned.runs.run import Run
from thinned.trust.appraisal import Appraisal
from thinned.trust.intervals import crossed_interval
from thinned.trust.laplace import Laplace
from thinned.trust.sampling import Predictions, entropy_of, of_logits

_DRAWS = 5
_SHOWN = ("accuracy", "nll", "ece", "aurc")


@dataclass(frozen=True)
class Method:
    """One way to predict, compared with a plain pass of the first run.

    Attributes:
        name: for people.
        time: wall time over that of a plain pass; 1 for itself.
        temperature: by which it is tempered, the mean over draws; 1 where it is not.
        scores: accuracy, NLL, ECE and AURC, means over draws of masks.
        nll_difference: mean difference of the loss per image, in nats, and its 95 % interval over
            draws of masks and of images; negative is better.
        p_value: of McNemar's exact test (1947) that the first draw and the plain pass are right
            equally often.
    """

    name: str
    time: float
    temperature: float
    scores: dict[str, float]
    nll_difference: tuple[float, float, float]
    p_value: float


@dataclass(frozen=True)
class Comparison:
    """Ways to predict, the plain pass first; its text is tables for people.

    Attributes:
        methods: the ways as they are.
        tempered: the same, each with a temperature of its own, fitted on validation images, and
            compared with the tempered plain pass; those that can have one.
        draws: of masks, for each way that samples.
        notes: what else there is to say; a line each.
    """

    methods: tuple[Method, ...]
    tempered: tuple[Method, ...]
    draws: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The tables, then what they are of."""
        lines = list(_table(self.methods))
        if self.tempered:
            lines += ["", "each with a temperature of its own", *_table(self.tempered)]
        explained = (
            f"scores and differences are means over {self.draws} draws of masks, intervals over "
            "draws and images; p is of the first draw (McNemar)"
        )
        return "\n".join([*lines, "", explained, *self.notes])


class _Way(NamedTuple):
    """Runs that are averaged, so many samples of each, and what people call it.

    With a posterior of the last layer, one run's mean over that.
    """

    name: str
    runs: Sequence[Run]
    samples: int
    posterior: Laplace | None = None


class _Seen(NamedTuple):
    """What a way made of the test images: f64 and bool [draw, image], and scores of each draw."""

    losses: np.ndarray
    right: np.ndarray
    scores: list[dict[str, float]]
    seconds: float
    temperature: float = 1.0


def compare(
    runs: Sequence[Run],
    data: str | None = None,
    counts: Sequence[int] = (1, 10, 30, 100),
    draws: int = _DRAWS,
) -> Comparison:
    """A plain pass against samples and an ensemble, as they are and each with its temperature.

    Args:
        runs: the first is the one in question; several make an ensemble, too. Beside it, and
            beside Laplace's approximation, stand as many samples of the first as take as long.
        data: other data whose test images to use; the runs' own when absent.
        counts: of samples.
        draws: how often the masks of each of these are drawn, at least 2.

    Raises:
        RequestError: see `common_test` and `predictions_of` in `thinned.runs.predictions`.
    """
    test, one, notes = common_test(runs, data), runs[:1], list[str]()
    ways: dict[str, tuple[_Seen, _Seen | None]] = {}

    def look(way: _Way) -> float:
        ways[way.name] = _both(way, test, draws, notes)
        return ways[way.name][0].seconds

    look(_Way("plain pass", one, 0))
    times = [look(_sampled(one, count)) for count in counts]
    others: dict[str, _Way] = {}
    try:
        others["Laplace"] = _Way("Laplace, last layer", one, 0, _posterior(runs[0]))
    except RequestError as error:
        notes.append(f"no Laplace: {error}")
    if len(runs) > 1:
        others["the ensemble"] = _Way(f"ensemble of {len(runs)}", runs, 0)
    for name, way in others.items():
        wanted = look(way)
        guess = _affordable(counts, times, wanted)
        # Often far beyond the counts that were timed: one more time says how far the line holds.
        _, taken = _timed(lambda guess=guess: _predicted(_sampled(one, guess), test, 0))
        count = _affordable((*counts, guess), (*times, taken), wanted)
        look(_sampled(one, count, f", as long as {name}"))
    plain, even = ways["plain pass"]
    as_they_are = tuple(_compared(name, seen, plain, plain) for name, (seen, _) in ways.items())
    own = tuple(
        _compared(name, seen, even, plain)
        for name, (_, seen) in ways.items()
        if seen is not None and even is not None
    )
    if even is not None:
        mean, low, high = crossed_interval(even.losses - plain.losses)
        notes.append(f"a temperature alone: NLL {mean:+.4f} ({low:+.4f} to {high:+.4f})")
    return Comparison(as_they_are, own, draws, tuple(dict.fromkeys(notes)))


def _both(way: _Way, test: Split, draws: int, notes: list[str]) -> tuple[_Seen, _Seen | None]:
    """A way as it is, and with its temperature; None, and a note, where it can have none."""
    try:
        held = held_alike(way.runs, "no temperature of an ensemble")
    except RequestError as error:
        notes.append(f"no temperature: {error}" if len(way.runs) == 1 else str(error))
        held = None
    classes, times, cool_times = way.runs[0].facts.classes, list[float](), list[float]()
    plain, cool, temperatures = list[Appraisal](), list[Appraisal](), list[float]()
    for draw in range(draws):
        predicted, taken = _timed(lambda draw=draw: _predicted(way, test, draw))
        times.append(taken)
        if draw and not way.samples:
            continue  # Nothing is drawn: only the time is wanted.
        plain.append(Appraisal(predicted, test.labels, classes))
        if held is not None:
            temperature = fit(_predicted(way, held, draw).probabilities, held.labels).temperature
            after, taken = _timed(lambda predicted=predicted, t=temperature: tempered(predicted, t))
            temperatures.append(temperature)
            cool_times.append(taken)
            cool.append(Appraisal(after, test.labels, classes))
    # The first holds the compilation.
    seconds = float(np.median(times[1:]))
    seen = _seen(plain, seconds, [1.0])
    more = float(np.median(cool_times)) if cool_times else 0.0
    return seen, None if held is None else _seen(cool, seconds + more, temperatures)


def _seen(appraisals: Sequence[Appraisal], seconds: float, temperatures: Sequence[float]) -> _Seen:
    losses, right = (
        [getattr(appraisal, name) for appraisal in appraisals] for name in ("losses", "right")
    )
    shown = [{name: appraisal.scores[name] for name in _SHOWN} for appraisal in appraisals]
    return _Seen(np.stack(losses), np.stack(right), shown, seconds, float(np.mean(temperatures)))


def _predicted(way: _Way, split: Split, draw: int) -> Predictions:
    if way.posterior is not None:
        seen = seen_by(way.runs[0], split.images)
        p = way.posterior.probabilities(seen)
        plain = of_logits(seen.logits[None])
        return plain._replace(probabilities=p, expected_entropy=entropy_of(p))
    return predictions_of(way.runs, split.images, way.samples, draw=draw)


def _posterior(run: Run) -> Laplace:
    some = some_training_images(run)
    last = last_layer_of(run, some.images)
    count = len(run.dataset.train)
    return Laplace.of(seen_by(run, some.images), some.labels, last, count)


def _timed(work: Callable[[], Predictions]) -> tuple[Predictions, float]:
    started = time.perf_counter()
    return work(), time.perf_counter() - started


def _compared(name: str, seen: _Seen, base: _Seen, plain: _Seen) -> Method:
    """A way against the plain pass of its kind; its time against that of the untempered one."""
    return Method(
        name,
        seen.seconds / plain.seconds,
        seen.temperature,
        {score: float(np.mean([shown[score] for shown in seen.scores])) for score in _SHOWN},
        crossed_interval(seen.losses - base.losses),
        _mcnemar(base.right[0], seen.right[0]),
    )


def _sampled(runs: Sequence[Run], count: int, why: str = "") -> _Way:
    return _Way(f"MC, {count} {'sample' if count == 1 else 'samples'}{why}", runs, count)


def _affordable(counts: Sequence[int], times: Sequence[float], wanted: float) -> int:
    """Samples that take a wanted time, read off a straight line through what others took."""
    if len({*counts}) < 2:
        return max(1, round(counts[-1] * wanted / times[-1]))
    slope, start = np.polyfit(counts, times, 1)
    return int(np.clip((wanted - start) / slope, 1, 1000)) if slope > 0 else max(counts)


def _table(methods: Sequence[Method]) -> Iterator[str]:
    width = max(len(method.name) for method in methods)
    yield (
        f"{'method'.ljust(width)}{'time':>8}{'T':>7}{'accuracy':>10}{'p':>7}{'NLL':>9}"
        f"{'difference (95 %)':>30}{'ECE':>8}{'AURC':>9}"
    )
    for method in methods:
        accuracy, nll, ece, aurc = (method.scores[name] for name in _SHOWN)
        mean, low, high = method.nll_difference
        yield (
            f"{method.name.ljust(width)}{method.time:>8.2f}{method.temperature:>7.3f}"
            f"{accuracy:>10.2%}{method.p_value:>7.3f}{nll:>9.4f}"
            f"{f'{mean:+.4f} ({low:+.4f} to {high:+.4f})':>30}{ece:>8.4f}{aurc:>9.5f}"
        )


def _mcnemar(one: np.ndarray, two: np.ndarray) -> float:
    from scipy.stats import binomtest

    first, second = int(np.sum(one & ~two)), int(np.sum(~one & two))
    return float(binomtest(first, first + second).pvalue) if first + second else 1.0
