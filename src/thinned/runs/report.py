"""`thinned report`: one HTML page, with nothing outside itself, that shows what runs are worth."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from PIL import Image

from thinned.core.config import to_json
from thinned.core.disk import read_regular
from thinned.core.pages import Plots, table, write_page
from thinned.core.rng import a_few, key_for
from thinned.data.batch import as_float
from thinned.dropout.audit.watch_linen import dropout_on
from thinned.dropout.sites import rates_collection
from thinned.runs import figures
from thinned.runs.predictions import appraise, other_images, predictions_of, same_images, sets_for
from thinned.runs.run import Run
from thinned.trust import scores
from thinned.trust.appraisal import COVERAGES, Appraisal, told_apart, uncertainties
from thinned.trust.conformal import Conformal, SetKind, SetScores
from thinned.trust.sampling import Predictions

_DEFINITIONS = {
    "top5": "accuracy, the label among the top 5",
    "nll": "NLL (nats per image)",
    "brier": "Brier score (summed over classes, 0 to 2)",
    "ece": f"ECE ({scores.BINS} bins of equal width)",
    "adaptive_ece": f"adaptive ECE ({scores.BINS} bins of equal count)",
    "aurc": "AURC (mean error over all coverages)",
}
_SHOWN = 24
_WATCHED = 200
_EXACT, _THUMB = 64, 160


def write_report(
    runs: Sequence[Run],
    out: Path,
    samples: int = 0,
    folder: Path | None = None,
    ood: str | None = None,
    coverage: float | None = None,
    sets: SetKind = "lac",
) -> Path:
    """Write the page, whole or not at all.

    Args:
        runs: one, or several to compare.
        out: the HTML file.
        samples: thinned networks to average, see `thinned.runs.predictions.predictions_of`.
        folder: for the figures as SVG and PNG files, if wanted.
        ood: other images, to be told from the test images.
        coverage, sets: whether, and how, to show sets of classes, see
            `thinned.runs.predictions.sets_for`.

    Raises:
        RequestError: matplotlib is missing, a run has no checkpoint, or the other images cannot be
            used, see `thinned.runs.predictions.other_images`; or a run cannot promise sets.
        ThinnedError: a file cannot be written.
    """
    plots = Plots(folder, later=True)
    others = [
        None if ood is None else other_images(run, ood, run.test_images()).images for run in runs
    ]
    made = [
        None if coverage is None else sets_for([run], coverage, sets, False, samples, False)
        for run in runs
    ]
    found = [appraise([run], run.test_images(), samples) for run in runs]
    outside = [
        None if images is None else predictions_of([run], images, samples)
        for run, images in zip(runs, others, strict=True)
    ]
    parts = [_summary(runs, found, samples), _differences(runs, found)]
    if ood is not None:
        parts.append(_outsiders(runs, found, outside, ood))
    curves = figures.learning_curves(runs, plots)
    parts.append(f'<h2>Learning curves</h2><div class="grid">{curves}</div>')
    each_run = zip(runs, found, outside, made, strict=True)
    for number, (run, appraisal, other, promised) in enumerate(each_run, 1):
        entropy = None if other is None else other.entropy
        head = f"<h1>{html.escape(run.folder.name)}</h1>" if len(runs) > 1 else ""
        parts += [head, *_one(run, appraisal, entropy, promised, plots, f"run{number}")]
    title = "Thinned: " + ", ".join(run.folder.name for run in runs)
    write_page(out, title, parts)
    plots.write_files()
    return out


def _summary(runs: Sequence[Run], found: Sequence[Appraisal], samples: int) -> str:
    passes = "1 sample" if samples == 1 else f"{samples} samples"
    how = f"{passes} of each network by MC dropout" if samples else "dropout off, one pass"
    named = [dict(_scores(appraisal)) for appraisal in found]
    rows = [
        [name, *(each.get(name, "-") for each in named)]
        for name in dict.fromkeys(name for each in named for name in each)
    ]
    held = table(["score", *(run.folder.name for run in runs)], rows)
    counts = ", ".join(dict.fromkeys(f"{len(each.labels):,}" for each in found))
    kept = "".join(
        f" Of {html.escape(run.folder.name)}, {run.best} is used."
        for run in runs
        if run.best is not None
    )
    return f"<h2>Scores</h2><p>{counts} test images; {how}.{kept}</p>{held}"


def _scores(found: Appraisal) -> Iterator[tuple[str, str]]:
    """Each score's name with its definition, and its value."""
    score = found.scores
    interval = f"{score['accuracy_low']:.4f} to {score['accuracy_high']:.4f}"
    yield "accuracy (Wilson's 95 % interval)", f"{score['accuracy']:.4f} ({interval})"
    for name, text in _DEFINITIONS.items():
        if name in score:
            yield text, f"{score[name]:.4f}"
    for coverage in COVERAGES:
        yield f"accuracy on the surest {coverage:.0%}", f"{score[f'accuracy_at_{coverage:g}']:.4f}"


def _outsiders(
    runs: Sequence[Run],
    found: Sequence[Appraisal],
    outside: Sequence[Predictions | None],
    ood: str,
) -> str:
    rows = [
        [run.folder.name, name, f"{score['auroc']:.4f}", f"{score['fpr95']:.4f}"]
        for run, appraisal, other in zip(runs, found, outside, strict=True)
        if other is not None
        for name, score in told_apart(
            uncertainties(appraisal.predictions), uncertainties(other)
        ).items()
    ]
    held = table(["run", "told apart by", "AUROC (ties half)", "FPR95"], rows)
    return f"<h2>Other images: {html.escape(ood)}</h2>{held}"


