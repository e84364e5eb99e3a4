"""One validation for flags, files and programs."""

import dataclasses
import pickle
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import thinned
import thinned.cli.main
from thinned.core.config import (
    RECIPES,
    Config,
    DataConfig,
    DropoutConfig,
    MlpConfig,
    OptimConfig,
    load,
    recipe,
    to_json,
    with_values,
)
from thinned.core.errors import RequestError
from thinned.core.validation import idle, refuse_idle, validate
from thinned.studies.arms import grid, varied
from thinned.studies.study import Study


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(optim=OptimConfig(schedule="cosin")), "--optim.schedule is 'cosin': choose from"),
        (Config(optim=OptimConfig(name="adamW")), "--optim.name is 'adamW': choose from"),
        (Config(data=DataConfig(balance="weight")), "--data.balance is 'weight': choose from"),
        (Config(data=DataConfig(channels=True)), "--data.channels is True: choose from 1, 3"),
        (Config(learning_rate=np.float32(-0.01)), "--learning-rate is -0.0"),
        (Config(learning_rate=None), "--learning-rate is None: expected float"),
        (Config(epochs=True), "--epochs is True: expected int"),
        (Config(epochs=1.0), "--epochs is 1.0: expected int"),
        (Config(epochs=np.float64(2)), "--epochs is 2.0: expected int"),
        (Config(seed=np.ones(2, int)), r"--seed is \[1, 1\]: expected int"),
        (Config(mlp=MlpConfig(hidden=8)), "--mlp.hidden is 8: expected one or more"),
        (Config(mlp=MlpConfig(hidden=())), "expected one or more"),
        (Config(mlp=MlpConfig(hidden=[8, 0])), "--mlp.hidden is 0: must be"),
        (Config(dropout={"rate": 0.5}), "--dropout is .*: expected a DropoutConfig"),
        (Config(dropout=DropoutConfig(sites={"a": 2})), "--dropout.sites a is 2.0"),
        (Config(dropout=DropoutConfig(sites=0.5)), "--dropout.sites is 0.5: expected names"),
        (Config(data=DataConfig(path=3)), "--data.path is 3: expected str"),
        (Config(model=Config), "--model is .*: expected str"),
        (Config(batch_size=10**5000), "--batch-size is a number of thousands of digits: too large"),
        (Config(batch_size=10**30), "--batch-size is 1000.*: too large a number"),
        (Config(epochs=2**62), "--epochs is .*: more than 2.31 steps"),
        ({"epochs": 1}, "is no thinned.Config"),
        (Config, "is no thinned.Config"),
    ],
)
def test_programs_get_the_checks_of_the_command_line(tmp_path, config: Any, message):
    with pytest.raises(RequestError, match=message) as caught:
        thinned.train(config, runs=tmp_path)
    assert len(str(caught.value)) < 300
    assert not list(tmp_path.iterdir())


def test_numbers_of_numpy_and_jax_become_plain_and_are_read_again(tmp_path):
    given = Config(
        seed=np.int64(3),
        learning_rate=np.float32(0.25),
        epochs=jnp.int32(2),
        model=np.str_("mlp"),
        mlp=MlpConfig(hidden=[np.int32(8), 8]),
        optim=OptimConfig(nesterov=np.bool_(False), clip=1),
        dropout=DropoutConfig(sites={np.str_("a"): np.float64(0.5)}),
    )
    config = validate(given)
    assert {type(value) for value in dataclasses.astuple(config)[:1]} == {str}
    kinds = [config.seed, config.learning_rate, config.epochs, config.model, config.optim.clip]
    assert [type(value) for value in kinds] == [int, float, int, str, float]
    assert type(config.optim.nesterov) is bool
    assert config.mlp.hidden == (8, 8)
    (tmp_path / "config.json").write_text(to_json(config), encoding="utf-8")
    assert load(tmp_path / "config.json") == config == validate(config)


def test_a_run_that_numpy_numbers_asked_for_can_be_opened(tiny_data, tmp_path):
    config = Config(
        data=DataConfig(path=tiny_data),
        model="mlp",
        mlp=MlpConfig(hidden=[8]),
        seed=np.int64(3),
        epochs=np.int32(1),
    )
    run = thinned.train(config, runs=tmp_path, name="r")
    assert thinned.Run.open(run.folder).config == run.config
    assert run.config == dataclasses.replace(validate(config), parallel="no")
    assert thinned.train(config, runs=tmp_path, name="r").config == run.config


PRINTED = "tutorial-as-printed"


