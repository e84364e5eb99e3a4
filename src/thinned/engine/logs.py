"""The record of a run: ``metrics.jsonl``, and what the terminal shows meanwhile."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinned.core.disk import write_whole
from thinned.core.errors import ThinnedError, need, printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_ALWAYS = {"split", "epoch", "step"}


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
        """All whole records; a line that a killed process cut short is passed over.

        Raises:
            ThinnedError: it cannot be read, or is a pipe, which would be waited for.
        """
        if not self.path.exists():
            return []
        if not self.path.is_file():
            raise ThinnedError(f"cannot read {self.path}: it is no regular file")
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise ThinnedError(f"cannot read {self.path}: {error.strerror or error}") from error
        return [record for line in text.splitlines() if (record := _record(line)) is not None]

    def keep_until(self, step: int) -> None:
        """Forget what was recorded after `step`: a resumed run will record it again."""
        kept = [record for record in self.read() if record["step"] <= step]
        write_whole(self.path, "".join(json.dumps(record) + "\n" for record in kept))


def _record(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and found.keys() >= _ALWAYS else None


class NoLog(MetricsLog):
    """The log of a process that does not lead its run: it keeps nothing."""

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Do nothing."""

    def keep_until(self, step: int) -> None:
        """Do nothing."""


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


def warn(line: str) -> None:
    """A line that is no result: to the error stream, so that CSV and JSON stay whole."""
    print(printable(line), file=sys.stderr, flush=True)


def told_time(seconds: float) -> str:
    """A time in minutes and hours, for people."""
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest:02d} min" if hours else f"{rest} min" if rest else "under a minute"


def refuse_missing_log(kind: str) -> None:
    """Say before there is a run's folder that its log cannot be written.

    Raises:
        RequestError: the package that writes logs of that kind is not installed.
    """
    if kind == "tensorboard":
        need("tensorboardX", "--log tensorboard", "tensorboard")


class Silent:
    """A view that shows nothing: for ``--quiet`` and for programs."""

    def say(self, line: str) -> None:
        """One line for the person."""

    def warn(self, line: str) -> None:
        """One line that is no result."""

    def advance(self, images: int) -> None:
        """So many images were trained on since the last call."""

    def epoch(self, line: str) -> None:
        """An epoch ended."""


class Plain(Silent):
    """One line for each epoch: for output that is no terminal."""

    def say(self, line: str) -> None:
        """Print the line."""
        print(line, flush=True)

    def warn(self, line: str) -> None:
        """Print the line beside the output."""
        warn(line)

    def epoch(self, line: str) -> None:
        """Print the line."""
        self.say(line)


class Bar(Plain):
    """A progress bar with images per second and time left, and one line for each epoch."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def say(self, line: str) -> None:
        """Print the line above the bar."""
        self._progress.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def advance(self, images: int) -> None:
        """Move the bar."""
        self._progress.update(self._task, advance=images)
        # From the second call on: the first held a compilation.
        speed = self._progress.tasks[0].speed
        if speed:
            self._progress.update(self._task, speed=f"{speed:,.0f} images/s")


@contextmanager
def view_for(quiet: bool, done: int, total: int, doing: str = "training") -> Generator[Silent]:
    """The view that suits where the output goes."""
    if quiet or not sys.stdout.isatty():
        yield Silent() if quiet else Plain()
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    speed = TextColumn("{task.fields[speed]}")
    columns = (TextColumn(doing), BarColumn(), TaskProgressColumn(), speed, TimeLeft())
    with Progress(*columns, transient=True) as progress:
        yield Bar(progress, progress.add_task("", completed=done, total=total, speed="compiling"))
