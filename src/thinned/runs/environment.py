"""What a run was made with: versions, device, data."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import json
import os
import platform
import subprocess
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import jax
from jax._src import xla_bridge

from thinned.core.disk import read_regular
from thinned.core.errors import RequestError

SETTINGS = (
    "jax_threefry_partitionable",
    "jax_enable_x64",
    "jax_default_prng_impl",
    "jax_random_seed_offset",
    "jax_default_matmul_precision",
)
"""JAX's settings under which a seed means another network, or a product other bits."""

_THREADS = "PJRT_NPROC"
# Linux has it.
_AFFINITY: Callable[[int], Set[int]] | None = getattr(os, "sched_getaffinity", None)

VERSIONED = ("thinned", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
"""Packages whose versions a run records: another version may give other bits."""


def describe_environment(data_name: str, data_sha256: str) -> dict[str, Any]:
    """Versions, device and data: what must be equal for a run to repeat bit by bit."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in VERSIONED},
        "device": {"platform": device.platform, "kind": device.device_kind},
        "cpu_count": os.cpu_count(),
        "cpu_affinity": len(usable_cores()),
        "cpu_threads": _threads_in_force(),
        "settings": {name: getattr(jax.config, name) for name in SETTINGS},
        "git_revision": git_revision(Path(str(importlib.resources.files("thinned")))),
        "data": {"name": data_name, "sha256": data_sha256},
    }


def environment_changes(path: Path, now: dict[str, Any]) -> list[str]:
    """What differs between the environment recorded in `path` and `now`, one line each."""
    before = _record(path)
    if not isinstance(before.get("packages"), dict):
        return [f"note: {path} cannot be read: nothing is known of the versions before"]
    lines = [
        f"note: {name} was {before['packages'].get(name)}, is {version}: "
        "the result may differ in its bits"
        for name, version in now["packages"].items()
        if before["packages"].get(name) != version
    ]
    if before.get("device") != now["device"]:
        lines.append(f"note: the device was {before.get('device')}, is {now['device']}")
    return lines + _other_threads(before, now["cpu_threads"], now["device"]["platform"])


def thread_changes(path: Path) -> list[str]:
    """What `environment_changes` says of threads alone; a line or none."""
    return _other_threads(_record(path), _threads_in_force(), jax.devices()[0].platform)


def _other_threads(before: dict[str, Any], now: int, platform: str) -> list[str]:
    threads = before.get("cpu_threads", now)
    if threads == now or platform != "cpu":
        return []
    return [
        f"note: JAX computed with {threads} threads, now with {now}: the result "
        f"may differ in its bits; start with {_THREADS}={threads}, before JAX does"
    ]


def refuse_other_settings(path: Path) -> None:
    """Refuse to go on under other settings of JAX than those recorded in `path`.

    Raises:
        RequestError: one of them differs.
    """
    for name, value in _of(_record(path), "settings").items():
        now = getattr(jax.config, name, None)
        if name in SETTINGS and now != value:
            raise RequestError(
                f"{path.parent} was trained with {name.upper()}={value}, and JAX is now set to "
                f"{now}: what it draws or computes would change; set it back"
            )


EXACT_THREADS = 8
"""Of new runs whose bits must not depend on the cores that there are."""


def fix_threads(environment: Path | None = None, *, exact: bool = False) -> None:
    """Start JAX with the threads that a run was begun with: they shape the sums, and so the bits.

    One core of many threads then ends with the bits of many cores. Without effect once JAX runs.

    Args:
        environment: the record of the run to go on with; None for as many threads as this process
            may use cores, or as the variable ``PJRT_NPROC`` says.
        exact: whether it is `EXACT_THREADS` instead of the number of cores.
    """
    if _has_started():
        return
    recorded = _record(environment).get("cpu_threads") if environment else None
    before = os.environ.get(_THREADS)
    usual = EXACT_THREADS if exact and before is None else _threads_in_force()
    _IN_FORCE[:] = [recorded if isinstance(recorded, int) and recorded > 0 else usual]
    os.environ[_THREADS] = str(_IN_FORCE[0])
    try:
        jax.devices()
    finally:
        # The programs that this one starts may have other cores.
        os.environ.pop(_THREADS)
        if before is not None:
            os.environ[_THREADS] = before


_IN_FORCE: list[int] = []
"""The threads with which `fix_threads` started JAX."""


def _threads_in_force() -> int:
    """As far as that can be known: JAX reads the variable when it starts, and tells nobody."""
    if _IN_FORCE:
        return _IN_FORCE[0]
    given = os.environ.get(_THREADS)
    if given is None:
        return len(usable_cores())
    if not given.isdecimal() or int(given) < 1:
        raise RequestError(f"{_THREADS} is {given!r}: must be a whole number of at least 1")
    return int(given)


def usable_cores(affinity: Callable[[int], Set[int]] | None = _AFFINITY) -> list[int]:
    """The CPU cores that this process may use, ascending.

    Args:
        affinity: the system's answer for a process; None where it has none: then all of them.
    """
    return list(range(os.cpu_count() or 1)) if affinity is None else sorted(affinity(0))


def _has_started() -> bool:
    # JAX offers no public way to ask; where this one has gone, nothing is changed.
    asked = getattr(xla_bridge, "backends_are_initialized", lambda: True)
    return bool(asked())


def _record(path: Path) -> dict[str, Any]:
    """What an environment.json says; nothing where it cannot be read."""
    try:
        record = json.loads(read_regular(path))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _of(record: dict[str, Any], name: str) -> dict[str, Any]:
    part = record.get(name)
    return part if isinstance(part, dict) else {}


def recorded_digest(run: Path) -> str | None:
    """SHA-256 of the data that the run in that folder began with; None where it is not known."""
    return _of(_record(run / "environment.json"), "data").get("sha256")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_revision(package: Path) -> str | None:
    """The revision of a package's source, where that lies in a checkout of its own.

    An installed package can lie within a repository, too: that of whoever uses it, which says
    nothing of the package.

    Args:
        package: its folder, in a checkout ``src/NAME``.
    """
    root = package.parent.parent
    if package.parent.name != "src" or not (root / ".git").exists():
        return None
    # Told where, git does not look at its variables either, which a hook sets for its own.
    places = [f"--git-dir={root / '.git'}", f"--work-tree={root}"]
    command = ["git", *places, "describe", "--always", "--dirty"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None
