"""A few hundred photos, learned from ImageNet weights by us and by PyTorch, one after the other.

    python benchmarks/photos.py PHOTOS WEIGHTS.safetensors [--seeds 3] [--parts head all]

PHOTOS is a folder with train/, validation/ and test/, a folder for each class in them; WEIGHTS
EfficientNet-Lite0's, in PyTorch's names. Needs torch and timm (the extra `bench`). Both sides get
the same decoded pixels (224 x 224, and 256 x 256 for `all`) and all cores. Nothing is read from our
cache of features: each seed computes its own, in a folder that is then thrown away.

  head   ours: `thinned train` as it is by default. PyTorch: features once, in batches of 32
         (eager, channels-last), then L-BFGS on a logistic regression, penalty as scikit-learn's
  all    ours: `thinned train --finetune all`. PyTorch: the same recipe (batch 16, AdamW 3e-4 after
         an epoch of warm-up, 6 epochs, random crop from 0.6 of the side and mirror images, labels
         smoothed by 0.1, frozen statistics, dropout 0.2, weights averaged with decay 0.98, from the
         fitted head)

Printed for each seed: accuracy on all test photos and wall time, compilation included. Time of
decoding is apart, and the same for both.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import math
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import load_file
from torch.nn import functional
from torchvision.transforms import v2

import thinned
from thinned.core.config import DataConfig, recipe
from thinned.core.types import Dataset
from thinned.data.sources.load import load_data
from thinned.models.efficientnet import EfficientNetLite
from thinned.models.weights.load import names_by, shapes_of
from thinned.models.weights.tables import tables

SIDES = {"head": 224, "all": 256}
RECIPES = {"head": "finetune-head", "all": "finetune-all"}


def config_of(part: str, arguments: argparse.Namespace, seed: int) -> thinned.Config:
    return dataclasses.replace(
        recipe(RECIPES[part]),
        data=DataConfig(path=arguments.photos, size=SIDES[part], channels=3),
        model="efficientnet-lite0",
        pretrained=str(Path(arguments.weights).resolve()),
        seed=seed,
        test="end",
    )


def ours(part: str, arguments: argparse.Namespace, seed: int, data: Dataset) -> float:
    with tempfile.TemporaryDirectory() as runs, contextlib.ExitStack() as stack:
        before = os.environ.get("XDG_CACHE_HOME")
        os.environ["XDG_CACHE_HOME"] = runs
        stack.callback(_restore, before)
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        run = thinned.train(config_of(part, arguments, seed), runs=runs, dataset=data)
        return next(r["accuracy"] for r in reversed(run.metrics) if r["split"] == "test")


def _restore(before: str | None) -> None:
    os.environ.pop("XDG_CACHE_HOME", None)
    if before is not None:
        os.environ["XDG_CACHE_HOME"] = before


class Theirs:
    """The same network in PyTorch."""

    def __init__(self, weights: str, data: Dataset) -> None:
        self.data, classes = data, len(data.classes)
        self.module = timm.create_model("tf_efficientnet_lite0", num_classes=1000, drop_rate=0.2)
        self.module.load_state_dict(_named(load_file(weights)), strict=False)
        self.module.reset_classifier(classes)
        self.module.to(memory_format=torch.channels_last)

    def images(self, split: Any, rows: Any) -> torch.Tensor:
        pixels = torch.from_numpy(np.asarray(split.images[rows])).permute(0, 3, 1, 2)
        return pixels.to(memory_format=torch.channels_last)

    def outputs(self, split: Any, forward: Any) -> torch.Tensor:
        self.module.eval()
        with torch.inference_mode():
            found = []
            for start in range(0, len(split), 32):
                rows = np.arange(start, min(start + 32, len(split)))
                found.append(forward((self.images(split, rows).float() - 127) / 128))
            return torch.cat(found)

    def features(self, split: Any) -> torch.Tensor:
        inner = self.module
        return self.outputs(
            split, lambda x: inner.forward_head(inner.forward_features(x), pre_logits=True)
        )

    def fit_head(self) -> None:
        features, labels = self.features(self.data.train).clone(), _labels(self.data.train)
        head = self.module.classifier
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        solver = torch.optim.LBFGS(
            head.parameters(), max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-4
        )

        def closure() -> torch.Tensor:
            solver.zero_grad()
            loss = functional.cross_entropy(head(features), labels)
            loss = loss + 0.5 * head.weight.square().sum() / len(labels)
            loss.backward()
            return loss

        solver.step(closure)

    def accuracy(self) -> float:
        logits = self.outputs(self.data.test, self.module)
        return float((logits.argmax(1) == _labels(self.data.test)).float().mean())

    def train_all(self, epochs: int = 6, batch: int = 16) -> None:
        train, labels = self.data.train, _labels(self.data.train)
        each = len(train) // batch
        solver = torch.optim.AdamW(self.module.parameters(), 3e-4, weight_decay=0.01, fused=True)
        course = torch.optim.lr_scheduler.LambdaLR(solver, lambda step: min(1.0, step / each))
        average, count = [leaf.detach().clone() for leaf in self.module.parameters()], 0
        # The area of the crop; ours draws its side, from 0.6.
        side = train.images.shape[1]
        crop = v2.RandomResizedCrop(side, (0.6**2, 1.0), (1.0, 1.0), antialias=False)
        vary = v2.Compose([crop, v2.RandomHorizontalFlip()])
        for _ in range(epochs):
            self.module.train()
            for part in self.module.modules():
                if isinstance(part, torch.nn.BatchNorm2d):
                    part.eval()
            order = torch.randperm(len(train)).numpy()
            for start in range(0, len(train) - batch + 1, batch):
                rows = order[start : start + batch]
                images = torch.stack([vary(image) for image in self.images(train, rows).float()])
                images = ((images - 127) / 128).to(memory_format=torch.channels_last)
                solver.zero_grad()
                logits = self.module(images)
                functional.cross_entropy(logits, labels[rows], label_smoothing=0.1).backward()
                solver.step()
                course.step()
                count += 1
                part = 1 - min(0.98, count / (count + 9))
                for mean, leaf in zip(average, self.module.parameters(), strict=True):
                    mean.lerp_(leaf.detach(), part)
        for mean, leaf in zip(average, self.module.parameters(), strict=True):
            leaf.data = mean


def _labels(split: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(split.labels)).long()


def _named(tensors: dict[str, Any]) -> dict[str, Any]:
    """The weights in timm's names."""
    model = EfficientNetLite(1000)
    shapes = shapes_of(model, (224, 224, 3))
    names = {writer: names_by(table, shapes) for writer, table in tables(model).items()}
    known = max(names.values(), key=lambda each: len(tensors.keys() & each.values()))
    return {names["timm"][path]: tensors[known[path]] for path in shapes}


