"""Proof that resuming is exact: train, kill, resume, compare bit by bit."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from thinned.core.config import Config, to_json
from thinned.core.errors import ThinnedError
from thinned.core.validation import refuse_idle, validate
from thinned.engine.best import Best
from thinned.engine.checkpoint import digest
from thinned.engine.loop import arrays_of, to_predict
from thinned.runs.run import Run


def verify_resume(config: Config, kills: int) -> bool:
    """Train in two processes, kill one `kills` times with SIGKILL, and compare the results.

    Args:
        config: what to train.
        kills: how often to kill; the moments are drawn at random over the time a run takes.

    Returns:
        Whether parameters, optimizer state and metrics are equal in every bit. A line for each
        array is printed.
    """
    config = validate(config)
    refuse_idle(config)
    with tempfile.TemporaryDirectory(prefix="thinned-verify-") as base:
        folder = Path(base)
        (folder / "config.json").write_text(to_json(config), encoding="utf-8")
        print("training without interruption", flush=True)
        started = time.monotonic()
        _finish(_start(folder, "whole"))
        duration = time.monotonic() - started
        _train_with_kills(folder, kills, duration)
        return _equal(Run.open(folder / "whole"), Run.open(folder / "killed"))


def _start(folder: Path, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "thinned", "train", "--quiet"]
    command += ["-c", str(folder / "config.json"), "--runs", str(folder), "--name", name]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate()
    if process.returncode:
        raise ThinnedError(f"training failed: {errors.strip().splitlines()[-1:]}")


def _train_with_kills(folder: Path, kills: int, duration: float) -> None:
    done = 0
    while done < kills:
        process = _start(folder, "killed")
        try:
            process.communicate(timeout=duration * random.uniform(0.2, 0.8))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            done += 1
            print(f"killed {done} of {kills}: {_where(folder / 'killed')}", flush=True)
        else:
            break
    _finish(_start(folder, "killed"))


def _where(folder: Path) -> str:
    if not (folder / "config.json").exists():
        return "before the run folder was made"
    steps = Run.open(folder).checkpoints.steps()
    return f"last checkpoint at step {steps[-1]}" if steps else "before the first checkpoint"


def differing(one: Run, two: Run) -> list[str]:
    """Names of the arrays in which the newest checkpoints of two runs differ in any bit.

    Also ``metrics.jsonl``, when the records differ in anything but times; and ``best epoch``, when
    another is kept, or its weights differ.
    """
    return [name for name, equal in _verdicts(one, two).items() if not equal]


def _equal(whole: Run, killed: Run) -> bool:
    verdicts = _verdicts(whole, killed)
    for name, equal in verdicts.items():
        print(f"{'equal' if equal else 'DIFFERS'}  {name}")
    return all(verdicts.values())


def _verdicts(one: Run, two: Run) -> dict[str, bool]:
    template = arrays_of(one.built.initial_state())
    first, second = _leaves(one, template), _leaves(two, template)
    # Bytes, not values: NaN is equal to NaN here, and 0.0 is not equal to -0.0.
    verdicts = {name: first[name].tobytes() == second[name].tobytes() for name in first}
    verdicts["metrics.jsonl"] = _timeless(one.metrics) == _timeless(two.metrics)
    if one.config.keep_best != "no":
        verdicts["best epoch"] = _kept(one) == _kept(two)
    return verdicts


def _kept(run: Run) -> tuple[Best | None, str]:
    """The best epoch, and a digest of its arrays."""
    return run.best, digest(to_predict(arrays_of(run.state)))


def _leaves(run: Run, template: Any) -> dict[str, np.ndarray]:
    newest = run.checkpoints.restore(template)
    if newest is None:
        raise ThinnedError(f"{run.folder} has no checkpoint")
    leaves = jax.tree_util.tree_leaves_with_path(newest.arrays)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def _timeless(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in record.items() if not name.endswith("_s")}
        for record in records
    ]
