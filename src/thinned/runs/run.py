"""Runs: folders that hold everything of one training, and the wiring that fills them."""

from __future__ import annotations

import dataclasses
import fcntl
import itertools
import json
import re
import sys
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thinned.core.config import Config, differences, load, to_json, validate
from thinned.core.disk import cache_folder, write_whole
from thinned.core.errors import RequestError, ThinnedError, printable
from thinned.core.types import Dataset, Split
from thinned.data.batch import Batch, class_weights
from thinned.data.facts import Facts
from thinned.data.pack import PackedImages
from thinned.data.sources.arrays import as_images
from thinned.data.sources.load import decodes_files, load_data, open_source
from thinned.data.split import everything, fingerprint
from thinned.engine.build import (
    build_model,
    initial_state,
    make_augment,
    make_plan,
    model_name,
    refuse_unfit,
)
from thinned.engine.checkpoint import Checkpoints, Restored
from thinned.engine.evaluation import Evaluation, evaluate
from thinned.engine.feed import Feed, Resident, Streamed, steps_within
from thinned.engine.logs import MetricsLog, Plain, Silent, TensorBoardLog, view_for
from thinned.engine.loop import Diverged, Parts, Progress, StopSignal, arrays_of
from thinned.engine.loop import train as run_loop
from thinned.engine.loop import train_lanes as run_lanes
from thinned.engine.optim import Rule, numbers_at
from thinned.engine.plan import Plan
from thinned.engine.step import TrainState
from thinned.models.apply import predict
from thinned.models.catalog import CATALOG
from thinned.runs.environment import describe_environment, environment_changes, recorded_digest

_LONGEST_NAME = 100


@dataclass(frozen=True)
class Run:
    """A run folder. Everything is read from it; nothing here trains.

    Attributes:
        folder: ``runs/<name>``.
        config: what the run was asked to do.
    """

    folder: Path
    config: Config

    @classmethod
    def open(cls, folder: Path | str) -> Run:
        """Open an existing run.

        Raises:
            RequestError: there is no run in `folder`, or its config cannot be read.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise RequestError(f"{folder} is no run folder: it has no config.json")
        config = load(folder / "config.json")
        validate(config)
        return cls(folder, config)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of ``metrics.jsonl``, oldest first."""
        return MetricsLog(self.folder / "metrics.jsonl").read()

    @property
    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints."""
        return Checkpoints(self.folder / "checkpoints")

    @cached_property
    def facts(self) -> Facts:
        """What the run knows of its data.

        Raises:
            RequestError: it was never saved, and the data cannot be read either.
        """
        path = self.folder / "data.json"
        try:
            plain = self.config.data.path is None
            return Facts.from_json(path.read_text(encoding="utf-8"), plain)
        except (OSError, ValueError, KeyError, TypeError):
            # Runs of before, or a damaged file: the data themselves still tell.
            return Facts.of(load_data(self.config), self.config)

    @cached_property
    def dataset(self) -> Dataset:
        """The data that the run learned from, loaded again: the very same images, split alike.

        Raises:
            RequestError: they were arrays of a program, have changed, or cannot be read any more.
        """
        return _loaded_again(self, self.config)

    @cached_property
    def state(self) -> TrainState:
        """The state of the newest checkpoint.

        Raises:
            RequestError: there is no checkpoint yet.
        """
        use_compilation_cache()
        state = initial_state(self.config, self.facts)
        found = self.checkpoints.restore(arrays_of(state))
        if found is None:
            raise RequestError(f"{self.folder} has no checkpoint yet: train it first")
        for reason in found.skipped:
            Plain().say(f"checkpoint {reason}; using the one before it")
        return with_arrays(state, found)

    def evaluate(
        self, path: Path | str | None = None, *, dataset: Dataset | None = None
    ) -> Evaluation:
        """Evaluate the newest checkpoint on all test images.

        Args:
            path: other data, see `thinned.core.config.DataConfig`; None for the run's own.
            dataset: data that are in memory already, instead of a path.

        Raises:
            RequestError: the data have other classes or image shapes than the run's; or its own
                were arrays of a program and are not given.
        """
        state = self.state
        test = self.test_images(path) if dataset is None else matched(dataset, self.facts)
        return evaluate(state.apply_fn, state.variables, _placed(self.config, test))

    def test_images(self, path: Path | str | None = None) -> Split:
        """The test images of the run's own data, or of others, with the run's labels.

        Of other data that name no test images all are taken; unless they are the run's own data,
        moved, of which the run has learned from the rest.

        Raises:
            RequestError: as `evaluate`.
        """
        if path is None:
            return matched(self.dataset, self.facts)
        there = replace(self.config.data, path=str(path))
        if there.path == self.config.data.path:
            return matched(self.dataset, self.facts)
        height, width, _ = self.facts.image_shape
        data = replace(there, size=None, channels=None)
        source = open_source(data, self.config.seed)
        if decodes_files(source) and height == width:
            # Photos of any size are brought to the run's; arrays have to fit.
            source = open_source(self.facts.form_of(data), self.config.seed)
        found = source.load()
        own = _same_data(self, replace(self.config, data=there)) if found.drawn else None
        if own is not None:
            return matched(own, self.facts)
        if found.drawn:
            count = len(whole := everything(found))
            found = replace(found, test=whole)
            note = f"note: {path} names no test images: all {count:,} are evaluated"
            print(note, file=sys.stderr, flush=True)
        return matched(found, self.facts)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Class probabilities f32 [image, class] of images u8 [image, height, width, channel].

        Raises:
            RequestError: they are none of the run's shape; or neither u8, integers from 0 to 255,
                booleans nor floats from 0 to 1.
        """
        images = fitting_images(images, self.facts)
        return predict(self.state.apply_fn, self.state.variables, np.asarray(images))


