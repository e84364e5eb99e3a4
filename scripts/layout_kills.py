"""Kill one process of a run at random moments, move it to the next layout, compare the end.

    python scripts/layout_kills.py [--kills 20]

Each kill hits a run of its own, of two processes; it goes on in one process with another number of
devices, and has to end with the bits of a run that was never stopped.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from thinned import Config
from thinned.core.config import to_json, with_values
from thinned.runs.run import Run
from thinned.runs.verify import Shape, differing, finish, start, train_with_kills

SMALL = {
    "data": {"limit": 640},
    "model": "mlp",
    "mlp": {"hidden": [64]},
    "epochs": 8,
    "parallel": "exact",
    "checkpoint_every_s": 0.05,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    kills, bad = parser.parse_args().kills, 0
    with tempfile.TemporaryDirectory(prefix="thinned-kills-") as base:
        folder = Path(base)
        config = with_values(Config(), SMALL, "script")
        (folder / "config.json").write_text(to_json(config), encoding="utf-8")
        started = time.monotonic()
        finish(start(folder, "whole", Shape(2, 1)))
        duration = time.monotonic() - started
        for number in range(kills):
            after = Shape(*random.choice([(1, 1), (1, 2), (1, 4), (2, 2)]))
            killed = folder / "killed"
            train_with_kills(folder, 1, duration, [Shape(2, 1), after])
            wrong = differing(Run.open(folder / "whole"), Run.open(killed))
            bad += bool(wrong)
            print(f"{number + 1}: went on with {after}: {', '.join(wrong) or 'equal'}", flush=True)
            killed.rename(folder / f"killed-{number}")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
