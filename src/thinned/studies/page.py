"""What can be said of a study: a few honest sentences, its table, and ``study.html``."""

from __future__ import annotations

import html
import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thinned.core.pages import Plots, plain, table, write_page
from thinned.studies.comparison import interval
from thinned.studies.outcomes import SCORES, Row
from thinned.studies.study import Study, curves_of

LABELS = {"accuracy": "test accuracy", "nll": "NLL (nats)", "ece": "ECE"}
_MANY = 10
_DECADES = 100
"""From this ratio of an option's values on, its axis is logarithmic."""
_NOTE = (
    "Means over seeds with Student's t intervals. Differences of test accuracy are paired by seed; "
    "their intervals and p values (t-test, Holm's correction) hold at every number of seeds that "
    "the study is looked at. No interval where all values are the same."
)


def write_study_page(
    folder: Path, study: Study, rows: Sequence[Row], figures: Path | None = None
) -> Path:
    """Write ``study.html`` in a study's folder, whole or not at all.

    Args:
        folder: of the study.
        study: its definition.
        rows: its results, see `thinned.studies.study.rows_of`.
        figures: a folder for the figures as SVG and PNG files, if wanted.

    Raises:
        RequestError: matplotlib is missing.
        ThinnedError: the file cannot be written.
    """
    plots = Plots(figures)
    scored = [row for row in rows if row.values("accuracy")]
    parts = [f"<p>{html.escape(verdict(study, rows))}</p>"]
    drawn = []
    if scored:
        parts += [_table(study, rows)]
        drawn += [_differences(study, scored, plots), _cost(study, scored, plots)]
        for option in _numeric(study):
            drawn += [_against(option, score, scored, plots) for score in SCORES]
        drawn += [_curves(folder, study, scored, split, plots) for split in ("train", "validation")]
    parts.append(f'<h2>Figures</h2><div class="grid">{"".join(filter(None, drawn))}</div>')
    lost = [
        [row.arm.name, str(seed), outcome.status, outcome.reason]
        for row in rows
        for seed, outcome in row.outcomes.items()
        if outcome.status != "finished"
    ]
    if lost:
        parts.append(f"<h2>Not finished</h2>{table(['arm', 'seed', 'what', 'why'], lost)}")
    parts.append(f"<h2>As text</h2><pre>{html.escape(told(study, rows))}</pre>")
    definition = html.escape(study.to_json())
    parts.append(f"<details><summary>Definition</summary><pre>{definition}</pre></details>")
    write_page(folder / "study.html", f"Study: {folder.name}", parts)
    return folder / "study.html"


def draw_against(
    axes: Any, option: str, score: str, rows: Sequence[Row], error: bool = False
) -> None:
    """A score's mean over a numeric option, with intervals; a line for each rest of an arm.

    With `error`, an accuracy is shown as an error in %.
    """
    series: dict[str, list[Row]] = {}
    rows = [row for row in rows if isinstance(row.arm.changes.get(option), int | float)]
    names = dict.fromkeys(name for row in rows for name in row.arm.changes if name != option)
    values_of = {name: {str(row.arm.changes.get(name)) for row in rows} for name in names}
    for row in rows:
        rest = {
            name: value
            for name, value in row.arm.changes.items()
            if len(values_of.get(name, ())) > 1
        }
        told = ", ".join(f"{name.split('.')[-1]} {value}" for name, value in rest.items())
        series.setdefault(told, []).append(row)
    for name, members in series.items():
        members.sort(key=lambda row: row.arm.changes[option])
        places = [row.arm.changes[option] for row in members]
        values = [row.values(score) for row in members]
        if error:
            values = [[100 - 100 * value for value in each] for each in values]
        means = [statistics.fmean(each) for each in values]
        draw_bars(axes, places, means, values, "o-", name)
    axes.set(xlabel=plain(option))
    places = [row.arm.changes[option] for row in rows]
    if places and min(places) > 0 and max(places) / min(places) >= _DECADES:
        axes.set_xscale("log")
        plain_ticks(axes.xaxis)
    if len(series) > 1:
        _legend(axes)


def plain_ticks(axis: Any) -> None:
    """Label a logarithmic axis 20, not 2 x 10^1: its points are read, not compared by powers."""
    from matplotlib.ticker import LogFormatter

    axis.set_major_formatter(LogFormatter())
    axis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))


def draw_bars(
    axes: Any, places: Any, means: Any, values: Sequence[Sequence[float]], form: str, label: str
) -> None:
    """Means with the intervals of their values, see `thinned.studies.comparison.interval`."""
    reach: list[tuple[float, float]] = []
    for each, mean in zip(values, means, strict=True):
        low, high = interval(each)
        reach.append((0.0, 0.0) if math.isnan(low) else (mean - low, high - mean))
    below, above = zip(*reach, strict=True)
    axes.errorbar(
        places, means, [below, above], fmt=form, capsize=3, markersize=4, label=plain(label)
    )


