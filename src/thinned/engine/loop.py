"""The training loop: the only place that iterates over steps and epochs."""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

import jax
import numpy as np

from thinned.core.config import Config
from thinned.core.errors import ThinnedError
from thinned.core.types import Split
from thinned.data.batch import Batch
from thinned.engine.best import Best, better, waited_enough
from thinned.engine.build import Built
from thinned.engine.checkpoint import Checkpoints, Restored
from thinned.engine.feed import Feed
from thinned.engine.layout import ONE_DEVICE, Layout
from thinned.engine.logs import MetricsLog, Silent, told_time
from thinned.engine.metrics import BatchSums, Totals
from thinned.engine.plan import CHUNK_STEPS, Plan
from thinned.engine.step import TrainState

STATISTICS_BATCHES = 100
"""Batches over which the statistics of averaged weights are collected, at most an epoch's."""

TIMED_S = 1.0
"""Seconds of steps after which the time that a run takes is told."""

LONG_S = 60.0
"""What takes longer than this is told beforehand."""


class Diverged(ThinnedError):
    """The loss or a parameter is no longer a finite number."""


class Stopped(ThinnedError):
    """A signal asked the run to stop, and it is saved.

    Attributes:
        exit_code: 128 plus the signal's number: 130 for Ctrl-C, 143 for SIGTERM.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


@dataclass(frozen=True)
class Progress:
    """How far a run is; saved in every checkpoint, as JSON.

    Attributes:
        step: steps done.
        totals: sums over the epoch in progress.
        best: the best epoch that has ended; None where none is kept.
    """

    step: int = 0
    totals: Totals = dataclasses.field(default_factory=Totals)
    best: Best | None = None

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Progress:
        """The inverse of `dataclasses.asdict`.

        Raises:
            ThinnedError: it is damaged, which no digest of 0.1.0 could tell.
        """
        try:
            best = saved.get("best")
            return cls(saved["step"], Totals(**saved["totals"]), Best(**best) if best else None)
        except (KeyError, TypeError) as error:
            raise ThinnedError(
                f"checkpoint {saved.get('step')} is damaged ({error}): delete it to go on from the "
                "one before"
            ) from error


@dataclass(frozen=True)
class Parts:
    """What a run works with; see `thinned.runs.train`.

    Attributes:
        folder: the run's folder, to tell people about.
        built: what is trained, and its course.
        feed: gives the training images of each step.
        held_out: what to evaluate on after each epoch: name of the split -> its data.
        checkpoints: where states are saved.
        best: where those of the best epochs are kept.
        log: where metrics are recorded.
        view: what the person sees.
        rest_s: least time between the checkpoints of epochs, where these are shorter than saving.
        layout: how the work lies on devices.
    """

    folder: Path
    built: Built
    feed: Feed
    held_out: dict[str, Batch | Split]
    checkpoints: Checkpoints
    best: Checkpoints
    log: MetricsLog
    view: Silent
    rest_s: float = 0.0
    layout: Layout = ONE_DEVICE


class StopSignal(ExitStack):
    """Remembers the first Ctrl-C or SIGTERM; the second acts as if nobody listened.

    Only the main thread can listen: in another, nothing is noticed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.number: int | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.signal(number, self._notice)
                # None is one that Python did not set and cannot set again.
                self.callback(signal.signal, number, signal.SIG_DFL if before is None else before)
        return self

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.close()


class Pace:
    """How many steps to ask for at once: about a quarter of a second's worth.

    Args:
        seconds: that quarter.
    """

    def __init__(self, seconds: float = 0.25) -> None:
        self.count = 1
        self._seconds = seconds
        self._timed = False
        self._told = False
        self._spent = (0, 0.0)
        self._laps = (0, 0.0)

    def took(self, count: int, seconds: float) -> None:
        """So many steps took so long; the first call held a compilation and says nothing."""
        if self._timed:
            self._spent = self._spent[0] + count, self._spent[1] + seconds
            wanted = self._seconds * count / max(seconds, 1e-6)
            self.count = int(np.clip(wanted, 1, min(CHUNK_STEPS, 4 * self.count)))
        self._timed = True

    def lap(self, steps: int) -> float | None:
        """Seconds that `steps` take, as those since the last lap; None without any."""
        (count, seconds), self._spent = self._spent, (0, 0.0)
        self._laps = self._laps[0] + count, self._laps[1] + seconds
        return round(seconds / count * steps, 4) if count else None

    def forecast(self, steps: int, epochs: int) -> str | None:
        """What a person is told, once, of a long run when its first steps have been timed.

        Args:
            steps: left to do.
            epochs: that these are in, begun ones counted.

        Returns:
            A line; None where it is too early to tell, told already, or not worth it.
        """
        count, seconds = (a + b for a, b in zip(self._spent, self._laps, strict=True))
        if self._told or seconds < TIMED_S:
            return None
        self._told = True
        left_s = seconds / count * steps
        if left_s < LONG_S:
            return None
        return (
            f"about {told_time(left_s)} for {epochs:,} epochs ({count / seconds:.3g} steps a "
            "second, evaluation apart); Ctrl-C saves"
        )


