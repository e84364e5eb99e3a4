"""The command line: options into a config, errors into one line and an exit code."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import gc
import io
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from tyro.conf import subcommand

import thinned
from thinned.cli.data import Data, Show
from thinned.cli.deploying import Export, Serve
from thinned.cli.judging import Calibrate, Evaluate, Predict, Report
from thinned.cli.proving import Doctor, VerifyLayout, VerifyResume
from thinned.cli.studying import Reproduce, Study
from thinned.cli.training import FindLr, Models, Train
from thinned.core.config import Config, load, recipe
from thinned.core.errors import RequestError, ThinnedError, printable

COMMANDS: dict[str, type[Any]] = {
    "train": Train,
    "evaluate": Evaluate,
    "predict": Predict,
    "calibrate": Calibrate,
    "report": Report,
    "doctor": Doctor,
    "data": Data,
    "export": Export,
    "serve": Serve,
    "find-lr": FindLr,
    "models": Models,
    "study": Study,
    "reproduce": Reproduce,
    "verify-resume": VerifyResume,
    "verify-layout": VerifyLayout,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: words after ``thinned``; those of the process by default.

    Returns:
        The exit code: 0, 1 for a failure, 2 for a wrong request, 130 or 143 after a signal.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # jax 0.10.1 takes two tuning hints of a cached program for features that the machine lacks, and
    # says so in a thousand letters for each program: of XLA's own words only the fatal are let out.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Tracing makes very many objects that stay: visiting them as often as Python would takes some
    # hundredths of a short command.
    gc.set_threshold(50_000, 20, 20)
    if not _prepare_streams():
        return 1
    try:
        code = _attempt(arguments)
    except SystemExit as leaving:
        # After --help.
        code = int(leaving.code or 0)
    reason = _lost_output()
    if reason is not None and code == 0:
        code = _told_lost(reason)
    return code


def _attempt(arguments: list[str]) -> int:
    try:
        if arguments[:1] == ["--version"]:
            print(f"thinned {thinned.__version__}")
            return 0
        command = parse(arguments)
        command()
    except ThinnedError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        print(f"thinned: {_shortened(printable(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("thinned: stopped at once; what was saved before stays", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone: there is nobody left to tell.
        return 1
    except Exception as error:
        reason = _lost_output(error)
        if reason is not None:
            return _told_lost(reason)
        if "--debug" in arguments:
            raise
        reason = " ".join(str(error).split())[:300]
        print(
            f"thinned: unexpected {type(error).__name__}: {reason}; "
            "run again with --debug for the traceback",
            file=sys.stderr,
        )
        return 1
    return 0


def _shortened(line: str) -> str:
    """A message whose middle is left out where it repeats what somebody gave at great length."""
    return line if len(line) <= 2 * _LONGEST else f"{line[:_LONGEST]} ... {line[-_LONGEST:]}"


def _prepare_streams() -> bool:
    """Whether there is somewhere to write: a closed output is found before the work, not after."""
    # Python's name for a closed stream, though its types do not say so.
    outputs: tuple[Any, Any] = (sys.stdout, sys.stderr)
    if outputs[1] is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for as long as the process lives)
    if outputs[0] is None:
        return not _told_lost("it is closed")
    for stream in outputs:
        # A name that the terminal cannot show is written in another way, not an error.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    return True


_LONGEST = 500
_LOST = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EPIPE)


def _told_lost(reason: str) -> int:
    # Who closes a pipe early, as `head` does, knows.
    if reason != os.strerror(errno.EPIPE):
        print(f"thinned: cannot write to the output: {reason}", file=sys.stderr)
    return 1


def _lost_output(raised: Exception | None = None) -> str | None:
    """Why the output cannot be written, if so; what still waits for it is then let go.

    Args:
        raised: what may have come of it. Without a buffer nothing waits that could fail again; but
            files are named in their errors, or caught where they are written.
    """
    try:
        if isinstance(raised, OSError) and raised.filename is None and raised.errno in _LOST:
            raise raised
        sys.stdout.flush()
    except OSError as error:
        # Or Python would try again when it ends, and say so in many lines.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error.strerror or str(error)
    return None


def parse(arguments: list[str]) -> Any:
    """The command that `arguments` ask for, options filled from recipe, file, then flags.

    They are read twice, by the one parser that knows which word is whose value: first for recipe,
    file or run, then over the defaults that those give, unless these are the usual ones.

    Raises:
        RequestError: options that do not exist, or whose values cannot be.
        SystemExit: after ``--help`` was printed.
    """
    # `--data FOLDER` is what everyone types first.
    words = [re.sub(r"^--data(?==|$)", "--data.path", word) for word in arguments]
    if words:
        _refuse_unknown(words[0])
    asked = [word for word in words if word not in ("-h", "--help")]
    nameless = Config(recipe="")
    fresh = [kind(config=nameless) for kind in COMMANDS.values() if _takes_config(kind)]
    try:
        command = _read(asked, fresh)
        base = _base_config(command)
    except RequestError:
        if asked == words:
            raise
        return _read(words, [])
    # Without --help, which shows defaults: over the usual ones the words say the same.
    if asked == words and dataclasses.replace(base, recipe="") == nameless:
        return _following(command, base)
    if isinstance(command, Data):
        fresh = [Data(action=Show(config=base))] if _takes_config(command.action) else []
    else:
        fresh = [type(command)(config=base)] if _takes_config(command) else []
    return _following(_read(words, fresh), base) if fresh or asked != words else command


def _refuse_unknown(word: str) -> None:
    """Refuse a first word that is no command: the parser would speak of an unknown option."""
    if word in COMMANDS or word.startswith("-"):
        return
    close = difflib.get_close_matches(word, COMMANDS, n=1)
    meant = ["train --resume FOLDER"] if word == "resume" else close
    hint = f"did you mean thinned {meant[0]}?" if meant else "see thinned --help"
    raise RequestError(f"there is no command {word!r}; {hint}")


def _following(command: Any, base: Config) -> Any:
    """The command as read over `base`, whose recipe the parser takes for any other word."""
    if isinstance(command, Data):
        return dataclasses.replace(command, action=_following(command.action, base))
    if not _takes_config(command):
        return command
    config = dataclasses.replace(command.config, recipe=base.recipe)
    return dataclasses.replace(command, config=config)


def _takes_config(command: Any) -> bool:
    return "config" in command.__dataclass_fields__


def _read(words: list[str], defaults: list[Any]) -> Any:
    """The command that the words ask for, over the defaults of commands."""
    of_kind = {type(default): default for default in defaults}
    commands = tuple(
        Annotated[
            command,
            subcommand(name, default=of_kind[command]) if command in of_kind else subcommand(name),
        ]
        for name, command in COMMANDS.items()
    )
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(
                tyro.conf.OmitSubcommandPrefixes[_union(commands)],
                prog="thinned",
                description="Image classifiers in which dropout is right, cheap and measured. "
                "Its version: thinned --version.",
                args=words,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as leaving:
        if not leaving.code:
            raise
        raise RequestError(_one_line(box.getvalue())) from leaving


def _union(types: tuple[Any, ...]) -> Any:
    union: Any = types[0]
    for kind in types[1:]:
        union = union | kind
    return union


def _base_config(command: Any) -> Config:
    """The defaults below the flags of a command: a run's own config, or a file over a recipe."""
    own: Any = command.action if isinstance(command, Data) else command
    named = own.config.recipe if _takes_config(own) else ""
    file = getattr(own, "config_file", None)
    if isinstance(own, Train) and own.resume is not None:
        moved = None if own.runs == Train().runs else own.runs
        given = {"--config": file, "--name": own.name, "--runs": moved}
        useless = [flag for flag, value in given.items() if value is not None]
        if useless:
            raise RequestError(
                f"--resume names the run, which has its own config: leave out {useless[0]}"
            )
        if not os.path.isfile(own.resume / "config.json"):
            raise RequestError(f"{own.resume} is no run folder: it has no config.json")
        return load(own.resume / "config.json")
    if file is not None:
        return load(file, named or None)
    if named or not _takes_config(own):
        return recipe(named or "tutorial")
    return recipe(_usual_recipe(own.config))