def train(
    config: Config | None = None,
    *,
    name: str | None = None,
    runs: Path | str = "runs",
    quiet: bool = True,
    dataset: Dataset | None = None,
) -> Run:
    """Train a classifier in a run folder, or go on with the run of that name.

    Args:
        config: what to do; the corrected tutorial by default.
        name: the run's folder inside `runs`; when it exists, that run is continued. By default a
            new name that says what is trained.
        runs: where run folders live.
        quiet: whether to show nothing.
        dataset: what `load_data` gave for this config, for programs that train often; or data of
            your own, e.g. from `thinned.data.sources.arrays.Arrays`, with a config that names none.

    Returns:
        The finished run.

    Raises:
        RequestError: the config, the data or an existing run does not allow it.
        ThinnedError: training or saving failed.
    """
    config = Config() if config is None else config
    validate(config)
    folder = named(Path(runs), name) if name else None
    if folder is not None and (folder / "study.json").exists():
        raise RequestError(f"{folder} is a study: give the run another --name")
    if folder is not None and (folder / "config.json").exists():
        return resume(folder, config, quiet=quiet, dataset=dataset)
    dataset = load_data(config) if dataset is None else dataset
    facts = Facts.of(dataset, config)
    refuse_unfit(config, facts)
    _refuse_narrow(config, dataset.train)
    made = _made(folder) if folder is not None else _new_folder(Path(runs), config, facts)
    with _begun(made, config, dataset, facts, Silent() if quiet else Plain()) as run:
        return _train_in(run, dataset, facts, quiet)


def named(runs: Path, name: str) -> Path:
    """The folder of that name inside `runs`.

    Raises:
        RequestError: the name would lead out of `runs`, or names `runs` itself.
    """
    parts = Path(name).parts
    if not parts or ".." in parts or Path(name).is_absolute():
        raise RequestError(f"--name {name!r} leads out of {runs}: give a plain name")
    return runs / name


