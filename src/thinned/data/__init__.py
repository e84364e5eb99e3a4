"""Where labelled images come from, and how they are set apart."""

import errno
import os
import stat
from pathlib import Path

import numpy as np

LARGEST_BYTES = 16 * 2**30
"""Files that unpack to more are refused: data in memory have to fit there."""


def read_only(array: np.ndarray) -> np.ndarray:
    """The same array, which from now on cannot be written to: sources share what they cache."""
    array.flags.writeable = False
    return array


def regular(path: Path) -> Path:
    """The same path, which leads to a regular file: a pipe or a device could be read for ever.

    Raises:
        OSError: there is nothing at the path, or something else.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(None, "not a regular file")
    return path


def enterable(folder: Path) -> Path:
    """The same folder, whose files can be listed and opened as well.

    Raises:
        PermissionError: one of the two is not allowed.
    """
    if not os.access(folder, os.R_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    return folder
