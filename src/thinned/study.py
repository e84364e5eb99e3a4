"""Studies: many arms, several seeds each, every run an ordinary run folder, compared in the end."""

from __future__ import annotations

import dataclasses
import fcntl
import itertools
import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from pathlib import Path
from typing import Any, cast

import jax

from thinned.arms import Arm
from thinned.assembly import Facts
from thinned.comparison import differences
from thinned.config import Config, nearest, options, recipe, with_values
from thinned.data.split import fingerprint
from thinned.dropout.sites import DropoutSpec
from thinned.environment import recorded_digest
from thinned.errors import RequestError, ThinnedError
from thinned.logs import write_whole
from thinned.loop import Diverged, Stopped, StopSignal
from thinned.models.catalog import is_own, network
from thinned.outcomes import Outcome, Row, read_outcome, scored, write_outcome
from thinned.run import (
    Busy,
    OutOfMemory,
    Run,
    fits_in_memory,
    fits_together,
    load_data,
    named,
    seed_of_data,
    train,
    train_together,
)
from thinned.types import Dataset

_LONGEST = 300
_SHOWN = 10
_EVERY_S = 60.0
# A second apart.
_TRIES = 30
# Between two looks at whether a signal came.
_PATIENCE_S = 0.2


@dataclass(frozen=True)
class Study:
    """What is to be run.

    Attributes:
        base: the config that the arms vary.
        arms: at least one, of different names.
        seeds: each arm is run with every one: initialisation, order and masks of a seed are the
            same in all arms, so that differences are paired.
        baseline: name of the arm that others are compared with.
    """

    base: Config
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    baseline: str

    @classmethod
    def of(
        cls, base: Config, arms: Sequence[Arm], seeds: Sequence[int], baseline: str | None = None
    ) -> Study:
        """A study whose every config was checked; test images are read once, at a run's end.

        Raises:
            RequestError: no seeds, an arm that cannot be run, two of one folder, or a baseline
                that is none.
        """
        base = dataclasses.replace(base, test="end")
        if not seeds:
            raise RequestError("--seeds must be at least 1")
        names = [arm.name for arm in arms]
        baseline = names[0] if baseline is None else baseline
        if baseline not in names:
            raise RequestError(f"--baseline {baseline} is no arm{_likely(baseline, names)}")
        folders: dict[str, Arm] = {}
        for arm in arms:
            config = arm.config(base, seeds[0])
            if config.model != "auto" and not is_own(config.model):
                network(config.model, 2, DropoutSpec(), config.mlp)
            other = folders.setdefault(arm.folder, arm)
            if other is not arm:
                raise RequestError(f"arms {other.name} and {arm.name} would share a folder")
        return cls(base, tuple(arms), tuple(seeds), baseline)

    def to_json(self) -> str:
        """As the text of ``study.json``."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def open(cls, folder: Path) -> Study:
        """The study of a folder.

        Raises:
            RequestError: there is none, or it cannot be read.
        """
        path = folder / "study.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            base = values["base"]
            return cls(
                with_values(recipe(base["recipe"]), base, str(path)),
                tuple(Arm(arm["name"], arm["changes"]) for arm in values["arms"]),
                tuple(values["seeds"]),
                values["baseline"],
            )
        except FileNotFoundError as error:
            raise RequestError(f"{folder} is no study: it has no study.json") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RequestError(f"{path} cannot be read: {error}") from error

    @property
    def jobs(self) -> list[tuple[int, Arm]]:
        """Every run as (seed, arm): a whole round of arms before the next seed."""
        return [(seed, arm) for seed in self.seeds for arm in self.arms]

    def cost(self, rows: Sequence[Row]) -> dict[str, float]:
        """Arm -> time of training over the baseline's, all epochs; NaN where it is not known."""
        times = {
            row.arm.name: row.epoch_s * row.arm.config(self.base, self.seeds[0]).epochs
            for row in rows
        }
        return {name: time_s / times.get(self.baseline, math.nan) for name, time_s in times.items()}


