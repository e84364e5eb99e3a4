"""What every room needs of a disk: files that appear whole, folders held by one process."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
import zlib
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from thinned.core.errors import RequestError, ThinnedError

_ABANDONED_S = 24 * 3600
# The machine (in short) and the process that writes it, so that what a kill left can be told from
# what is being written; earlier versions gave neither.
_DRAFT = re.compile(r"\.(?:([0-9a-f]{8})-([0-9]+)-)?[0-9a-f]{16}\.tmp")
# What libraries search with, escape with, or cannot encode.
_SPECIAL = re.compile(r"[\[\]*?\\\ud800-\udfff]")
# Orbax opens about fifteen at once.
_DESCRIPTORS = 24

Allocate = Callable[[int, int, int], None]
# macOS has none.
_ALLOCATE: Allocate | None = getattr(os, "posix_fallocate", None)


class Busy(RequestError):
    """Another process holds this folder."""


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
    draft = folder / f".{_machine()}-{os.getpid()}-{secrets.token_hex(8)}.tmp"
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


@contextmanager
def whole_folder(path: Path) -> Generator[Path]:
    """A new folder to fill, which becomes `path` only once the context ends well.

    Raises:
        RequestError: there is something at `path` already.
        ThinnedError: the disk is full, read-only, or fails otherwise.
    """
    taken = RequestError(f"{path} exists already: name another folder, or remove it")
    if os.path.lexists(path):
        raise taken
    draft = path.absolute().parent / f".{_machine()}-{os.getpid()}-{secrets.token_hex(8)}.tmp"
    try:
        draft.mkdir()
        yield draft
        # A folder that is empty, or came about meanwhile, is not replaced.
        if os.path.lexists(path):
            raise taken
        draft.rename(path)
    except OSError as error:
        raise ThinnedError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def refuse_unwritable(path: Path | None) -> None:
    """Say before long work that a file cannot be written after it; None is the terminal.

    Raises:
        ThinnedError: its folder does not exist or cannot be written, or it is a folder itself.
    """
    if path is None:
        return
    target = Path(os.path.realpath(path))
    try:
        os.lstat(target)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise ThinnedError(f"cannot write {path}: {error.strerror}") from error
    if target.is_dir():
        raise ThinnedError(f"cannot write {path}: it is a folder")
    if not target.parent.is_dir():
        raise ThinnedError(f"cannot write {path}: there is no folder {target.parent}")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise ThinnedError(f"cannot write {path}: permission denied")


def read_regular(path: Path) -> str:
    """The text of a file of ours. A pipe in its place would be waited for without end.

    Raises:
        OSError: it is missing, cannot be read, or is no regular file.
        UnicodeDecodeError: it is no text.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return path.read_text(encoding="utf-8")


def refuse_irregular(folder: Path) -> None:
    """Refuse a folder in which something is neither a file nor a folder, before it is read.

    Raises:
        OSError: says what.
    """
    for base, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(base) / name
            # Follows links: one that leads nowhere is refused, too.
            path.stat()
            if not (path.is_file() or path.is_dir()):
                raise OSError(errno.EINVAL, f"{path} is neither a file nor a folder")


@contextmanager
def plain_path(folder: Path) -> Generator[Path]:
    """An absolute path to a folder for libraries that take ``[``, ``*``, ``?`` or ``\\`` for more.

    Where its own path has such characters, or bytes that are no UTF-8, it is a link in the folder
    for temporary files, which lasts as long as the context.

    Raises:
        OSError: the link cannot be made.
    """
    real = folder.resolve()
    if not _SPECIAL.search(real.as_posix()):
        yield real
        return
    base = Path(tempfile.mkdtemp(prefix="thinned-"))
    link = base / "link"
    try:
        if _SPECIAL.search(base.as_posix()):
            raise OSError(errno.EINVAL, "set TMPDIR to a folder without [ ] * ? \\ in its path")
        link.symlink_to(real, target_is_directory=True)
        yield link
    finally:
        with suppress(OSError):
            link.unlink(missing_ok=True)
            base.rmdir()


def ensure_room(
    folder: Path,
    size: int,
    allocate: Allocate | None = _ALLOCATE,
) -> None:
    """Reserve and release `size` bytes in a folder, to know beforehand that they fit.

    Args:
        folder: exists.
        size: in bytes.
        allocate: the system's way to reserve them; None where it has none.

    Raises:
        OSError: they do not fit, or the folder cannot be written.
    """
    probe = folder / ".room"
    try:
        with probe.open("wb") as file:
            try:
                if allocate is not None:
                    allocate(file.fileno(), 0, size)
                    return
            except OSError as error:
                # Some file systems cannot, which says nothing of the room they have.
                if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                    raise
            if shutil.disk_usage(folder).free < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        probe.unlink(missing_ok=True)


