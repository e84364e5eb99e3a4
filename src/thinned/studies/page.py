"""What can be said of a study: a few honest sentences, its table, and ``study.html``."""

from __future__ import annotations

import itertools
import math
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from thinned.core.pages import (
    Plots,
    card,
    cards,
    folded,
    lead,
    plain,
    points,
    table,
    text,
    write_page,
)
from thinned.studies.comparison import Difference, interval
from thinned.studies.outcomes import SCORES, Row, accuracies_of
from thinned.studies.study import Study, curves_of

_NAME = 50
"""Letters of an arm's name in a figure."""
LABELS = {"accuracy": "test accuracy", "nll": "NLL (nats)", "ece": "ECE"}
_MARKERS = "os^DvPX*<>"
"""By which arms are told apart in black and white."""
_MANY = 10
_SAME = 1e-6
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
    arms = _arms(study, scored, plots)
    title = f"Study {folder.name}: {len(rows):,} arms, {len(study.seeds):,} seeds"
    parts = [lead(title, headline(study, rows), sentences(study, rows), (), arms)]
    if scored:
        beside = [("Over training", _curves(folder, study, scored, plots))]
        beside += [("What it costs", _cost(study, scored, plots))]
        wide = sum(bool(part) for _, part in beside) == 1
        parts.append(cards(*(card(name, part, wide=wide) for name, part in beside)))
        for option in _numeric(study):
            drawn = [_against(option, score, scored, plots) for score in SCORES]
            held = f'<div class="beside">{"".join(drawn)}</div>'
            parts.append(cards(card(f"By {option}", held, wide=True)))
    definition = folded("Definition", text(study.to_json()))
    held = [_table(study, rows), folded("As text", text(told(study, rows))), definition]
    parts.append(cards(card("Not finished", _lost(rows), wide=True), card("All", *held, wide=True)))
    write_page(folder / "study.html", f"Study: {folder.name}", parts)
    return folder / "study.html"


def _lost(rows: Sequence[Row]) -> str:
    lost = [
        [row.arm.name, str(seed), outcome.status, outcome.reason]
        for row in rows
        for seed, outcome in row.outcomes.items()
        if outcome.status != "finished"
    ]
    return table(["arm", "seed", "what", "why"], lost) if lost else ""


def draw_against(
    axes: Any,
    option: str,
    score: str,
    rows: Sequence[Row],
    form: Callable[[float], float] = lambda value: value,
) -> None:
    """A score's mean over a numeric option, with intervals; a line for each rest of an arm.

    The axis shows of each value what `form` makes of it.
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
        values = [list(map(form, row.values(score))) for row in members]
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
    return folded("Table", table(header, cells), f"<p>{_NOTE}</p>")


def _arms(study: Study, rows: Sequence[Row], plots: Plots) -> str:
    """Each arm's differences from its baseline, seed by seed, with their mean and interval."""
    by_name = {row.arm.name: row for row in rows}
    compared = [
        (row.arm.name, row.difference, _gains(row, by_name[study.baselines[row.arm.name]]))
        for row in rows
        if row.difference is not None and row.difference.seeds
    ]
    if not compared:
        return ""
    low, high = window(
        [0.0, *(gain for _, _, gains in compared for gain in gains)],
        [100 * end for _, found, _ in compared for end in (found.low, found.high)],
    )

    def paint(axes: Any) -> None:
        across = axes.get_yaxis_transform()
        for place, (name, found, gains) in enumerate(reversed(compared)):
            axes.plot(gains, [place] * len(gains), "o", color="C1", alpha=0.7, markersize=4)
            axes.plot(100 * found.mean, place, "D", color="C0")
            if not math.isnan(found.low):
                _interval(axes, place, 100 * found.low, 100 * found.high, (low, high))
            told = name if len(name) <= _NAME else f"{name[:_NAME]} ..."
            axes.text(0, place + 0.22, plain(told), transform=across, fontsize=10)
            axes.text(1, place - 0.34, _gain(found), transform=across, fontsize=10, ha="right")
            # Not a line through all rows, which would cross their names.
            axes.vlines(0, place - 0.14, place + 0.18, linewidth=1, color="C7")
        axes.spines["left"].set_visible(False)
        axes.set(yticks=[], ylim=(-0.5, len(compared) - 0.3), xlim=(low, high))
        axes.set(xlabel="points of test accuracy over the baseline")

    base = study.baseline if study.within is None else f"the baseline of each {study.within}"
    caption = f"What each arm wins over {base}: its seeds, their mean, and the 95 % interval"
    if any(100 * found.low < low or 100 * found.high > high for _, found, _ in compared):
        caption += "; arrows lead to where the axis ends before the interval does"
    return plots.draw("differences", caption, paint, (4.6, 0.65 * len(compared) + 0.8))


def _gains(row: Row, base: Row) -> list[float]:
    """By how many points of test accuracy each seed of an arm is better than its baseline."""
    first, second = accuracies_of(row.outcomes), accuracies_of(base.outcomes)
    gains = (100 * (first[seed] - second[seed]) for seed in first if seed in second)
    return [gain for gain in gains if not math.isnan(gain)]


def _interval(axes: Any, place: float, low: float, high: float, ends: tuple[float, float]) -> None:
    shown = max(low, ends[0]), min(high, ends[1])
    axes.plot(shown, [place] * 2, "-", color="C0")
    marks = ("|" if low >= ends[0] else "<"), ("|" if high <= ends[1] else ">")
    for end, mark in zip(shown, marks, strict=True):
        axes.plot(end, place, mark, color="C0", markersize=7, clip_on=False)