def run_study(
    study: Study,
    folder: Path,
    tell: Callable[[str], None] = lambda line: None,
    processes: int = 1,
    lanes: int | None = None,
) -> list[Row]:
    """Run whatever of a study was not run yet.

    Args:
        study: the definition.
        folder: of this study alone; when it holds the same study, that one goes on, and seeds and
            arms may have been added.
        tell: gets a line for every run.
        processes: how many share the work, each with its part of the CPU cores.
        lanes: how many runs are trained at once as lanes of one vmapped program; None for 1 on a
            CPU, where lanes are slower (docs/studies.md), and 8 on anything else.

    Returns:
        A row for each arm.

    Raises:
        RequestError: `folder` holds another study, or one that is running.
        Stopped: by Ctrl-C or SIGTERM; the run in progress is saved.
    """
    processes = min(processes, len(study.jobs))
    if lanes is None:
        lanes = 1 if jax.default_backend() == "cpu" else 8
    with _held(folder, study), _watched(study, folder, tell):
        left = _left(folder, study.jobs)
        progress = _Progress(len(study.jobs), tell, len(study.jobs) - len(left))
        if processes > 1:
            _share(folder, study, left, processes, progress)
        else:
            _run_jobs(study, folder, left, progress, lanes, tell)
    return rows_of(folder)


@contextmanager
def stoppable(command: str) -> Generator[None]:
    """What Ctrl-C and SIGTERM stop in here is told to go on with that command."""
    try:
        yield
    except (Stopped, KeyboardInterrupt) as error:
        number = error.exit_code - 128 if isinstance(error, Stopped) else signal.SIGINT
        told = f"stopped; what was done is saved: go on with {command}"
        raise Stopped(told, number) from error


def refuse_fruitless(folder: Path, rows: Sequence[Row]) -> None:
    """Refuse to call a study done of which not one run finished.

    Raises:
        ThinnedError: says why the first did not.
    """
    outcomes = [outcome for row in rows for outcome in row.outcomes.values()]
    if outcomes and all(outcome.status != "finished" for outcome in outcomes):
        first = outcomes[0]
        raise ThinnedError(f"{folder}: no run finished; the first {first.status}: {first.reason}")


