"""Training in a run folder: begin, go on, and never mix two."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from thinned.core.config import (
    Config,
    changed_options,
    recipe,
    to_json,
    with_split_of,
    with_values,
)
from thinned.core.disk import Busy, held, write_whole
from thinned.core.errors import RequestError, printable
from thinned.core.rng import fixed_settings
from thinned.core.types import Dataset
from thinned.core.validation import refuse_idle, validate
from thinned.data.facts import Facts
from thinned.data.sources.load import load_data
from thinned.data.split import fingerprint
from thinned.engine.best import refuse_blind
from thinned.engine.build import Built, model_name
from thinned.engine.checkpoint import Checkpoints, Restored
from thinned.engine.devices import memory_told, use_compilation_cache
from thinned.engine.feed import feed_of, fits_in_memory, placed, refuse_narrow
from thinned.engine.head import fitted_head, with_head
from thinned.engine.layout import Layout, layout_of, with_parallel
from thinned.engine.logs import (
    MetricsLog,
    NoLog,
    Plain,
    Silent,
    TensorBoardLog,
    refuse_missing_log,
    view_for,
)
from thinned.engine.loop import (
    Diverged,
    Parts,
    Progress,
    Stopped,
    StopSignal,
    arrays_of,
    save,
    stopped_early,
    told_stop,
    with_arrays,
)
from thinned.engine.loop import train as run_loop
from thinned.engine.plan import Plan
from thinned.engine.processes import (
    Refused,
    from_first,
    heard,
    leading,
    met,
    told,
)
from thinned.engine.step import TrainState
from thinned.models.staged import HEAD, Staged
from thinned.runs.beginning import recorded_weights
from thinned.runs.environment import (
    describe_environment,
    environment_changes,
    fix_threads,
    refuse_other_settings,
)
from thinned.runs.features import Trunk, features_of, shortened
from thinned.runs.prepare import Prepared
from thinned.runs.pretrained import as_recorded
from thinned.runs.run import Run, facts_by, loaded_again, refuse_changed

_TRAINED = "being trained"
_LONGEST_NAME = 100
_REST_S = 5.0


@fixed_settings()
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
    config = validate(Config() if config is None else config)
    folder = named(Path(runs), name) if name else None
    if folder is not None and (folder / "study.json").exists():
        raise RequestError(f"{folder} is a study: give the run another --name")
    if folder is not None and (folder / "config.json").exists():
        return resume(folder, config, quiet=quiet, dataset=dataset)
    config = with_parallel(config)
    fix_threads(exact=config.parallel == "exact")
    if met():
        return _follow(dataset)
    with leading() as say:
        refuse_idle(config)
        refuse_missing_log(config.log)
        prepared = Prepared.of(config, dataset)
        config, dataset = prepared.built.config, prepared.dataset
        layout = layout_of(config)
        refuse_blind(config, dataset)
        refuse_narrow(config, dataset.train)
        made = (
            _made(folder)
            if folder is not None
            else _new_folder(Path(runs), config, prepared.built.facts)
        )
        with _begun(made, prepared, Silent() if quiet else Plain()) as run:
            say(_orders(run, prepared.built, dataset))
            return _train_in(run, dataset, prepared.built, layout, quiet)


@fixed_settings()
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
        config: what is asked for now; may differ from the run's in epochs and patience (more) and
            in how often to save. None asks for what the run was asked before.
        quiet: whether to show nothing.
        dataset: as for `train`.

    Raises:
        RequestError: `config` would change what has already happened.
    """
    run = Run.open(folder)
    config = (
        run.config
        if config is None
        else with_split_of(run.config, as_recorded(validate(config), run.config))
    )
    if config.parallel == "auto":
        config = replace(config, parallel=run.config.parallel)
    _refuse_changes(run, config)
    refuse_missing_log(config.log)
    fix_threads(run.folder / "environment.json")
    if met():
        return _follow(dataset)
    with leading() as say:
        layout = layout_of(config)
        if dataset is None:
            dataset = loaded_again(run, config)
        # Not from where the run's own config says that its data are: they may have moved.
        built = Built.of(config, facts_by(run, config, dataset), dataset.train.labels, run.start)
        with _continued(run, built, dataset, Silent() if quiet else Plain()) as run:
            say(_orders(run, built, dataset))
            return _train_in(run, dataset, built, layout, quiet)


def _orders(run: Run, built: Built, dataset: Dataset) -> dict[str, Any]:
    """What the other processes of a run need to know, see `_follow`."""
    return {
        "folder": str(run.folder.absolute()),
        "config": dataclasses.asdict(run.config),
        "facts": built.facts.to_json(),
        "data": fingerprint(dataset) if jax.process_count() > 1 else "",
    }


