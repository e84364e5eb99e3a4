"""Published tables as data: every recipe is sound, and each form of figure is drawn."""

import json

import pytest

from thinned.cli import main
from thinned.errors import RequestError
from thinned.reproduce import Reproduction, names, reproduce

ASKED = [
    *(f"srivastava2014-{what}" for what in ("table2", "table9", "table10")),
    *(f"srivastava2014-figure{number}" for number in (4, 8, 9, 10, 11)),
    "wan2013-mnist",
]


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
    saved = json.loads((tmp_path / name / "result.json").read_text())
    assert list(saved["arms"]) == rows
    assert all(0 < arm["errors"][0] <= 100 for arm in saved["arms"].values())
    assert wanted.about["title"] in str(result)
    if name.endswith("figure11"):
        # With dropout before the first layer there is no trunk: every count draws its own masks.
        assert set(saved["measured"]["test error, %"]) >= {"weight scaling", "1 samples"}
    if name.endswith("figure8"):
        shares = {arm: held["share active"][0] for arm, held in saved["measured"].items()}
        assert all(0 < share < 1 for share in shares.values())


def test_figure_10_tells_the_gain_at_each_size(tmp_path):
    wanted = Reproduction.open("srivastava2014-figure10")
    limits = [100, 500]
    rows = [f"data.limit={limit},dropout.rate={rate}" for limit in limits for rate in (0, 0.5)]
    result = reproduce(wanted, wanted.study("smoke", rows, 2), tmp_path / "s", "smoke")
    right = {row.arm.name: row.values("accuracy") for row in result.rows}
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
