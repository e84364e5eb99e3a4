"""Published tables and figures by one command each; what they are is data, in ``recipes/``."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import yaml

from thinned.core.config import recipe, with_values
from thinned.core.disk import write_whole
from thinned.core.errors import RequestError, nearest
from thinned.core.pages import PRINTED, Plots, plain
from thinned.core.rng import a_few
from thinned.core.types import Split
from thinned.data.batch import as_float
from thinned.runs.environment import describe_environment
from thinned.runs.predictions import predictions_of
from thinned.studies.arms import Arm, grid, varied
from thinned.studies.comparison import interval, paired_differences
from thinned.studies.outcomes import Row, accuracies_of
from thinned.studies.page import (
    draw_against,
    draw_bars,
    mean_curve,
    plain_ticks,
    verdict,
    write_study_page,
)
from thinned.studies.study import Study, run_of, run_study

Budget = Literal["smoke", "short", "full"]
_WATCHED = 1000
_FOLDER = resources.files("thinned.studies") / "recipes"


@dataclass(frozen=True)
class Reproduction:
    """A published table or figure.

    Attributes:
        name: as on the command line.
        about: its file, as a mapping; see ``recipes/`` for examples.
    """

    name: str
    about: Mapping[str, Any]

    @classmethod
    def open(cls, name: str) -> Reproduction:
        """The reproduction of that name.

        Raises:
            RequestError: there is none.
        """
        known = names()
        if name not in known:
            raise RequestError(
                f"unknown reproduction {name!r}{nearest(name, dict.fromkeys(known))}"
            )
        return cls(name, yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")))

    @property
    def published(self) -> dict[str, float]:
        """Arm -> published test error, in %."""
        arms = self.about.get("arms", ())
        return {arm["name"]: arm["published"] for arm in arms if "published" in arm}

    @property
    def spreads(self) -> dict[str, float]:
        """Arm -> what the paper gives after "+-", in points of error, where it does."""
        return {arm["name"]: arm["spread"] for arm in self.about.get("arms", ()) if "spread" in arm}

    def study(self, budget: Budget, rows: Sequence[str] = (), seeds: int | None = None) -> Study:
        """What is run.

        Args:
            budget: how much; ``full`` is the paper's protocol.
            rows: names of arms; those of the budget, else all, when empty.
            seeds: runs of each arm; the budget's when None.

        Raises:
            RequestError: there is no such row.
        """
        base = with_values(recipe("tutorial"), self.about["base"], self.name)
        means = self.about["budgets"][budget]
        vary = means.get("vary", self.about.get("vary"))
        if vary:
            arms = grid(varied(vary, base))
        else:
            arms = [Arm(arm["name"], arm["changes"]) for arm in self.about["arms"]]
        known = {arm.name: arm for arm in arms}
        chosen = list(rows) or means.get("rows", list(known))
        for name in chosen:
            if name not in known:
                raise RequestError(f"--rows {name!r}{nearest(name, known)}")
        instead = means.get("instead", {})
        changed = []
        for name in chosen:
            own = {key: instead.get(key, value) for key, value in known[name].changes.items()}
            changed.append(Arm(name, {**own, **means["changes"]}))
        baseline = self.about["baseline"]
        count = means["seeds"] if seeds is None else seeds
        if count < 1:
            raise RequestError(f"--seeds is {count}: must be at least 1")
        first = baseline if baseline in chosen else chosen[0]
        return Study.of(base, changed, range(count), first, self.about.get("within"))


@dataclass(frozen=True)
class Result:
    """What came out of a reproduction.

    Attributes:
        reproduction: what was reproduced.
        budget: by which much.
        study: what was run.
        rows: its results.
        measured: what else was measured on the trained networks, by name; often empty.
    """

    reproduction: Reproduction
    budget: Budget
    study: Study
    rows: Sequence[Row]
    measured: Mapping[str, Any]

    def __str__(self) -> str:
        """The published values beside ours, then what can be said of the differences."""
        published, spreads = self.reproduction.published, self.reproduction.spreads
        width = max(len(row.arm.name) for row in self.rows)
        lines = [
            self.reproduction.about["title"],
            f"{''.ljust(width)}      published  ours, mean of runs (95 %)",
        ]
        for row in self.rows:
            name = row.arm.name
            theirs = f"{published[name]:.2f}" if name in published else "-"
            theirs += f" +- {spreads[name]:.2f}" if name in spreads else ""
            lines.append(f"{name.ljust(width)}  {theirs:>13}  {_error(row)}")
        order = self._order()
        lines += [order] if order else []
        lines += [f"{name}: {_told(value)}" for name, value in self.measured.items()]
        told = verdict(self.study, self.rows)
        return "\n".join([*lines, "", told] if told else lines)

    def _order(self) -> str:
        about, ranks = self.reproduction.about, self.reproduction.published
        if about.get("order") == "worst first":
            # Rows without a published value of their own have a place, too.
            ranks = {arm["name"]: -float(place) for place, arm in enumerate(about["arms"])}
        both = [row for row in self.rows if row.arm.name in ranks and row.values("accuracy")]
        if len(both) < 2:
            return ""
        theirs = sorted(both, key=lambda row: ranks[row.arm.name])
        ours = sorted(both, key=lambda row: -row.mean("accuracy"))
        agree = [row.arm.name for row in theirs] == [row.arm.name for row in ours]
        pairs = list(itertools.pairwise(theirs))
        planned = self.study.planned
        told = sum(_is_told(better, worse, planned) for better, worse in pairs)
        return (
            f"order of the means: {'as published' if agree else 'not as published'}; of "
            f"{len(pairs)} {'pair' if len(pairs) == 1 else 'pairs'} of neighbours, {told} "
            f"{'differs' if told == 1 else 'differ'} as published by more than the noise "
            "(paired t-test, 5 % each over all looks)"
        )

    @property
    def command(self) -> str:
        """What runs this again."""
        seeds = f"--budget {self.budget} --seeds {len(self.study.seeds)}"
        rows = [row.arm.name for row in self.rows]
        all_ = [arm.name for arm in self.reproduction.study(self.budget).arms]
        named = "" if rows == all_ else f" --rows {shlex.join(rows)}"
        return f"thinned reproduce {self.reproduction.name} {seeds}{named}"

    def to_json(self) -> str:
        """As JSON: figures in % of error by arm, with what they came from; null for unknown."""
        arms = {
            row.arm.name: {
                "published_error": self.reproduction.published.get(row.arm.name),
                "published_spread": self.reproduction.spreads.get(row.arm.name),
                "errors": (errors := [round(100 - 100 * v, 4) for v in row.values("accuracy")]),
                "interval": [_known(end) for end in interval(errors)],
                "against_baseline": _against(row),
                "nll": row.values("nll"),
                "status": {str(seed): o.status for seed, o in row.outcomes.items()},
                "epoch_s": _known(row.epoch_s),
                "config": dict(row.arm.changes),
            }
            for row in self.rows
        }
        versions = describe_environment("", "")
        held = {key: versions[key] for key in ("python", "packages") if key in versions}
        about = {
            "name": self.reproduction.name,
            "budget": self.budget,
            "command": self.command,
            "seeds": list(self.study.seeds),
            "looks": list(self.study.looks),
            "baseline": self.study.baseline,
            "within": self.study.within,
            **held,
            "base": dataclasses.asdict(self.study.base),
        }
        whole = {**about, "arms": arms, "measured": self.measured}
        return json.dumps(whole, indent=1, allow_nan=False) + "\n"


def names() -> list[str]:
    """All reproductions, sorted."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in _FOLDER.iterdir()
        if entry.name[-5:] == ".yaml"
    )