def _follow(dataset: Dataset | None) -> Run:
    """Take part in the run that process 0 leads; writes nothing, and says nothing but errors.

    Raises:
        SystemExit: the run has ended early, and process 0 has said why.
        ThinnedError: this process cannot take part.
    """
    try:
        said = heard()
        config = with_values(recipe(said["config"]["recipe"]), said["config"], "process 0")
        run = Run(Path(said["folder"]), config)
        dataset = load_data(config) if dataset is None else dataset
        if fingerprint(dataset) != said["data"]:
            raise RequestError(f"{dataset.name} is not what process 0 has: give all the same data")
        facts = Facts.from_json(said["facts"])
        built = Built.of(config, facts, dataset.train.labels, run.start)
        return _train_in(run, dataset, built, layout_of(config), quiet=True)
    except (Refused, Stopped, Diverged) as error:
        raise SystemExit(error.exit_code) from error


def named(runs: Path, name: str) -> Path:
    """The folder of that name inside `runs`.

    Raises:
        RequestError: the name would lead out of `runs`, or names `runs` itself.
    """
    parts = Path(name).parts
    if not parts or ".." in parts or Path(name).is_absolute():
        raise RequestError(f"--name {name!r} leads out of {runs}: give a plain name")
    return runs / name


def _refuse_changes(run: Run, config: Config) -> None:
    """Refuse what would change the steps that a run has done."""
    # Where the data are may change; that they are the same is seen once they are loaded.
    past = replace(run.config, data=replace(run.config.data, path=config.data.path))
    changed = changed_options(run.config if config.data.path is None else past, config)
    if changed:
        raise RequestError(f"{run.folder} is a run of another config: {'; '.join(changed)}")
    if config.epochs < run.config.epochs:
        raise RequestError(
            f"{run.folder} was asked for {run.config.epochs} epochs; --epochs can only grow"
        )
    if (config.patience or math.inf) < (run.config.patience or math.inf):
        raise RequestError(
            f"{run.folder} was asked for --patience {run.config.patience or 'unset'}; it can only "
            "grow"
        )
    course = config.optim.schedule
    if course != "constant" and config.epochs != run.config.epochs:
        raise RequestError(
            f"{run.folder} cannot go on to {config.epochs} epochs: --optim.schedule {course} was "
            f"laid out over {run.config.epochs}"
        )


@contextmanager
def _begun(folder: Path, prepared: Prepared, view: Silent) -> Generator[Run]:
    """A new run's folder, with all in it that is known before training, for this process alone."""
    dataset, built = prepared.dataset, prepared.built
    with held(folder, _TRAINED):
        # Looked at before, but data take a while to load.
        if (folder / "config.json").exists() or (folder / "study.json").exists():
            raise Busy(f"{folder} was begun by another process meanwhile: give the command again")
        environment = describe_environment(dataset.name, fingerprint(dataset))
        write_whole(folder / "environment.json", json.dumps(environment, indent=2) + "\n")
        write_whole(folder / "data.json", built.facts.to_json())
        _list_left_out(folder, dataset, view)
        if prepared.beginning is not None:
            prepared.beginning.save(folder)
        write_whole(folder / "config.json", to_json(built.config))
        yield Run(folder, built.config)


@contextmanager
def _continued(run: Run, built: Built, dataset: Dataset, view: Silent) -> Generator[Run]:
    """A run's folder, for this process alone, once its data are what they were."""
    config, facts = built.config, built.facts
    with held(run.folder, _TRAINED):
        _refuse_changes(Run.open(run.folder), config)
        refuse_other_settings(run.folder / "environment.json")
        now = describe_environment(dataset.name, fingerprint(dataset))
        for line in environment_changes(run.folder / "environment.json", now):
            view.warn(line)
        refuse_changed(run, config, now["data"]["sha256"])
        current = replace(Facts.of(dataset, config), name=facts.name)
        if config.is_pretrained:
            # Inputs are scaled as the weights want them, whatever the data.
            current = replace(current, mean=facts.mean, deviation=facts.deviation)
        if current != facts:
            raise RequestError(
                f"{run.folder} cannot go on: its data are no longer what it began with "
                f"({facts.train_size:,} training images, {len(facts.classes)} classes)"
            )
        record = run.folder / "data.json"
        # It may have been damaged, or be a pipe, which would be waited for.
        if not record.is_file():
            record.unlink(missing_ok=True)
        write_whole(record, facts.to_json())
        write_whole(run.folder / "config.json", to_json(config))
        yield Run(run.folder, config)


