"""The package as a stranger gets it: python scripts/wheel_trial.py [PYTHON] [--short].

Sdist and wheel are built (the wheel from the sdist), the wheel alone is installed with its extras
`serve` and `export` into a bare environment of PYTHON (this one by default), and from an empty
folder a run is trained, asked, exported and served. What was exported then answers, by its card's
program, in an environment that holds nothing but what the card names.

`--short` trains a small network, serves the run itself, and stops there: two thirds of a minute of
one core, for CI.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 12_000_000
SHORT = (
    "--version",
    "train --model mlp --epochs 1 --data.limit 500 --data.validation 100 --name run",
    "predict runs/run 0.png",
)
WHOLE = (
    "--version",
    "train --epochs 1 --data.limit 500 --data.validation 100 --name run",
    "predict runs/run 0.png",
    "export runs/run artifact",
    "predict artifact 0.png --samples 30 --calibrated",
)
# Nothing of this checkout or of what started the trial gets in, but for where pip looks.
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name in ("PATH", "HOME", "XDG_CACHE_HOME") or name.startswith("PIP_")
}


def said(*words: str | Path, at: Path) -> str:
    """What a command prints; the trial ends where it fails."""
    print("$", *(Path(words[0]).name, *words[1:]), flush=True)
    done = subprocess.run(words, cwd=at, env=ENVIRONMENT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}it ended with {done.returncode}")
    return done.stdout


def environment(python: str, at: Path, *packages: str | Path, pip: Path | None = None) -> Path:
    """The commands of a new environment with just these packages, by its own pip or another's."""
    said(python, "-m", "venv", *(["--without-pip"] if pip else []), at, at=ROOT)
    pinned = ("--constraint", ROOT / "constraints.txt", *packages)
    installer = (pip or at / "bin" / "pip", "--python", at / "bin" / "python", "install")
    said(*installer, "--quiet", "--no-compile", *pinned, at=at)
    return at / "bin"


def built(commands: Path, base: Path) -> Path:
    """The wheel."""
    said(commands / "python", "-m", "build", "--outdir", base / "dist", ROOT, at=base)
    made = sorted((base / "dist").iterdir())
    for each in made:
        print(f"{each.name}: {each.stat().st_size / 1e6:.1f} MB")
        assert each.stat().st_size < LARGEST
    (wheel,) = (each for each in made if each.suffix == ".whl")
    return wheel


def served(thinned: Path, empty: Path, what: str) -> None:
    """A run or an artifact answers over HTTP, and SIGTERM ends it."""
    words = [str(thinned), "serve", what, "--port", "0"]
    print("$ thinned", *words[1:], flush=True)
    piped = {"stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, cwd=empty, env=ENVIRONMENT, **piped) as process:
        assert process.stdout
        try:
            lines = iter(process.stdout)
            address = next(found[0] for line in lines if (found := re.findall(r"http://\S+", line)))
            body = {"images": [base64.b64encode((empty / "0.png").read_bytes()).decode()]}
            head = {"Content-Type": "application/json"}
            asked = urllib.request.Request(
                f"{address}/predict", json.dumps(body).encode(), headers=head
            )
            told = json.load(urllib.request.urlopen(asked))
            print(told)
            assert 0 < told["results"][0]["probability"] <= 1
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM, 128 + signal.SIGTERM), process.returncode


def alone(commands: Path, empty: Path, base: Path) -> None:
    """The artifact's card is a program for an environment with what it names, and no more."""
    needs = ("jax", "numpy", "flatbuffers", "safetensors")
    bare = environment(str(commands / "python"), base / "bare", *needs, pip=base / "build/bin/pip")
    card = (empty / "artifact" / "README.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", card, re.S)
    shown = "print(mean.shape, spread.shape)"
    print(said(bare / "python", "-c", program + shown, at=empty / "artifact").rstrip())


def main(python: str, short: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        base, empty = Path(name), Path(name) / "empty"
        empty.mkdir()
        tools = environment(python, base / "build", "build")
        extras = "serve" if short else "serve,export"
        wheel = f"{built(tools, base)}[{extras}]"
        commands = environment(python, base / "installed", wheel, pip=tools / "pip")
        typed = (
            "from importlib.resources import files; files('thinned').joinpath('py.typed').open()"
        )
        black = "from PIL import Image; Image.new('L', (28, 28)).save('0.png')"
        said(commands / "python", "-c", f"{typed}; {black}", at=empty)
        for words in SHORT if short else WHOLE:
            print(said(commands / "thinned", *words.split(), at=empty).rstrip().split("\n")[-1])
        served(commands / "thinned", empty, "runs/run" if short else "artifact")
        if not short:
            alone(commands, empty, base)
        print(f"all done by {python}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python", nargs="?", default=sys.executable)
    parser.add_argument("--short", action="store_true")
    asked = parser.parse_args()
    main(asked.python, asked.short)