def window(values: Sequence[float], reach: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis on which values can be told apart, however far intervals reach.

    Args:
        values: all of them are shown, with some room.
        reach: ends of intervals, shown where they lie no further from the values than these from
            one another; NaN for none.
    """
    low, high = min(values), max(values)
    # Values that differ by rounding alone are one.
    span = high - low if high - low > _SAME else abs(high) or 1.0
    known = [end for end in reach if not math.isnan(end)]
    least, most = min([low, *known]), max([high, *known])
    room = 0.08 * span
    return max(least, low - span) - room, min(most, high + span) + room


def _cost(study: Study, rows: Sequence[Row], plots: Plots) -> str:
    cost = study.cost(rows)
    timed = [row for row in rows if not math.isnan(cost[row.arm.name])]
    if len(timed) < 2:
        return ""

    def paint(axes: Any) -> None:
        for row, marker in zip(timed, itertools.cycle(_MARKERS)):
            right = 100 * row.mean("accuracy")
            axes.plot(cost[row.arm.name], right, marker, label=plain(row.arm.name))
        axes.set(xlabel="time of training, over the baseline's", ylabel="right in test (%)")
        if len(timed) <= _MANY:
            _legend(axes)

    return plots.draw("cost", "What is right against the time that training takes", paint)


def _against(option: str, score: str, rows: Sequence[Row], plots: Plots) -> str:
    scale, label = (100, "right in test (%)") if score == "accuracy" else (1, LABELS[score])

    def form(value: float) -> float:
        return scale * value

    values = [list(map(form, row.values(score))) for row in rows]

    def paint(axes: Any) -> None:
        draw_against(axes, option, score, rows, form)
        reach = [end for each in values for end in interval(each)]
        axes.set(ylabel=label, ylim=window([value for each in values for value in each], reach))

    name = f"{score}-{option.replace('.', '-')}"
    return plots.draw(name, f"{LABELS[score]} by {option}: mean and 95 % interval", paint)


def _curves(folder: Path, study: Study, rows: Sequence[Row], plots: Plots) -> str:
    """Accuracy by epoch, of validation images where any were held out."""
    for split in ("validation", "train"):
        curves = {row.arm.name: mean_curve(folder, study, row, split) for row in rows[:_MANY]}
        if any(curves.values()):
            return _curve(curves, split, len(rows) > _MANY, plots)
    return ""


def _curve(curves: Mapping[str, Mapping[int, float]], split: str, more: bool, plots: Plots) -> str:
    def paint(axes: Any) -> None:
        for (name, curve), marker in zip(curves.items(), itertools.cycle(_MARKERS)):
            right = [100 * value for value in curve.values()]
            axes.plot(list(curve), right, marker=marker, markersize=5, label=plain(name))
        axes.set(xlabel="epoch", ylabel=f"right in {split} (%)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        _legend(axes)

    first = f", the first {_MANY} arms" if more else ""
    caption = f"{split.capitalize()} accuracy by epoch, the mean over seeds{first}"
    return plots.draw(f"curves-{split}", caption, paint)


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


def headline(study: Study, rows: Sequence[Row]) -> tuple[str, str]:
    """The answer: the clearest difference in points, and of what, how sure, by how many seeds."""
    compared = [
        (row.arm.name, row.difference)
        for row in rows
        if row.difference is not None and row.difference.seeds > 1
    ]
    if not compared:
        return "No comparison", "that takes at least two seeds that finished in two arms"
    name, found = max(compared, key=lambda each: (each[1].is_told, each[1].mean))
    base, size = study.baselines[name], _gain(found)
    seeds = f"{found.seeds} seeds"
    if not found.is_told:
        return "No difference told", f"at best {name} against {base}: {size} points, {seeds}"
    mean, low, high = points([abs(found.mean), found.low, found.high], _digits(found))
    beats = "beats" if found.mean > 0 else "loses to"
    return f"{mean} points", f"{name} {beats} {base}: 95 % interval {low} to {high}, {seeds}"


def _gain(found: Difference) -> str:
    """A difference in points, with its interval where there is one."""
    told = points([found.mean, found.low, found.high], _digits(found))
    mean, low, high = (each if each.startswith("-") else f"+{each}" for each in told)
    return mean if math.isnan(found.low) else f"{mean} ({low} to {high})"


def _digits(found: Difference) -> float:
    """A tenth of the interval: two digits of a difference that is as large are read.

    However wide it is, tenths of a point are shown.
    """
    return min((found.high - found.low) / 20, 0.005)


def verdict(study: Study, rows: Sequence[Row]) -> str:
    """What can be said of a study, in a few honest sentences."""
    return " ".join(sentences(study, rows))


def sentences(study: Study, rows: Sequence[Row]) -> list[str]:
    """The sentences of `verdict`, one by one."""
    compared = [(row.arm.name, row.difference) for row in rows if row.difference is not None]
    clear = [(name, found) for name, found in compared if found.is_told]
    bases = study.baselines
    parts = [
        f"{name} is {'better' if found.mean > 0 else 'worse'} than {bases[name]} by "
        f"{100 * abs(found.mean):.2f} points ({100 * found.low:+.2f} to {100 * found.high:+.2f}; "
        f"corrected p {found.corrected:.3f})."
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
    return parts


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
