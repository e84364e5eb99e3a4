"""Write docs/reference/commands.md: every command and every flag, from the program itself."""

from __future__ import annotations

import dataclasses
import sys
import typing
from pathlib import Path

from thinned.cli.main import COMMANDS
from thinned.core.config import Config, Option, flag, options

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "commands.md"


def described(hint: typing.Any) -> str:
    notes = [part for part in typing.get_args(hint)[1:] if isinstance(part, Option)]
    return notes[0].documentation if notes else ""


def choices(hint: typing.Any) -> str:
    """The values of a choice, wherever in its type they stand."""
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(hint))
    if hint is bool:
        return "a switch"
    found = (choices(part) for part in typing.get_args(hint) if not isinstance(part, Option))
    return ", ".join(filter(None, found))


def shown(value: typing.Any) -> str:
    if value is dataclasses.MISSING:
        return "required"
    if value is None or value == {} or value == ():
        return "unset"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def row(name: str, text: str, values: str, default: str) -> str:
    return f"| `{name}` | {text.replace('|', chr(92) + '|')} | {values} | {default} |"


def table(config: typing.Any, prefix: str = "") -> list[str]:
    head = ["| flag | what [unit; range] | choices | default |", "|---|---|---|---|"]
    return head + [
        row(flag(name), option.documentation, choices(hint_of(type(config), name)), shown(value))
        for name, option, value in options(config, prefix)
    ]


def hint_of(kind: type, name: str) -> typing.Any:
    """The type of an option `section.field`."""
    first, _, rest = name.partition(".")
    hint = typing.get_type_hints(kind, include_extras=True)[first]
    return (
        hint_of(typing.get_args(hint)[0] if typing.get_args(hint) else hint, rest) if rest else hint
    )


def command(name: str, kind: type, level: str = "##") -> list[str]:
    lines = [f"{level} thinned {name}", "", (kind.__doc__ or "").strip(), ""]
    hints = typing.get_type_hints(kind, include_extras=True)
    own = ["| argument | what [unit; range] | choices | default |", "|---|---|---|---|"]
    for field in dataclasses.fields(kind):
        if field.name == "action":
            for action in typing.get_args(hints["action"]):
                inner = typing.get_args(action)
                lines += command(f"{name} {inner[1].name}", inner[0], "###")
            continue
        if field.name in ("config", "data"):
            given = "[training](#options-of-training)" if field.name == "config" else "`--data.*`"
            lines += [f"Takes the options of {given}.", ""]
            continue
        positional = "Positional" in str(hints[field.name])
        names = {"config_file": "--config, -c", "data_path": "--data.path"}
        shown_name = names.get(field.name) or (
            field.name.upper() if positional else flag(field.name)
        )
        hint = hints[field.name]
        own.append(row(shown_name, described(hint), choices(hint), shown(field.default)))
    return [*lines, *(own if len(own) > 2 else []), ""]


def page() -> str:
    lines = ["# Commands and options", ""]
    lines += ["Written by `python scripts/write_reference.py` from the program itself.", ""]
    for name, kind in COMMANDS.items():
        lines += command(name, kind)
    lines += ["## Options of training", ""]
    lines += ["Flags of the commands above, and keys of YAML and JSON files"]
    lines += ["(`data.path` is key `path` in section `data`).", "", *table(Config()), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    if "--check" in sys.argv:
        same = PAGE.exists() and PAGE.read_text(encoding="utf-8") == page()
        sys.exit(0 if same else f"{PAGE.name} is out of date: run python {sys.argv[0]}")
    PAGE.write_text(page(), encoding="utf-8")
