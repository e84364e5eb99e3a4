"""What is promised of answers, fixed once by the validation images, as values for JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from thinned.core.errors import RequestError
from thinned.core.types import Split
from thinned.runs.calibration import fit
from thinned.runs.ood import Known, known_by
from thinned.runs.predictions import held_alike, predictions_of, tempered
from thinned.runs.run import Run
from thinned.trust.conformal import Conformal, SetKind, fewest_images
from thinned.trust.sampling import Predictions
from thinned.trust.selection import Selection, least_images, select


@dataclass(frozen=True)
class Asked:
    """What to promise.

    Attributes:
        samples: thinned networks of each run; 0 for none.
        coverage, sets: see `thinned.runs.predictions.sets_for`.
        risk, confidence: see `thinned.runs.predictions.selection_for`.
        ood_fpr: see `thinned.runs.predictions.known_below`.
    """

    samples: int = 30
    coverage: float = 0.95
    sets: SetKind = "lac"
    risk: float = 0.01
    confidence: float = 0.95
    ood_fpr: float = 0.05

    def __post_init__(self) -> None:
        """Refuse what cannot be promised."""
        if self.samples < 0:
            raise RequestError(f"--samples is {self.samples}: must be at least 0")
        for name in ("coverage", "risk", "confidence", "ood_fpr"):
            value = getattr(self, name)
            if not 0 < value < 1:
                flag = name.replace("_", "-")
                raise RequestError(f"--{flag} is {value:g}: must be a number above 0 and below 1")


class Way(NamedTuple):
    """One way to predict, and what is promised of it.

    Attributes:
        samples: thinned networks of each run; 0 for dropout off.
        temperature: that tempers probabilities; None for as they are.
        selection, sets, known: None where there are too few validation images for it.
        fpr: the part of known images that `known` marks, on average.
    """

    samples: int
    temperature: float | None = None
    selection: Selection | None = None
    sets: Conformal | None = None
    known: Known | None = None
    fpr: float | None = None

    def as_values(self) -> dict[str, Any]:
        """As plain values for JSON; infinite numbers are the words ``inf`` and ``-inf``."""
        sets = None if self.sets is None else asdict(self.sets)
        return {
            "samples": self.samples,
            "temperature": self.temperature,
            "selection": None if self.selection is None else _plain(self.selection._asdict()),
            "sets": None if sets is None else _plain(sets),
            "known": None if self.known is None else _plain(self.known._asdict()),
            "fpr": self.fpr,
        }

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Way:
        """The inverse of `as_values`.

        Raises:
            KeyError, TypeError, ValueError: the values are damaged.
        """
        selection, sets, known = (values[name] for name in ("selection", "sets", "known"))
        if sets is not None:
            thresholds: Any = np.asarray(sets["thresholds"], np.float64)
            sets = {**sets, "thresholds": thresholds}
        return cls(
            int(values["samples"]),
            values["temperature"],
            None if selection is None else Selection(**_numbers(selection)),
            None if sets is None else Conformal(**sets),
            None if known is None else Known(**_numbers(known)),
            values["fpr"],
        )


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: _finite(value) for name, value in values.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_finite(each) for each in value.tolist()]
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: float(value) if value in ("inf", "-inf") else value for name, value in values.items()
    }


def kept_of(
    way: Way,
    *,
    coverage: float | None = None,
    sets: SetKind | None = None,
    per_class: bool = False,
    risk: float | None = None,
    confidence: float | None = None,
    ood_fpr: float | None = None,
    ood_score: str = "energy",
) -> Way:
    """A way with those of its promises that are asked for, and no others.

    Args:
        way: of an artifact, whose validation images are not at hand.
        coverage, sets, per_class, risk, confidence, ood_fpr, ood_score: see
            `thinned.runs.files.predict_files`; None for none, or whatever it has.

    Raises:
        RequestError: another promise is asked for than it has.
    """
    made, selection = way.sets, way.selection
    if coverage is not None:
        refuse_other_coverage(way, coverage)
        if made is not None and (per_class or sets not in (None, made.kind)):
            raise RequestError(f"the artifact's sets are {made.kind} ones, of all classes together")
    if risk is not None:
        _refuse_other("--risk", risk, None if selection is None else selection.risk)
        level = None if selection is None else selection.level
        if confidence is not None:
            _refuse_other("--confidence", confidence, level)
    if ood_fpr is not None:
        _refuse_other("--ood-fpr", ood_fpr, None if way.known is None else way.fpr)
        if way.known is not None and ood_score != way.known.score:
            raise RequestError(
                f"--ood-score {ood_score}: the artifact knows {way.known.score} alone, since "
                "others need the run's images"
            )
    return way._replace(
        sets=None if coverage is None else made,
        selection=None if risk is None else selection,
        known=None if ood_fpr is None else way.known,
    )


def refuse_other_coverage(way: Way, coverage: float | None) -> None:
    """Refuse another coverage than a way's own; None is any.

    Raises:
        RequestError: it is another one.
    """
    if coverage is not None:
        _refuse_other("--coverage", coverage, None if way.sets is None else way.sets.coverage)


def _refuse_other(flag: str, asked: float, kept: float | None) -> None:
    if kept is None:
        raise RequestError(f"{flag}: the artifact promises nothing of the kind; export it again")
    if asked != kept:
        raise RequestError(
            f"{flag} is {asked:g}, and the artifact was exported for {kept:g}: give that, or "
            "export it again"
        )


def ways_of(runs: Sequence[Run], asked: Asked) -> list[Way]:
    """Every way to predict that is asked for: plain and sampled, as it is and tempered.

    Without validation images there is no temperature and nothing is promised.

    Raises:
        RequestError: the runs held out different images.
    """
    counts = sorted({0, asked.samples})
    if runs[0].dataset.validation is None:
        return [Way(samples) for samples in counts]
    held = held_alike(runs, "an artifact of several runs")
    return [way for samples in counts for way in _ways(runs, held, asked, samples)]


def _ways(runs: Sequence[Run], held: Split, asked: Asked, samples: int) -> Iterator[Way]:
    found = predictions_of(runs, held.images, samples)
    temperature = fit(found.probabilities, held.labels).temperature
    yield _promised(asked, Way(samples), found, held.labels)
    yield _promised(asked, Way(samples, temperature), tempered(found, temperature), held.labels)


def _promised(asked: Asked, way: Way, found: Predictions, labels: np.ndarray) -> Way:
    p, count = found.probabilities, len(labels)
    if count >= least_images(asked.risk, asked.confidence):
        right = p.argmax(1) == labels
        way = way._replace(selection=select(p.max(1), right, asked.risk, asked.confidence))
    if count >= fewest_images(1 - asked.coverage):
        way = way._replace(sets=Conformal.of(asked.sets, asked.coverage, p, labels))
    if count >= fewest_images(asked.ood_fpr):
        known = known_by(found.energy, "energy", asked.ood_fpr)
        way = way._replace(known=known, fpr=asked.ood_fpr)
    return way
