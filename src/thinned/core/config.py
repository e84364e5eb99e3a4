"""Everything needed to repeat a run, as plain data: options, their ranges, recipes, files.

Every field of `Config` is a flag of the command line and a key of ``config.json``; its `Option`
holds the help text, the unit and the range, so that documentation and validation cannot differ.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import re
import reprlib
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from typing_extensions import Doc

from thinned.core.errors import RequestError


class Option(Doc):
    """Help text, unit and range of one option.

    Args:
        text: what the option does, in one sentence.
        unit: the unit of the value, in words.
        low: the least value allowed, or None.
        high: the greatest value allowed, or None.
        above: whether `low` itself is excluded.
        changeable: whether a resumed run may change it (it cannot alter what already happened).
    """

    def __init__(
        self,
        text: str,
        unit: str = "",
        low: float | None = None,
        high: float | None = None,
        above: bool = False,
        changeable: bool = False,
    ) -> None:
        self.unit, self.low, self.high, self.above = unit, low, high, above
        self.changeable = changeable
        notes = "; ".join(part for part in (unit, self.range) if part)
        super().__init__(f"{text} [{notes}]" if notes else text)

    @property
    def range(self) -> str:
        """The range in words, or an empty string."""
        if self.low is None:
            return ""
        if self.high is not None:
            high = f"{self.high:,}" if isinstance(self.high, int) else f"{self.high:g}"
            return f"{self.low:g} to {high}"
        return f"above {self.low:g}" if self.above else f"at least {self.low:g}"

    def admits(self, value: float) -> bool:
        """Whether `value` is a number inside the range."""
        if isinstance(value, float) and not math.isfinite(value):
            return False
        low_ok = self.low is None or (value > self.low if self.above else value >= self.low)
        return low_ok and (self.high is None or value <= self.high)


@dataclass(frozen=True)
class DataConfig:
    """Which images to learn from, and how they are read."""

    path: Annotated[
        str | None,
        Option(
            "Folder of images, of IDX or of CIFAR files; .npz, .csv or .parquet file; tfds:NAME; "
            "hf:NAME. MNIST from the package when absent."
        ),
    ] = None
    size: Annotated[
        int | None,
        Option(
            "Side of the square that images are brought to; found out when absent.",
            "pixels",
            low=1,
            high=4096,
        ),
    ] = None
    channels: Annotated[
        Literal[1, 3] | None, Option("1 for grey, 3 for colour; found out when absent.")
    ] = None
    fit: Annotated[
        Literal["crop", "pad"],
        Option("Images of another shape: crop what sticks out, or pad what is missing."),
    ] = "crop"
    on_error: Annotated[
        Literal["skip", "fail"],
        Option("Files that cannot be read: leave them out and list them, or stop."),
    ] = "skip"
    test_fraction: Annotated[
        float,
        Option(
            "Part of each class held out where the data name no test images.",
            "of the images",
            low=0.01,
            high=0.9,
        ),
    ] = 0.2
    validation: Annotated[
        int, Option("Training images held out by the seed, for selecting.", "images", low=0)
    ] = 0
    limit: Annotated[
        int | None,
        Option("Use only this many training images, chosen by the seed.", "images", low=1),
    ] = None
    balance: Annotated[
        Literal["no", "weights", "sampling"],
        Option("Imbalanced classes: weigh the loss, or draw each class equally often."),
    ] = "no"
    normalise: Annotated[
        Literal["auto", "yes", "no"],
        Option(
            "Subtract the training images' mean and divide by their deviation, per channel; "
            "auto does so for all data but the package's MNIST."
        ),
    ] = "auto"
    in_memory: Annotated[
        Literal["auto", "yes", "no"],
        Option("Hold all images on the device, or stream them from the disk.", changeable=False),
    ] = "auto"
    memory_mb: Annotated[
        float,
        Option(
            "Images of more than this are streamed; buffers stay below half of it.",
            "MB of 10^6 bytes",
            low=1,
        ),
    ] = 2000.0

    def __post_init__(self) -> None:
        # Absolute, so that a run finds its data from wherever it is opened.
        if isinstance(self.path, str | os.PathLike):
            object.__setattr__(self, "path", _placed(str(self.path), os.getcwd()))


@dataclass(frozen=True)
class AugmentConfig:
    """How training images are varied, on the device; what is absent is as the preset has it."""

    preset: Annotated[
        Literal["auto", "none", "digits", "objects", "photos"],
        Option(
            "digits shift, objects (small colour images) shift and flip, photos are cropped, "
            "flipped and coloured; auto chooses by the data, and none for the package's MNIST."
        ),
    ] = "auto"
    shift: Annotated[
        float | None, Option("Shift by up to this, with reflection.", "of the side", low=0, high=1)
    ] = None
    flip: Annotated[
        float | None, Option("Chance of a mirror image.", "probability", low=0, high=1)
    ] = None
    crop: Annotated[
        float | None,
        Option(
            "Least side of a random crop, scaled up again; 1 is off.",
            "of the side",
            low=0.1,
            high=1,
        ),
    ] = None
    rotate: Annotated[
        float | None, Option("Turn by up to this, either way.", "degrees", low=0, high=180)
    ] = None
    colour: Annotated[
        float | None,
        Option(
            "Change brightness, contrast and saturation by up to this.",
            "of their value",
            low=0,
            high=1,
        ),
    ] = None
    randaugment: Annotated[
        int | None,
        Option("Further changes drawn from a list for each image.", "changes", low=0, high=8),
    ] = None
    cutout: Annotated[
        float | None, Option("Side of a square that is greyed out.", "of the side", low=0, high=1)
    ] = None
    mixup: Annotated[
        float | None,
        Option("Parameter of the Beta distribution of mixing images.", "number", low=0, high=10),
    ] = None
    cutmix: Annotated[
        float | None,
        Option("Parameter of the Beta distribution of pasting patches.", "number", low=0, high=10),
    ] = None


@dataclass(frozen=True)
class DropoutConfig:
    """What is dropped, where, when and how often."""

    kind: Annotated[
        Literal["element", "channel", "block", "path", "gaussian", "alpha", "concrete", "connect"],
        Option("What is dropped together; concrete learns its rate, connect drops weights."),
    ] = "element"
    rate: Annotated[
        float | None,
        Option(
            "Probability of dropping, at every site; where concrete starts. Each layer's own when "
            "absent, which is 0.5 in the package's networks.",
            "probability",
            low=0,
            high=1,
        ),
    ] = None
    input_rate: Annotated[
        float,
        Option("The rate of the site `input` is at most this.", "probability", low=0, high=1),
    ] = 0.2
    sites: Annotated[
        Mapping[str, float],
        Option("Rates of single sites, as NAME RATE pairs.", "probability", low=0, high=1),
    ] = field(default_factory=dict[str, float])
    depth: Annotated[
        Literal["uniform", "linear"],
        Option("Whether rates are as given, or grow from input to output (l / L of them)."),
    ] = "uniform"
    schedule: Annotated[
        Literal["constant", "linear", "cosine", "early", "late"],
        Option("Course of all rates; early is on, late is off, until --dropout.schedule-epochs."),
    ] = "constant"
    schedule_epochs: Annotated[
        float | None, Option("How long the schedule lasts.", "epochs", low=0, above=True)
    ] = None
    schedule_from: Annotated[
        float, Option("Factor at the start of linear and cosine.", "of the rate", low=0, high=1)
    ] = 0.0
    schedule_to: Annotated[
        float, Option("Factor at the end of linear and cosine.", "of the rate", low=0, high=1)
    ] = 1.0
    block_size: Annotated[
        int, Option("Side of a dropped block (kind block).", "positions", low=1)
    ] = 7
    bits: Annotated[
        Literal["fast", "threefry"],
        Option("Generator of the masks: threefry draws the very masks of JAX and Flax."),
    ] = "fast"


@dataclass(frozen=True)
class MlpConfig:
    """The shape of model mlp."""

    hidden: Annotated[
        tuple[int, ...], Option("Units of each hidden layer.", "units", low=1, high=65_536)
    ] = (1024, 1024, 1024)
    units: Annotated[
        Literal["relu", "logistic", "maxout"], Option("What the hidden units compute.")
    ] = "relu"
    pieces: Annotated[
        int, Option("Linear pieces of which a maxout unit takes the largest.", low=2, high=64)
    ] = 5


@dataclass(frozen=True)
class OptimConfig:
    """How the weights are found: optimizer, its course, and what is added to the loss."""

    name: Annotated[
        Literal["adam", "adamw", "sgd"],
        Option("Optimizer; adamw is adam with --optim.weight-decay, 0.01 when absent."),
    ] = "adam"
    momentum: Annotated[float, Option("Momentum of sgd.", "", low=0, high=0.9999)] = 0.9
    momentum_start: Annotated[
        float | None,
        Option("Momentum of sgd at the first step, growing linearly.", "", low=0, high=0.9999),
    ] = None
    momentum_epochs: Annotated[
        float | None, Option("How long the momentum grows.", "epochs", low=0, above=True)
    ] = None
    nesterov: Annotated[bool, Option("Nesterov's momentum (sgd).")] = False
    schedule: Annotated[
        Literal["constant", "linear", "cosine", "exponential", "onecycle"],
        Option("Course of --learning-rate, over all epochs; onecycle has it at the peak."),
    ] = "constant"
    final: Annotated[
        float,
        Option("Where linear, cosine and exponential end.", "of the learning rate", low=0, high=1),
    ] = 0.0
    warmup_epochs: Annotated[
        float, Option("Epochs in which the learning rate grows from 0.", "epochs", low=0)
    ] = 0.0
    weight_decay: Annotated[
        float | None,
        Option("Decoupled decay of weights; biases and scales keep theirs.", "per step", low=0),
    ] = None
    clip: Annotated[
        float | None, Option("Largest norm of all gradients together.", "norm", low=0, above=True)
    ] = None
    max_norm: Annotated[
        float | None,
        Option("Largest norm of each unit's incoming weights.", "norm", low=0, above=True),
    ] = None
    l1: Annotated[float | None, Option("Times the weights' absolute sum, in the loss.", low=0)] = (
        None
    )
    l2: Annotated[
        float | None, Option("Times half the weights' sum of squares, in the loss.", low=0)
    ] = None
    label_smoothing: Annotated[
        float | None,
        Option("Part of each label spread over all classes.", "probability", low=0, high=1),
    ] = None
    r_drop: Annotated[
        float | None, Option("Weight of the divergence between two masks (R-Drop).", low=0)
    ] = None
    ema: Annotated[
        float | None,
        Option("Evaluate a moving average of the weights, of this decay.", "", low=0, high=0.99999),
    ] = None


@dataclass(frozen=True)
class RandomnessConfig:
    """How keys follow from the seed. The defaults are right; the others show what goes wrong."""

    derivation: Annotated[
        Literal["named", "tutorial"],
        Option("How the seed becomes keys: by the stream's name, or as the tutorial splits them."),
    ] = "named"
    dropout: Annotated[
        Literal["step", "frozen"],
        Option("A fresh mask at every step, or one mask for ever."),
    ] = "step"
    shuffle: Annotated[
        Literal["epoch", "frozen"],
        Option("A fresh order in every epoch, or one order for ever."),
    ] = "epoch"


@dataclass(frozen=True)
class Config:
    """Everything needed to repeat a run.

    `recipe` names the defaults that the other options began with; given here it fills in none of
    them. So begin with `thinned.core.config.recipe(name)` and lay your own over it (`with_values`,
    ``dataclasses.replace``); no new run begins with a config that has not one value of its recipe.
    """

    recipe: Annotated[
        str, Option("Named set of defaults: tutorial, or tutorial-as-printed (see docs).")
    ] = "tutorial"
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: Annotated[
        str,
        Option(
            "Network: cnn, resnet, mlp, lenet, c20-c40-f1000-f1000 (see thinned models), or your "
            "own as MODULE:CLASS; auto takes cnn for small grey images, else resnet."
        ),
    ] = "auto"
    mlp: MlpConfig = field(default_factory=MlpConfig)
    dropout: DropoutConfig = field(default_factory=DropoutConfig)
    learning_rate: Annotated[
        float, Option("Step size of the optimizer.", "per step", low=0, above=True)
    ] = 0.001
    optim: OptimConfig = field(default_factory=OptimConfig)
    batch_size: Annotated[int, Option("Images per training step.", "images", low=1)] = 32
    epochs: Annotated[
        int, Option("Passes over the training images.", "epochs", low=1, changeable=True)
    ] = 10
    seed: Annotated[int, Option("Root of all randomness.", "integer", low=0, high=2**32 - 1)] = 0
    log: Annotated[
        Literal["none", "tensorboard"],
        Option("Further records beside metrics.jsonl: events for TensorBoard.", changeable=True),
    ] = "none"
    test: Annotated[
        Literal["epoch", "end"],
        Option("Evaluate on the test images after every epoch, or once, after the last."),
    ] = "epoch"
    randomness: RandomnessConfig = field(default_factory=RandomnessConfig)
    checkpoint_every_s: Annotated[
        float,
        Option(
            "Longest time between checkpoints; one is also saved after every epoch.",
            "seconds",
            low=0,
            above=True,
            changeable=True,
        ),
    ] = 60.0


RECIPES: Mapping[str, Mapping[str, Any]] = {
    "tutorial": {},
    # The printed program, literally: what goes wrong in it is data here, no branch in the loop.
    "tutorial-as-printed": {
        "learning_rate": 0.1,
        "dropout": {"bits": "threefry"},
        "randomness": {"derivation": "tutorial", "dropout": "frozen", "shuffle": "frozen"},
    },
}


def recipe(name: str) -> Config:
    """The defaults that a recipe names.

    Raises:
        RequestError: no recipe has that name.
    """
    if not isinstance(typing.cast(Any, name), str) or name not in RECIPES:
        raise RequestError(f"unknown recipe {told(name)}{nearest(str(name), RECIPES)}")
    return with_values(Config(recipe=name), RECIPES[name], f"recipe {name}")


def with_values(config: Any, values: Mapping[str, Any], where: str) -> Any:
    """A copy of a config dataclass with nested `values` laid over it.

    Args:
        config: an instance of `Config` or of one of its sections.
        values: nested mapping, as read from YAML or JSON.
        where: what to name in an error, e.g. the file.

    Raises:
        RequestError: unknown keys, or values of another type.
    """
    hints = typing.get_type_hints(type(config), include_extras=True)
    changes: dict[str, Any] = {}
    for name, value in values.items():
        if name not in hints:
            raise RequestError(f"{where}: unknown option {told(name)}{nearest(name, hints)}")
        current = getattr(config, name)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, Mapping):
                raise RequestError(
                    f"{where}: {name} must be a section of options, not {told(value)}"
                )
            changes[name] = with_values(current, value, f"{where}: {name}")
        else:
            changes[name] = _coerce(hints[name], value, f"{where}: {name}")
    return dataclasses.replace(config, **changes)


def load(path: Path, named: str | None = None) -> Config:
    """A config from a YAML or JSON file; a run's own ``config.json`` is one.

    YAML is read as version 1.2 has it: only ``true`` and ``false`` are booleans. A relative
    ``data.path`` starts at the file's folder, and ``~`` is the home.

    Args:
        path: the file.
        named: the recipe whose values lie under the file's; the file's own when absent.

    Raises:
        RequestError: the file cannot be read, is no mapping, or names unknown options.
    """
    values = dict(_read_mapping(path))
    if named is not None:
        values["recipe"] = named
    data = values.get("data")
    # What comes through a pipe lies in no folder of the user's.
    if isinstance(data, dict) and isinstance(data.get("path"), str) and path.is_file():
        values["data"] = {**data, "path": _placed(data["path"], os.path.abspath(path.parent))}
    return with_values(recipe(values.get("recipe", "tutorial")), values, printable_path(path))


def to_json(config: Config) -> str:
    """The config as JSON text, every option written out."""
    return json.dumps(dataclasses.asdict(config), indent=2, default=str) + "\n"


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
    for name, hint in typing.get_type_hints(type(config), include_extras=True).items():
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
    value = _coerce(hint, value, flag(name))
    if isinstance(value, Mapping):
        each = list(typing.cast(Mapping[str, Any], value).items())
    else:
        each = [("", v) for v in (value if isinstance(value, tuple) else (value,))]
    option = typing.get_args(hint)[1]
    for key, number in each:
        if isinstance(number, int | float) and option.range and not option.admits(number):
            shown = f"{flag(name)} {key[:_SHOWN]}".rstrip()
            raise RequestError(f"{shown} is {told(number)}: must be {_sentence(option)}")
    return value


def _refuse_unfollowed(config: Config) -> None:
    wanted, plain = recipe(config.recipe), Config()
    named = [
        (mine, value)
        for (name, _, mine), (_, _, value), (_, _, usual) in zip(
            options(config), options(wanted), options(plain), strict=True
        )
        if value != usual and name != "recipe"
    ]
    if named and all(mine != value for mine, value in named):
        raise RequestError(
            f"--recipe {config.recipe} names values of which the config has none: from Python, "
            f"begin with thinned.core.config.recipe({config.recipe!r})"
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
            recipe of which no value is followed.
    """
    _refuse_unfollowed(config)
    for name, needed in idle(config).items():
        raise RequestError(f"{flag(name)} changes nothing here: it goes with {needed}")