def resume(
    folder: Path | str,
    config: Config | None = None,
    *,
    quiet: bool = True,
    dataset: Dataset | None = None,
) -> Run:
    """Continue a run at the very step it stopped; the result is bit-identical to never stopping.

    Args:
        folder: the run.
        config: what is asked for now; may differ from the run's in epochs (more) and in how often
            to save. None asks for what the run was asked before.
        quiet: whether to show nothing.
        dataset: as for `train`.

    Raises:
        RequestError: `config` would change what has already happened.
    """
    run = Run.open(folder)
    config = run.config if config is None else config
    validate(config)
    # Where the data are may change; that they are the same is seen once they are loaded.
    past = replace(run.config, data=replace(run.config.data, path=config.data.path))
    changed = differences(run.config if config.data.path is None else past, config)
    if changed:
        raise RequestError(f"{folder} is a run of another config: {'; '.join(changed)}")
    if config.epochs < run.config.epochs:
        raise RequestError(
            f"{folder} was asked for {run.config.epochs} epochs; --epochs can only grow"
        )
    course = config.optim.schedule
    if course != "constant" and config.epochs != run.config.epochs:
        raise RequestError(
            f"{folder} cannot go on to {config.epochs} epochs: --optim.schedule {course} was laid "
            f"out over {run.config.epochs}"
        )
    if dataset is None:
        dataset = _loaded_again(run, config)
    with _continued(run, config, dataset) as run:
        return _train_in(run, dataset, run.facts, quiet)


class Busy(RequestError):
    """Another process trains this run."""


class OutOfMemory(ThinnedError):
    """The device has too little memory for what is trained on it."""


@contextmanager
def _memory_told() -> Generator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemory(
            "the device has too little memory: give a smaller network or --batch-size, or "
            "--data.in-memory no"
        ) from error


@_memory_told()
def train_together(
    configs: Sequence[Config], folders: Sequence[Path], dataset: Dataset
) -> list[ThinnedError | None]:
    """Train runs as lanes of one vmapped program, or go on with them.

    Each lane equals the run by itself up to rounding. Lanes have to fit together (see
    `fits_together`) and to have done the same number of steps; else they are trained singly.

    Args:
        configs: of the runs.
        folders: of the runs; those that exist hold runs of these very configs.
        dataset: of all of them, in memory.

    Returns:
        For each run None, or why it diverged.

    Raises:
        RequestError, ThinnedError, Stopped: as `train`.
        OutOfMemory: fewer lanes may fit; what was saved is good for going on.
    """
    facts = Facts.of(dataset, configs[0])
    use_compilation_cache()
    placed = _Placed.of(configs[0], dataset)
    with ExitStack() as stack:
        prepared: list[tuple[Parts, TrainState, Progress]] = []
        for config, folder in zip(configs, folders, strict=True):
            if (folder / "config.json").exists():
                begun = _continued(Run.open(folder), config, dataset)
            else:
                refuse_unfit(config, facts)
                _refuse_narrow(config, dataset.train)
                begun = _begun(_made(folder), config, dataset, facts, Silent())
            run = stack.enter_context(begun)
            parts, state, found = _prepared(run, dataset, facts, placed)
            progress = Progress() if found is None else Progress.from_json(found.progress)
            prepared.append((parts, state, progress))
        lanes = [each[0] for each in prepared]
        with StopSignal() as stop:
            if len({progress.step for _, _, progress in prepared}) == 1:
                states = [state for _, state, _ in prepared]
                return run_lanes(lanes, states, [each[2] for each in prepared], stop)
            return [_alone(*each, stop) for each in prepared]


def _alone(
    parts: Parts, state: TrainState, progress: Progress, stop: StopSignal
) -> ThinnedError | None:
    try:
        run_loop(parts, state, progress, stop)
    except Diverged as error:
        return error
    return None


def seed_of_data(config: Config) -> int | None:
    """The config's seed where it decides which images are which; None where any gives the same.

    Raises:
        RequestError: the data cannot be found.
    """
    data, seed = config.data, config.seed
    chosen = bool(data.validation) or data.limit is not None
    return seed if chosen or open_source(data, seed) != open_source(data, seed + 1) else None


