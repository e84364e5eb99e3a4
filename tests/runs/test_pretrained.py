"""Runs that begin with the weights of others: what trains, what is kept, what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from thinned.core.config import Config, DataConfig, with_values
from thinned.core.errors import RequestError
from thinned.core.types import Dataset, Split
from thinned.data.facts import Facts
from thinned.engine.build import Built
from thinned.engine.feed import feed_of
from thinned.engine.step import TrainState, train_steps
from thinned.models.staged import HEAD
from thinned.models.wide_resnet import WideResNet
from thinned.runs import features, pretrained
from thinned.runs.beginning import recorded_weights
from thinned.runs.doctor import diagnose
from thinned.runs.features import shortened
from thinned.runs.predictions import appraise, predictions_of
from thinned.runs.prepare import Prepared
from thinned.runs.run import Run
from thinned.runs.train import resume, train

NET = "wide-resnet-10-1"


class Plain(nn.Module):
    """A network that has statistics and no stages."""

    classes: int = 5

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not train)(images.reshape(len(images), -1))
        return nn.Dense(self.classes)(x)


def toy(classes: int, seed: int) -> Dataset:
    """Colour images of 8 x 8 whose red says the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(64, dtype=np.int32) % classes
    images = rng.integers(0, 256, (64, 8, 8, 3)).astype(np.uint8)
    images[..., 0] = (labels * 200 // classes)[:, None, None] + rng.integers(0, 20, (64, 8, 8))
    parts = [
        Split(images[part], labels[part]) for part in (slice(40), slice(40, 52), slice(52, 64))
    ]
    train_split, test, validation = parts
    return Dataset("toy", train_split, test, tuple("abcdefg"[:classes]), validation)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "cache_folder", lambda kind: folder / "cache" / kind)
        # One row of blocks instead of three: a stem, a block, a neck and a head are stages enough,
        # and every test compiles a training of its own.
        patch.setattr(WideResNet, "rows", lambda self: ((self.depth - 4) // 6,))
        yield folder


@pytest.fixture(scope="module")
def source(home: Path) -> Run:
    config = Config(
        model=NET, epochs=1, batch_size=8, augment=replace(Config().augment, preset="none")
    )
    return train(config, name="source", runs=home, dataset=toy(3, 0))


OTHER = toy(5, 1)


def wanted(source: Run, **changes: Any) -> Config:
    values = {
        "model": NET,
        "pretrained": str(source.folder),
        "epochs": 3,
        "batch_size": 16,
        "augment": {"preset": "none"},
        # Of a kind that this network drops before its head, not inside its blocks.
        "dropout": {"kind": "connect"},
    }
    return with_values(Config(), {**values, **changes}, "test")


def prepared(source: Run, dataset: Dataset = OTHER, **changes: Any) -> Built:
    return Prepared.of(wanted(source, **changes), dataset).built


def stepped(built: Built, state: TrainState, dataset: Dataset, steps: int) -> TrainState:
    data, chunk, count = feed_of(built.plan, dataset.train).fetch(0, steps)
    return train_steps(state, data, chunk, jnp.int32(count), built.augment)[0]


def same(one: Any, other: Any, **tolerance: float) -> bool:
    close = jax.tree.map(lambda a, b: np.allclose(a, b, **tolerance), one, other)
    return all(jax.tree.leaves(close))


def test_a_head_on_kept_features_learns_as_it_would_on_images(source: Run) -> None:
    built = prepared(source)
    assert built.cut == len(built.parts) - 1
    whole = stepped(built, built.initial_state(), OTHER, 2)
    short, state, kept = shortened(built, built.initial_state(), OTHER)
    part = stepped(short, state, kept, 2)
    assert same(whole.params, part.params, atol=1e-5)
    assert set(part.params) == {HEAD}


@pytest.mark.parametrize("finetune", ["head", "all", f"neck,{HEAD}"])
def test_what_is_named_trains_and_nothing_else(source: Run, finetune: str) -> None:
    built = prepared(source, finetune=finetune)
    before, state = built.initial_state(), built.initial_state()
    after = stepped(built, state, OTHER, 2) if not built.cut else None
    if after is None:
        short, state, kept = shortened(built, state, OTHER)
        after = stepped(short, state, kept, 2)
    assert set(before.params) == set(built.trains) & set(before.params)
    assert not any(
        same(after.params[name], before.params[name]) for name in set(before.params) - {"norm"}
    )
    # Statistics stand still, and neither they nor what is fixed is saved.
    assert not after.model_state
    assert "batch_stats" in after.constants


def test_statistics_can_go_on(source: Run) -> None:
    built = prepared(source, finetune="all", batch_statistics="trained")
    before = jax.tree.map(np.asarray, built.initial_state().model_state)
    after = stepped(built, built.initial_state(), OTHER, 2)
    assert not same(before["batch_stats"], after.model_state["batch_stats"])


def test_statistics_of_a_network_without_stages_go_on() -> None:
    values = {
        "model": f"{__name__}:Plain",
        "pretrained": "runs/other",
        "finetune": "all",
        "batch_size": 8,
    }
    config = with_values(Config(), values, "test")
    built = Built.of(config, Facts.of(OTHER, config))
    before = jax.tree.map(np.asarray, built.initial_state().model_state)
    after = stepped(built, built.initial_state(), OTHER, 1)
    assert not same(before["batch_stats"], after.model_state["batch_stats"])


def test_a_run_is_gone_on_from_with_its_own_head(source: Run) -> None:
    again = prepared(source, toy(3, 2))
    state = again.initial_state()
    images = toy(3, 2).test.images
    mine = state.apply_fn(state.variables, images / np.float32(255))
    known = source.state.apply_fn(source.state.variables, images / np.float32(255))
    np.testing.assert_allclose(mine, known, atol=1e-5)
    # Five classes instead of three: the head is drawn anew.
    assert prepared(source).initial_state().params[HEAD]["kernel"].shape[-1] == 5


@pytest.mark.parametrize("finetune", ["head", "all"])
def test_a_run_is_whole_without_its_weights_and_resumes_to_the_bit(
    source: Run, home: Path, finetune: str
) -> None:
    gone = home / f"gone-{finetune}"
    shutil.copytree(source.folder, gone)
    config = replace(wanted(source, finetune=finetune), pretrained=str(gone))
    run = train(config, name=f"run-{finetune}", runs=home, dataset=OTHER)
    known = run.predict(OTHER.test.images)
    shutil.rmtree(gone)
    shutil.rmtree(run.folder / "checkpoints" / str(run.checkpoints.steps()[-1]))
    again = resume(run.folder, dataset=OTHER)
    assert np.array_equal(again.predict(OTHER.test.images), known)
    told = recorded_weights(run.folder)
    assert told is not None
    assert told["origin"] == str(gone)
    assert told["head"] == "new"
    last = run.metrics[-1]
    assert last["accuracy"] == pytest.approx(np.mean(known.argmax(1) == OTHER.test.labels))


def test_a_damaged_record_of_its_inputs_is_refused(source: Run, home: Path) -> None:
    """The data tell classes and shape, but not how the network's inputs are scaled."""
    config = wanted(source, epochs=1)
    copy = home / "damaged"
    shutil.copytree(train(config, name="scaled", runs=home, dataset=OTHER).folder, copy)
    (copy / "data.json").write_text("{")
    with pytest.raises(RequestError, match="wants its inputs: restore it from a copy"):
        _ = replace(Run.open(copy), config=replace(config, data=DataConfig(path="x"))).facts


def test_fine_tuning_begins_with_a_head_that_fits(source: Run, home: Path) -> None:
    config = wanted(source, finetune="all", epochs=1, learning_rate=1e-9)
    run = train(config, name="fits", runs=home, dataset=OTHER)
    fit = np.mean(run.predict(OTHER.train.images).argmax(1) == OTHER.train.labels)
    drawn = prepared(source, finetune="all").initial_state()
    logits = drawn.apply_fn(drawn.variables, OTHER.train.images / np.float32(255))
    assert fit > np.mean(np.argmax(logits, 1) == OTHER.train.labels)
    assert fit > 0.9


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    real = features._features

    def spy(apply_fn: Any, variables: Any, images: Any) -> Any:
        seen.append(len(images))
        return real(apply_fn, variables, images)

    monkeypatch.setattr(features, "_features", spy)
    return seen


def test_features_are_computed_once(
    source: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(home / "cache", ignore_errors=True)
    seen = counted(monkeypatch)
    built = prepared(source)
    _, _, first = shortened(built, built.initial_state(), OTHER)
    assert sum(seen) >= 64
    seen.clear()
    other_seed = prepared(source, seed=7, dropout={"kind": "connect", "rate": 0.7})
    order = np.random.default_rng(0).permutation(40)
    mixed = replace(OTHER, train=OTHER.train.take(order))
    _, _, again = shortened(other_seed, other_seed.initial_state(), mixed)
    assert not seen
    assert np.array_equal(again.train.images, first.train.images[order])
    # What lies there damaged is made anew.
    for file in (home / "cache" / "features").glob("*/images.u8"):
        file.write_bytes(b"x" + file.read_bytes()[1:])
    _, _, mended = shortened(built, built.initial_state(), OTHER)
    assert sum(seen) >= 64
    assert np.array_equal(mended.train.images, first.train.images)


def test_views_are_varied_and_taken_in_turn(source: Run) -> None:
    built = prepared(source, augment={"preset": "objects", "views": 3}, epochs=4)
    short, _, kept = shortened(built, built.initial_state(), OTHER)
    assert len(kept.train) == 3 * 40
    assert not np.array_equal(kept.train.images[:40], kept.train.images[40:80])
    per_epoch = short.plan.steps_per_epoch
    views = [short.plan.chunk(epoch * per_epoch, 1)[0].order[0] // 40 for epoch in range(4)]
    assert [set(np.asarray(view).tolist()) for view in views] == [{0}, {1}, {2}, {0}]
    # A view of an image does not depend on where the image lies.
    order = np.random.default_rng(0).permutation(40)
    _, _, mixed = shortened(
        built, built.initial_state(), replace(OTHER, train=OTHER.train.take(order))
    )
    assert np.array_equal(mixed.train.images[40:80], kept.train.images[40:80][order])


def test_a_site_that_drops_below_ends_what_is_kept(source: Run) -> None:
    paths = prepared(source, dropout={"kind": "path"})
    assert paths.cut < len(paths.parts) - 1
    still = prepared(source, dropout={"kind": "path", "rate": 0.0})
    assert still.cut == len(still.parts) - 1


def test_learning_rates_fall_with_depth(source: Run) -> None:
    def moved(decay: float | None) -> tuple[float, ...]:
        changes = {"optim": {"name": "sgd", "momentum": 0.0, "layer_decay": decay}}
        built = prepared(source, finetune="all", **changes)
        before, state = built.initial_state(), built.initial_state()
        after = stepped(built, state, OTHER, 1)
        first, head = built.parts[0], built.parts[-1]
        differences = jax.tree.map(lambda a, b: np.abs(a - b).max(), after.params, before.params)
        return tuple(max(jax.tree.leaves(differences[name])) for name in (first, head))

    plain, falling = moved(None), moved(0.5)
    deep = len(prepared(source).parts) - 1
    assert falling[1] == pytest.approx(plain[1], rel=1e-5)
    assert falling[0] == pytest.approx(plain[0] * 0.5**deep, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"finetune": "heads"}, "did you mean head"),
        ({"finetune": ","}, "names nothing"),
        ({"augment": {"preset": "none", "mixup": 0.2}}, "only features are kept"),
        ({"batch_statistics": "trained"}, "goes with --finetune all"),
        ({"model": "wide-resnet-16-1"}, "another network"),
        ({"model": "cnn"}, "another network"),
    ],
)
def test_what_does_not_fit_is_refused(source: Run, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        prepared(source, **changes)


def photos(folder: Path, side: int) -> DataConfig:
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 1)):
        for name in ("cat", "dog"):
            where = folder / split / name
            where.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (side, side + 9, 3), np.uint8)
                Image.fromarray(pixels).save(where / f"{number}.png")
    return DataConfig(path=str(folder))


