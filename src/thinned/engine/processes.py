"""Several processes of one run: how they find each other, agree, and end together."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from thinned.core.errors import RequestError, ThinnedError
from thinned.engine.devices import xla_flags

START_S = 600
"""How long processes wait for one another at the start: a cold node may have to load its image."""

_PATIENCE = {
    "xla_cpu_collective_timeout_seconds": 3600,
    "xla_cpu_collective_call_terminate_timeout_seconds": 3600,
}
"""How long CPUs wait for one another in mid-run: process 0 may save, another one read a cold disk.

Gloo's own 30 seconds are less than that takes. A process that has died is noticed at once."""

_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether Slurm, Open MPI or Kubernetes started this process as one of several."""
    counts = (environment.get(name, "") for name in _COUNTS)
    # Any pod is inside Kubernetes; those of an indexed job are several.
    pods = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys()
    return pods or any(count.isdecimal() and int(count) > 1 for count in counts)


@contextmanager
def joined(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    timeout_s: int = START_S,
    debug: bool = False,
) -> Generator[None]:
    """Be one of several processes; comes before anything else is asked of JAX.

    Args:
        coordinator: HOST:PORT at which process 0 is to be reached; None leaves it, and the others,
            to what Slurm, Open MPI or Kubernetes say.
        processes: how many there are.
        process: which of them this is, from 0.
        timeout_s: how long to wait for the others.
        debug: whether to show what JAX says when it ends this process.

    Raises:
        RequestError: only a part of these was given, or they do not fit.
        ThinnedError: the others did not come.
    """
    given = (coordinator, processes, process)
    if None in given and given != (None, None, None):
        raise RequestError("--coordinator, --processes and --process go together")
    if coordinator is not None:
        _refuse_unfit(coordinator, processes or 0, process or 0)
    own = "deactivate" if coordinator is not None else None
    over = _watched(debug)
    try:
        with _direct():
            jax.distributed.initialize(
                *given,
                local_device_ids=_own_gpus(),
                cluster_detection_method=own,
                initialization_timeout=timeout_s,
            )
    except (RuntimeError, ValueError) as error:
        # They would be waited for again at the end.
        _leave_at_once(1)
        over()
        reason = " ".join(str(error).split())[:160]
        raise ThinnedError(f"the processes of this run did not meet: {reason}") from error
    try:
        with xla_flags(**_PATIENCE), peers_told():
            yield
        over()
    except BaseException as error:
        over()
        code = error.code if isinstance(error, SystemExit) else getattr(error, "exit_code", 1)
        # Those that a signal stopped all end, and process 0 not before it has saved.
        if not isinstance(code, int) or code < 128:
            _leave_at_once(code if isinstance(code, int) else 1)
        raise


_ENDED = (
    "thinned: a process of this run has ended without a word: start all of them again, with the "
    "same command, to go on from the last checkpoint"
)
_WATCH = "import os, sys; os.read(0, 1) or print(sys.argv[1], file=sys.stderr)"


def _watched(debug: bool) -> Callable[[], None]:
    """Have it told in one line when JAX ends this process, since another one has ended.

    JAX prints pages of a stack then, and leaves Python no time to say anything; so a small process
    listens for the end of this one.

    Returns:
        To be called at the end that was meant.
    """
    sys.stderr.flush()
    shown = os.dup(2)
    command = [sys.executable, "-I", "-c", _WATCH, _ENDED]
    listener = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    sys.stderr = open(shown, "w", buffering=1, errors="backslashreplace")  # noqa: SIM115
    if not debug:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)

    def over() -> None:
        listener.communicate(b".")

    return over


def _refuse_unfit(coordinator: str, processes: int, process: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise RequestError(f"--coordinator is {coordinator!r}: expected HOST:PORT")
    if not 0 <= process < processes:
        raise RequestError(f"--process is {process}: expected 0 to {processes - 1} (--processes)")


def _own_gpus(environment: Mapping[str, str] = os.environ) -> list[int] | None:
    """All GPUs that Slurm's --gpus-per-task shows this process; JAX would take one by its rank."""
    if "SLURM_GPUS_PER_TASK" not in environment:
        return None
    return list(range(len(environment.get("CUDA_VISIBLE_DEVICES", "0").split(","))))


@contextmanager
def _direct() -> Generator[None]:
    """No proxy stands between the processes of a run."""
    held = {name: os.environ.pop(name) for name in list(os.environ) if "_proxy" in name.lower()}
    try:
        yield
    finally:
        os.environ.update(held)


def _leave_at_once(code: int) -> None:
    """End without waiting for the others, who may wait for this process."""

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    # What is registered last is called first, before JAX's own farewell.
    atexit.register(leave)


def follows() -> bool:
    """Whether another process of this run leads: it alone writes and speaks."""
    return jax.process_count() > 1 and jax.process_index() > 0


def met() -> bool:
    """Whether this process follows another one; comes when all have started JAX."""
    if jax.process_count() > 1:
        # Between CPUs, the last one may come 30 seconds after the first to the first exchange, and
        # loading data takes longer.
        multihost_utils.sync_global_devices("met")
    return follows()


def from_first(array: np.ndarray) -> np.ndarray:
    """The array of process 0, of this one's shape, in every bit."""
    if jax.process_count() == 1:
        return array
    held = np.ascontiguousarray(array)
    words = held.reshape(-1).view(np.uint8)
    found = np.asarray(multihost_utils.process_allgather(words))[0]
    return found.view(held.dtype).reshape(np.shape(array))


def told(said: dict[str, Any] | None = None) -> dict[str, Any]:
    """What process 0 says to all.

    Args:
        said: JSON; of process 0 alone.
    """
    if jax.process_count() == 1:
        return said or {}
    text = np.frombuffer(json.dumps(said).encode(), np.uint8)
    size = int(from_first(np.asarray([len(text)], np.int32))[0])
    padded = np.zeros(size, np.uint8)
    padded[: min(size, len(text))] = text[:size]
    return json.loads(from_first(padded).tobytes().decode())


class Refused(ThinnedError):
    """Process 0 could not begin, and has said why."""


@contextmanager
def leading() -> Generator[Callable[[dict[str, Any]], None]]:
    """Gives what says to the others what to do; what ends this process before ends them, too."""
    said = False

    def say(orders: dict[str, Any]) -> None:
        nonlocal said
        said = True
        told(orders)

    try:
        yield say
    except ThinnedError as error:
        if not said and jax.process_count() > 1:
            told({"refused": str(error), "exit_code": error.exit_code})
        raise


def heard() -> dict[str, Any]:
    """What process 0 says, to a process that follows.

    Raises:
        Refused: it could not begin.
    """
    said = told()
    if "refused" in said:
        refused = Refused(f"process 0 could not begin: {said['refused']}")
        refused.exit_code = said["exit_code"]
        raise refused
    return said


@contextmanager
def peers_told() -> Generator[None]:
    """That a process of the run is gone is told in one line."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        reason = " ".join(str(error).split())[:160]
        raise ThinnedError(
            f"another process of this run has ended ({reason}): start all of them again, with "
            "the same command, to go on from the last checkpoint"
        ) from error
