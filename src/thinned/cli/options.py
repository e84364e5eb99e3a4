"""Options that several commands share."""

from __future__ import annotations

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