def fits_together(config: Config, facts: Facts) -> Any:
    """A value that is equal for configs whose runs can be lanes of one program; None for none."""
    if config.model not in CATALOG and config.model != "auto":
        # What a network of the user's own does under vmap is not ours to promise.
        return None
    numbers = numbers_at(config, 1)(jnp.int32(0))
    kind, data = config.dropout.kind, dataclasses.asdict(config.data)
    return (
        build_model(config, facts),
        Rule.of(config.optim),
        tuple(sorted(numbers)),
        make_augment(config, facts),
        (kind, config.batch_size, config.epochs, seed_of_data(config), config.test, config.log),
        json.dumps(data),
    )


@contextmanager
def _begun(
    folder: Path, config: Config, dataset: Dataset, facts: Facts, view: Silent
) -> Generator[Run]:
    """A new run's folder, with all in it that is known before training, for this process alone."""
    with _locked(folder):
        environment = describe_environment(dataset.name, fingerprint(dataset))
        write_whole(folder / "environment.json", json.dumps(environment, indent=2) + "\n")
        write_whole(folder / "data.json", facts.to_json())
        _list_left_out(folder, dataset, view)
        write_whole(folder / "config.json", to_json(config))
        yield Run(folder, config)


@contextmanager
def _continued(run: Run, config: Config, dataset: Dataset) -> Generator[Run]:
    """A run's folder, for this process alone, once its data are what they were."""
    facts = run.facts
    with _locked(run.folder):
        now = describe_environment(dataset.name, fingerprint(dataset))
        for line in environment_changes(run.folder / "environment.json", now):
            Plain().say(line)
        _refuse_changed(run, config, now["data"]["sha256"])
        if replace(Facts.of(dataset, config), name=facts.name) != facts:
            raise RequestError(
                f"{run.folder} cannot go on: its data are no longer what it began with "
                f"({facts.train_size:,} training images, {len(facts.classes)} classes)"
            )
        write_whole(run.folder / "config.json", to_json(config))
        yield Run(run.folder, config)


@_memory_told()
def _train_in(run: Run, dataset: Dataset, facts: Facts, quiet: bool) -> Run:
    use_compilation_cache()
    parts, state, found = _prepared(run, dataset, facts, _Placed.of(run.config, dataset))
    progress = Progress() if found is None else Progress.from_json(found.progress)
    batch, total = run.config.batch_size, parts.plan.total_steps
    with view_for(quiet, progress.step * batch, total * batch) as view:
        _announce(view, run, dataset, found, parts.plan)
        with StopSignal() as stop:
            run_loop(replace(parts, view=view), state, progress, stop)
    return run


@dataclass(frozen=True)
class _Placed:
    """The splits of a dataset where they are to be: on the device, or still on the disk."""

    splits: Mapping[str, Batch | Split]

    @classmethod
    def of(cls, config: Config, dataset: Dataset) -> _Placed:
        splits = {name: split for name, split in dataset.splits.items() if len(split)}
        return cls({name: _placed(config, split) for name, split in splits.items()})


def _prepared(
    run: Run, dataset: Dataset, facts: Facts, placed: _Placed
) -> tuple[Parts, TrainState, Restored | None]:
    """What a run works with, and the state and the checkpoint where it begins."""
    config = run.config
    state = initial_state(config, facts)
    found = run.checkpoints.restore(arrays_of(state))
    kind = TensorBoardLog if config.log == "tensorboard" else MetricsLog
    log = kind(run.folder / "metrics.jsonl")
    log.keep_until(0 if found is None else found.step)
    plan = make_plan(config, facts, dataset.train.labels)
    parts = Parts(
        folder=run.folder,
        plan=plan,
        feed=_feed(plan, dataset.train, placed.splits["train"]),
        augment=make_augment(config, facts),
        held_out={name: data for name, data in placed.splits.items() if name != "train"},
        checkpoints=run.checkpoints,
        log=log,
        view=Silent(),
    )
    return parts, state if found is None else with_arrays(state, found), found


