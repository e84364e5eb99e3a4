"""An artifact's model card, in the form of the Hugging Face Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from thinned.deploy.onnx import ONNX

_PLAIN = """\
import json

import jax
import numpy as np
from jax import export
from safetensors.numpy import load_file

about = json.load(open("model.json"))
weights = load_file("weights.safetensors")
images = np.zeros((2, {shape}), np.uint8)  # yours: {form}

plain = export.deserialize(bytearray(open("plain.jax", "rb").read()))
logits = plain.call(weights, images)  # f32 [run, image, class], dropout off
probabilities = jax.nn.softmax(logits).mean(0)
"""
_SAMPLED = """
sampled = export.deserialize(bytearray(open("sampled.jax", "rb").read()))
keys = np.array(about["keys"], np.uint32)  # other keys draw other masks
logits = sampled.call(weights, images, keys)  # f32 [run, sample, image, class]
samples = jax.nn.softmax(logits)
mean, spread = samples.mean((0, 1)), samples.std((0, 1))
"""


_ONNX = """

The plain pass is an ONNX model, too. With `pip install numpy onnxruntime` alone, its logits are
`onnxruntime.InferenceSession("plain.onnx").run(None, {"images": images})[0]`."""


_LIMITS = """\
## Limits

All that is promised holds for images like those that it was trained on, and for no others.
A photo of anything else gets one of the classes; the spread over thinned networks, the set of
classes and the energy say how far to trust that. Nobody has looked at fairness, or at attacks."""


def card_of(about: Mapping[str, Any]) -> str:
    """The card, from what ``model.json`` holds."""
    runs = about["runs"]
    name = " + ".join(run["name"] for run in runs)
    # As a YAML reader takes it: tuples and NumPy's numbers are none of its words.
    front = json.loads(json.dumps(_front(about, name)))
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {name}",
        _intended(about),
        _scored(about),
        _promised(about),
        _limits(about),
        _use(about),
        _repeat(about),
    ]
    return "\n\n".join(parts) + "\n"


def _front(about: Mapping[str, Any], name: str) -> dict[str, Any]:
    data = about["data"]["name"]
    best = about["scores"][-1]
    metrics = [
        {"type": metric, "value": round(best[metric], 5)} for metric in ("accuracy", "nll", "ece")
    ]
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": data, "type": data, "split": "test"},
        "metrics": metrics,
    }
    front: dict[str, Any] = {
        "library_name": "jax",
        "pipeline_tag": "image-classification",
        "tags": ["dropout", "monte-carlo-dropout", "uncertainty", "stablehlo"],
        "datasets": [data],
        "model-index": [{"name": name, "results": [result]}],
    }
    licences = {origin["licence"] for origin in _origins(about)} - {"unknown"}
    return {"license": min(licences).lower(), **front} if licences else front


def _origins(about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of the weights that the runs began with."""
    return [run["pretrained"] for run in about["runs"] if run["pretrained"]]


def _intended(about: Mapping[str, Any]) -> str:
    data = about["data"]
    members = len(about["runs"])
    what = "An image classifier" if members == 1 else f"An ensemble of {members} image classifiers"
    classes = about["classes"]
    told = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
    return (
        f"{what}, trained with dropout on {data['train_images']:,} images of `{data['name']}` by "
        f"thinned {about['packages']['thinned']}. "
        f"{len(classes)} classes: {told}."
    )


def _scored(about: Mapping[str, Any]) -> str:
    rows = [
        "## Scores",
        "",
        f"On all {about['scores'][0]['images']:,} test images, which chose nothing.",
        "",
        "| way | accuracy (Wilson 95 %) | NLL, nats | Brier | ECE |",
        "|---|---|---|---|---|",
    ]
    for row in about["scores"]:
        way = f"{row['samples']} thinned networks" if row["samples"] else "dropout off"
        way += ", tempered" if row["calibrated"] else ""
        rows.append(
            f"| {way} | {row['accuracy']:.2%} ({row['accuracy_low']:.2%} to "
            f"{row['accuracy_high']:.2%}) | {row['nll']:.4f} | {row['brier']:.4f} | "
            f"{row['ece']:.4f} |"
        )
    return "\n".join(rows)


def _promised(about: Mapping[str, Any]) -> str:
    way = about["ways"][-1]
    selection, sets, known = (way[name] for name in ("selection", "sets", "known"))
    lines = ["## Promises", ""]
    if way["temperature"] is None:
        return "\n".join([*lines, "None: no validation images were held out."])
    lines.append(
        f"For {way['samples']} thinned networks at temperature {way['temperature']:.4f}; "
        "`model.json` has those of the other ways."
    )
    if sets:
        lines.append(
            f"- A set of classes holds the right one of {sets['coverage']:.4g} of new images, on "
            f"average (split conformal, {sets['images']:,} validation images)."
        )
    if selection:
        lines.append(
            f"- Of answers above a probability of {float(selection['threshold']):.4f}, at most "
            f"{selection['risk']:.4g} are wrong, with {selection['level']:.4g} confidence."
        )
    if known:
        lines.append(
            f"- Images above an {known['score']} of {float(known['threshold']):.4f} are probably "
            f"none of the classes; {known['marked']:,} of {known['images']:,} validation images "
            "are above, too."
        )
    return "\n".join(lines)


def _limits(about: Mapping[str, Any]) -> str:
    origins = [
        f"Began with {origin['origin']} (licence: {origin['licence']})."
        for origin in _origins(about)
    ]
    return "\n\n".join([_LIMITS, *dict.fromkeys(origins)])


def _use(about: Mapping[str, Any]) -> str:
    shape = ", ".join(map(str, about["image"]["shape"]))
    height, width, channels = about["image"]["shape"]
    colour = "grey" if channels == 1 else "RGB"
    done = "cropped to cover" if about["image"]["fit"] == "crop" else "padded to fit"
    form = f"{colour}, 0 to 255, {done} {height} x {width}"
    program = _PLAIN.format(shape=shape, form=form) + (_SAMPLED if about["samples"] else "")
    return (
        "## Use\n\n"
        "With `thinned`: `thinned predict FOLDER IMAGES` or `thinned serve FOLDER`. Without it, "
        "`pip install jax numpy flatbuffers safetensors`, and in this folder:\n\n"
        f"```python\n{program}```{_ONNX if ONNX in about['sha256'] else ''}"
    )


def _repeat(about: Mapping[str, Any]) -> str:
    configs = [json.dumps(run["config"], ensure_ascii=False) for run in about["runs"]]
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    blocks = "\n".join(f"```json\n{config}\n```" for config in configs)
    return (
        f"## Repeat\n\nSave each of these as `config.json` and run `thinned train -c config.json` "
        f"(data: SHA-256 {about['data']['sha256']}; {packages}):\n\n{blocks}"
    )