def _usual_recipe(config: Config) -> str:
    """The defaults of who names no recipe: those for pretrained weights, where there are any."""
    if config.pretrained == "no" or (config.pretrained == "auto" and config.data.path is None):
        return "tutorial"
    from thinned.runs.pretrained import resolved

    try:
        followed, _ = resolved(config)
    except RequestError:
        # Whatever is wrong with the data is the command's to say, once it is their turn.
        return "tutorial"
    # A run that is gone on from has its own ways, which its user knows.
    if not followed.is_pretrained or os.path.isdir(followed.pretrained):
        return "tutorial"
    return "finetune-head" if config.finetune == "head" else "finetune-all"


def _one_line(box: str) -> str:
    """The framed message of the argument parser as one line."""
    # The first line is a title; rules part the message from advice on how to get help.
    lines = [line.strip("│╰╯─ \t") for line in box.splitlines()[1:]]
    paragraphs = re.split(r"\n-{3,}\n|\n{2,}", "\n" + "\n".join(lines) + "\n")
    words = [" ".join(paragraph.split()) for paragraph in paragraphs if paragraph.strip("\n -")]
    advice = "\n".join(lines).partition("Perhaps you meant:")[2]
    offered = re.findall(r"(?m)^(--\S+)", advice)
    wrong = re.search(r"--\S+[^\s,]", words[0])
    # The parser's own order puts --dropout.input-rate before --dropout.rate.
    close = difflib.get_close_matches(wrong[0], offered, n=1, cutoff=0) if wrong else offered
    hint = f"; did you mean {close[0]}?" if close else "; see --help"
    return words[0].rstrip(".!") + hint
