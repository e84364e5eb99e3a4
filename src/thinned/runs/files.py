"""`thinned predict`: image files in, a table out; nothing half-written."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np

from thinned.core.disk import refuse_unwritable, whole, write_whole
from thinned.core.errors import RequestError, need, printable
from thinned.core.rng import a_few
from thinned.data.decode import Fit, decode, or_reason
from thinned.data.files import in_parallel
from thinned.data.sources.folder import image_files
from thinned.runs.answers import Answers, answers_of
from thinned.runs.predictions import enough_samples, strangers
from thinned.runs.run import Run
from thinned.trust.conformal import SetKind

Format = Literal["table", "csv", "json", "parquet"]
_TOGETHER = 1000
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def predict_files(
    runs: Sequence[Run],
    inputs: Sequence[Path],
    *,
    samples: int | Literal["auto"] = 0,
    calibrated: bool = False,
    risk: float | None = None,
    confidence: float = 0.95,
    coverage: float | None = None,
    sets: SetKind = "lac",
    per_class: bool = False,
    ood_fpr: float | None = None,
    ood_score: str = "energy",
) -> Iterator[dict[str, Any]]:
    """Predict image files, a thousand at a time.

    Args:
        runs: one, or several as an ensemble.
        inputs: image files, and folders that are searched for them.
        samples, calibrated: see `thinned.runs.predictions.predictions_of`; ``auto`` takes as many
            samples as a thousand files, drawn from all, need, see
            `thinned.runs.predictions.enough_samples`.
        risk, confidence: of answers that are not marked unsure, at most the part `risk` is wrong,
            with that confidence, see `thinned.runs.predictions.selection_for`.
        coverage, sets, per_class: how often the set of classes holds the right one, of which kind
            it is, and whether that is so of each class, see `thinned.runs.predictions.sets_for`.
        ood_fpr: the part of the images of the classes that may be marked as none of them, by
            `ood_score`, see `thinned.runs.ood.known_below`.

    Yields:
        For each file ``path``, ``class``, ``probability``; with samples ``entropy``,
        ``mutual_information`` (nats) and ``deviation``; with a risk ``unsure``; with a
        coverage ``set``, a list of classes, the most probable first; with `ood_fpr` the score by
        its name and ``known``; or ``path`` and ``error`` where it cannot be read.

    Raises:
        RequestError: there is no such file, or no image at all; or see the functions named.
    """
    files = _listed(inputs)
    for line in strangers(runs):
        print(line, file=sys.stderr)
    if samples == "auto":
        some = [files[row] for row in a_few(len(files), _TOGETHER)]
        read = _read(runs[0].facts.image_shape, runs[0].config.data.fit, some)
        images = [image for image in read if isinstance(image, np.ndarray)]
        samples = 1
        if images:
            enough = enough_samples(runs, np.stack(images))
            samples = enough.samples
            print(enough, file=sys.stderr)
    answers = answers_of(
        runs,
        samples=samples,
        calibrated=calibrated,
        risk=risk,
        confidence=confidence,
        coverage=coverage,
        sets=sets,
        per_class=per_class,
        ood_fpr=ood_fpr,
        ood_score=ood_score,
    )
    yield from answer_files(answers, files)


def answer_files(answers: Answers, inputs: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Predict image files, a thousand at a time; what is promised of them is told beside.

    Args:
        answers: says what is predicted.
        inputs: as for `predict_files`, which says what comes and what is raised.
    """
    files = _listed(inputs)
    for promise in answers.promises:
        print(promise, file=sys.stderr)
    read = strange = 0
    for start in range(0, len(files), _TOGETHER):
        for row in _rows(answers, files[start : start + _TOGETHER]):
            read += "error" not in row
            strange += not row.get("known", True)
            yield row
    if answers.known is not None:
        told = "is" if strange == 1 else "are"
        print(f"{strange:,} of {read:,} {told} probably none of the classes", file=sys.stderr)


