"""The record of a run: ``metrics.jsonl``, and what the terminal shows meanwhile."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from thinned.core.disk import write_whole
from thinned.core.errors import ThinnedError, need


class MetricsLog:
    """``metrics.jsonl``: one JSON record a line, appended, on the disk when `append` returns.

    Every record has ``split``, ``epoch`` and ``step``. Times end in ``_s`` and are the only fields
    that differ between a run and its repetition.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Add records.

        Raises:
            ThinnedError: the disk is full, read-only, or fails otherwise.
        """
        lines = "".join(json.dumps(record) + "\n" for record in records)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ThinnedError(f"cannot write {self.path}: {error.strerror}") from error

    def read(self) -> list[dict[str, Any]]:
        """All whole records; a line that a killed process cut short is passed over."""
        if not self.path.exists():
            return []
        records: list[dict[str, Any]] = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return records

    def keep_until(self, step: int) -> None:
        """Forget what was recorded after `step`: a resumed run will record it again."""
        kept = [record for record in self.read() if record["step"] <= step]
        write_whole(self.path, "".join(json.dumps(record) + "\n" for record in kept))


class TensorBoardLog(MetricsLog):
    """``metrics.jsonl``, and the same numbers as events that TensorBoard shows.

    Args:
        path: of ``metrics.jsonl``; the events go into the folder ``tensorboard`` beside it.

    Raises:
        RequestError: tensorboardX is not installed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        refuse_missing_log("tensorboard")
        from tensorboardX import SummaryWriter

        self._open: Any = SummaryWriter

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Add records to both.

        Raises:
            ThinnedError: as `MetricsLog.append`.
        """
        held = list(records)
        super().append(held)
        try:
            # A file for each epoch, closed: what is only flushed may not be on the disk yet.
            suffix = f".{held[0]['step']:09d}" if held else ""
            folder = str(self.path.parent / "tensorboard")
            with self._open(folder, filename_suffix=suffix) as writer:
                for record in held:
                    for name in ("loss", "accuracy"):
                        tag = f"{name}/{record['split']}"
                        writer.add_scalar(tag, record[name], record["step"])
        except OSError as error:
            raise ThinnedError(f"cannot write events: {error.strerror or error}") from error


def refuse_missing_log(kind: str) -> None:
    """Say before there is a run's folder that its log cannot be written.

    Raises:
        RequestError: the package that writes logs of that kind is not installed.
    """
    if kind == "tensorboard":
        need("tensorboardX", "--log tensorboard", "tensorboard")


class Silent:
    """A view that shows nothing: for ``--quiet`` and for programs."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def say(self, line: str) -> None:
        """One line for the person."""

    def advance(self, images: int) -> None:
        """So many images were trained on since the last call."""

    def epoch(self, line: str) -> None:
        """An epoch ended."""


class Plain(Silent):
    """One line for each epoch: for output that is no terminal."""

    def say(self, line: str) -> None:
        """Print the line."""
        print(line, flush=True)

    def epoch(self, line: str) -> None:
        """Print the line."""
        self.say(line)


class Bar(Silent):
    """A progress bar with images per second and time left, and one line for each epoch."""

    def __init__(self, done: int, total: int) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            transient=True,
        )
        self._task = self._progress.add_task("", completed=done, total=total, rate="compiling")
        self._left = total - done
        self._speed = Speed()

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        """Print the line above the bar."""
        self._progress.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def epoch(self, line: str) -> None:
        """Print the line above the bar."""
        self.say(line)

    def advance(self, images: int) -> None:
        """Move the bar."""
        self._left -= images
        rate = self._speed.update(images)
        text = f"{rate:,.0f} images/s, {_duration(self._left / rate)} left" if rate else "compiling"
        self._progress.update(self._task, advance=images, rate=text)


class Speed:
    """Images per second, smoothed; the first call only starts the clock (it held a compilation)."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._rate = 0.0

    def update(self, images: int) -> float:
        """Count `images`, and return the rate; 0 until it is known."""
        now = time.monotonic()
        if self._last is not None:
            rate = images / max(now - self._last, 1e-9)
            self._rate = 0.9 * self._rate + 0.1 * rate if self._rate else rate
        self._last = now
        return self._rate


def view_for(quiet: bool, done: int, total: int) -> Silent:
    """The view that suits where the output goes."""
    if quiet:
        return Silent()
    return Bar(done, total) if sys.stdout.isatty() else Plain()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
