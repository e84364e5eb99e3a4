"""A run: the folder that holds everything of one training, read."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from thinned.core.config import Config, load
from thinned.core.disk import read_regular
from thinned.core.errors import RequestError, ThinnedError
from thinned.core.rng import fixed_settings
from thinned.core.types import Dataset, Split, Variables
from thinned.core.validation import validate
from thinned.data.facts import Facts
from thinned.data.pack import PackedImages
from thinned.data.sources.arrays import as_images
from thinned.data.sources.load import decodes_files, load_data, load_to_look_at, open_source
from thinned.data.split import everything, fingerprint
from thinned.engine.best import Best
from thinned.engine.build import Built
from thinned.engine.checkpoint import KEPT, Checkpoints, Restored, digest
from thinned.engine.devices import use_compilation_cache
from thinned.engine.evaluation import Evaluation
from thinned.engine.feed import placed
from thinned.engine.layout import all_here
from thinned.engine.logs import MetricsLog, warn
from thinned.engine.loop import Progress, arrays_of, to_predict, with_arrays
from thinned.engine.step import TrainState
from thinned.models.apply import predict
from thinned.runs.beginning import beginning_of
from thinned.runs.environment import recorded_digest
from thinned.runs.features import read_by


@dataclass(frozen=True)
class Run:
    """A run folder. Everything is read from it; nothing here trains.

    Attributes:
        folder: ``runs/<name>``.
        config: what the run was asked to do.
        keeps: whether what a still part of its network makes of images is kept for the next time,
            see `thinned.runs.features`: not of such as nobody will ask for again.
    """

    folder: Path
    config: Config
    keeps: bool = True

    @classmethod
    def open(cls, folder: Path | str) -> Run:
        """Open an existing run.

        Raises:
            RequestError: there is no run in `folder`, or its config cannot be read.
        """
        folder = Path(folder)
        # Not as a method of the path, which some versions of Python let raise for a name too long.
        if not os.path.isfile(folder / "config.json"):
            raise RequestError(f"{folder} is no run folder: it has no config.json")
        return cls(folder, validate(load(folder / "config.json")))

    def passing(self) -> Run:
        """The same run, which keeps nothing; what was read of it already is not read again."""
        other = copy.copy(self)
        # The dataclass is frozen; its fields lie beside what `cached_property` found.
        vars(other)["keeps"] = False
        return other

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of ``metrics.jsonl``, oldest first."""
        return MetricsLog(self.folder / "metrics.jsonl").read()

    @property
    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints."""
        return Checkpoints(self.folder / "checkpoints")

    @property
    def best_checkpoints(self) -> Checkpoints:
        """Those of its best epochs by ``keep_best``, without what only training needs."""
        # Each of the others may name another one, and so may the one that is being saved.
        return Checkpoints(self.folder / "checkpoints-best", KEPT + 1)

    @cached_property
    def facts(self) -> Facts:
        """What the run knows of its data.

        Raises:
            RequestError: what was saved is damaged, and the data do not tell, either: they cannot
                be read, are others by now, or are no more than a part of it.
        """
        saved = _saved_facts(self)
        # Where those are damaged, the data themselves still tell.
        return saved or Facts.of(_same_again(self, self.config), self.config)

    @cached_property
    def dataset(self) -> Dataset:
        """The data that the run learned from, loaded again: the very same images, split alike.

        Raises:
            RequestError: they were arrays of a program, have changed, or cannot be read any more.
        """
        return loaded_again(self, self.config)

    @cached_property
    def built(self) -> Built:
        """What its config made of its data: network, sites, plan; without the data themselves."""
        return Built.of(self.config, self.facts, start=self.start)

    @property
    def start(self) -> Callable[[], Variables] | None:
        """Reads the variables that it began with, where they were no drawn ones."""
        return beginning_of(self.folder) if self.config.is_pretrained else None

    @cached_property
    def state(self) -> TrainState:
        """The state of the newest checkpoint, or that of the `best` epoch, where one is kept.

        The latter is whole but for the optimizer's part, which is that of a new run.

        Raises:
            RequestError: there is no checkpoint yet.
            ThinnedError: none can be used.
        """
        use_compilation_cache()
        state = self.built.initial_state()
        newest = self._newest(arrays_of(state))
        for reason in newest.skipped:
            warn(f"checkpoint {reason}; using the one before it")
        best = Progress.from_json(newest.progress).best
        if best is not None:
            try:
                kept = self.best_checkpoints.restore(to_predict(arrays_of(state)), best.step)
            except ThinnedError as error:
                warn(f"{error}; using the last epoch instead of the best")
            else:
                newest = kept or newest
        return with_arrays(state, newest)

    @cached_property
    def weights(self) -> str:
        """A digest of all variables by which `state` predicts: another one where it was trained on.

        Raises:
            RequestError, ThinnedError: as `state`.
        """
        return digest(self.state.variables)[:32]

    @cached_property
    def best(self) -> Best | None:
        """The best epoch by ``keep_best``, whose weights `state` has; None where none is kept.

        Raises:
            RequestError: there is no checkpoint yet.
            ThinnedError: none can be used.
        """
        if self.config.keep_best == "no":
            return None
        newest = self._newest(arrays_of(self.built.initial_state()))
        return Progress.from_json(newest.progress).best

    def _newest(self, template: Any) -> Restored:
        newest = self.checkpoints.restore(template)
        if newest is None:
            raise RequestError(f"{self.folder} has no checkpoint yet: train it first")
        return newest

    @fixed_settings()
    def evaluate(
        self, path: Path | str | None = None, *, dataset: Dataset | None = None
    ) -> Evaluation:
        """Evaluate `state` on all test images.

        Args:
            path: other data, see `thinned.core.config.DataConfig`; None for the run's own.
            dataset: data that are in memory already, instead of a path.

        Raises:
            RequestError: the data have other classes or image shapes than the run's; or its own
                were arrays of a program and are not given.
        """
        test = self.test_images(path) if dataset is None else matched(dataset, self.facts)
        state, images = read_by(self.built, self.state, test.images, self.keeps)
        test = Split(images, test.labels)
        layout = all_here()
        data = placed(self.config, test, layout)
        return layout.evaluate(state.apply_fn, layout.everywhere(state.variables), data)

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
        dataset = load_to_look_at(source)
        own = _same_data(self, replace(self.config, data=there)) if dataset.drawn else None
        if own is not None:
            return matched(own, self.facts)
        if dataset.drawn:
            count = len(whole := everything(dataset))
            dataset = replace(dataset, test=whole)
            note = f"note: {path} names no test images: all {count:,} are evaluated"
            print(note, file=sys.stderr, flush=True)
        return matched(dataset, self.facts)

    @fixed_settings()
    def predict(self, images: np.ndarray) -> np.ndarray:
        """Class probabilities f32 [image, class] of images u8 [image, height, width, channel].

        Raises:
            RequestError: they are none of the run's shape; or neither u8, integers from 0 to 255,
                booleans nor floats from 0 to 1.
        """
        images = fitting_images(images, self.facts.image_shape)
        state, images = read_by(self.built, self.state, np.asarray(images), self.keeps)
        return predict(state.apply_fn, state.variables, images)


def note_best(run: Run) -> None:
    """Say beside the output that a run's best epoch is used, not its last, where that is so."""
    if run.best is not None:
        warn(f"note: of {run.folder}, {run.best} is used")