def options(config: Any, prefix: str = "") -> Iterator[tuple[str, Option, Any]]:
    """Every leaf of a config as (dotted name, `Option`, value), in the order of definition."""
    for name, hint in typing.get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            yield from options(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", typing.get_args(hint)[1], value


def changed_options(past: Config, wanted: Config) -> list[str]:
    """The flags that would change what a run has already done, as ``--flag: was X, asked Y``."""
    return [
        f"{flag(name)}: was {_shown(before)}, asked for {_shown(after)}"
        for (name, option, before), (_, _, after) in zip(
            options(past), options(wanted), strict=True
        )
        if before != after and not option.changeable
    ]


def flag(name: str) -> str:
    """The command-line flag of a dotted name: ``data.batch_size`` -> ``--data.batch-size``."""
    return "--" + name.replace("_", "-")


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


def _shown(value: Any) -> Any:
    return "unset" if value is None else value


def _sentence(option: Option) -> str:
    return f"a number from {option.range}" if option.high is not None else option.range


def nearest(word: str, known: Mapping[str, Any]) -> str:
    """The end of an error about an unknown word: the closest known one, or all."""
    close = difflib.get_close_matches(word[:_SHOWN], known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


_MOST_BYTES = 256_000
_SHOWN = 60
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHOWN


def told(value: Any) -> str:
    """A value as in Python, cut where it is long."""
    try:
        return _SHORT.repr(value)[: 2 * _SHOWN]
    except ValueError:
        # Python writes no integer of more than 4,300 digits.
        return "a number of thousands of digits"


def printable_path(path: Path) -> str:
    """A path for a message, its end where it is very long."""
    text = str(path)
    return text if len(text) <= 4 * _SHOWN else f"...{text[-_SHOWN:]}"


def _placed(path: str, folder: str) -> str:
    """A path or library:path with ``~`` and the folder that it is relative to written out.

    Absolute, so that a run finds its data from wherever it is opened.
    """
    library, colon, target = path.partition(":")
    if not colon or library not in ("tfds", "hf"):
        return _absolute(path, folder)
    local = _absolute(target, folder)
    return f"{library}:{local}" if os.path.exists(local) else path


def _absolute(path: str, folder: str) -> str:
    own = os.path.expanduser(path) if path == "~" or path.startswith("~/") else path
    return os.path.abspath(os.path.join(folder, own))


def _read_mapping(path: Path) -> Mapping[str, Any]:
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
        return [_plain(each) for each in node.value]
    if isinstance(node, yaml.ScalarNode):
        if node.tag != "tag:yaml.org,2002:str":
            raise ValueError(f"{_line(node)} has a tag, {told(node.tag)}")
        return node.value if node.style else _scalar(node.value, node)
    found: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError(f"{_line(key)} has a key that is no name")
        if key.value in found:
            raise ValueError(f"{_line(key)} gives {told(key.value)} a second time")
        found[key.value] = _plain(value)
    return found


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
            if len(text) > _LONGEST:
                raise ValueError(f"{_line(node)} has a number of thousands of digits")
            return number(text)
    return text


def _line(place: Any) -> str:
    return f"line {place.start_mark.line + 1}"


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type, or a `RequestError` that says what was expected."""
    kind = typing.get_args(hint)[0]
    allowed = typing.get_args(kind)
    # Numbers and arrays of NumPy and JAX, which need not be imported to be known.
    if not isinstance(value, type) and hasattr(value, "tolist"):
        value = value.tolist()
    if typing.get_origin(kind) is Mapping:
        if not isinstance(value, Mapping):
            raise RequestError(f"{where} is {told(value)}: expected names with numbers")
        number: Any = Annotated[allowed[1], ""]
        named = typing.cast(Mapping[Any, Any], value)
        return {
            str(name): _coerce(number, each, f"{where}: {str(name)[:_SHOWN]}")
            for name, each in named.items()
        }
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple) or not value:
            raise RequestError(f"{where} is {told(value)}: expected one or more values")
        item: Any = Annotated[allowed[0], ""]
        return tuple(_coerce(item, each, where) for each in typing.cast(list[Any], value))
    if typing.get_origin(kind) is Literal:
        for choice in allowed:
            # 1 is no True here.
            if type(choice) is type(value) and choice == value:
                return choice
        raise RequestError(f"{where} is {told(value)}: choose from {', '.join(map(str, allowed))}")
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        if value is None:
            return None
        return _coerce(Annotated[allowed[0], ""], value, where)
    return _single(kind, value, where)


def _single(kind: Any, value: Any, where: str) -> Any:
    if isinstance(value, bool) and kind is not bool:
        raise RequestError(f"{where} is {value!r}: expected {kind.__name__}")
    try:
        if kind is float and isinstance(value, int):
            return float(value)
    except OverflowError:
        pass
    if not isinstance(value, kind):
        raise RequestError(f"{where} is {told(value)}: expected {kind.__name__}")
    if isinstance(value, int) and value.bit_length() > 63:
        raise RequestError(f"{where} is {told(value)}: too large a number")
    if isinstance(value, str) and ("\0" in value or len(value) > _LONGEST):
        raise RequestError(f"{where} is {told(value)}: no name of anything")
    return value


_LONGEST = 4096
"""Characters of a path, at most, in Linux."""