def reproduce(
    wanted: Reproduction,
    study: Study,
    folder: Path,
    budget: Budget,
    tell: Callable[[str], None] = lambda line: None,
    processes: int = 1,
) -> Result:
    """Run a reproduction, or go on with it, and write its page, picture and figures.

    Args:
        wanted: what to reproduce.
        study: see `Reproduction.study`.
        folder: of its study.
        budget: that of the study.
        tell: gets a line for every run.
        processes: as for `thinned.studies.study.run_study`.

    Returns:
        The result, which is also in ``result.json``, ``study.html`` and ``NAME.svg`` and ``.png``
        in `folder`.

    Raises:
        RequestError: matplotlib is missing, or as `thinned.studies.study.run_study`.
    """
    plots = Plots(folder)
    rows = run_study(study, folder, tell, processes)
    # With the looks of before.
    study = Study.open(folder)
    figure = wanted.about["figure"]
    finished = [row for row in rows if row.values("accuracy")]
    measured = _MEASURES.get(figure["kind"], _nothing)(folder, study, finished, figure)
    result = Result(wanted, budget, study, rows, measured)
    write_whole(folder / "result.json", result.to_json())
    if finished:

        def paint(axes: Any) -> None:
            PICTURES[figure["kind"]](axes, folder, result, finished, figure)

        plots.draw(wanted.name, wanted.about["title"], paint, PRINTED)
    write_study_page(folder, study, rows)
    return result