def ensure_descriptors(count: int = _DESCRIPTORS) -> None:
    """Open and close so many files, to know beforehand that as many may be open.

    Raises:
        OSError: they may not.
    """
    opened: list[int] = []
    try:
        for _ in range(count):
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        told = f"only {len(opened)} more files may be open, {count} are needed (see ulimit -n)"
        raise OSError(error.errno, told) from error
    finally:
        for descriptor in opened:
            os.close(descriptor)


def lock(descriptor: int, shared: bool = False, wait: bool = False) -> None:
    """Take the system's lock on an open file; it goes with the descriptor.

    Args:
        descriptor: of the file.
        shared: whether others may share it.
        wait: whether to wait for it.

    Raises:
        BlockingIOError: another has it, and `wait` is false.
        OSError: there are no such locks here (some network disks, Windows).
    """
    try:
        import fcntl
    except ImportError as error:
        raise OSError(errno.ENOLCK, "no locks on this system") from error
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)


@contextmanager
def held(folder: Path, doing: str, lock: Callable[[int], None] = lock) -> Generator[None]:
    """Hold a folder for this process, and sweep out what killed ones left half-written.

    The system's lock goes with the process, however it ends. Where there is none (some network
    disks, Windows), the file ``.lock.owner`` names the process; one that is no longer alive is
    noticed on its own machine.

    Args:
        folder: exists.
        doing: what the process does with it, for others to be told.
        lock: takes the system's lock on a file's descriptor, or raises OSError.

    Raises:
        Busy: another process holds it.
        RequestError: the folder cannot be written.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(folder / ".lock", flags, 0o666)
    except OSError as error:
        raise RequestError(f"cannot write in {folder}: {error.strerror}") from error
    try:
        with _locked(descriptor, folder, doing, lock):
            _sweep(folder)
            yield
    finally:
        os.close(descriptor)


def _locked(
    descriptor: int, folder: Path, doing: str, lock: Callable[[int], None]
) -> AbstractContextManager[Any]:
    try:
        lock(descriptor)
    except BlockingIOError as error:
        raise Busy(f"{folder} is {doing} by another process") from error
    except OSError:
        return _owned(folder, doing)
    return nullcontext()


@contextmanager
def _owned(folder: Path, doing: str) -> Generator[None]:
    """Hold a folder by a file that names this process."""
    path = folder / ".lock.owner"
    own = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(8)}"
    try:
        if not _created(path, own):
            _take_over(path, own, folder, doing)
    except OSError as error:
        raise RequestError(f"cannot write in {folder}: {error.strerror}") from error
    try:
        yield
    finally:
        with suppress(OSError):
            # Not the file of another who was told to delete ours.
            if read_regular(path) == own:
                path.unlink()


def _created(path: Path, text: str) -> bool:
    """Whether the file is new, and so ours."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def _take_over(path: Path, own: str, folder: Path, doing: str) -> None:
    """Take the place of an owner that is dead."""
    before = _owner(path)
    busy = Busy(
        f"{folder} is {doing} by process {before[1]} on {before[0]}; there are no locks on this "
        f"disk: if that process is gone, delete {path}"
    )
    host, process, token = before
    if host != socket.gethostname() or not process.isdecimal() or alive(int(process)):
        raise busy
    # Only one process may bury this very owner, and only while it is still the owner.
    claim = path.with_name(f"{path.name}.{token}")
    if not _created(claim, own):
        raise busy
    try:
        if _owner(path) != before:
            raise busy
        write_whole(path, own)
    finally:
        claim.unlink()


def _owner(path: Path) -> tuple[str, str, str]:
    """Machine, process and token of an owner; ``?`` where the file does not say."""
    try:
        host, process, token = read_regular(path).split()
    except (OSError, ValueError):
        return "?", "?", "?"
    return host, process, token if token.isalnum() else "?"


def alive(process: int) -> bool:
    """Whether a process of this machine still lives, as far as the system tells."""
    if os.name == "nt":
        # There, asking in this way would end it.
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        # It is another user's.
        return True
    return True


def _machine() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _sweep(folder: Path) -> None:
    """Delete drafts whose writers are dead."""
    for entry in folder.iterdir():
        named = _DRAFT.fullmatch(entry.name)
        if named is None:
            continue
        with suppress(OSError):
            ours = named[1] == _machine()
            old = entry.lstat().st_mtime < time.time() - _ABANDONED_S
            if not alive(int(named[2])) if ours else old:
                entry.unlink()


def cache_folder(kind: str = "data") -> Path:
    """Where things are kept between runs: ``thinned/KIND`` in the user's cache.

    Raises:
        ThinnedError: the user has no home.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    except RuntimeError as error:
        raise ThinnedError(
            "decoded images are kept in a cache, and there is no home folder for it: set "
            "XDG_CACHE_HOME to a folder that is yours"
        ) from error
    return Path(base) / "thinned" / kind
