"""One check of options, whoever gives them: types, choices, ranges, and what has no effect."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from thinned.core.config import (
    RECIPES,
    Config,
    DropoutConfig,
    Followed,
    OptimConfig,
    Option,
    coerce,
    flag,
    hints_of,
    options,
    recipe,
)
from thinned.core.errors import SHOWN, RequestError, told

Section = TypeVar("Section")
"""`Config`, or one of its sections."""


def validate(config: Section, prefix: str = "") -> Section:
    """The config in plain Python values, once types, choices and ranges were checked.

    Flags, files and programs all pass through here before anything is written: a NumPy number
    becomes Python's, a list a tuple.

    Args:
        config: a `Config`, or a section of one.
        prefix: of the section's flags, e.g. ``data.``.

    Raises:
        RequestError: the first option that is wrong, named as its flag; options that exclude one
            another; or an unknown recipe.
    """
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise RequestError(f"{told(config)} is no thinned.Config")
    values: dict[str, Any] = {}
    for name, hint in hints_of(type(config)).items():
        values[name] = _checked(hint, getattr(config, name), f"{prefix}{name}")
    checked = dataclasses.replace(config, **values)
    if isinstance(checked, Config):
        recipe(checked.recipe)
        _refuse_contradictions(checked.dropout)
        _refuse_unused(checked.optim)
    return checked


def _checked(hint: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, typing.cast(Any, hint)):
            kind = typing.cast(Any, hint).__name__
            raise RequestError(f"{flag(name)} is {told(value)}: expected a {kind}")
        return validate(value, f"{name}.")
    value = coerce(hint, value, flag(name))
    if isinstance(value, Mapping):
        named = list(typing.cast(Mapping[str, Any], value).items())
    else:
        named = [("", v) for v in (value if isinstance(value, tuple) else (value,))]
    option = typing.get_args(hint)[1]
    for key, number in named:
        if isinstance(number, int | float) and option.range and not option.admits(number):
            shown = f"{flag(name)} {key[:SHOWN]}".rstrip()
            raise RequestError(f"{shown} is {told(number)}: must be {_sentence(option)}")
    return value


def _refuse_unfollowed(config: Config) -> None:
    if RECIPES[config.recipe] and not isinstance(config.recipe, Followed):
        raise RequestError(
            f"--recipe {config.recipe} is named, and none of its values filled in: from Python, "
            f"begin with thinned.recipe({config.recipe!r}) and lay your own over it"
        )


_SGD = ("optim.name", ("sgd",))


_RAMPS = ("dropout.schedule", ("linear", "cosine"))


_USED_WITH: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "optim.momentum": _SGD,
    "optim.final": ("optim.schedule", ("linear", "cosine", "exponential")),
    "dropout.block_size": ("dropout.kind", ("block",)),
    "dropout.schedule_from": _RAMPS,
    "dropout.schedule_to": _RAMPS,
    "mlp.pieces": ("mlp.units", ("maxout",)),
    "patience": ("keep_best", ("accuracy", "nll")),
    "shard_parameters": ("parallel", ("fast",)),
}
"""Options that change nothing unless another one has one of these values."""


def idle(config: Config) -> dict[str, str]:
    """The options that are set and change nothing: dotted name -> what would make them count."""
    values = {name: value for name, _, value in options(config)}
    usual = usual_values(_USED_WITH)
    return {
        name: f"{flag(other)} {' or '.join(wanted)}"
        for name, (other, wanted) in _USED_WITH.items()
        if values[name] != usual[name] and values[other] not in wanted
    }


def usual_values(names: Iterable[str]) -> dict[str, Any]:
    """The defaults of options, by their dotted names."""
    usual = {name: value for name, _, value in options(Config())}
    return {name: usual[name] for name in names}


def refuse_idle(config: Config) -> None:
    """Refuse a config for a new run that says what the run would not do.

    Not part of `validate`: a run of before that has such an option can still be opened.

    Raises:
        RequestError: an option that would change nothing, with the one that it goes with; or a
            recipe that is only named.
    """
    _refuse_unfollowed(config)
    for name, needed in idle(config).items():
        raise RequestError(f"{flag(name)} changes nothing here: it goes with {needed}")


def _refuse_contradictions(dropout: DropoutConfig) -> None:
    if (dropout.schedule == "constant") != (dropout.schedule_epochs is None):
        verb = "needs" if dropout.schedule_epochs is None else "has no"
        raise RequestError(
            f"--dropout.schedule {dropout.schedule} {verb} --dropout.schedule-epochs"
        )
    if dropout.kind != "concrete":
        return
    if dropout.rate in (0.0, 1.0):
        raise RequestError("--dropout.rate must lie between 0 and 1 where kind concrete starts")
    if dropout.schedule != "constant" or dropout.sites or dropout.depth != "uniform":
        raise RequestError(
            "--dropout.kind concrete learns its rates: "
            "it takes no --dropout.schedule, --dropout.sites or --dropout.depth"
        )


def _refuse_unused(optim: OptimConfig) -> None:
    if optim.name != "sgd" and (optim.nesterov or optim.momentum_start is not None):
        raise RequestError(f"--optim.name {optim.name} has no momentum to set: take sgd")
    if (optim.momentum_start is None) != (optim.momentum_epochs is None):
        raise RequestError("--optim.momentum-start and --optim.momentum-epochs go together")
    if optim.name == "adam" and optim.weight_decay is not None:
        raise RequestError("--optim.weight-decay goes with adamw or sgd, not with adam")
    if optim.schedule == "exponential" and optim.final == 0:
        raise RequestError("--optim.schedule exponential needs an --optim.final above 0")
    if optim.schedule == "onecycle" and optim.warmup_epochs:
        raise RequestError("--optim.schedule onecycle has a warm-up of its own")


def _sentence(option: Option) -> str:
    return f"a number from {option.range}" if option.high is not None else option.range
