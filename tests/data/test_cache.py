"""Decoded images on the disk: never stale, never damaged unseen, never without bound."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from thinned.cli.main import main
from thinned.core.config import DataConfig
from thinned.core.disk import cache_folder
from thinned.core.errors import RequestError
from thinned.data.pack import largest_cache, open_pack, packs_in, trim, write_pack
from thinned.data.sources.load import open_source


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def pictures(base: Path) -> Path:
    for label, name in enumerate("ab"):
        for index in range(5):
            path = base / name / f"{index}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), 50 * label + index).save(path)
    return base


def packed(folder: Path, value: int = 7, count: int = 4) -> None:
    write_pack(folder, (2, 2, 1), ((i, np.full((2, 2, 1), value, np.uint8)) for i in range(count)))


@pytest.mark.parametrize("replaced", [True, False])
def test_a_file_of_the_same_size_and_time_is_seen_to_have_changed(tmp_path, replaced):
    base = pictures(tmp_path / "d")
    options = DataConfig(path=str(base), size=4)
    before = open_source(options).load()
    changed = base / "a" / "0.bmp"
    was = changed.stat()
    target = tmp_path / "new.bmp" if replaced else changed
    Image.new("L", (4, 4), 255).save(target)
    os.utime(target, ns=(was.st_atime_ns, was.st_mtime_ns))
    target.replace(changed)
    assert (changed.stat().st_size, changed.stat().st_mtime_ns) == (was.st_size, was.st_mtime_ns)
    after = open_source(options).load()
    pixels = [
        {int(image.max()) for split in data.splits.values() for image in split.images[:]}
        for data in (before, after)
    ]
    assert [255 in each for each in pixels] == [False, True]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7), meta=st.booleans())
def test_one_flipped_bit_is_found_and_decoded_anew(tmp_path, place, bit, meta):
    folder = tmp_path / "packs" / "one"
    packed(folder)
    path = folder / ("meta.json" if meta else "images.u8")
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)
    found = open_pack(folder)
    # A bit of white space or of a name's case may mean nothing; nothing else may pass.
    assert found is None or (meta and found.kept.tolist() == [0, 1, 2, 3])
    packed(folder)
    assert np.all(open_pack(folder).images[:] == 7)


@pytest.mark.parametrize(
    "text", ["[]", "{}", "3", "null", '{"held": []}', '{"sha256": 0, "held": {"item": 3}}', "\xff"]
)
def test_any_other_meta_is_no_pack(tmp_path, text):
    packed(tmp_path / "one")
    (tmp_path / "one" / "meta.json").write_text(text, encoding="latin-1")
    assert open_pack(tmp_path / "one") is None


def test_a_pack_of_images_that_are_not_these_is_refused_though_its_form_is_right(tmp_path):
    packed(tmp_path / "one")
    path = tmp_path / "one" / "meta.json"
    saved = json.loads(path.read_text())
    saved["held"]["kept"] = [3, 2, 1, 0]
    path.write_text(json.dumps(saved))
    assert open_pack(tmp_path / "one") is None


def test_the_longest_unused_is_trimmed_first_and_none_that_is_read(tmp_path):
    parent = tmp_path / "packs"
    for age, name in enumerate(("new", "middle", "old")):
        packed(parent / name)
        os.utime(parent / name / "meta.json", (1000 - age, 1000 - age))
    size = packs_in(parent)[0].size
    assert [kept.folder.name for kept in packs_in(parent)] == ["old", "middle", "new"]
    read = open_pack(parent / "old")
    os.utime(parent / "old" / "meta.json", (1, 1))
    assert [kept.folder.name for kept in trim(parent, 2.5 * size)] == ["middle"]
    assert np.all(read.images[:] == 7)
    # A part of the images holds it as well.
    part = read.images.select(np.arange(2))
    del read
    assert [kept.folder.name for kept in trim(parent, 0)] == ["new"]
    assert np.all(part[:] == 7)
    del part
    assert [kept.folder.name for kept in trim(parent, 0)] == ["old"]
    assert not list(parent.iterdir())


def test_what_is_written_trims_the_rest(tmp_path, monkeypatch):
    monkeypatch.setenv("THINNED_CACHE_GB", "0")
    packed(tmp_path / "packs" / "one")
    packed(tmp_path / "packs" / "two")
    assert [path.name for path in (tmp_path / "packs").iterdir()] == ["two"]
    for nonsense in ("much", "-1", "nan"):
        monkeypatch.setenv("THINNED_CACHE_GB", nonsense)
        with pytest.raises(RequestError, match="must be a number"):
            largest_cache()


def test_the_command_shows_and_clears(tmp_path, capsys):
    assert main(["data", "cache"]) == 0
    assert "0 kept" in capsys.readouterr().out
    packed(cache_folder() / "one")
    assert main(["data", "cache"]) == 0
    shown = capsys.readouterr().out
    assert "one\n" in shown
    assert "above 20 GB" in shown
    assert main(["data", "cache", "--clear"]) == 0
    assert "deleted 1" in capsys.readouterr().out
    assert not list(cache_folder().iterdir())


WRITER = """
import sys
from pathlib import Path
import numpy as np
from thinned.data.pack import write_pack

def images():
    yield 0, np.full((8, 8, 1), own, np.uint8)
    print("begun", flush=True)
    sys.stdin.readline()
    for entry in range(1, 5):
        yield entry, np.full((8, 8, 1), own, np.uint8)

own, packs = int(sys.argv[2]), []
for number in range(int(sys.argv[3])):
    packs.append(write_pack(Path(sys.argv[1], str(number)), (8, 8, 1), images()))
# Read only now: what the other has made of a folder since must be no other images than these.
for pack in packs:
    print(*np.unique(pack.images[:]), *pack.kept)
"""


def test_two_processes_that_write_the_same_packs_lose_and_mix_nothing(tmp_path):
    count, folder = 16, tmp_path / "packs"
    for number in range(0, count, 2):
        # Every other one is there and damaged, so that each process wants to delete it first.
        packed(folder / str(number))
        (folder / str(number) / "images.u8").write_bytes(b"cut")
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), own, str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for own in "12"
    ]
    for _ in range(count):
        # Both are in the middle of the same pack, and go on at once.
        assert [writer.stdout.readline() for writer in writers] == ["begun\n"] * 2
        for writer in writers:
            writer.stdin.write("\n")
            writer.stdin.flush()
    said = [writer.communicate()[0].splitlines() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    whole = [open_pack(folder / str(number)) for number in range(count)]
    # Both were given the one that is there, whichever of them was first.
    assert said[0] == said[1] == [f"{pack.images[:].max()} 0 1 2 3 4" for pack in whole]
    assert all(len(np.unique(pack.images[:])) == 1 for pack in whole)
    assert {path.name for path in folder.iterdir()} == {str(number) for number in range(count)}
