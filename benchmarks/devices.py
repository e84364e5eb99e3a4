"""Several devices against one: `python benchmarks/devices.py [NETWORK ...]` (`make bench-devices`).

Contract: the compiled steps of a run (Adam, dropout 0.5, batch BATCH, noise for images, all in
memory) in turns on one device, `exact` on 1, 2, ... and `fast` on as many, `fast` once more with
large parameters cut up. All in one process, each compiled before the first is timed; STEPS steps in
each of ROUNDS rounds. What is printed is the pace over that of one device in the same round, median
[quartiles]; the memory that the compiled program wants on each device besides its arguments, and
the arguments (parameters, what Adam keeps, images), in multiples P of the parameters, as XLA counts
them; and the bytes that a device receives at each step, by arithmetic. With CLOCK=cpu, pace is that
of CPU time: what a step costs, whatever else the cores do.

On a machine with GPUs the devices are those, as in
`DEVICES=1,2,4,8 BATCH=1024 python benchmarks/devices.py cnn wide-resnet-28-10`; elsewhere they are
made of the CPU and share its cores: on N cores, more than N devices can win nothing.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thinned.core.config import Config, DataConfig, DropoutConfig
from thinned.core.rng import fixed_settings
from thinned.core.types import Dataset, Split
from thinned.data.facts import Facts
from thinned.engine.build import Built
from thinned.engine.exact import CELLS, exact_steps
from thinned.engine.feed import feed_of
from thinned.engine.layout import ONE_DEVICE, Exact, Fast, Layout
from thinned.engine.step import train_steps

WANTED = [int(count) for count in os.environ.get("DEVICES", "1,2").split(",")]
CLOCK = time.process_time if os.environ.get("CLOCK") == "cpu" else time.perf_counter
BATCH, STEPS = int(os.environ.get("BATCH", "64")), int(os.environ.get("STEPS", "20"))
ROUNDS = int(os.environ.get("ROUNDS", "7"))
SIDES = {"cnn": (28, 1), "mlp": (28, 1)}
USUAL_SIDE = (32, 3)


class Contestant:
    """One layout, with a state that goes on from round to round."""

    def __init__(self, name: str, layout: Layout, built: Built, train: Split) -> None:
        self.name, self.layout, self.built = name, layout, built
        self.feed = feed_of(built.plan, train, layout=layout)
        self.state, self.done = layout.placed(built.initial_state()), 0
        self.wanted = self._wanted()
        self.run()

    def run(self) -> float:
        """Seconds that STEPS steps took."""
        begun, end = CLOCK(), self.done + STEPS
        while self.done < end:
            data, chunk, count = self.feed.fetch(self.done, end - self.done)
            self.state, sums = self.layout.steps(self.state, data, chunk, count, self.built.augment)
            jax.device_get(sums)
            self.done += count
        return CLOCK() - begun

    def _wanted(self) -> Any:
        """What XLA says of the memory of one device."""
        data, chunk, _ = self.feed.fetch(0, 1)
        one: Any = np.int32(1)
        augment = self.built.augment
        if isinstance(self.layout, Exact):
            chunk, one = self.layout.everywhere((chunk, one))
            shares = self.layout._shares(chunk)
            lowered = exact_steps.lower(
                self.state, data, chunk, shares, one, one, augment, self.layout.mesh
            )
        elif isinstance(self.layout, Fast):
            chunk, one = self.layout.everywhere((chunk, one))
            lowered = train_steps.lower(self.state, data, chunk, one, augment, self.layout.mesh)
        else:
            lowered = train_steps.lower(self.state, data, chunk, jnp.int32(1), augment)
        return lowered.compile().memory_analysis()


def received(layout: Layout, bytes_: int) -> float:
    """Bytes of gradients that a device receives at a step."""
    if isinstance(layout, Exact):
        return bytes_ * CELLS * (1 - 1 / layout.mesh.size)
    return 2 * bytes_ * (1 - 1 / layout.mesh.size) if isinstance(layout, Fast) else 0


@fixed_settings()
def main(network: str) -> None:
    devices = jax.devices()
    side, channels = SIDES.get(network, USUAL_SIDE)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (4 * BATCH, side, side, channels)).astype(np.uint8)
    split = Split(images, random.integers(0, 10, 4 * BATCH).astype(np.int32))
    dataset = Dataset("noise", split, split, tuple("0123456789"), plain=True)
    config = Config(
        model=network,
        batch_size=BATCH,
        epochs=10_000,
        data=DataConfig(normalise="no"),
        dropout=DropoutConfig(rate=0.5),
    )
    built = Built.of(config, Facts.of(dataset, config))
    layouts: list[tuple[str, Layout]] = [("one device", ONE_DEVICE)]
    for count in WANTED:
        layouts.append((f"exact, {count}", Exact(devices[:count])))
        if count > 1:
            layouts.append((f"fast, {count}", Fast(devices[:count])))
            layouts.append((f"fast, {count}, cut up", Fast(devices[:count], shard=True)))
    contestants = [Contestant(name, layout, built, split) for name, layout in layouts]
    times = [[each.run() for each in contestants] for _ in range(ROUNDS)]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(built.initial_state().params))
    print(
        f"{network}, {size / 4e6:.2f} M parameters, batch {BATCH}; {devices[0].device_kind}; "
        f"jax {jax.__version__}; {ROUNDS} rounds of {STEPS} steps, {CLOCK.__name__}"
    )
    print("| layout | pace | memory besides arguments | arguments | MB received a step |")
    print("|---|---|---:|---:|---:|")
    for index, each in enumerate(contestants):
        low, middle, high = statistics.quantiles([row[0] / row[index] for row in times])
        own = [each.wanted.temp_size_in_bytes, each.wanted.argument_size_in_bytes]
        held = " | ".join(f"{bytes_ / size:.1f} P" for bytes_ in own)
        sent = received(each.layout, size) / 1e6
        print(f"| {each.name} | {middle:.2f} [{low:.2f}, {high:.2f}] | {held} | {sent:,.1f} |")
    print(flush=True)


if __name__ == "__main__":
    # Before JAX starts, which it does when it is asked for devices; GPUs do not mind.
    made = f"--xla_force_host_platform_device_count={max(WANTED)}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {made}".strip()
    # As runs by `exact` have it.
    os.environ.setdefault("PJRT_NPROC", "8")
    for name in sys.argv[1:] or ["cnn"]:
        main(name)