def _legend(axes: Any) -> None:
    """Above the axes, where it hides no points."""
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))


def _table(study: Study, rows: Sequence[Row]) -> str:
    cells = []
    for row in rows:
        line = [row.arm.name, str(len(row.values("accuracy")))]
        for score in SCORES:
            span = _span(*interval(row.values(score)))
            line.append(f"{shown(row.mean(score))}{span}")
        held = row.mean("accuracy", "validation")
        line.append(shown(held))
        found = row.difference
        if found is None:
            line += ["baseline", ""]
        else:
            span = _span(found.low, found.high, "+.4f")
            line += [f"{shown(found.mean, '+.4f')}{span}", shown(found.corrected, ".3f")]
        cells.append(line)
    header = ["arm", "runs", *(f"{LABELS[score]} (95 %)" for score in SCORES)]
    header += ["validation accuracy", "against baseline (95 %)", "p, corrected"]
    return f"<h2>Arms</h2>{table(header, cells)}<p>{_NOTE}</p>"


def _differences(study: Study, rows: Sequence[Row], plots: Plots) -> str:
    compared = [row for row in rows if row.difference is not None and row.difference.seeds]
    if not compared:
        return ""

    def paint(axes: Any) -> None:
        for place, row in enumerate(reversed(compared)):
            found = row.difference
            assert found is not None
            # Of two looks together the interval need not lie evenly about the mean.
            if not math.isnan(found.low):
                axes.plot([found.low, found.high], [place] * 2, "|-", color="C0")
            axes.plot(found.mean, place, "o", color="C0")
        axes.set_yticks(range(len(compared)), [plain(row.arm.name) for row in reversed(compared)])
        axes.axvline(0, linewidth=1, color="C7")
        axes.set(xlabel="test accuracy less the baseline's")

    base = study.baseline if study.within is None else f"the baseline of each {study.within}"
    caption = f"Differences from {base}, paired by seed, with 95 % intervals"
    return plots.draw("differences", caption, paint, max(2.5, 0.35 * len(compared) + 1))


def _cost(study: Study, rows: Sequence[Row], plots: Plots) -> str:
    cost = study.cost(rows)
    timed = [row for row in rows if not math.isnan(cost[row.arm.name])]
    if len(timed) < 2:
        return ""

    def paint(axes: Any) -> None:
        for row in timed:
            axes.plot(cost[row.arm.name], row.mean("accuracy"), "o", label=plain(row.arm.name))
        axes.set(xlabel="time of training, over the baseline's", ylabel="test accuracy")
        if len(timed) <= _MANY:
            _legend(axes)

    return plots.draw("cost", "Cost against gain", paint)


def _against(option: str, score: str, rows: Sequence[Row], plots: Plots) -> str:
    def paint(axes: Any) -> None:
        draw_against(axes, option, score, rows)
        axes.set(ylabel=LABELS[score])

    name = f"{score}-{option.replace('.', '-')}"
    return plots.draw(name, f"{LABELS[score]} by {option}: mean and 95 % interval", paint)


def _curves(folder: Path, study: Study, rows: Sequence[Row], split: str, plots: Plots) -> str:
    curves = {row.arm.name: mean_curve(folder, study, row, split) for row in rows[:_MANY]}
    if not any(curves.values()):
        return ""

    def paint(axes: Any) -> None:
        for name, curve in curves.items():
            axes.plot(list(curve), list(curve.values()), marker=".", label=plain(name))
        axes.set(xlabel="epoch", ylabel=f"{split} accuracy")
        axes.xaxis.get_major_locator().set_params(integer=True)
        _legend(axes)

    first = f", the first {_MANY} arms" if len(rows) > _MANY else ""
    return plots.draw(f"curves-{split}", f"{split} accuracy by epoch, mean{first}", paint)


def mean_curve(folder: Path, study: Study, row: Row, split: str) -> Mapping[int, float]:
    """Accuracy of a split by epoch, the mean over the seeds of an arm that got so far."""
    points: dict[int, list[float]] = {}
    for seed in study.seeds:
        for record in curves_of(folder, row.arm, seed):
            if record["split"] == split:
                points.setdefault(record["epoch"], []).append(record["accuracy"])
    return {epoch: statistics.fmean(values) for epoch, values in sorted(points.items())}


def _numeric(study: Study) -> list[str]:
    """Options that take at least two numbers."""
    found: dict[str, set[float]] = {}
    for arm in study.arms:
        for name, value in arm.changes.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                found.setdefault(name, set()).add(value)
    return [name for name, values in found.items() if len(values) > 1]


