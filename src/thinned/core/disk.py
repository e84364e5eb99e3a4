"""The disk: files that appear whole or not at all, and the folder for what is kept between runs."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from thinned.core.errors import ThinnedError


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it appears whole or not at all.

    Raises:
        ThinnedError: the disk is full, read-only, or fails otherwise.
    """
    with whole(path) as draft:
        draft.write_text(text, encoding="utf-8")


@contextmanager
def whole(path: Path) -> Generator[Path]:
    """Another path to write to, which becomes `path` only once the context ends well.

    A link stays a link: what it points to is replaced. What is no regular file (a pipe, a device)
    gets the content as soon as that is whole.

    Raises:
        ThinnedError: the disk is full, read-only, or fails otherwise.
    """
    target = Path(os.path.realpath(path))
    special = target.exists() and not target.is_file() and not target.is_dir()
    folder = Path(tempfile.gettempdir()) if special else target.parent
    # Made by whoever writes it, so that it gets the usual permissions.
    draft = folder / f".{secrets.token_hex(8)}.tmp"
    try:
        yield draft
        if special:
            with target.open("wb") as out, draft.open("rb") as content:
                shutil.copyfileobj(content, out)
        else:
            with draft.open("rb+") as content:
                os.fsync(content.fileno())
            draft.replace(target)
    except OSError as error:
        raise ThinnedError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def refuse_unwritable(path: Path | None) -> None:
    """Say before long work that a file cannot be written after it; None is the terminal.

    Raises:
        ThinnedError: its folder does not exist or cannot be written, or it is a folder itself.
    """
    if path is None:
        return
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise ThinnedError(f"cannot write {path}: it is a folder")
    if not target.parent.is_dir():
        raise ThinnedError(f"cannot write {path}: there is no folder {target.parent}")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise ThinnedError(f"cannot write {path}: permission denied")


def cache_folder(kind: str = "data") -> Path:
    """Where things are kept between runs: ``thinned/KIND`` in the user's cache.

    Raises:
        ThinnedError: the user has no home.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    except RuntimeError as error:
        raise ThinnedError("there is no home folder for a cache: set XDG_CACHE_HOME") from error
    return Path(base) / "thinned" / kind
