"""The report's figures: each a function of a run or of its appraisal, and of where to draw."""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from thinned.core.pages import INK, Plots, plain
from thinned.runs.run import Run
from thinned.trust import scores
from thinned.trust.appraisal import WIDEST, Appraisal

_SPLITS = {"train": ("C0", "o"), "validation": ("C2", "s"), "test": ("C1", "^")}
"""Colour and marker of each split."""
_LINES = ("-", "--", ":", "-.")


def learning_curves(runs: Sequence[Run], plots: Plots) -> str:
    """Loss and accuracy by epoch: a colour for each split, a line style for each run."""
    return "".join(_curve(quantity, runs, plots) for quantity in ("loss", "accuracy"))


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
            shared = [epoch for epoch in curves["train"] if epoch in curves["test"]]
            low, high = ([curves[split][epoch] for epoch in shared] for split in ("train", "test"))
            if run.best is not None:
                axes.axvline(run.best.epoch, linestyle=":", color="C7", linewidth=1)
            axes.fill_between(shared, low, high, color="C7", alpha=0.2, linewidth=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel="epoch", ylabel=f"{quantity}{' (nats)' if quantity == 'loss' else ''}")
        axes.legend(frameon=False)

    told = [_ending(run, quantity) for run in runs]
    if len(runs) > 1:
        told = [f"{run.folder.name} {text}" for run, text in zip(runs, told, strict=True)]
    caption = f"{quantity.capitalize()} by epoch; {'; '.join(told)} (train with dropout on)"
    return plots.draw(f"curve-{quantity}", caption, paint)


def _points(run: Run, split: str, quantity: str) -> dict[int, float]:
    return {record["epoch"]: record[quantity] for record in run.metrics if record["split"] == split}


def _ending(run: Run, quantity: str) -> str:
    ends = {record["split"]: record[quantity] for record in run.metrics}
    told = "at the end " + ", ".join(f"{split} {value:.4f}" for split, value in ends.items())
    if run.best is not None:
        told = f"kept is {run.best}; {told}"
    if "test" not in ends or "train" not in ends:
        return told
    return f"{told}; test less train {ends['test'] - ends['train']:+.4f}"


def confusion(found: Appraisal, plots: Plots, name: str) -> str:
    """The confusion matrix; shades are parts of each true class. Of too many, only words."""
    caption = f"Confusion matrix; {_mistaken(found)}"
    if len(found.classes) > WIDEST:
        return f"<p>{html.escape(caption)}</p>"
    cells = found.confusion
    shares = cells / np.maximum(cells.sum(1, keepdims=True), 1)

    def paint(axes: Any) -> None:
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        places = range(len(found.classes))
        names = [plain(name) for name in found.classes]
        axes.set_xticks(places, names, rotation=60, ha="right")
        axes.set_yticks(places, names)
        axes.set(xlabel="predicted", ylabel="true")
        if len(found.classes) <= 20:
            for row in places:
                for column in places:
                    if cells[row, column]:
                        ink = "white" if shares[row, column] > 0.5 else "#1a1a1a"
                        axes.text(
                            column,
                            row,
                            str(cells[row, column]),
                            ha="center",
                            va="center",
                            color=ink,
                            fontsize=8,
                        )

    return plots.draw(f"{name}-confusion", caption, paint, 5.2)


def _mistaken(found: Appraisal) -> str:
    wrong = found.confused[found.confused[:, 0] != found.confused[:, 1]]
    if not len(wrong):
        return "no class is taken for another"
    true, predicted, count = wrong[wrong[:, 2].argmax()]
    names = found.classes[true], found.classes[predicted]
    return f"most often {names[0]} is taken for {names[1]} ({count} times)"


def reliability(found: Appraisal, plots: Plots, name: str) -> str:
    """Accuracy against confidence, bin by bin."""
    bins = found.bins

    def paint(axes: Any) -> None:
        middles = (bins.edges[1:] + bins.edges[:-1]) / 2
        axes.bar(middles, np.nan_to_num(bins.accuracy), 1 / len(bins.count), alpha=0.5)
        axes.plot([0, 1], [0, 1], "--", color=INK, linewidth=1)
        axes.plot(bins.confidence, bins.accuracy, ".", color="C1")
        axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))

    caption = f"Reliability: accuracy by confidence; ECE {bins.error:.4f} ({scores.BINS} bins)"
    return plots.draw(f"{name}-reliability", caption, paint)


def selective(found: Appraisal, plots: Plots, name: str) -> str:
    """The error among the surest part of the answers."""
    curve = found.selective
    # A few hundred points draw the same line as ten thousand, in a fraction of the file.
    chosen = np.unique(np.linspace(0, len(curve.risk) - 1, 300).astype(int))

    def paint(axes: Any) -> None:
        axes.plot(curve.coverage[chosen], curve.risk[chosen])
        axes.set(xlabel="part that is answered", ylabel="error among the answers", xlim=(0, 1))

    caption = (
        f"Risk and coverage; accuracy {curve.accuracy_at(0.9):.2%} on the surest 90 %, "
        f"AURC {curve.area:.5f}"
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
        for label, values in groups.items():
            if len(values):
                weights = np.full(len(values), 1 / len(values))
                axes.hist(values, bins, weights=weights, alpha=0.6, label=label)
        axes.set(xlabel="predictive entropy (nats)", ylabel="part of the answers")
        axes.legend(frameon=False)

    means = [entropy[chosen].mean() if chosen.any() else float("nan") for chosen in (right, ~right)]
    caption = f"Entropy of right (mean {means[0]:.3f}) and wrong answers (mean {means[1]:.3f})"
    if other is not None:
        caption += f", and of other images (mean {other.mean():.3f})"
    return plots.draw(f"{name}-entropy", caption, paint)


def rates(run: Run, plots: Plots, name: str) -> str:
    """The rate of each dropout site over a run."""
    plan = run.built.plan
    steps = np.unique(np.linspace(0, max(plan.total_steps - 1, 0), 200).astype(int))
    params = run.state.params
    learned = [
        float(jax.nn.sigmoid(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if "rate_logit" in jax.tree_util.keystr(path)
    ]

    def paint(axes: Any) -> None:
        for site, rates in plan.rates_at(steps).items():
            axes.plot(steps / plan.steps_per_epoch, rates, label=plain(site))
        for rate in learned:
            axes.axhline(rate, linestyle="--", label=f"learned {rate:.3f}")
        axes.set(xlabel="epoch", ylabel="rate", ylim=(0, 1))
        if learned or plan.sites:
            axes.legend(frameon=False)

    kind = run.config.dropout.kind
    caption = f"Dropout ({kind}): the rate of each site over the run"
    return plots.draw(f"{name}-rates", caption, paint)
