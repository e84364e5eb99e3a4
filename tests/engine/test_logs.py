"""Files appear whole or not at all, and nothing else is touched."""

import os
import stat
import threading
from pathlib import Path

import pytest

from thinned.core.disk import refuse_unwritable, whole, write_whole
from thinned.core.errors import ThinnedError


def test_a_file_is_replaced_whole_and_others_stay(tmp_path):
    path, other = tmp_path / "x", tmp_path / "x.tmp"
    other.write_text("mine")
    write_whole(path, "one")
    with pytest.raises(UnicodeEncodeError), whole(path) as draft:
        draft.write_text("two \udc80", encoding="utf-8")
    assert path.read_text() == "one"
    assert other.read_text() == "mine"
    assert {each.name for each in tmp_path.iterdir()} == {"x", "x.tmp"}
    mask = os.umask(0o027)
    try:
        write_whole(tmp_path / "y", "")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "y").stat().st_mode) == 0o640


def test_a_link_stays_a_link(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old")
    link.symlink_to(real)
    write_whole(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_a_pipe_and_a_device_stay_what_they_are(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    write_whole(pipe, "through")
    reader.join()
    assert got == ["through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    write_whole(Path(os.devnull), "gone")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_what_cannot_be_written_is_told_before_the_work(tmp_path):
    refuse_unwritable(None)
    refuse_unwritable(tmp_path / "new")
    with pytest.raises(ThinnedError, match="it is a folder"):
        refuse_unwritable(tmp_path)
    with pytest.raises(ThinnedError, match="there is no folder"):
        refuse_unwritable(tmp_path / "none" / "x")
