"""Checkpoints through Orbax: whole or not there at all, checked when they are read back."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

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
    """The checkpoints of one run, ``folder/<step>/``.

    Saving waits until everything is on the disk under its final name: a process killed at any
    moment leaves the checkpoints before it untouched.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.folder.iterdir() if entry.name.isdigit())

    def save(self, step: int, arrays: Any, progress: dict[str, Any]) -> None:
        """Save one checkpoint, then remove all but the newest `KEPT`.

        Args:
            step: steps done.
            arrays: a pytree of arrays, finite.
            progress: JSON to save beside it.

        Raises:
            ThinnedError: the disk is full, read-only, or fails otherwise.
        """
        arrays = jax.tree.map(np.asarray, jax.device_get(arrays))
        progress = {**progress, "digest": digest(arrays)}
        items = ocp.args.Composite(
            arrays=ocp.args.StandardSave(arrays), progress=ocp.args.JsonSave(progress)
        )
        try:
            self._clear_unfinished()
            self._ensure_room(sum(leaf.nbytes for leaf in jax.tree.leaves(arrays)))
            if step in self.steps():
                # It can only be a damaged one that resuming passed over.
                self._discard(step)
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
                writer.save(self.folder.resolve() / str(step), items)
            for old in self.steps()[:-KEPT]:
                self._discard(old)
        except (OSError, ValueError, RuntimeError) as error:
            raise ThinnedError(
                f"cannot save checkpoint {step} in {self.folder}: {_reason(error)}; "
                "earlier checkpoints are untouched: make room and resume"
            ) from error

    def restore(self, template: Any) -> Restored | None:
        """The newest checkpoint that is whole, or None when none was ever saved.

        Args:
            template: a pytree like the one saved; says which shapes and dtypes to expect.

        Raises:
            ThinnedError: there are checkpoints, but none can be used.
        """
        skipped: list[str] = []
        for step in reversed(self.steps()):
            try:
                arrays, progress = self._read(step, template)
                return Restored(step, arrays, progress, tuple(skipped))
            # Damage can surface as nearly any error of Orbax, TensorStore or JSON.
            except Exception as error:
                skipped.append(f"{step}: {_reason(error)}")
        if skipped:
            raise ThinnedError(f"no usable checkpoint in {self.folder}: {'; '.join(skipped)}")
        return None

    def _read(self, step: int, template: Any) -> tuple[Any, dict[str, Any]]:
        template = jax.tree.map(np.asarray, jax.device_get(template))
        items = ocp.args.Composite(
            arrays=ocp.args.StandardRestore(template), progress=ocp.args.JsonRestore()
        )
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            restored = reader.restore(self.folder.resolve() / str(step), items)
        arrays, progress = restored.arrays, dict(restored.progress)
        if progress.get("digest") != digest(arrays):
            raise ValueError("the arrays differ from the digest saved with them")
        if _shapes(arrays) != _shapes(template):
            raise ValueError("the arrays are not those of this model")
        return arrays, progress

    def _ensure_room(self, size: int) -> None:
        """Reserve and release room for `size` bytes, and as much again for Orbax's own files.

        Orbax reports a full disk from its threads, in pages of tracebacks; this asks first.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        probe = self.folder / ".room"
        try:
            with probe.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, 2 * size + 65_536)
        finally:
            probe.unlink(missing_ok=True)

    def _discard(self, step: int) -> None:
        """Remove a checkpoint so that a kill in the midst leaves none that looks finished."""
        aside = self.folder / f"{step}.discarded"
        (self.folder / str(step)).rename(aside)
        shutil.rmtree(aside)

    def _clear_unfinished(self) -> None:
        for pattern in ("*.orbax-checkpoint-tmp*", "*.discarded"):
            for entry in self.folder.glob(pattern):
                shutil.rmtree(entry, ignore_errors=True)


def digest(arrays: Any) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all arrays of a pytree, as hex."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        value = np.ascontiguousarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)} {value.dtype} {value.shape}".encode())
        total.update(value.tobytes())
    return total.hexdigest()


def _shapes(arrays: Any) -> list[tuple[str, tuple[int, ...], np.dtype[Any]]]:
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    return [(jax.tree_util.keystr(path), leaf.shape, leaf.dtype) for path, leaf in leaves]


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:160] or type(error).__name__
