"""The doctor of the installation: right where all is right, and it notices what is not."""

import jax
import numpy as np
import pytest
from scipy.signal import correlate2d

from thinned.cli.main import main
from thinned.runs import stack

pytestmark = pytest.mark.optimised

# On these, the first trial is known to fail on a CPU.
KNOWN_WRONG = ("0.10.2", "0.11.0")


@pytest.fixture(scope="module")
def found():
    return stack.examine()


def test_this_installation_can_be_trusted(found):
    expected = (stack.TRIALS[0].name,) if jax.__version__ in KNOWN_WRONG else ()
    assert found.wrong == expected
    assert len(found.errors) == len(stack.TRIALS)
    assert str(found).count("right  ") == len(stack.TRIALS) - len(expected)


@pytest.mark.parametrize(
    ("answer", "exact", "passed"),
    [
        ((np.float32([1, 2]), np.float64([1, 2])), True, True),
        ((np.float32([1, 2.00001]), np.float64([1, 2])), False, True),
        ((np.float32([1, 2.00001]), np.float64([1, 2])), True, False),
        ((np.float32([1, 2.001]), np.float64([1, 2])), False, False),
        ((np.float32([1, np.nan]), np.float64([1, 2])), False, False),
        ((np.float32([1, 2, 3]), np.float64([1, 2])), False, False),
    ],
)
def test_a_wrong_answer_is_noticed(answer, exact, passed):
    found = stack.examine([stack.Trial("some", lambda: answer, exact)])
    assert found.passed is passed
    assert ("WRONG" in str(found)) is not passed


def test_references_are_convolutions_by_hand():
    images, kernel = stack._numbers(1, 5, 4, 1), stack._numbers(3, 3, 1, 1)
    by_hand = correlate2d(images[0, ..., 0], kernel[..., 0, 0], "same")
    np.testing.assert_allclose(stack._correlated(images, kernel)[0, ..., 0], by_hand, atol=1e-6)


def test_the_command_says_whether_it_can_be_trusted(found, capsys):
    assert main(["doctor", "--stack"]) == (0 if found.passed else 1)
    told = capsys.readouterr()
    assert f"jax {jax.__version__}" in told.out
    assert ("install another version" in told.err) is not found.passed


def test_requests_that_make_no_sense_are_refused(capsys):
    assert main(["doctor", "--stack", "runs/some"]) == 2
    assert main(["doctor"]) == 2
    assert "--stack" in capsys.readouterr().err