def _differences(runs: Sequence[Run], found: Sequence[Appraisal]) -> str:
    if len(runs) == 1:
        return ""
    lines = []
    test = runs[0].test_images()
    for run, other in zip(runs[1:], found[1:], strict=True):
        if not same_images(run.test_images(), test):
            lines.append([run.folder.name, "not compared: other test images", ""])
            continue
        difference = other.right.astype(float) - found[0].right.astype(float)
        low, high = scores.bootstrap(difference)
        lines.append([run.folder.name, f"{difference.mean():+.4f}", f"{low:+.4f} to {high:+.4f}"])
    compared = table(
        [f"accuracy against {runs[0].folder.name}", "difference", "95 % (paired bootstrap)"], lines
    )
    return f"<h2>Differences</h2>{compared}"


def _one(
    run: Run,
    found: Appraisal,
    other: np.ndarray | None,
    made: Conformal | None,
    plots: Plots,
    name: str,
) -> list[str]:
    drawn = [
        figures.confusion(found, plots, name),
        figures.reliability(found, plots, name),
        figures.selective(found, plots, name),
        figures.entropies(found, other, plots, name),
        figures.rates(run, plots, name),
    ]
    return [
        f'<h2>What it gets right, and what it knows</h2><div class="grid">{"".join(drawn)}</div>',
        _sets(found, made),
        _pictures(run, found, made),
        _filters(run),
        _silence(run),
        _repeat(run),
    ]


def _sets(found: Appraisal, made: Conformal | None) -> str:
    if made is None:
        return ""
    scored = SetScores.of(made, found.probabilities, found.labels, found.classes)
    return f"<h2>Sets of classes</h2><pre>{html.escape(str(scored))}</pre>"


def _pictures(run: Run, found: Appraisal, made: Conformal | None) -> str:
    test = run.test_images()
    confidence = found.probabilities.max(1)
    wrong = np.flatnonzero(~found.right)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:_SHOWN]
    unsure = np.argsort(confidence, kind="stable")[:_SHOWN]
    held = None if made is None else made.sets(found.probabilities)
    parts = []
    for title, chosen in (("The worst mistakes", worst), ("The least sure", unsure)):
        tiles = "".join(
            _tile(test.images[[int(row)]][0], int(row), found, None if held is None else held[row])
            for row in chosen
        )
        parts.append(f'<h2>{title}</h2><div class="tiles">{tiles or "none"}</div>')
    return "".join(parts)


def _tile(image: np.ndarray, row: int, found: Appraisal, held: np.ndarray | None) -> str:
    p = found.probabilities[row]
    best, label = int(p.argmax()), int(found.labels[row])
    names = found.classes
    says = f"says {names[best]} ({p[best]:.0%}), is {names[label]} ({p[label]:.0%})"
    if held is not None:
        says += f"; set: {', '.join(names[each] for each in np.flatnonzero(held)) or 'none'}"
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

    A table of the layers whose outputs ReLU silences where they are not above 0. Empty where a part
    of the network stands still: what was learned elsewhere is as sparse as it is.
    """
    if run.built.cut:
        return ""
    variables, rngs = dict(run.state.variables), {"dropout": key_for(run.config.seed, "sample")}
    rates = run.built.plan.full_rates
    if rates:
        variables["rates"] = rates_collection(rates)
    off = _shares(run, run.state.variables, {})
    with dropout_on():
        on = _shares(run, variables, rngs)
    rows = [[layer, f"{off[layer]:.1%}", f"{on[layer]:.1%}"] for layer in off]
    held = table(["layer", "dropout off", "dropout on"], rows)
    return (
        f"<h2>Silent units</h2>{held}<p>Outputs at or below 0, which a ReLU behind the layer would "
        f"silence; behind the last layer, and where units are of another kind, there is none. "
        f"Up to {_WATCHED} test images, drawn from all; with dropout on, one draw.</p>"
    )


def _shares(run: Run, variables: Any, rngs: dict[str, Any]) -> dict[str, float]:
    shares: dict[str, float] = {}

    def note(call: Any, values: Any, options: Any, context: Any) -> Any:
        outputs = call(*values, **options)
        layer = context.module
        if isinstance(layer, nn.Conv | nn.Dense | nn.BatchNorm) and layer.path:
            shares["/".join(layer.path)] = float(np.mean(np.asarray(outputs) <= 0))
        return outputs

    test = run.test_images()
    images = as_float(jnp.asarray(test.images[a_few(len(test), _WATCHED, run.config.seed)]))
    with nn.intercept_methods(note):
        run.state.apply_fn(variables, images, train=False, rngs=rngs)
    return shares


def _repeat(run: Run) -> str:
    try:
        environment = json.loads(read_regular(run.folder / "environment.json"))
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
    """A picture in the page; photos as small JPEGs, since fifty of them are many megabytes."""
    buffer, picture = io.BytesIO(), Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    kind = "JPEG" if min(picture.size) > _EXACT else "PNG"
    picture.thumbnail((_THUMB, _THUMB))
    picture.save(buffer, kind)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()
