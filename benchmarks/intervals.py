"""Do intervals of ECE, AURC, AUROC and FPR95 hold what they are of, over new images and new masks?

Run: python benchmarks/intervals.py     (TRIALS=500 IMAGES=1000 SAMPLES=10,30 WORKERS=2, on a CPU)

A dense layer of 40 features and five classes, half of whose features are dropped: the masks of a
trial look at all of its images. Each trial draws IMAGES images, half as many others, and masks;
"held" is the part of the trials whose 95 % interval holds the score over many images, averaged over
many draws of masks, with Wilson's 95 % interval. "images alone" are the same intervals with the
masks as they are, in every fifth trial; "width" is how much wider those over both are.
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
from scipy.special import softmax

from thinned.trust import scores
from thinned.trust.appraisal import Appraisal, other_measures, told_apart, uncertainties
from thinned.trust.intervals import parts_for
from thinned.trust.sampling import of_logits

TRIALS, IMAGES, WORKERS = (
    int(os.environ.get(name, default))
    for name, default in (("TRIALS", "500"), ("IMAGES", "1000"), ("WORKERS", "2"))
)
SAMPLES = [int(count) for count in os.environ.get("SAMPLES", "10,30").split(",")]
FEATURES, CLASSES, KEEP = 40, 5, 0.5
SURE = 1.5
"""Logits are by so much too large."""
LAYER = np.random.default_rng(0).normal(size=(FEATURES, CLASSES)) * np.linspace(
    0.2, 1.2, FEATURES
).reshape(-1, 1)
DRAWS, MANY = 150, 10_000
"""Of masks and images, for the true scores."""
FIFTH = 5


def seen(random, count, other=False):
    """Features f64 [image, feature], and labels; those of others are weaker."""
    features = random.normal(size=(count, FEATURES)) * (0.3 if other else 1.0)
    chances = scores.with_temperature(np.exp(features @ LAYER), 1.0)
    labels = (random.random((count, 1)) > np.cumsum(chances, 1)).sum(1).clip(0, CLASSES - 1)
    return features, labels


def predicted(features, masks):
    """What the thinned layers say, and what is said without each part of them."""
    logits = SURE * np.stack([(features * mask) @ LAYER for mask in masks])
    logits = logits.astype(np.float32)
    parts = parts_for(len(masks))
    # Each part is every tenth, as when samples are summed.
    others = (
        of_logits(logits[np.arange(len(masks)) % parts != part])
        for part in range(parts)
        if parts > 1
    )
    return of_logits(logits)._replace(others=tuple(each.told for each in others))


def drawn_masks(random, samples):
    return ((random.random((samples, FEATURES)) < KEEP) / KEEP).astype(np.float32)


def drawn(random, images, samples):
    """What is said of labelled images and of others by the same masks."""
    masks = drawn_masks(random, samples)
    features, labels = seen(random, images)
    others, _ = seen(random, images // 2, other=True)
    inside, outside = predicted(features, masks), predicted(others, masks)
    return Appraisal(inside, labels, tuple("abcde")), outside


def scores_of(confidence, right, others):
    """Name -> score, from the confidence in test images and in others."""
    pair = 1 - confidence, 1 - others
    return {
        "ECE": scores.bins_of(confidence, right).error,
        "AURC": scores.risk_coverage(confidence, right).area,
        "AUROC": scores.auroc(*pair),
        "FPR95": scores.fpr_at_95(*pair),
    }


def intervals_of(found, outside):
    """Name -> interval."""
    inside = found.predictions
    told = told_apart(
        uncertainties(inside.told), uncertainties(outside.told), other_measures(inside, outside)
    )["1 - max probability"]
    own = {name.upper(): ends for name, ends in found.intervals.items()}
    return {
        **own,
        "AUROC": (told["auroc_low"], told["auroc_high"]),
        "FPR95": (told["fpr95_low"], told["fpr95_high"]),
    }


def alone(found, outside):
    """The same with the masks as they are."""
    inside = found.predictions._replace(others=())
    return Appraisal(inside, found.labels, found.classes), outside._replace(others=())


def true_scores(samples, draw):
    """Scores of many images by one draw of masks."""
    random = np.random.default_rng([1, samples, draw])
    masks = drawn_masks(random, samples)
    features, labels = seen(random, MANY)
    others, _ = seen(random, MANY // 2, other=True)
    p, q = mean_of(features, masks), mean_of(others, masks)
    confidence, right = p.max(1), p.argmax(1) == labels
    return scores_of(confidence, right, q.max(1))


def mean_of(features, masks):
    """Probabilities f64 [image, class], mean over masks."""
    features, layer = features.astype(np.float32), (SURE * LAYER).astype(np.float32)
    total = sum(softmax(features @ (mask[:, None] * layer), 1) for mask in masks)
    return total.astype(np.float64) / len(masks)


def trial(samples, number):
    """Name -> interval; and with the masks as they are, in every fifth trial, for they are dear."""
    found = drawn(np.random.default_rng([0, samples, number]), IMAGES, samples)
    return intervals_of(*found), intervals_of(*alone(*found)) if number % FIFTH == 0 else None


def main():
    print(f"{TRIALS} trials of {IMAGES} images\n")
    print("samples  score   value    held (Wilson 95 %)         images alone             width")
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn")) as pool:
        for samples in SAMPLES:
            of = partial(trial, samples)
            found = list(pool.map(of, range(TRIALS), chunksize=10))
            rows = list(pool.map(partial(true_scores, samples), range(DRAWS), chunksize=10))
            show(samples, found, {name: np.mean([row[name] for row in rows]) for name in rows[0]})


def show(samples, found, true):
    for name, value in true.items():
        ours = np.asarray([both[name] for both, _ in found])
        pairs = [(both[name], fixed[name]) for both, fixed in found if fixed is not None]
        wide, theirs = (np.asarray(each) for each in zip(*pairs, strict=True))
        width = np.median(np.diff(wide) / np.diff(theirs))
        print(
            f"{samples:>7}  {name:<6}{value:>8.4f}  {held(ours, value)}   "
            f"{held(theirs, value)}    {width:.2f}",
            flush=True,
        )


def held(intervals, value):
    hits = int(np.sum((intervals[:, 0] <= value) & (value <= intervals[:, 1])))
    low, high = scores.accuracy_interval(hits, len(intervals))
    return f"{hits / len(intervals):>6.1%} ({low:.1%} to {high:.1%})"


if __name__ == "__main__":
    main()
