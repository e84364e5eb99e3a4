"""The moving average of the weights of a network with batch normalisation."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import blobs
from flax import linen as nn

import thinned
from thinned.core.config import AugmentConfig, Config, DataConfig, MlpConfig, OptimConfig
from thinned.data.sources.arrays import Arrays
from thinned.engine import layout, loop
from thinned.engine.build import Built
from thinned.engine.feed import feed_of
from thinned.engine.loop import collected
from thinned.runs.verify import differing


class Normed(nn.Module):
    """A convolution whose values are normalised by a batch's own mean and deviation."""

    classes: int = 3

    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.Conv(4, (3, 3), name="conv")(images)
        # As slow as Flax's own: a hundred batches would not forget what was before.
        x = nn.BatchNorm(use_running_average=not train, momentum=0.99, name="norm")(x)
        return nn.Dense(self.classes)(nn.relu(x).mean((1, 2)))


OWN = f"{__name__}:Normed"


def config_for(**changes) -> Config:
    given = {
        "model": OWN,
        "epochs": 2,
        "batch_size": 8,
        "learning_rate": 0.05,
        "optim": OptimConfig(ema=0.9),
        "data": DataConfig(normalise="no"),
        "augment": AugmentConfig("none"),
    }
    return Config(**(given | changes))


def dataset():
    return Arrays({"train": blobs(100, 0), "test": blobs(40, 1)}, DataConfig()).load()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return thinned.train(
        config_for(), name="whole", runs=tmp_path_factory.mktemp("average"), dataset=dataset()
    )


def recomputed(run, limit=None):
    """Mean and variance of the average's convolution over the last epoch's batches."""
    images = np.float32(dataset().train.images) / 255
    kernel = jax.tree.map(np.asarray, run.state.average["conv"])
    means, variances = [], []
    plan = run.built.plan
    for step in range(plan.steps_per_epoch)[:limit]:
        rows = np.asarray(plan.chunk(plan.steps_per_epoch + step, 1)[0].order)[0]
        padded = np.pad(images[rows], ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
        x = np.einsum("nhwcij,ijco->nhwo", windows, kernel["kernel"]) + kernel["bias"]
        means.append(x.mean((0, 1, 2)))
        variances.append(x.var((0, 1, 2)))
    return {"mean": np.mean(means, 0), "var": np.mean(variances, 0)}


def test_what_is_evaluated_are_averaged_weights_with_statistics_of_their_own(run):
    found = run.state.variables["batch_stats"]["norm"]
    for name, expected in recomputed(run).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-6)
        assert not np.allclose(run.state.model_state["batch_stats"]["norm"][name], expected, 0.1)
    assert run.evaluate(dataset=dataset()).totals.mean_loss == run.metrics[-1]["loss"]


def test_at_most_so_many_batches_are_looked_at_however_they_come(run, monkeypatch):
    monkeypatch.setattr(loop, "STATISTICS_BATCHES", 5)
    streamed = config_for(data=DataConfig(normalise="no", in_memory="no", memory_mb=0.01))
    train = dataset().train
    expected = recomputed(run, 5)
    for config in (run.config, streamed):
        built = Built.of(config, run.facts)
        state = collected(built, feed_of(built.plan, train), run.state, built.plan.total_steps)
        for name, value in expected.items():
            found = state.average_state["batch_stats"]["norm"][name]
            np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-6)


class Killed(BaseException):
    """As if the process had ended."""


@pytest.mark.parametrize(
    ("model", "augment"),
    [
        (OWN, "digits"),
        *(
            pytest.param(*way, marks=pytest.mark.long)
            for way in ((OWN, "none"), ("resnet", "none"), ("resnet", "digits"))
        ),
    ],
)
def test_a_network_killed_in_mid_epoch_ends_with_the_same_bits(
    tmp_path, monkeypatch, model, augment
):
    config = config_for(model=model, checkpoint_every_s=0.001, augment=AugmentConfig(augment))
    save, saved = loop.save, []

    def killed_after(checkpoints, state, progress, best):
        save(checkpoints, state, progress, best)
        saved.append(progress.step)
        if len(saved) in (2, 5):
            raise Killed

    whole = thinned.train(config, name="whole", runs=tmp_path, dataset=dataset())
    monkeypatch.setattr(loop, "save", killed_after)
    for _ in range(2):
        with pytest.raises(Killed):
            thinned.train(config, name="cut", runs=tmp_path, dataset=dataset())
        assert saved[-1] % whole.built.plan.steps_per_epoch
    cut = thinned.train(config, name="cut", runs=tmp_path, dataset=dataset())
    assert differing(whole, cut) == []
    for name, held in cut.state.average_state["batch_stats"].items():
        assert not np.array_equal(held["mean"], cut.state.model_state["batch_stats"][name]["mean"])


def test_without_batch_statistics_or_average_nothing_is_collected(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "collect", None)
    for name, model, ema in (("mlp", "mlp", 0.9), ("raw", OWN, None)):
        config = config_for(model=model, epochs=1, optim=OptimConfig(ema=ema))
        if model == "mlp":
            config = replace(config, mlp=MlpConfig(hidden=(8,)))
        run = thinned.train(config, name=name, runs=tmp_path, dataset=dataset())
        assert run.state.average_state is None
