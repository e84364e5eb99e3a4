"""The report's sentences say what the figures say, and no more."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinned.core.pages import points
from thinned.dropout.audit.findings import Audit, AuditedSite, Check
from thinned.runs import verdicts
from thinned.trust.appraisal import Appraisal
from thinned.trust.sampling import Predictions
from thinned.trust.scores import error_by_chance, reliability


def appraised(confidence, right, names=("cat", "dog")):
    """Answers of two classes: the first is said with that confidence, and is right or not."""
    confidence, right = np.broadcast_arrays(confidence, right)
    p = np.stack([confidence, 1 - confidence], 1)
    nothing = np.zeros(len(p))
    labels = np.where(right, 0, 1)
    return Appraisal(Predictions(p, nothing, nothing, nothing, 1), labels, names)


def parts_right(part, count=1000):
    return np.arange(count) < round(part * count)


@given(st.floats(0, 1), st.floats(1e-6, 0.5))
def test_a_figure_has_the_digits_that_its_interval_leaves(part, half):
    (told,) = points([part], half)
    decimals = len(told.partition(".")[2])
    assert abs(float(told) - 100 * part) <= 0.5000001 * 10**-decimals
    # The last digit shown counts no less than a tenth of the interval, nor more than all of it.
    assert decimals in (0, 4) or 0.0999 < 10**-decimals / (100 * half) <= 1.0001


def test_the_headline_is_the_accuracy_with_its_interval():
    told = verdicts.headline(appraised(0.9, parts_right(0.9, 10_000)))
    assert told == ("90.0 %", "of 10,000 test images right (95 % interval 89.4 to 90.6 %)")
    assert verdicts.headline(appraised(0.9, parts_right(0.9, 40)))[0] == "90 %"


def test_calibration_is_judged_by_what_chance_makes():
    assert "well calibrated" in verdicts.calibration(appraised(0.8, parts_right(0.8)))
    sure = appraised(0.95, parts_right(0.8))
    assert "too sure, by 15 points" in verdicts.calibration(sure)
    shy = appraised(0.65, parts_right(0.8))
    assert "right more often than it says, by 15 points" in verdicts.calibration(shy)
    good = appraised(0.8, parts_right(0.8))
    assert "well calibrated after temperature 1.40" in verdicts.calibration(sure, good, 1.4)
    assert "temperature" not in verdicts.calibration(sure, sure, 1.4)
    assert verdicts.needs_temperature(sure, good)
    assert not verdicts.needs_temperature(good, good)
    both = appraised(np.repeat([0.95, 0.6], 500), np.tile(parts_right(0.8, 500), 2))
    assert "too sure of some" in verdicts.calibration(both)


def test_chance_makes_the_error_that_calibrated_answers_have():
    random = np.random.default_rng(1)
    confidence = random.uniform(0.5, 1, 400)
    bound = error_by_chance(confidence)
    p = np.stack([confidence, 1 - confidence], 1)
    errors = [
        reliability(p, np.where(random.random(400) < confidence, 0, 1)).error for _ in range(400)
    ]
    # Of 400, 5 % and three standard deviations of the two estimates.
    assert abs(np.mean(np.asarray(errors) > bound) - 0.05) < 3 * np.sqrt(0.05 * 0.95 * (3 / 400))


def test_mistakes_are_named_by_the_most_frequent():
    told = verdicts.mistakes(appraised(0.9, parts_right(0.9)))
    assert told == "dog is mistaken for cat in 100\N{NO-BREAK SPACE}% of its images (100 of 100)."
    assert verdicts.mistakes(appraised(0.9, parts_right(1.0))).startswith("No class")


def site(name="d", seen=True):
    return AuditedSite(name, "element", (8,), 0.5, 0.5, 0.0, seen=seen)


@pytest.mark.parametrize(
    ("audit", "told"),
    [
        (None, "not audited"),
        (Audit((), ()), "no dropout"),
        (Audit((), (Check("something drops", "", False),)), "no dropout"),
        (Audit((), (Check("it is on", "d", False),)), '0 of 0 sites right: "it is on" does not'),
        (Audit((site(),), ()), "Dropout works: 1 of 1 site right."),
        (Audit((site(), site("e", False)), ()), "not proved: 1 of 2 sites right."),
        (
            Audit((site(),), (Check("q", "d", False),)),
            'fails its audit, 0 of 1 site right: "q" does not hold.',
        ),
    ],
)
def test_dropout_is_told_by_its_audit(audit, told):
    assert told in verdicts.dropout(audit)


def test_a_difference_whose_interval_holds_0_is_none():
    assert "cannot be told apart" in verdicts.difference("a", "b", 0.001, -0.002, 0.004)
    told = verdicts.difference("a", "b", 0.0031, 0.0012, 0.005)
    assert told == "a is better than b by 0.31 points (95 %: 0.12 to 0.50)."
    assert "worse" in verdicts.difference("a", "b", -0.0031, -0.005, -0.0012)


def records(split, *losses):
    return [{"split": split, "loss": loss, "accuracy": 0.99} for loss in losses]


def test_a_loss_falls_by_the_validation_images_where_there_are_any():
    assert verdicts.falls(records("train", 1, 0.9))
    assert not verdicts.falls(records("train", 1, 0.9) + records("validation", 1, 0.8, 0.81))
    assert not verdicts.falls(records("train", 1))
    assert verdicts.learned_by_heart(records("train", 1), appraised(0.9, parts_right(0.9)))
    assert not verdicts.learned_by_heart([], appraised(0.9, parts_right(0.9)))


def test_what_is_wrong_comes_first_and_three_steps_are_enough():
    wrong = Audit((site(),), (Check("q", "d", False),))
    told = verdicts.next_steps(verdicts.Trained("r", 2, False, wrong, True, True, True))
    assert len(told) == 3
    assert told[0][1] == "thinned doctor r"
    assert told[1][1] == "thinned train --resume r --epochs 4"
    (last,) = verdicts.next_steps(verdicts.Trained("r", 2, True, None, False, False, False))
    assert last[1].startswith("thinned predict r")
