"""Published tables as data: every recipe is sound, and each form of figure is drawn."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy import stats

from thinned.cli.main import main
from thinned.core.errors import RequestError
from thinned.data.sources import mnist
from thinned.studies.comparison import paired_differences
from thinned.studies.outcomes import Outcome, Row
from thinned.studies.reproduce import Reproduction, Result, names, reproduce

ASKED = [
    *(f"srivastava2014-{what}" for what in ("table2", "table9", "table10")),
    *(f"srivastava2014-figure{number}" for number in (4, 8, 9, 10, 11)),
    "wan2013-mnist",
]


@pytest.fixture(scope="module", autouse=True)
def _few_images():
    """As many as the smallest budgets take, and few to test."""
    whole = mnist.EmbeddedMnist().load()
    train, test = (part.take(np.arange(n)) for part, n in ((whole.train, 1000), (whole.test, 300)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mnist, "_load", lambda: replace(whole, train=train, test=test))
        yield


def test_what_is_promised_is_there():
    assert set(ASKED) <= set(names())


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("budget", ["smoke", "short", "full"])
def test_every_recipe_makes_a_study_that_reads_the_test_set_once(name, budget):
    found = Reproduction.open(name)
    study = found.study(budget)
    assert study.base.test == "end"
    assert set(found.published) <= {arm["name"] for arm in found.about.get("arms", ())}
    for arm in study.arms:
        config = arm.config(study.base, 0)
        assert config.test == "end"
    assert {"title", "source", "protocol", "figure"} <= set(found.about)


@pytest.mark.parametrize("name", ASKED)
def test_the_full_budget_ends_at_the_papers_momentum_and_the_short_one_is_mostly_adams(name):
    wanted = Reproduction.open(name)
    full, short = wanted.study("full"), wanted.study("short")
    for arm in full.arms:
        optim = arm.config(full.base, 0).optim
        assert (optim.name, optim.momentum_start, optim.momentum) == ("sgd", 0.5, 0.95)
    used = {arm.config(short.base, 0).optim.name for arm in short.arms}
    # Table 2 has to show its order, which it has by a large learning rate.
    assert used == ({"sgd"} if name.endswith("table2") else {"adam"})


def test_a_budget_may_have_another_bound_for_the_rows_that_are_bounded_and_for_no_other():
    wanted = Reproduction.open("srivastava2014-table2")
    every = [arm["name"] for arm in wanted.about["arms"]]
    for budget, bound in (("short", 1.0), ("full", 2.0)):
        study = wanted.study(budget, every)
        bounds = {arm.name: arm.config(study.base, 0).optim.max_norm for arm in study.arms}
        assert set(bounds) == set(every)
        for name, found in bounds.items():
            assert found == (bound if "max-norm" in name else None)


def test_figure_10_is_as_wide_as_the_papers_where_the_budget_is_full():
    wanted = Reproduction.open("srivastava2014-figure10")
    sizes = {
        budget: sorted({arm.changes["data.limit"] for arm in wanted.study(budget).arms})
        for budget in ("short", "full")
    }
    assert sizes["short"] == [100, 500, 1000, 5000, 10000]
    assert sizes["full"] == [*sizes["short"], 50000]


@pytest.mark.parametrize(
    "name",
    [f"srivastava2014-{what}" for what in ("table10", "figure4", "figure8", "figure9", "figure11")],
)
def test_every_form_of_figure_is_drawn(name, tmp_path):
    wanted = Reproduction.open(name)
    rows = [arm.name for arm in wanted.study("smoke").arms][:2]
    result = reproduce(wanted, wanted.study("smoke", rows, 1), tmp_path / name, "smoke")
    for suffix in (".svg", ".png"):
        assert (tmp_path / name / (name + suffix)).stat().st_size > 2000
    text = (tmp_path / name / "result.json").read_text()
    saved = json.loads(text, parse_constant=pytest.fail)
    assert list(saved["arms"]) == rows
    assert saved["command"].startswith(f"thinned reproduce {name} --budget smoke --seeds 1")
    assert saved["base"]["dropout"] == asdict(result.study.base.dropout)
    assert all(0 < arm["errors"][0] <= 100 for arm in saved["arms"].values())
    assert wanted.about["title"] in str(result)
    if name.endswith("figure11"):
        # With dropout before the first layer there is no trunk: every count draws its own masks.
        assert set(saved["measured"]["test error, %"]) >= {"weight scaling", "1 samples"}
    if name.endswith("figure8"):
        shares = {arm: held["share active"][0] for arm, held in saved["measured"].items()}
        assert all(0 < share < 1 for share in shares.values())


def test_the_order_is_told_with_what_is_more_than_the_noise():
    wanted = Reproduction.open("srivastava2014-table10")
    study = wanted.study("smoke", seeds=3)

    def told(bernoulli, gaussian):
        rows = []
        for arm, errors in zip(study.arms, (bernoulli, gaussian), strict=True):
            scores = [{"test": {"accuracy": 1 - error / 100, "nll": 0.1}} for error in errors]
            outcomes = {s: Outcome("finished", "", each) for s, each in enumerate(scores)}
            rows.append(Row(arm, outcomes, None))
        accuracies = {
            row.arm.name: {s: o.scores["test"]["accuracy"] for s, o in row.outcomes.items()}
            for row in rows
        }
        found = paired_differences(accuracies, study.baseline)["Gaussian"]
        return Result(wanted, "smoke", study, [rows[0], replace(rows[1], difference=found)], {})

    clear = told([1.1, 1.2, 1.15], [0.9, 1.01, 0.94])
    assert "order of the means: as published; of 1 pair of neighbours, 1 differs" in str(clear)
    assert "1.08 +- 0.04" in str(clear)
    noisy = told([1.1, 1.2, 1.15], [1.0, 1.3, 1.1])
    assert "of 1 pair of neighbours, 0 differ as published" in str(noisy)
    assert "not as published; of 1" in str(told([0.9, 1.01, 0.94], [1.1, 1.2, 1.15]))
    saved = json.loads(clear.to_json(), parse_constant=pytest.fail)
    against = saved["arms"]["Gaussian"]["against_baseline"]
    assert saved["arms"]["Bernoulli"]["against_baseline"] is None
    assert against["mean"] == pytest.approx(-0.2)
    assert against["low"] < against["mean"] < against["high"] < 0
    assert 0 < against["corrected_p"] < 0.05
    students = stats.ttest_1samp([0.9, 1.01, 0.94], 0.0).confidence_interval(0.95)
    assert saved["arms"]["Gaussian"]["interval"] == pytest.approx(students)
    assert saved["arms"]["Gaussian"]["published_spread"] == 0.04
    assert saved["command"] == "thinned reproduce srivastava2014-table10 --budget smoke --seeds 3"
    part = replace(clear, rows=clear.rows[1:])
    assert part.command.endswith("--seeds 3 --rows Gaussian")


def test_a_row_without_a_published_value_has_its_place_in_the_order():
    wanted = Reproduction.open("srivastava2014-table2")
    study = wanted.study("short", seeds=3)
    assert study.arms[0].name not in wanted.published

    def told(*errors):
        rows = []
        for arm, each in zip(study.arms, errors, strict=True):
            scores = [{"test": {"accuracy": 1 - error / 100}} for error in each]
            outcomes = {s: Outcome("finished", "", score) for s, score in enumerate(scores)}
            rows.append(Row(arm, outcomes, None))
        return str(Result(wanted, "short", study, rows, {}))

    high, middle, low = [1.6, 1.62, 1.58], [1.3, 1.31, 1.33], [1.1, 1.12, 1.09]
    assert ": as published; of 2 pairs of neighbours, 2 differ" in told(high, middle, low)
    assert "not as published; of 2 pairs of neighbours, 1 differs" in told(middle, high, low)


def test_figure_10_tells_the_gain_at_each_size(tmp_path):
    wanted = Reproduction.open("srivastava2014-figure10")
    limits = [100, 500]
    rows = [f"data.limit={limit},dropout.rate={rate}" for limit in limits for rate in (0, 0.5)]
    result = reproduce(wanted, wanted.study("smoke", rows, 2), tmp_path / "s", "smoke")
    right = {row.arm.name: row.values("accuracy") for row in result.rows}
    # Dropout is tested within a size, not one size against another.
    against = [row.difference for row in result.rows]
    assert against[0] is None
    assert against[2] is None
    expected = [100 * (b - a) for a, b in zip(right[rows[2]], right[rows[3]], strict=True)]
    assert 100 * against[3].mean == pytest.approx(np.mean(expected))
    (gains,) = result.measured.values()
    assert len(gains) == len(limits)
    for limit, (without, with_dropout) in zip(limits, (rows[:2], rows[2:]), strict=True):
        expected = [100 * (b - a) for a, b in zip(right[without], right[with_dropout], strict=True)]
        assert gains[f"data.limit={limit}"] == pytest.approx(expected, abs=1e-4)


def test_the_command_lists_runs_and_refuses(tmp_path, capsys):
    assert main(["reproduce"]) == 0
    assert "dropout + max-norm, ReLU 3x1024" in capsys.readouterr().out
    assert main(["reproduce", "srivastava2014-table3"]) == 2
    assert "did you mean 'srivastava2014-table" in capsys.readouterr().err
    words = ["reproduce", "srivastava2014-table2", "--budget", "smoke", "--runs", str(tmp_path)]
    assert main([*words, "--rows", "nope"]) == 2
    assert main([*words, "--seeds", "0"]) == 2
    capsys.readouterr()
    rows = ["standard, ReLU 3x1024", "dropout + max-norm, ReLU 3x1024"]
    assert main([*words, "--rows", *rows, "--seeds", "2"]) == 0
    said = capsys.readouterr().out
    assert "     1.06  " in said
    assert "srivastava2014-table2-smoke" in said


def test_the_published_values_are_those_of_the_papers():
    # Read off the papers' tables again, and not from the recipes.
    table2 = Reproduction.open("srivastava2014-table2").published
    assert sorted(table2.values()) == [0.94, 0.95, 1.01, 1.04, 1.06, 1.25, 1.35, 1.60]
    wan = Reproduction.open("wan2013-mnist").published
    assert wan == {"none": 1.62, "dropout": 1.28, "DropConnect": 1.2}


def test_a_reproduction_needs_a_known_name():
    with pytest.raises(RequestError, match="unknown reproduction"):
        Reproduction.open("figure")