def refuse_lost(run: Run) -> None:
    """Refuse to take the package's MNIST for arrays that a program gave."""
    if run.config.data.path is None and not run.facts.plain:
        raise RequestError(
            f"{run.folder} learned from arrays of a program, which are not saved: give them from "
            "Python, run.evaluate(dataset=...) or thinned.resume(folder, dataset=...), or evaluate "
            "with --data.path"
        )


def _saved_facts(run: Run) -> Facts | None:
    """What ``data.json`` says; None where it is damaged and the data would say it as well."""
    path = run.folder / "data.json"
    try:
        return Facts.from_json(read_regular(path))
    except (OSError, ValueError, KeyError, TypeError):
        why = None
        if run.config.data.path is None and recorded_digest(run.folder) is None:
            why = "nothing says whether the run learned from the package's MNIST or from arrays"
        elif run.config.is_pretrained and run.config.data.normalise == "auto":
            why = "nothing else says how its pretrained network wants its inputs"
        if why is None:
            return None
        raise RequestError(f"{path} cannot be read, and {why}: restore it from a copy") from None


def facts_by(run: Run, config: Config, dataset: Dataset) -> Facts:
    """What a run knows of its data, in whose place `config` says that these are now.

    Raises:
        RequestError: what was saved is damaged, and these are other data than the run began with.
    """
    saved = _saved_facts(run)
    if saved is None:
        refuse_changed(run, config, fingerprint(dataset))
    return saved or Facts.of(dataset, config)


def loaded_again(run: Run, config: Config) -> Dataset:
    """A run's own data, from where `config` says that they are now.

    Which images are held out is drawn from all of them: one image more, and most of the images
    that would be tested on have been trained on. So that the data have changed is an error.

    Raises:
        RequestError: they cannot be read, or are others than the run began with.
    """
    refuse_lost(run)
    return _same_again(run, config)


def _same_again(run: Run, config: Config) -> Dataset:
    try:
        dataset = load_data(config)
    except RequestError as error:
        if config.data.path is None or Path(config.data.path).exists():
            raise
        raise RequestError(
            f"the data of {run.folder}: {error}; where they have moved, say so once with "
            f"thinned train --resume {run.folder} --data NEW"
        ) from error
    refuse_changed(run, config, fingerprint(dataset))
    return dataset


def _same_data(run: Run, config: Config) -> Dataset | None:
    """The data that `config` names, if they are those that the run learned from."""
    try:
        dataset = load_data(config)
    except RequestError:
        return None
    return dataset if fingerprint(dataset) == recorded_digest(run.folder) else None


def refuse_changed(run: Run, config: Config, digest: str) -> None:
    """Refuse data of another digest than those that a run began with."""
    known = recorded_digest(run.folder)
    if known in (digest, None) and (known or config.data.path == run.config.data.path):
        return
    raise RequestError(
        f"{config.data.path or 'these data'} are no longer what {run.folder} began with (another "
        "digest of images and labels): what it held out for testing is not known any more; bring "
        "its data back, or give other images with --data.path to evaluate"
    )


def fitting_images(images: Any, wanted: tuple[int, ...]) -> Any:
    """Images as the network of a run takes them: u8 of its shape; those on the disk stay there.

    Raises:
        RequestError: they are of another shape, kind or range.
    """
    if not isinstance(images, PackedImages):
        if np.shape(images) == wanted:
            raise RequestError(f"a single image of shape {wanted}: give images[None]")
        images = as_images(images, "predict")
    shape = tuple(images.shape[1:])
    if shape != wanted:
        raise RequestError(f"images are {shape}, but the run learned from {wanted}")
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
