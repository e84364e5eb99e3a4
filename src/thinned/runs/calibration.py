"""Temperatures of runs: fitted for one way to predict, kept with what they were fitted for."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from thinned.core.disk import read_regular, write_whole
from thinned.core.errors import RequestError
from thinned.runs.run import Run
from thinned.trust import scores

_FILE = "calibration.json"


class Calibration(NamedTuple):
    """A fitted temperature; its text is a line for people.

    Attributes:
        temperature: above 0, divides the logarithms of the averaged probabilities.
        before, after: NLL of the validation images without and with it, in nats.
        images: how many there are.
        doubt: why it is not to be relied on, for people; empty where there is no reason.
    """

    temperature: float
    before: float
    after: float
    images: int
    doubt: str = ""

    def __str__(self) -> str:
        """The temperature, and what it changes."""
        return (
            f"temperature {self.temperature:.4f}: NLL {self.before:.4f} to {self.after:.4f} nats "
            f"on {self.images:,} validation images"
        )


def fit(probabilities: np.ndarray, labels: np.ndarray) -> Calibration:
    """The temperature for the least NLL of probabilities as they are used (Guo et al. 2017).

    A mean of samples or of networks is less sure than each of them: a temperature that is fitted
    on one of these, or before they are averaged, is none for the mean (Rahaman & Thiery 2021).

    Args:
        probabilities: f64 [image, class] of validation images, averaged over all there is.
        labels: int [image].
    """
    logs = np.maximum(probabilities, 1e-30)
    temperature = scores.fit_temperature(np.log(logs, out=logs), labels)
    del logs
    after = scores.with_temperature(probabilities, temperature)
    if np.all(probabilities.argmax(1) == labels):
        doubt = (
            f"all {len(labels):,} validation images are right: nothing tells how sure is too sure"
        )
    elif any(math.isclose(temperature, bound, rel_tol=1e-3) for bound in scores.TEMPERATURES):
        doubt = "this is as far as the search goes: probabilities say little about these images"
    else:
        doubt = ""
    before, then = scores.nll(probabilities, labels), scores.nll(after, labels)
    return Calibration(temperature, before, then, len(labels), doubt)


def keep(runs: Sequence[Run], samples: int, calibration: Calibration) -> None:
    """Save a temperature with each of the runs; others of the same weights stay.

    Raises:
        ThinnedError: it cannot be saved.
    """
    entry = {
        "samples": samples,
        "runs": _members(runs),
        "temperature": calibration.temperature,
        "images": calibration.images,
        "nll": [calibration.before, calibration.after],
    }
    for run in runs:
        others = [kept for kept in _kept(run) if run.weights in _weights(kept)]
        others = [kept for kept in others if not _is_of(kept, runs, samples)]
        text = json.dumps({"temperatures": [*others, entry]}, indent=2)
        write_whole(run.folder / _FILE, text + "\n")


def temperature_of(runs: Sequence[Run], samples: int = 0) -> float:
    """The temperature that was fitted for just this: these weights, averaged, and so many samples.

    Raises:
        RequestError: none was, its file is damaged, or a run has other weights by now.
    """
    kept = _kept(runs[0])
    for entry in kept:
        if _is_of(entry, runs, samples):
            return float(entry["temperature"])
    alike = [
        entry for entry in kept if (entry["samples"], len(entry["runs"])) == (samples, len(runs))
    ]
    names = " ".join(str(run.folder) for run in runs)
    words = f"thinned calibrate {names}" + (f" --samples {samples}" if samples else "")
    if alike and not any(runs[0].weights in _weights(entry) for entry in alike):
        steps = ", ".join(str(member["step"]) for member in alike[-1]["runs"])
        raise RequestError(
            f"{names}: the temperature is that of other weights (step {steps}): run {words}"
        )
    way = f" for {samples} {'sample' if samples == 1 else 'samples'}" if samples else ""
    together = " as an ensemble" if len(runs) > 1 else ""
    raise RequestError(f"{names} is not calibrated{way}{together}: run {words}")


def _members(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What says which networks are averaged, and by which masks they are sampled."""
    return [
        {"seed": run.config.seed, "step": int(run.state.step), "weights": run.weights}
        for run in runs
    ]


def _is_of(entry: dict[str, Any], runs: Sequence[Run], samples: int) -> bool:
    """Whether an entry is of these runs, in whatever order, and so many samples."""
    members = sorted((member["weights"], member["seed"]) for member in entry["runs"])
    wanted = sorted((run.weights, run.config.seed) for run in runs)
    return entry["samples"] == samples and members == wanted


def _weights(entry: dict[str, Any]) -> list[str]:
    return [member["weights"] for member in entry["runs"]]


def _kept(run: Run) -> list[dict[str, Any]]:
    """The entries of a run's file that are whole; none where there is none, or it is damaged."""
    try:
        entries = json.loads(read_regular(run.folder / _FILE))["temperatures"]
        return [entry for entry in entries if _is_whole(entry)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _is_whole(entry: Any) -> bool:
    members = {"seed", "step", "weights"}
    temperature = entry["temperature"]
    return (
        {"samples", "runs"} <= entry.keys()
        and all(members <= member.keys() for member in entry["runs"])
        and isinstance(temperature, float)
        and math.isfinite(temperature)
        and temperature > 0
    )