def verdict(study: Study, rows: Sequence[Row]) -> str:
    """What can be said of a study, in a few honest sentences."""
    compared = [(row.arm.name, row.difference) for row in rows if row.difference is not None]
    clear = [(name, found) for name, found in compared if found.is_told]
    bases = study.baselines
    parts = [
        f"{name} is {'better' if found.mean > 0 else 'worse'} than {bases[name]} by "
        f"{abs(found.mean):.2%} ({found.low:+.2%} to {found.high:+.2%}; corrected "
        f"p {found.corrected:.3f})."
        for name, found in sorted(clear, key=lambda each: -each[1].mean)
    ]
    unclear = [found for _, found in compared if not found.is_told]
    if unclear and all(found.seeds < 2 for found in unclear):
        parts.append(
            "Nothing more can be said of differences: that needs at least two seeds that finished "
            "in both arms."
        )
    elif unclear:
        # Pairs that did not finish have still to be had.
        lacking = min((found.needed - found.seeds for found in unclear if found.needed), default=0)
        more = f"; about {lacking:,} more would be needed" if lacking > 0 else ""
        which = "no other difference" if clear else "no difference"
        base = study.baseline if study.within is None else "its baseline"
        parts.append(f"With {len(study.seeds)} seeds {which} from {base} can be told{more}.")
    if any(found.seeds > 1 for _, found in compared):
        parts.append(_look(study))
    best = _best(rows)
    if best is not None:
        parts.append(f"By validation images, {best.arm.name} is the one to choose.")
    elif len(rows) > 1:
        parts.append(
            "No arm is chosen: test images are not for choosing, and none were held out "
            "(--data.validation)."
        )
    lost = sum(o.status != "finished" for row in rows for o in row.outcomes.values())
    if lost:
        runs = "1 run did not finish and is" if lost == 1 else f"{lost} runs did not finish and are"
        parts.append(f"{runs} left out of the means.")
    return " ".join(parts)


def _look(study: Study) -> str:
    """At which look a verdict stands, and what all looks together promise."""
    promise = "all looks together find a difference that is not there in at most 5 % of studies"
    if not study.looks:
        return f"This study did not note how many seeds were planned; {promise}."
    counts = ", ".join(map(str, study.looks))
    return f"Look {len(study.looks)} (seeds: {counts}; the first planned); {promise}."


def _span(low: float, high: float, form: str = ".4f") -> str:
    """An interval in brackets behind its mean; empty where there is none."""
    return "" if math.isnan(low) else f" ({low:{form}} to {high:{form}})"


def told(study: Study, rows: Sequence[Row]) -> str:
    """The table and the verdict, for people."""
    width = max(len("arm"), *(len(row.arm.name) for row in rows))
    lines = [
        f"{'arm'.ljust(width)}  runs  {'% right in test (95 %)':<25}{'NLL':>7}{'ECE':>8}"
        f"{'against baseline (95 %)':>25}{'p':>7}{'time':>6}"
    ]
    cost = study.cost(rows)
    for row in rows:
        accuracy, count = row.values("accuracy"), len(row.values("accuracy"))
        cell = "-"
        if count:
            low, high = interval(accuracy)
            span = _span(100 * low, 100 * high, ".2f")
            cell = f"{100 * row.mean('accuracy'):.2f}{span}"
        lost = {o.status for o in row.outcomes.values() if o.status != "finished"}
        cell = f"{cell} {', '.join(sorted(lost))}".strip("- ") if lost else cell
        found = row.difference
        against, p_value = "baseline", ""
        if found is not None:
            against = f"{100 * found.mean:+.2f}" if found.seeds else "-"
            if found.seeds > 1:
                against += _span(100 * found.low, 100 * found.high, "+.2f")
                p_value = shown(found.corrected, ".3f")
        lines.append(
            f"{row.arm.name.ljust(width)}  {count:>4}  {cell:<25}{shown(row.mean('nll')):>7}"
            f"{shown(row.mean('ece')):>8}{against:>25}{p_value:>7}"
            f"{shown(cost[row.arm.name], '.2f'):>6}"
        )
    notes = (
        "right: mean over seeds, Student's t; against: points, paired by seed; p: paired t-test, "
        "both for every number of seeds looked at, Holm's correction; time: of training, over the "
        "baseline's"
    )
    words = (textwrap.fill(text, max(79, len(lines[0]))) for text in (notes, verdict(study, rows)))
    return "\n".join(lines) + "\n\n" + "\n\n".join(words)


def shown(number: float, form: str = ".4f") -> str:
    """A number for people; ``-`` for NaN."""
    return "-" if math.isnan(number) else f"{number:{form}}"


def _best(rows: Sequence[Row]) -> Row | None:
    held = [row for row in rows if row.values("accuracy", "validation")]
    if len(held) < 2:
        return None
    # What only some seeds survive is no arm to choose while there is another.
    safe = [row for row in held if all(o.status == "finished" for o in row.outcomes.values())]
    return max(safe or held, key=lambda row: row.mean("accuracy", "validation"))
