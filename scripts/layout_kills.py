"""Kill one process of a run at random moments, move it to another layout, compare the end.

    python scripts/layout_kills.py kills.tsv [--kills 20]

Each kill hits a run of its own, one of its two processes; it goes on with another number of devices
or processes, and has to end with the bits of a run that was never stopped, whose hash is the first
line of the file. What the file holds already is not done again. Exits with 1 where a hash differs.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from layout_matrix import digits

from thinned import Config
from thinned.core.config import to_json, with_values
from thinned.runs.run import Run
from thinned.runs.verify import Shape, finish, hashed, start, train_with_kills

SMALL = {
    "model": "mlp",
    "mlp": {"hidden": [64]},
    "epochs": 8,
    "parallel": "exact",
    "checkpoint_every_s": 0.05,
}
TOGETHER = Shape(2, 1)
AFTER = [Shape(1, 1), Shape(1, 2), Shape(1, 4), Shape(2, 2)]


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
        finish(start(folder, "warm", TOGETHER))
        started = time.monotonic()
        finish(start(folder, "whole", TOGETHER))
        duration = time.monotonic() - started
        whole = hashed(Run.open(folder / "whole"))
        held = held or [f"never killed\t{TOGETHER}\t{whole}"]
        while len(held) <= given.kills:
            after = random.choice(AFTER)
            where = train_with_kills(folder, 1, duration, [TOGETHER, after])
            # The run may have come to its end before the moment that was drawn.
            if where:
                held.append(f"{where[0]}\t{after}\t{hashed(Run.open(folder / 'killed'))}")
            shutil.rmtree(folder / "killed", ignore_errors=True)
            given.file.write_text("\n".join(held) + "\n")
    wrong = [line for line in held if line.split("\t")[2] != whole]
    print("\n".join(wrong) or f"{len(held) - 1} kills, all hashes equal")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
