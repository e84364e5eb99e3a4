"""Train the same on every layout, and say whether the bits are the same.

    python scripts/layout_matrix.py cells.tsv [--only WORD ...]
    python scripts/layout_matrix.py cells.tsv --table

A cell is a run: a network, a kind of dropout, a generator, varied images or not, a moving average
or not, on 1, 2, 4 or 8 devices made of a CPU, of one process or two, on one core or two. There are
all networks, kinds and generators on all layouts; varied images and averages take turns. The
processes of a layout train all of its runs, one after the other. The file gets a line for each with
a hash of all that its checkpoint and its records hold; what is in it already is not run again.
`--table` writes it out as Markdown. Exits with 1 where hashes differ.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from thinned import Config
from thinned.core.config import load, to_json, with_values
from thinned.core.errors import ThinnedError
from thinned.data.sources.mnist import EmbeddedMnist
from thinned.engine.processes import joined
from thinned.runs.train import train
from thinned.runs.verify import Shape, finish, hashed, start_with

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
    """All of them, layout by layout; first those that the others are compared with."""
    turns = [("plain", "last"), ("varied", "averaged"), ("plain", "averaged"), ("varied", "last")]
    drops = [(network, kind) for network, kinds in HAS.items() for kind in kinds]
    return [
        Cell(network, kind, bits, *turns[(index + other) % len(turns)], *layout)
        for layout in LAYOUTS
        for index, (network, kind) in enumerate(drops)
        for other, bits in enumerate(("fast", "threefry"))
    ]


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


def run_all(wanted: list[Cell], file: Path) -> None:
    """Train cells of one layout, in processes of their own.

    Raises:
        ThinnedError: one of them failed.
    """
    devices, processes, cores = wanted[0].layout
    shape = Shape(processes, devices // processes)
    usual = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory(prefix="thinned-matrix-") as base:
        folder = Path(base)
        data = digits(folder)
        for cell in wanted:
            config = to_json(cell.config(data))
            (folder / f"{'-'.join(map(str, cell))}.json").write_text(config, encoding="utf-8")
        os.sched_setaffinity(0, sorted(usual)[-cores:])
        try:
            command = [sys.executable, __file__, str(file), "--work", base]
            started = start_with(command, shape)
        finally:
            os.sched_setaffinity(0, usual)
        finish(started)


def work(folder: Path, file: Path, place: str | None, processes: int, process: int) -> None:
    """Be one of the processes of a layout."""
    together = joined(place, processes, process) if place else contextlib.nullcontext()
    with together:
        for path in sorted(folder.glob("*-*.json")):
            config = replace(load(path), devices="all")
            run = train(config, name=path.stem, runs=folder / "runs")
            if process == 0:
                with file.open("a") as out:
                    print(*path.stem.split("-"), hashed(run), sep="\t", file=out)
            jax.clear_caches()


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
    lines = [f"| run | hash | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for case, hashes in sorted(by_case.items()):
        one = hashes.get(LAYOUTS[0], "")
        marks = [_mark(hashes.get(layout), one) for layout in LAYOUTS]
        lines.append(f"| {' '.join(case)} | {one[:6]} | {' | '.join(marks)} |")
    return lines


def _mark(said: str | None, one: str) -> str:
    if said is None:
        return ""
    return "=" if said == one else f"**{said[:6]}**"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", nargs="*", default=[], help="cells with all of these values")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--coordinator", help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--process", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        return work(given.work, given.file, given.coordinator, given.processes, given.process)
    if given.table:
        print("\n".join(told(known(given.file))))
    else:
        held = known(given.file)
        left = [cell for cell in cells() if {*given.only} <= {*map(str, cell)} and cell not in held]
        for _, same in itertools.groupby(left, lambda cell: cell.layout):
            try:
                run_all([*same], given.file)
            except ThinnedError as error:
                # What is not in the file is tried again by the same command.
                print(error, flush=True)
    found = known(given.file)
    wrong = [cell for cell, said in found.items() if said != found.get(first_of(cell), said)]
    for cell in wrong:
        print(f"DIFFERS: {' '.join(map(str, cell))}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
