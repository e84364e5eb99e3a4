"""The runs of a study on a cluster, by Dask: a scheduler that exists, or one made here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from thinned.core.config import Config
from thinned.core.errors import RequestError, ThinnedError, need
from thinned.engine.loop import Stopped, StopSignal
from thinned.studies.jobs import Job, left_of, place_of, run_jobs
from thinned.studies.outcomes import Outcome, read_outcome, write_outcome

_PATIENCE_S = 0.2
# Between two looks at whether a signal came.
_MEET_S = 30

_ALONE = threading.Lock()
"""JAX and the memory of a worker serve one run at a time, however many threads it has."""


def refuse_missing() -> None:
    """Say before the work that Dask is not installed.

    Raises:
        RequestError: it is not.
    """
    need("distributed", "--cluster", "cluster")


def share_on(
    address: str,
    base: Config,
    folder: Path,
    jobs: Sequence[Job],
    processes: int,
    report: Callable[[int, str, Outcome], None],
) -> None:
    """Run the jobs on the workers of a Dask cluster, which see the same files as this process.

    A run whose worker is lost goes on from its checkpoint on another one. A run that has lost more
    workers than Dask allows (``distributed.scheduler.allowed-failures``, 3) has failed.

    Args:
        address: of a scheduler, e.g. ``tcp://HOST:8786``; or ``local`` for workers made here.
        base, folder, jobs, report: as for `thinned.studies.jobs.run_jobs`.
        processes: how many workers are made where the cluster is local.

    Raises:
        Stopped: a signal asked for it; what was saved by then stays.
        ThinnedError: there is no scheduler.
    """
    from distributed import wait

    with ExitStack() as held:
        client = _client(held, address, processes)
        # `wait` asks for it; as the default of the whole program it would be another's, too.
        held.enter_context(client.as_current())
        waiting = {
            client.submit(_work, base, folder.absolute(), job, pure=False): job for job in jobs
        }
        stop = held.enter_context(StopSignal())
        while waiting:
            try:
                ready: Any = wait(list(waiting), _PATIENCE_S, "FIRST_COMPLETED")
                done: set[Any] = ready.done
            except TimeoutError:
                done = set()
            if stop.number is not None:
                client.cancel(list(waiting))
                raise Stopped("stopped; what was done is saved", stop.number)
            for future in done:
                seed, arm = job = waiting.pop(future)
                report(seed, arm.name, _outcome(future, _place(folder, job)))


def _client(held: ExitStack, address: str, processes: int) -> Any:
    from distributed import Client, LocalCluster

    try:
        at: Any = address
        if address == "local":
            # Dask's types know nothing of no dashboard.
            quiet: dict[str, Any] = {"dashboard_address": None, "silence_logs": 40}
            cluster: Any = LocalCluster(n_workers=processes, threads_per_worker=1, **quiet)
            at = held.enter_context(cluster)
        return held.enter_context(Client(at, timeout=_MEET_S, set_as_default=False))
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise RequestError(f"--cluster {address}: there is no scheduler ({reason})") from error


def _work(base: Config, folder: Path, job: Job) -> Outcome:
    """One run, in a worker; of one that is over, what is on the disk."""
    # Dask does again whatever a lost worker was the only one to know the result of.
    if not left_of(folder, [job]) and (past := read_outcome(_place(folder, job))) is not None:
        return past
    said: list[Outcome] = []
    with _ALONE:
        run_jobs(base, folder, [job], lambda seed, arm, outcome: said.append(outcome))
    return said[0]


def _place(folder: Path, job: Job) -> Path:
    seed, arm = job
    return place_of(folder, arm, seed)


def _outcome(future: Any, place: Path) -> Outcome:
    # No look at its status: where a worker is lost with the result, that is pending again.
    error = future.exception()
    if error is None:
        return future.result()
    # The run itself never raises: workers were lost, or cannot see the files.
    lost = Outcome("failed", f"lost: {' '.join(str(error).split())[:200]}")
    with suppress(ThinnedError):
        write_outcome(place, lost)
    return lost
