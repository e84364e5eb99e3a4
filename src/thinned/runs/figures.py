"""The report's figures: each a function of a run or of its appraisal, and of where to draw."""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from thinned.core.pages import INK, PRINTED, Plots, percent, plain, scrolled
from thinned.runs.run import Run
from thinned.runs.verdicts import confusions
from thinned.trust.appraisal import Appraisal

_SPLITS = {"train": ("C0", "o"), "validation": ("C2", "s"), "test": ("C1", "^")}
"""Colour and marker of each split."""
_UNITS = {"loss": "loss (nats)", "accuracy": "right (%)"}
_LINES = ("-", "--", ":", "-.")
_HATCHES = ("", "////", "....")
"""By which histograms are told apart in black and white."""
_MATRIX = 100
"""Classes of a confusion matrix on the page: those that are mistaken most."""
_FEW = 5
"""Classes up to which its cells are large."""
_DRAWN = 50
"""Classes up to which it is drawn in a file."""
_ON_PAPER = 20
"""Classes up to which it is printed: more columns are cut off by the edge of the paper."""
_PAIRS = 5, 20
"""Of classes that are listed beside it, and where there are too many for paper."""
_DARKEST = 60
"""Per cent of the shade's colour in the darkest cell: text stays readable on it."""


def loss_curve(runs: Sequence[Run], plots: Plots) -> str:
    """Loss by epoch: a colour for each split, a line style for each run."""
    return _curve("loss", runs, plots)


def accuracy_curve(runs: Sequence[Run], plots: Plots) -> str:
    """Accuracy by epoch, likewise."""
    return _curve("accuracy", runs, plots)


def _curve(quantity: str, runs: Sequence[Run], plots: Plots) -> str:
    def paint(axes: Any) -> None:
        for run, line in zip(runs, itertools.cycle(_LINES), strict=False):
            curves = {split: _points(run, split, quantity) for split in _SPLITS}
            for split, points in curves.items():
                colour, marker = _SPLITS[split]
                label = split if len(runs) == 1 else f"{run.folder.name}, {split}"
                if points:
                    axes.plot(
                        list(points),
                        list(points.values()),
                        linestyle=line,
                        marker=marker,
                        markersize=4,
                        color=colour,
                        label=plain(label),
                    )
            if run.best is not None:
                axes.axvline(run.best.epoch, linestyle=":", color="C7", linewidth=1)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel="epoch", ylabel=_UNITS[quantity])
        axes.legend(frameon=False)

    told = [_ending(run, quantity) for run in runs]
    if len(runs) > 1:
        told = [f"{run.folder.name} {text}" for run, text in zip(runs, told, strict=True)]
    caption = f"{quantity.capitalize()} by epoch; {'; '.join(told)} (train with dropout on)"
    return plots.draw(f"curve-{quantity}", caption, paint)


def _points(run: Run, split: str, quantity: str) -> dict[int, float]:
    scale = 100 if quantity == "accuracy" else 1
    return {
        record["epoch"]: scale * record[quantity]
        for record in run.metrics
        if record["split"] == split
    }


def _ending(run: Run, quantity: str) -> str:
    def told_as(value: float) -> str:
        return percent(value / 100, 2) if quantity == "accuracy" else f"{value:.3f}"

    ends = {split: list(_points(run, split, quantity).values())[-1:] for split in _SPLITS}
    told = "at the end " + ", ".join(
        f"{split} {told_as(value)}" for split, values in ends.items() for value in values
    )
    return told if run.best is None else f"kept is {run.best}; {told}"


