import json
import os
import random
import resource
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinned.core.errors import ThinnedError
from thinned.engine.checkpoint import KEPT, Checkpoints, digest


def arrays(step: int) -> dict:
    generator = np.random.default_rng(step)
    return {
        "params": {"dense": {"kernel": generator.normal(size=(5, 3)).astype(np.float32)}},
        "count": np.asarray(step, np.int32),
        "empty": {},
    }


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoints:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2, 3):
        checkpoints.save(step, arrays(step), {"step": step, "loss": 0.1 + 0.2})
    return checkpoints


def test_what_is_saved_comes_back_bit_by_bit(saved):
    found = saved.restore(arrays(0))
    assert found is not None
    assert found.step == 3
    assert digest(found.arrays) == digest(arrays(3))
    assert found.progress["loss"] == 0.1 + 0.2
    assert found.skipped == ()


def test_nothing_saved_is_none(tmp_path):
    assert Checkpoints(tmp_path / "none").restore(arrays(0)) is None


def test_only_the_newest_are_kept(saved):
    for step in (10, 20):
        saved.save(step, arrays(step), {})
    assert saved.steps() == [3, 10, 20]
    assert len(saved.steps()) == KEPT


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


@given(
    which=st.floats(0, 1, exclude_max=True),
    where=st.floats(0, 1, exclude_max=True),
    cut=st.booleans(),
    flip=st.integers(1, 255),
)
def test_damage_is_noticed_and_the_checkpoint_before_is_used(
    tmp_path_factory, which, where, cut, flip
):
    checkpoints = Checkpoints(tmp_path_factory.mktemp("damaged") / "checkpoints")
    for step in (1, 2):
        checkpoints.save(step, arrays(step), {"step": step})
    files = files_of(checkpoints.folder / "2")
    victim = files[int(which * len(files))]
    content = bytearray(victim.read_bytes())
    at = int(where * len(content))
    content[at] ^= flip
    victim.write_bytes(content[:at] if cut else content)
    found = checkpoints.restore(arrays(0))
    # Either the damage did no harm (a byte nobody reads), or the one before is used, and told.
    assert found is not None
    assert digest(found.arrays) == digest(arrays(found.step))
    assert found.progress["step"] == found.step
    assert (found.step == 2) == (found.skipped == ())


def test_a_damaged_file_of_json_is_called_so(saved):
    for path in files_of(saved.folder / "3" / "progress"):
        path.write_bytes(b"\x00" * path.stat().st_size)
    found = saved.restore(arrays(0))
    assert found is not None
    assert found.step == 2
    assert found.skipped[0].startswith("3: it holds a damaged file of JSON (")


def test_when_all_are_damaged_it_says_so_for_each(saved):
    for step in (1, 2, 3):
        for path in files_of(saved.folder / str(step)):
            path.write_bytes(b"")
    with pytest.raises(ThinnedError, match="no usable checkpoint.*3: .*2: .*1: "):
        saved.restore(arrays(0))


def test_a_damaged_checkpoint_can_be_saved_over(saved):
    for path in files_of(saved.folder / "3"):
        path.write_bytes(b"")
    saved.save(3, arrays(3), {"step": 3})
    assert saved.restore(arrays(0)).step == 3


