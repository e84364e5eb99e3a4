"""Options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from thinned.core.config import Option

ConfigFile = Annotated[
    Path | None,
    Option("YAML or JSON file of defaults; flags override it."),
    arg(name="config", aliases=["-c"]),
]
Debug = Annotated[bool, Option("Show the traceback of an error.")]


def is_artifact(paths: Sequence[Path]) -> bool:
    """Whether the first path is the folder of an artifact, whose name needs no JAX to be known."""
    return bool(paths) and os.path.isfile(paths[0] / "model.json")
