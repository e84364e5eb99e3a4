"""What predictions of runs are worth: sampled, averaged, calibrated, scored."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp, softmax

from thinned import scores
from thinned.assembly import make_plan
from thinned.augment import resampled, rotated
from thinned.config import DataConfig
from thinned.data.source import open_source
from thinned.dropout.sites import rates_collection
from thinned.errors import RequestError
from thinned.logs import write_whole
from thinned.predict import predict_logits
from thinned.rng import key_for
from thinned.run import Run
from thinned.sampling import Predictions, averaged, entropy_of, sample_predictions
from thinned.types import Split

COVERAGES = (0.8, 0.9, 0.95)
SEVERITIES = (1, 3, 5)
_PILOT = 500


def predictions_of(
    runs: Sequence[Run], images: Any, samples: int = 0, calibrated: bool = False
) -> Predictions:
    """What one run, or several as an ensemble, predict.

    Args:
        runs: with the same classes and image shape.
        images: u8 [image, height, width, channel], or anything that reads so by indexing.
        samples: thinned networks of each run (Gal & Ghahramani 2016); 0 for one pass with dropout
            off (weight scaling).
        calibrated: whether to divide logits by each run's own temperature, see `calibrate`.

    Raises:
        RequestError: runs do not fit together, cannot be sampled, or were never calibrated.
    """
    first = runs[0].facts
    for run in runs[1:]:
        if (run.facts.classes, run.facts.image_shape) != (first.classes, first.image_shape):
            raise RequestError(
                f"{run.folder} and {runs[0].folder} differ in classes or image shape: "
                "they are no ensemble"
            )
    return averaged([_member(run, images, samples, calibrated) for run in runs])


def _member(run: Run, images: Any, samples: int, calibrated: bool) -> Predictions:
    if samples < 0:
        raise RequestError(f"--samples is {samples}: must be at least 0")
    state = run.state
    if samples == 0:
        logits = predict_logits(state.apply_fn, state.variables, images).astype(np.float64)
        mean = softmax(logits, 1)
        energy = -np.asarray(logsumexp(logits, 1))
        found = Predictions(mean, np.zeros(len(mean)), entropy_of(mean), energy, 1)
    else:
        variables = dict(state.variables)
        rates = make_plan(run.config, run.facts).full_rates
        if rates and not any(rates.values()):
            raise RequestError(f"{run.folder} was trained without dropout: it cannot be sampled")
        if rates:
            variables["rates"] = rates_collection(rates)
        key = key_for(run.config.seed, "sample")
        try:
            found = sample_predictions(state.apply_fn, variables, images, key, samples)
        except RequestError as error:
            raise RequestError(f"{run.folder}: {error}") from error
    if not calibrated:
        return found
    scaled = scores.with_temperature(found.probabilities, temperature_of(run))
    # What the samples disagree about stays what it was: only the mean is tempered.
    rest = entropy_of(scaled) - found.mutual_information
    return found._replace(probabilities=scaled, expected_entropy=rest)


def calibrate(run: Run) -> tuple[float, float, float]:
    """Fit a run's temperature on its validation images, and save it with the run.

    Returns:
        The temperature, and the NLL in nats before and after.

    Raises:
        RequestError: the run has no validation images.
    """
    held = validation_of(run)
    found = predictions_of([run], held.images).probabilities
    temperature = scores.fit_temperature(np.log(np.maximum(found, 1e-30)), held.labels)
    after = scores.with_temperature(found, temperature)
    before, then = scores.nll(found, held.labels), scores.nll(after, held.labels)
    saved = {"temperature": temperature, "images": len(held), "nll": [before, then]}
    write_whole(run.folder / "calibration.json", json.dumps(saved, indent=2) + "\n")
    return temperature, before, then


def temperature_of(run: Run) -> float:
    """The temperature that was fitted for a run.

    Raises:
        RequestError: none was, or its file is damaged.
    """
    path = run.folder / "calibration.json"
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["temperature"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"{run.folder} is not calibrated: run thinned calibrate {run.folder}"
        ) from error


def validation_of(run: Run) -> Split:
    """A run's validation images.

    Raises:
        RequestError: it has none.
    """
    held = run.dataset.validation
    if held is None or not len(held):
        raise RequestError(f"{run.folder} has no validation images: train with --data.validation N")
    return held


def threshold_for(runs: Sequence[Run], risk: float, samples: int, calibrated: bool) -> float:
    """The confidence above which, on validation images, at most `risk` of the answers are wrong.

    Raises:
        RequestError: there are no validation images, or `risk` is no probability.
    """
    if not 0 <= risk <= 1:
        raise RequestError(f"--risk is {risk}: must be a number from 0 to 1")
    held = validation_of(runs[0])
    found = predictions_of(runs, held.images, samples, calibrated).probabilities
    curve = scores.risk_coverage(found.max(1), found.argmax(1) == held.labels)
    fine = np.flatnonzero(curve.risk <= risk)
    # Nothing is sure enough where even the surest answers are wrong.
    return float(curve.threshold[fine[-1]]) if len(fine) else float("inf")


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
        return self.probabilities.argmax(1) == self.labels

    @cached_property
    def losses(self) -> np.ndarray:
        """f64 [example], negative log-likelihood of the label, in nats."""
        return scores.losses(self.probabilities, self.labels)

    @cached_property
    def confusion(self) -> np.ndarray:
        """Counts i64 [true class, predicted class]."""
        return scores.confusion(self.probabilities.argmax(1), self.labels, len(self.classes))

    @cached_property
    def selective(self) -> scores.RiskCoverage:
        """Risk and coverage by the probability of the predicted class."""
        return scores.risk_coverage(self.probabilities.max(1), self.right)

    @cached_property
    def scores(self) -> dict[str, float]:
        """Every score by name; losses in nats per example, the others as parts of 1."""
        p, y = self.probabilities, self.labels
        low, high = scores.accuracy_interval(int(self.right.sum()), len(y))
        found = {
            "accuracy": float(self.right.mean()),
            "accuracy_low": low,
            "accuracy_high": high,
            "nll": scores.nll(p, y),
            "brier": scores.brier(p, y),
            "ece": scores.reliability(p, y).error,
            "adaptive_ece": scores.reliability(p, y, adaptive=True).error,
            "aurc": self.selective.area,
        }
        if len(self.classes) > 5:
            found["top5"] = scores.top_k(p, y, 5)
        for coverage in COVERAGES:
            found[f"accuracy_at_{coverage:g}"] = self.selective.accuracy_at(coverage)
        return found

    def __str__(self) -> str:
        """The scores, then a line for each class."""
        return "\n".join([*self._lines(), "", *self._per_class()])

    def _lines(self) -> Iterator[str]:
        found, count = self.scores, len(self.labels)
        yield (
            f"accuracy      {found['accuracy']:.2%} ({found['accuracy_low']:.2%} to "
            f"{found['accuracy_high']:.2%}, Wilson 95 %), {int(self.right.sum()):,} of {count:,} "
            "images"
        )
        if "top5" in found:
            yield f"top 5         {found['top5']:.2%}"
        yield f"loss          {found['nll']:.4f} nats (NLL)"
        yield f"Brier         {found['brier']:.4f} (sum over classes, 0 to 2)"
        yield (
            f"ECE           {found['ece']:.4f} ({scores.BINS} bins of equal width), "
            f"{found['adaptive_ece']:.4f} (of equal count)"
        )
        parts = (f"{found[f'accuracy_at_{c:g}']:.2%} at {c:.0%}" for c in COVERAGES)
        yield f"selective     AURC {found['aurc']:.5f}; accuracy {', '.join(parts)} coverage"

    def _per_class(self) -> Iterator[str]:
        width = max(5, *(len(name) for name in self.classes))
        yield f"{'class'.ljust(width)}  images  precision  recall      F1"
        table = scores.per_class(self.confusion)
        for name, row, images in zip(self.classes, table, self.confusion.sum(1), strict=True):
            cells = "".join(f"{value:>10.2%}" if value == value else f"{'-':>10}" for value in row)
            yield f"{name.ljust(width)}  {int(images):>6,} {cells}"


def appraise(
    runs: Sequence[Run], test: Split, samples: int = 0, calibrated: bool = False
) -> Appraisal:
    """Score runs, as an ensemble where they are several, on labelled images."""
    found = predictions_of(runs, test.images, samples, calibrated)
    return Appraisal(found, test.labels, runs[0].facts.classes)


def uncertainties(predictions: Predictions) -> dict[str, np.ndarray]:
    """Measures of uncertainty f64 [image] by name, larger is less sure."""
    found = {
        "entropy": predictions.entropy,
        "1 - max probability": 1 - predictions.probabilities.max(1),
        "energy": predictions.energy,
    }
    if predictions.samples > 1:
        found["mutual information"] = predictions.mutual_information
    return found


def other_images(run: Run, data: str) -> Split:
    """The test images of other data, brought to a run's own size; their labels mean nothing here.

    Raises:
        RequestError: they cannot be read, or the run's images are not square.
    """
    height, width, _ = run.facts.image_shape
    if height != width:
        raise RequestError(f"other images cannot be brought to {height} x {width}: not square")
    return open_source(run.facts.form_of(DataConfig(path=data))).load().test


def outsiders(runs: Sequence[Run], data: str, inside: Predictions, samples: int) -> dict[str, Any]:
    """How well other images are told from the test images, by each measure of uncertainty.

    Args:
        runs: as for `predictions_of`.
        data: what the other images are, see `DataConfig`; brought to the runs' size.
        inside: predictions of the test images.
        samples: as those were made with.

    Returns:
        Measure -> {"auroc", "fpr95"}, and "images" -> how many there are.

    Raises:
        RequestError: the images cannot be read, or are the test images themselves.
    """
    own, other = runs[0].dataset.test, other_images(runs[0], data)
    if len(other) == len(own) and all(
        np.array_equal(theirs, ours)
        for (theirs, _), (ours, _) in zip(other.parts(), own.parts(), strict=True)
    ):
        raise RequestError(f"--ood {data}: these are the run's own test images")
    outside = predictions_of(runs, other.images, samples)
    within, without = uncertainties(inside), uncertainties(outside)
    found: dict[str, Any] = {
        name: {
            "auroc": scores.auroc(within[name], without[name]),
            "fpr95": scores.fpr_at_95(within[name], without[name]),
        }
        for name in within
    }
    return {"images": len(other), **found}


def _noise(image: np.ndarray, level: int, random: np.random.Generator) -> np.ndarray:
    return image + random.normal(0, 0.08 * level, image.shape)


def _blur(image: np.ndarray, level: int, random: np.random.Generator) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(image, (0.4 * level, 0.4 * level, 0))


def _shift(image: np.ndarray, level: int, random: np.random.Generator) -> np.ndarray:
    rows, columns = (
        np.arange(length) + random.choice([-1, 1]) * round(0.04 * level * length)
        for length in image.shape[:2]
    )
    return np.asarray(resampled(jnp.asarray(image), jnp.asarray(rows), jnp.asarray(columns)))


def _rotation(image: np.ndarray, level: int, random: np.random.Generator) -> np.ndarray:
    degrees = jnp.float32(random.choice([-1, 1]) * 9.0 * level)
    return np.asarray(rotated(jnp.asarray(image), degrees))


def _contrast(image: np.ndarray, level: int, random: np.random.Generator) -> np.ndarray:
    return image.mean() + (1 - 0.17 * level) * (image - image.mean())


def _occlusion(image: np.ndarray, level: int, random: np.random.Generator) -> np.ndarray:
    side = max(1, round(0.1 * level * min(image.shape[:2])))
    row, column = (random.integers(0, length - side + 1) for length in image.shape[:2])
    hidden = image.copy()
    hidden[row : row + side, column : column + side] = image.mean()
    return hidden


CORRUPTIONS: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "noise": _noise,
    "blur": _blur,
    "shift": _shift,
    "rotation": _rotation,
    "contrast": _contrast,
    "occlusion": _occlusion,
}
"""By name: a function of an image f32 [height, width, channel] in [0, 1], severity 1 to 5."""


def corrupted(split: Split, kind: str, severity: int, seed: int = 0) -> Split:
    """A split with every image damaged in one way, each by a generator of its own.

    Args:
        split: the images.
        kind: one of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: of the damage.
    """
    images = np.asarray(split.images[np.arange(len(split))])
    out = np.empty_like(images)
    for index, image in enumerate(images):
        random = np.random.default_rng([seed, severity, index])
        damaged = CORRUPTIONS[kind](image.astype(np.float32) / 255, severity, random)
        out[index] = np.rint(np.clip(damaged, 0, 1) * 255)
    return Split(out, split.labels)


def enough_samples(runs: Sequence[Run], images: Any, precision: float = 0.005) -> int:
    """How many samples narrow the mean probability to `precision`, at 95 %, averaged over images.

    Begins with 16 and doubles, on up to 500 images, until the half width of the interval of the
    predicted class's probability is small enough, or 1024 are reached.

    Args:
        runs: as for `predictions_of`.
        images: what is to be predicted.
        precision: half width, a part of 1, above 0.
    """
    pilot = images[np.arange(min(len(images), _PILOT))]
    samples = 16
    while samples < 1024:
        found = predictions_of(runs, pilot, samples)
        if 1.96 * float(found.deviation.mean()) / math.sqrt(samples) <= precision:
            break
        samples *= 2
    return samples


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


def worth(runs: Sequence[Run], counts: Sequence[int] = (1, 10, 30, 100)) -> list[Method]:
    """Is Monte Carlo dropout worth it? A plain pass against samples, a temperature, an ensemble.

    Args:
        runs: the first is the one in question; several make an ensemble, too.
        counts: of samples.

    Returns:
        The plain pass first. A temperature is included where the first run is calibrated.
    """
    test, one = runs[0].test_images(), runs[:1]
    ways: dict[str, Callable[[], Appraisal]] = {"plain pass": lambda: appraise(one, test)}
    if (runs[0].folder / "calibration.json").exists():
        ways["temperature"] = lambda: appraise(one, test, calibrated=True)
    for count in counts:
        ways[f"MC, {count} samples"] = lambda count=count: appraise(one, test, count)
    if len(runs) > 1:
        ways[f"ensemble of {len(runs)}"] = lambda: appraise(runs, test)
    found: list[Method] = []
    plain: Appraisal | None = None
    base = 1.0
    for name, way in ways.items():
        way()  # Compiled first: what is timed is the work.
        started = time.perf_counter()
        appraisal = way()
        taken = time.perf_counter() - started
        plain, base = (appraisal, taken) if plain is None else (plain, base)
        difference = appraisal.losses - plain.losses
        low, high = scores.bootstrap(difference)
        found.append(
            Method(
                name,
                taken / base,
                appraisal,
                (float(difference.mean()), low, high),
                _mcnemar(plain.right, appraisal.right),
            )
        )
    return found


def told_worth(methods: Sequence[Method]) -> str:
    """The comparison as a table for people."""
    lines = [
        f"{'method':<18}{'time':>6}{'accuracy':>10}{'p':>7}{'NLL':>9}"
        f"{'difference (95 %)':>30}{'ECE':>8}{'AURC':>9}"
    ]
    for method in methods:
        score = method.appraisal.scores
        mean, low, high = method.nll_difference
        lines.append(
            f"{method.name:<18}{method.time:>6.2f}{score['accuracy']:>10.2%}{method.p_value:>7.3f}"
            f"{score['nll']:>9.4f}{f'{mean:+.4f} ({low:+.4f} to {high:+.4f})':>30}"
            f"{score['ece']:>8.4f}{score['aurc']:>9.5f}"
        )
    return "\n".join(lines)


def _mcnemar(one: np.ndarray, two: np.ndarray) -> float:
    from scipy.stats import binomtest

    first, second = int(np.sum(one & ~two)), int(np.sum(~one & two))
    return float(binomtest(first, first + second).pvalue) if first + second else 1.0


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """Open several runs.

    Raises:
        RequestError: one of them is none, or none is given.
    """
    if not folders:
        raise RequestError("no run is given")
    return [Run.open(folder) for folder in folders]