def _nothing(folder: Path, study: Study, rows: Sequence[Row], figure: Any) -> dict[str, Any]:
    return {}


def _gains(folder: Path, study: Study, rows: Sequence[Row], figure: Any) -> dict[str, Any]:
    """Points of test error that each value of one option wins over 0, beside the figure's own."""
    option, gain = figure["option"], figure.get("gain")
    gains: dict[str, dict[str, list[float]]] = {}
    bases = {row.arm.changes[option]: row for row in rows if gain and not row.arm.changes[gain]}
    for row in rows:
        value = row.arm.changes[gain] if gain else 0
        base = bases.get(row.arm.changes[option])
        if not value or base is None:
            continue
        for seed in set(_finished(row)) & set(_finished(base)):
            right = [side.outcomes[seed].scores["test"]["accuracy"] for side in (row, base)]
            kept = gains.setdefault(f"points won by {gain}={value}", {})
            name = f"{option}={row.arm.changes[option]}"
            kept.setdefault(name, []).append(round(100 * (right[0] - right[1]), 4))
    return gains


def _samples(folder: Path, study: Study, rows: Sequence[Row], figure: Any) -> dict[str, Any]:
    """Test error in % of the mean of k thinned networks, and of one pass with scaled weights."""
    errors: dict[str, list[float]] = {}
    for row in rows:
        for seed in _finished(row):
            run = run_of(folder, row.arm, seed)
            test = run.test_images()
            for count in (0, *figure["counts"]):
                name = f"{count} samples" if count else "weight scaling"
                right = predictions_of([run], test.images, count).probabilities.argmax(1)
                error = 100 * float(np.mean(right != test.labels))
                errors.setdefault(name, []).append(round(error, 4))
    return {"test error, %": errors}


def _activations(folder: Path, study: Study, rows: Sequence[Row], figure: Any) -> dict[str, Any]:
    """Mean and active share of a hidden layer's ReLUs on test images, dropout off."""
    activations: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for seed in _finished(row):
            run = run_of(folder, row.arm, seed)
            outputs = _hidden(run, run.test_images(), figure["layer"])
            kept = activations.setdefault(row.arm.name, {"mean activation": [], "share active": []})
            kept["mean activation"].append(round(float(outputs.mean()), 5))
            kept["share active"].append(round(float((outputs > 0).mean()), 5))
    return activations


def _hidden(run: Any, test: Split, layer: str) -> np.ndarray:
    images = as_float(jnp.asarray(test.images[a_few(len(test), _WATCHED, run.config.seed)]))
    _, seen = run.state.apply_fn(
        run.state.variables,
        images,
        train=False,
        capture_intermediates=lambda module, _: module.name == layer,
        mutable=["intermediates"],
    )
    (outputs,) = jax.tree.leaves(seen["intermediates"])
    return np.maximum(np.asarray(outputs), 0)


def _paint_bars(axes: Any, folder: Path, result: Result, rows: Sequence[Row], figure: Any) -> None:
    published = result.reproduction.published
    for place, row in enumerate(reversed(rows)):
        errors = [100 - 100 * value for value in row.values("accuracy")]
        axes.plot(errors, [place] * len(errors), ".", color="C0", alpha=0.5)
        axes.plot(statistics.fmean(errors), place, "o", color="C0")
        if row.arm.name in published:
            axes.plot(published[row.arm.name], place, "x", color="C1")
    axes.set_yticks(range(len(rows)), [plain(row.arm.name) for row in reversed(rows)])
    axes.plot([], [], "o", color="C0", label="ours: mean, and single runs")
    axes.plot([], [], "x", color="C1", label="published")
    axes.set(xlabel="test error (%)")
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))


