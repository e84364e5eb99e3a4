"""Commands on what runs are worth and predict: evaluate, predict, calibrate, report."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from thinned.cli.options import Debug, is_artifact
from thinned.core.config import Option
from thinned.core.errors import RequestError, ThinnedError

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


Coverage = Annotated[
    float | None,
    Option(
        "Sets of classes that hold the right one of this part of the images, by the validation "
        "images.",
        "of the images",
        low=0,
        high=1,
    ),
]
Sets = Annotated[
    Literal["lac", "aps", "raps"] | None,
    Option(
        "Kind of set: the smallest (lac, which is the default), larger for harder images (aps), "
        "small among many classes (raps)."
    ),
]
PerClass = Annotated[bool, Option("Promise the coverage of each class, instead of all together.")]


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
    calibrated: Annotated[bool, Option("Temper probabilities, as thinned calibrate fitted it.")] = (
        False
    )
    ood: Annotated[
        str | None, Option("Other images, to see how well uncertainty tells them apart.")
    ] = None
    worth: Annotated[
        bool,
        Option("Compare a plain pass with samples and ensemble, each with a temperature, instead."),
    ] = False
    coverage: Coverage = None
    sets: Sets = None
    per_class: PerClass = False
    corrupt: Annotated[
        bool,
        Option("Score test images damaged as in MNIST-C, CIFAR-10-C or ImageNet-C, too."),
    ] = False
    format: Annotated[
        Literal["text", "json"],
        Option("Text, or JSON that also holds the points of risk and coverage."),
    ] = "text"
    out: Annotated[Path | None, Option("File to write; the terminal when absent.")] = None
    debug: Debug = False

    def __call__(self) -> None:
        """Evaluate, and print or write the scores."""
        from thinned.core.disk import refuse_unwritable
        from thinned.runs import evaluate as scoring
        from thinned.runs import predictions as trust

        refuse_unwritable(self.out)
        _refuse_lone_sets(self.coverage, self.sets, self.per_class)
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
            coverage=self.coverage,
            sets=self.sets or "lac",
            per_class=self.per_class,
        )
        if silent:
            as_json = self.format == "json"
            _put(json.dumps(values, ensure_ascii=False) if as_json else "\n".join(lines), self.out)

    def _compare(self, runs: Sequence[Any]) -> None:
        from thinned.runs.worth import compare

        given = {"--samples": self.samples, "--calibrated": self.calibrated, "--ood": self.ood}
        given |= {"--corrupt": self.corrupt, "--coverage": self.coverage is not None}
        given |= {"--format json": self.format == "json"}
        useless = [name for name, value in given.items() if value]
        if useless:
            raise RequestError(f"--worth compares ways of its own: leave out {', '.join(useless)}")
        _put(str(compare(runs, self.data_path)), self.out)


@dataclass(frozen=True)
class Predict:
    """Classify image files; with --samples, say how sure that is."""

    paths: Annotated[
        Positional[tuple[Path, ...]],
        Option(
            "Run folder (or several, as an ensemble) or exported artifact, then image files and "
            "folders of them."
        ),
    ]
    samples: Samples = 0
    calibrated: Annotated[bool, Option("Temper probabilities, as thinned calibrate fitted it.")] = (
        False
    )
    risk: Annotated[
        float | None,
        Option(
            "Mark answers as unsure, so that at most this part of the others is wrong, also of new "
            "images; by the validation images.",
            "of the answers",
            low=0,
            high=1,
        ),
    ] = None
    confidence: Annotated[
        float | None,
        Option("How surely --risk holds; 0.95 when absent.", "probability", low=0, high=1),
    ] = None
    coverage: Coverage = None
    sets: Sets = None
    per_class: PerClass = False
    ood_fpr: Annotated[
        float | None,
        Option(
            "Mark images as none of the known classes, so that on average this part of the known "
            "ones is marked, too; by the validation images.",
            "of the images",
            low=0,
            high=1,
        ),
    ] = None
    ood_score: Annotated[
        Literal["energy", "max-logit", "mahalanobis", "relative-mahalanobis", "knn", "vim"],
        Option("How strange an image looks, for --ood-fpr."),
    ] = "energy"
    format: Annotated[
        Literal["table", "csv", "json", "parquet"],
        Option("A table, CSV, JSON with one object a line, or Parquet (with --out)."),
    ] = "table"
    out: Annotated[Path | None, Option("File to write; the terminal when absent.")] = None
    debug: Debug = False

    def __call__(self) -> None:
        """Predict, and print or write a row for each file."""
        from thinned.runs import files as prediction
        from thinned.runs import predictions as trust

        prediction.refuse_unready(self.format, self.out)
        _refuse_lone_sets(self.coverage, self.sets, self.per_class)
        if self.risk is None and self.confidence is not None:
            raise RequestError("--confidence says how surely --risk holds: give that, too")
        if is_artifact(self.paths):
            self._write(self._by_artifact())
            return
        folders = [path for path in self.paths if os.path.isfile(path / "config.json")]
        if not folders:
            if not self.paths:
                raise RequestError("no run is given")
            raise RequestError(
                f"{self.paths[0]} is no run folder (it has no config.json), and no artifact"
            )
        rows = prediction.predict_files(
            trust.load_runs(folders),
            [path for path in self.paths if path not in folders],
            samples=self.samples,
            calibrated=self.calibrated,
            risk=self.risk,
            confidence=0.95 if self.confidence is None else self.confidence,
            coverage=self.coverage,
            sets=self.sets or "lac",
            per_class=self.per_class,
            ood_fpr=self.ood_fpr,
            ood_score=self.ood_score,
        )
        self._write(rows)

    def _by_artifact(self) -> Iterator[dict[str, Any]]:
        from thinned.deploy.artifact import Artifact
        from thinned.deploy.promises import kept_of
        from thinned.runs.files import answer_files

        folder, *images = self.paths
        if self.samples == "auto":
            raise RequestError("--samples auto is for runs: an artifact has a number of its own")
        artifact = Artifact.open(folder)
        way = artifact.way(self.samples, self.calibrated)
        wanted = kept_of(
            way,
            coverage=self.coverage,
            sets=self.sets,
            per_class=self.per_class,
            risk=self.risk,
            confidence=self.confidence,
            ood_fpr=self.ood_fpr,
            ood_score=self.ood_score,
        )
        return answer_files(artifact.answers(wanted), images)

    def _write(self, rows: Iterator[dict[str, Any]]) -> None:
        from thinned.runs import files as prediction

        marking = None if self.ood_fpr is None else self.ood_score
        header = prediction.columns(self.samples, self.risk, self.coverage, marking)
        errors = prediction.write_rows(rows, self.format, self.out, header)
        if errors:
            raise ThinnedError(f"{errors} of the files could not be read")


@dataclass(frozen=True)
class Calibrate:
    """Fit a temperature on validation images, for --calibrated with the same runs and samples."""

    runs: Annotated[Positional[tuple[Path, ...]], Option("Run folder, or several, as an ensemble.")]
    samples: Annotated[
        int, Option("Thinned networks of each run to average; 0 for dropout off.", "samples", low=0)
    ] = 0
    debug: Debug = False

    def __call__(self) -> None:
        """Fit, save, and say what it changed."""
        from thinned.runs import predictions as trust

        calibration = trust.calibrate(trust.load_runs(self.runs), self.samples)
        print(calibration)
        if calibration.doubt:
            print(f"thinned: warning: {calibration.doubt}", file=sys.stderr)


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
    coverage: Coverage = None
    sets: Sets = None
    figures: Annotated[Path | None, Option("Folder for the figures as SVG and PNG files, too.")] = (
        None
    )
    debug: Debug = False

    def __call__(self) -> None:
        """Write the page and say where it is."""
        from thinned.core.disk import refuse_unwritable
        from thinned.runs import predictions as trust
        from thinned.runs import report

        refuse_unwritable(self.out)
        _refuse_lone_sets(self.coverage, self.sets)
        runs = trust.load_runs(self.runs)
        alone = runs[0].folder / "report.html" if len(runs) == 1 else Path("report.html")
        out = self.out or alone
        print(
            report.write_report(
                runs,
                out,
                self.samples,
                self.figures,
                self.ood,
                self.coverage,
                self.sets or "lac",
            )
        )


def _refuse_lone_sets(coverage: float | None, sets: str | None, per_class: bool = False) -> None:
    """Refuse to say how sets are made where none are asked for."""
    if coverage is None and (sets or per_class):
        flag = "--sets" if sets else "--per-class"
        raise RequestError(f"{flag} says how the sets of --coverage are made: give that, too")


def _put(text: str, out: Path | None) -> None:
    """Print a text, or write it to a file, whole or not at all."""
    if out is None:
        print(text, flush=True)
        return
    from thinned.core.disk import write_whole

    write_whole(out, text + "\n")
