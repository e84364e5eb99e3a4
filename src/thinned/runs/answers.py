"""What is said of images, row by row, whatever it is that predicts them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thinned.data.decode import Fit
from thinned.runs.ood import Known, known_below, strangeness
from thinned.runs.predictions import Witness, predictions_of, selection_for, sets_for
from thinned.runs.run import Run
from thinned.trust.conformal import Conformal, SetKind
from thinned.trust.sampling import Predictions
from thinned.trust.selection import Selection


@dataclass(frozen=True)
class Answers:
    """How images are answered: by what, and with which promises.

    Attributes:
        classes: names, in the order of the labels.
        image_shape: (height, width, channel).
        fit: how images of other shapes are brought to it, see `thinned.data.decode.decode`.
        predict: from images u8 [image, height, width, channel], at least one.
        samples: thinned networks of each run behind a prediction; 0 for dropout off.
        selection: marks answers as unsure.
        sets: of classes.
        known: marks images as none of the classes.
        strangeness: of images, from them and their predictions, by the score of `known`.
    """

    classes: tuple[str, ...]
    image_shape: tuple[int, ...]
    fit: Fit
    predict: Callable[[np.ndarray], Predictions]
    samples: int
    selection: Selection | None = None
    sets: Conformal | None = None
    known: Known | None = None
    strangeness: Callable[[np.ndarray, Predictions], np.ndarray] = lambda _, found: found.energy

    @property
    def promises(self) -> list[str]:
        """What is promised of answers, a line each for people."""
        given = (self.selection, self.sets, self.known)
        return [str(promise) for promise in given if promise is not None]

    def rows(self, images: np.ndarray, found: Predictions) -> list[dict[str, Any]]:
        """What is said of each image.

        Args:
            images: u8 [image, height, width, channel].
            found: what `predict` made of them.

        Returns:
            For each image ``class``, ``probability``; with samples ``entropy``,
            ``mutual_information`` (nats) and ``deviation``; with a selection ``unsure``; with
            sets ``set``, a list of classes, the most probable first; with `known` the score by its
            name and ``known``.
        """
        p = found.probabilities
        best = p.argmax(1)
        columns: dict[str, Sequence[Any]] = {
            "class": [self.classes[place] for place in best],
            "probability": p[np.arange(len(p)), best].tolist(),
        }
        if self.samples:
            columns["entropy"] = found.entropy.tolist()
            columns["mutual_information"] = found.mutual_information.tolist()
            columns["deviation"] = found.deviation.tolist()
        if self.selection is not None:
            columns["unsure"] = (p.max(1) <= self.selection.threshold).tolist()
        if self.sets is not None:
            columns["set"] = self._named(p, self.sets.sets(p))
        if self.known is not None:
            strange = self.strangeness(images, found)
            columns[self.known.score] = strange.tolist()
            columns["known"] = (strange <= self.known.threshold).tolist()
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _named(self, probabilities: np.ndarray, held: np.ndarray) -> list[list[str]]:
        order = np.argsort(-probabilities, 1, kind="stable")
        return [
            [self.classes[place] for place in places if row[place]]
            for places, row in zip(order, held, strict=True)
        ]


def answers_of(
    runs: Sequence[Run],
    *,
    samples: int = 0,
    calibrated: bool = False,
    risk: float | None = None,
    confidence: float = 0.95,
    coverage: float | None = None,
    sets: SetKind = "lac",
    per_class: bool = False,
    ood_fpr: float | None = None,
    ood_score: str = "energy",
) -> Answers:
    """How runs answer; arguments and errors as for `thinned.runs.files.predict_files`."""
    witness = Witness(runs, samples, calibrated)
    return Answers(
        runs[0].facts.classes,
        runs[0].facts.image_shape,
        runs[0].config.data.fit,
        lambda images: predictions_of(runs, images, samples, calibrated),
        samples,
        None if risk is None else selection_for(witness, risk, confidence),
        None if coverage is None else sets_for(witness, coverage, sets, per_class),
        None if ood_fpr is None else known_below(witness, ood_fpr, ood_score),
        lambda images, found: strangeness(runs, ood_score, images, found),
    )
