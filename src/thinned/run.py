"""Runs: folders that hold everything of one training, and the wiring that fills them."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from thinned.checkpoint import Checkpoints, Restored
from thinned.config import Config, differences, load, to_json, validate
from thinned.data.source import open_source
from thinned.data.split import fingerprint, hold_out, limit
from thinned.dropout.sites import DropoutSpec, dropout_sites
from thinned.environment import describe_environment, environment_changes
from thinned.errors import RequestError
from thinned.evaluate import Evaluation, evaluate
from thinned.logs import MetricsLog, Plain, Silent, view_for, write_whole
from thinned.loop import Parts, Progress, StopSignal, arrays_of
from thinned.loop import train as run_loop
from thinned.models.cnn import CNN
from thinned.optim import adam, with_learning_rate
from thinned.plan import Plan
from thinned.predict import predict
from thinned.rng import key_for, stream_root
from thinned.state import TrainState, create_state
from thinned.step import Batch
from thinned.types import Dataset, Key, Split


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
    def restored(self) -> tuple[TrainState, Dataset]:
        """The state of the newest checkpoint, and the data the run learned from.

        Raises:
            RequestError: there is no checkpoint yet.
        """
        dataset = load_data(self.config)
        state = initial_state(self.config, dataset)
        found = self.checkpoints.restore(arrays_of(state))
        if found is None:
            raise RequestError(f"{self.folder} has no checkpoint yet: train it first")
        for reason in found.skipped:
            Plain().say(f"checkpoint {reason}; using the one before it")
        return with_arrays(state, found), dataset

    def evaluate(self, path: Path | None = None) -> Evaluation:
        """Evaluate the newest checkpoint on all test images.

        Args:
            path: a folder of other data, see `thinned.config.DataConfig`; None for the run's own.

        Raises:
            RequestError: the data have other classes or image shapes than the run's.
        """
        state, dataset = self.restored
        test = dataset.test if path is None else open_source(path).load().test
        _refuse_misfit(test, dataset)
        return evaluate(state.apply_fn, state.variables, on_device(test))

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Class probabilities f32 [image, class] of images u8 [image, height, width, channel]."""
        state, _ = self.restored
        return predict(state.apply_fn, state.variables, np.asarray(images))


def train(
    config: Config | None = None,
    *,
    name: str | None = None,
    runs: Path | str = "runs",
    quiet: bool = True,
) -> Run:
    """Train a classifier in a run folder, or go on with the run of that name.

    Args:
        config: what to do; the corrected tutorial by default.
        name: the run's folder inside `runs`; when it exists, that run is continued. By default a
            new name that says what is trained.
        runs: where run folders live.
        quiet: whether to show nothing.

    Returns:
        The finished run.

    Raises:
        RequestError: the config, the data or an existing run does not allow it.
        ThinnedError: training or saving failed.
    """
    config = Config() if config is None else config
    validate(config)
    folder = Path(runs) / name if name else None
    if folder is not None and (folder / "config.json").exists():
        return resume(folder, config, quiet=quiet)
    dataset = load_data(config)
    refuse_unfit(config, dataset)
    folder = _new_folder(Path(runs), config, dataset) if folder is None else _made(folder)
    with _locked(folder):
        environment = describe_environment(dataset.name, fingerprint(dataset))
        write_whole(folder / "environment.json", json.dumps(environment, indent=2) + "\n")
        write_whole(folder / "config.json", to_json(config))
        return _train_in(folder, config, dataset, quiet)


def resume(folder: Path | str, config: Config | None = None, *, quiet: bool = True) -> Run:
    """Continue a run at the very step it stopped; the result is bit-identical to never stopping.

    Args:
        folder: the run.
        config: what is asked for now; may differ from the run's in epochs (more) and in how often
            to save. None asks for what the run was asked before.
        quiet: whether to show nothing.

    Raises:
        RequestError: `config` would change what has already happened.
    """
    run = Run.open(folder)
    config = run.config if config is None else config
    validate(config)
    changed = differences(run.config, config)
    if changed:
        raise RequestError(f"{folder} is a run of another config: {'; '.join(changed)}")
    if config.epochs < run.config.epochs:
        raise RequestError(
            f"{folder} was asked for {run.config.epochs} epochs; --epochs can only grow"
        )
    dataset = load_data(config)
    with _locked(run.folder):
        now = describe_environment(dataset.name, fingerprint(dataset))
        for line in environment_changes(run.folder / "environment.json", now):
            Plain().say(line)
        write_whole(run.folder / "config.json", to_json(config))
        return _train_in(run.folder, config, dataset, quiet)


def _train_in(folder: Path, config: Config, dataset: Dataset, quiet: bool) -> Run:
    run = Run(folder, config)
    state = initial_state(config, dataset)
    found = run.checkpoints.restore(arrays_of(state))
    progress = Progress()
    if found is not None:
        state, progress = with_arrays(state, found), Progress.from_json(found.progress)
    log = MetricsLog(folder / "metrics.jsonl")
    log.keep_until(progress.step)
    plan = make_plan(config, dataset)
    held_out = {"validation": dataset.validation, "test": dataset.test}
    batch = config.batch_size
    with view_for(quiet, progress.step * batch, plan.total_steps * batch) as view:
        _announce(view, run, dataset, found, plan)
        parts = Parts(
            folder=folder,
            plan=plan,
            train=on_device(dataset.train),
            held_out={name: on_device(split) for name, split in held_out.items() if split},
            checkpoints=run.checkpoints,
            log=log,
            view=view,
        )
        with StopSignal() as stop:
            run_loop(parts, state, progress, stop)
    return run