def _rows(answers: Answers, files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    read = _read(answers.image_shape, answers.fit, files)
    images = [image for image in read if not isinstance(image, str)]
    rows: Iterator[dict[str, Any]] = iter(())
    if images:
        together = np.stack(images)
        rows = iter(answers.rows(together, answers.predict(together)))
    for path, image in zip(files, read, strict=True):
        rest = {"error": str(image)} if isinstance(image, str) else next(rows)
        yield {"path": _text(path), **rest}


def _text(path: Path) -> str:
    """The path as it is, but for bytes that are no UTF-8, which no file of text could hold."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _read(shape: tuple[int, ...], fit: Fit, files: Sequence[Path]) -> list[np.ndarray | str]:
    """Each file as an image of that shape, or why it cannot be read."""
    height, width, channels = shape
    return list(
        in_parallel(lambda path: or_reason(decode, path, (height, width), channels, fit), files)
    )


def _listed(inputs: Sequence[Path]) -> list[Path]:
    files = list(_files(inputs))
    if not files:
        raise RequestError("no images are given (JPEG, PNG, WebP, BMP, GIF, TIFF)")
    return files


def _files(inputs: Sequence[Path]) -> Iterator[Path]:
    for path in inputs:
        try:
            if path.is_dir():
                yield from image_files(path)
            elif path.exists():
                yield path
            else:
                raise RequestError(f"{path} does not exist")
        except OSError as error:
            raise RequestError(f"cannot read {path}: {error.strerror or error}") from error


def columns(
    samples: int | Literal["auto"] = 0,
    risk: float | None = None,
    coverage: float | None = None,
    ood_score: str | None = None,
) -> dict[str, type]:
    """Names and types of what `predict_files` gives for each file that can be read."""
    names = ["path", "class", "probability"]
    names += ["entropy", "mutual_information", "deviation"] if samples else []
    names += [] if risk is None else ["unsure"]
    names += [] if coverage is None else ["set"]
    names += [] if ood_score is None else [ood_score, "known"]
    kinds = {"path": str, "class": str, "unsure": bool, "set": list, "known": bool}
    return {name: kinds.get(name, float) for name in names}


def refuse_unready(form: Format, out: Path | None) -> None:
    """Say before the work that its result could not be written in that form.

    Raises:
        RequestError: Parquet is asked for without a file, or without pyarrow.
    """
    if form == "parquet":
        if out is None:
            raise RequestError("--format parquet needs --out FILE")
        need("pyarrow", "--format parquet", "parquet")


def write_rows(
    rows: Iterator[dict[str, Any]], form: Format, out: Path | None, header: dict[str, type]
) -> int:
    """Write predictions to a file, whole or not at all, or to the terminal as they come.

    Args:
        rows: from `predict_files`.
        form: a table for people, CSV with a header, JSON with one object a line, or Parquet.
        out: the file; None for the terminal.
        header: the columns, see `columns`; written even if no file can be read.

    Returns:
        How many files could not be read.

    Raises:
        RequestError: Parquet was asked for without a file, or without pyarrow.
        ThinnedError: the file cannot be written.
    """
    refuse_unready(form, out)
    refuse_unwritable(out)
    if form == "parquet" and out is not None:
        return _write_parquet(rows, out, header)
    buffer = io.StringIO()
    target = sys.stdout if out is None else buffer
    write = {"json": _json_line, "csv": _csv_line, "table": _table_line}[form]
    errors, begun = 0, form == "json"
    for row in rows:
        if not begun:
            write(target, header, dict(zip(header, header, strict=True)))
            begun = True
        if "error" in row:
            errors += 1
            print(f"{printable(row['path'])}: {row['error']}", file=sys.stderr)
            if form != "json":
                continue
        write(target, header, row)
    if out is not None:
        write_whole(out, buffer.getvalue())
    return errors


def _json_line(target: TextIO, header: dict[str, type], row: dict[str, Any]) -> None:
    target.write(json.dumps(row, ensure_ascii=False) + "\n")


def _csv_line(target: TextIO, header: dict[str, type], row: dict[str, Any]) -> None:
    cells = {name: _inert(_joined(cell)) for name, cell in row.items()}
    csv.DictWriter(target, list(header)).writerow(cells)


def _joined(cell: Any) -> Any:
    """A set as text: its classes, parted by bars."""
    return "|".join(cell) if isinstance(cell, list) else cell


def _inert(cell: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: files may be named by strangers."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULAS) else cell


def _table_line(target: TextIO, header: dict[str, type], row: dict[str, Any]) -> None:
    cells = (_cell(name, row[name]).ljust(_width(name)) for name in header if name != "path")
    target.write("  ".join(cells) + f"  {printable(row['path'])}\n")


def _write_parquet(rows: Iterator[dict[str, Any]], out: Path, header: dict[str, type]) -> int:
    import pyarrow
    from pyarrow import parquet

    kinds: dict[type, Any] = {
        str: pyarrow.string(),
        float: pyarrow.float64(),
        bool: pyarrow.bool_(),
    }
    kinds[list] = pyarrow.list_(pyarrow.string())
    schema = pyarrow.schema([(name, kinds[kind]) for name, kind in header.items()])
    held = list(rows)
    good = [row for row in held if "error" not in row]
    for row in held:
        if "error" in row:
            print(f"{printable(row['path'])}: {row['error']}", file=sys.stderr)
    with whole(out) as draft:
        parquet.write_table(pyarrow.Table.from_pylist(good, schema), draft)
    return len(held) - len(good)


def _width(name: str) -> int:
    return 16 if name in ("class", "set") else max(len(name), 6)


_WORDS = {"unsure": ("", "unsure"), "known": ("no", "yes")}
"""What a table has for False and True."""


def _cell(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return _WORDS[name][value]
    return f"{value:.4f}" if isinstance(value, float) else str(_joined(value))
