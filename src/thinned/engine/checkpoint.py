"""Checkpoints through Orbax: whole or not there at all, checked when they are read back."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from thinned.core.disk import ensure_descriptors, ensure_room, plain_path, refuse_irregular
from thinned.core.errors import ThinnedError

KEPT = 3
"""Checkpoints kept in a run, so that a damaged one has others before it."""


@dataclass(frozen=True)
class Restored:
    """A checkpoint read back.

    Attributes:
        step: steps done when it was saved.
        arrays: the pytree of NumPy arrays that was saved.
        progress: the JSON saved beside them.
        skipped: later checkpoints that could not be used, as ``step: reason``.
    """

    step: int
    arrays: Any
    progress: dict[str, Any]
    skipped: tuple[str, ...] = ()


class Checkpoints:
    """Checkpoints of one run, ``folder/<step>/``.

    Saving waits until everything is on the disk under its final name: a process killed at any
    moment leaves the checkpoints before it untouched.

    Args:
        folder: where they are.
        kept: how many.
    """

    def __init__(self, folder: Path, kept: int = KEPT) -> None:
        self.folder = folder
        self._kept = kept
        self._passed: set[int] = set()
        self._proven = False

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, ascending."""
        if not self.folder.is_dir():
            return []
        names = [entry.name for entry in self.folder.iterdir() if entry.is_dir()]
        return sorted(int(name) for name in names if _is_number(name))

    def sealed(self, step: int) -> str:
        """The SHA-256 of arrays and progress that was saved with a checkpoint."""
        # Where Orbax keeps what is saved as JSON.
        saved = self.folder / str(step) / "progress" / "metadata"
        return json.loads(saved.read_text(encoding="utf-8"))["sha256"]

    def usable(self) -> list[int]:
        """`steps` without those that `restore` passed over."""
        return [step for step in self.steps() if step not in self._passed]

    def save(self, step: int, arrays: Any, progress: dict[str, Any]) -> None:
        """Save one checkpoint, then remove what `restore` passed over, and the oldest.

        The first one is read back before anything is removed: what cannot be restored here is
        noticed at once, not in the end.

        Args:
            step: steps done.
            arrays: a pytree of arrays, finite.
            progress: JSON to save beside it.

        Raises:
            ThinnedError: the disk is full, read-only, or fails otherwise.
        """
        arrays = jax.tree.map(np.asarray, jax.device_get(arrays))
        # As it will come back: what JSON has no word for is equal then.
        progress = json.loads(json.dumps({**progress, "step": step}))
        sealed = {**progress, "sha256": _seal(arrays, progress)}
        items = ocp.args.Composite(
            arrays=ocp.args.StandardSave(arrays), progress=ocp.args.JsonSave(sealed)
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._clear_unfinished()
            # Orbax reports these from its threads, in pages of tracebacks; this asks first.
            ensure_descriptors()
            # As much again for Orbax's own files.
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
            ensure_room(self.folder, 2 * size + 65_536)
            if step in self.steps():
                # It can only be a damaged one that resuming passed over.
                self._discard(step)
            self._passed.discard(step)
            with _hushed(), plain_path(self.folder) as folder, _orbax() as writer:
                writer.save(folder / str(step), items)
            self._prove(step, arrays)
            self._forget(step)
        except (OSError, ValueError, RuntimeError) as error:
            raise ThinnedError(
                f"cannot save checkpoint {step} in {self.folder}: {_reason(error)}; "
                "earlier checkpoints are untouched: mend this and resume"
            ) from error

    def restore(self, template: Any, at: int | None = None) -> Restored | None:
        """The newest checkpoint that is whole, or None when none was ever saved.

        Args:
            template: a pytree like the one saved; says which shapes and dtypes to expect.
            at: the step of the only one to take, instead.

        Raises:
            ThinnedError: there are checkpoints, but none can be used; or not that one.
        """
        skipped: list[str] = []
        for step in reversed(self.steps() if at is None else [at]):
            try:
                # Else every checkpoint would seem damaged.
                ensure_descriptors()
            except OSError as error:
                raise ThinnedError(f"cannot read {self.folder}: {_reason(error)}") from error
            try:
                arrays, progress = self._read(step, template)
                return Restored(step, arrays, progress, tuple(skipped))
            except MemoryError:
                raise
            # Damage can surface as nearly any error of Orbax, TensorStore or JSON.
            except Exception as error:
                skipped.append(f"{step}: {_reason(error)}")
                self._passed.add(step)
        if skipped:
            raise ThinnedError(f"no usable checkpoint in {self.folder}: {'; '.join(skipped)}")
        return None

    def _read(self, step: int, template: Any) -> tuple[Any, dict[str, Any]]:
        refuse_irregular(self.folder / str(step))
        template = jax.tree.map(np.asarray, jax.device_get(template))
        items = ocp.args.Composite(
            arrays=ocp.args.StandardRestore(template), progress=ocp.args.JsonRestore()
        )
        with _hushed(), plain_path(self.folder) as folder, _orbax() as reader:
            restored = reader.restore(folder / str(step), items)
        arrays, progress = restored.arrays, dict(restored.progress)
        _refuse_changed(arrays, progress)
        if progress.get("step") != step:
            raise ValueError(f"it was saved at step {progress.get('step')}")
        if _shapes(arrays) != _shapes(template):
            raise ValueError("the arrays are not those of this model")
        return arrays, progress

    def _prove(self, step: int, arrays: Any) -> None:
        """Read back the first checkpoint saved.

        Raises:
            OSError: it cannot be restored here.
        """
        if self._proven:
            return
        try:
            self._read(step, arrays)
        except Exception as error:
            told = f"it cannot be read back ({_reason(error)})"
            raise OSError(errno.EIO, told) from error
        self._proven = True

    def _forget(self, saved: int) -> None:
        """Remove what was passed over, and what is older than the newest ones up to `saved`."""
        whole = [step for step in self.usable() if step <= saved]
        for step in self.steps():
            if step in self._passed or step in whole[: -self._kept]:
                self._discard(step)
        self._passed.clear()

    def _discard(self, step: int) -> None:
        """Remove a checkpoint so that a kill in the midst leaves none that looks finished."""
        aside = self.folder / f"{step}.discarded"
        (self.folder / str(step)).rename(aside)
        shutil.rmtree(aside)

    def _clear_unfinished(self) -> None:
        for pattern in ("*.orbax-checkpoint-tmp*", "*.discarded"):
            for entry in self.folder.glob(pattern):
                shutil.rmtree(entry, ignore_errors=True)


def _orbax() -> ocp.Checkpointer:
    # Of several processes one writes; Orbax would wait for the others.
    alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _refuse_changed(arrays: Any, progress: dict[str, Any]) -> None:
    """Refuse what differs from the digest saved with it; takes that out of `progress`.

    Raises:
        ValueError: it differs.
    """
    if "sha256" in progress:
        same = progress.pop("sha256") == _seal(arrays, progress)
    else:
        # Checkpoints of 0.1.0 have a digest of the arrays alone.
        same = progress.pop("digest", None) == digest(arrays)
    if not same:
        raise ValueError("it differs from the digest saved with it")


def _seal(arrays: Any, progress: dict[str, Any]) -> str:
    told = json.dumps(progress, sort_keys=True)
    return hashlib.sha256(f"{digest(arrays)} {told}".encode()).hexdigest()


def digest(arrays: Any) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all arrays of a pytree, as hex."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        value = np.ascontiguousarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)} {value.dtype} {value.shape}".encode())
        total.update(value.tobytes())
    return total.hexdigest()


