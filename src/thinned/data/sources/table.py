"""Tables of image files and labels: CSV, and Parquet through pyarrow."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thinned.core.config import DataConfig
from thinned.core.errors import RequestError, printable
from thinned.core.types import Dataset
from thinned.data.files import Entry, class_name, class_order, load_files
from thinned.data.sources.folder import SPLITS

_PATHS = ("path", "file", "filename", "file_name", "image")
LABELS = ("label", "class", "category", "target")
_SPLIT = "split"
_MOST_ROWS = 5_000_000


@dataclass(frozen=True)
class Table:
    """A CSV or Parquet file with a column of paths, a column of labels, and perhaps one of splits.

    Columns: path (or file, filename, file_name, image), label (or class, category, target), split
    (train, validation or test; optional). Paths are relative to the file. Labels may be any text.
    """

    path: Path
    options: DataConfig
    seed: int

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    def load(self) -> Dataset:
        """Read the table and decode its images.

        Raises:
            RequestError: the table is damaged or lacks a column; see also `load_files`.
        """
        entries, classes = self.entries()
        return load_files(self.name, str(self.path), entries, classes, self.options, self.seed)

    def entries(self) -> tuple[list[Entry], tuple[str, ...]]:
        """The files in the table's order, and the names of the classes, sorted.

        Raises:
            RequestError: as `load`.
        """
        rows = [{_folded(name): row[name] for name in row} for row in self._rows()]
        if not rows:
            raise RequestError(f"{self.path} has no rows")
        at, labelled = _column(rows[0], _PATHS, self.path), _column(rows[0], LABELS, self.path)
        if isinstance(rows[0].get(at), Mapping):
            raise RequestError(
                f"{self.path} holds images, not paths of them: read it with --data hf:{self.path}"
            )
        texts = [
            class_name(self._text(row, labelled, number)) for number, row in enumerate(rows, 2)
        ]
        classes = tuple(sorted(set(texts), key=class_order))
        codes = {text: label for label, text in enumerate(classes)}
        entries: dict[Path, Entry] = {}
        for number, (row, text) in enumerate(zip(rows, texts, strict=True), 2):
            entry = self._entry(row, at, codes[text], number)
            # A file in two rows is one image: it must not be trained on and tested on.
            before = entries.setdefault(entry.path, entry)
            if before != entry:
                what = "label" if before.label != entry.label else "split"
                raise RequestError(
                    f"{self.path} line {number}: {printable(entry.path)} is in a row before with "
                    f"another {what}"
                )
        return list(entries.values()), classes

    def _entry(self, row: Mapping[str, Any], at: str, label: int, line: int) -> Entry:
        file = self._text(row, at, line)
        if "\0" in file:
            raise RequestError(f"{self.path} line {line}: a path holds a null character")
        split = str(row.get(_SPLIT) or "").strip().lower()
        if split and split not in SPLITS:
            raise RequestError(f"{self.path} line {line}: split {split!r} is unknown")
        path = Path(os.path.normpath(self.path.parent / file))
        return Entry(path, label, SPLITS[split] if split else None)

    def _text(self, row: Mapping[str, Any], column: str, line: int) -> str:
        value = row.get(column)
        if isinstance(value, float):
            raise RequestError(
                f"{self.path} line {line}: {column} is {value:g}, expected text or an integer"
            )
        text = "" if value is None else str(value).strip()
        if not text:
            raise RequestError(f"{self.path} line {line}: {column} is empty")
        return text

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        if self.path.suffix.lower() == ".parquet":
            yield from _parquet(self.path)
            return
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                yield from csv.DictReader(file, strict=True)
        except OSError as error:
            raise RequestError(f"cannot read {self.path}: {error.strerror or error}") from error
        except (csv.Error, UnicodeDecodeError) as error:
            raise RequestError(f"{self.path} is no CSV table in UTF-8: {error}") from error


def _folded(name: object) -> str:
    """The name of a column as it is compared: without blanks around it, in small letters."""
    return str(name).strip().casefold()


def _column(row: Mapping[str, Any], names: tuple[str, ...], path: Path) -> str:
    columns = [name for name in row if name in names]
    if not columns:
        held = ", ".join(str(name) for name in row)[:200]
        raise RequestError(f"{path} has no column {' or '.join(names)}; it has {held}")
    return columns[0]


def _parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise RequestError(
            f"{path} needs pyarrow: install it with pip install 'thinned[parquet]'"
        ) from error
    try:
        file: Any = parquet.ParquetFile(path)
        count = file.metadata.num_rows
        # A file of a few bytes may hold any number of equal rows.
        if count > _MOST_ROWS:
            raise RequestError(f"{path} has {count:,} rows: no more than {_MOST_ROWS:,} are read")
        known = {*_PATHS, *LABELS, _SPLIT}
        columns = [name for name in file.schema_arrow.names if _folded(name) in known]
        rows: list[dict[str, Any]] = file.read(columns or None).to_pylist()
    except (ArrowException, OSError) as error:
        raise RequestError(f"{path} is no whole Parquet file: {str(error)[:100]}") from error
    yield from rows
