"""Proof that resuming is exact: train, kill, resume, compare bit by bit."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from thinned.core.config import Config, to_json
from thinned.core.errors import RequestError, ThinnedError
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
        finish(start(folder, "whole"))
        duration = time.monotonic() - started
        train_with_kills(folder, kills, {None: duration})
        return _equal(Run.open(folder / "whole"), Run.open(folder / "killed"))


_FATE_S = 150.0
"""JAX takes up to 100 s to notice that a peer is gone."""


class Shape(NamedTuple):
    """How many processes share a run, and how many devices each has."""

    processes: int
    devices: int

    @classmethod
    def of(cls, text: str) -> Shape:
        """From DEVICES, or PROCESSESxDEVICES.

        Raises:
            RequestError: it is neither.
        """
        found = re.fullmatch(r"(?:([1-9]\d*)x)?([1-9]\d*)", text, re.ASCII)
        if found is None:
            raise RequestError(f"--layouts {text}: expected DEVICES, or PROCESSESxDEVICES")
        return cls(int(found[1] or 1), int(found[2]))

    def __str__(self) -> str:
        """For people."""
        return (
            f"{self.processes} x {self.devices} devices"
            if self.processes > 1
            else (f"{self.devices} device{'s' * (self.devices > 1)}")
        )


def verify_layout(config: Config, shapes: Sequence[Shape], kills: int) -> bool:
    """Train on several layouts, once more with a kill between each two, and compare the results.

    On a CPU, which passes for as many devices as are wanted.

    Args:
        config: what to train, by ``--parallel exact``.
        shapes: the layouts, the first of which the others are compared with.
        kills: how often a run, whose layout changes each time, is killed with SIGKILL.

    Returns:
        Whether all ended with the same bits. A line for each run is printed.

    Raises:
        RequestError: there is nothing to compare.
        ThinnedError: training failed.
    """
    if len(shapes) + kills < 2:
        raise RequestError("--layouts names one layout and --kills is 0: nothing is compared")
    config = replace(validate(config), parallel="exact")
    refuse_idle(config)
    with tempfile.TemporaryDirectory(prefix="thinned-verify-") as base:
        folder = Path(base)
        (folder / "config.json").write_text(to_json(config), encoding="utf-8")
        durations: dict[Shape | None, float] = {}
        for index, shape in enumerate(shapes):
            started = time.monotonic()
            finish(start(folder, str(index), shape))
            durations[shape] = time.monotonic() - started
            print(f"trained on {shape}", flush=True)
        found = train_with_kills(folder, kills, durations) if kills else []
        first, *others = (Run.open(folder / str(index)) for index in range(len(shapes)))
        named = [*zip(map(str, shapes[1:]), others, strict=True)]
        if kills:
            # It may have come to its end before the moment that was drawn.
            name = f"a run that was killed {len(found)} of {kills} times and moved"
            named.append((name, Run.open(folder / "killed")))
        verdicts = {name: differing(first, run) for name, run in named}
        for name, wrong in verdicts.items():
            print(f"{'DIFFERS' if wrong else 'equal'}  {name}{', '.join(['', *wrong[:3]])}")
        return not any(verdicts.values())


def start(folder: Path, name: str, shape: Shape | None = None) -> list[subprocess.Popen[str]]:
    """Begin, or go on with, the run of that name, by the config beside it; on that layout."""
    command = [sys.executable, "-m", "thinned", "train", "--quiet"]
    command += ["-c", str(folder / "config.json"), "--runs", str(folder), "--name", name]
    if shape is None:
        return [subprocess.Popen(command, stderr=subprocess.PIPE, text=True)]
    return start_with([*command, "--devices", "all"], shape)


def start_with(command: Sequence[str], shape: Shape) -> list[subprocess.Popen[str]]:
    """Begin the processes of that layout, each by this command, told where they meet."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    flags = environment.get("XLA_FLAGS", "")
    count = f"--xla_force_host_platform_device_count={shape.devices}"
    environment["XLA_FLAGS"] = f"{flags} {count}".strip()
    several: list[list[str]] = [[]]
    if shape.processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = f"127.0.0.1:{free.getsockname()[1]}"
        together = ["--coordinator", place, "--processes", str(shape.processes), "--process"]
        several = [[*together, str(index)] for index in range(shape.processes)]
    return [
        subprocess.Popen([*command, *own], stderr=subprocess.PIPE, text=True, env=environment)
        for own in several
    ]


def finish(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Wait for the processes of a run.

    Raises:
        ThinnedError: it failed.
    """
    said = [process.communicate()[1] for process in processes]
    wrong = [text for process, text in zip(processes, said, strict=True) if process.returncode]
    if wrong:
        raise ThinnedError(f"training failed: {wrong[0].strip().splitlines()[-1:]}")


def train_with_kills(
    folder: Path, kills: int, durations: Mapping[Shape | None, float]
) -> list[str]:
    """Train the run ``killed``, one process of which is killed so often; layouts take turns.

    Args:
        folder: of the run.
        kills: how often.
        durations: of a run that nobody kills, in seconds, on each of the layouts.

    Returns:
        Where each kill found the run; fewer than `kills` where it came to its end before.
    """
    found: list[str] = []
    turns = itertools.cycle(durations)
    while len(found) < kills:
        shape = next(turns)
        processes = start(folder, "killed", shape)
        try:
            processes[0].communicate(timeout=durations[shape] * random.uniform(0.2, 0.8))
        except subprocess.TimeoutExpired:
            kill_one(processes)
            found.append(_where(folder / "killed"))
            print(f"killed {len(found)} of {kills}: {found[-1]}", flush=True)
        else:
            break
    finish(start(folder, "killed", next(turns)))
    return found


def kill_one(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Kill one of a run's processes with SIGKILL; wait for the others, which may not have met it.

    Not for ever: those who wait for it at the start are killed, too.
    """
    random.choice(processes).send_signal(signal.SIGKILL)
    for process in processes:
        try:
            process.communicate(timeout=_FATE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


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


def hashed(run: Run) -> str:
    """SHA-256, as hex, of what `differing` compares: by the digest saved with the last checkpoint.

    Raises:
        ThinnedError: there is no checkpoint.
    """
    steps = run.checkpoints.steps()
    if not steps:
        raise ThinnedError(f"{run.folder} has no checkpoint")
    records = json.dumps(_timeless(run.metrics), sort_keys=True)
    held = f"{run.checkpoints.sealed(steps[-1])} {records}"
    return hashlib.sha256(held.encode()).hexdigest()


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
