import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinned.core.config import (
    RECIPES,
    Config,
    DataConfig,
    DropoutConfig,
    Option,
    changed_options,
    load,
    options,
    recipe,
    to_json,
    with_values,
)
from thinned.core.errors import RequestError
from thinned.core.validation import validate


def configs() -> st.SearchStrategy[Config]:
    return st.builds(
        Config,
        data=st.builds(
            DataConfig,
            path=st.none()
            | st.sampled_from([Path("a b"), Path("/données/图"), Path("/😀/\udc80")]),
            validation=st.integers(0, 10**6),
            limit=st.none() | st.integers(1, 10**6),
        ),
        dropout=st.builds(DropoutConfig, rate=st.floats(0, 1)),
        learning_rate=st.floats(1e-8, 10),
        seed=st.integers(0, 2**32 - 1),
    )


@given(configs())
def test_a_config_survives_its_own_json(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_text(to_json(config), encoding="utf-8")
    assert load(path) == config
    validate(config)


def test_every_option_has_help_and_every_number_a_range_and_unit():
    for name, option, value in options(Config()):
        assert isinstance(option, Option), name
        assert option.documentation.rstrip("]").rstrip(), name
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert option.range, name
            assert "[" in option.documentation, name


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"learning_rate": math.nan}, "--learning-rate"),
        ({"learning_rate": 0.0}, "--learning-rate"),
        ({"learning_rate": math.inf}, "--learning-rate"),
        ({"batch_size": 0}, "--batch-size"),
        ({"epochs": 0}, "--epochs"),
        ({"seed": -1}, "--seed"),
        ({"seed": 2**32}, "--seed"),
        ({"checkpoint_every_s": 0.0}, "--checkpoint-every-s"),
        ({"dropout": DropoutConfig(rate=1.5)}, "--dropout.rate"),
        ({"dropout": DropoutConfig(rate=-0.1)}, "--dropout.rate"),
        ({"dropout": DropoutConfig(rate=math.nan)}, "--dropout.rate"),
        ({"data": DataConfig(validation=-1)}, "--data.validation"),
        ({"data": DataConfig(limit=0)}, "--data.limit"),
        ({"recipe": "tutorail"}, "did you mean 'tutorial'"),
    ],
)
def test_a_number_out_of_range_is_refused_by_its_flag(changes, flag):
    with pytest.raises(RequestError, match=flag):
        validate(dataclasses.replace(Config(), **changes))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "did you mean 'epochs'"),
        ("dropout: 0.5", "section"),
        ("epochs: many", "expected int"),
        ("epochs: true", "expected int"),
        ("epochs: 1.5", "expected int"),
        ("dropout: {bits: slow}", "choose from fast, threefry"),
        ("recipe: nonsense", "unknown recipe"),
        ("- 1", "no options"),
        ("a: [", "neither YAML nor JSON"),
        ("\x00", "neither YAML nor JSON"),
    ],
)
def test_a_wrong_config_file_is_refused_with_its_name(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(RequestError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_config_file_is_refused(tmp_path):
    with pytest.raises(RequestError, match="No such file"):
        load(tmp_path / "none.yaml")


def test_yaml_and_json_say_the_same(tmp_path):
    (tmp_path / "a.yaml").write_text("learning_rate: 1e-2\ndropout:\n  rate: 0\n")
    (tmp_path / "a.json").write_text(json.dumps({"learning_rate": 0.01, "dropout": {"rate": 0.0}}))
    assert load(tmp_path / "a.yaml") == load(tmp_path / "a.json")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid_and_keeps_its_name(name):
    validate(recipe(name))
    assert recipe(name).recipe == name


def test_the_printed_tutorial_is_data():
    printed = recipe("tutorial-as-printed")
    assert printed.learning_rate == 0.1
    assert (printed.randomness.dropout, printed.randomness.shuffle) == ("frozen", "frozen")


def test_only_what_cannot_alter_the_past_may_change():
    past = Config()
    later = dataclasses.replace(past, epochs=20, checkpoint_every_s=1.0)
    assert changed_options(past, later) == []
    other = with_values(past, {"dropout": {"rate": 0.1}, "seed": 1}, "test")
    assert changed_options(past, other) == [
        "--dropout.rate: was unset, asked for 0.1",
        "--seed: was 0, asked for 1",
    ]


def test_local_paths_of_libraries_are_found_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    for library in ("hf", "tfds"):
        assert DataConfig(path=f"{library}:mine").path == f"{library}:{tmp_path / 'mine'}"
        assert DataConfig(path=f"{library}:mnist").path == f"{library}:mnist"
