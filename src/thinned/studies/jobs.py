"""The runs of a study, one after another or as lanes: each once, whatever becomes of the others."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from thinned.core.config import Config
from thinned.core.errors import ThinnedError
from thinned.core.types import Dataset
from thinned.data.facts import Facts
from thinned.data.sources.load import load_data
from thinned.engine.loop import Diverged, Stopped
from thinned.runs.environment import fix_threads
from thinned.runs.run import (
    Busy,
    OutOfMemory,
    Run,
    fits_in_memory,
    fits_together,
    seed_of_data,
    train,
    train_together,
)
from thinned.studies.arms import Arm
from thinned.studies.outcomes import Outcome, read_outcome, scored, write_outcome

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
        if (found := read_outcome(place_of(folder, arm, seed))) is None or found.status == "failed"
    ]


def run_jobs(
    base: Config,
    folder: Path,
    jobs: Sequence[Job],
    report: Callable[[int, str, Outcome], None],
    lanes: int = 1,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Run jobs in this process, and keep the outcome of each beside it.

    Args:
        base: the config that the arms vary.
        folder: of the study.
        jobs: what is run, in this order as far as lanes allow.
        report: gets seed, arm and outcome of every run.
        lanes: how many are trained at once, see `thinned.studies.study.run_study`.
        tell: gets a line where there are fewer lanes than asked for.

    Raises:
        Stopped: by Ctrl-C or SIGTERM; the run in progress is saved.
    """
    # Before the first run that goes on: its own number of threads is not that of all the others.
    fix_threads()
    data = _Data()
    waiting = list(jobs)
    while waiting:
        group = _group(base, waiting, lanes, data)
        configs = [arm.config(base, seed) for seed, arm in group]
        places = [place_of(folder, arm, seed) for seed, arm in group]
        try:
            outcomes = list(_run_group(configs, places, data))
        except OutOfMemory:
            lanes = len(group) // 2
            tell(f"{len(group)} lanes need more memory than there is: {lanes} from now on")
            continue
        waiting = [job for job in waiting if job not in group]
        for (seed, arm), place, outcome in zip(group, places, outcomes, strict=True):
            write_outcome(place, outcome)
            report(seed, arm.name, outcome)


def _group(base: Config, waiting: Sequence[Job], lanes: int, data: _Data) -> list[Job]:
    """The first job that waits, and up to `lanes` in all that share its program and its data."""
    first, *others = waiting
    key = _key_of(base, first, data) if lanes > 1 else None
    if key is None:
        return [first]
    alike = (job for job in others if _key_of(base, job, data, held=True) == key)
    return [first, *itertools.islice(alike, lanes - 1)]


def _key_of(base: Config, job: Job, data: _Data, held: bool = False) -> Any:
    """Equal for jobs that can be lanes of one program; None for none, or for data not `held`."""
    seed, arm = job
    try:
        config = arm.config(base, seed)
        if held and not data.holds(config):
            return None
        dataset = data.of(config)
        fits = fits_in_memory(config, dataset.train)
        return fits_together(config, Facts.of(dataset, config)) if fits else None
    except Exception:
        # It fails for itself, and is told then.
        return None


def _run_group(configs: Sequence[Config], places: Sequence[Path], data: _Data) -> Iterator[Outcome]:
    if len(configs) == 1:
        yield _outcome_of(lambda: _run_one(configs[0], places[0], data))
        return
    try:
        dataset = data.of(configs[0])
        failed = train_together(configs, places, dataset)
    except (Stopped, OutOfMemory):
        raise
    except Exception as error:
        yield from (_failure(error) for _ in configs)
        return
    for place, reason in zip(places, failed, strict=True):
        if reason is not None:
            yield Outcome("diverged", str(reason))
        else:
            yield _outcome_of(lambda place=place: scored(Run.open(place), dataset))


def _run_one(config: Config, place: Path, data: _Data) -> Outcome:
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
        return self._held is not None and self._held[0] == (config.data, seed_of_data(config))

    def of(self, config: Config) -> Dataset:
        if self._held is None or not self.holds(config):
            self._held = None
            self._held = (config.data, seed_of_data(config)), load_data(config)
        return self._held[1]
