"""The runs of a study, one after another: each once, whatever becomes of the others."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from thinned.core.config import Config
from thinned.core.errors import ThinnedError
from thinned.core.types import Dataset
from thinned.data.sources.load import load_data
from thinned.engine.logs import told_time, warn
from thinned.engine.loop import Diverged, Stopped
from thinned.runs.environment import fix_threads, thread_changes
from thinned.runs.run import Run
from thinned.runs.train import Busy, train
from thinned.studies.arms import Arm
from thinned.studies.outcomes import Outcome, read_outcome, scored, write_outcome

_EVERY_S = 60.0
_LONGEST = 300
# A second apart.
_TRIES = 30

Job = tuple[int, Arm]
"""A seed and an arm."""


def place_of(folder: Path, arm: Arm, seed: int) -> Path:
    """Where a study keeps a run."""
    return folder / arm.folder / f"seed-{seed}"


def left_of(folder: Path, jobs: Sequence[Job]) -> list[Job]:
    """Those that have still to be run."""
    # What diverged would diverge again, bit by bit; what failed otherwise may do better now.
    return [
        (seed, arm)
        for seed, arm in jobs
        if (outcome := read_outcome(place_of(folder, arm, seed))) is None
        or outcome.status == "failed"
    ]


def run_jobs(
    base: Config,
    folder: Path,
    jobs: Sequence[Job],
    report: Callable[[int, str, Outcome], None],
) -> None:
    """Run jobs in this process, and keep the outcome of each beside it.

    Args:
        base: the config that the arms vary.
        folder: of the study.
        jobs: what is run, in this order.
        report: gets seed, arm and outcome of every run.

    Raises:
        Stopped: by Ctrl-C or SIGTERM; the run in progress is saved.
    """
    _keep_threads(folder, jobs)
    data = _Data()
    for seed, arm in jobs:
        place = place_of(folder, arm, seed)
        outcome = _outcome_of(partial(_run_one, arm, base, seed, place, data))
        write_outcome(place, outcome)
        report(seed, arm.name, outcome)


def _keep_threads(folder: Path, jobs: Sequence[Job]) -> None:
    """Compute with the threads of the runs that go on, as far as one process can, or say so."""
    places = (place_of(folder, arm, seed) for seed, arm in jobs)
    begun = [place for place in places if (place / "config.json").exists()]
    # JAX starts once: the first of them decides for the others, and for the runs that are new.
    fix_threads(begun[0] / "environment.json" if begun else None)
    for place in begun:
        for line in thread_changes(place / "environment.json"):
            warn(f"{place}: {line}")


def _run_one(arm: Arm, base: Config, seed: int, place: Path, data: _Data) -> Outcome:
    config = arm.config(base, seed)
    dataset = data.of(config)
    tries = 1
    while True:
        try:
            run = train(config, name=place.name, runs=place.parent, dataset=dataset)
            break
        except Busy:
            # A process of a study that was killed saves, and ends soon.
            if tries == _TRIES:
                raise
            tries += 1
            time.sleep(1)
    return scored(run, dataset)


def _outcome_of(work: Callable[[], Outcome]) -> Outcome:
    try:
        return work()
    except Stopped:
        raise
    except Diverged as error:
        return Outcome("diverged", str(error))
    except Exception as error:
        return _failure(error)


def _failure(error: Exception) -> Outcome:
    """Of one run; whatever it is, a network of the user's own must not end the whole study."""
    if isinstance(error, ThinnedError):
        return Outcome("failed", str(error))
    line = next(iter(str(error).splitlines()), "")[:_LONGEST]
    return Outcome("failed", f"{type(error).__name__}: {line}")


class _Data:
    """The data loaded last, since most runs in a row need the same."""

    def __init__(self) -> None:
        self._held: tuple[Any, Dataset] | None = None

    def holds(self, config: Config) -> bool:
        return self._held is not None and self._held[0] == (config.data, config.split_seed)

    def of(self, config: Config) -> Dataset:
        if self._held is None or not self.holds(config):
            self._held = None
            self._held = (config.data, config.split_seed), load_data(config)
        return self._held[1]


@contextmanager
def watched(folder: Path, jobs: Sequence[Job], tell: Callable[[str], None]) -> Generator[None]:
    """Tell every minute how far the runs in progress are, which can take an hour each."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_EVERY_S):
            for line in under_way(folder, jobs):
                tell(line)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def under_way(folder: Path, jobs: Sequence[Job]) -> list[str]:
    """A line for every run that was begun and is not over: how many of its epochs are done."""
    lines: list[str] = []
    for seed, arm in jobs:
        place = place_of(folder, arm, seed)
        if not (place / "config.json").exists() or read_outcome(place) is not None:
            continue
        try:
            run = Run.open(place)
            done, left_s = _position(run)
        except ThinnedError:
            # Not whole yet.
            continue
        rest = f", {told_time(left_s)} left of this run" if left_s else ""
        lines.append(f"{arm.name}, seed {seed}: epoch {done}/{run.config.epochs} done{rest}")
    return lines


def _position(run: Run) -> tuple[int, float]:
    """How many epochs of a run are done, and how many seconds the others take; 0 if unknown."""
    trained = [record for record in run.metrics if record["split"] == "train"]
    done = max((record["epoch"] for record in trained), default=0)
    times = [s for record in trained if (s := record.get("epoch_s")) is not None]
    return done, (run.config.epochs - done) * statistics.median(times) if times else 0.0


class Countdown:
    """Tells of every run, how many there are yet, and about how long they take.

    Attributes:
        past: runs that were over before.
    """

    def __init__(self, total: int, tell: Callable[[str], None], past: int = 0) -> None:
        self.past = past
        self._total = total
        self._tell = tell
        self._done = 0
        self._begun = time.monotonic()

    def __call__(self, seed: int, arm: str, outcome: Outcome) -> None:
        """A run is over."""
        self._done += 1
        over = self.past + self._done
        left = self._total - over
        result = outcome.status
        if outcome.scores:
            result = f"test accuracy {outcome.scores['test']['accuracy']:.2%}"
        elif outcome.reason:
            result = f"{outcome.status}: {outcome.reason}"
        time_left = (time.monotonic() - self._begun) / self._done * left
        rest = f"; {told_time(time_left)} left" if left > 0 else ""
        self._tell(f"{over}/{self._total} {arm}, seed {seed}: {result}{rest}")
