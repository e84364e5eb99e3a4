"""What a run was made with: versions, device, data."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

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
        "git_revision": _git_revision(),
        "data": {"name": data_name, "sha256": data_sha256},
    }


def environment_changes(path: Path, now: dict[str, Any]) -> list[str]:
    """What differs between the environment recorded in `path` and `now`, one line each."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return [f"note: {path} cannot be read: nothing is known of the versions before"]
    lines = [
        f"note: {name} was {before.get('packages', {}).get(name)}, is {version}: "
        "the result may differ in its bits"
        for name, version in now["packages"].items()
        if before.get("packages", {}).get(name) != version
    ]
    if before.get("device") != now["device"]:
        lines.append(f"note: the device was {before.get('device')}, is {now['device']}")
    return lines


def recorded_digest(run: Path) -> str | None:
    """SHA-256 of the data that the run in that folder began with; None where it is not known."""
    try:
        text = (run / "environment.json").read_text(encoding="utf-8")
        return json.loads(text)["data"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """The revision of the source, where it lies in a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
