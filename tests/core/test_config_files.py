"""Config files, whatever is written in them."""

import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinned.core.config import Config, load, options, to_json
from thinned.core.errors import RequestError
from thinned.core.validation import validate

SMALL = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
NAMES = st.sampled_from([*(name.split(".")[-1] for name, _, _ in options(Config())), "data", "x"])
TREES = st.recursive(
    SMALL,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(NAMES | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


def written(folder: Path, text: str, name: str = "config.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    return path


@given(
    st.dictionaries(NAMES, TREES, max_size=4).map(json.dumps)
    | TREES.map(json.dumps)
    | st.text()
    | st.text("epochsdata: -[]{}&*!|>'\"#%,\n\t1.~", max_size=40)
)
def test_any_text_is_a_valid_config_or_refused_in_one_line(tmp_path_factory, text):
    path = written(tmp_path_factory.mktemp("any"), text)
    try:
        config = load(path)
        assert validate(config) == validate(validate(config))
    except RequestError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 700


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: 1\nepochs: 2", "line 2 gives 'epochs' a second time"),
        ('{"epochs": 1,\n"epochs": 2}', "line 2 gives 'epochs' a second time"),
        ("dropout: {rate: 0, rate: 1}", "line 1 gives 'rate' a second time"),
        ("a: &a [1]\nb: [*a, *a]", "line 2 has an alias"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ('{"a": ' + "[" * 50_000 + "]" * 50_000 + "}", "nested too deeply"),
        ("seed: 2020-01-01", "seed is '2020-01-01': expected int"),
        ("seed: " + "9" * 5000, "line 1 has a number of thousands of digits"),
        ('{"seed": ' + "9" * 5000 + "}", "line 1 has a number of thousands of digits"),
        ("learning_rate: " + "9" * 400, "expected float"),
        ("seed: 010_0", "expected int"),
        ("1: 2", "unknown option '1'"),
        ("[1]: 2", "line 1 has a key that is no name"),
        ("a" * 300 + ": 1", "unknown option 'aaa"),
        ("epochs: !!python/object:os.system 1", "line 1 has a tag"),
        ("model: " + "[a]", "expected str"),
        ("model: " + "a" * 5000, "no name of anything"),
        ('model: "a\\0"', "no name of anything"),
        ("recipe: 3", "unknown recipe 3"),
        ("#" * 300_000, "more than 256 kB"),
        ("data: {channels: true}", "choose from 1, 3"),
        ("batch_size: " + "[" + "1, " * 1000 + "]", "expected int"),
    ],
)
def test_what_is_no_config_is_told_in_one_short_line(tmp_path, text, message):
    with pytest.raises(RequestError) as caught:
        load(written(tmp_path, text))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_words_mean_what_they_say_in_yaml_1_2(tmp_path):
    text = "data: {balance: no, normalise: yes}\nlearning_rate: 1e-2\noptim: {nesterov: true}\n"
    config = load(written(tmp_path, text + "seed: 010\nmodel: on"))
    assert (config.data.balance, config.data.normalise, config.model) == ("no", "yes", "on")
    assert (config.learning_rate, config.optim.nesterov, config.seed) == (0.01, True, 10)


def test_paths_in_a_file_start_at_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "there"
    (folder / "mine").mkdir(parents=True)
    for word, path in {
        "mine": f"{folder}/mine",
        "../b": f"{tmp_path}/b",
        "/c": "/c",
        "~/d": f"{tmp_path}/home/d",
        "hf:mine": f"hf:{folder}/mine",
        "hf:mnist": "hf:mnist",
    }.items():
        assert load(written(folder, f"data: {{path: '{word}'}}")).data.path == path
    os.mkfifo(tmp_path / "pipe")
    # Its writer waits for the reader.
    writer = threading.Thread(
        target=lambda: (tmp_path / "pipe").write_text("data: {path: e}", encoding="utf-8")
    )
    writer.start()
    assert load(tmp_path / "pipe").data.path == os.path.abspath("e")
    writer.join()


@pytest.mark.parametrize("name", ["données/图", "\U0001f600", "a: b", "-", "no", "'", '"', "1e3"])
def test_any_name_of_data_survives_the_runs_own_file(tmp_path, name):
    config = validate(Config())
    given = load(written(tmp_path, json.dumps({"data": {"path": f"/{name}"}}), "a.json"))
    assert given.data.path == f"/{name}"
    assert load(written(tmp_path, to_json(given), "b.json")) == given
    assert load(written(tmp_path, to_json(config), "c.json")) == config