@memory_told()
def _train_in(run: Run, dataset: Dataset, built: Built, layout: Layout, quiet: bool) -> Run:
    use_compilation_cache()
    state, progress = built.initial_state(), Progress()
    # One object: what it passes over is removed once something later is saved.
    checkpoints = run.checkpoints
    restored = checkpoints.restore(arrays_of(state)) if layout.leads else None
    if restored is not None:
        state, progress = with_arrays(state, restored), Progress.from_json(restored.progress)
    elif _begins_with_fitted_head(run, built):
        state = _with_fitted_head(built, state, dataset, quiet)
        # Or it would be fitted anew after a kill, on a machine that may round otherwise.
        if layout.leads:
            save(checkpoints, state, progress, run.best_checkpoints)
    # One process has read it, and all go on from there.
    progress = Progress.from_json(told(dataclasses.asdict(progress)))
    state = state.replace(**jax.tree.map(from_first, arrays_of(state)))
    built, state, dataset = shortened(built, state, dataset, quiet)
    parts = _parts(run, dataset, built, checkpoints, progress.step, layout)
    batch, total = run.config.batch_size, built.plan.total_steps
    with view_for(quiet, progress.step * batch, total * batch) as view:
        _announce(view, run, dataset, restored, progress, built.plan)
        if layout.about:
            view.say(layout.about)
        with StopSignal() as stop:
            run_loop(replace(parts, view=view), layout.placed(state), progress, stop)
    return run


def _begins_with_fitted_head(run: Run, built: Built) -> bool:
    """Whether more than the head trains, and the head is new."""
    if not run.config.is_pretrained or not isinstance(built.model, Staged):
        return False
    head = (recorded_weights(run.folder) or {}).get("head")
    return head == "new" and HEAD in built.trains and built.trains != (HEAD,)


def _with_fitted_head(built: Built, state: TrainState, dataset: Dataset, quiet: bool) -> TrainState:
    trunk = Trunk.of(built, state, len(built.parts) - 1)
    features = features_of(trunk, dataset.train, quiet)
    return with_head(state, fitted_head(features, dataset.train.labels, len(dataset.classes)))


def _parts(
    run: Run,
    dataset: Dataset,
    built: Built,
    checkpoints: Checkpoints,
    step: int,
    layout: Layout,
) -> Parts:
    """What a run works with from that step on; what was recorded after it is forgotten."""
    config = run.config
    where = {
        name: placed(config, split, layout) for name, split in dataset.splits.items() if len(split)
    }
    train = where.pop("train")
    kind = TensorBoardLog if config.log == "tensorboard" else MetricsLog
    log = (kind if layout.leads else NoLog)(run.folder / "metrics.jsonl")
    log.keep_until(step)
    return Parts(
        folder=run.folder,
        built=built,
        feed=feed_of(built.plan, dataset.train, train, layout),
        held_out=where,
        checkpoints=checkpoints,
        best=run.best_checkpoints,
        log=log,
        view=Silent(),
        # An epoch of kept features is over in less time than it takes to save it.
        rest_s=_REST_S if built.on_features else 0.0,
        layout=layout,
    )


def _list_left_out(folder: Path, dataset: Dataset, view: Silent) -> None:
    if not dataset.left_out:
        return
    listed = folder / "left-out.txt"
    write_whole(listed, "".join(f"{out.path}\t{out.reason}\n" for out in dataset.left_out))
    count = len(dataset.left_out)
    files = "1 file" if count == 1 else f"{count:,} files"
    view.say(f"{files} could not be read and {'is' if count == 1 else 'are'} left out: {listed}")


def _announce(
    view: Silent,
    run: Run,
    dataset: Dataset,
    restored: Restored | None,
    progress: Progress,
    plan: Plan,
) -> None:
    for reason in restored.skipped if restored else ():
        view.warn(f"checkpoint {reason}; going on from the one before it")
    if restored and restored.step >= plan.total_steps:
        view.say(f"{run.folder} is finished: {plan.config.epochs} epochs, {restored.step} steps")
    elif stopped_early(plan, progress):
        view.say(f"{run.folder} {told_stop(progress, plan.config)}")
    elif restored:
        view.say(f"resuming {run.folder} at step {restored.step} of {plan.total_steps}")
    else:
        view.say(f"{run.folder}: {dataset.name}, {len(dataset.train):,} training images")
        for note in dataset.notes:
            view.say(note)
    if not fits_in_memory(plan.config, dataset.train):
        size = dataset.train.images.nbytes / 1e6
        held = isinstance(dataset.train.images, np.ndarray)
        where = "memory, where such a source is held as a whole," if held else "the disk"
        view.say(f"streaming {size:,.0f} MB of images from {where} (--data.in-memory)")


def _new_folder(runs: Path, config: Config, facts: Facts) -> Path:
    """A folder that did not exist before, made here: two processes never share one."""
    # A name that a program gave must not lead out of `runs`.
    name = re.sub(r"[/\\\s]+", "-", printable(facts.name))
    name = name.strip("-.")[:_LONGEST_NAME] or "data"
    model = model_name(config, facts)
    for number in itertools.count(1):
        folder = runs / f"{name}-{model}-{number:03d}"
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
