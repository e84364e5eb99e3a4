"""The binary files of CIFAR-10 and CIFAR-100 (Krizhevsky, 2009)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from thinned.core.config import DataConfig
from thinned.core.errors import RequestError
from thinned.core.types import Dataset
from thinned.data import regular
from thinned.data.sources.arrays import Arrays

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class CifarFolder:
    """A folder with data_batch_1.bin and so on and test_batch.bin, or with train.bin and test.bin.

    Names of the classes are read from batches.meta.txt or fine_label_names.txt, if there.
    """

    path: Path
    options: DataConfig
    seed: int

    @staticmethod
    def fits(names: Collection[str]) -> bool:
        """Whether a folder holds such files, by their names."""
        return "test_batch.bin" in names or "test.bin" in names

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name or "cifar"

    def load(self) -> Dataset:
        """Read all batches; CIFAR-100 is given its 100 fine classes.

        Raises:
            RequestError: a file is missing, cut short or damaged.
        """
        fine = not (self.path / "test_batch.bin").exists()
        training = sorted(self.path.glob("train.bin" if fine else "data_batch_*.bin"))
        if not training:
            raise RequestError(f"{self.path} lacks {'train.bin' if fine else 'data_batch_1.bin'}")
        test = self.path / ("test.bin" if fine else "test_batch.bin")
        batches = [read_batch(path, 2 if fine else 1) for path in training]
        parts = {
            "train": tuple(np.concatenate(column) for column in zip(*batches, strict=True)),
            "test": read_batch(test, 2 if fine else 1),
        }
        names = _names(self.path / ("fine_label_names.txt" if fine else "batches.meta.txt"))
        dataset = Arrays(
            {part: (pair[0], pair[1]) for part, pair in parts.items()},
            self.options,
            self.seed,
            names,
            str(self.path),
        ).load()
        return replace(dataset, name=self.name)


def read_batch(path: Path, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images u8 [n, 32, 32, 3] and labels u8 [n] of one file; the last label byte counts.

    Raises:
        RequestError: the file cannot be read, or is not a whole number of records.
    """
    try:
        content = np.fromfile(regular(path), np.uint8)
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror or error}") from error
    record = label_bytes + _PIXELS
    if not content.size or content.size % record:
        raise RequestError(
            f"{path} is cut short or no CIFAR file: {content.size:,} bytes are not a whole number "
            f"of records of {record}"
        )
    rows = content.reshape(-1, record)
    images = rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), rows[:, label_bytes - 1].copy()


def _names(path: Path) -> tuple[str, ...] | None:
    try:
        lines = regular(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return None
    return tuple(line.strip() for line in lines if line.strip()) or None
