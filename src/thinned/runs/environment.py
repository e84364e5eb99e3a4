"""What a run was made with: versions, device, data."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

from thinned.core.disk import read_regular

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
        "git_revision": git_revision(Path(str(importlib.resources.files("thinned")))),
        "data": {"name": data_name, "sha256": data_sha256},
    }


def environment_changes(path: Path, now: dict[str, Any]) -> list[str]:
    """What differs between the environment recorded in `path` and `now`, one line each."""
    try:
        before = json.loads(read_regular(path))
        packages, data = dict(before.get("packages", {})), dict(before.get("data", {}))
    except (OSError, ValueError, TypeError, AttributeError):
        return [f"note: {path} cannot be read: nothing is known of the versions before"]
    lines = [
        f"note: {name} was {packages.get(name)}, is {version}: the result may differ in its bits"
        for name, version in now["packages"].items()
        if packages.get(name) != version
    ]
    if before.get("device") != now["device"]:
        lines.append(f"note: the device was {before.get('device')}, is {now['device']}")
    if data.get("sha256") != now["data"]["sha256"]:
        lines.append("note: the data are not those the run began with")
    return lines


def recorded_digest(run: Path) -> str | None:
    """SHA-256 of the data that the run in that folder began with; None where it is not known."""
    try:
        return json.loads(read_regular(run / "environment.json"))["data"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


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
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
