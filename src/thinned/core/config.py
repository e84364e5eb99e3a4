"""Everything needed to repeat a run, as plain data: options, their ranges, recipes, files.

Every field of `Config` is a flag of the command line and a key of ``config.json``; its `Option`
holds the help text, the unit and the range, so that documentation and validation cannot differ.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from typing_extensions import Doc

from thinned.core.errors import SHOWN, RequestError, nearest, printable_path, told
from thinned.core.reading import LONGEST, read_mapping


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
        int, Option("Training images held out, for selecting.", "images", low=0)
    ] = 0
    limit: Annotated[
        int | None,
        Option("Use only this many training images.", "images", low=1),
    ] = None
    split_seed: Annotated[
        int | None,
        Option(
            "Chooses which images are held out for testing and validation, and which are used; "
            "with none, --seed does.",
            "integer",
            low=0,
            high=2**32 - 1,
        ),
    ] = 0
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
    views: Annotated[
        int,
        Option(
            "Varied views kept of each image where only its features are learned from; epochs take "
            "them in turn.",
            "views",
            low=1,
            high=1000,
        ),
    ] = 4


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
    layer_decay: Annotated[
        float | None,
        Option(
            "Learning rate of each stage of a pretrained network, as a part of the next one's.",
            low=0,
            high=1,
            above=True,
        ),
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
    them. So begin with `thinned.recipe(name)` and lay your own over it (`thinned.with_values`,
    ``dataclasses.replace``): no new run begins with a recipe that was only named.
    """

    recipe: Annotated[
        str,
        Option(
            "Named set of defaults: tutorial, tutorial-as-printed, finetune-head or finetune-all "
            "(see docs). [default: tutorial; finetune-... with pretrained weights]"
        ),
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
    pretrained: Annotated[
        str,
        Option(
            "Weights to begin with: imagenet (extra `pretrained`), a .safetensors or .pth file, "
            "hf:OWNER/NAME, or the folder of a run; no for none. auto takes imagenet for colour "
            "photos of at least 64 pixels, where the extra is installed."
        ),
    ] = "auto"
    finetune: Annotated[
        str,
        Option(
            "What of a pretrained network trains: head, all, or the names of stages, as "
            "blocks_5,head."
        ),
    ] = "head"
    batch_statistics: Annotated[
        Literal["frozen", "trained"],
        Option("Whether batch normalisation of a pretrained network goes on collecting them."),
    ] = "frozen"
    dropout: DropoutConfig = field(default_factory=DropoutConfig)
    learning_rate: Annotated[
        float, Option("Step size of the optimizer.", "per step", low=0, above=True)
    ] = 0.001
    optim: OptimConfig = field(default_factory=OptimConfig)
    batch_size: Annotated[int, Option("Images per training step.", "images", low=1)] = 32
    epochs: Annotated[
        int, Option("Passes over the training images.", "epochs", low=1, changeable=True)
    ] = 10
    keep_best: Annotated[
        Literal["no", "accuracy", "nll"],
        Option(
            "Predict with the epoch that is best on the validation images, of equals the earlier, "
            "instead of the last."
        ),
    ] = "no"
    patience: Annotated[
        int | None,
        Option(
            "Stop after so many epochs without a better one by --keep-best.",
            "epochs",
            low=1,
            changeable=True,
        ),
    ] = None
    devices: Annotated[
        int | Literal["all"],
        Option("How many share each batch; or all.", "devices", low=1, changeable=True),
    ] = 1
    parallel: Annotated[
        Literal["auto", "no", "exact", "fast"],
        Option(
            "How they share it: exact ends with the same bits on any number of devices and "
            "processes, fast differs by rounding; auto is exact for more than one."
        ),
    ] = "auto"
    shard_parameters: Annotated[
        bool,
        Option("Cut up large parameters, too, where --parallel is fast.", changeable=True),
    ] = False
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

    @property
    def is_pretrained(self) -> bool:
        """Whether weights are read from somewhere; ``auto`` is written out before a run begins."""
        return self.pretrained not in ("auto", "no")

    @property
    def split_seed(self) -> int:
        """The seed by which images are held out, and those that are used are chosen."""
        return self.seed if self.data.split_seed is None else self.data.split_seed


RECIPES: Mapping[str, Mapping[str, Any]] = {
    "tutorial": {},
    # The printed program, literally: what goes wrong in it is data here, no branch in the loop.
    "tutorial-as-printed": {
        "learning_rate": 0.1,
        "dropout": {"bits": "threefry"},
        "randomness": {"derivation": "tutorial", "dropout": "frozen", "shuffle": "frozen"},
    },
    # Chosen on validation photos: docs/results.md has the commands.
    "finetune-head": {
        "batch_size": 64,
        "epochs": 60,
        "augment": {"preset": "none"},
        "optim": {"name": "adamw", "schedule": "cosine"},
    },
    "finetune-all": {
        "finetune": "all",
        "batch_size": 16,
        "epochs": 6,
        "learning_rate": 0.0003,
        "augment": {"preset": "none", "crop": 0.6, "flip": 0.5},
        "optim": {"name": "adamw", "warmup_epochs": 1.0, "ema": 0.98, "label_smoothing": 0.1},
    },
}


class Followed(str):
    """The name of a recipe, of a config that began with its values: `recipe` gives it.

    The values do not tell: one that is the default may well be what was laid over the recipe.
    """


def recipe(name: str) -> Config:
    """The defaults that a recipe names.

    Raises:
        RequestError: no recipe has that name.
    """
    if not isinstance(typing.cast(Any, name), str) or name not in RECIPES:
        raise RequestError(f"unknown recipe {told(name)}{nearest(str(name), RECIPES)}")
    return with_values(Config(recipe=Followed(name)), RECIPES[name], f"recipe {name}")


def with_values(config: Any, values: Mapping[str, Any], where: str) -> Any:
    """A copy of a config dataclass with nested `values` laid over it.

    Args:
        config: an instance of `Config` or of one of its sections.
        values: nested mapping, as read from YAML or JSON.
        where: what to name in an error, e.g. the file.

    Raises:
        RequestError: unknown keys, or values of another type.
    """
    hints = hints_of(type(config))
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
            asked = coerce(hints[name], value, f"{where}: {name}")
            # Named again, a recipe that is followed still is.
            again = isinstance(current, Followed) and asked == current
            changes[name] = current if again else asked
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
    values = dict(read_mapping(path))
    if named is not None:
        values["recipe"] = named
    data = values.get("data")
    # What comes through a pipe lies in no folder of the user's.
    if isinstance(data, dict) and isinstance(data.get("path"), str) and path.is_file():
        values["data"] = {**data, "path": _placed(data["path"], os.path.abspath(path.parent))}
    values = as_meant(values)
    return with_values(recipe(values.get("recipe", "tutorial")), values, printable_path(path))


def as_meant(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a config, as they were meant when it was written.

    Before there was ``data.split_seed``, the seed of a run chose its split. That is how a config is
    read which a program wrote, with every option, and which does not have this one.
    """
    data = values.get("data")
    whole = {"recipe", "randomness", "checkpoint_every_s"} <= values.keys()
    if not whole or not isinstance(data, dict) or "split_seed" in data:
        return dict(values)
    return {**values, "data": {**data, "split_seed": None}}


def with_split_of(past: Config, config: Config) -> Config:
    """What is asked of a run or study that exists, whose split stays what it is.

    Where its seeds choose the split, as before there was ``data.split_seed``, the default of that
    option asks for nothing else.
    """
    if past.data.split_seed is not None or config.data.split_seed != DataConfig.split_seed:
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, split_seed=None))


def to_json(config: Config) -> str:
    """The config as JSON text, every option written out."""
    return json.dumps(dataclasses.asdict(config), indent=2, default=str) + "\n"


@cache
def hints_of(section: type[Any]) -> Mapping[str, Any]:
    """The annotated type of each field of `Config` or of one of its sections, by name.

    Kept: they are texts that Python compiles again each time that it is asked.
    """
    return types.MappingProxyType(typing.get_type_hints(section, include_extras=True))


def options(config: Any, prefix: str = "") -> Iterator[tuple[str, Option, Any]]:
    """Every leaf of a config as (dotted name, `Option`, value), in the order of definition."""
    for name, hint in hints_of(type(config)).items():
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


def _shown(value: Any) -> Any:
    return "unset" if value is None else value


def flag(name: str) -> str:
    """The command-line flag of a dotted name: ``data.batch_size`` -> ``--data.batch-size``."""
    return "--" + name.replace("_", "-")


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


def coerce(hint: Any, value: Any, where: str) -> Any:
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
            str(name): coerce(number, given, f"{where}: {str(name)[:SHOWN]}")
            for name, given in named.items()
        }
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple) or not value:
            raise RequestError(f"{where} is {told(value)}: expected one or more values")
        item: Any = Annotated[allowed[0], ""]
        return tuple(coerce(item, element, where) for element in typing.cast(list[Any], value))
    if typing.get_origin(kind) is Literal:
        for choice in allowed:
            # 1 is no True here.
            if type(choice) is type(value) and choice == value:
                return choice
        raise RequestError(f"{where} is {told(value)}: choose from {', '.join(map(str, allowed))}")
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        words = [word for each in allowed for word in typing.get_args(each)]
        if (value is None and type(None) in allowed) or (isinstance(value, str) and value in words):
            return value
        return coerce(Annotated[allowed[0], ""], value, where)
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
    if isinstance(value, str) and ("\0" in value or len(value) > LONGEST):
        raise RequestError(f"{where} is {told(value)}: no name of anything")
    return value