@pytest.mark.parametrize("there", [True, False])
def test_photos_are_learned_from_imagenet_where_its_weights_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    monkeypatch.setattr(pretrained, "has_imagenet", lambda name: there)
    data = photos(tmp_path / "large", 70)
    found, notes = pretrained.resolved(Config(data=data))
    assert found.pretrained == ("imagenet" if there else "no")
    assert found.data.size == (224 if there else None)
    whole, _ = pretrained.resolved(Config(data=data, finetune="all"))
    assert whole.data.size == (256 if there else None)
    assert ("--pretrained no" in notes[0]) == there
    assert ("pip install 'thinned[pretrained]'" in notes[0]) != there
    for plain in (
        Config(data=data, pretrained="no"),
        Config(data=data, model="resnet"),
        Config(data=replace(data, channels=1)),
        Config(data=photos(tmp_path / "small", 40)),
        Config(),
    ):
        assert pretrained.resolved(plain) == (plain, ())


def test_what_was_found_out_once_is_not_asked_again() -> None:
    past = Config(model="efficientnet-lite0", pretrained="imagenet", data=DataConfig(size=224))
    assert pretrained.as_recorded(Config(), past) == past
    asked = replace(Config(), pretrained="no")
    assert pretrained.as_recorded(asked, past).pretrained == "no"
    assert pretrained.as_recorded(Config(seed=3), Config()) == Config(seed=3)


def test_a_run_with_a_fixed_part_is_judged_like_any_other(
    source: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(wanted(source), name="judged", runs=tmp_path, dataset=OTHER)
    assert run.built.cut
    monkeypatch.setattr(Run, "dataset", property(lambda run: OTHER))
    assert not [check for check in diagnose(run.folder, 8).checks if check.passed is False]
    accuracy = np.mean(run.predict(OTHER.test.images).argmax(1) == OTHER.test.labels)
    assert appraise([run], OTHER.test).scores["accuracy"] == pytest.approx(accuracy)
    sampled = predictions_of([run], OTHER.test.images, samples=5)
    np.testing.assert_allclose(sampled.probabilities.sum(1), 1, rtol=1e-5)
    # Features of images that nobody asks for again are the same, and leave the disk as it is.
    cache = features.cache_folder("features")
    before = sorted(cache.rglob("*"))
    state, passing, odd = run.state, run.passing(), 255 - OTHER.test.images
    # What was read of the run is not read again.
    assert passing.state is state
    found = predictions_of([passing], odd).probabilities
    assert sorted(cache.rglob("*")) == before
    np.testing.assert_array_equal(found, predictions_of([run], odd).probabilities)
    assert len(sorted(cache.rglob("*"))) > len(before)
