"""Short trainings on several layouts of the eight devices that a CPU passes for; prints JSON.

Begun by `runs/test_layouts.py`, in a process of its own: devices are counted when JAX starts.
"""

import json
import sys

import jax
import numpy as np

from thinned.core.config import AugmentConfig, Config, DataConfig, DropoutConfig, MlpConfig
from thinned.core.config import OptimConfig as Optim
from thinned.core.rng import fixed_settings
from thinned.core.types import Dataset, Split
from thinned.data.facts import Facts
from thinned.engine.build import Built
from thinned.engine.checkpoint import digest
from thinned.engine.evaluation import evaluate
from thinned.engine.feed import feed_of, placed
from thinned.engine.layout import ONE_DEVICE, Exact, Fast
from thinned.engine.loop import arrays_of
from thinned.models.apply import predict_logits
from thinned.trust.sampling import sample_predictions

SMALL = {"model": "mlp", "mlp": MlpConfig(hidden=(16,)), "data": DataConfig(normalise="no")}
STREAMED = DataConfig(normalise="no", in_memory="no", memory_mb=1, balance="weights")
CASES = {
    "element": (SMALL, [8]),
    "element, two": (SMALL, [2]),
    # Those of the two below, in one: each number of devices is a program of its own.
    "alpha, streamed, adamw, clipped": (
        {
            **SMALL,
            "dropout": DropoutConfig("alpha"),
            "data": STREAMED,
            "optim": Optim("adamw", clip=1.0, l2=1e-3),
        },
        [3],
    ),
    "alpha, streamed": ({**SMALL, "dropout": DropoutConfig("alpha"), "data": STREAMED}, [3]),
    "adamw, clipped": ({**SMALL, "optim": Optim("adamw", clip=1.0, l2=1e-3)}, [4]),
    "concrete": ({**SMALL, "dropout": DropoutConfig("concrete")}, [2]),
    "connect, r_drop": (
        {**SMALL, "dropout": DropoutConfig("connect"), "optim": Optim(r_drop=1.0, max_norm=2.0)},
        [2],
    ),
    "gaussian, mixup": (
        {**SMALL, "dropout": DropoutConfig("gaussian"), "augment": AugmentConfig(mixup=0.4)},
        [5],
    ),
    "channel, threefry": (
        {"model": "lenet", "dropout": DropoutConfig("channel", bits="threefry")},
        [3],
    ),
    "path, ema, shifts": (
        {
            "model": "resnet",
            "dropout": DropoutConfig("path"),
            "augment": AugmentConfig("digits"),
            "optim": Optim("sgd", ema=0.9, label_smoothing=0.1),
        },
        [2],
    ),
}
"""What a config has that is not usual, and on how many devices it is compared with one."""

STEPS = 4


def split(count: int, seed: int) -> Split:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, 12, 12, 1)).astype(np.uint8)
    return Split(images, random.integers(0, 3, count).astype(np.int32))


DATA = Dataset("noise", split(80, 0), split(250, 1), ("a", "b", "c"), plain=True)


def trained(built: Built, layout):
    """The state after a few steps, its evaluation, and the loss of each step."""
    feed = feed_of(built.plan, DATA.train, layout=layout)
    state, losses, done = layout.placed(built.initial_state()), [], 0
    while done < STEPS:
        data, chunk, count = feed.fetch(done, STEPS - done)
        state, sums = layout.steps(state, data, chunk, count, built.augment)
        losses += np.asarray(sums.loss)[:count].tolist()
        done += count
    if state.average_state is not None:
        data, chunk, count = feed.fetch(0, STEPS)
        found = layout.collect(state, data, chunk, 0, count, built.augment)
        state = state.replace(average_state=found)
    whole = layout.whole(state)
    test = placed(built.config, DATA.test, layout)
    return whole, layout.evaluate(whole.apply_fn, whole.variables, test), losses


def told(built: Built, layout) -> list[str]:
    state, found, losses = trained(built, layout)
    return [digest(arrays_of(state)), digest(found.predicted), repr(found.totals), repr(losses)]


@fixed_settings()
def main() -> None:
    devices = jax.devices()
    result = {}
    for name in [name for name in CASES if name in sys.argv[1:]]:
        values, counts = CASES[name]
        built = Built.of(
            Config(batch_size=16, **values), Facts.of(DATA, Config()), DATA.train.labels
        )
        result[name] = [told(built, Exact(devices[:count])) for count in (1, *counts)]
    if "predictions" in sys.argv[1:]:
        result |= predicted(devices)
    json.dump(result, sys.stdout)


def refuse_whole(devices) -> None:
    """Large parameters, and what Adam keeps of them, are cut up, stay so, and train the same."""
    wide = {**SMALL, "mlp": MlpConfig(hidden=(512,))}
    built = Built.of(Config(batch_size=16, **wide), Facts.of(DATA, Config()))
    _, _, losses = trained(built, ONE_DEVICE)
    layout = Fast(devices[:4], shard=True)
    feed = feed_of(built.plan, DATA.train, layout=layout)
    state = layout.placed(built.initial_state())
    for step, loss in enumerate(losses):
        cut = [leaf for leaf in jax.tree.leaves(state) if not leaf.is_fully_replicated]
        # The kernel and its two moments; the other parameters are small.
        assert [leaf.addressable_shards[0].data.shape for leaf in cut] == [(144, 128)] * 3
        state, sums = layout.steps(state, *feed.fetch(step, 1), built.augment)
        np.testing.assert_allclose(np.asarray(sums.loss)[0], loss, rtol=1e-4)
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(layout.whole(state)))


def predicted(devices) -> dict[str, list[list[str]]]:
    result = {}
    built = Built.of(Config(batch_size=16, **SMALL), Facts.of(DATA, Config()))
    state, one, losses = trained(built, ONE_DEVICE)
    _, _, others = trained(built, Fast(devices[:4]))
    np.testing.assert_allclose(others, losses, rtol=1e-4)
    refuse_whole(devices)
    variables = jax.device_get(state.variables)
    images, key = DATA.test.images, jax.random.key(0)
    again = evaluate(state.apply_fn, variables, DATA.test)
    result["evaluation"] = [[repr(each.totals), digest(each.predicted)] for each in (one, again)]
    shared = [
        predict_logits(state.apply_fn, variables, images),
        *sample_predictions(state.apply_fn, variables, images, key, 5)[:4],
    ]
    jax.local_devices = lambda: devices[:1]
    alone = [
        predict_logits(state.apply_fn, variables, images),
        *sample_predictions(state.apply_fn, variables, images, key, 5)[:4],
    ]
    result["predictions"] = [[digest(each) for each in found] for found in (shared, alone)]
    return result


if __name__ == "__main__":
    main()