def feed_of(plan: Plan, split: Split) -> Feed:
    """The training images of a plan, on the device or streamed to it as the config wants."""
    return _feed(plan, split, _placed(plan.config, split))


def _feed(plan: Plan, split: Split, data: Batch | Split) -> Feed:
    config = plan.config
    weights = class_weights(split.labels) if config.data.balance == "weights" else None
    if isinstance(data, Split):
        return Streamed(plan, split, config.data.memory_mb * 1e6, weights)
    return Resident(plan, data if weights is None else data._replace(weights=jnp.asarray(weights)))


def _placed(config: Config, split: Split) -> Batch | Split:
    return on_device(split) if fits_in_memory(config, split) else split


def _refuse_narrow(config: Config, split: Split) -> None:
    """Refuse, before anything is written, to stream through less memory than a step takes."""
    if not fits_in_memory(config, split):
        steps_within(config.data.memory_mb * 1e6, config.batch_size, split.images.shape[1:])


def fits_in_memory(config: Config, split: Split) -> bool:
    """Whether a split is to be held on the device as a whole."""
    wanted = config.data.in_memory
    return wanted == "yes" or (
        wanted == "auto" and split.images.nbytes <= config.data.memory_mb * 1e6
    )


def _list_left_out(folder: Path, dataset: Dataset, view: Silent) -> None:
    if not dataset.left_out:
        return
    listed = folder / "left-out.txt"
    write_whole(listed, "".join(f"{out.path}\t{out.reason}\n" for out in dataset.left_out))
    count = len(dataset.left_out)
    files = "1 file" if count == 1 else f"{count:,} files"
    view.say(f"{files} could not be read and {'is' if count == 1 else 'are'} left out: {listed}")


def _announce(view: Silent, run: Run, dataset: Dataset, found: Restored | None, plan: Plan) -> None:
    for reason in found.skipped if found else ():
        view.say(f"checkpoint {reason}; going on from the one before it")
    if found and found.step >= plan.total_steps:
        view.say(f"{run.folder} is finished: {plan.config.epochs} epochs, {found.step} steps")
    elif found:
        view.say(f"resuming {run.folder} at step {found.step} of {plan.total_steps}")
    else:
        view.say(f"{run.folder}: {dataset.name}, {len(dataset.train):,} training images")
        for note in dataset.notes:
            view.say(note)
    if not fits_in_memory(plan.config, dataset.train):
        size = dataset.train.images.nbytes / 1e6
        held = isinstance(dataset.train.images, np.ndarray)
        where = "memory, where such a source is held as a whole," if held else "the disk"
        view.say(f"streaming {size:,.0f} MB of images from {where} (--data.in-memory)")


def _refuse_lost(run: Run) -> None:
    """Refuse to take the package's MNIST for arrays that a program gave."""
    if run.config.data.path is None and not run.facts.plain:
        raise RequestError(
            f"{run.folder} learned from arrays of a program, which are not saved: give them from "
            "Python, run.evaluate(dataset=...) or thinned.resume(folder, dataset=...), or evaluate "
            "with --data.path"
        )


def _loaded_again(run: Run, config: Config) -> Dataset:
    """A run's own data, from where `config` says that they are now.

    Which images are held out is drawn from all of them: one image more, and most of the images
    that would be tested on have been trained on. So that the data have changed is an error.

    Raises:
        RequestError: they cannot be read, or are others than the run began with.
    """
    _refuse_lost(run)
    try:
        dataset = load_data(config)
    except RequestError as error:
        if config.data.path is None or Path(config.data.path).exists():
            raise
        raise RequestError(
            f"the data of {run.folder}: {error}; where they have moved, say so once with "
            f"thinned train --resume {run.folder} --data NEW"
        ) from error
    _refuse_changed(run, config, fingerprint(dataset))
    return dataset


