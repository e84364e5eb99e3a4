"""Statistical tests of the `fast` bits: `python benchmarks/bits_battery.py [pattern ...]`.

Every pattern of use is drawn as 2**25 words (1.07e9 bits) for the NumPy tests, and as an endless
stream for Debian's `dieharder`, if it is installed. `weak` is a negative control: the same hash
with a seed that is only added, drawn under neighbouring seeds; it must fail.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from thinned.dropout.bits import random_bits

BLOCK = 2**22
BLOCKS = 8
# Diehard OPERM5, count the 1s (stream), runs; STS monobit, runs, serial.
DIEHARDER_TESTS = (1, 8, 15, 100, 101, 102)


def of_keys(keys: jax.Array, words: int) -> jax.Array:
    """The first `words` words of each key, key after key."""
    return jax.vmap(lambda key: random_bits(key, (words,), "fast"))(keys).reshape(-1)


@jax.jit
def elements(block):
    return random_bits(jax.random.fold_in(jax.random.key(0), block), (BLOCK,), "fast")


@jax.jit
def steps(block):
    """One element at consecutive steps."""
    first = block * BLOCK
    steps = first + jnp.arange(BLOCK, dtype=jnp.uint32)
    return of_keys(jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), steps), 1)


@jax.jit
def layers(block):
    """Four elements of eight layers, layer after layer, step after step."""
    steps = block * (BLOCK // 32) + jnp.arange(BLOCK // 32, dtype=jnp.uint32)
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    keys = fold(jax.random.key(0), steps)
    keys = jax.vmap(fold, (0, None))(keys, jnp.arange(8)).reshape(-1)
    return of_keys(keys, 4)


@jax.jit
def neighbours(block):
    """Eight elements of the raw keys (0, n), n = 0, 1, 2, ..."""
    second = block * (BLOCK // 8) + jnp.arange(BLOCK // 8, dtype=jnp.uint32)
    return of_keys(jnp.stack([jnp.zeros_like(second), second], 1), 8)


@jax.jit
def weak(block):
    """Eight elements of each seed that is only added to the position."""
    seeds = block * (BLOCK // 8) + jnp.arange(BLOCK // 8, dtype=jnp.uint32)
    x = (seeds[:, None] + jnp.arange(8, dtype=jnp.uint32)).reshape(-1)
    for turn, factor in ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB)):
        x = (x ^ (x >> turn)) * jnp.uint32(factor)
    return x ^ (x >> 14)


Pattern = Callable[[jax.Array], jax.Array]
PATTERNS: dict[str, Pattern] = {
    "elements": elements,
    "steps": steps,
    "layers": layers,
    "neighbours": neighbours,
    "weak": weak,
}


def block_of(pattern: Pattern, block: int) -> np.ndarray:
    return np.asarray(pattern(jnp.uint32(block)), np.uint32)


def in_sigmas(words: np.ndarray) -> dict[str, float]:
    """Largest deviations of one block, in standard deviations under perfect randomness."""
    count = len(words)
    bias = max(
        abs(np.count_nonzero(words & np.uint32(1 << bit)) - count / 2) / np.sqrt(count / 4)
        for bit in range(32)
    )
    top = words >> np.uint32(31)
    serial = max(
        abs(np.mean(top[lag:] == top[:-lag]) - 0.5) * 2 * np.sqrt(count - lag)
        for lag in range(1, 33)
    )
    observed = np.bincount(words.view(np.uint8), minlength=256)
    square = ((observed - count / 64) ** 2 / (count / 64)).sum()
    return {"bias": bias, "serial": serial, "bytes": abs(square - 255) / np.sqrt(510)}


def own_tests(name: str) -> None:
    results = [in_sigmas(block_of(PATTERNS[name], block)) for block in range(BLOCKS)]
    worst = {test: max(result[test] for result in results) for test in results[0]}
    shown = ", ".join(f"{test} {sigmas:.1f}" for test, sigmas in worst.items())
    print(f"{name:11} {BLOCKS * BLOCK * 32:.2e} bits; worst sigmas: {shown}", flush=True)


def avalanche() -> None:
    """How far the 64 x 32 matrix of (key bit, output bit) is from one half."""
    key = jax.random.bits(jax.random.key(9), (2,), jnp.uint32)
    base, count = random_bits(key, (2**16,), "fast"), 2**16
    worst = 0.0
    for bit in range(64):
        flip = jnp.zeros(2, jnp.uint32).at[bit // 32].set(jnp.uint32(1 << (bit % 32)))
        changed = np.asarray(base ^ random_bits(key ^ flip, (count,), "fast"))
        ones = [np.count_nonzero(changed & np.uint32(1 << out)) for out in range(32)]
        worst = max(worst, np.abs(np.array(ones) - count / 2).max() / np.sqrt(count / 4))
    print(f"avalanche   worst of 2048 pairs: {worst:.1f} sigmas", flush=True)


def feed(pattern: Pattern, pipe) -> None:
    block = 0
    try:
        while True:
            pipe.write(block_of(pattern, block).tobytes())
            block += 1
    except (BrokenPipeError, ValueError):
        return


def dieharder(name: str) -> None:
    for test in DIEHARDER_TESTS:
        command = ["dieharder", "-g", "200", "-d", str(test)]
        command += ["-D", "test_name", "-D", "ntuple", "-D", "pvalues", "-D", "assessment"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            feeder = threading.Thread(target=feed, args=(PATTERNS[name], process.stdin))
            feeder.start()
            lines = process.stdout.read().decode().splitlines()
            process.wait()
            feeder.join()
        verdicts = [line for line in lines if line.count("|") >= 3]
        bad = [line for line in verdicts if "FAILED" in line or "WEAK" in line]
        print(f"{name:11} dieharder -d {test}: {len(verdicts)} results, {len(bad)} not passed")
        for line in bad[:4]:
            print("   ", line, flush=True)


def main() -> None:
    names = sys.argv[1:] or list(PATTERNS)
    avalanche()
    for name in names:
        own_tests(name)
    if not shutil.which("dieharder"):
        print("dieharder is not installed: `apt-get install dieharder` for its tests")
        return
    for name in names:
        dieharder(name)


if __name__ == "__main__":
    main()