def confusion(found: Appraisal, plots: Plots, name: str) -> str:
    """What is taken for what: the most frequent mistakes, and the matrix, the worst class first.

    Of more than `_MATRIX` classes only those with most mistakes have a place in the matrix.
    """
    if len(found.classes) <= _DRAWN:
        plots.keep(f"{name}-confusion", lambda axes: _paint_confusion(axes, found), PRINTED)
    names = found.classes
    images = np.bincount(found.labels, minlength=len(names))
    pairs = confusions(found)
    many = len(names) > _ON_PAPER
    listed = "".join(
        f"<li>{html.escape(_taken(names, images, *pair))}</li>"
        for pair in pairs[: _PAIRS[many]].tolist()
    )
    mistakes = np.zeros(len(names), np.int64)
    for side in (0, 1):
        np.add.at(mistakes, pairs[:, side], pairs[:, 2])
    shown = np.argsort(-mistakes, kind="stable")[:_MATRIX].tolist()
    few = "" if len(shown) == len(names) else f"; the {_MATRIX} of {len(names):,} with most of them"
    kind = "matrix few" if len(names) <= _FEW else f"matrix{' many' * many}"
    paper = " It is too wide for paper, on which the list stands alone." if many else ""
    matrix = scrolled(_matrix(found, shown, images), "Confusion matrix", kind)
    return (
        f'<p class="quiet">A row for each class, those with most mistakes first{few}; a column for '
        f"each answer. The stronger the shade, the more of a class is mistaken so.{paper}</p>"
        f'<div class="flow">{matrix}<ol>{listed}</ol></div>'
    )


def _taken(names: Sequence[str], images: np.ndarray, true: int, said: int, count: int) -> str:
    how = "is right" if true == said else f"is taken for {names[said]}"
    part = count / max(images[true], 1)
    return f"{names[true]} {how}: {count:,} of {images[true]:,} ({percent(part)})"


