"""Streaming against memory: `python benchmarks/streaming.py [folder for scratch]`.

Contract: a synthetic folder of JPEG photos is decoded once at 64 x 64; it takes 5 times the limit
that is set. The same steps then run with all images in memory and streamed from the disk, in turns,
in one process, compiled before the first is timed; ratios within a round, median [quartiles].
Memory is the process's resident set, sampled in every round. Bars: streamed at least 0.9 times as
fast; memory flat.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from PIL import Image

from thinned.core.config import Config, DataConfig
from thinned.data.facts import Facts
from thinned.data.sources.load import load_data
from thinned.engine.build import Built
from thinned.engine.devices import on_device
from thinned.engine.feed import Resident, Streamed
from thinned.engine.step import train_steps

COUNT = int(os.environ.get("IMAGES", "24000"))
ROUNDS, STEPS = int(os.environ.get("ROUNDS", "15")), 40


def write_photos(base: Path) -> None:
    def one(index: int) -> None:
        random = np.random.default_rng(index)
        small = random.integers(0, 256, (6, 8, 3)).astype(np.uint8)
        split = "test" if index % 20 == 0 else "train"
        folder = base / split / f"class {index % 5}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(small).resize((160, 120)).save(folder / f"{index}.jpg", quality=80)

    with ThreadPoolExecutor() as pool:
        list(pool.map(one, range(COUNT)))


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if sys.argv[1:] else None) as scratch:
        os.environ["XDG_CACHE_HOME"] = scratch
        base = Path(scratch) / "photos"
        write_photos(base)
        megabytes = COUNT * 64 * 64 * 3 / 1e6
        limit = megabytes / 5
        config = Config(data=DataConfig(path=str(base), memory_mb=limit), epochs=100)
        start = time.perf_counter()
        dataset = load_data(config)
        decoded = COUNT / (time.perf_counter() - start)
        facts = Facts.of(dataset, config)
        built, process = Built.of(config, facts), psutil.Process()
        plan = built.plan
        print(f"{COUNT:,} photos, {megabytes:.0f} MB decoded, limit {limit:.0f} MB")
        print(f"decoded once at {decoded:.0f} images/s on {os.cpu_count()} cores")
        streamed = Streamed(plan, dataset.train, limit * 1e6)
        feeds = {"streamed": streamed}
        states = {name: built.initial_state() for name in ("streamed", "memory")}
        done = {"streamed": 0, "memory": 0}

        def run(name: str) -> float:
            start, left = time.perf_counter(), STEPS
            while left:
                data, chunk, count = feeds[name].fetch(done[name], left)
                states[name], sums = train_steps(states[name], data, chunk, jnp.int32(count))
                jax.block_until_ready(sums)
                done[name] += count
                left -= count
            return time.perf_counter() - start

        run("streamed")
        resident = []
        for _ in range(ROUNDS):
            run("streamed")
            resident.append(process.memory_info().rss / 1e6)
        print(
            f"resident set while streaming: {resident[0]:.0f} MB after {STEPS} steps, "
            f"{resident[-1]:.0f} MB after {STEPS * ROUNDS}, at most {max(resident):.0f} MB"
        )
        feeds["memory"] = Resident(plan, on_device(dataset.train))
        run("memory")
        ratios = [run("memory") / run("streamed") for _ in range(ROUNDS)]
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        print(f"speed streamed / in memory: {middle:.3f} [{low:.3f}, {high:.3f}], {ROUNDS} rounds")


if __name__ == "__main__":
    main()
