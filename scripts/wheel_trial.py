"""The package as a stranger gets it: python scripts/wheel_trial.py [PYTHON, this one by default].

Sdist and wheel are built (the wheel from the sdist), the wheel alone is installed with its extras
`serve` and `export` into a bare environment, and from an empty folder a run is trained, asked,
exported and served. What was exported then answers, by its card's program, in an environment that
holds nothing but what the card names.
"""

from __future__ import annotations

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
WORDS = (
    "--version",
    "train --epochs 1 --data.limit 500 --data.validation 100 --name run",
    "predict runs/run 0.png",
    "export runs/run artifact",
    "predict artifact 0.png --samples 30 --calibrated",
)


def said(*words: str | Path, at: Path) -> str:
    """What a command prints; the trial ends where it fails."""
    print("$", *(Path(words[0]).name, *words[1:]), flush=True)
    # Nothing of this checkout or of what started the trial gets in.
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(words, cwd=at, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}it ended with {done.returncode}")
    return done.stdout


def environment(python: str, at: Path, *packages: str | Path) -> Path:
    """The commands of a new environment with just these packages."""
    said(python, "-m", "venv", at, at=ROOT)
    pinned = ("--constraint", ROOT / "constraints.txt", *packages)
    said(at / "bin" / "pip", "install", "--quiet", "--no-compile", *pinned, at=at)
    return at / "bin"


def built(python: str, base: Path) -> Path:
    """The wheel."""
    commands = environment(python, base / "build", "build")
    said(commands / "python", "-m", "build", "--outdir", base / "dist", ROOT, at=base)
    for made in sorted((base / "dist").iterdir()):
        print(f"{made.name}: {made.stat().st_size / 1e6:.1f} MB")
    (wheel,) = (base / "dist").glob("*.whl")
    assert wheel.stat().st_size < LARGEST
    return wheel


def served(thinned: Path, empty: Path) -> None:
    """The artifact answers over HTTP, and SIGTERM ends it."""
    words = [str(thinned), "serve", "artifact", "--port", "0"]
    print("$ thinned", *words[1:], flush=True)
    with subprocess.Popen(words, cwd=empty, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            lines = iter(process.stdout)
            address = next(found[0] for line in lines if (found := re.findall(r"http://\S+", line)))
            body = {"images": [base64.b64encode((empty / "0.png").read_bytes()).decode()]}
            head = {"Content-Type": "application/json"}
            asked = urllib.request.Request(
                f"{address}/predict", json.dumps(body).encode(), headers=head
            )
            print(urllib.request.urlopen(asked).read().decode())
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM, 128 + signal.SIGTERM), process.returncode


def main(python: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        base, empty = Path(name), Path(name) / "empty"
        empty.mkdir()
        wheel = built(python, base)
        commands = environment(python, base / "installed", f"{wheel}[serve,export]")
        black = "from PIL import Image; Image.new('L', (28, 28)).save('0.png')"
        said(commands / "python", "-c", black, at=empty)
        for words in WORDS:
            print(said(commands / "thinned", *words.split(), at=empty).rstrip().split("\n")[-1])
        served(commands / "thinned", empty)
        needs = ("jax", "numpy", "flatbuffers", "safetensors")
        bare = environment(python, base / "bare", *needs)
        card = (empty / "artifact" / "README.md").read_text()
        (program,) = re.findall(r"```python\n(.*?)```", card, re.S)
        shown = "print(mean.shape, spread.shape)"
        print(said(bare / "python", "-c", program + shown, at=empty / "artifact").rstrip())
        print(f"all done by {python}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else sys.executable)
