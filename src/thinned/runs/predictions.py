"""Predictions of runs: sampled, averaged, calibrated, scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from thinned.core.config import DataConfig
from thinned.core.errors import RequestError
from thinned.core.rng import a_few, fixed_settings, key_for
from thinned.core.types import Split
from thinned.data.sources.folder import ImageFolder
from thinned.data.sources.load import load_to_look_at, open_source
from thinned.data.split import everything, image_digests
from thinned.dropout.sites import rates_collection
from thinned.models.apply import logits_by_batch
from thinned.runs.calibration import Calibration, fit, keep, temperature_of
from thinned.runs.environment import recorded_digest
from thinned.runs.features import read_by
from thinned.runs.run import Run, fitting_images, note_best
from thinned.trust import scores
from thinned.trust.appraisal import Appraisal
from thinned.trust.conformal import Conformal, SetKind, fewest_images
from thinned.trust.intervals import parts_for
from thinned.trust.sampling import (
    Predictions,
    averaged,
    entropy_of,
    joined,
    of_logits,
    sampled_in_parts,
    variance_within,
)
from thinned.trust.selection import Selection, least_images, select

_PILOT = 500
_MOST = 1024
_BLOCK = 1000
"""Images that are sampled together."""
_TOGETHER = 1 << 24
"""Probabilities that are held for all parts of the samples: in doubles, 128 MB."""


def predictions_of(
    runs: Sequence[Run],
    images: Any,
    samples: int = 0,
    calibrated: bool = False,
    draw: int = 0,
    vary: bool = False,
) -> Predictions:
    """What one run, or several as an ensemble, predict.

    Args:
        runs: with the same classes and image shape.
        images: u8 [image, height, width, channel], or anything that reads so by indexing.
        samples: thinned networks of each run (Gal & Ghahramani 2016); 0 for one pass with dropout
            off (weight scaling).
        calibrated: whether to temper the mean, as `calibrate` fitted it for just these runs and
            samples.
        draw: of the masks of all samples, which the run's seed and this number decide.
        vary: whether to tell how much depends on the masks, see `Predictions.others`: some more
            sums, and no more passes.

    Raises:
        RequestError: runs do not fit together, cannot be sampled, or were never calibrated.
    """
    if samples < 0:
        raise RequestError(f"--samples is {samples}: must be at least 0")
    temperature = temperature_of(runs, samples) if calibrated else None
    parts = parts_for(samples) if vary else 1

    def predicted(some: Any) -> Predictions:
        members = _in_parts(runs, some, samples, draw, parts)
        whole, *others = (averaged(same) for same in zip(*members, strict=True))
        if temperature is not None:
            whole, *others = (tempered(each, temperature) for each in (whole, *others))
        return whole._replace(others=tuple(each.told for each in others))

    if parts == 1:
        return predicted(images)
    # What is said without a part has as many numbers as what is said, and is forgotten block by
    # block.
    rows = max(1, _TOGETHER // (parts * len(runs[0].facts.classes) * _BLOCK)) * _BLOCK
    blocks = (
        np.arange(start, min(start + rows, len(images))) for start in range(0, len(images), rows)
    )
    return joined((predicted(images[block]) for block in blocks), len(images))


def members_of(runs: Sequence[Run], images: Any, samples: int = 0) -> list[Predictions]:
    """What each of several runs predicts; arguments and errors as for `predictions_of`."""
    return [whole for whole, *_ in _in_parts(runs, images, samples, 0, 1)]


def _in_parts(
    runs: Sequence[Run], images: Any, samples: int, draw: int, parts: int
) -> list[list[Predictions]]:
    """What each run predicts, and what it would without each part of the samples, if there are."""
    first = runs[0].facts
    images = fitting_images(images, first.image_shape)
    for run in runs[1:]:
        if (run.facts.classes, run.facts.image_shape) != (first.classes, first.image_shape):
            raise RequestError(
                f"{run.folder} and {runs[0].folder} differ in classes or image shape: "
                "they are no ensemble"
            )
    return [_member(run, images, samples, draw, parts) for run in runs]


@fixed_settings()
def _member(run: Run, images: Any, samples: int, draw: int, parts: int) -> list[Predictions]:
    state, images = read_by(run.built, run.state, images, run.keeps)
    if samples == 0:
        batches = logits_by_batch(state.apply_fn, state.variables, images)
        return [joined((of_logits(logits[None]) for logits in batches), len(images))]
    variables = dict(state.variables)
    rates = run.built.plan.full_rates
    if rates and not any(rates.values()):
        raise RequestError(f"{run.folder} was trained without dropout: it cannot be sampled")
    if rates:
        variables["rates"] = rates_collection(rates)
    # At 1 are the images to look at, see `thinned.core.rng.a_few`.
    key = key_for(run.config.seed, "sample", 2 * draw)
    try:
        return sampled_in_parts(state.apply_fn, variables, images, key, samples, parts)
    except RequestError as error:
        raise RequestError(f"{run.folder}: {error}") from error


def tempered(predictions: Predictions, temperature: float) -> Predictions:
    """Predictions whose mean is tempered; deviation and energy stay.

    A temperature says how much uncertainty there is, and the samples say which part of it is
    disagreement: that part of the entropy stays, so that the mutual information never exceeds it.
    In nats it cannot stay: it could then be more than all the uncertainty there is.
    """
    scaled = scores.with_temperature(predictions.probabilities, temperature)
    entropy, before = scores.by_parts(entropy_of, scaled), predictions.entropy
    disagreed = predictions.mutual_information
    part = np.divide(disagreed, before, out=np.zeros_like(before), where=before > 0)
    return predictions._replace(probabilities=scaled, expected_entropy=entropy * (1 - part))


def calibrate(runs: Sequence[Run], samples: int = 0) -> Calibration:
    """Fit a temperature as `fitted` does, and save it with the runs.

    Raises:
        RequestError: as `fitted`.
        ThinnedError: it cannot be saved.
    """
    calibration = fitted(runs, samples)
    keep(runs, samples, calibration)
    return calibration


def fitted(runs: Sequence[Run], samples: int = 0) -> Calibration:
    """The temperature of what runs predict, averaged, by their validation images.

    Args:
        runs, samples: as for `predictions_of`, for which the temperature is.

    Raises:
        RequestError: there are no validation images, the runs held out different ones, or see
            `predictions_of`.
    """
    held = held_alike(runs, "a temperature of several runs")
    return fit(predictions_of(runs, held.images, samples).probabilities, held.labels)


def validation_of(run: Run) -> Split:
    """A run's validation images.

    Raises:
        RequestError: it has none.
    """
    held = run.dataset.validation
    if held is None or not len(held):
        raise RequestError(f"{run.folder} has no validation images: train with --data.validation N")
    return held


def held_alike(runs: Sequence[Run], flag: str) -> Split:
    """The validation images of several runs.

    Args:
        runs: at least one.
        flag: what they are needed for, for the message.

    Raises:
        RequestError: there are none, or the runs held out different ones.
    """
    held = validation_of(runs[0])
    for run in runs[1:]:
        if not same_images(validation_of(run), held):
            raise RequestError(
                f"{flag}: {run.folder} held out other validation images than {runs[0].folder}, and "
                "may have learned from these; give runs of one --data.split-seed, or a single run"
            )
    return held


@dataclass(frozen=True)
class Witness:
    """The validation images of runs, by which all is promised, and what is predicted of them.

    That is predicted once, when it is first asked for, however much is promised by it.

    Attributes:
        runs: one, or several as an ensemble, that held out the same images.
        samples: see `predictions_of`.
        calibrated: see `predictions_of`.
    """

    runs: Sequence[Run]
    samples: int = 0
    calibrated: bool = False

    def images(self, flag: str) -> Split:
        """Those images; see `held_alike`."""
        return held_alike(self.runs, flag)

    @cached_property
    def predictions(self) -> Predictions:
        """What the runs predict of them; errors as for `predictions_of`."""
        images = validation_of(self.runs[0]).images
        return predictions_of(self.runs, images, self.samples, self.calibrated)


def selection_for(witness: Witness, risk: float, level: float) -> Selection:
    """From which confidence on at most a part `risk` of new answers is wrong.

    Args:
        witness: tells by what.
        risk: above 0 and below 1.
        level: with which probability that holds, over draws of the validation images.

    Raises:
        RequestError: there are no validation images, or too few for such a promise; or the runs
            held out different ones.
    """
    refuse_no_part("--risk", risk)
    refuse_no_part("--confidence", level)
    held = witness.images("--risk")
    needed = least_images(risk, level)
    if len(held) < needed:
        raise too_few(f"--risk {risk:g} --confidence {level:g}", needed, witness.runs, held)
    found = witness.predictions.probabilities
    return select(found.max(1), found.argmax(1) == held.labels, risk, level)


def sets_for(witness: Witness, coverage: float, kind: SetKind, per_class: bool) -> Conformal:
    """Sets of classes that hold the right one of a part `coverage` of new images.

    Args:
        witness: tells by what.
        coverage: above 0 and below 1.
        kind: see `thinned.trust.conformal.nonconformity`.
        per_class: whether of each class.

    Raises:
        RequestError: as `selection_for`.
    """
    refuse_no_part("--coverage", coverage)
    held = witness.images("--coverage")
    needed = fewest_images(1 - coverage)
    most = int(np.bincount(held.labels).max()) if per_class else len(held)
    if most < needed:
        each = " of a class" if per_class else ""
        raise too_few(f"--coverage {coverage:g}", needed, witness.runs, held, each)
    found = witness.predictions.probabilities
    return Conformal.of(kind, coverage, found, held.labels, per_class)


def refuse_no_part(flag: str, value: float) -> None:
    """Raises a `RequestError` where an option is not above 0 and below 1."""
    if not 0 < value < 1:
        raise RequestError(f"{flag} is {value:g}: must be a number above 0 and below 1")


def too_few(
    asked: str, needed: int, runs: Sequence[Run], held: Split, of_what: str = ""
) -> RequestError:
    """The error where a promise takes more validation images than there are."""
    return RequestError(
        f"{asked} takes at least {needed:,} validation images{of_what}, and {runs[0].folder} has "
        f"{len(held):,}: promise less, or train with more --data.validation"
    )


def appraise(
    runs: Sequence[Run],
    test: Split,
    samples: int = 0,
    calibrated: bool = False,
    vary: bool = True,
) -> Appraisal:
    """Score runs, as an ensemble where they are several, on labelled images."""
    predictions = predictions_of(runs, test.images, samples, calibrated, vary=vary)
    return Appraisal(predictions, test.labels, runs[0].facts.classes)


def same_images(one: Split, two: Split) -> bool:
    """Whether two splits hold the same labelled images in the same order."""
    return (
        len(one) == len(two)
        and np.array_equal(one.labels, two.labels)
        and all(
            np.array_equal(first, second)
            for (first, _), (second, _) in zip(one.parts(), two.parts(), strict=True)
        )
    )


def common_test(runs: Sequence[Run], data: str | None = None) -> Split:
    """The test images on which runs are judged as an ensemble.

    Args:
        runs: the members.
        data: other data whose test images to use; the runs' own when absent.

    Raises:
        RequestError: the images cannot be read, or the runs' own are not the same: one may have
            learned from another's.
    """
    test = runs[0].test_images(data)
    for run in runs[1:] if data is None else ():
        if run.facts.classes != runs[0].facts.classes or not same_images(run.test_images(), test):
            raise RequestError(
                f"{run.folder} and {runs[0].folder} have different test images: they are no "
                "ensemble on either; compare them with thinned report, or name the images with "
                "--data.path"
            )
    return test


def other_images(run: Run, data: str, test: Split) -> Split:
    """The test images of other data, brought to a run's own size; their labels mean nothing here.

    All are taken where no test images are named; a folder of images needs no folders of classes.

    Args:
        run: whose size they are brought to.
        data: what they are, see `DataConfig`.
        test: the images that they are to be told from.

    Raises:
        RequestError: they cannot be read, are all among the test images, or the run's images are
            not square.
    """
    height, width, _ = run.facts.image_shape
    if height != width:
        raise RequestError(f"other images cannot be brought to {height} x {width}: not square")
    source = open_source(run.facts.form_of(DataConfig(path=data)))
    if isinstance(source, ImageFolder):
        other = source.unlabelled()
    else:
        dataset = load_to_look_at(source)
        other = everything(dataset) if dataset.drawn else dataset.test
    if set(image_digests(other)) <= set(image_digests(test)):
        raise RequestError(f"--ood {data}: these are the test images themselves")
    return other


class Enough(NamedTuple):
    """How many samples `enough_samples` takes; its text is a line for people.

    Attributes:
        samples: thinned networks of each run.
        half_width: of the 95 % interval of the mean probability, averaged over images.
        narrow: whether that is as narrow as was asked for.
    """

    samples: int
    half_width: float
    narrow: bool

    def __str__(self) -> str:
        """The samples, and how narrow the interval is."""
        most = "" if self.narrow else " (the most)"
        return f"{self.samples} samples{most}, interval ±{self.half_width:.4f}"


def enough_samples(runs: Sequence[Run], images: Any, precision: float = 0.005) -> Enough:
    """How many samples narrow the mean probability to `precision`, at 95 %, averaged over images.

    Begins with 16 and doubles, on up to 500 images drawn from all, until the half width of the
    interval of the predicted class's probability is small enough, or 1024 are reached. Of several
    runs, only the spread within each counts: samples do not narrow what lies between them.

    Args:
        runs: as for `predictions_of`.
        images: what is to be predicted.
        precision: half width, a part of 1, above 0.
    """
    pilot = images[a_few(len(images), _PILOT)]
    samples = 16
    while True:
        members = members_of(runs, pilot, samples)
        variance = variance_within(members) / (samples * len(members))
        half = 1.96 * float(np.sqrt(variance).mean())
        if half <= precision or samples >= _MOST:
            return Enough(samples, half, half <= precision)
        samples *= 2


def strangers(runs: Sequence[Run]) -> list[str]:
    """A line for each run that learned from other data than the first, by what it recorded."""
    first = runs[0]
    return [
        f"note: {run.folder} learned from other data than {first.folder}"
        for run in runs[1:]
        # Digests alone do not tell: they depend on which images a seed held out.
        if run.config.data.path != first.config.data.path
        and recorded_digest(run.folder) != recorded_digest(first.folder)
    ]


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """Open several runs, and say of which not the last epoch is used.

    Raises:
        RequestError: one of them is none, or none is given.
    """
    if not folders:
        raise RequestError("no run is given")
    runs = [Run.open(folder) for folder in folders]
    for run in runs:
        note_best(run)
    return runs
