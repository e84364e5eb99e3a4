"""Studies: many arms, several seeds each, every run an ordinary run folder, compared in the end."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import random
import signal
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thinned.core.config import (
    Config,
    as_meant,
    flag,
    options,
    recipe,
    with_split_of,
    with_values,
)
from thinned.core.disk import held, read_regular, write_whole
from thinned.core.errors import RequestError, ThinnedError, nearest, need
from thinned.core.validation import idle, validate
from thinned.data.sources.load import load_data
from thinned.data.split import fingerprint
from thinned.engine.logs import refuse_missing_log
from thinned.engine.loop import Stopped
from thinned.models.catalog import refuse_unknown
from thinned.runs.environment import recorded_digest
from thinned.runs.pretrained import resolved
from thinned.runs.run import Run
from thinned.runs.train import named
from thinned.studies.arms import Arm
from thinned.studies.cluster import share_on
from thinned.studies.comparison import paired_differences
from thinned.studies.jobs import Countdown, Job, left_of, place_of, run_jobs, watched
from thinned.studies.outcomes import Outcome, Row, accuracies_of, read_outcome
from thinned.studies.workers import share

_SHOWN = 10


@dataclass(frozen=True)
class Study:
    """What is to be run.

    Attributes:
        base: the config that the arms vary.
        arms: at least one, of different names.
        seeds: each arm is run with every one: initialisation, order and masks of a seed are the
            same in all arms, so that differences are paired.
        baseline: name of the arm that others are compared with.
        within: an option that parts the arms: each is compared with the one that has its own value
            of this option and is else as the baseline; None compares all with the baseline.
        looks: numbers of seeds with which the study was asked for, the first planned before any
            run; empty where that is not known, see `thinned.studies.looks`.
    """

    base: Config
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    baseline: str
    within: str | None = None
    looks: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        base: Config,
        arms: Sequence[Arm],
        seeds: Sequence[int],
        baseline: str | None = None,
        within: str | None = None,
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
        # The last seed is the first to be too large.
        base, _ = resolved(validate(base))
        refuse_missing_log(base.log)
        arms[0].config(base, max(seeds))
        configs = [arm.config(base, seeds[0]) for arm in arms]
        _refuse_unused(base, configs)
        for arm, config in zip(arms, configs, strict=True):
            if config.model != "auto":
                refuse_unknown(config.model)
            other = folders.setdefault(arm.folder, arm)
            if other is not arm:
                raise RequestError(f"arms {other.name} and {arm.name} would share a folder")
        return cls(base, tuple(arms), tuple(seeds), baseline, within, (len(seeds),))

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
            values = json.loads(read_regular(path))
            base = values["base"]
            return cls(
                with_values(recipe(base["recipe"]), as_meant(base), str(path)),
                tuple(Arm(arm["name"], arm["changes"]) for arm in values["arms"]),
                tuple(values["seeds"]),
                values["baseline"],
                values.get("within"),
                tuple(values.get("looks", ())),
            )
        except FileNotFoundError as error:
            raise RequestError(f"{folder} is no study: it has no study.json") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RequestError(f"{path} cannot be read: {error}") from error

    @property
    def jobs(self) -> list[Job]:
        """Every run as (seed, arm): a whole round of arms before the next seed."""
        return [(seed, arm) for seed in self.seeds for arm in self.arms]

    @property
    def planned(self) -> tuple[int, ...]:
        """The seeds that were fixed before the first run; none where that is not known."""
        return self.seeds[: self.looks[0]] if self.looks else ()

    @property
    def baselines(self) -> dict[str, str]:
        """Arm -> the arm that it is compared with, where there is one."""
        usual = {arm.name: arm.changes for arm in self.arms}[self.baseline]
        by_place = {_place(arm.changes): arm.name for arm in self.arms}
        compared: dict[str, str] = {}
        for arm in self.arms:
            wanted = dict(usual)
            if self.within is not None:
                wanted[self.within] = arm.changes.get(self.within)
            base = by_place.get(_place(wanted))
            if base is not None and base != arm.name:
                compared[arm.name] = base
        return compared

    def with_past(self, past: Study) -> Study:
        """This study, asked for where another was begun: its seeds come first, its looks count."""
        added = tuple(seed for seed in self.seeds if seed not in past.seeds)
        look = (len(self.seeds),) if added and past.looks else ()
        return dataclasses.replace(self, seeds=past.seeds + added, looks=past.looks + look)

    def cost(self, rows: Sequence[Row]) -> dict[str, float]:
        """Arm -> time of training over the baseline's, all epochs; NaN where it is not known."""
        times = {
            row.arm.name: row.epoch_s
            * (row.epochs or row.arm.config(self.base, self.seeds[0]).epochs)
            for row in rows
        }
        return {name: time_s / times.get(self.baseline, math.nan) for name, time_s in times.items()}


