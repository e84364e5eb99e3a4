"""What of a pretrained network trains, and how far it goes before anything trains or drops."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn

from thinned.core.errors import RequestError
from thinned.models.staged import HEAD, Staged


def parts_of(model: nn.Module, images: jax.Array) -> tuple[str, ...]:
    """The parts of a network: its stages in order, or the outermost names of its parameters.

    Args:
        model: called as ``model(images, train=bool)``.
        images: an example, f32 [1, height, width, channel]; nothing is computed.
    """
    if isinstance(model, Staged):
        return model.stage_names
    variables: Any = jax.eval_shape(model.init, jax.random.key(0), images)
    return tuple(variables["params"])


def part_of(model: nn.Module, place: str) -> str:
    """The part that a site, or a path of a variable, belongs to."""
    return model.stage_of(place) if isinstance(model, Staged) else place.split("/")[0]


def trained(finetune: str, parts: Sequence[str], model: str) -> tuple[str, ...]:
    """The names of the parts that ``--finetune`` names.

    Args:
        finetune: head, all, or names separated by commas.
        parts: see `parts_of`.
        model: to name in errors.

    Raises:
        RequestError: a name that is none.
    """
    if finetune == "all":
        return tuple(parts)
    wanted = [word.strip() for word in finetune.split(",") if word.strip()]
    for word in wanted:
        if word not in parts:
            close = difflib.get_close_matches(word, parts, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(parts)}"
            head = f"nobody knows which part is its {HEAD}; " if word == HEAD else ""
            raise RequestError(f"--finetune {word[:60]}: {model} has no such part; {head}{hint}")
    if not wanted:
        raise RequestError(f"--finetune names nothing: give {HEAD}, all, or names of parts")
    return tuple(wanted)


def still(model: Staged, trains: Collection[str], rates: Mapping[str, float]) -> int:
    """How many stages come before the first that trains or drops.

    Args:
        model: the network.
        trains: names of the stages that train.
        rates: the largest rate of each site at any step.
    """
    drops = {model.stage_of(site) for site, rate in rates.items() if rate > 0}
    names = model.stage_names
    return next(at for at, name in enumerate(names) if name in trains or name in drops)
