import os
import random
import subprocess
import sys
import textwrap
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


# Orbax leaves futures of the failed read behind, whose errors nobody asks for.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
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


def test_arrays_of_another_shape_are_not_accepted(saved):
    other = arrays(0) | {"params": {"dense": {"kernel": np.zeros((4, 3), np.float32)}}}
    with pytest.raises(ThinnedError, match="no usable checkpoint"):
        saved.restore(other)


def test_a_disk_that_is_full_is_told_and_nothing_is_lost(saved):
    """A limit on file size stands in for a full disk: writes fail in the same way."""
    before = {path: path.read_bytes() for path in files_of(saved.folder)}
    code = f"""
    import resource, signal, sys
    import numpy as np
    from thinned.checkpoint import Checkpoints
    from thinned.errors import ThinnedError
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    noise = np.random.default_rng(0).normal(size=300_000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        Checkpoints(__import__("pathlib").Path({str(saved.folder)!r})).save(9, {{"a": noise}}, {{}})
    except ThinnedError as error:
        print(error)
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert out.stdout.startswith("cannot save checkpoint 9")
    assert "earlier checkpoints are untouched" in out.stdout
    assert saved.steps() == [1, 2, 3]
    assert {path: path.read_bytes() for path in before} == before


def test_a_process_killed_while_saving_leaves_whole_checkpoints(tmp_path):
    code = f"""
    import itertools
    import numpy as np
    from pathlib import Path
    from thinned.checkpoint import Checkpoints
    checkpoints = Checkpoints(Path({str(tmp_path / "c")!r}))
    for step in itertools.count(1):
        checkpoints.save(step, {{"a": np.full(50_000, step, np.float64)}}, {{"step": step}})
        print(step, flush=True)
    """
    chance = random.Random(0)
    template = {"a": np.zeros(50_000, np.float64)}
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
        )
        promised = int(process.stdout.readline())
        # Reading on to a random line puts the kill somewhere inside a later save.
        for _ in range(chance.randrange(3)):
            promised = int(process.stdout.readline())
        os.kill(process.pid, 9)
        rest = process.communicate()[0].split()
        promised = int(rest[-1]) if rest else promised
        found = Checkpoints(tmp_path / "c").restore(template)
        assert found is not None
        assert found.step >= promised
        assert found.skipped == ()
        assert np.all(found.arrays["a"] == found.step)