def train(parts: Parts, state: TrainState, progress: Progress, stop: StopSignal) -> TrainState:
    """Train from `progress` to the end of the plan, or until no epoch is better any more.

    Args:
        parts: what the run works with.
        state: the state at ``progress.step``; donated.
        progress: where to go on.
        stop: asked after every chunk of steps.

    Returns:
        The final state, which is also saved.

    Raises:
        Diverged: a loss or parameter became NaN or infinite; the last good checkpoint stays.
        Stopped: a signal came; the state is saved.
        ThinnedError: saving failed.
    """
    plan, pace, saved_at = parts.built.plan, Pace(), time.monotonic()
    while not is_over(plan, progress):
        state, progress = _advance(parts, state, progress, pace)
        left = plan.total_steps - progress.step
        if told := pace.forecast(left, -(-left // plan.steps_per_epoch)):
            parts.view.say(told)
        epoch_ended = progress.step % plan.steps_per_epoch == 0
        # Of one process alone, clocks and signals would lead the others astray.
        pace.count, number, since = parts.layout.agreed(
            pace.count, stop.number or 0, time.monotonic() - saved_at
        )
        saving = bool(number) or since >= plan.config.checkpoint_every_s
        if saving or epoch_ended:
            state = collected(parts.built, parts.feed, state, progress.step, parts.layout)
        if epoch_ended:
            progress = _end_epoch(parts, state, progress, pace.lap(plan.steps_per_epoch))
            rested = since >= parts.rest_s or is_over(plan, progress)
            saving = saving or rested or is_best(progress)
        if saving:
            whole = parts.layout.whole(state)
            if parts.layout.leads:
                save(parts.checkpoints, whole, progress, parts.best)
            saved_at = time.monotonic()
        if number and not is_over(plan, progress):
            name = signal.Signals(number).name
            raise Stopped(
                f"stopped by {name} at step {progress.step}, saved; go on with "
                f"thinned train --resume {parts.folder}",
                number,
            )
    return state


def is_over(plan: Plan, progress: Progress) -> bool:
    """Whether nothing is left to train, or training has stopped early."""
    return progress.step >= plan.total_steps or stopped_early(plan, progress)


def stopped_early(plan: Plan, progress: Progress) -> bool:
    """Whether training has ended before its last epoch, for want of a better one."""
    epochs = progress.step // plan.steps_per_epoch
    return epochs < plan.config.epochs and waited_enough(progress.best, plan.config, epochs)


def save(
    checkpoints: Checkpoints, state: TrainState, progress: Progress, best: Checkpoints
) -> None:
    """Save a checkpoint, unless the state has gone bad; first into `best`, where it is that.

    A kill between the two leaves one in `best` that no checkpoint names: it is saved over.

    Raises:
        Diverged: a parameter is NaN or infinite.
        ThinnedError: saving failed.
    """
    arrays = arrays_of(state)
    finite = jax.tree.map(lambda leaf: bool(np.all(np.isfinite(leaf))), arrays["params"])
    if not all(jax.tree.leaves(finite)):
        raise Diverged(_divergence("a parameter", progress.step, checkpoints))
    saved = dataclasses.asdict(progress)
    if is_best(progress):
        best.save(progress.step, to_predict(arrays), saved)
    checkpoints.save(progress.step, arrays, saved)


def is_best(progress: Progress) -> bool:
    """Whether no epoch was better than the one that has just ended."""
    return progress.best is not None and progress.best.step == progress.step


def to_predict(arrays: dict[str, Any]) -> dict[str, Any]:
    """The arrays of a state without those that only training needs."""
    return {name: held for name, held in arrays.items() if name != "opt_state"}


def arrays_of(state: TrainState) -> dict[str, Any]:
    """The part of a state that a checkpoint holds, as a plain nested mapping of arrays."""
    arrays = {
        "step": state.step,
        "params": state.params,
        "opt_state": state.opt_state,
        "model_state": state.model_state,
    }
    averages = {"average": state.average, "average_state": state.average_state}
    return arrays | {name: held for name, held in averages.items() if held is not None}


def with_arrays(state: TrainState, restored: Restored) -> TrainState:
    """The state with the arrays of a checkpoint, on one device."""
    arrays = jax.device_put(restored.arrays)
    return state.replace(**arrays)


def collected(
    built: Built, feed: Feed, state: TrainState, step: int, layout: Layout = ONE_DEVICE
) -> TrainState:
    """The state with the statistics that its averaged weights have, for what evaluates or loads it.

    A pure function of the weights and the step: they are collected anew, from the first batches of
    the epoch that the last step belongs to, so that it does not matter where a run was cut.
    """
    if state.average_state is None:
        return state
    plan = built.plan
    first = (plan.epoch_of(step - 1) - 1) * plan.steps_per_epoch
    seen, wanted = 0, min(STATISTICS_BATCHES, plan.steps_per_epoch)
    while seen < wanted:
        data, chunk, count = feed.fetch(first + seen, wanted - seen)
        found = layout.collect(state, data, chunk, seen, count, built.augment)
        state = state.replace(average_state=found)
        seen += count
    return state


def _advance(
    parts: Parts, state: TrainState, progress: Progress, pace: Pace
) -> tuple[TrainState, Progress]:
    started = time.monotonic()
    data, chunk, count = parts.feed.fetch(progress.step, pace.count)
    state, sums = parts.layout.steps(state, data, chunk, count, parts.built.augment)
    sums = jax.tree.map(lambda leaf: np.asarray(leaf)[:count], sums)
    pace.took(count, time.monotonic() - started)
    _refuse_nonfinite(sums, progress.step, parts.checkpoints)
    parts.view.advance(int(np.sum(sums.count)))
    done = dataclasses.replace(
        progress, step=progress.step + count, totals=progress.totals.add(sums)
    )
    return state, done


def _end_epoch(
    parts: Parts, state: TrainState, progress: Progress, epoch_s: float | None
) -> Progress:
    """Evaluate, record, tell; the sums of the next epoch start from nothing."""
    plan, config = parts.built.plan, parts.built.config
    epoch = plan.epoch_of(progress.step - 1)
    results = {"train": progress.totals}
    ended = dataclasses.replace(progress, totals=Totals())
    variables = parts.layout.whole(state).variables
    # The validation images before the test images, see `Dataset.splits`: they say what is over.
    for split, data in parts.held_out.items():
        if split == "test" and config.test == "end" and not is_over(plan, ended):
            continue
        found = results[split] = parts.layout.evaluate(state.apply_fn, variables, data).totals
        if split == "validation":
            best = better(progress.best, config, epoch, progress.step, found)
            ended = dataclasses.replace(ended, best=best)
    stamp = {"epoch": epoch, "step": progress.step, "time_s": round(time.time(), 3)}
    # Of training alone: without evaluation, saving and compilation.
    timed = {"train": {"epoch_s": epoch_s}}
    parts.log.append(
        {"split": split, **record(totals), **stamp, **timed.get(split, {})}
        for split, totals in results.items()
    )
    told = ", ".join(
        f"{split} loss {totals.mean_loss:.4f} accuracy {totals.accuracy:.2%}"
        for split, totals in results.items()
    )
    parts.view.epoch(f"epoch {epoch}/{config.epochs}: {told}")
    if stopped_early(plan, ended):
        parts.view.say(told_stop(ended, config))
    return ended


def told_stop(progress: Progress, config: Config) -> str:
    """That a run stopped early, why, and how it could go on, for people."""
    best = progress.best or f"no finite {config.keep_best} on validation"
    return (
        f"stopped early at step {progress.step}: --patience {config.patience} ended without a "
        f"better epoch; kept: {best}; a larger --patience goes on"
    )


def record(totals: Totals) -> dict[str, Any]:
    """Totals as the fields of a record of ``metrics.jsonl``."""
    return {
        "loss": totals.mean_loss,
        "accuracy": totals.accuracy,
        "correct": totals.correct,
        "count": totals.count,
    }


def _refuse_nonfinite(sums: BatchSums, step: int, checkpoints: Checkpoints) -> None:
    bad = np.flatnonzero(~np.isfinite(sums.loss))
    if len(bad):
        raise Diverged(_divergence("the training loss", step + int(bad[0]), checkpoints))


def _divergence(what: str, step: int, checkpoints: Checkpoints) -> str:
    steps = checkpoints.usable()
    kept = (
        f"the last good checkpoint is step {steps[-1]}" if steps else "no checkpoint was saved yet"
    )
    return f"{what} is not finite at step {step}; {kept}; try a smaller --learning-rate"
