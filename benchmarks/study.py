"""Models per hour: one study against a process for each of its arms, interleaved.

Run: python benchmarks/study.py     (ARMS=4 IMAGES=6000 EPOCHS=2 ROUNDS=5, MODEL=cnn)

Both sides start as new processes and find the same compiled programs on the disk, filled before
the first round.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ARMS, ROUNDS = int(os.environ.get("ARMS", "4")), int(os.environ.get("ROUNDS", "5"))
IMAGES, EPOCHS = os.environ.get("IMAGES", "6000"), os.environ.get("EPOCHS", "2")
MODEL = os.environ.get("MODEL", "cnn")
RATES = [round(0.9 * index / max(ARMS - 1, 1), 3) for index in range(ARMS)]


def thinned(folder: Path, *words: str) -> None:
    common = ["--data.limit", IMAGES, "--epochs", EPOCHS, "--model", MODEL, "--runs", str(folder)]
    command = [sys.executable, "-m", "thinned", *words, *common]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def study(folder: Path) -> None:
    vary = f"dropout.rate={','.join(map(str, RATES))}"
    thinned(folder, "study", "--name", "s", "--seeds", "1", "--vary", vary)


def separate(folder: Path) -> None:
    for rate in RATES:
        thinned(folder, "train", "--quiet", "--test", "end", "--dropout.rate", str(rate))


def timed(way) -> float:
    folder = Path(tempfile.mkdtemp())
    started = time.perf_counter()
    way(folder)
    taken = time.perf_counter() - started
    shutil.rmtree(folder)
    return taken


def main() -> None:
    first = timed(study), timed(separate)
    rounds = [(timed(study), timed(separate)) for _ in range(ROUNDS)]
    ratios = [apart / together for together, apart in rounds]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"{ARMS} arms of {IMAGES} images, {EPOCHS} epochs, {MODEL}, {ROUNDS} rounds")
    print(f"models per hour, study / processes  {middle:.2f} (quartiles {low:.2f} to {high:.2f})")
    print(f"first round, compiling              {first[1] / first[0]:.2f}")


if __name__ == "__main__":
    main()
