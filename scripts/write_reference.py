"""Write docs/reference/commands.md: every command and every flag, from the program itself."""

from __future__ import annotations

import dataclasses
import sys
import typing
from pathlib import Path

from thinned.cli import COMMANDS
from thinned.config import Config, Option, flag, options

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "commands.md"


def described(hint: typing.Any) -> str:
    notes = [part for part in typing.get_args(hint)[1:] if isinstance(part, Option)]
    return notes[0].documentation if notes else ""


def shown(value: typing.Any) -> str:
    if value is None or value is dataclasses.MISSING or value == {} or value == ():
        return "-"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def row(name: str, text: str, default: str) -> str:
    return f"| `{name}` | {text.replace('|', chr(92) + '|')} | {default} |"


def table(config: typing.Any, prefix: str = "") -> list[str]:
    head = ["| flag | what | default |", "|---|---|---|"]
    return head + [
        row(flag(name), option.documentation, shown(value))
        for name, option, value in options(config, prefix)
    ]


def command(name: str, kind: type, level: str = "##") -> list[str]:
    lines = [f"{level} thinned {name}", "", (kind.__doc__ or "").strip(), ""]
    hints = typing.get_type_hints(kind, include_extras=True)
    own = ["| argument | what | default |", "|---|---|---|"]
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
        own.append(row(shown_name, described(hints[field.name]), shown(field.default)))
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
