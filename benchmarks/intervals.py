"""Do intervals of ECE, AURC, AUROC and FPR95 hold what they are of, over new images and new masks?

Run: python benchmarks/intervals.py     (TRIALS=500 IMAGES=1000 SAMPLES=10,30, on a CPU)

A dense layer of 40 features and five classes, half of whose features are dropped: the masks of a
trial look at all of its images. Each trial draws IMAGES images, half as many others, and masks;
"held" is the part of the trials whose 95 % interval holds the score over many images, averaged over
many draws of masks, with Wilson's 95 % interval. "images alone" are the same intervals with the
masks as they are; "width" is how much wider those over both are.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np

from thinned.trust import scores
from thinned.trust.appraisal import Appraisal, other_measures, told_apart, uncertainties
from thinned.trust.intervals import parts_for
from thinned.trust.sampling import of_logits

TRIALS, IMAGES = (
    int(os.environ.get(name, default)) for name, default in (("TRIALS", "500"), ("IMAGES", "1000"))
)
SAMPLES = [int(count) for count in os.environ.get("SAMPLES", "10,30").split(",")]
FEATURES, CLASSES, KEEP = 40, 5, 0.5
SURE = 1.5
"""Logits are by so much too large."""
LAYER = np.random.default_rng(0).normal(size=(FEATURES, CLASSES)) * np.linspace(
    0.2, 1.2, FEATURES
).reshape(-1, 1)
TRUTH = 150, 10_000


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


def truth(samples):
    """Name -> score, over many draws of masks, each of which looks at many images."""
    random, (draws, images) = np.random.default_rng(1), TRUTH
    rows = []
    for _ in range(draws):
        masks = drawn_masks(random, samples)
        features, labels = seen(random, images)
        others, _ = seen(random, images // 2, other=True)
        p, q = (np.asarray(mean_of(each, masks), np.float64) for each in (features, others))
        confidence, right = p.max(1), p.argmax(1) == labels
        rows.append(scores_of(confidence, right, q.max(1)))
    return {name: np.mean([row[name] for row in rows]) for name in rows[0]}


@jax.jit
def mean_of(features, masks):
    """Probabilities f32 [image, class], mean over masks."""

    def added(total, mask):
        return total + jax.nn.softmax(SURE * (features * mask) @ LAYER), None

    total, _ = jax.lax.scan(added, jnp.zeros((len(features), CLASSES)), masks)
    return total / len(masks)


def main():
    print(f"{TRIALS} trials of {IMAGES} images\n")
    print("samples  score   value    held (Wilson 95 %)         images alone             width")
    for samples in SAMPLES:
        true, random = truth(samples), np.random.default_rng(samples)
        both, fixed = [], []
        for _ in range(TRIALS):
            trial = drawn(random, IMAGES, samples)
            both.append(intervals_of(*trial))
            fixed.append(intervals_of(*alone(*trial)))
        for name, value in true.items():
            ours, theirs = (np.asarray([row[name] for row in rows]) for rows in (both, fixed))
            width = np.median(np.diff(ours) / np.diff(theirs))
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
