"""EfficientNet-Lite0 at 224 pixels: features per second, and full fine-tuning, beside PyTorch.

    make bench-backbone      (or: python benchmarks/backbone.py [--rounds 5] [--batch 16]
                              [--only features|training] [--without WORD])

Needs torch and timm (the extra `bench`). Both sides have the same random weights (those of timm's
module, fitted to ours) and must agree: features to 1e-4 of the largest, or nothing is timed. Every
round runs each contestant once, the order turned by one; printed are images a second and ratios
within a round, as median [quartiles] over rounds. Compilation is timed apart. All in f32, on all
cores that the process may use.

  features   what enters the head, statistics of normalisation as in prediction: ours on a whole
             batch, and in one call that goes through it in pieces of 2, which stay in the cache;
             plain: the same network on JAX's own convolutions; PyTorch eager, channels-last,
             compiled, compiled channels-last, and traced and frozen (normalisation folded)
  training   a step of AdamW on all weights, statistics frozen, cross-entropy of 20 classes: ours
             (gradients of the whole batch; and summed over pieces of 4 in one call); PyTorch eager,
             channels-last, compiled, compiled channels-last
"""

from __future__ import annotations

import argparse
import os
import platform
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import timm
import torch
from jax import lax
from torch.nn import functional

from thinned.dropout.sites import DropoutSpec
from thinned.models import convnorm
from thinned.models.efficientnet import EfficientNetLite
from thinned.models.weights.load import Weights, fitted

CLASSES, SIDE, PIECE, SMALL = 20, 224, 4, 2
Runner = Callable[[], Any]
Check = Callable[[dict[str, Runner]], None]


def their_module() -> Any:
    torch.manual_seed(0)
    return timm.create_model("tf_efficientnet_lite0", num_classes=CLASSES, drop_rate=0.0).eval()


def our_network(module: Any) -> tuple[Any, Any]:
    """Our network, and their weights as its variables."""
    tensors = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    model = EfficientNetLite(CLASSES, DropoutSpec(rate=0.0), frozen_statistics=True)
    weights = Weights(tensors, "timm", "timm", "", "")
    return model, fitted(weights, "efficientnet-lite0", model, (SIDE, SIDE, 3)).variables


def in_pieces(function: Callable[[Any], Any], size: int, images: jax.Array) -> jax.Array:
    pieces = images.reshape(-1, size, *images.shape[1:])
    return lax.map(function, pieces).reshape(len(images), -1)


def our_features(model: Any, variables: Any, images: jax.Array) -> dict[str, Runner]:
    def features(variables: Any, images: jax.Array) -> jax.Array:
        return model.apply(variables, images, stop=len(model.stage_names) - 1)

    def pieces(variables: Any, images: jax.Array) -> jax.Array:
        return in_pieces(partial(features, variables), SMALL, images)

    def plain(variables: Any, images: jax.Array) -> jax.Array:
        ours, convnorm.conv_general_dilated = convnorm.conv_general_dilated, lax_convolution
        try:
            return features(variables, images)
        finally:
            convnorm.conv_general_dilated = ours

    return {
        name: partial(lambda run: jax.block_until_ready(run(variables, images)), jax.jit(each))
        for name, each in {"ours": features, "ours, pieces of 2": pieces, "plain": plain}.items()
    }


def lax_convolution(*arguments: Any, **options: Any) -> jax.Array:
    return lax.conv_general_dilated(*arguments, **options)


def torch_modes(make: Callable[[], Any]) -> dict[str, tuple[Any, Any, Any]]:
    """By mode: a module of its own, what to call, the layout of the images."""
    found = {}
    for suffix, layout in (("", torch.contiguous_format), (" channels-last", torch.channels_last)):
        eager, compiled = (make().to(memory_format=layout) for _ in range(2))
        found[f"torch eager{suffix}"] = (eager, eager, layout)
        found[f"torch compile{suffix}"] = (compiled, torch.compile(compiled), layout)
    return found


