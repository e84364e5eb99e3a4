"""What became of the runs of a study: kept beside each run, and gathered by arm."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from thinned.core.disk import read_regular, write_whole
from thinned.core.types import Dataset
from thinned.runs.predictions import appraise
from thinned.runs.run import Run
from thinned.studies.arms import Arm
from thinned.studies.comparison import Difference

SCORES = ("accuracy", "nll", "ece")
"""What is kept of the test and the validation images of every run, see `thinned.trust.scores`."""
_ASTRAY = 10


@dataclass(frozen=True)
class Outcome:
    """What became of one run.

    Attributes:
        status: ``finished``, ``diverged`` or ``failed``.
        reason: why it did not finish.
        scores: split -> score -> value, of `SCORES`.
        epoch_s: wall time of training for an epoch, the median of the run's; None where no epoch
            was long enough to tell.
        epochs: how many it was trained for, which `patience` may cut short; None where it did not
            finish.
    """

    status: str
    reason: str = ""
    scores: Mapping[str, Mapping[str, float]] = dataclasses.field(
        default_factory=dict[str, Mapping[str, float]]
    )
    epoch_s: float | None = None
    epochs: int | None = None


@dataclass(frozen=True)
class Row:
    """An arm of a study with all that is known of it.

    Attributes:
        arm: which.
        outcomes: seed -> outcome, of the runs that were tried.
        difference: from its baseline, by test accuracy; None for a baseline itself.
    """

    arm: Arm
    outcomes: Mapping[int, Outcome]
    difference: Difference | None

    def values(self, score: str, split: str = "test") -> list[float]:
        """A score of every finished run, by seed."""
        return [
            outcome.scores[split][score]
            for _, outcome in sorted(self.outcomes.items())
            if split in outcome.scores
        ]

    def mean(self, score: str, split: str = "test") -> float:
        """Its mean over seeds; NaN without any."""
        values = self.values(score, split)
        return statistics.fmean(values) if values else math.nan

    @property
    def epoch_s(self) -> float:
        """Wall time of an epoch, the median over seeds; NaN without any."""
        times = [o.epoch_s for o in self.outcomes.values() if o.epoch_s is not None]
        return statistics.median(times) if times else math.nan

    @property
    def epochs(self) -> float | None:
        """How many epochs a run took, the mean over seeds; None where none says."""
        counts = [o.epochs for o in self.outcomes.values() if o.epochs is not None]
        return statistics.fmean(counts) if counts else None


def accuracies_of(outcomes: Mapping[int, Outcome]) -> dict[int, float]:
    """Seed -> test accuracy; NaN of a run that diverged, as it would again.

    What failed otherwise may do better: its run is not over, and it is not among them.
    """
    return {
        seed: outcome.scores["test"]["accuracy"] if "test" in outcome.scores else math.nan
        for seed, outcome in outcomes.items()
        if outcome.status != "failed"
    }


def read_outcome(place: Path) -> Outcome | None:
    """The outcome of the run in that folder; None when it is not over."""
    try:
        text = read_regular(place / "outcome.json")
        return Outcome(**json.loads(text))
    except (OSError, ValueError, TypeError):
        return None


def write_outcome(place: Path, outcome: Outcome) -> None:
    """Keep the outcome of the run in that folder.

    Raises:
        ThinnedError: it cannot be written.
    """
    place.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dataclasses.asdict(outcome), indent=2) + "\n"
    write_whole(place / "outcome.json", text)


def scored(run: Run, dataset: Dataset) -> Outcome:
    """The outcome of a run that came to its end: its scores, unless the training went astray."""
    trained = [record for record in run.metrics if record["split"] == "train"]
    loss, guessing = trained[-1]["loss"], math.log(max(len(dataset.classes), 2))
    if loss > _ASTRAY * guessing:
        told = f"the training loss of the last epoch is {loss:.3g}, that of guessing {guessing:.3g}"
        return Outcome("diverged", f"{told}; try a smaller --learning-rate")
    by_split: dict[str, dict[str, float]] = {}
    for name, split in dataset.splits.items():
        if name != "train" and len(split):
            scores = appraise([run], split).scores
            by_split[name] = {score: scores[score] for score in SCORES}
    times = [s for record in trained if (s := record.get("epoch_s")) is not None]
    epoch_s = statistics.median(times) if times else None
    return Outcome("finished", "", by_split, epoch_s, trained[-1]["epoch"])
