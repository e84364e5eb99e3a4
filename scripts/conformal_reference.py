"""Write tests/trust/conformal_reference.json: sets of classes by MAPIE and crepes.

Run: python scripts/conformal_reference.py     (with mapie 1.6.0 and crepes 0.9.1 installed)
"""

import json
from pathlib import Path

import crepes
import mapie
import numpy as np
from mapie.classification import SplitConformalClassifier

TARGET = Path(__file__).parent.parent / "tests" / "trust" / "conformal_reference.json"
COVERAGE, CLASSES, SEED = 0.8, 4, 7


class Given:
    """A classifier whose images are its own probabilities."""

    classes_ = np.arange(CLASSES)

    def fit(self, x, y):
        return self

    def predict_proba(self, x):
        return np.asarray(x)

    def predict(self, x):
        return np.argmax(x, 1)

    def __sklearn_is_fitted__(self):
        return True


def drawn(count, random):
    logits = 1.5 * random.normal(size=(count, CLASSES))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    # Rounded, so that the file is short and means the same everywhere; no two are equal.
    p = np.round(p, 6)
    p[:, -1] = 1 - p[:, :-1].sum(1)
    labels = (random.random((count, 1)) > np.cumsum(p, 1)).sum(1).clip(0, CLASSES - 1)
    return np.round(p, 6), labels


def by_mapie(kind, held, labels, new, **how):
    fitted = SplitConformalClassifier(
        Given(), confidence_level=COVERAGE, conformity_score=kind, random_state=SEED
    )
    fitted.conformalize(held, labels)
    _, sets = fitted.predict_set(new, conformity_score_params=how)
    return sets[:, :, 0].astype(int).tolist()


def by_crepes(held, labels, new):
    fitted = crepes.WrapClassifier(Given())
    fitted.calibrate(held, labels, class_cond=True)
    sets = fitted.predict_set(new, confidence=COVERAGE, smoothing=False)
    return [[int(label in each) for label in range(CLASSES)] for each in sets]


def main():
    random = np.random.default_rng(0)
    (held, labels), (new, _) = drawn(80, random), drawn(25, random)
    found = {
        "by": f"mapie {mapie.__version__}, crepes {crepes.__version__}",
        "coverage": COVERAGE,
        "held": held.tolist(),
        "labels": labels.tolist(),
        "new": new.tolist(),
        "held_draws": np.random.RandomState(SEED).uniform(size=80).round(12).tolist(),
        "new_draws": np.random.RandomState(SEED).uniform(size=25).round(12).tolist(),
        "lac": by_mapie("lac", held, labels, new),
        "aps": by_mapie("aps", held, labels, new, include_last_label="randomized"),
        "per_class": by_crepes(held, labels, new),
    }
    rows = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in found.items())
    TARGET.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
