"""`thinned report`: one HTML page, with nothing outside itself, that shows what runs are worth."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from PIL import Image

from thinned import scores
from thinned.assembly import make_plan
from thinned.config import to_json
from thinned.pages import INK, Plots, table, write_page
from thinned.run import Run
from thinned.step import as_float
from thinned.trust import Appraisal, appraise, other_images, predictions_of

_SHOWN = 24
_WATCHED = 200


def write_report(
    runs: Sequence[Run],
    out: Path,
    samples: int = 0,
    figures: Path | None = None,
    ood: str | None = None,
) -> Path:
    """Write the page, whole or not at all.

    Args:
        runs: one, or several to compare.
        out: the HTML file.
        samples: thinned networks to average, see `thinned.trust.predictions_of`.
        figures: a folder for the figures as SVG and PNG files, if wanted.
        ood: other images, whose entropy is shown beside that of the test images.

    Raises:
        RequestError: matplotlib is missing, or a run has no checkpoint.
        ThinnedError: a file cannot be written.
    """
    plots = Plots(figures)
    found = [appraise([run], run.test_images(), samples) for run in runs]
    parts = [_summary(runs, found), _curves(runs, plots)]
    for number, (run, appraisal) in enumerate(zip(runs, found, strict=True), 1):
        other = None
        if ood is not None:
            found_other = predictions_of([run], other_images(run, ood).images, samples)
            other = found_other.entropy
        parts += _one(run, appraisal, other, plots, f"run{number}", many=len(runs) > 1)
    title = "Thinned: " + ", ".join(run.folder.name for run in runs)
    write_page(out, title, parts)
    return out


def _summary(runs: Sequence[Run], found: Sequence[Appraisal]) -> str:
    names = list(found[0].scores)
    rows = []
    for name in names:
        cells = [f"{appraisal.scores.get(name, float('nan')):.4f}" for appraisal in found]
        rows.append([name.replace("_", " "), *cells])
    held = table(["test images", *(run.folder.name for run in runs)], rows)
    if len(runs) == 1:
        return f"<h2>Scores</h2>{held}"
    lines = []
    for run, other in zip(runs[1:], found[1:], strict=True):
        if len(other.labels) != len(found[0].labels):
            continue
        difference = other.right.astype(float) - found[0].right.astype(float)
        low, high = scores.bootstrap(difference)
        lines.append([run.folder.name, f"{difference.mean():+.4f}", f"{low:+.4f} to {high:+.4f}"])
    compared = table(
        [f"accuracy against {runs[0].folder.name}", "difference", "95 % (paired bootstrap)"], lines
    )
    return f"<h2>Scores</h2>{held}<h2>Differences</h2>{compared}"


def _curves(runs: Sequence[Run], plots: Plots) -> str:
    parts = []
    for quantity in ("loss", "accuracy"):

        def paint(axes: Any, quantity: str = quantity) -> None:
            for number, run in enumerate(runs):
                for split, style in (("train", "--"), ("validation", ":"), ("test", "-")):
                    points = [r for r in run.metrics if r["split"] == split]
                    if points:
                        label = split if len(runs) == 1 else f"{run.folder.name}, {split}"
                        epochs = [r["epoch"] for r in points]
                        values = [r[quantity] for r in points]
                        axes.plot(
                            epochs, values, style, color=f"C{number}", label=label, marker="."
                        )
            axes.set(xlabel="epoch", ylabel=f"{quantity}{' (nats)' if quantity == 'loss' else ''}")
            axes.legend(frameon=False)

        last = _last(runs[0], quantity)
        caption = f"{quantity.capitalize()} by epoch; {last}"
        parts.append(plots.draw(f"curve-{quantity}", caption, paint))
    return f'<h2>Learning curves</h2><div class="grid">{"".join(parts)}</div>'


def _last(run: Run, quantity: str) -> str:
    ends = {record["split"]: record[quantity] for record in run.metrics}
    told = ", ".join(f"{split} {value:.4f}" for split, value in ends.items())
    gap = ends.get("test", 0) - ends.get("train", 0)
    return f"at the end {told}; test less train {gap:+.4f} (train with dropout on)"


def _one(
    run: Run,
    found: Appraisal,
    other: np.ndarray | None,
    plots: Plots,
    name: str,
    many: bool,
) -> list[str]:
    head = f"<h1>{html.escape(run.folder.name)}</h1>" if many else ""
    figures = [
        _confusion(found, plots, name),
        _reliability(found, plots, name),
        _selective(found, plots, name),
        _entropies(found, other, plots, name),
        _rates(run, plots, name),
    ]
    return [
        head,
        f'<h2>What it gets right, and what it knows</h2><div class="grid">{"".join(figures)}</div>',
        _pictures(run, found),
        _filters(run),
        _silence(run),
        _repeat(run),
    ]


def _confusion(found: Appraisal, plots: Plots, name: str) -> str:
    cells = found.confusion
    shares = cells / np.maximum(cells.sum(1, keepdims=True), 1)

    def paint(axes: Any) -> None:
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        places = range(len(found.classes))
        axes.set_xticks(places, found.classes, rotation=60, ha="right")
        axes.set_yticks(places, found.classes)
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

    off = cells - np.diag(np.diagonal(cells))
    row, column = np.unravel_index(off.argmax(), off.shape)
    caption = (
        f"Confusion matrix; most often {found.classes[row]} is taken for {found.classes[column]} "
        f"({off.max()} times)"
    )
    return plots.draw(f"{name}-confusion", caption, paint, 5.2)


def _reliability(found: Appraisal, plots: Plots, name: str) -> str:
    bins = scores.reliability(found.probabilities, found.labels)

    def paint(axes: Any) -> None:
        middles = (bins.edges[1:] + bins.edges[:-1]) / 2
        axes.bar(middles, np.nan_to_num(bins.accuracy), 1 / len(bins.count), alpha=0.5)
        axes.plot([0, 1], [0, 1], "--", color=INK, linewidth=1)
        axes.plot(bins.confidence, bins.accuracy, ".", color="C1")
        axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))

    caption = f"Reliability: accuracy by confidence; ECE {bins.error:.4f} ({scores.BINS} bins)"
    return plots.draw(f"{name}-reliability", caption, paint)


def _selective(found: Appraisal, plots: Plots, name: str) -> str:
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


def _entropies(found: Appraisal, other: np.ndarray | None, plots: Plots, name: str) -> str:
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


def _rates(run: Run, plots: Plots, name: str) -> str:
    plan = make_plan(run.config, run.facts)
    steps = np.unique(np.linspace(0, max(plan.total_steps - 1, 0), 200).astype(int))
    params = run.state.params
    learned = [
        float(jax.nn.sigmoid(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if "rate_logit" in jax.tree_util.keystr(path)
    ]

    def paint(axes: Any) -> None:
        for site, rates in plan.rates_at(steps).items():
            axes.plot(steps / plan.steps_per_epoch, rates, label=site)
        for rate in learned:
            axes.axhline(rate, linestyle="--", label=f"learned {rate:.3f}")
        axes.set(xlabel="epoch", ylabel="rate", ylim=(0, 1))
        if learned or plan.sites:
            axes.legend(frameon=False)

    kind = run.config.dropout.kind
    caption = f"Dropout ({kind}): the rate of each site over the run"
    return plots.draw(f"{name}-rates", caption, paint)


def _pictures(run: Run, found: Appraisal) -> str:
    test = run.test_images()
    confidence = found.probabilities.max(1)
    wrong = np.flatnonzero(~found.right)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:_SHOWN]
    unsure = np.argsort(confidence, kind="stable")[:_SHOWN]
    parts = []
    for title, chosen in (("The worst mistakes", worst), ("The least sure", unsure)):
        tiles = "".join(_tile(test.images[[int(row)]][0], int(row), found) for row in chosen)
        parts.append(f'<h2>{title}</h2><div class="tiles">{tiles or "none"}</div>')
    return "".join(parts)


def _tile(image: np.ndarray, row: int, found: Appraisal) -> str:
    p = found.probabilities[row]
    best, label = int(p.argmax()), int(found.labels[row])
    names = found.classes
    says = f"{names[best]} {p[best]:.0%}, is {names[label]} ({p[label]:.0%})"
    shown = html.escape(says)
    return (
        f'<div class="tile"><img src="{_data_url(image)}" alt="test image {row}: {shown}">'
        f"{shown}</div>"
    )


def _filters(run: Run) -> str:
    kernel = next(
        (
            np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(run.state.params)
            if "Conv_0" in jax.tree_util.keystr(path) and jnp.ndim(leaf) == 4
        ),
        None,
    )
    if kernel is None or kernel.shape[2] not in (1, 3):
        return ""
    low, high = kernel.min(), kernel.max()
    scaled = np.rint((kernel - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
    tiles = "".join(
        f'<div class="tile" style="width:3rem"><img src="{_data_url(scaled[..., index])}" '
        f'alt="filter {index} of the first layer"></div>'
        for index in range(scaled.shape[3])
    )
    return f'<h2>Filters of the first layer</h2><div class="tiles">{tiles}</div>'


def _silence(run: Run) -> str:
    """How sparse activations are; Srivastava et al. (2014), section 7.2: dropout makes them so.

    A table of the layers whose outputs ReLU silences where they are not above 0.
    """
    shares: dict[str, float] = {}

    def note(call: Any, values: Any, options: Any, context: Any) -> Any:
        outputs = call(*values, **options)
        layer = context.module
        if isinstance(layer, nn.Conv | nn.Dense | nn.BatchNorm) and layer.path:
            shares["/".join(layer.path)] = float(np.mean(np.asarray(outputs) <= 0))
        return outputs

    images = run.test_images().images[np.arange(min(_WATCHED, len(run.test_images())))]
    with nn.intercept_methods(note):
        run.state.apply_fn(run.state.variables, as_float(jnp.asarray(images)), train=False)
    rows = [[layer, f"{share:.1%}"] for layer, share in shares.items()]
    held = table(["layer", "outputs at or below 0"], rows)
    return f"<h2>Silent units, with dropout off</h2>{held}"


def _repeat(run: Run) -> str:
    try:
        environment = json.loads((run.folder / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        environment = {}
    shown = html.escape(json.dumps(environment, indent=2))
    return (
        "<h2>To repeat it</h2>"
        f"<pre>thinned train -c {html.escape(str(run.folder / 'config.json'))}</pre>"
        f"<details><summary>Configuration</summary><pre>{html.escape(to_json(run.config))}</pre>"
        f"</details><details><summary>Environment</summary><pre>{shown}</pre></details>"
    )


def _data_url(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
