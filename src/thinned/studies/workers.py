"""The runs of a study in several processes, which stop and end with the one that began them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing import connection, resource_tracker
from pathlib import Path
from typing import Any, cast

from thinned.core.config import Config
from thinned.core.errors import ThinnedError
from thinned.engine.loop import Stopped, StopSignal
from thinned.runs.environment import usable_cores
from thinned.studies.jobs import Job, run_jobs
from thinned.studies.outcomes import Outcome

# Between two looks at whether a signal came.
_PATIENCE_S = 0.2


def share(
    base: Config,
    folder: Path,
    jobs: Sequence[Job],
    processes: int,
    report: Callable[[int, str, Outcome], None],
) -> None:
    """Run the jobs in several processes; each takes its part, see `dealt`, and tells by a pipe.

    Args:
        base, folder, jobs, report: as for `thinned.studies.jobs.run_jobs`.
        processes: how many, each with its part of the CPU cores.

    Raises:
        Stopped: a signal asked for it; the runs in progress are saved.
        ThinnedError: a process ended without its work done.
    """
    context = multiprocessing.get_context("spawn")
    parts = dealt(jobs, processes)
    ears: list[Any] = []
    workers: list[Any] = []
    # A terminal sends Ctrl-C to every process. The workers inherit that it waits: they are told by
    # SIGTERM alone, which ends one that still begins without a word, and lets the others save.
    # The tracker's start, within that of the first worker, would let the signal through again.
    resource_tracker.ensure_running()
    cores = usable_cores()
    with StopSignal() as stop:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for part in range(processes):
                ear, mouth = context.Pipe(duplex=False)
                own = cores[part * len(cores) // processes : (part + 1) * len(cores) // processes]
                worker = context.Process(
                    target=_work,
                    args=(base, folder, parts[part], own, mouth),
                    daemon=True,
                )
                worker.start()
                # Held by the worker alone, it closes when the worker ends, in whatever way.
                mouth.close()
                ears.append(ear)
                workers.append(worker)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        try:
            failures = _listen(ears, workers, stop, report)
        finally:
            for worker in workers:
                worker.join()
    if stop.number is not None:
        raise Stopped("stopped; what was done is saved", stop.number)
    if failures:
        raise ThinnedError(failures[0])
    if any(worker.exitcode for worker in workers):
        raise ThinnedError(
            f"a process of the study ended early: go on with the same command, --name {folder.name}"
        )


def dealt(jobs: Sequence[Job], processes: int) -> list[list[Job]]:
    """The jobs in so many parts: of every arm each part has as many runs as any other, or one less.

    Arms differ in what a run takes, and the runs of an arm do not.
    """
    arms = list(dict.fromkeys(arm.name for _, arm in jobs))
    by_arm = sorted(range(len(jobs)), key=lambda index: arms.index(jobs[index][1].name))
    return [[jobs[index] for index in sorted(by_arm[part::processes])] for part in range(processes)]


def _listen(
    ears: list[Any],
    workers: Sequence[Any],
    stop: StopSignal,
    report: Callable[[int, str, Outcome], None],
) -> list[str]:
    """Report what the workers say until the last has ended; pass on to them that they should stop.

    Returns:
        Why workers gave up, where they could say.
    """
    told = False
    failures: list[str] = []
    while ears:
        if stop.number is not None and not told:
            told = True
            for worker in workers:
                worker.terminate()
        for ear in connection.wait(ears, _PATIENCE_S):
            try:
                said = cast(Any, ear).recv()
            except EOFError:
                ears.remove(ear)
                continue
            if isinstance(said, str):
                failures.append(said)
            else:
                report(*said)
    return failures


def _work(
    base: Config, folder: Path, jobs: Sequence[Job], cores: Sequence[int], mouth: Any
) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # None where there are more processes than cores.
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    try:
        run_jobs(base, folder, jobs, lambda *said: mouth.send(said))
    except Stopped as stop:
        # The one who asked for it knows; a traceback would tell nothing.
        sys.exit(stop.exit_code)
    except BrokenPipeError:
        # Nobody is left to tell.
        sys.exit(1)
    except ThinnedError as error:
        mouth.send(str(error))
        sys.exit(error.exit_code)


def _end_with_parent() -> None:
    """Stop as by SIGTERM when the study's own process is gone, however it ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
