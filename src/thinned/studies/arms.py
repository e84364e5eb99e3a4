"""The arms of a study: which options vary, and which values each arm gives them."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from thinned.core.config import Config, flag, options, with_values
from thinned.core.errors import RequestError, nearest
from thinned.core.validation import idle, refuse_idle, usual_values, validate

_MOST = 100_000
_LONGEST = 120
_FIXED = {
    "dropout.sites": "name a site, as in dropout.sites.input=0,0.2",
    "seed": "every arm is run with every seed of --seeds",
    "recipe": "it fills in options when a command is read: vary those options themselves",
    "test": "test images are read once, at the end of every run",
    "log": "it changes what is recorded, not what is learned",
    "checkpoint_every_s": "it changes what is saved, not what is learned",
}


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: for people, e.g. ``dropout.rate=0.5``.
        changes: dotted option -> value, laid over the study's config.
    """

    name: str
    changes: Mapping[str, Any]

    @property
    def folder(self) -> str:
        """Its name, as that of a folder; with a hash where that would cut or change too much."""
        plain = re.sub(r"[^\w.=,+-]+", "-", self.name) or "-"
        if len(plain) <= _LONGEST and re.fullmatch(r"[\w.=,+() -]*", self.name, re.ASCII):
            return plain
        digest = hashlib.sha256(self.name.encode()).hexdigest()[:8]
        return f"{re.sub(r'[^A-Za-z0-9_.=,+-]+', '-', plain)[:_LONGEST]}-{digest}"

    def config(self, base: Config, seed: int) -> Config:
        """The config of this arm's run with a seed; test images are read at its end only.

        Raises:
            RequestError: an option or a value that does not exist, or does not fit the others.
        """
        values = _nested({**self.changes, "seed": seed, "test": "end"})
        # Rates of single sites are added to the base's, not put in their stead.
        sites = values.get("dropout", {}).get("sites")
        if sites is not None:
            values["dropout"]["sites"] = {**base.dropout.sites, **sites}
        config = validate(with_values(base, values, f"arm {self.name}"))
        # What only other arms can use is none of this one's; what it sets itself has to count.
        unused = [name for name in idle(config) if name not in self.changes]
        config = with_values(config, _nested(usual_values(unused)), f"arm {self.name}")
        refuse_idle(config)
        return config


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in values.items():
        place = nested
        *path, last = name.split(".")
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return nested


def varied(words: Sequence[str], base: Config) -> dict[str, list[Any]]:
    """What ``--vary`` says, e.g. ``dropout.rate=0:0.9:0.1`` or ``dropout.kind=element,gaussian``.

    Args:
        words: OPTION=VALUES each; VALUES is a list by commas, or START:STOP:STEP, both ends
            included. ``none`` leaves an option unset; a tuple's items are joined by ``x``.
        base: the config that is varied.

    Returns:
        Dotted option -> its values.

    Raises:
        RequestError: an option that does not exist, no values, values of another type, one twice.

    >>> varied(["dropout.rate=0:0.4:0.2", "dropout.kind=element,path"], Config())
    {'dropout.rate': [0.0, 0.2, 0.4], 'dropout.kind': ['element', 'path']}
    """
    known = {name: value for name, _, value in options(base)}
    hints = _hints(type(base))
    choices: dict[str, list[Any]] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        site = name.removeprefix("dropout.sites.") if name.startswith("dropout.sites.") else ""
        if not site and name not in known:
            raise RequestError(f"--vary {name}: there is no such option{nearest(name, known)}")
        if name in _FIXED:
            raise RequestError(f"--vary {name}: {_FIXED[name]}")
        if not equals or not text:
            raise RequestError(f"--vary {word}: give values, as in {name}=A,B or {name}=0:1:0.1")
        if name in choices:
            raise RequestError(f"--vary {name} is given twice")
        hint: Any = float if site else hints[name]
        values = list(_values(name, text, hint))
        if len({json.dumps(value) for value in values}) < len(values):
            raise RequestError(f"--vary {name} names a value twice")
        choices[name] = values
    return choices


def grid(varied: Mapping[str, Sequence[Any]]) -> list[Arm]:
    """An arm for every combination of values; one named ``all`` where nothing varies."""
    names = list(varied)
    if math.prod(len(values) for values in varied.values()) > _MOST:
        raise RequestError(f"--vary makes more than {_MOST:,} arms: give fewer values")
    return [
        _arm(dict(zip(names, values, strict=True)))
        for values in itertools.product(*varied.values())
    ]


def sample(arms: Sequence[Arm], count: int, seed: int, kept: str | None = None) -> list[Arm]:
    """So many of the arms, drawn without repetition, in their order.

    Args:
        arms: from which.
        count: how many.
        seed: of the draw.
        kept: name of the arm that is always among them; the first where there is none of it.
    """
    if count >= len(arms):
        return list(arms)
    # Imported here, so that the help of the command line is quick.
    import numpy as np

    base = next((index for index, arm in enumerate(arms) if arm.name == kept), 0)
    rest = np.random.default_rng(seed).choice(len(arms) - 1, count - 1, replace=False)
    others = [index + (index >= base) for index in rest.tolist()]
    return [arms[index] for index in sorted([base, *others])]


def _arm(changes: dict[str, Any]) -> Arm:
    told = ",".join(f"{name}={_told(value)}" for name, value in changes.items())
    return Arm(told or "all", changes)


def _told(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return "x".join(map(str, typing.cast(Any, value)))
    # Short where that says it exactly: two values never share a name.
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)


def _values(name: str, text: str, hint: Any) -> Iterator[Any]:
    parts = text.split(":")
    if len(parts) == 3 and all(_number(part) is not None for part in parts):
        start, stop, step = map(float, parts)
        count = (stop - start) / step if step else -1.0
        if not 0 <= count <= _MOST:
            raise RequestError(f"--vary {name}={text}: START:STOP:STEP never reaches its end")
        # Rounded, so that 0:0.9:0.1 names 0.3 and not 0.30000000000000004.
        for index in range(math.floor(count + 1e-9) + 1):
            yield _typed(name, f"{round(start + index * step, 12):.12g}", hint)
        return
    for part in text.split(","):
        if not part:
            raise RequestError(f"--vary {name}={text}: a value is empty")
        yield _typed(name, part, hint)


def _typed(name: str, text: str, hint: Any) -> Any:
    allowed = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        choices = {str(choice): choice for choice in allowed}
        if text not in choices:
            raise RequestError(
                f"--vary {name}={text}: there is no such value{nearest(text, choices)}"
            )
        return choices[text]
    if type(None) in allowed:
        return None if text == "none" else _typed(name, text, allowed[0])
    if typing.get_origin(hint) is tuple:
        return [_typed(name, part, allowed[0]) for part in text.split("x")]
    if hint is bool and text in ("true", "false", "yes", "no"):
        return text in ("true", "yes")
    number = _number(text)
    if hint is str:
        return text
    if number is None or hint is bool or (hint is int and number != int(number)):
        raise RequestError(f"{flag(name)} is {text!r}: expected {getattr(hint, '__name__', hint)}")
    return int(number) if hint is int else number


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _hints(kind: Any, prefix: str = "") -> dict[str, Any]:
    """The type of every option by its dotted name."""
    hints: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(kind).items():
        if hasattr(hint, "__dataclass_fields__"):
            hints |= _hints(hint, f"{prefix}{name}.")
        else:
            hints[f"{prefix}{name}"] = hint
    return hints
