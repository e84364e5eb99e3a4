"""How strange images are to runs, and which are marked as none of the classes."""

from __future__ import annotations

import hashlib
import io
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from thinned.core.disk import whole
from thinned.core.errors import RequestError, ThinnedError
from thinned.core.rng import a_few, fixed_settings
from thinned.core.types import Split
from thinned.models.apply import features_by_batch, last_dense
from thinned.runs.features import read_by
from thinned.runs.predictions import Witness, refuse_no_part, too_few
from thinned.runs.run import Run, fitting_images
from thinned.trust.appraisal import uncertainties
from thinned.trust.conformal import fewest_images
from thinned.trust.ood import OOD_SCORES, Fitted, LastLayer, Seen, score_named, threshold_at
from thinned.trust.sampling import Predictions

_MOST = 20_000
"""Training images that scores are fitted to: their covariance takes no more."""


class Known(NamedTuple):
    """What counts as an image of the classes that a run knows; its text is a line for people.

    Attributes:
        score: name of the score, see `thinned.trust.ood.OOD_SCORES`.
        threshold: an image whose score is above it is probably none of the classes.
        images: validation images by which it was chosen.
        marked: how many of these are above.
    """

    score: str
    threshold: float
    images: int
    marked: int

    def __str__(self) -> str:
        """Above what images are none of the classes, and how many of the known ones are."""
        return (
            f"none of the classes above {self.score} {self.threshold:.4f}: "
            f"{self.marked:,} of the {self.images:,} validation images are above"
        )


def known_below(witness: Witness, fpr: float, score: str) -> Known:
    """Above which score an image is marked as none of the classes, by the validation images.

    Args:
        witness: tells by what.
        fpr: the part of new images of the classes that may be marked, on average.
        score: one of `thinned.trust.ood.OOD_SCORES`.

    Raises:
        RequestError: no such score; there are no validation images, or too few for so small a part;
            or the runs held out different ones.
    """
    refuse_no_part("--ood-fpr", fpr)
    score_named(score)
    held = witness.images("--ood-fpr")
    needed = fewest_images(fpr)
    if len(held) < needed:
        raise too_few(f"--ood-fpr {fpr:g}", needed, witness.runs, held)
    strange = strangeness(witness.runs, score, held.images, witness.predictions)
    return known_by(strange, score, fpr)


def known_by(strange: np.ndarray, score: str, fpr: float) -> Known:
    """As `known_below`, from the scores f64 [image] of validation images."""
    threshold = threshold_at(strange, fpr)
    return Known(score, threshold, len(strange), int(np.sum(strange > threshold)))


def strangeness(runs: Sequence[Run], score: str, images: Any, found: Predictions) -> np.ndarray:
    """A score of every image, f64 [image]; of several runs, the mean of each one's own.

    Args:
        runs: one, or several as an ensemble.
        score: one of `thinned.trust.ood.OOD_SCORES`; ``energy`` is that of the predictions, and so
            the mean over samples; all others look at one pass with dropout off.
        images: u8 [image, height, width, channel].
        found: what the runs predict of them.

    Raises:
        RequestError: no such score; the network's features cannot be seen; the training images
            cannot be read, and nothing was saved.
    """
    if score == "energy":
        return found.energy
    return _of_features(runs, score, _seen_by_each(runs, images))


def _seen_by_each(runs: Sequence[Run], images: Any) -> list[Seen]:
    images = fitting_images(images, runs[0].facts.image_shape)
    return [seen_by(run, images) for run in runs]


def _of_features(runs: Sequence[Run], score: str, seen: Sequence[Seen]) -> np.ndarray:
    scored = score_named(score).score
    return np.mean(
        [scored(fitted_to(run, score), own) for run, own in zip(runs, seen, strict=True)], 0
    )


def measures_of(runs: Sequence[Run], images: Any, found: Predictions) -> dict[str, np.ndarray]:
    """All that may tell strange images, f64 [image] by name: uncertainties, and every score.

    Where a network's features cannot be seen, those that need none.
    """
    measures = uncertainties(found.told)
    try:
        # One pass serves all scores.
        seen = _seen_by_each(runs, images)
        for score in OOD_SCORES:
            if score not in measures:
                measures[score] = _of_features(runs, score, seen)
    except RequestError as error:
        print(f"note: {error}", file=sys.stderr)
    return measures


@fixed_settings()
def fitted_to(run: Run, score: str) -> Fitted:
    """What a score keeps of a run's training images, saved with the run when it is first asked for.

    Fitted to all of them, but to 20,000 of more, drawn from all.

    Raises:
        RequestError: the network's features cannot be seen; the training images cannot be read.
    """
    path = run.folder / f"ood-{score}.npz"
    kept = _read(path, run.weights)
    if kept is not None:
        return kept
    some = some_training_images(run)
    print(f"{score} looks at {len(some):,} training images once", file=sys.stderr)
    seen = seen_by(run, some.images)
    fitted = score_named(score).fit(seen, some.labels, last_layer_of(run, some.images))
    fitted = {name: np.asarray(part) for name, part in fitted.items()}
    try:
        with whole(path) as draft, draft.open("wb") as file:
            held: dict[str, Any] = {**fitted, "weights": run.weights, "digest": _digest(fitted)}
            np.savez(file, **held)
    except (OSError, ThinnedError) as error:
        print(f"note: not kept for the next time: {error}", file=sys.stderr)
    return fitted


def some_training_images(run: Run) -> Split:
    """A run's training images, or 20,000 drawn from more of them.

    Raises:
        RequestError: they cannot be read any more.
    """
    train = run.dataset.train
    rows = a_few(len(train), _MOST)
    return Split(train.images[rows], train.labels[rows])


def last_layer_of(run: Run, images: Any) -> LastLayer:
    """The layer that makes a run's logits; images as for `seen_by`.

    Raises:
        RequestError: as `thinned.models.apply.last_dense`.
    """
    state, images = read_by(run.built, run.state, images[:1], run.keeps)
    return LastLayer(*last_dense(state.apply_fn, state.variables, images))


@fixed_settings()
def seen_by(run: Run, images: Any) -> Seen:
    """What a run's network makes of images u8 [image, height, width, channel], dropout off.

    Raises:
        RequestError: as `thinned.models.apply.last_dense`.
    """
    state, images = read_by(run.built, run.state, images, run.keeps)
    parts = list(features_by_batch(state.apply_fn, state.variables, images))
    return Seen(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def _read(path: Path, weights: str) -> Fitted | None:
    """What was saved for these weights; None where there is nothing, or it is damaged."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
        told, digest = str(held.pop("weights")), str(held.pop("digest"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return held if told == weights and digest == _digest(held) else None


def _digest(fitted: Fitted) -> str:
    content = hashlib.sha256()
    for name, part in sorted(fitted.items()):
        content.update(f"{name} {part.dtype} {part.shape} ".encode())
        content.update(np.ascontiguousarray(part).data)
    return content.hexdigest()