def _paint_lines(axes: Any, folder: Path, result: Result, rows: Sequence[Row], figure: Any) -> None:
    draw_against(axes, figure["option"], "accuracy", rows, lambda value: 100 - 100 * value)
    scales = {each: figure.get(each, "linear") for each in ("xscale", "yscale")}
    axes.set(xlabel=figure["label"], ylabel="test error (%)", **scales)
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            plain_ticks(axis)


def _paint_curves(
    axes: Any, folder: Path, result: Result, rows: Sequence[Row], figure: Any
) -> None:
    for row in rows:
        curve = mean_curve(folder, result.study, row, figure["split"])
        errors = [100 - 100 * value for value in curve.values()]
        axes.plot(
            list(curve), errors, "-" if " with" in row.arm.name else "--", label=plain(row.arm.name)
        )
    axes.set(xlabel="epoch", ylabel=f"{figure['split']} error (%)")
    axes.legend(frameon=False, fontsize=9)


def _paint_samples(
    axes: Any, folder: Path, result: Result, rows: Sequence[Row], figure: Any
) -> None:
    errors = result.measured["test error, %"]
    means = [statistics.fmean(errors[f"{count} samples"]) for count in figure["counts"]]
    draw_bars(
        axes,
        figure["counts"],
        means,
        [errors[f"{count} samples"] for count in figure["counts"]],
        "o-",
        "mean of k networks, 95 %",
    )
    axes.axhline(statistics.fmean(errors["weight scaling"]), color="C1", label="weight scaling")
    axes.set(xlabel="k", ylabel="test error (%)", xscale="log")
    axes.set_xticks([1, 10, 100], ["1", "10", "100"])
    axes.legend(frameon=False)


def _paint_activations(
    axes: Any, folder: Path, result: Result, rows: Sequence[Row], figure: Any
) -> None:
    for number, row in enumerate(rows):
        run = run_of(folder, row.arm, _finished(row)[0])
        outputs = _hidden(run, run.test_images(), figure["layer"])
        axes.hist(
            outputs[outputs > 0], 60, histtype="step", color=f"C{number}", label=plain(row.arm.name)
        )
    axes.set(xlabel="activation above 0", ylabel="units and images", yscale="log")
    axes.legend(frameon=False)


def _finished(row: Row) -> list[int]:
    return [seed for seed, outcome in row.outcomes.items() if outcome.status == "finished"]


def _error(row: Row) -> str:
    errors = [100 - 100 * value for value in row.values("accuracy")]
    if not errors:
        return "no run finished"
    low, high = interval(errors)
    runs = f"{len(errors)} run{'s' if len(errors) > 1 else ''}"
    span = "" if math.isnan(low) else f" ({low:.2f} to {high:.2f})"
    return f"{statistics.fmean(errors):.3f}{span}, {runs}"


def _is_told(better: Row, worse: Row, planned: Sequence[int]) -> bool:
    right = {row.arm.name: accuracies_of(row.outcomes) for row in (better, worse)}
    difference = paired_differences(right, worse.arm.name, planned)[better.arm.name]
    return difference.is_told and difference.mean > 0


def _against(row: Row) -> dict[str, float | None] | None:
    """Points of test error that an arm has more than its baseline; None for a baseline."""
    difference = row.difference
    if difference is None:
        return None
    ends = (difference.mean, difference.high, difference.low)
    mean, low, high = (_known(round(-100 * end, 4)) for end in ends)
    return {"mean": mean, "low": low, "high": high, "corrected_p": _known(difference.corrected)}


def _known(number: float) -> float | None:
    return None if math.isnan(number) else number


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        parts: Mapping[str, Any] = value
        return ", ".join(f"{name} {statistics.fmean(held):.3f}" for name, held in parts.items())
    return str(value)


_MEASURES: Mapping[str, Callable[..., dict[str, Any]]] = {
    "lines": _gains,
    "samples": _samples,
    "activations": _activations,
}
PICTURES: Mapping[str, Callable[..., None]] = {
    "bars": _paint_bars,
    "lines": _paint_lines,
    "curves": _paint_curves,
    "samples": _paint_samples,
    "activations": _paint_activations,
}
