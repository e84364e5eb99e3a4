"""Compare the networks with PyTorch's on the same random weights; write what the tests expect.

For every network that has weights of others: timm's module and ours, with weights drawn from the
tensors' names, on two images. For wide residual networks, which timm has not, the module below.

    python -m pip install -e '.[bench]'
    PYTHONPATH=tests python scripts/weights_parity.py [--write]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np
import timm
import torch
import torchvision
from random_weights import (
    CLASSES,
    KINDS,
    SMALL,
    images_for,
    made,
    random_tensor,
    random_weights,
    side_of,
)
from torch import nn

from thinned.models.catalog import STAGED
from thinned.models.weights.load import OWN, fitted
from thinned.models.weights.tables import tables

EXPECTED = Path(__file__).parent.parent / "tests" / "models" / "parity"
TOLERANCE = 1e-4
TIMM = {
    "mobilenet-v2": "mobilenetv2_100",
    **{f"efficientnet-lite{i}": f"tf_efficientnet_lite{i}" for i in "012"},
    **{f"resnet-{depth}": f"resnet{depth}" for depth in (18, 34, 50)},
    **{f"vit-{size}-16": f"vit_{size}_patch16_224" for size in ("tiny", "small", "base")},
}


class Wide(nn.Module):
    """Zagoruyko and Komodakis (2016), with the names of parts that ours has."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.tensors = {name: torch.from_numpy(array) for name, array in tensors.items()}

    def norm(self, x, place):
        mean, var = (self.tensors[f"batch_stats/{place}/{part}"] for part in ("mean", "var"))
        scale, bias = (self.tensors[f"params/{place}/{part}"] for part in ("scale", "bias"))
        return torch.relu(nn.functional.batch_norm(x, mean, var, scale, bias))

    def conv(self, x, place, stride=1):
        kernel = self.tensors[f"params/{place}/kernel"].permute(3, 2, 0, 1)
        return nn.functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    def forward(self, x):
        x = self.conv(x, "stem/conv")
        for index in range(6):
            block = f"blocks_{index}"
            stride = 2 if index in (2, 4) else 1
            first = self.norm(x, f"{block}/norm1")
            if f"params/{block}/shortcut/kernel" in self.tensors:
                x = self.conv(first, f"{block}/shortcut", stride)
            inner = self.norm(self.conv(first, f"{block}/conv1", stride), f"{block}/norm2")
            x = x + self.conv(inner, f"{block}/conv2")
        x = self.norm(x, "neck/norm").mean((2, 3))
        return x @ self.tensors["params/head/kernel"] + self.tensors["params/head/bias"]


def theirs(name: str, writer: str, tensors: dict[str, np.ndarray]) -> nn.Module:
    if name not in TIMM:
        return Wide(tensors)
    if writer == "torchvision":
        module = torchvision.models.get_model(name.replace("-", "_"), num_classes=CLASSES)
    else:
        options = {"img_size": side_of(name)} if name.startswith("vit") else {}
        module = timm.create_model(TIMM[name], num_classes=CLASSES, **options)
    given = {key: torch.from_numpy(array) for key, array in tensors.items()}
    missing, unexpected = module.load_state_dict(given, strict=False)
    assert all(key.endswith("num_batches_tracked") for key in missing), missing
    assert not unexpected, unexpected
    return module.eval()


def compare(name: str, writer: str) -> list[list[float]]:
    """Logits by PyTorch, compared to ours."""
    model, images, side = made(name), images_for(name), side_of(name)
    weights = random_weights(model, name, writer)
    module = theirs(name, writer, dict(weights.tensors))
    with torch.no_grad():
        expected = module(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    variables = fitted(weights, name, model, (side, side, 3)).variables
    found = np.asarray(jax.jit(model.apply)(variables, images))
    error = np.abs(found - expected).max() / np.abs(expected).max()
    print(f"{name:<20}{writer:<21}{side:>3} pixels  differs by {error:.1e} of the largest logit")
    assert error < TOLERANCE, name
    return expected.astype(float).round(7).tolist()


def write(logits: dict[str, list[list[float]]]) -> None:
    """What the tests expect, and a small file in each of PyTorch's formats for them to read."""
    EXPECTED.mkdir(exist_ok=True)
    (EXPECTED / "logits.json").write_text(json.dumps(logits, indent=1) + "\n")
    state = {
        f"{kind}.weight": torch.from_numpy(random_tensor(kind, (3, 4))).to(getattr(torch, kind))
        for kind in KINDS
    }
    state["turned"] = state["float32.weight"].T[1:]
    state["parameter"] = nn.Parameter(state["float32.weight"])
    state["count"] = torch.tensor(3)
    for name, zipped in (("legacy", False), ("zip", True)):
        file = EXPECTED / f"{name}.pth"
        torch.save({"state_dict": state}, file, _use_new_zipfile_serialization=zipped)


def main() -> None:
    torch.set_num_threads(2)
    writers = {name: tuple(tables(made(name))) or (OWN,) for name in (*STAGED, "wide-resnet-16-4")}
    logits = {
        # Names of Melas-Kyriazi's are read from the package itself in the tests.
        name: [compare(name, each) for each in every if each != "Melas-Kyriazi's"]
        for name, every in writers.items()
    }
    if "--write" in sys.argv:
        write({name: logits[name][0] for name in SMALL})
    print(f"torch {torch.__version__}, timm {timm.__version__}, jax {jax.__version__}")


if __name__ == "__main__":
    main()
