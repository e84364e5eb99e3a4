"""Ten thousand classes: what is known of all classes of all images is held once, not copied."""

import tracemalloc

import numpy as np
import pytest
from scipy.special import log_softmax

from thinned.runs.calibration import fit
from thinned.runs.predictions import tempered
from thinned.trust.appraisal import Appraisal, uncertainties
from thinned.trust.conformal import Conformal, SetScores, nonconformity
from thinned.trust.sampling import averaged, entropy_of, joined, of_logits

IMAGES, CLASSES = 300, 10_000
SIZE = IMAGES * CLASSES * 8
ORDER = np.random.default_rng(0).permutation(IMAGES)
NAMES = tuple(map(str, range(CLASSES)))


def logits():
    return np.random.default_rng(0).normal(size=(IMAGES, CLASSES)).astype(np.float32)


@pytest.fixture(scope="module")
def labels():
    return np.random.default_rng(1).integers(0, CLASSES, IMAGES)


@pytest.fixture(scope="module")
def found():
    values = logits()
    return joined(
        (of_logits(values[None, start : start + 50]) for start in range(0, IMAGES, 50)), IMAGES
    )


def taken(work):
    """What comes of it, and the memory that it took at most, over that of all probabilities."""
    tracemalloc.start()
    try:
        return work(), tracemalloc.get_traced_memory()[1] / SIZE
    finally:
        tracemalloc.stop()


def test_parts_are_joined_without_a_copy():
    values = logits()
    parts = (of_logits(values[None, start : start + 10]) for start in range(0, IMAGES, 10))
    whole, most = taken(lambda: joined(parts, IMAGES))
    assert most < 1.4
    expected = np.exp(log_softmax(values.astype(np.float64), 1))
    np.testing.assert_allclose(whole.probabilities, expected, rtol=1e-12)
    assert [len(each) for each in (whole.deviation, whole.energy)] == [IMAGES] * 2
    assert whole.variances is None


def test_an_appraisal_takes_a_part_of_what_it_is_of(found, labels):
    appraisal = Appraisal(found, labels, NAMES)
    # The text has a line for each class.
    for work in (
        lambda: appraisal.scores,
        lambda: appraisal.bins,
        lambda: uncertainties(found.told),
    ):
        assert taken(work)[1] < 0.4
    assert appraisal.scores["top5"] == np.mean(
        [
            list(np.argsort(-p, kind="stable")).index(y) < 5
            for p, y in zip(found[0], labels, strict=True)
        ]
    )
    np.testing.assert_array_equal(found.entropy, entropy_of(found.probabilities))


def test_a_temperature_takes_one_copy(found, labels):
    cooler, most = taken(lambda: tempered(found, 0.5))
    assert most < 1.4
    squares = np.square(found.probabilities)
    expected = squares / squares.sum(1, keepdims=True)
    np.testing.assert_allclose(cooler.probabilities, expected, rtol=1e-9)
    fitted, most = taken(lambda: fit(found.probabilities, labels))
    assert most < 1.4
    cooled = log_softmax(np.log(found.probabilities) / fitted.temperature, 1)
    assert fitted.after == pytest.approx(-cooled[np.arange(IMAGES), labels].mean(), rel=1e-9)


@pytest.mark.parametrize("kind", ["lac", "aps", "raps"])
def test_sets_of_classes_take_a_part(found, labels, kind):
    made, most = taken(lambda: Conformal.of(kind, 0.9, found.probabilities, labels))
    # Three tenths of the images are taken out, for how ranks are penalised.
    assert most < (0.9 if kind == "raps" else 0.6)
    sets, most = taken(lambda: made.sets(found.probabilities))
    assert most < 0.6
    fits = nonconformity(kind, found.probabilities, 0.0, made.penalty, made.free)
    np.testing.assert_array_equal(sets, fits <= made.thresholds)
    # Of 300 images, or of the 210 that do not choose how ranks are penalised.
    assert (made.images, made.tuned) == ((210, 90) if kind == "raps" else (300, 0))
    rank, rest = (270, np.arange(300)) if kind != "raps" else (189, np.delete(ORDER, range(90)))
    assert np.sort(fits[np.arange(IMAGES), labels][rest])[rank] == made.thresholds[0]
    assert taken(lambda: SetScores.of(made, found.probabilities, labels, NAMES[:3]))[1] < 0.6


def test_an_ensemble_takes_two_more(found):
    mean, most = taken(lambda: averaged([found] * 4))
    assert most < 2.4
    np.testing.assert_allclose(mean.probabilities, found.probabilities, rtol=1e-12)