def _matrix(found: Appraisal, shown: Sequence[int], images: np.ndarray) -> str:
    names, recall = found.classes, found.per_class[:, 1]
    cells = {(true, said): count for true, said, count in found.confused.tolist()}
    parts = {pair: count / images[pair[0]] for pair, count in cells.items()}
    worst = max((part for pair, part in parts.items() if pair[0] != pair[1]), default=1)
    heads = "".join(
        f'<th scope="col"><span>{html.escape(names[each])}</span></th>' for each in shown
    )

    def cell(true: int, said: int) -> str:
        if (true, said) not in cells:
            return "<td></td>"
        count = cells[true, said]
        told = html.escape(_taken(names, images, true, said, count))
        if true == said:
            return f'<td class="right" title="{told}">{count}</td>'
        shade = max(_DARKEST * parts[true, said] / worst, 5)
        return f'<td style="--part:{shade:.0f}%" title="{told}">{count}</td>'

    rows = "".join(
        f'<tr><th scope="row">{html.escape(names[true])}</th><td>{percent(recall[true])}</td>'
        + "".join(cell(true, said) for said in shown)
        + "</tr>"
        for true in shown
    )
    return (
        f'<table><thead><tr><td></td><th scope="col"><span>right</span></th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _paint_confusion(axes: Any, found: Appraisal) -> None:
    """The matrix for a file, in the order of the classes; shades are parts of each true class."""
    cells = found.confusion
    shares = cells / np.maximum(cells.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places, names = range(len(found.classes)), [plain(name) for name in found.classes]
    axes.set_xticks(places, names, rotation=60, ha="right")
    axes.set_yticks(places, names)
    axes.set(xlabel="predicted", ylabel="true")
    for row, column in np.argwhere(cells).tolist():
        ink = "white" if shares[row, column] > 0.5 else "#1a1a1a"
        words = {"ha": "center", "va": "center", "fontsize": 8}
        axes.text(column, row, str(cells[row, column]), color=ink, **words)


def reliability(found: Appraisal, plots: Plots, name: str) -> str:
    """Accuracy against confidence, bin by bin, below how many answers each bin holds."""
    bins = found.bins
    middles, width = (bins.edges[1:] + bins.edges[:-1]) / 2, 1 / len(bins.count)

    def paint(axes: Any) -> None:
        axes.bar(middles, np.nan_to_num(bins.accuracy), 0.9 * width, alpha=0.5)
        axes.plot([0, 1], [0, 1], "--", color=INK, linewidth=1)
        axes.plot(bins.confidence, bins.accuracy, "o", color="C1", markersize=4)
        axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        above = axes.inset_axes((0, 1.04, 1, 0.3))
        above.spines[["top", "right"]].set_visible(False)
        above.bar(middles, bins.count, 0.9 * width, color="C7")
        above.set(xlim=(0, 1), xticks=[], ylabel="answers")

    sure = int(bins.count[-1])
    caption = (
        f"Accuracy by confidence, and how many answers have it: {sure:,} of {bins.count.sum():,} "
        f"are at {percent(bins.edges[-2])} or more; ECE {bins.error:.3g}"
    )
    return plots.draw(f"{name}-reliability", caption, paint, (4.6, 3.8))


def selective(found: Appraisal, plots: Plots, name: str) -> str:
    """The error among the surest part of the answers."""
    curve = found.selective
    # A few hundred points draw the same line as ten thousand, in a fraction of the file.
    chosen = np.unique(np.linspace(0, len(curve.risk) - 1, 300).astype(int))

    def paint(axes: Any) -> None:
        axes.plot(curve.coverage[chosen], curve.risk[chosen])
        axes.set(xlabel="part that is answered", ylabel="error among the answers", xlim=(0, 1))

    caption = (
        f"The error among the surest part of the answers: of the surest {percent(0.9)}, "
        f"{percent(curve.accuracy_at(0.9), 2)} are right; AURC {curve.area:.3g}"
    )
    return plots.draw(f"{name}-selective", caption, paint)


def entropies(found: Appraisal, other: np.ndarray | None, plots: Plots, name: str) -> str:
    """Histograms of predictive entropy: right and wrong answers, and `other` f64 [image] if any."""
    entropy, right = found.predictions.entropy, found.right

    def paint(axes: Any) -> None:
        bins = np.linspace(0, np.log(len(found.classes)), 31).tolist()
        groups = {"right": entropy[right], "wrong": entropy[~right]}
        if other is not None:
            groups["other images"] = other
        for (label, values), hatch in zip(groups.items(), _HATCHES, strict=False):
            if len(values):
                weights = np.full(len(values), 1 / len(values))
                axes.hist(
                    values, bins, weights=weights, alpha=0.6, label=label, hatch=hatch,
                    edgecolor=INK, linewidth=0,
                )  # fmt: skip
        axes.set(xlabel="predictive entropy (nats)", ylabel="part of the answers")
        axes.legend(frameon=False)

    means = [entropy[chosen].mean() if chosen.any() else float("nan") for chosen in (right, ~right)]
    caption = f"Entropy of right (mean {means[0]:.3f}) and wrong answers (mean {means[1]:.3f})"
    if other is not None:
        caption += f", and of other images (mean {other.mean():.3f})"
    return plots.draw(f"{name}-entropy", caption, paint)


def rates(run: Run, plots: Plots, name: str) -> str:
    """The rate of each dropout site over a run; empty where all stay as they are."""
    plan = run.built.plan
    steps = np.unique(np.linspace(0, max(plan.total_steps - 1, 0), 200).astype(int))
    params = run.state.params
    learned = [
        float(jax.nn.sigmoid(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if "rate_logit" in jax.tree_util.keystr(path)
    ]
    curves = plan.rates_at(steps)
    if not learned and all(np.ptp(curve) == 0 for curve in curves.values()):
        return ""

    def paint(axes: Any) -> None:
        for site, curve in curves.items():
            axes.plot(steps / plan.steps_per_epoch, curve, label=plain(site))
        for rate in learned:
            axes.axhline(rate, linestyle="--", label=f"learned {rate:.3f}")
        axes.set(xlabel="epoch", ylabel="rate", ylim=(0, 1))
        axes.legend(frameon=False)

    kind = run.config.dropout.kind
    caption = f"Dropout ({kind}): the rate of each site over the run"
    return plots.draw(f"{name}-rates", caption, paint)