@contextmanager
def _held(folder: Path, study: Study) -> Generator[None]:
    """A study's folder, with its definition in it, for this process alone."""
    if (folder / "config.json").exists():
        raise RequestError(f"{folder} is a run: give the study another --name")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise RequestError(f"cannot write in {folder}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RequestError(f"{folder} is being run by another process") from error
        if (folder / "study.json").exists():
            _refuse_changes(Study.open(folder), study, folder)
            _refuse_other_data(study, folder)
        write_whole(folder / "study.json", study.to_json())
        yield


def search(
    study: Study, folder: Path, trials: int, tell: Callable[[str], None] = lambda line: None
) -> list[Row]:
    """Run only those arms that Optuna's sampler chooses, by the mean validation accuracy.

    Arms are tried with all seeds, one arm after another; the baseline first. The sampler is seeded
    and fed with the same results in the same order, so that a search goes on where it stopped.

    Args:
        study: its arms are the space that is searched.
        folder: as for `run_study`.
        trials: how many arms to try, the baseline among them.
        tell: as for `run_study`.

    Raises:
        RequestError: Optuna is not installed, nothing was held out, or as `run_study`.
    """
    try:
        import optuna
    except ImportError as error:
        raise RequestError(
            "--search needs optuna: install it with pip install 'thinned[search]'"
        ) from error
    if not study.base.data.validation and load_data(study.base).validation is None:
        raise RequestError("--search chooses by validation images: give --data.validation N")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    choices = {name: _choices(study, name) for name in study.arms[0].changes}
    by_place = {tuple(_key(arm, choices).items()): arm for arm in study.arms}
    sampler = optuna.samplers.TPESampler(seed=study.seeds[0])
    chooser = optuna.create_study(direction="maximize", sampler=sampler)
    base = next(arm for arm in study.arms if arm.name == study.baseline)
    chooser.enqueue_trial(_key(base, choices))
    rows: list[Row] = []
    progress = _Progress(trials * len(study.seeds), tell)
    with _held(folder, study), _watched(study, folder, tell):
        for _ in range(trials):
            trial = chooser.ask()
            key = {n: trial.suggest_int(n, 0, len(v) - 1) for n, v in choices.items()}
            arm = by_place[tuple(key.items())]
            left = _left(folder, [(seed, arm) for seed in study.seeds])
            progress.past += len(study.seeds) - len(left)
            _run_jobs(study, folder, left, progress)
            rows = [row for row in rows_of(folder) if row.outcomes]
            score = next(r for r in rows if r.arm == arm).mean("accuracy", "validation")
            if math.isnan(score):
                chooser.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                chooser.tell(trial, score)
    return rows


def _choices(study: Study, name: str) -> list[Any]:
    found: list[Any] = []
    for arm in study.arms:
        if arm.changes[name] not in found:
            found.append(arm.changes[name])
    return found


def _key(arm: Arm, choices: Mapping[str, list[Any]]) -> dict[str, int]:
    return {name: values.index(arm.changes[name]) for name, values in choices.items()}


def folder_of(runs: Path, name: str | None) -> Path:
    """Where a study of that name is kept, or the next free ``study-001``."""
    if name is not None:
        return named(runs, name)
    number = next(n for n in itertools.count(1) if not (runs / f"study-{n:03d}").exists())
    return runs / f"study-{number:03d}"


def rows_of(folder: Path) -> list[Row]:
    """What is known of a study by now.

    Raises:
        RequestError: there is no study in `folder`.
    """
    study = Study.open(folder)
    outcomes = {
        arm.name: {
            seed: found
            for seed in study.seeds
            if (found := read_outcome(_place(folder, arm, seed)))
        }
        for arm in study.arms
    }
    accuracies = {
        name: {s: o.scores["test"]["accuracy"] for s, o in tried.items() if "test" in o.scores}
        for name, tried in outcomes.items()
    }
    against = differences(accuracies, study.baseline)
    return [Row(arm, outcomes[arm.name], against.get(arm.name)) for arm in study.arms]


def curves_of(folder: Path, arm: Arm, seed: int) -> list[dict[str, Any]]:
    """The records of one run of a study, see `thinned.logs.MetricsLog`."""
    place = _place(folder, arm, seed)
    return Run.open(place).metrics if (place / "config.json").exists() else []


def run_of(folder: Path, arm: Arm, seed: int) -> Run:
    """One run of a study.

    Raises:
        RequestError: it was not begun.
    """
    return Run.open(_place(folder, arm, seed))


def _place(folder: Path, arm: Arm, seed: int) -> Path:
    return folder / arm.folder / f"seed-{seed}"


@contextmanager
def _watched(study: Study, folder: Path, tell: Callable[[str], None]) -> Generator[None]:
    """Tell every minute how far the runs in progress are, which can take an hour each."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_EVERY_S):
            for line in under_way(study, folder):
                tell(line)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def under_way(study: Study, folder: Path) -> list[str]:
    """A line for every run that was begun and is not over: how many of its epochs are done."""
    lines: list[str] = []
    for seed, arm in study.jobs:
        place = _place(folder, arm, seed)
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


class _Progress:
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
        self._done += 1
        left = self._total - self.past - self._done
        result = outcome.status
        if outcome.scores:
            result = f"test accuracy {outcome.scores['test']['accuracy']:.2%}"
        elif outcome.reason:
            result = f"{outcome.status}: {outcome.reason}"
        time_left = (time.monotonic() - self._begun) / self._done * left
        rest = f"; {_duration(time_left)} left" if left > 0 else ""
        self._tell(f"{self._total - left}/{self._total} {arm}, seed {seed}: {result}{rest}")


def _left(folder: Path, jobs: Sequence[tuple[int, Arm]]) -> list[tuple[int, Arm]]:
    # What diverged would diverge again, bit by bit; what failed otherwise may do better now.
    return [
        (seed, arm)
        for seed, arm in jobs
        if (found := read_outcome(_place(folder, arm, seed))) is None or found.status == "failed"
    ]


def _run_jobs(
    study: Study,
    folder: Path,
    jobs: Sequence[tuple[int, Arm]],
    report: Callable[[int, str, Outcome], None],
    lanes: int = 1,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    data = _Data()
    waiting = list(jobs)
    while waiting:
        group = _group(study, waiting, lanes, data)
        configs = [arm.config(study.base, seed) for seed, arm in group]
        places = [_place(folder, arm, seed) for seed, arm in group]
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


def _group(
    study: Study, waiting: Sequence[tuple[int, Arm]], lanes: int, data: _Data
) -> list[tuple[int, Arm]]:
    """The first job that waits, and up to `lanes` in all that share its program and its data."""
    first, *others = waiting
    key = _key_of(study, first, data) if lanes > 1 else None
    if key is None:
        return [first]
    alike = (job for job in others if _key_of(study, job, data, held=True) == key)
    return [first, *itertools.islice(alike, lanes - 1)]


def _key_of(study: Study, job: tuple[int, Arm], data: _Data, held: bool = False) -> Any:
    """Equal for jobs that can be lanes of one program; None for none, or for data not `held`."""
    seed, arm = job
    try:
        config = arm.config(study.base, seed)
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
    for tries in itertools.count(1):
        try:
            run = train(config, name=place.name, runs=place.parent, dataset=dataset)
        except Busy:
            # A process of a study that was killed saves, and ends soon.
            if tries == _TRIES:
                raise
            time.sleep(1)
        else:
            return scored(run, dataset)
    raise AssertionError("unreachable")


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


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest:02d} min" if hours else f"{rest} min" if rest else "under a minute"


def _share(
    folder: Path,
    study: Study,
    jobs: Sequence[tuple[int, Arm]],
    processes: int,
    report: Callable[[int, str, Outcome], None],
) -> None:
    """Run the jobs in several processes; each takes every so-many-th, and tells through a pipe.

    Raises:
        Stopped: a signal asked for it; the runs in progress are saved.
        ThinnedError: a process ended without its work done.
    """
    context = multiprocessing.get_context("spawn")
    ears: list[Any] = []
    workers: list[Any] = []
    # A terminal sends Ctrl-C to every process. The workers inherit that it waits: they are told by
    # SIGTERM alone, which ends one that still begins without a word, and lets the others save.
    # The tracker's start, within that of the first worker, would let the signal through again.
    resource_tracker.ensure_running()
    with StopSignal() as stop:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for part in range(processes):
                ear, mouth = context.Pipe(duplex=False)
                own = jobs[part::processes], (part, processes)
                worker = context.Process(
                    target=_work, args=(study, folder, *own, mouth), daemon=True
                )
                worker.start()
                # Held by the worker alone, it closes when the worker ends, in whatever way.
                mouth.close()
                ears.append(ear)
                workers.append(worker)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        try:
            failures = _listen(ears, workers, stop, report)
        finally:
            for worker in workers:
                worker.join()
    if stop.number is not None:
        raise Stopped("stopped; what was done is saved", stop.number)
    if failures:
        raise ThinnedError(failures[0])
    if any(worker.exitcode for worker in workers):
        raise ThinnedError(
            f"a process of the study ended early: go on with the same command, --name {folder.name}"
        )


def _listen(
    ears: list[Any],
    workers: Sequence[Any],
    stop: StopSignal,
    report: Callable[[int, str, Outcome], None],
) -> list[str]:
    """Report what the workers say until the last has ended; pass on to them that they should stop.

    Returns:
        Why workers gave up, where they could say.
    """
    told = False
    failures: list[str] = []
    while ears:
        if stop.number is not None and not told:
            told = True
            for worker in workers:
                worker.terminate()
        for ear in connection.wait(ears, _PATIENCE_S):
            try:
                said = cast(Any, ear).recv()
            except EOFError:
                ears.remove(ear)
                continue
            if isinstance(said, str):
                failures.append(said)
            else:
                report(*said)
    return failures


def _work(
    study: Study,
    folder: Path,
    jobs: Sequence[tuple[int, Arm]],
    share: tuple[int, int],
    mouth: Any,
) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    part, parts = share
    cores = sorted(os.sched_getaffinity(0))
    own = cores[part * len(cores) // parts : (part + 1) * len(cores) // parts]
    if own:
        os.sched_setaffinity(0, own)
    try:
        _run_jobs(study, folder, jobs, lambda *said: mouth.send(said))
    except Stopped as stop:
        # The one who asked for it knows; a traceback would tell nothing.
        sys.exit(stop.exit_code)
    except BrokenPipeError:
        # Nobody is left to tell.
        sys.exit(1)
    except ThinnedError as error:
        mouth.send(str(error))
        sys.exit(error.exit_code)


def _end_with_parent() -> None:
    """Stop as by SIGTERM when the study's own process is gone, however it ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def _refuse_changes(past: Study, wanted: Study, folder: Path) -> None:
    changed = [
        f"{name}: was {before}, asked for {after}"
        for (name, _, before), (_, _, after) in zip(
            options(past.base), options(wanted.base), strict=True
        )
        if before != after
    ]
    changed += list(_changed_arms(past.arms, wanted.arms))
    if past.baseline != wanted.baseline:
        changed.append(f"baseline: was {past.baseline}, asked for {wanted.baseline}")
    missing = sorted(set(past.seeds) - set(wanted.seeds))
    if missing:
        changed.append(f"seeds {missing} are gone (they can only be added)")
    if changed:
        raise RequestError(f"{folder} holds another study: {'; '.join(changed)}")


def _refuse_other_data(study: Study, folder: Path) -> None:
    """Refuse to go on where the images are not those that earlier runs have learned from."""
    if not _left(folder, study.jobs):
        return
    seen: list[Any] = []
    for seed, arm in study.jobs:
        place = _place(folder, arm, seed)
        config = arm.config(study.base, seed)
        before = recorded_digest(place)
        if before is None or config.data in seen:
            continue
        seen.append(config.data)
        try:
            # With the seed of that run: it can decide which images are held out.
            now = fingerprint(load_data(config))
        except ThinnedError:
            # The runs that need them say so.
            continue
        if now != before:
            raise RequestError(
                f"{config.data.path} holds other images than {place} learned from: "
                "give the study another --name"
            )


def _likely(name: str, names: Sequence[str]) -> str:
    """The nearest of many names, or the first few."""
    said = nearest(name, dict.fromkeys(names))
    few = said if len(names) <= _SHOWN or "did you mean" in said else ""
    return few or f"; known: {', '.join(names[:_SHOWN])} and {len(names) - _SHOWN:,} more"


def _changed_arms(past: Sequence[Arm], wanted: Sequence[Arm]) -> Iterator[str]:
    after = {arm.name: arm.changes for arm in wanted}
    for arm in past:
        if arm.name not in after:
            yield f"arm {arm.name} is gone"
            continue
        # As JSON, to which a tuple is the list that it was read as.
        old, new = (json.loads(json.dumps(each)) for each in (arm.changes, after[arm.name]))
        for option in dict.fromkeys([*old, *new]):
            if old.get(option) != new.get(option):
                yield (
                    f"arm {arm.name}, {option}: was {old.get(option, 'unchanged')}, "
                    f"asked for {new.get(option, 'unchanged')}"
                )
