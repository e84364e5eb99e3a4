"""Kill one process of a run at random steps, move it to another layout, compare the end.

    python scripts/layout_kills.py kills.tsv [--kills 20]

Each kill hits a run of its own, one of its two processes, shortly after a checkpoint of a step that
is drawn; it goes on with another number of devices or processes, and has to end with the bits of a
run that was never stopped, whose hash is the first line of the file. What the file holds already is
not done again. Exits with 1 where a hash differs.
"""

from __future__ import annotations

import argparse
import itertools
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from layout_matrix import digits

from thinned import Config
from thinned.core.config import to_json, with_values
from thinned.runs.run import Run
from thinned.runs.verify import Shape, finish, hashed, start

SMALL = {
    "model": "mlp",
    "mlp": {"hidden": [64]},
    "epochs": 8,
    "parallel": "exact",
    "checkpoint_every_s": 0.01,
}
TOGETHER = Shape(2, 1)
AFTER = [Shape(1, 1), Shape(1, 2), Shape(1, 4), Shape(2, 2)]


STEPS = 8 * 8
SHORTLY_S = 0.3
LIMIT_S = 150.0


def saved(run: Path) -> int:
    """The step of the newest checkpoint, 0 for none."""
    steps = [int(each.name) for each in (run / "checkpoints").glob("*") if each.name.isdecimal()]
    return max(steps, default=0)


def killed(folder: Path, name: str) -> bool:
    """Whether one of the two processes of a run was killed; else it had ended."""
    processes, step = start(folder, name, TOGETHER), random.randrange(1, STEPS)
    chosen, late = random.choice(processes), time.monotonic() + LIMIT_S
    while saved(folder / name) < step and chosen.poll() is None and time.monotonic() < late:
        time.sleep(0.005)
    time.sleep(SHORTLY_S * random.random())
    chosen.send_signal(signal.SIGKILL)
    for process in processes:
        try:
            process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
    return chosen.returncode == -signal.SIGKILL


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    given = parser.parse_args()
    held = given.file.read_text().splitlines() if given.file.exists() else []
    with tempfile.TemporaryDirectory(prefix="thinned-kills-") as base:
        folder = Path(base)
        config = with_values(Config(), {**SMALL, "data": {"path": str(digits(folder))}}, "script")
        (folder / "config.json").write_text(to_json(config), encoding="utf-8")
        finish(start(folder, "whole", TOGETHER))
        whole = hashed(Run.open(folder / "whole"))
        held = held or [f"never killed\t{TOGETHER}\t{whole}"]
        for number in itertools.count():
            if len(held) > given.kills:
                break
            name, after = f"killed-{number}", random.choice(AFTER)
            if not killed(folder, name):
                continue
            where = f"step {saved(folder / name)}"
            finish(start(folder, name, after))
            held.append(f"{where}\t{after}\t{hashed(Run.open(folder / name))}")
            given.file.write_text("\n".join(held) + "\n")
    wrong = [line for line in held if line.split("\t")[2] != whole]
    print("\n".join(wrong) or f"{len(held) - 1} kills, all hashes equal")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
