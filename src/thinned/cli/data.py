"""`thinned data`: look at data, show, pack them; what is kept of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg, subcommand

from thinned.cli.options import Debug
from thinned.core.config import Config, DataConfig, Option
from thinned.core.validation import validate

# JAX is imported only once a command runs: `thinned --help` must answer at once.


@dataclass(frozen=True)
class Inspect:
    """Counts, sizes, statistics, duplicates, leaks and broken files of a data set; a picture."""

    source: Annotated[Positional[str], Option("Folder, file or name, as for --data.path.")]
    data: DataConfig = field(default_factory=DataConfig)
    sheet: Annotated[Path, Option("Where to write examples of each class, as PNG.")] = Path(
        "sheet.png"
    )

    def __call__(self) -> None:
        """Print the report."""
        from thinned.data import inspect as datatools

        data = validate(self.data, "data.")
        print(datatools.inspect(replace(data, path=self.source), self.sheet))
        print(f"\nexamples of each class: {self.sheet}")


@dataclass(frozen=True)
class Convert:
    """Pack a data set into one .npz file, decoded at one size."""

    source: Annotated[Positional[str], Option("Folder, file or name, as for --data.path.")]
    out: Annotated[Positional[Path], Option("The file to write, ending in .npz.")]
    data: DataConfig = field(default_factory=DataConfig)

    def __call__(self) -> None:
        """Write the file and say what is in it."""
        from thinned.data import inspect as datatools

        data = validate(self.data, "data.")
        packed = datatools.convert(replace(data, path=self.source), self.out)
        held = len(packed.validation) if packed.validation else 0
        print(
            f"{self.out}: {len(packed.train):,} training, {held:,} validation, "
            f"{len(packed.test):,} test images of {len(packed.classes)} classes; "
            f"{len(packed.left_out):,} files left out"
        )


@dataclass(frozen=True)
class Show:
    """Write a picture of training images as the network sees them, varied."""

    config: Annotated[Config, arg(name="")] = field(default_factory=Config)
    out: Annotated[Path, Option("Where to write the picture, as PNG.")] = Path("seen.png")

    def __call__(self) -> None:
        """Write the picture and say where."""
        from thinned.data import inspect as datatools

        datatools.show(validate(self.config), self.out)
        print(self.out)


@dataclass(frozen=True)
class Cache:
    """Show what is kept of images between runs, decoded or as features, or delete it."""

    clear: Annotated[bool, Option("Delete all that no process is reading.")] = False

    def __call__(self) -> None:
        """Print what is kept."""
        from thinned.data import inspect as datatools

        print(datatools.cache(self.clear))


@dataclass(frozen=True)
class Data:
    """Look at data, or pack them into one file."""

    action: (
        Annotated[Inspect, subcommand("inspect")]
        | Annotated[Convert, subcommand("convert")]
        | Annotated[Show, subcommand("show")]
        | Annotated[Cache, subcommand("cache")]
    )
    debug: Debug = False

    def __call__(self) -> None:
        """Do it."""
        self.action()
