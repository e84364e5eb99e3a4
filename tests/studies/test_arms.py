"""What --vary means, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinned.core.config import Config, DropoutConfig
from thinned.core.errors import RequestError
from thinned.studies.arms import Arm, grid, sample, varied

BASE = Config(dropout=DropoutConfig(sites={"hidden_2": 0.4}))


@pytest.mark.parametrize(
    ("word", "name", "values"),
    [
        ("dropout.rate=0:0.9:0.3", "dropout.rate", [0, 0.3, 0.6, 0.9]),
        ("dropout.rate=none,0.5", "dropout.rate", [None, 0.5]),
        ("dropout.kind=element,gaussian", "dropout.kind", ["element", "gaussian"]),
        ("--learning-rate=1e-3,0.1", "learning_rate", [0.001, 0.1]),
        ("batch_size=16:64:16", "batch_size", [16, 32, 48, 64]),
        ("mlp.hidden=800x800,64", "mlp.hidden", [[800, 800], [64]]),
        ("optim.nesterov=true,false", "optim.nesterov", [True, False]),
        ("dropout.sites.input=0,0.2", "dropout.sites.input", [0.0, 0.2]),
        ("data.path=a,b", "data.path", ["a", "b"]),
        ("data.channels=1,3", "data.channels", [1, 3]),
    ],
)
def test_values_are_read_as_the_options_type(word, name, values):
    assert varied([word], BASE) == {name: values}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dropout.rat=0,1"], "did you mean 'dropout.rate'"),
        (["dropout.kind=elemnt"], "did you mean 'element'"),
        (["dropout.rate"], "give values"),
        (["dropout.rate="], "give values"),
        (["dropout.rate=0,,1"], "a value is empty"),
        (["dropout.rate=1:0:0.1"], "never reaches"),
        (["dropout.rate=0:1:0"], "never reaches"),
        (["dropout.rate=a"], "expected float"),
        (["batch_size=1.5"], "expected int"),
        (["dropout.rate=nan"], "expected float"),
        (["dropout.rate=0,0.0"], "names a value twice"),
        (["dropout.rate=0", "dropout.rate=1"], "is given twice"),
        (["seed=1,2"], "every seed"),
        (["recipe=tutorial,tutorial-as-printed"], "vary those options themselves"),
        (["test=epoch,end"], "read once"),
        (["log=none,tensorboard"], "not what is learned"),
        (["checkpoint-every-s=1,2"], "not what is learned"),
        (["dropout.kind=elemen"], "there is no such value; did you mean 'element'"),
        (["batch_size=1:100000:1", "epochs=1:100000:1"], "more than 100,000 arms"),
    ],
)
def test_what_cannot_be_varied_is_refused(words, message):
    with pytest.raises(RequestError, match=message):
        grid(varied(words, BASE))


def test_values_out_of_range_are_refused_when_the_config_is_made():
    (arm,) = grid(varied(["dropout.rate=1.5"], BASE))
    with pytest.raises(RequestError, match="--dropout.rate is 1.5"):
        arm.config(BASE, 0)


def test_an_arm_is_the_base_with_its_changes_alone():
    arm = Arm("a", {"dropout.sites.input": 0.1, "optim.name": "sgd"})
    config = arm.config(BASE, 7)
    assert config.seed == 7
    assert config.dropout.sites == {"hidden_2": 0.4, "input": 0.1}
    assert config.optim.name == "sgd"
    assert config.epochs == BASE.epochs
    # Whatever the base says: test images are for the end.
    assert (BASE.test, config.test) == ("epoch", "end")


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 20), st.integers(0, 99))
def test_a_grid_is_every_combination_and_a_sample_a_part_of_it(rates, kinds, count, seed):
    words = [
        f"dropout.rate={','.join(str(rate / 10) for rate in range(rates))}",
        f"dropout.kind={','.join(['element', 'path', 'alpha', 'channel'][:kinds])}",
    ]
    arms = grid(varied(words, BASE))
    assert len({arm.name for arm in arms}) == len({arm.folder for arm in arms}) == rates * kinds
    drawn = sample(arms, count, seed)
    assert len(drawn) == min(count, len(arms))
    assert drawn[0] == arms[0]
    for kept in arms:
        held = sample(arms, count, seed, kept.name)
        assert kept in held
        assert len(held) == len({arm.name for arm in held}) == len(drawn)
    assert [arm for arm in arms if arm in drawn] == drawn
    assert sample(arms, count, seed) == drawn


@pytest.mark.parametrize(
    "word",
    [
        "learning_rate=0.00123456781,0.00123456789",
        "data.path=a/b,a-b",
        "data.path=a/b,a:b,a//b",
        f"data.path={'x' * 300},{'x' * 299}y",
        "data.path=" + "\u00e4" * 300 + ",b",
    ],
)
def test_different_arms_have_different_names_and_folders_that_a_disk_can_hold(word):
    arms = grid(varied([word], BASE))
    count = word.count(",") + 1
    assert len({arm.name for arm in arms}) == len({arm.folder for arm in arms}) == count
    for arm in arms:
        assert "/" not in arm.folder
        assert len(arm.folder.encode()) < 200


def test_plain_names_are_their_own_folders():
    names = ["dropout.rate=0.5", "dropout + max-norm, ReLU 3x1024", "maxout 2x(5x240)"]
    folders = [Arm(name, {}).folder for name in names]
    assert folders == ["dropout.rate=0.5", "dropout-+-max-norm,-ReLU-3x1024", "maxout-2x-5x240-"]


def test_nothing_varied_is_one_arm():
    assert [arm.name for arm in grid({})] == ["all"]
