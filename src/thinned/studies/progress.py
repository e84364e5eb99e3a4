"""What a person is told while a study runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from thinned.core.errors import ThinnedError
from thinned.runs.run import Run
from thinned.studies.jobs import Job, place_of
from thinned.studies.outcomes import Outcome, read_outcome

_EVERY_S = 60.0


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
            done = max((record["epoch"] for record in run.metrics), default=0)
        except ThinnedError:
            # Not whole yet.
            continue
        lines.append(f"{arm.name}, seed {seed}: epoch {done}/{run.config.epochs} done")
    return lines


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
        rest = f"; {_duration(time_left)} left" if left > 0 else ""
        self._tell(f"{over}/{self._total} {arm}, seed {seed}: {result}{rest}")


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest:02d} min" if hours else f"{rest} min" if rest else "under a minute"
