"""A folder is held by one process, on any disk; what is asked of a disk is asked beforehand."""

import errno
import os
import resource
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from thinned.core.disk import (
    Busy,
    ensure_descriptors,
    ensure_room,
    held,
    plain_path,
    read_regular,
    refuse_irregular,
    refuse_unwritable,
    whole,
)
from thinned.core.errors import RequestError, ThinnedError


def no_locks(descriptor: int) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.fixture(scope="module")
def dead() -> int:
    """A process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def owner(folder: Path, process: int | str, host: str | None = None, token: str = "abc") -> Path:
    path = folder / ".lock.owner"
    path.write_text(f"{host or socket.gethostname()} {process} {token}")
    return path


def test_a_folder_is_held_once_at_a_time(tmp_path):
    with (
        held(tmp_path, "being trained"),
        pytest.raises(Busy, match=f"{tmp_path} is being run by another process"),
        held(tmp_path, "being run"),
    ):
        pass
    with held(tmp_path, "being run"):
        pass


def test_without_locks_a_file_says_who_holds_the_folder(tmp_path):
    lock = no_locks
    with held(tmp_path, "being trained", lock):
        told = f"process {os.getpid()} on .*no locks on this disk.*delete .*owner"
        with pytest.raises(Busy, match=told), held(tmp_path, "being trained", lock):
            pass
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}
    with held(tmp_path, "being trained", lock):
        pass


def test_an_owner_that_is_dead_is_replaced_and_its_file_goes(tmp_path, dead):
    path = owner(tmp_path, dead)
    with held(tmp_path, "being trained", no_locks):
        assert path.read_text().split()[1] == str(os.getpid())
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}


def test_an_owner_who_cannot_be_asked_is_left_alone(tmp_path, dead):
    for text in (f"elsewhere {dead} abc", "", "damaged", f"{socket.gethostname()} ten abc"):
        path = tmp_path / ".lock.owner"
        path.write_text(text)
        with pytest.raises(Busy, match="delete"), held(tmp_path, "being run", no_locks):
            pass
        assert path.read_text() == text


def test_of_many_only_one_takes_the_place_of_a_dead_owner(tmp_path, dead):
    owner(tmp_path, dead)
    start, tried = threading.Barrier(8), threading.Barrier(8)
    holders: list[int] = []

    def attempt(number: int) -> None:
        start.wait()
        try:
            with held(tmp_path, "being run", no_locks):
                holders.append(number)
                tried.wait()
        except Busy:
            tried.wait()

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(holders) == 1


def test_a_folder_that_cannot_be_written_or_a_pipe_for_a_lock_does_not_hang(tmp_path):
    with pytest.raises(RequestError, match="cannot write in"), held(tmp_path / "none", "being run"):
        pass
    os.mkfifo(tmp_path / ".lock")
    with held(tmp_path, "being run"):
        pass


def test_drafts_of_dead_writers_are_swept_and_all_else_stays(tmp_path, dead):
    with whole(tmp_path / "x") as draft:
        draft.write_text("being written")
        parts = draft.name.split("-")
        left = tmp_path / "-".join([parts[0], str(dead), parts[2]])
        elsewhere = tmp_path / "-".join([".00000000", str(dead), parts[2]])
        old, young = tmp_path / f".{'0' * 16}.tmp", tmp_path / f".{'1' * 16}.tmp"
        mine = tmp_path / ".mine.tmp"
        for path in (left, elsewhere, old, young, mine):
            path.write_text("")
        for path in (old, mine):
            os.utime(path, (0, 0))
        with held(tmp_path, "being run"):
            pass
        assert {path.name for path in tmp_path.iterdir()} == {
            ".lock",
            *(path.name for path in (draft, elsewhere, young, mine)),
        }


def unable(descriptor: int, start: int, size: int) -> None:
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


@pytest.mark.parametrize("allocate", [None, unable])
def test_room_is_asked_for_where_it_cannot_be_reserved(tmp_path, allocate):
    ensure_room(tmp_path, 1000, allocate)
    with pytest.raises(OSError, match="No space left"):
        ensure_room(tmp_path, 1 << 62, allocate)
    assert not list(tmp_path.iterdir())


def test_room_that_cannot_be_reserved_is_refused(tmp_path):
    def full(descriptor: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        ensure_room(tmp_path, 1000, full)
    assert not list(tmp_path.iterdir())


def test_too_few_open_files_are_told_in_one_line():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The lowest number that is free, and three above it.
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 3, hard))
    try:
        with pytest.raises(OSError, match="more files may be open, 24 are needed .see ulimit -n"):
            ensure_descriptors()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    ensure_descriptors()


@pytest.mark.parametrize("name", ["a[1]", "a*", "a?", "a\\b", "a\udc80"])
def test_a_path_that_means_more_gets_one_that_does_not(tmp_path, name):
    folder = tmp_path / name / "inner"
    folder.mkdir(parents=True)
    (folder / "x").write_text("kept")
    with plain_path(folder) as path:
        assert not set("[]*?\\\udc80") & set(str(path))
        assert (path / "x").read_text() == "kept"
    assert not path.parent.exists()
    assert (folder / "x").read_text() == "kept"
    with plain_path(tmp_path) as path:
        assert path == tmp_path.resolve()


def test_a_pipe_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "x").write_text("text")
    refuse_irregular(tmp_path)
    assert read_regular(tmp_path / "x") == "text"
    os.mkfifo(tmp_path / "deep" / "pipe")
    with pytest.raises(OSError, match="pipe is neither a file nor a folder"):
        refuse_irregular(tmp_path)
    with pytest.raises(OSError, match="no regular file"):
        read_regular(tmp_path / "deep" / "pipe")


def test_all_can_be_imported_where_there_are_no_locks():
    code = "import sys; sys.modules['fcntl'] = None; import thinned.studies.study"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_is_too_long_is_refused_before_the_work(tmp_path):
    with pytest.raises(ThinnedError, match="cannot write .*: File name too long"):
        refuse_unwritable(tmp_path / ("n" * 300))
    refuse_unwritable(tmp_path / "new")
