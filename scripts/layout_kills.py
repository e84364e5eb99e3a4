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
import sys
import tempfile
import time
from pathlib import Path

from kill_campaign import SHORTLY_S, wait_for
from layout_matrix import digits

from thinned import Config
from thinned.core.config import to_json, with_values
from thinned.runs.run import Run
from thinned.runs.verify import Shape, finish, hashed, kill_one, start

SMALL = {
    "model": "mlp",
    "mlp": {"hidden": [64]},
    "epochs": 8,
    "parallel": "exact",
    "checkpoint_every_s": 0.01,
}
TOGETHER = Shape(2, 1)
AFTER = [Shape(1, 1), Shape(1, 2), Shape(1, 4), Shape(2, 2)]


def killed(folder: Path, name: str, step: int) -> bool:
    """Whether one of two processes was killed after that step was saved; else the run had ended."""
    processes = start(folder, name, TOGETHER)
    wait_for(step, folder / name, processes[0])
    time.sleep(SHORTLY_S * random.random())
    kill_one(processes)
    return any(process.returncode == -signal.SIGKILL for process in processes)


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
        uninterrupted = Run.open(folder / "whole")
        whole, steps = hashed(uninterrupted), uninterrupted.checkpoints.steps()[-1]
        held = held or [f"never killed\t{TOGETHER}\t{whole}"]
        for number in itertools.count():
            if len(held) > given.kills:
                break
            name, after = f"killed-{number}", random.choice(AFTER)
            if not killed(folder, name, random.randrange(1, steps)):
                continue
            where = f"step {Run.open(folder / name).checkpoints.steps()[-1]}"
            finish(start(folder, name, after))
            held.append(f"{where}\t{after}\t{hashed(Run.open(folder / name))}")
            given.file.write_text("\n".join(held) + "\n")
    wrong = [line for line in held if line.split("\t")[2] != whole]
    print("\n".join(wrong) or f"{len(held) - 1} kills, all hashes equal")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
