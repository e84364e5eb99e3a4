"""Commands that train: train, find-lr; and models, the list of what can be trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from thinned.cli.options import ConfigFile, Debug
from thinned.core.config import Config, Option
from thinned.core.errors import RequestError, need

# JAX is imported only once a command runs: `thinned --help` must answer at once.


@dataclass(frozen=True)
class Train:
    """Train a classifier, or go on with a run that was stopped."""

    config: Annotated[Config, arg(name="")] = field(default_factory=Config)
    config_file: Annotated[
        Path | None,
        Option("YAML or JSON file of defaults, e.g. another run's config.json; flags override it."),
        arg(name="config", aliases=["-c"]),
    ] = None
    name: Annotated[
        str | None, Option("Name of the run; a run of that name is continued. [default: made up]")
    ] = None
    runs: Annotated[Path, Option("Folder of all runs.")] = Path("runs")
    resume: Annotated[Path | None, Option("Run folder to go on with; only --epochs may grow.")] = (
        None
    )
    quiet: Annotated[bool, Option("Print nothing but errors.")] = False
    coordinator: Annotated[
        str | None,
        Option("HOST:PORT of process 0, of several that nothing but hands have started."),
    ] = None
    processes: Annotated[
        int | None, Option("How many there are; Slurm, Open MPI and Kubernetes know.", low=1)
    ] = None
    process: Annotated[int | None, Option("Which of them this is.", "from 0", low=0)] = None
    debug: Debug = False

    def __call__(self) -> None:
        """Train, then say where the result is and what can be done with it."""
        from thinned.engine.processes import joined, launched

        given = (self.coordinator, self.processes, self.process)
        several = launched() and self.config.devices != 1
        if given == (None, None, None) and not several:
            self._train()
            return
        with joined(*given, debug=self.debug):
            self._train()

    def _train(self) -> None:
        from thinned.engine.processes import follows
        from thinned.runs import train as runs

        if self.resume is not None:
            run = runs.resume(self.resume, self.config, quiet=self.quiet)
        else:
            run = runs.train(self.config, name=self.name, runs=self.runs, quiet=self.quiet)
        if not self.quiet and not follows():
            print(_closing(run), flush=True)


@dataclass(frozen=True)
class FindLr:
    """Find a learning rate: train briefly while it grows, and look where the loss falls."""

    config: Annotated[Config, arg(name="")] = field(default_factory=Config)
    config_file: ConfigFile = None
    low: Annotated[float, Option("First learning rate.", "per step", low=0, above=True)] = 1e-6
    high: Annotated[float, Option("Last learning rate.", "per step", low=0, above=True)] = 10.0
    steps: Annotated[int, Option("Rates to try.", "steps", low=20)] = 200
    out: Annotated[Path | None, Option("Where to draw the curve, .svg or .png.")] = None
    debug: Debug = False

    def __call__(self) -> None:
        """Print what was found; draw it where asked."""
        from thinned.core.disk import refuse_unwritable
        from thinned.runs import find_lr

        if self.out is not None:
            # Before the minutes that it takes, not after.
            find_lr.kind_of(self.out)
            need("matplotlib", f"{self.out}", "report")
            refuse_unwritable(self.out)
        curve = find_lr.find_lr(self.config, self.low, self.high, self.steps)
        for index in range(0, len(curve.rates), max(len(curve.rates) // 20, 1)):
            print(f"{curve.rates[index]:>10.2e}  loss {curve.smoothed[index]:.4f}")
        print(f"steepest at --learning-rate {curve.steepest:.2g}")
        print(f"a tenth of where it is lowest: {curve.at_minimum:.2g}")
        if self.out is not None:
            find_lr.draw(curve, self.out)
            print(self.out)


@dataclass(frozen=True)
class Models:
    """The networks, with their size for images of a shape."""

    size: Annotated[int, Option("Side of the images.", "pixels", low=4)] = 28
    channels: Annotated[Literal[1, 3], Option("1 for grey, 3 for colour.")] = 1
    classes: Annotated[int, Option("Number of classes.", low=2)] = 10
    own: Annotated[tuple[str, ...], Option("Networks of your own, MODULE:CLASS, too.")] = ()
    debug: Debug = False

    def __call__(self) -> None:
        """Print a line for each."""
        from thinned.engine.build import size_of
        from thinned.models.catalog import CATALOG

        if self.size < 4 or self.classes < 2:
            raise RequestError("--size must be at least 4, and --classes at least 2")
        print(f"{'model':<22}{'parameters':>12}{'MFLOP':>9}  (one image, forward)")
        for name in (*CATALOG, *self.own):
            shape = (self.size, self.size, self.channels)
            try:
                parameters, flops = size_of(name, shape, self.classes)
            except RequestError as error:
                if name in self.own:
                    raise
                print(f"{name:<22}{error}")
                continue
            print(f"{name:<22}{parameters:>12,}{flops / 1e6:>9.2f}  {CATALOG.get(name, '')}")


def _closing(run: Any) -> str:
    tests = {record["epoch"]: record for record in run.metrics if record["split"] == "test"}
    epoch = run.best.epoch if run.best is not None and run.best.epoch in tests else max(tests)
    test = tests[epoch]
    which = "" if run.best is None else f", after epoch {epoch}"
    kept = () if run.best is None else (f"kept      {run.best}",)
    # Any other course was laid out over its epochs, and cannot be made longer.
    constant = run.config.optim.schedule == "constant"
    more = f"thinned train --resume {run.folder} --epochs {run.config.epochs * 2}"
    longer = (f"go on     {more}",) if constant else ()
    return "\n".join(
        (
            f"test accuracy {test['accuracy']:.2%}, loss {test['loss']:.4f} nats, "
            f"on all {test['count']:,} images{which}",
            *kept,
            f"run       {run.folder}",
            f"evaluate  thinned evaluate {run.folder}",
            f"audit     thinned doctor {run.folder}",
            *longer,
            f"predict   thinned predict {run.folder} IMAGES --samples 100",
        )
    )
