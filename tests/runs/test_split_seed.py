"""Which images are held out is a choice of its own: seeds share it, and a run keeps its own."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from thinned.core.config import load, recipe, with_values
from thinned.core.errors import RequestError
from thinned.data.sources.load import load_data
from thinned.data.split import fingerprint
from thinned.runs.predictions import same_images
from thinned.runs.run import Run
from thinned.runs.train import resume, train
from thinned.studies.arms import Arm
from thinned.studies.study import Study, run_study


def small(tiny_data, seed=0, **data):
    values = {
        "model": "mlp",
        "mlp": {"hidden": [4]},
        "epochs": 1,
        "batch_size": 50,
        "seed": seed,
        "data": {"path": str(tiny_data), "validation": 30, "limit": 100, **data},
    }
    return with_values(recipe("tutorial"), values, "test")


def test_seeds_hold_out_the_same_images_and_split_seeds_others(tiny_data):
    one, two = (load_data(small(tiny_data, seed)) for seed in (0, 1))
    assert fingerprint(one) == fingerprint(two)
    other = load_data(small(tiny_data, split_seed=1))
    assert not same_images(one.validation, other.validation)
    assert not same_images(one.train, other.train)
    # With none it is the seed that chooses, as the split of that number does.
    assert fingerprint(load_data(small(tiny_data, 1, split_seed=None))) == fingerprint(other)


def test_test_images_that_nobody_named_follow_the_split_seed(tmp_path):
    for index in range(40):
        folder = tmp_path / "photos" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 5 * index).save(folder / f"{index}.png")
    configs = [small(tmp_path / "photos", *each, validation=0, limit=None) for each in ((0,), (1,))]
    one, two = (load_data(config) for config in configs)
    assert fingerprint(one) == fingerprint(two)
    other = replace(configs[0], data=replace(configs[0].data, split_seed=1))
    assert not same_images(load_data(other).test, one.test)


def as_before(folder, name="config.json", under=()):
    """What was written before there was a split seed."""
    values = json.loads((folder / name).read_text())
    config = values
    for key in under:
        config = config[key]
    del config["data"]["split_seed"]
    (folder / name).write_text(json.dumps(values))


def test_a_run_of_before_keeps_its_split(tiny_data, tmp_path):
    config = small(tiny_data, 3, split_seed=None)
    run = train(config, name="r", runs=tmp_path)
    held = run.dataset.validation
    as_before(run.folder)
    again = Run.open(run.folder)
    whole = replace(config, parallel="no")
    assert again.config == whole
    assert same_images(again.dataset.validation, held)
    assert load(run.folder / "config.json") == whole
    # The same command as then, which names no split, goes on; another split is refused.
    asked = replace(small(tiny_data, 3), epochs=2)
    assert train(asked, name="r", runs=tmp_path).config.data.split_seed is None
    assert same_images(resume(run.folder).dataset.validation, held)
    with pytest.raises(RequestError, match="--data.split-seed: was unset, asked for 7"):
        train(small(tiny_data, 3, split_seed=7), name="r", runs=tmp_path)


def test_validation_is_recorded_apart_and_shrinks_training(tiny_data, tmp_path):
    run = train(small(tiny_data, limit=None), runs=tmp_path)
    counts = {record["split"]: record["count"] for record in run.metrics}
    # Of 200 images 30 are held out; a step takes 50, and what is left waits for the next epoch.
    assert counts == {"train": 150, "validation": 30, "test": 77}


def test_a_file_of_options_means_the_default_split(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": 3, "data": {"validation": 10}}')
    assert load(tmp_path / "config.json").split_seed == 0


def test_a_study_of_before_goes_on_with_the_splits_of_its_seeds(tiny_data, tmp_path):
    arms = [Arm("one", {})]
    run_study(Study.of(small(tiny_data, split_seed=None), arms, (1,)), tmp_path / "s")
    as_before(tmp_path / "s", "study.json", ("base",))
    as_before(tmp_path / "s" / "one" / "seed-1")
    run_study(Study.of(small(tiny_data), arms, (1, 2)), tmp_path / "s")
    runs = [Run.open(tmp_path / "s" / "one" / f"seed-{seed}") for seed in (1, 2)]
    assert [run.config.split_seed for run in runs] == [1, 2]
    assert not same_images(*(run.dataset.validation for run in runs))