class Features(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = their_module()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner.forward_head(self.inner.forward_features(x), pre_logits=True)


def torch_features(images: torch.Tensor) -> dict[str, Runner]:
    def run(forward: Any, given: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            return forward(given).numpy()

    runners = {
        name: partial(run, forward, images.to(memory_format=layout))
        for name, (_, forward, layout) in torch_modes(lambda: Features().eval()).items()
    }
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        frozen = torch.jit.optimize_for_inference(torch.jit.trace(Features().eval(), images))
    return {**runners, "torch frozen": partial(run, frozen, images)}


def our_training(model: Any, variables: Any, images: jax.Array, labels: Any) -> dict[str, Runner]:
    optimizer = optax.adamw(3e-4)

    def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = model.apply({**variables, "params": params}, images, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def summed(params: Any, images: jax.Array, labels: jax.Array) -> Any:
        pieces = jax.tree.map(
            lambda leaf: leaf.reshape(-1, PIECE, *leaf.shape[1:]), (images, labels)
        )

        def add(total: Any, piece: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, jax.grad(loss)(params, *piece)), None

        total, _ = lax.scan(add, jax.tree.map(jnp.zeros_like, params), pieces)
        return jax.tree.map(lambda leaf: leaf * (PIECE / len(labels)), total)

    def runner(gradient: Callable[..., Any]) -> Runner:
        state = [variables["params"], optimizer.init(variables["params"])]

        @jax.jit
        def step(params: Any, moments: Any, images: jax.Array, labels: jax.Array) -> Any:
            updates, moments = optimizer.update(gradient(params, images, labels), moments, params)
            return optax.apply_updates(params, updates), moments

        def run() -> None:
            state[:] = jax.block_until_ready(step(*state, images, labels))

        return run

    return {"ours": runner(jax.grad(loss)), f"ours, pieces of {PIECE}": runner(summed)}


def torch_training(images: torch.Tensor, labels: torch.Tensor) -> dict[str, Runner]:
    def runner(module: Any, forward: Any, given: torch.Tensor) -> Runner:
        optimizer = torch.optim.AdamW(module.parameters(), 3e-4, fused=True)

        def run() -> None:
            optimizer.zero_grad()
            functional.cross_entropy(forward(given), labels).backward()
            optimizer.step()

        return run

    return {
        name: runner(module, forward, images.to(memory_format=layout))
        for name, (module, forward, layout) in torch_modes(their_module).items()
    }


def first_runs(runners: dict[str, Runner]) -> dict[str, Runner]:
    """Those that run; each has compiled, and says how long that took."""
    found = {}
    for name, run in runners.items():
        started = time.perf_counter()
        try:
            run()
        except Exception as error:
            print(f"{name}: left out, {type(error).__name__}: {str(error)[:100]}")
            continue
        print(f"  first run of {name:28s} {time.perf_counter() - started:6.1f} s", flush=True)
        run()
        found[name] = run
    return found


def race(runners: dict[str, Runner], rounds: int, batch: int) -> dict[str, np.ndarray]:
    """Images per second [round] of each contestant."""
    names, speeds = list(runners), {name: [] for name in runners}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.perf_counter()
            runners[name]()
            runners[name]()
            speeds[name].append(2 * batch / (time.perf_counter() - started))
    return {name: np.asarray(values) for name, values in speeds.items()}


def spread(values: np.ndarray) -> str:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:7.2f} [{low:.2f}, {high:.2f}]"


def report(title: str, speeds: dict[str, np.ndarray]) -> None:
    peers = [name for name in speeds if name.startswith("torch")]
    best = max(peers, key=lambda name: float(np.median(speeds[name])))
    print(f"{title}: images a second; ratio to PyTorch's best mode ({best})")
    for name, values in speeds.items():
        print(f"  {name:28s} {spread(values)}   x {spread(values / speeds[best])}", flush=True)


def agree(features: dict[str, Runner]) -> None:
    """Refuse to time networks that do not compute the same."""
    expected = features["torch eager"]()
    for name, run in features.items():
        error = np.abs(np.asarray(run()) - expected).max() / np.abs(expected).max()
        assert error < 1e-4, f"{name} differs by {error:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--only", choices=["features", "training"])
    parser.add_argument("--without", help="leave out contestants with this in their names")
    arguments = parser.parse_args()
    packages = ", ".join(f"{each} {version(each)}" for each in ("jax", "flax", "torch", "timm"))
    cores = len(os.sched_getaffinity(0))
    print(f"# {packages}; Python {platform.python_version()}; {cores} cores")
    print(f"# {arguments.rounds} rounds of 2 runs of {arguments.batch} images")
    rng = np.random.default_rng(0)
    images = rng.normal(size=(arguments.batch, SIDE, SIDE, 3)).astype(np.float32)
    labels = rng.integers(CLASSES, size=arguments.batch)
    rows = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    model, variables = our_network(their_module())
    variables = jax.tree.map(jnp.asarray, variables)
    given = jnp.asarray(images)

    def measure(title: str, runners: dict[str, Runner], check: Check) -> None:
        wanted = {n: run for n, run in runners.items() if (arguments.without or "\n") not in n}
        ready = first_runs(wanted)
        check(ready)
        report(title, race(ready, arguments.rounds, arguments.batch))

    if arguments.only != "training":
        features = our_features(model, variables, given) | torch_features(rows)
        measure("features", features, agree)
    if arguments.only != "features":
        training = our_training(model, variables, given, jnp.asarray(labels, jnp.int32))
        training |= torch_training(rows, torch.from_numpy(labels))
        measure("training", training, lambda _: None)


if __name__ == "__main__":
    main()
