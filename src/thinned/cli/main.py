"""The command line: options into a config, errors into one line and an exit code."""

from __future__ import annotations

import contextlib
import difflib
import errno
import io
import json
import os
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg, subcommand

import thinned
from thinned.core.config import Config, DataConfig, Option, load, recipe, validate
from thinned.core.errors import RequestError, ThinnedError, need, printable
from thinned.studies.arms import grid, sample, varied

# JAX is imported only once a command runs: `thinned --help` must answer at once.

Samples = Annotated[
    int | Literal["auto"],
    Option(
        "Thinned networks of each run to average; 0 for dropout off; auto for as many as "
        "narrow probabilities to 0.005.",
        "samples",
        low=0,
    ),
]


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
    debug: Annotated[bool, Option("Show the traceback of an error.")] = False

    def __call__(self) -> None:
        """Train, then say where the result is and what can be done with it."""
        from thinned.runs import train as runs

        if self.resume is not None:
            run = runs.resume(self.resume, self.config, quiet=self.quiet)
        else:
            run = runs.train(self.config, name=self.name, runs=self.runs, quiet=self.quiet)
        if not self.quiet:
            print(_closing(run), flush=True)


@dataclass(frozen=True)
class Evaluate:
    """Every usual score on all test images; of several runs, as an ensemble."""

    runs: Annotated[Positional[tuple[Path, ...]], Option("Run folders.")]
    data_path: Annotated[
        str | None,
        Option("Data whose test images to use, as for train; the run's own when absent."),
        arg(name="data.path"),
    ] = None
    samples: Samples = 0
    calibrated: Annotated[bool, Option("Divide logits by the run's fitted temperature.")] = False
    ood: Annotated[
        str | None, Option("Other images, to see how well uncertainty tells them apart.")
    ] = None
    worth: Annotated[
        bool, Option("Compare a plain pass with samples, temperature and ensemble instead.")
    ] = False
    corrupt: Annotated[bool, Option("Score damaged test images, too: six ways, three levels.")] = (
        False
    )
    format: Annotated[
        Literal["text", "json"],
        Option("Text, or JSON that also holds the points of risk and coverage."),
    ] = "text"
    out: Annotated[Path | None, Option("File to write; the terminal when absent.")] = None
    debug: Annotated[bool, Option("Show the traceback of an error.")] = False

    def __call__(self) -> None:
        """Evaluate, and print or write the scores."""
        from thinned.core.disk import refuse_unwritable
        from thinned.runs import evaluate as scoring
        from thinned.runs import predictions as trust

        refuse_unwritable(self.out)
        runs = trust.load_runs(self.runs)
        if self.worth:
            self._compare(runs)
            return
        lines: list[str] = []
        silent = self.out is not None or self.format == "json"
        values = scoring.evaluate_runs(
            runs,
            lines.append if silent else partial(print, flush=True),
            data=self.data_path,
            samples=self.samples,
            calibrated=self.calibrated,
            ood=self.ood,
            corrupt=self.corrupt,
        )
        if silent:
            as_json = self.format == "json"
            _put(json.dumps(values, ensure_ascii=False) if as_json else "\n".join(lines), self.out)

    def _compare(self, runs: Sequence[Any]) -> None:
        from thinned.runs.evaluate import compare

        given = {"--samples": self.samples, "--calibrated": self.calibrated, "--ood": self.ood}
        given |= {"--corrupt": self.corrupt, "--format json": self.format == "json"}
        useless = [name for name, value in given.items() if value]
        if useless:
            raise RequestError(f"--worth compares ways of its own: leave out {', '.join(useless)}")
        _put(str(compare(runs, self.data_path)), self.out)