def _same_data(run: Run, config: Config) -> Dataset | None:
    """The data that `config` names, if they are those that the run learned from."""
    try:
        dataset = load_data(config)
    except RequestError:
        return None
    return dataset if fingerprint(dataset) == recorded_digest(run.folder) else None


def _refuse_changed(run: Run, config: Config, digest: str) -> None:
    known = recorded_digest(run.folder)
    if known in (digest, None) and (known or config.data.path == run.config.data.path):
        return
    raise RequestError(
        f"{config.data.path or 'these data'} are no longer what {run.folder} began with (another "
        "digest of images and labels): what it held out for testing is not known any more; bring "
        "its data back, or give other images with --data.path to evaluate"
    )


def with_arrays(state: TrainState, restored: Restored) -> TrainState:
    """The state with the arrays of a checkpoint, on the device."""
    arrays = jax.tree.map(jnp.asarray, restored.arrays)
    return state.replace(**arrays)


def on_device(split: Split) -> Batch:
    """A split on the device; the images stay u8."""
    images = split.images
    held = images if isinstance(images, np.ndarray) else images[np.arange(len(images))]
    return Batch(jnp.asarray(held), jnp.asarray(split.labels))


def use_compilation_cache() -> None:
    """Keep compiled programs on the disk between processes, unless JAX was told where already."""
    # An entry that a killed process left half written is compiled anew: nothing to worry about.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation")
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("xla")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def fitting_images(images: Any, facts: Facts) -> Any:
    """Images as the network of a run takes them: u8 of its shape; those on the disk stay there.

    Raises:
        RequestError: they are of another shape, kind or range.
    """
    if not isinstance(images, PackedImages):
        if np.shape(images) == facts.image_shape:
            raise RequestError(f"a single image of shape {facts.image_shape}: give images[None]")
        images = as_images(images, "predict")
    shape = tuple(images.shape[1:])
    if shape != facts.image_shape:
        raise RequestError(f"images are {shape}, but the run learned from {facts.image_shape}")
    return images


def matched(dataset: Dataset, facts: Facts) -> Split:
    """The test split of other data with the labels of the run's classes.

    Raises:
        RequestError: images of another shape, or a class that the run does not know.
    """
    test = dataset.test
    if tuple(test.images.shape[1:]) != facts.image_shape:
        raise RequestError(
            f"images are {tuple(test.images.shape[1:])}, but the run learned from "
            f"{facts.image_shape} (height, width, channel)"
        )
    if dataset.classes == facts.classes:
        return test
    known = {name: label for label, name in enumerate(facts.classes)}
    used = np.unique(test.labels)
    unknown = [label for label in used if dataset.classes[label] not in known]
    if unknown:
        raise RequestError(
            f"label {dataset.classes[unknown[0]]} is none of the run's {len(known)} classes"
        )
    table = np.asarray([known.get(name, -1) for name in dataset.classes], np.int32)
    return Split(test.images, table[test.labels])


def _new_folder(runs: Path, config: Config, facts: Facts) -> Path:
    """A folder that did not exist before, made here: two processes never share one."""
    # A name that a program gave must not lead out of `runs`.
    name = re.sub(r"[/\\\s]+", "-", printable(facts.name)).strip("-.")[:_LONGEST_NAME] or "data"
    for number in itertools.count(1):
        folder = runs / f"{name}-{model_name(config, facts)}-{number:03d}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise RequestError(f"cannot make run folder {folder}: {error.strerror}") from error
    raise AssertionError("unreachable")


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"cannot make run folder {folder}: {error.strerror}") from error
    return folder


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Hold the run for this process; the lock goes with the process, however it ends."""
    try:
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise RequestError(f"cannot write in {folder}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Busy(f"{folder} is being trained by another process") from error
        yield
