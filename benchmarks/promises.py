"""Do the promises of --risk, --coverage and --calibrated hold? Simulated over many splits.

Run: python benchmarks/promises.py     (SPLITS=500 IMAGES=1000 FRESH=20000 MANY=1000, on a CPU)

Each split draws IMAGES validation images and FRESH new ones of a classifier of ten classes that is
too sure of itself, and MANY of one of a hundred. "broken" is the part of the splits in which more
answers than `risk` were wrong; its promise is at most 1 - confidence. "coverage" is the mean over
splits; its promise is at least what was asked for. Intervals are Wilson's, or five standard errors
of the mean. The "tempered" rows fit a temperature on the very images that choose the threshold, as
--calibrated does.
"""

import os

import numpy as np
from scipy.special import softmax

from thinned.trust import scores
from thinned.trust.conformal import Conformal, nonconformity, quantile
from thinned.trust.selection import select

SPLITS, IMAGES, FRESH, MANY = (
    int(os.environ.get(name, default))
    for name, default in (
        ("SPLITS", "500"),
        ("IMAGES", "1000"),
        ("FRESH", "20000"),
        ("MANY", "1000"),
    )
)
CLASSES, SHARP, COVERAGE, LEVEL = 10, 2.0, 0.95, 0.95
RISKS = (0.01, 0.05)


def drawn(count, random, classes=CLASSES):
    """Probabilities f64 [count, class], twice as sharp as they ought to be, and labels."""
    hard = random.exponential(size=(count, 1))
    logits = 30 * np.exp(-0.7 * hard) * random.normal(size=(count, classes))
    labels = (random.random((count, 1)) > np.cumsum(softmax(logits, 1), 1)).sum(1)
    return softmax(SHARP * logits, 1), labels.clip(0, classes - 1)


def tempered(held, labels, new):
    temperature = scores.fit_temperature(np.log(held), labels)
    return [scores.with_temperature(each, temperature) for each in (held, new)]


def naive(confidence, right, risk):
    """The threshold that keeps the risk on these very images, which promises nothing."""
    curve = scores.risk_coverage(confidence, right)
    fine = np.flatnonzero(curve.risk <= risk)
    return curve.threshold[fine[-1]] if len(fine) else np.inf


def split(random):
    """Name -> (risk is broken, part answered) or (coverage, size)."""
    (held, known), (new, labels) = drawn(IMAGES, random), drawn(FRESH, random)
    found = {}
    for how, (p, q) in {"": (held, new), ", tempered": tempered(held, known, new)}.items():
        sure, right = p.max(1), p.argmax(1) == known
        later, wrong = q.max(1), q.argmax(1) != labels
        for risk in RISKS:
            ways = {"--risk": later > select(sure, right, risk, LEVEL).threshold}
            if not how:
                ways["on validation alone"] = later >= naive(sure, right, risk)
            for way, above in ways.items():
                broken = bool(above.any()) and wrong[above].mean() > risk
                found[f"{way} {risk:g}{how}"] = (broken, above.mean())
        for kind, per_class in (("lac", False), ("aps", False), ("raps", False), ("lac", True)):
            sets = Conformal.of(kind, COVERAGE, p, known, per_class).sets(q)
            held_in = sets[np.arange(FRESH), labels]
            name = f"--sets {kind}{' --per-class' if per_class else ''}{how}"
            found[name] = (held_in.mean(), sets.sum(1).mean())
            if per_class:
                worst = [held_in[labels == label].mean() for label in range(CLASSES)]
                found[f"{name}, class 0"] = (worst[0], sets.sum(1)[labels == 0].mean())
    return found


def split_of_many(random):
    """Name -> (coverage, size), of a hundred classes; raps also as it is by default."""
    (p, known), (q, labels) = (drawn(count, random, 100) for count in (IMAGES, MANY))
    found = {}
    for kind in ("lac", "aps", "raps"):
        made = Conformal.of(kind, COVERAGE, p, known)
        found[f"--sets {kind}, 100 classes"] = held_in(made, q, labels)
    own = nonconformity("raps", p)[np.arange(IMAGES), known]
    thresholds = np.full(100, quantile(own, 1 - COVERAGE))
    fixed = Conformal("raps", COVERAGE, thresholds, IMAGES, False)
    found["--sets raps, 100 classes, not tuned"] = held_in(fixed, q, labels)
    return found


def held_in(made, q, labels):
    sets = made.sets(q)
    return sets[np.arange(len(labels)), labels].mean(), sets.sum(1).mean()


def main():
    random = np.random.default_rng(0)
    rows = [split(random) for _ in range(SPLITS)]
    many = np.random.default_rng(1)
    rows = [{**row, **split_of_many(many)} for row in rows]
    print(f"{SPLITS} splits of {IMAGES} validation and {FRESH:,} new images, {CLASSES} classes\n")
    print(f"{'':<42}broken (Wilson 95 %)      answered")
    for name in (each for each in rows[0] if "risk" in each or "alone" in each):
        broken, answered = np.transpose([row[name] for row in rows])
        low, high = scores.accuracy_interval(int(broken.sum()), SPLITS)
        print(f"{name:<42}{broken.mean():>6.1%} ({low:.1%} to {high:.1%})    {answered.mean():.1%}")
    print(f"\n{'':<42}coverage (5 std. errors)  size")
    for name in (each for each in rows[0] if "sets" in each):
        part, size = np.transpose([row[name] for row in rows])
        five = 5 * part.std(ddof=1) / np.sqrt(SPLITS)
        print(f"{name:<42}{part.mean():>6.2%} (± {five:.2%})        {size.mean():.3f}")


if __name__ == "__main__":
    main()
