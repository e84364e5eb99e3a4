"""The steps of the Dockerfile without Docker: python scripts/container_steps.py ARTIFACT.

Each COPY and RUN is done in a temporary folder, and the entry point started there. Where root runs
this, the Dockerfile's user starts it, in a name space of its own in which the file system is
read-only but for a tmpfs at /tmp, as `docker run --read-only --tmpfs /tmp` has it. It has to become
healthy by the Dockerfile's own HEALTHCHECK, to answer, and to end on SIGTERM.
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
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parent.parent
PORT = 8765
READ_ONLY = """
mount --options remount,bind,ro / && mount --types tmpfs tmpfs "$0" &&
exec setpriv --reuid="$1" --regid="$1" --clear-groups --no-new-privs "${@:2}"
"""


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


def instruction(name: str) -> list[str]:
    """The words of an instruction that is there once."""
    (words,) = (words for first, *words in steps() if first == name)
    return words


def command(name: str, base: Path) -> list[str]:
    """The command of ENTRYPOINT or HEALTHCHECK, in `base` and on a port that is likely free."""
    (text,) = re.findall(rf"^{name} .*?(\[.*\])$", (ROOT / "Dockerfile").read_text(), re.M)
    words = [placed(word, base) for word in json.loads(text)]
    return [word.replace(":8000/", f":{PORT}/") for word in words]


def settings(base: Path) -> dict[str, str]:
    pairs = (word.split("=", 1) for word in instruction("ENV"))
    return {name: placed(value, base) for name, value in pairs}


def entry(base: Path) -> subprocess.Popen[bytes]:
    words, artifact = [*command("ENTRYPOINT", base), "--port", str(PORT)], base / "artifact"
    if os.getuid() == 0:
        user = instruction("USER")[0].split(":")[0]
        alone = ("unshare", "--mount", "bash", "-c", READ_ONLY)
        words = [*alone, str(base / "tmp"), user, *words]
    print("ENTRYPOINT", *words, flush=True)
    return subprocess.Popen(words, cwd=artifact, env={**settings(base), "PATH": os.environ["PATH"]})


def healthy(process: subprocess.Popen[bytes], base: Path) -> None:
    """Ask as the Dockerfile does, until it is."""
    check = command("HEALTHCHECK", base)
    for _ in range(600):
        if subprocess.run(check, env=settings(base), capture_output=True).returncode == 0:
            return
        if process.poll() is not None:
            sys.exit(f"it ended with {process.returncode}")
        time.sleep(1)
    sys.exit("it did not begin in ten minutes")


def shut_in(process: subprocess.Popen[bytes]) -> None:
    """It has no rights, and can write nothing but its /tmp."""
    about = Path(f"/proc/{process.pid}")
    user = instruction("USER")[0].split(":")[0]
    assert re.findall(r"^Uid:\t(.*)", (about / "status").read_text(), re.M) == [
        "\t".join([user] * 4)
    ]
    (options,) = re.findall(r"^\S+ / \S+ (\S+)", (about / "mounts").read_text(), re.M)
    assert "ro" in options.split(","), options
    print(f"user {user}, file system read-only")


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
            healthy(process, base)
            if os.getuid() == 0:
                shut_in(process)
            address = f"http://127.0.0.1:{PORT}"
            print("healthy:", urllib.request.urlopen(f"{address}/health").read().decode())
            assert b"<canvas" in urllib.request.urlopen(f"{address}/").read()
        finally:
            process.send_signal(signal.SIGTERM)
        code = process.wait(90)
        assert code in (-signal.SIGTERM, 128 + signal.SIGTERM), code
        size = sum(f.stat().st_size for f in (base / "opt").rglob("*") if f.is_file())
        print(f"stopped by SIGTERM; /opt/thinned has {size / 1e6:,.0f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
