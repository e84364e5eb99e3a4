"""Train the same on every layout, and say whether the bits are the same: a line for each case.

    python scripts/layout_matrix.py [CASE ...]

Layouts are 1, 2, 4 and 8 devices made of a CPU, in one process and in two, on one core and on two;
cases are networks, kinds of dropout and generators, see `CASES`. Takes hours on two cores.
"""

import itertools
import os
import sys
import tempfile
from pathlib import Path

from thinned import Config
from thinned.core.config import to_json, with_values
from thinned.runs.run import Run
from thinned.runs.verify import Shape, differing, finish, start

SMALL = {"data": {"limit": 640}, "epochs": 1, "parallel": "exact", "batch_size": 32}
KINDS = ("element", "channel", "block", "gaussian", "alpha", "concrete", "connect")
CASES = {
    f"{network} {kind} {bits}": {
        "model": network,
        "dropout": {"kind": kind, "bits": bits},
        "optim": {"ema": 0.9},
        "augment": {"preset": "digits"},
    }
    for network, kind, bits in itertools.product(
        ("mlp", "cnn", "resnet"), KINDS, ("fast", "threefry")
    )
    # Without maps there is nothing to drop parts of.
    if network != "mlp" or kind not in ("channel", "block")
} | {"resnet path fast": {"model": "resnet", "dropout": {"kind": "path"}}}
SHAPES = [Shape(1, count) for count in (1, 2, 4, 8)] + [Shape(2, count) for count in (1, 2, 4)]


def trained(folder: Path, name: str, shape: Shape, cores: set[int]) -> Run:
    usual = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        processes = start(folder, name, shape)
    finally:
        os.sched_setaffinity(0, usual)
    finish(processes)
    return Run.open(folder / name)


def main() -> None:
    cores, bad = sorted(os.sched_getaffinity(0)), 0
    for case in sys.argv[1:] or CASES:
        with tempfile.TemporaryDirectory(prefix="thinned-matrix-") as base:
            folder = Path(base)
            config = with_values(Config(), {**SMALL, **CASES[case]}, "script")
            (folder / "config.json").write_text(to_json(config), encoding="utf-8")
            one = trained(folder, "one", Shape(1, 1), set(cores[:1]))
            wrong: list[str] = []
            for shape, count in itertools.product(SHAPES, (1, 2)):
                name = f"{shape.processes}x{shape.devices}, {count} cores"
                if differing(one, trained(folder, name, shape, set(cores[:count]))):
                    wrong.append(name)
        bad += bool(wrong)
        print(f"{case:<28}{'DIFFERS on ' + '; '.join(wrong) if wrong else 'equal'}", flush=True)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
