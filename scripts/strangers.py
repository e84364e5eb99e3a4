"""How many images that show none of the classes are marked, where 5 % of known ones may be.

    python scripts/strangers.py RUN [RUN ...] --odd FOLDER --cifar FOLDER [--samples 0]

RUN learned from photos with validation images held out; FOLDERs are odd images of any kind, and
CIFAR-10's binary files, of which the animals are taken. Digits are MNIST's, from the package. A
table in Markdown: for each score the part marked at --ood-fpr 0.05, and the AUROC against the run's
own test photos.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
from sklearn.metrics import roc_auc_score

from thinned.core.config import DataConfig
from thinned.data.decode import from_array
from thinned.data.sources.load import open_source
from thinned.runs.ood import known_below, strangeness
from thinned.runs.predictions import Witness, other_images, predictions_of
from thinned.runs.run import Run
from thinned.trust.ood import OOD_SCORES

ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")


def brought(images: np.ndarray, side: int) -> np.ndarray:
    return np.stack([from_array(image, (side, side), 3, "crop") for image in images])


def strangers(run: Run, odd: str, cifar: str, count: int) -> Iterator[tuple[str, np.ndarray]]:
    side = run.facts.image_shape[0]
    test = run.test_images()
    yield "the run's own test photos", test.images
    other = other_images(run, odd, test)
    yield "odd images", other.images
    rng = np.random.default_rng(0)
    digits = open_source().load().test.images
    yield "MNIST digits", brought(digits[rng.permutation(len(digits))[:count]], side)
    held = open_source(DataConfig(path=cifar)).load()
    wanted = [held.classes.index(name) for name in ANIMALS]
    rows = np.flatnonzero(np.isin(held.test.labels, wanted))
    rows = np.sort(rng.permutation(rows)[:count])
    yield "CIFAR-10 animals", brought(held.test.images[rows], side)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--odd", required=True)
    parser.add_argument("--cifar", required=True)
    parser.add_argument("--samples", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--fpr", type=float, default=0.05)
    arguments = parser.parse_args()
    runs = [Run.open(folder) for folder in arguments.runs]
    witness = Witness(runs, arguments.samples)
    lines = {score: known_below(witness, arguments.fpr, score) for score in OOD_SCORES}
    print(f"thresholds from {lines['energy'].images} validation photos\n")
    print(f"| images | count | {' | '.join(OOD_SCORES)} |\n|---|---:|{'---:|' * len(OOD_SCORES)}")
    known: dict[str, np.ndarray] = {}
    for name, images in strangers(runs[0], arguments.odd, arguments.cifar, arguments.count):
        predicted, cells = predictions_of(runs, images, arguments.samples), list[str]()
        for score, line in lines.items():
            found = strangeness(runs, score, images, predicted)
            own = known.setdefault(score, found)
            cells.append(f"{np.mean(found > line.threshold):.1%}")
            if own is not found:
                truth = np.repeat([0, 1], [len(own), len(found)])
                cells[-1] += f", {roc_auc_score(truth, np.concatenate([own, found])):.3f}"
        print(f"| {name} | {len(images):,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