def test_a_kill_while_an_old_one_is_removed_leaves_none_that_looks_finished(saved, monkeypatch):
    def killed(path):
        (path / "_CHECKPOINT_METADATA").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr("thinned.engine.checkpoint.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        saved.save(4, arrays(4), {"step": 4})
    monkeypatch.undo()
    assert saved.steps() == [2, 3, 4]
    saved.save(5, arrays(5), {"step": 5})
    assert sorted(entry.name for entry in saved.folder.iterdir()) == ["3", "4", "5"]


SPECIAL = ["a[1]", "a*", "a?", "a\\b", "a\\", "a\udc80", "😀 %41#|"]


@pytest.mark.parametrize("name", SPECIAL)
def test_any_path_can_be_trained_in(tmp_path, name, capfd):
    # What a pattern of the name would also find.
    other = Checkpoints(tmp_path / "ab" / "checkpoints")
    other.save(7, arrays(7), {})
    checkpoints = Checkpoints(tmp_path / name / "checkpoints")
    for step in (1, 2):
        checkpoints.save(step, arrays(step), {})
    found = checkpoints.restore(arrays(0))
    assert digest(found.arrays) == digest(arrays(2))
    assert found.skipped == ()
    assert other.steps() == [7]
    assert "".join(capfd.readouterr()) == ""


class Unreadable(Checkpoints):
    """On a disk that gives back other bytes than were written."""

    def _read(self, step, template):
        raise ValueError("not what was written")


def test_what_cannot_be_read_back_is_told_at_the_first_save_and_nothing_is_removed(saved):
    before = saved.steps()
    with pytest.raises(ThinnedError, match="cannot save checkpoint 9 .* cannot be read back"):
        Unreadable(saved.folder).save(9, arrays(9), {})
    assert saved.steps() == [*before, 9]


def test_what_was_passed_over_goes_and_what_was_restored_stays(tmp_path):
    """A backup of step 10 was put beside three damaged checkpoints of later steps."""
    checkpoints = Checkpoints(tmp_path)
    for step in (10, 20, 30, 40):
        checkpoints.save(step, arrays(step), {})
    # All but the newest three went; the backup comes back.
    Checkpoints(tmp_path / "backup").save(10, arrays(10), {})
    (tmp_path / "backup" / "10").rename(tmp_path / "10")
    (tmp_path / "backup").rmdir()
    for step in (20, 30, 40):
        for path in files_of(tmp_path / str(step)):
            path.write_bytes(b"")
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(arrays(0)).step == 10
    assert (checkpoints.steps(), checkpoints.usable()) == ([10, 20, 30, 40], [10])
    checkpoints.save(11, arrays(11), {})
    assert checkpoints.steps() == [10, 11]
    checkpoints.save(12, arrays(12), {})
    assert checkpoints.steps() == [10, 11, 12]
    # Also where nobody looked at what is there.
    Checkpoints(tmp_path).save(5, arrays(5), {})
    assert checkpoints.steps() == [5, 10, 11, 12]


@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_bit_of_the_progress_can_change_unnoticed(progress_saved, where, bit):
    checkpoints, path, whole = progress_saved
    content = bytearray(whole)
    content[int(where * len(content))] ^= 1 << bit
    path.write_bytes(content)
    found = checkpoints.restore(arrays(0))
    if found.step == 2:
        assert found.progress == {"step": 2, "totals": {"loss": 0.1 + 0.2, "count": 7}}
    else:
        assert found.skipped[0].startswith("2: ")


@pytest.fixture(scope="module")
def progress_saved(tmp_path_factory) -> tuple[Checkpoints, Path, bytes]:
    checkpoints = Checkpoints(tmp_path_factory.mktemp("progress"))
    for step in (1, 2):
        checkpoints.save(step, arrays(step), {"totals": {"loss": 0.1 + 0.2, "count": 7}})
    path = checkpoints.folder / "2" / "progress" / "metadata"
    return checkpoints, path, path.read_bytes()


def test_a_digest_of_before_that_covers_arrays_alone_is_still_good(saved):
    path = saved.folder / "3" / "progress" / "metadata"
    path.write_text(json.dumps({"step": 3, "loss": 1.5, "digest": digest(arrays(3))}))
    assert saved.restore(arrays(0)).progress == {"step": 3, "loss": 1.5}
    path.write_text(json.dumps({"step": 3, "loss": 1.5, "digest": digest(arrays(2))}))
    assert saved.restore(arrays(0)).step == 2
    path.write_text(json.dumps({"3tep": 3, "loss": 1.5, "digest": digest(arrays(3))}))
    assert saved.restore(arrays(0)).step == 2


def test_a_checkpoint_under_another_name_is_not_taken_for_it(saved):
    (saved.folder / "3").rename(saved.folder / "30")
    found = saved.restore(arrays(0))
    assert found.step == 2
    assert found.skipped == ("30: it was saved at step 3",)


def test_only_folders_that_we_name_are_checkpoints(saved):
    for name in ("007", "²", "٣"):
        (saved.folder / name).mkdir()
    (saved.folder / "9").write_text("")
    os.mkfifo(saved.folder / "10")
    assert saved.steps() == [1, 2, 3]


def test_a_pipe_in_a_checkpoint_is_passed_over_and_not_waited_for(saved):
    for path in files_of(saved.folder / "3"):
        path.unlink()
        os.mkfifo(path)
    found = saved.restore(arrays(0))
    assert found.step == 2
    assert "neither a file nor a folder" in found.skipped[0]


def test_damage_is_told_in_one_line_without_the_tracebacks_of_threads(saved, capfd):
    for name in ("manifest.ocdbt", "_METADATA"):
        for step in (2, 3):
            (saved.folder / str(step) / "arrays" / name).write_bytes(b"")
        assert saved.restore(arrays(0)).step == 1
    assert "".join(capfd.readouterr()) == ""


@contextmanager
def limited(what: int, most: int):
    """With a limit that holds for this process, as another one would have it."""
    soft, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(what, (soft, hard))


def test_too_few_open_files_are_no_damage(saved, capfd):
    told, free = [], os.dup(0)
    os.close(free)
    # Enough to look what is there, too few to read or write it.
    with limited(resource.RLIMIT_NOFILE, free + 2):
        for work in (
            lambda: saved.restore({"a": np.zeros(1)}),
            lambda: saved.save(9, {"a": np.zeros(1)}, {}),
        ):
            try:
                work()
            except ThinnedError as error:
                told.append(str(error))
    assert len(told) == 2
    assert all("more files may be open" in line for line in told)
    assert "".join(capfd.readouterr()) == ""
    assert saved.steps() == [1, 2, 3]


def test_arrays_of_another_shape_are_not_accepted(saved):
    other = arrays(0) | {"params": {"dense": {"kernel": np.zeros((4, 3), np.float32)}}}
    with pytest.raises(ThinnedError, match="no usable checkpoint"):
        saved.restore(other)


def test_a_disk_that_is_full_is_told_and_nothing_is_lost(saved, capfd):
    """A limit on file size stands in for a full disk: writes fail in the same way."""
    before = {path: path.read_bytes() for path in files_of(saved.folder)}
    noise = np.random.default_rng(0).normal(size=300_000)
    # Python ignores the signal that would come with it.
    with (
        limited(resource.RLIMIT_FSIZE, 100_000),
        pytest.raises(ThinnedError, match="(?s)^cannot save checkpoint 9.*are untouched"),
    ):
        saved.save(9, {"a": noise}, {})
    assert "".join(capfd.readouterr()) == ""
    assert saved.steps() == [1, 2, 3]
    assert {path: path.read_bytes() for path in before} == before


def test_a_process_killed_while_saving_leaves_whole_checkpoints(tmp_path):
    # Forked once all is imported, which takes longer than to save.
    code = f"""
    import itertools, os, sys
    import numpy as np
    from pathlib import Path
    from thinned.engine.checkpoint import Checkpoints
    while sys.stdin.readline():
        if child := os.fork():
            os.waitpid(child, 0)
            print("killed", flush=True)
            continue
        print(os.getpid(), flush=True)
        checkpoints = Checkpoints(Path({str(tmp_path / "c")!r}))
        for step in itertools.count(1):
            checkpoints.save(step, {{"a": np.full(50_000, step, np.float64)}}, {{"step": step}})
            print(step, flush=True)
    """
    chance = random.Random(0)
    template = {"a": np.zeros(50_000, np.float64)}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    for _ in range(3):
        process.stdin.write("go\n")
        process.stdin.flush()
        saving = int(process.stdout.readline())
        promised = int(process.stdout.readline())
        # Reading on to a random line puts the kill somewhere inside a later save.
        for _ in range(chance.randrange(3)):
            promised = int(process.stdout.readline())
        os.kill(saving, 9)
        while (line := process.stdout.readline()) != "killed\n":
            promised = int(line)
        found = Checkpoints(tmp_path / "c").restore(template)
        assert found is not None
        assert found.step >= promised
        assert found.skipped == ()
        assert np.all(found.arrays["a"] == found.step)
    process.communicate()
    assert process.returncode == 0