@dataclass(frozen=True)
class Predict:
    """Classify image files; with --samples, say how sure that is."""

    paths: Annotated[
        Positional[tuple[Path, ...]],
        Option("Run folder (or several, as an ensemble), then image files and folders of them."),
    ]
    samples: Samples = 0
    calibrated: Annotated[bool, Option("Divide logits by the run's fitted temperature.")] = False
    risk: Annotated[
        float | None,
        Option(
            "Mark answers as unsure, so that of the others only this part is wrong on validation "
            "images.",
            "of the answers",
            low=0,
            high=1,
        ),
    ] = None
    format: Annotated[
        Literal["table", "csv", "json", "parquet"],
        Option("A table, CSV, JSON with one object a line, or Parquet (with --out)."),
    ] = "table"
    out: Annotated[Path | None, Option("File to write; the terminal when absent.")] = None
    debug: Annotated[bool, Option("Show the traceback of an error.")] = False

    def __call__(self) -> None:
        """Predict, and print or write a row for each file."""
        from thinned.runs import files as prediction
        from thinned.runs import predictions as trust

        folders = [path for path in self.paths if (path / "config.json").is_file()]
        if not folders:
            if not self.paths:
                raise RequestError("no run is given")
            raise RequestError(f"{self.paths[0]} is no run folder: it has no config.json")
        rows = prediction.predict_files(
            trust.load_runs(folders),
            [path for path in self.paths if path not in folders],
            samples=self.samples,
            calibrated=self.calibrated,
            risk=self.risk,
        )
        header = prediction.columns(self.samples, self.risk)
        errors = prediction.write_rows(rows, self.format, self.out, header)
        if errors:
            raise ThinnedError(f"{errors} of the files could not be read")


@dataclass(frozen=True)
class Calibrate:
    """Fit a run's temperature on its validation images, for --calibrated."""

    run: Annotated[Positional[Path], Option("Run folder.")]
    debug: Annotated[bool, Option("Show the traceback of an error.")] = False

    def __call__(self) -> None:
        """Fit, save, and say what it changed."""
        from thinned.runs import predictions as trust
        from thinned.runs.run import Run

        found = trust.calibrate(Run.open(self.run))
        print(
            f"temperature {found.temperature:.4f}: NLL {found.before:.4f} to "
            f"{found.after:.4f} nats on validation"
        )
        if found.doubt:
            print(f"thinned: warning: {found.doubt}", file=sys.stderr)


@dataclass(frozen=True)
class Report:
    """One HTML page that shows what a run is worth, or compares several."""

    runs: Annotated[Positional[tuple[Path, ...]], Option("Run folders.")]
    out: Annotated[
        Path | None, Option("The page to write; RUN/report.html, or report.html for several.")
    ] = None
    samples: Annotated[
        int, Option("Thinned networks of each run to average; 0 for dropout off.", "samples", low=0)
    ] = 0
    ood: Annotated[
        str | None, Option("Other images, whose entropy is shown beside the test images'.")
    ] = None
    figures: Annotated[Path | None, Option("Folder for the figures as SVG and PNG files, too.")] = (
        None
    )
    debug: Annotated[bool, Option("Show the traceback of an error.")] = False

    def __call__(self) -> None:
        """Write the page and say where it is."""
        from thinned.core.disk import refuse_unwritable
        from thinned.runs import predictions as trust
        from thinned.runs import report

        refuse_unwritable(self.out)
        runs = trust.load_runs(self.runs)
        alone = runs[0].folder / "report.html" if len(runs) == 1 else Path("report.html")
        out = self.out or alone
        print(report.write_report(runs, out, self.samples, self.figures, self.ood))


