"""Files of options: YAML as version 1.2 has it, and JSON."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from thinned.core.errors import RequestError, printable_path, told

LONGEST = 4096
"""Characters of a name or digits of a number at most."""

_MOST_BYTES = 256_000


def read_mapping(path: Path) -> Mapping[str, Any]:
    """The options that a file holds, in plain Python values.

    Raises:
        RequestError: it cannot be read, is too large, or holds no mapping; says which line.
    """
    where = printable_path(path)
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"cannot read config {where}: {reason}") from error
    if len(content) > _MOST_BYTES:
        raise RequestError(f"{where} has more than {_MOST_BYTES // 1000} kB: that is no config")
    try:
        values = _parsed(content.decode())
    except RecursionError as error:
        raise RequestError(f"{where} is no config: it is nested too deeply") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"{where} is neither YAML nor JSON: {_first_line(error)}") from error
    except ValueError as error:
        raise RequestError(f"{where}: {error}") from error
    if not isinstance(values, dict):
        raise RequestError(f"{where} holds no options: expected lines like 'epochs: 3'")
    return typing.cast(dict[str, Any], values)


def _parsed(text: str) -> Any:
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text, object_pairs_hook=_once)
        except ValueError:
            # YAML has braces, too; what is no good either way is told with its line.
            pass
    return _plain(yaml.compose(text, _Nodes))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of JSON with these names, each of them given once."""
    seen: dict[str, Any] = {}
    for name, value in pairs:
        if name in seen:
            raise ValueError(f"{name} is given twice")
        seen[name] = value
    return seen


class _Nodes(yaml.SafeLoader):
    """Reads YAML as nodes, without aliases: a few lines of them can stand for any amount."""

    # What a plain word means is said by `_scalar`, not by the tables of YAML 1.1.
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (an attribute of PyYAML's)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError(
                f"{_line(self.peek_event())} has an alias: write out what it stands for"
            )
        return super().compose_node(parent, index)


def _plain(node: Any) -> Any:
    """A node as dicts, lists and scalars; every key is a string, given once."""
    if node is None:
        return None
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    if isinstance(node, yaml.ScalarNode):
        if node.tag != "tag:yaml.org,2002:str":
            raise ValueError(f"{_line(node)} has a tag, {told(node.tag)}")
        return node.value if node.style else _scalar(node.value, node)
    values: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError(f"{_line(key)} has a key that is no name")
        if key.value in values:
            raise ValueError(f"{_line(key)} gives {told(key.value)} a second time")
        values[key.value] = _plain(value)
    return values


_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


_NUMBERS: Mapping[str, Callable[[str], Any]] = {
    r"[-+]?[0-9]+": int,
    r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?": float,
    r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)": lambda text: float(text.replace(".", "")),
}


def _scalar(text: str, node: Any) -> Any:
    """What a word without quotes means in YAML 1.2 (its core schema, chapter 10.3.2).

    So ``no`` and ``on`` are words, as the choices that they name; 1e-3 is a number.
    """
    if text in _WORDS:
        return _WORDS[text]
    for pattern, number in _NUMBERS.items():
        if re.fullmatch(pattern, text):
            if len(text) > LONGEST:
                raise ValueError(f"{_line(node)} has a number of thousands of digits")
            return number(text)
    return text


def _line(place: Any) -> str:
    return f"line {place.start_mark.line + 1}"


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
