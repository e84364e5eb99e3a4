"""The commands and programs of README and docs, run as written, on small settings."""

import dataclasses
import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, blobs, write_idx
from PIL import Image

import thinned
from thinned.cli.main import COMMANDS, main, parse
from thinned.core.config import Config, DataConfig, MlpConfig, load
from thinned.data.sources import mnist

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def commands() -> list[str]:
    lines = [
        line for page in PAGES for block in blocks(page, "console") for line in block.splitlines()
    ]
    return [line[2:].split("#")[0].strip() for line in lines if line.startswith("$ thinned")]


def test_every_make_target_that_the_readme_names_exists():
    named = re.findall(r"make (\w+)", (ROOT / "README.md").read_text())
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    assert {"train", "test"} <= set(named) <= set(targets)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder where the README's commands can run: small data stand in for the large."""
    base = tmp_path_factory.mktemp("readme")
    write_idx(base / "main" / "fashion-mnist", blobs(64, 0), blobs(9, 1))
    images, labels = blobs(90, 2)
    (base / "main" / "digits").mkdir()
    Image.fromarray(images[0]).save(base / "main" / "digits" / "0.png")
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = base / "main" / "photos" / f"class {label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).convert("RGB").save(folder / f"{index}.png")
    # The module that docs/own-model.md tells people to write.
    own = blocks(ROOT / "docs" / "own-model.md", "python")
    (base / "main" / "nets.py").write_text("\n\n".join(own))
    return base / "main"


def small(command: str) -> list[str]:
    """The words of a command, with what makes it quick put last."""
    words = shlex.split(command)[1:]
    if words[0] == "train" and "--resume" not in words:
        count = "48" if "--data" in words else "96"
        words += ["--data.limit", count]
        if "--epochs" not in words:
            words += ["--epochs", "1"]
    if words[0] == "study":
        words += ["--data.limit", "64", "--epochs", "1", "--seeds", "1"]
    starts = words[0] in ("train", "study", "find-lr") and "--resume" not in words
    if starts and not {"--model", "--dropout.sites", "block", "long"} & {*words}:
        # Every command, not every network: three have maps, and the others compile in no time.
        words += ["--model", "mlp", "--mlp.hidden", "16"]
    if "--data.validation" in words:
        words += ["--data.validation", "40"]
    if "--samples" in words:
        words += ["--samples", "3"]
    if "--risk" in words:
        # What so few images can promise.
        words += ["--risk", "0.9"]
    if "--coverage" in words:
        words += ["--coverage", "0.8"]
    if "--onnx" in words and find_spec("jax2onnx") is None:
        # tests/deploy/test_onnx.py says what is said then.
        words.remove("--onnx")
    if words[0] == "find-lr":
        words += ["--data.limit", "96", "--steps", "20"]
    if words[0] == "verify-resume":
        words += ["--data.limit", "96", "--kills", "1", "--model", "mlp", "--mlp.hidden", "8"]
    return words


@pytest.fixture
def place(workplace, monkeypatch) -> Path:
    whole = mnist.EmbeddedMnist().load()
    train, test = (part.take(np.arange(n)) for part, n in ((whole.train, 700), (whole.test, 50)))
    few = dataclasses.replace(whole, train=train, test=test)
    monkeypatch.setattr(mnist, "_load", lambda: few)
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / "cache"))
    return workplace


def test_the_readmes_commands_run_in_their_order(place, capsys):
    given = commands()
    assert len(given) >= 5
    for command in given:
        if command.startswith("thinned reproduce srivastava"):
            # Those are drawn, by the same budget, in tests/studies/test_reproduce.py.
            parse(shlex.split(command)[1:])
            continue
        if command.startswith("thinned verify-resume"):
            # Three processes: with the tutorial, below.
            continue
        assert main(small(command)) == 0, capsys.readouterr().err
    assert thinned.Run.open("runs/first").config.epochs == 6


@pytest.mark.long
@pytest.mark.usefixtures("place")
def test_a_kill_changes_nothing_as_the_page_says(capsys):
    (command,) = (each for each in commands() if each.startswith("thinned verify-resume"))
    assert main(small(command)) == 0, capsys.readouterr().err


def test_commands_in_the_text_of_pages_are_right():
    """Those that take long are not run here, but they are read as the program would read them."""
    given = [
        " ".join(found.split())
        for page in PAGES
        for found in re.findall(r"`(thinned [^`]+)`", page.read_text())
    ]
    whole = [command for command in given if not re.search(r"[A-Z]{2,}|\.\.\.", command)]
    assert len(whole) >= 10
    for command in whole:
        words = shlex.split(command)[1:]
        if words[0] in COMMANDS and "--help" not in words and words[1:]:
            parse(words)


def test_programs_that_pages_name_exist():
    for page in PAGES:
        for path in re.findall(r"(?:benchmarks|scripts)/\w+\.py", page.read_text()):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_options_in_yaml_are_options(tmp_path):
    given = [block for page in PAGES for block in blocks(page, "yaml")]
    assert given
    for block in given:
        (tmp_path / "options.yaml").write_text(block)
        load(tmp_path / "options.yaml")


PROGRAMS = [
    pytest.param(program, id=f"{page.name}-{number}")
    for page in PAGES
    for number, program in enumerate(blocks(page, "python"))
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_of_the_pages_runs(program, tmp_path, monkeypatch):
    # What trains does so with few weights here, and on a hundred images.
    few = 'model="mlp", mlp=MlpConfig((8,)), epochs=1'
    program = program.replace('model="mlp", epochs=1', few).replace(
        "thinned.Config(epochs=1)",
        f"thinned.Config({few}, data=thinned.DataConfig(limit=100))",
    )
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "page", "exec"), {"__name__": "__main__", "MlpConfig": MlpConfig})


def test_every_page_that_a_page_links_to_exists():
    for page in PAGES:
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} -> {link}"


def test_three_lines_of_python_train(tmp_path, tiny_data):
    config = Config(epochs=1, data=DataConfig(path=tiny_data))
    assert thinned.train(config, runs=tmp_path).evaluate().totals.count == 77
