"""A study's page: the answer first, on an axis that is made for it."""

import re
import shutil

import pytest
from axe import violations
from hypothesis import given
from hypothesis import strategies as st

from thinned.core.config import Config
from thinned.studies.arms import Arm
from thinned.studies.comparison import paired_differences
from thinned.studies.outcomes import Outcome, Row, accuracies_of
from thinned.studies.page import headline, window, write_study_page
from thinned.studies.study import Study

pytest.importorskip("matplotlib")

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


def studied(**accuracies):
    """A study of arms that reached these accuracies, by seed; the first is the baseline."""
    arms = [
        Arm(f"rate={name[1:]}", {"dropout.rate": float(f"0.{name[1:]}")}) for name in accuracies
    ]
    outcomes = [
        {
            seed: Outcome("finished", "", {"test": {"accuracy": a, "nll": 1 - a, "ece": 0.01}})
            for seed, a in enumerate(values)
        }
        for values in accuracies.values()
    ]
    seeds = range(len(next(iter(accuracies.values()))))
    study = Study.of(Config(), arms, tuple(seeds), arms[0].name)
    known = {arm.name: accuracies_of(tried) for arm, tried in zip(arms, outcomes, strict=True)}
    found = paired_differences(known, study.baselines, study.planned)
    return study, [
        Row(arm, tried, found.get(arm.name)) for arm, tried in zip(arms, outcomes, strict=True)
    ]


def test_the_headline_is_the_best_difference_that_can_be_told():
    study, rows = studied(
        r0=[0.97, 0.972, 0.971, 0.97],
        r2=[0.972, 0.9741, 0.973, 0.9722],
        r8=[0.91, 0.913, 0.911, 0.91],
    )
    found = next(row for row in rows if row.arm.name == "rate=2").difference
    assert found.is_told
    large, below = headline(study, rows)
    told = re.fullmatch(r"rate=2 beats rate=0: 95 % interval (.*) to (.*), 4 seeds", below)
    shown = [float(each) for each in (large.removesuffix(" points"), *told.groups())]
    assert shown == pytest.approx([100 * found.mean, 100 * found.low, 100 * found.high], abs=0.005)
    assert "rate=8 loses to rate=0" in headline(study, [rows[0], rows[2]])[1]


def test_without_a_difference_the_headline_says_so():
    study, rows = studied(r0=[0.97, 0.95], r2=[0.96, 0.97])
    large, below = headline(study, rows)
    assert large == "No difference told"
    assert below.startswith("at best rate=2 against rate=0: +0.5 (")
    assert below.endswith(") points, 2 seeds")
    assert headline(*studied(r0=[0.97], r2=[0.96]))[0] == "No comparison"
    assert headline(*studied(r0=[0.97, 0.96]))[0] == "No comparison"


@given(
    st.lists(st.integers(-500, 500).map(lambda value: value / 100), min_size=1, max_size=6),
    st.lists(st.floats(-1e4, 1e4) | st.just(float("nan")), max_size=6),
)
def test_an_axis_shows_all_values_however_far_intervals_reach(values, reach):
    low, high = window(values, reach)
    assert low < min(values)
    assert high > max(values)
    span = (max(values) - min(values)) or abs(max(values)) or 1
    assert high - low <= 3.2 * span * (1 + 1e-9)


@pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed: apt install chromium")
def test_axe_finds_nothing_on_a_page_with_an_interval_that_leaves_it(tmp_path):
    study, rows = studied(r0=[0.97, 0.95], r2=[0.96, 0.97])
    page = write_study_page(tmp_path, study, rows)
    text = page.read_text()
    assert text.index("No difference told") < text.index("<svg") < text.index("<table>")
    assert "arrows lead to where the axis ends" in text
    assert not violations(BROWSER, page, tmp_path)
