"""What a pretrained run began with, kept in its folder: it depends on no other file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thinned.core.disk import read_regular, whole, write_whole
from thinned.core.errors import RequestError, printable_path
from thinned.core.types import Variables
from thinned.models.weights.load import from_safetensors, to_safetensors

_WEIGHTS, _RECORD = "pretrained.safetensors", "pretrained.json"


@dataclass(frozen=True)
class Beginning:
    """What a run begins with.

    Attributes:
        variables: of the network; what they lack is drawn by the seed.
        record: where they come from, as JSON: origin, sha256, source, licence, whether the head is
            theirs.
    """

    variables: Variables
    record: Mapping[str, Any]

    def start(self) -> Variables:
        """The variables, as `thinned.engine.build.Built` asks for them."""
        return self.variables

    def save(self, folder: Path) -> None:
        """Keep it in a run's folder, which so depends on no other file.

        Raises:
            ThinnedError: the disk is full, or the folder cannot be written.
        """
        with whole(folder / _WEIGHTS) as draft:
            draft.write_bytes(to_safetensors(self.variables))
        write_whole(folder / _RECORD, json.dumps(dict(self.record), indent=2) + "\n")


def beginning_of(folder: Path) -> Callable[[], Variables]:
    """Reads what a run began with, once it is asked for.

    Raises (then):
        RequestError: the file is damaged or gone.
    """

    def read() -> Variables:
        path = folder / _WEIGHTS
        try:
            return from_safetensors(path.read_bytes(), printable_path(path))
        except (OSError, ValueError) as error:
            raise RequestError(
                f"{path} cannot be read ({error}): restore it from a copy, the run began with it"
            ) from error

    return read


def recorded_weights(folder: Path) -> dict[str, Any] | None:
    """What a run's folder says of the weights that it began with; None where it says nothing."""
    try:
        record = json.loads(read_regular(folder / _RECORD))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
