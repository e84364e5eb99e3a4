"""The steps of the Dockerfile without Docker: python scripts/container_steps.py ARTIFACT.

Each COPY and RUN is done in a temporary folder, and the entry point started there as a user without
rights (where this one may become it), who can write nowhere but in a temporary folder. It has to
say that it is ready, to answer, and to end on SIGTERM.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parent.parent
NOBODY = 65534
PORT = 8765


def steps() -> list[list[str]]:
    """The instructions, word by word."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line and line[0] != "#"]


def placed(word: str, base: Path) -> str:
    """A word with the container's absolute paths moved into `base`."""
    return re.sub(r"^/(opt|artifact|build|tmp)\b", rf"{base}/\1", word)


def build(base: Path, artifact: Path) -> None:
    work = base / "build"
    for name in ("build", "opt", "tmp"):
        (base / name).mkdir()
    (base / "tmp").chmod(0o777)
    for name, *words in steps():
        if name == "COPY" and words[0] == "--from=artifact":
            shutil.copytree(artifact, base / "artifact")
        elif name == "COPY" and not words[0].startswith("--from"):
            for source in words[:-1]:
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
                copy(ROOT / source, work / source)
        elif name == "RUN":
            print("RUN", *words, flush=True)
            words = [sys.executable if word == "python" else placed(word, base) for word in words]
            subprocess.run(words, cwd=work, check=True)


def entry(base: Path) -> subprocess.Popen[bytes]:
    (text,) = re.findall(r"ENTRYPOINT (\[.*\])", (ROOT / "Dockerfile").read_text())
    words = [placed(word, base) for word in json.loads(text)]
    (given,) = (words for name, *words in steps() if name == "ENV")
    settings = dict(word.split("=", 1) for word in given)
    environment = {name: placed(value, base) for name, value in settings.items()}
    user = {"user": NOBODY, "group": NOBODY} if os.getuid() == 0 else {}
    command = [*words, "--port", str(PORT)]
    print("ENTRYPOINT", *words, flush=True)
    return subprocess.Popen(command, cwd=base / "artifact", env=environment, **user)


def answered(process: subprocess.Popen[bytes]) -> bytes:
    """What /health says, once it does."""
    for _ in range(600):
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health").read()
        except urllib.error.URLError:
            if process.poll() is not None:
                sys.exit(f"it ended with {process.returncode}")
            time.sleep(1)
    sys.exit("it did not begin in ten minutes")


def refuse_hidden_python() -> None:
    """Before the work: root's own Python is none for a user without rights."""
    hidden = [
        each for each in Path(sys.executable).resolve().parents if not each.stat().st_mode & 1
    ]
    if os.getuid() == 0 and hidden:
        sys.exit(
            f"others may not enter {hidden[0]}: run this by another Python, as /usr/bin/python3"
        )


def main(artifact: Path) -> None:
    refuse_hidden_python()
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        base.chmod(0o755)
        build(base, artifact)
        process = entry(base)
        try:
            print("ready:", answered(process).decode())
            page = urllib.request.urlopen(f"http://127.0.0.1:{PORT}/").read()
            assert b"<canvas" in page
        finally:
            process.send_signal(signal.SIGTERM)
        code = process.wait(90)
        assert code in (-signal.SIGTERM, 128 + signal.SIGTERM), code
        size = sum(f.stat().st_size for f in (base / "opt").rglob("*") if f.is_file())
        print(f"stopped by SIGTERM; /opt/thinned has {size / 1e6:,.0f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