def _announce(view: Silent, run: Run, dataset: Dataset, found: Restored | None, plan: Plan) -> None:
    for reason in found.skipped if found else ():
        view.say(f"checkpoint {reason}; going on from the one before it")
    if found and found.step >= plan.total_steps:
        view.say(f"{run.folder} is finished: {plan.config.epochs} epochs, {found.step} steps")
    elif found:
        view.say(f"resuming {run.folder} at step {found.step} of {plan.total_steps}")
    else:
        view.say(f"{run.folder}: {dataset.name}, {len(dataset.train):,} training images")


def load_data(config: Config) -> Dataset:
    """The dataset that a config names, validation images held out.

    Raises:
        RequestError: the data cannot be read or do not fit together.
    """
    dataset = open_source(config.data.path).load()
    if config.data.validation:
        dataset = hold_out(dataset, config.data.validation, config.seed)
    if config.data.limit is not None:
        dataset = limit(dataset, config.data.limit, config.seed)
    return dataset


def build_model(config: Config, dataset: Dataset) -> nn.Module:
    """The network that a config names; its rates travel beside the batch, not in it."""
    wanted = config.dropout
    spec = DropoutSpec(wanted.kind, bits=wanted.bits)
    if wanted.kind == "block":
        spec = replace(spec, block_size=wanted.block_size)
    if wanted.kind == "concrete":
        spec = replace(spec, rate=wanted.rate, examples=len(dataset.train))
    return _network(len(dataset.classes), spec)


@cache
def _network(classes: int, spec: DropoutSpec) -> nn.Module:
    """One object for equal networks: a compiled step is found again by it."""
    return CNN(classes=classes, dropout=spec)


def make_plan(config: Config, dataset: Dataset) -> Plan:
    """What each step of a run will do.

    Raises:
        RequestError: a rate is given for a site that the model does not have.
    """
    sites = dropout_sites(build_model(config, dataset), _example(dataset), train=True)
    for name in config.dropout.sites:
        if name not in sites:
            known = ", ".join(sites)
            raise RequestError(
                f"--dropout.sites {name}: model {config.model} has no such site, but {known}"
            )
    fixed = tuple(name for name, site in sites.items() if not site.learned)
    return Plan(config, len(dataset.train), fixed)


def initial_state(config: Config, dataset: Dataset) -> TrainState:
    """The state at step 0: a pure function of the config and the shape of the images."""
    use_compilation_cache()
    model = build_model(config, dataset)
    state = create_state(model, _example(dataset), params_key(config), adam())
    return state.replace(opt_state=with_learning_rate(state.opt_state, config.learning_rate))


def params_key(config: Config) -> Key:
    """The key that initialises the parameters."""
    if config.randomness.derivation == "tutorial":
        return stream_root(config.seed, "params", "tutorial")
    return key_for(config.seed, "params")


def with_arrays(state: TrainState, restored: Restored) -> TrainState:
    """The state with the arrays of a checkpoint, on the device."""
    arrays = jax.tree.map(jnp.asarray, restored.arrays)
    return state.replace(**arrays)


def on_device(split: Split) -> Batch:
    """A split on the device; the images stay u8."""
    return Batch(jnp.asarray(split.images), jnp.asarray(split.labels))


def use_compilation_cache() -> None:
    """Keep compiled programs on the disk between processes, unless JAX was told where already."""
    # An entry that a killed process left half written is compiled anew: nothing to worry about.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation")
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(Path(base) / "thinned" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _example(dataset: Dataset) -> jax.Array:
    return jnp.ones((1, *dataset.train.images.shape[1:]), jnp.float32)


def refuse_unfit(config: Config, dataset: Dataset) -> None:
    """Refuse a config that cannot train on a dataset, before anything is written.

    Raises:
        RequestError: says which option does not fit.
    """
    size = len(dataset.train)
    if config.batch_size > size:
        raise RequestError(
            f"--batch-size {config.batch_size} is larger than the {size} training images"
        )
    if min(dataset.train.images.shape[1:3]) < 4:
        raise RequestError(
            f"images are {dataset.train.images.shape[1]} x {dataset.train.images.shape[2]}: "
            "the model needs at least 4 x 4"
        )
    if config.dropout.kind == "path":
        raise RequestError(
            f"--dropout.kind path drops residual branches, and model {config.model} has none"
        )
    make_plan(config, dataset)


def _refuse_misfit(test: Split, dataset: Dataset) -> None:
    if test.images.shape[1:] != dataset.test.images.shape[1:]:
        raise RequestError(
            f"images are {test.images.shape[1:]}, but the run learned from "
            f"{dataset.test.images.shape[1:]} (height, width, channel)"
        )
    if test.labels.max() >= len(dataset.classes):
        raise RequestError(
            f"label {test.labels.max()} is none of the run's {len(dataset.classes)} classes"
        )


def _new_folder(runs: Path, config: Config, dataset: Dataset) -> Path:
    """A folder that did not exist before, made here: two processes never share one."""
    for number in itertools.count(1):
        folder = runs / f"{dataset.name}-{config.model}-{number:03d}"
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
            raise RequestError(f"{folder} is being trained by another process") from error
        yield