@dataclass(frozen=True)
class Study:
    """Compare ways to train over several seeds, with intervals and paired tests."""

    config: Annotated[Config, arg(name="")] = field(default_factory=Config)
    config_file: Annotated[
        Path | None,
        Option("YAML or JSON file of defaults; flags override it."),
        arg(name="config", aliases=["-c"]),
    ] = None
    vary: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        Option(
            "OPTION=A,B,C or OPTION=START:STOP:STEP, e.g. dropout.rate=0:0.9:0.1; several make "
            "every combination an arm."
        ),
    ] = ()
    seeds: Annotated[int, Option("Runs of each arm, with seeds from --seed on.", "runs", low=1)] = 3
    baseline: Annotated[
        str | None, Option("Arm that the others are compared with; the first when absent.")
    ] = None
    random: Annotated[
        int | None, Option("Run only so many of the arms, drawn by --seed.", "arms", low=1)
    ] = None
    search: Annotated[
        int | None,
        Option("Let Optuna choose so many of the arms, one after another, by validation.", low=1),
    ] = None
    name: Annotated[
        str | None, Option("Name of the study; a study of that name goes on. [default: made up]")
    ] = None
    runs: Annotated[Path, Option("Folder of all runs and studies.")] = Path("runs")
    processes: Annotated[int, Option("Processes that share the runs and the CPU cores.", low=1)] = 1
    debug: Annotated[bool, Option("Show the traceback of an error.")] = False

    def __call__(self) -> None:
        """Run what was not run yet; print the table, write the page."""
        from thinned.studies import study
        from thinned.studies.page import told

        for name in ("seeds", "random", "search", "processes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"--{name} is {value}: must be at least 1")
        self._refuse_unused()
        config = validate(self.config)
        arms = grid(varied(self.vary, config))
        if self.random is not None:
            arms = sample(arms, self.random, config.seed, self.baseline)
        seeds = range(config.seed, config.seed + self.seeds)
        wanted = study.Study.of(config, arms, seeds, self.baseline)
        folder = study.folder_of(self.runs, self.name)
        print(f"{folder}: arms {len(arms)}, seeds {self.seeds}", flush=True)
        tell = partial(print, flush=True)
        with study.stoppable(f"the same command, --name {folder.relative_to(self.runs)}"):
            if self.search is None:
                rows = study.run_study(wanted, folder, tell, self.processes)
            else:
                rows = study.search(wanted, folder, self.search, tell)
        print(f"\n{told(wanted, rows)}", flush=True)
        from thinned.studies.page import write_study_page

        try:
            print(f"\n{write_study_page(folder, wanted, rows)}")
        except RequestError as error:
            # The study is done and told: a picture of it can be had at any later time.
            print(f"\nno {folder / 'study.html'}: {error}, and run the same command again")
        study.refuse_fruitless(folder, rows)

    def _refuse_unused(self) -> None:
        pairs = [
            (self.search is not None, "--search", self.random is not None, "--random"),
            (self.search is not None, "--search", self.processes > 1, "--processes"),
        ]
        for one, first, two, second in pairs:
            if one and two:
                raise RequestError(f"{first} and {second} exclude each other: give one of them")


@dataclass(frozen=True)
class Reproduce:
    """A published table or figure, run again; the published values beside ours."""

    what: Annotated[Positional[str | None], Option("Its name; all are listed when absent.")] = None
    budget: Annotated[
        Literal["smoke", "short", "full"],
        Option("smoke shows that it runs; short shows the order; full is as published."),
    ] = "short"
    rows: Annotated[tuple[str, ...], Option("Only these rows; see the listing.")] = ()
    seeds: Annotated[int | None, Option("Runs of each row; the budget's when absent.", low=1)] = (
        None
    )
    runs: Annotated[Path, Option("Folder of all runs and studies.")] = Path("runs")
    processes: Annotated[int, Option("Processes that share the runs and the CPU cores.", low=1)] = 1
    debug: Annotated[bool, Option("Show the traceback of an error.")] = False

    def __call__(self) -> None:
        """Run what was not run yet; print the table and say where the rest is."""
        from thinned.studies import reproduce
        from thinned.studies.study import refuse_fruitless, stoppable

        if self.what is None:
            for name in reproduce.names():
                about = reproduce.Reproduction.open(name).about
                print(f"{name}\n    {about['title']}")
                for arm in about.get("arms", ()):
                    print(f"        {arm['name']}")
            return
        wanted = reproduce.Reproduction.open(self.what)
        study = wanted.study(self.budget, self.rows, self.seeds)
        folder = self.runs / f"{wanted.name}-{self.budget}"
        print(f"{folder}: arms {len(study.arms)}, seeds {len(study.seeds)}", flush=True)
        tell = partial(print, flush=True)
        with stoppable("the same command"):
            result = reproduce.reproduce(wanted, study, folder, self.budget, tell, self.processes)
        print(f"\n{result}")
        refuse_fruitless(folder, result.rows)
        print(f"\n{folder / 'study.html'}, {folder / (wanted.name + '.svg')}")


@dataclass(frozen=True)
class FindLr:
    """Find a learning rate: train briefly while it grows, and look where the loss falls."""

    config: Annotated[Config, arg(name="")] = field(default_factory=Config)
    config_file: Annotated[
        Path | None,
        Option("YAML or JSON file of defaults; flags override it."),
        arg(name="config", aliases=["-c"]),
    ] = None
    low: Annotated[float, Option("First learning rate.", "per step", low=0, above=True)] = 1e-6
    high: Annotated[float, Option("Last learning rate.", "per step", low=0, above=True)] = 10.0
    steps: Annotated[int, Option("Rates to try.", "steps", low=20)] = 200
    out: Annotated[Path | None, Option("Where to draw the curve, .svg or .png.")] = None
    debug: Annotated[bool, Option("Show the traceback of an error.")] = False

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
    debug: Annotated[bool, Option("Show the traceback of an error.")] = False

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


@dataclass(frozen=True)
class VerifyResume:
    """Prove that a killed and resumed run ends bit-identical to one that was never stopped."""

    config: Annotated[Config, arg(name="")] = field(default_factory=Config)
    config_file: Annotated[
        Path | None,
        Option("YAML or JSON file of defaults; flags override it."),
        arg(name="config", aliases=["-c"]),
    ] = None
    kills: Annotated[int, Option("How often to kill the run.", "kills", low=1)] = 3
    debug: Annotated[bool, Option("Show the traceback of an error.")] = False

    def __call__(self) -> None:
        """Train twice, kill one of the two, compare, print a verdict for every array."""
        from thinned.runs.verify import verify_resume

        if self.kills < 1:
            raise RequestError(f"--kills is {self.kills}: must be at least 1")
        if not verify_resume(self.config, self.kills):
            raise ThinnedError("the resumed run differs from the uninterrupted one")


@dataclass(frozen=True)
class Doctor:
    """Audit the dropout of a run or a config: what really happens, measured."""

    target: Annotated[
        Positional[Path | None],
        Option("Run folder, or YAML or JSON file of options; none with --stack."),
    ] = None
    stack: Annotated[
        bool, Option("Try instead whether JAX computes right on this machine; takes seconds.")
    ] = False
    draws: Annotated[int, Option("Training steps to measure.", "steps", low=8)] = 64
    debug: Annotated[bool, Option("Show the traceback of an error.")] = False

    def __call__(self) -> None:
        """Print the report; fail when any check does."""
        if self.draws < 8:
            raise RequestError(f"--draws is {self.draws}: must be at least 8")
        if self.stack:
            self._examine()
            return
        if self.target is None:
            raise RequestError("give a run folder or a file of options, or --stack")
        _show_devices(4)
        from thinned.runs import doctor

        found = doctor.diagnose(self.target, self.draws)
        print(found, flush=True)
        if not found.passed:
            raise ThinnedError(f"{self.target} fails its audit")

    def _examine(self) -> None:
        if self.target is not None:
            raise RequestError("--stack asks about this machine: leave out the target")
        from thinned.runs import stack

        found = stack.examine()
        print(found, flush=True)
        if not found.passed:
            raise ThinnedError(
                f"JAX computes wrong on this machine ({'; '.join(found.wrong)}): install another "
                "version of jax, by the constraints.txt of thinned"
            )


@dataclass(frozen=True)
class Inspect:
    """Counts, sizes, statistics, duplicates, leaks and broken files of a data set; a picture."""

    source: Annotated[Positional[str], Option("Folder, file or name, as for --data.path.")]
    data: DataConfig = field(default_factory=DataConfig)
    sheet: Annotated[Path, Option("Where to write examples of each class, as PNG.")] = Path(
        "sheet.png"
    )
    seed: Annotated[int, Option("Chooses test images where none are named.", "integer", low=0)] = 0

    def __call__(self) -> None:
        """Print the report."""
        from thinned.data import inspect as datatools

        data = validate(self.data, "data.")
        print(datatools.inspect(replace(data, path=self.source), self.seed, self.sheet))
        print(f"\nexamples of each class: {self.sheet}")


@dataclass(frozen=True)
class Convert:
    """Pack a data set into one .npz file, decoded at one size."""

    source: Annotated[Positional[str], Option("Folder, file or name, as for --data.path.")]
    out: Annotated[Positional[Path], Option("The file to write, ending in .npz.")]
    data: DataConfig = field(default_factory=DataConfig)
    seed: Annotated[int, Option("Chooses test images where none are named.", "integer", low=0)] = 0

    def __call__(self) -> None:
        """Write the file and say what is in it."""
        from thinned.data import inspect as datatools

        data = validate(self.data, "data.")
        packed = datatools.convert(replace(data, path=self.source), self.out, self.seed)
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
    """Show the decoded images that are kept between runs, or delete them."""

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
    debug: Annotated[bool, Option("Show the traceback of an error.")] = False

    def __call__(self) -> None:
        """Do it."""
        self.action()


COMMANDS: dict[str, type[Any]] = {
    "train": Train,
    "evaluate": Evaluate,
    "predict": Predict,
    "calibrate": Calibrate,
    "report": Report,
    "doctor": Doctor,
    "data": Data,
    "find-lr": FindLr,
    "models": Models,
    "study": Study,
    "reproduce": Reproduce,
    "verify-resume": VerifyResume,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: words after ``thinned``; those of the process by default.

    Returns:
        The exit code: 0, 1 for a failure, 2 for a wrong request, 130 or 143 after a signal.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
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
        print(f"thinned: {printable(error)}", file=sys.stderr)
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
    file or run, then over the defaults that those give.

    Raises:
        RequestError: options that do not exist, or whose values cannot be.
        SystemExit: after ``--help`` was printed.
    """
    # `--data FOLDER` is what everyone types first.
    words = [re.sub(r"^--data(?==|$)", "--data.path", word) for word in arguments]
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
    if isinstance(command, Data):
        fresh = [Data(action=Show(config=base))] if _takes_config(command.action) else []
    else:
        fresh = [type(command)(config=base)] if _takes_config(command) else []
    return _read(words, fresh) if fresh or asked != words else command


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


def _show_devices(count: int) -> None:
    """Let a CPU pass for several devices; has no effect once JAX has started."""
    flags = os.environ.get("XLA_FLAGS", "")
    if "host_platform_device_count" not in flags:
        option = f"--xla_force_host_platform_device_count={count}"
        os.environ["XLA_FLAGS"] = f"{flags} {option}".strip()


def _union(types: tuple[Any, ...]) -> Any:
    union: Any = types[0]
    for each in types[1:]:
        union = union | each
    return union


def _base_config(command: Any) -> Config:
    """The defaults below the flags of a command: a run's own config, or a file over a recipe."""
    own: Any = command.action if isinstance(command, Data) else command
    named = own.config.recipe if _takes_config(own) else ""
    file = getattr(own, "config_file", None)
    if isinstance(own, Train) and own.resume is not None:
        given = {"--config": file, "--name": own.name}
        useless = [flag for flag, value in given.items() if value is not None]
        if useless:
            raise RequestError(
                f"--resume names the run, which has its own config: leave out {useless[0]}"
            )
        if not (own.resume / "config.json").is_file():
            raise RequestError(f"{own.resume} is no run folder: it has no config.json")
        return load(own.resume / "config.json")
    if file is not None:
        return load(file, named or None)
    return recipe(named or "tutorial")


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


def _put(text: str, out: Path | None) -> None:
    """Print a text, or write it to a file, whole or not at all."""
    if out is None:
        print(text, flush=True)
        return
    from thinned.core.disk import write_whole

    write_whole(out, text + "\n")


def _closing(run: Any) -> str:
    last = {record["split"]: record for record in run.metrics}
    test = last["test"]
    return "\n".join(
        (
            f"test accuracy {test['accuracy']:.2%}, loss {test['loss']:.4f} nats, "
            f"on all {test['count']:,} images",
            f"run       {run.folder}",
            f"evaluate  thinned evaluate {run.folder}",
            f"audit     thinned doctor {run.folder}",
            f"go on     thinned train --resume {run.folder} --epochs {run.config.epochs * 2}",
            f"predict   thinned predict {run.folder} IMAGES --samples 100",
        )
    )