class _NoTracebacks(logging.Filter):
    """Of records with a traceback: what they tell is raised, too, and told in one line."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.exc_info


_NO_TRACEBACKS = _NoTracebacks()


class _Stragglers:
    """Passes over reads that were under way when another failed: their event loop is closed."""

    def __init__(self, before: Callable[[Any], None]) -> None:
        self._before = before

    def __call__(self, unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self._before(unraisable)


@contextmanager
def _hushed() -> Generator[None]:
    """Keep the threads of Orbax and TensorStore from printing the error that is raised anyway."""
    logger, before = logging.getLogger("absl"), sys.unraisablehook
    logger.addFilter(_NO_TRACEBACKS)
    if not isinstance(before, _Stragglers):
        sys.unraisablehook = _Stragglers(before)
    try:
        yield
    finally:
        logger.removeFilter(_NO_TRACEBACKS)
    # Not after an error: stragglers may still come.
    sys.unraisablehook = before


def _is_number(name: str) -> bool:
    # Not "007" or "²", which are no names that we give.
    return name.isascii() and name.isdecimal() and name == str(int(name))


def _shapes(arrays: Any) -> list[tuple[str, tuple[int, ...], np.dtype[Any]]]:
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    return [(jax.tree_util.keystr(path), leaf.shape, leaf.dtype) for path, leaf in leaves]


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, json.JSONDecodeError):
        # Orbax says neither that it was reading JSON, nor where.
        return f"it holds a damaged file of JSON ({error})"
    return " ".join(str(error).split())[:160] or type(error).__name__