@pytest.mark.parametrize(
    "named",
    [
        Config(recipe=PRINTED),
        # One value as the recipe has it, by chance; and all of them: nothing tells what was meant.
        Config(recipe=PRINTED, learning_rate=0.1),
        Config(recipe="finetune-head", batch_size=64, epochs=10),
        with_values(Config(), {**RECIPES[PRINTED], "recipe": PRINTED}, "test"),
    ],
)
def test_a_recipe_that_is_only_named_is_refused(tmp_path, named):
    with pytest.raises(RequestError, match=r"begin with thinned\.recipe\('") as caught:
        thinned.train(named, runs=tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    # What was once recorded is still opened.
    validate(named)


def test_what_is_laid_over_a_recipe_is_kept_though_it_is_the_default(tmp_path):
    printed = recipe(PRINTED)
    usual = Config().learning_rate
    laid = [
        with_values(printed, {"learning_rate": usual}, "test"),
        with_values(printed, {"learning_rate": usual, "recipe": PRINTED}, "test"),
        dataclasses.replace(printed, learning_rate=usual),
        thinned.cli.main.parse(
            ["train", "--recipe", PRINTED, "--learning-rate", str(usual)]
        ).config,
    ]
    (tmp_path / "c.json").write_text(to_json(laid[0]), encoding="utf-8")
    laid += [load(tmp_path / "c.json"), pickle.loads(pickle.dumps(laid[0]))]
    laid.append(
        thinned.cli.main.parse(["train", "-c", str(tmp_path / "c.json"), "--seed", "0"]).config
    )
    for config in laid:
        refuse_idle(validate(config))
        assert config == laid[0]
        assert config.randomness == printed.randomness


@pytest.mark.parametrize(
    ("values", "needed"),
    [
        ({"optim": {"momentum": 0.5}}, "--optim.name sgd"),
        ({"optim": {"final": 0.1}}, "--optim.schedule linear or cosine or exponential"),
        ({"dropout": {"block_size": 3}}, "--dropout.kind block"),
        ({"dropout": {"schedule_to": 0.5}}, "--dropout.schedule linear or cosine"),
        ({"mlp": {"pieces": 3}}, "--mlp.units maxout"),
    ],
)
def test_options_that_change_nothing_are_refused_for_new_runs(tmp_path, values, needed):
    config = with_values(Config(), values, "test")
    with pytest.raises(RequestError, match=f"changes nothing here: it goes with {needed}"):
        thinned.train(config, runs=tmp_path)
    assert not list(tmp_path.iterdir())
    # A run of before is still opened.
    assert validate(config) == config


def test_options_that_count_are_none_of_those():
    refuse_idle(Config(optim=OptimConfig(name="sgd", momentum=0.5)))
    refuse_idle(Config(dropout=DropoutConfig(kind="block", block_size=3)))
    for name in ("tutorial", "tutorial-as-printed"):
        assert not idle(recipe(name))


def test_an_arm_takes_of_the_base_what_it_can_use():
    base = Config(dropout=DropoutConfig(block_size=3))
    arms = grid(varied(["dropout.kind=element,block"], base))
    Study.of(base, arms, [0])
    element, block = (arm.config(base, 0).dropout for arm in arms)
    assert (element.block_size, block.block_size) == (DropoutConfig().block_size, 3)
    with pytest.raises(RequestError, match="changes nothing in any arm"):
        Study.of(base, arms[:1], [0])
    both = grid(varied(["dropout.kind=element,block", "dropout.block_size=3,5"], base))
    with pytest.raises(RequestError, match="--dropout.block-size changes nothing here"):
        Study.of(base, both, [0])


def test_every_seed_of_a_study_is_checked_before_it_begins():
    with pytest.raises(RequestError, match="--seed is 4294967296"):
        Study.of(Config(), grid({}), range(2**32 - 1, 2**32 + 1))


def test_what_is_missing_is_told_before_there_is_a_folder(tiny_data, tmp_path, monkeypatch, capsys):
    for module in ("tensorboardX", "matplotlib"):
        monkeypatch.setitem(sys.modules, module, None)
    data = DataConfig(path=str(tiny_data))
    with pytest.raises(RequestError, match="needs tensorboardX"):
        Study.of(Config(log="tensorboard"), grid({}), [0])
    with pytest.raises(RequestError, match="needs tensorboardX: install it with"):
        thinned.train(Config(data=data, log="tensorboard"), runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    # The data would be refused next.
    words = ["find-lr", "--data", "nowhere", "--out", str(tmp_path / "a.svg")]
    assert thinned.cli.main.main(words) == 2
    assert "a.svg needs matplotlib" in capsys.readouterr().err
