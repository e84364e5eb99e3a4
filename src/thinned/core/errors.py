"""The errors that users see: one line that says what, where and what to do."""

import difflib
import importlib.util
import reprlib
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# They would let a name turn the rest of the line around.
_DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def printable(text: object) -> str:
    """A name or a message as one line of valid text that moves no cursor.

    Line breaks, other control characters and bytes that are no UTF-8 are written as in Python.
    """
    return "".join(
        _escaped(char)
        if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or char in _DIRECTIONS
        else char
        for char in str(text)
    )


def _escaped(char: str) -> str:
    code = ord(char)
    # How Python holds a byte of a file's name that is no UTF-8.
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()


class ThinnedError(Exception):
    """Something failed while a correct request was carried out.

    The command line prints the message without a traceback and exits with `exit_code`.
    """

    exit_code = 1


class RequestError(ThinnedError):
    """The request itself was wrong: an option, a path or a file that cannot be used."""

    exit_code = 2


def need(module: str, wanted: str, extra: str) -> None:
    """Say before the work that a package which it needs is not installed.

    Args:
        module: the package, as it is imported.
        wanted: what needs it, as the start of a sentence.
        extra: of ours, that brings it.

    Raises:
        RequestError: it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise RequestError(
            f"{wanted} needs {module}: install it with pip install 'thinned[{extra}]'"
        )


SHOWN = 60


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = SHOWN


def told(value: Any) -> str:
    """A value as in Python, cut where it is long."""
    try:
        return _SHORT.repr(value)[: 2 * SHOWN]
    except ValueError:
        # Python writes no integer of more than 4,300 digits.
        return "a number of thousands of digits"


def printable_path(path: Path) -> str:
    """A path for a message, its end where it is very long."""
    text = str(path)
    return text if len(text) <= 4 * SHOWN else f"...{text[-SHOWN:]}"


def nearest(word: str, known: Mapping[str, Any]) -> str:
    """The end of an error about an unknown word: the closest known one, or all."""
    close = difflib.get_close_matches(word[:SHOWN], known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
