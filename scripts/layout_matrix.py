"""Train the same on every layout, and say whether the bits are the same.

    python scripts/layout_matrix.py cells.tsv [--count N] [--only WORD ...]
    python scripts/layout_matrix.py cells.tsv --table

A cell is a run: a network, a kind of dropout, a generator, varied images or not, a moving average
or not, on 1, 2, 4 or 8 devices made of a CPU, of one process or two, on one core or two. There are
far too many for an evening, so they come in an order in which every pair of values is seen soon.
The file gets a line for each with a hash of all that its checkpoint and its records hold; what is
in it already is not run again. `--table` writes it out as Markdown. Exits with 1 where hashes
differ.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from thinned import Config
from thinned.core.config import to_json, with_values
from thinned.core.errors import ThinnedError
from thinned.data.sources.mnist import EmbeddedMnist
from thinned.runs.run import Run
from thinned.runs.verify import Shape, finish, hashed, start

KINDS = ("element", "channel", "block", "path", "gaussian", "alpha", "concrete", "connect")
# Without maps there is nothing to drop parts of, without branches no paths.
HAS = {
    "mlp": [kind for kind in KINDS if kind not in ("channel", "block", "path")],
    "cnn": [kind for kind in KINDS if kind != "path"],
    "resnet": list(KINDS),
}
LAYOUTS = [
    (devices, processes, cores)
    for devices, processes, cores in itertools.product((1, 2, 4, 8), (1, 2), (1, 2))
    if devices % processes == 0
]
IMAGES, BATCH = 256, 32


class Cell(NamedTuple):
    network: str
    kind: str
    bits: str
    images: str
    average: str
    devices: int
    processes: int
    cores: int

    @property
    def case(self) -> tuple[str, ...]:
        return self[:5]

    @property
    def layout(self) -> tuple[int, ...]:
        return self[5:]

    @property
    def pairs(self) -> frozenset[tuple[object, ...]]:
        return frozenset(itertools.combinations(enumerate(self), 2))

    def config(self, data: Path) -> Config:
        """Of a run of this cell, which learns from that file."""
        values = {
            "model": self.network,
            "dropout": {"kind": self.kind, "bits": self.bits},
            "augment": {"preset": "digits" if self.images == "varied" else "none"},
            "optim": {"ema": 0.9 if self.average == "averaged" else None},
            "data": {"path": str(data)},
            "epochs": 1,
            "batch_size": BATCH,
            "parallel": "exact",
        }
        return with_values(Config(), values, "script")


def cells() -> list[Cell]:
    """All of them; those that together have every pair of values first, next to their reference."""
    left = [
        Cell(network, kind, *rest, *layout)
        for network, kinds in HAS.items()
        for kind, *rest in itertools.product(
            kinds, ("fast", "threefry"), ("plain", "varied"), ("last", "averaged")
        )
        for layout in LAYOUTS
    ]
    random.Random(0).shuffle(left)
    missing = set[object]().union(*(cell.pairs for cell in left))
    found: dict[Cell, None] = {}

    def gain(cell: Cell) -> float:
        # One whose reference has still to be run costs two.
        return len(cell.pairs & missing) / (2 - (first_of(cell) in found))

    while missing:
        best = max(left, key=gain)
        for cell in (first_of(best), best):
            found.setdefault(cell)
            missing -= cell.pairs
    for cell in left:
        found.setdefault(first_of(cell))
        found.setdefault(cell)
    return list(found)


def first_of(cell: Cell) -> Cell:
    """What its bits are compared with: one device, one process, one core."""
    return cell._replace(devices=1, processes=1, cores=1)


def digits(folder: Path) -> Path:
    """A file of the first MNIST digits, which processes read sooner than all of them."""
    path, held = folder / "digits.npz", EmbeddedMnist().load()
    np.savez(
        path,
        x_train=held.train.images[:IMAGES],
        y_train=held.train.labels[:IMAGES],
        x_test=held.test.images[:IMAGES],
        y_test=held.test.labels[:IMAGES],
    )
    return path


def hash_of(cell: Cell, folder: Path) -> str:
    (folder / "config.json").write_text(to_json(cell.config(digits(folder))), encoding="utf-8")
    usual = os.sched_getaffinity(0)
    shape = Shape(cell.processes, cell.devices // cell.processes)
    os.sched_setaffinity(0, sorted(usual)[: cell.cores])
    try:
        processes = start(folder, "run", shape)
    finally:
        os.sched_setaffinity(0, usual)
    finish(processes)
    return hashed(Run.open(folder / "run"))


def known(path: Path) -> dict[Cell, str]:
    """What the file says: a hash for each cell that was run."""
    found: dict[Cell, str] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        *words, said = line.split("\t")
        found[Cell(*words[:5], *map(int, words[5:]))] = said
    return found


def told(found: dict[Cell, str]) -> list[str]:
    """A line of Markdown for each case, with the layouts it was run on."""
    by_case: dict[tuple[str, ...], dict[tuple[int, ...], str]] = defaultdict(dict)
    for cell, said in found.items():
        by_case[cell.case][cell.layout] = said
    names = [f"{devices}d {processes}p {cores}c" for devices, processes, cores in LAYOUTS]
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for case, hashes in sorted(by_case.items()):
        one = hashes.get(LAYOUTS[0])
        marks = [_mark(hashes.get(layout), one) for layout in LAYOUTS]
        lines.append(f"| {' '.join(case)} | {' | '.join(marks)} |")
    return lines


def _mark(said: str | None, one: str | None) -> str:
    if said is None:
        return ""
    return said[:6] if said == one else f"**{said[:6]}**"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--count", type=int, help="stop after so many cells")
    parser.add_argument("--only", nargs="*", default=[], help="cells with all of these values")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    found = known(given.file)
    if given.table:
        print("\n".join(told(found)))
    else:
        wanted = [cell for cell in cells() if {*given.only} <= {*map(str, cell)}]
        left = [cell for cell in wanted if cell not in found][: given.count]
        for cell in left:
            with tempfile.TemporaryDirectory(prefix="thinned-matrix-") as base:
                try:
                    found[cell] = hash_of(cell, Path(base))
                except ThinnedError as error:
                    # Not in the file, so that it is tried again.
                    print(f"{' '.join(map(str, cell))}: {error}", flush=True)
                    continue
            with given.file.open("a") as out:
                print(*cell, found[cell], sep="\t", file=out)
    wrong = [cell for cell, said in found.items() if said != found.get(first_of(cell), said)]
    for cell in wrong:
        print(f"DIFFERS: {' '.join(map(str, cell))}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