def run_study(
    study: Study,
    folder: Path,
    tell: Callable[[str], None] = lambda line: None,
    processes: int = 1,
    cluster: str | None = None,
) -> list[Row]:
    """Run whatever of a study was not run yet.

    Args:
        study: the definition.
        folder: of this study alone; when it holds the same study, that one goes on, and seeds and
            arms may have been added.
        tell: gets a line for every run.
        processes: how many share the work, each with its part of the CPU cores.
        cluster: the scheduler whose workers do it instead, see `thinned.studies.cluster.share_on`.

    Returns:
        A row for each arm.

    Raises:
        RequestError: `folder` holds another study, or one that is running.
        Stopped: by Ctrl-C or SIGTERM; the run in progress is saved.
    """
    with _held(folder, study) as study, watched(folder, study.jobs, tell):
        left = left_of(folder, study.jobs)
        progress = Countdown(len(study.jobs), tell, len(study.jobs) - len(left))
        _run(study.base, folder, left, processes, cluster, progress)
    return rows_of(folder)


def _run(
    base: Config,
    folder: Path,
    jobs: Sequence[Job],
    processes: int,
    cluster: str | None,
    report: Callable[[int, str, Outcome], None],
) -> None:
    processes = min(processes, len(jobs))
    if cluster is not None and jobs:
        share_on(cluster, base, folder, jobs, processes, report)
    elif processes > 1:
        share(base, folder, jobs, processes, report)
    else:
        run_jobs(base, folder, jobs, report)


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
def _held(folder: Path, study: Study) -> Generator[Study]:
    """A study's folder, with its definition in it, for this process alone."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"cannot write in {folder}: {error.strerror}") from error
    with held(folder, "being run"):
        if (folder / "config.json").exists():
            raise RequestError(f"{folder} is a run: give the study another --name")
        if (folder / "study.json").exists():
            past = Study.open(folder)
            study = dataclasses.replace(study, base=with_split_of(past.base, study.base))
            _refuse_changes(past, study, folder)
            study = study.with_past(past)
            _refuse_other_data(study, folder)
        write_whole(folder / "study.json", study.to_json())
        yield study


def search(
    study: Study,
    folder: Path,
    trials: int,
    tell: Callable[[str], None] = lambda line: None,
    processes: int = 1,
    cluster: str | None = None,
) -> list[Row]:
    """Run only those arms that Optuna's sampler chooses, by the mean validation accuracy.

    Arms are tried with all seeds, as many arms at a time as there are `processes`; the baseline
    first, and none twice. The sampler is seeded and fed with the same results in the same order, so
    that a search goes on where it stopped.

    Args:
        study: its arms are the space that is searched.
        folder: as for `run_study`.
        trials: how many arms to try, the baseline among them.
        tell, processes, cluster: as for `run_study`.

    Raises:
        RequestError: Optuna is not installed, nothing was held out, or as `run_study`.
    """
    need("optuna", "--search", "search")
    import optuna

    if not study.base.data.validation and load_data(study.base).validation is None:
        raise RequestError("--search chooses by validation images: give --data.validation N")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    choices = {name: _choices(study, name) for name in study.arms[0].changes}
    sampler = optuna.samplers.TPESampler(seed=study.seeds[0], constant_liar=processes > 1)
    chooser = optuna.create_study(direction="maximize", sampler=sampler)
    base = next(arm for arm in study.arms if arm.name == study.baseline)
    chooser.enqueue_trial(_key(base, choices))
    trials = min(trials, len(study.arms))
    rows: list[Row] = []
    progress = Countdown(trials * len(study.seeds), tell)
    untried = random.Random(study.seeds[0]).sample(study.arms, len(study.arms))
    with _held(folder, study) as study, watched(folder, study.jobs, tell):
        while len(study.arms) - len(untried) < trials:
            room = trials - (len(study.arms) - len(untried))
            asked = [_asked(chooser, choices, untried) for _ in range(min(max(processes, 1), room))]
            jobs = [(seed, arm) for _, arm in asked for seed in study.seeds]
            left = left_of(folder, jobs)
            progress.past += len(jobs) - len(left)
            _run(study.base, folder, left, processes, cluster, progress)
            rows = [row for row in rows_of(folder) if row.outcomes]
            for trial, arm in asked:
                score = next(r for r in rows if r.arm == arm).mean("accuracy", "validation")
                if math.isnan(score):
                    chooser.tell(trial, state=optuna.trial.TrialState.FAIL)
                else:
                    chooser.tell(trial, score)
    return rows


def _asked(chooser: Any, choices: Mapping[str, list[Any]], untried: list[Arm]) -> tuple[Any, Arm]:
    """A trial of an arm that was not tried yet, taken out of `untried`."""
    import optuna

    while True:
        trial = chooser.ask()
        key = {n: trial.suggest_int(n, 0, len(v) - 1) for n, v in choices.items()}
        for arm in untried:
            if _key(arm, choices) == key:
                untried.remove(arm)
                return trial, arm
        # The sampler knows of no arms, only of places, and comes back to good ones.
        chooser.tell(trial, state=optuna.trial.TrialState.FAIL)
        chooser.enqueue_trial(_key(untried[0], choices))


def _choices(study: Study, name: str) -> list[Any]:
    choices: list[Any] = []
    for arm in study.arms:
        if arm.changes[name] not in choices:
            choices.append(arm.changes[name])
    return choices


def _key(arm: Arm, choices: Mapping[str, list[Any]]) -> dict[str, int]:
    return {name: values.index(arm.changes[name]) for name, values in choices.items()}


def folder_of(runs: Path, name: str | None) -> Path:
    """Where a study of that name is kept, or the next free ``study-001``."""
    if name is not None:
        return named(runs, name)
    number = next(n for n in itertools.count(1) if not os.path.exists(runs / f"study-{n:03d}"))
    return runs / f"study-{number:03d}"


def rows_of(folder: Path) -> list[Row]:
    """What is known of a study by now.

    Raises:
        RequestError: there is no study in `folder`.
    """
    study = Study.open(folder)
    outcomes = {
        arm.name: {
            seed: outcome
            for seed in study.seeds
            if (outcome := read_outcome(place_of(folder, arm, seed)))
        }
        for arm in study.arms
    }
    accuracies = {name: accuracies_of(tried) for name, tried in outcomes.items()}
    against = paired_differences(accuracies, study.baselines, study.planned)
    return [Row(arm, outcomes[arm.name], against.get(arm.name)) for arm in study.arms]


def curves_of(folder: Path, arm: Arm, seed: int) -> list[dict[str, Any]]:
    """The records of one run of a study, see `thinned.engine.logs.MetricsLog`."""
    place = place_of(folder, arm, seed)
    return Run.open(place).metrics if (place / "config.json").exists() else []


def run_of(folder: Path, arm: Arm, seed: int) -> Run:
    """One run of a study.

    Raises:
        RequestError: it was not begun.
    """
    return Run.open(place_of(folder, arm, seed))


def _place(changes: Mapping[str, Any]) -> str:
    """What an arm changes, in one order, as JSON, to which a tuple is the list it is read as."""
    return json.dumps({name: changes[name] for name in sorted(changes)}, default=str)


def _refuse_changes(past: Study, wanted: Study, folder: Path) -> None:
    changed = [
        f"{name}: was {before}, asked for {after}"
        for (name, _, before), (_, _, after) in zip(
            options(past.base), options(wanted.base), strict=True
        )
        if before != after
    ]
    changed += list(_changed_arms(past.arms, wanted.arms))
    for name in ("baseline", "within"):
        before, after = getattr(past, name), getattr(wanted, name)
        if before != after:
            changed.append(f"{name}: was {before}, asked for {after}")
    missing = sorted(set(past.seeds) - set(wanted.seeds))
    if missing:
        changed.append(f"seeds {missing} are gone (they can only be added)")
    if changed:
        raise RequestError(f"{folder} holds another study: {'; '.join(changed)}")


def _refuse_other_data(study: Study, folder: Path) -> None:
    """Refuse to go on where the images are not those that earlier runs have learned from."""
    if not left_of(folder, study.jobs):
        return
    seen: list[Any] = []
    for seed, arm in study.jobs:
        place = place_of(folder, arm, seed)
        before = recorded_digest(place)
        if before is None:
            continue
        config = arm.config(study.base, seed)
        if (config.data, config.split_seed) in seen:
            continue
        seen.append((config.data, config.split_seed))
        try:
            now = fingerprint(load_data(config))
        except ThinnedError:
            # The runs that need them say so.
            continue
        if now != before:
            raise RequestError(
                f"{config.data.path} holds other images than {place} learned from: "
                "give the study another --name"
            )


def _refuse_unused(base: Config, configs: Sequence[Config]) -> None:
    """Refuse an option of all arms that not one of them can use."""
    held = [{name: value for name, _, value in options(config)} for config in (base, *configs)]
    for name, needed in idle(base).items():
        if all(values[name] != held[0][name] for values in held[1:]):
            raise RequestError(f"{flag(name)} changes nothing in any arm: it goes with {needed}")


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
        old, new = (json.loads(json.dumps(changes)) for changes in (arm.changes, after[arm.name]))
        for option in dict.fromkeys([*old, *new]):
            if old.get(option) != new.get(option):
                yield (
                    f"arm {arm.name}, {option}: was {old.get(option, 'unchanged')}, "
                    f"asked for {new.get(option, 'unchanged')}"
                )
