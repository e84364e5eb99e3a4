"""Sources of data: one small protocol, one file each."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from thinned.data.idx import IdxFolder
from thinned.data.mnist import EmbeddedMnist
from thinned.errors import RequestError
from thinned.types import Dataset


class Source(Protocol):
    """Something that can be loaded as a dataset.

    A further source is one file with one such class, and one line in `open_source`.
    """

    @property
    def name(self) -> str:
        """A short name for people and for run folders."""
        ...

    def load(self) -> Dataset:
        """Read everything.

        Raises:
            RequestError: the data cannot be read or do not fit together.
        """
        ...


def open_source(path: Path | None) -> Source:
    """The source that a path names.

    Args:
        path: a folder of IDX files, or None for the MNIST inside the package.

    Raises:
        RequestError: there is no such folder, or nothing in it is recognised.
    """
    if path is None:
        return EmbeddedMnist()
    try:
        if not path.is_dir():
            missing = "is a file, not a folder" if path.exists() else "does not exist"
            raise RequestError(f"data folder {path} {missing}")
        return IdxFolder(path)
    except OSError as error:
        raise RequestError(f"cannot open data folder {path}: {error.strerror}") from error