def theirs(part: str, arguments: argparse.Namespace, seed: int, data: Dataset) -> float:
    torch.manual_seed(seed)
    network = Theirs(arguments.weights, data)
    network.fit_head()
    if part == "all":
        network.train_all()
    return network.accuracy()


def summary(values: list[float]) -> str:
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.2%}"
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return f"{mean:.2%} +- {half:.2%} (Student's t, {len(values)} seeds)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos")
    parser.add_argument("weights")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=sorted(RECIPES), default=["head", "all"])
    arguments = parser.parse_args()
    packages = ", ".join(f"{each} {version(each)}" for each in ("jax", "flax", "torch", "timm"))
    print(f"# {packages}; Python {platform.python_version()}; {os.cpu_count()} cores")
    for part in arguments.parts:
        started = time.perf_counter()
        data = load_data(config_of(part, arguments, 0))
        print(
            f"# {len(data.train)} training photos, {len(data.test)} test photos, {SIDES[part]} px"
        )
        taken = time.perf_counter() - started
        print(f"# decoded, or read from the cache, in {taken:.1f} s", flush=True)
        found: dict[str, list[float]] = {"ours": [], "torch": []}
        times: dict[str, list[float]] = {"ours": [], "torch": []}
        for seed in range(arguments.seeds):
            for name, side in (("ours", ours), ("torch", theirs)):
                started = time.perf_counter()
                found[name].append(side(part, arguments, seed, data))
                times[name].append(time.perf_counter() - started)
                told = f"{part} {name} seed {seed}: {found[name][-1]:.2%}, {times[name][-1]:.0f} s"
                print(told, flush=True)
        ratio = np.asarray(times["torch"]) / np.asarray(times["ours"])
        for name in found:
            print(f"{part} {name}: {summary(found[name])}")
        print(
            f"{part}: PyTorch's time over ours, median {np.median(ratio):.2f} {np.round(ratio, 2)}"
        )


if __name__ == "__main__":
    main()
