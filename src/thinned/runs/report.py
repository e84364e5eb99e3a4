"""`thinned report`: one HTML page, with nothing outside itself, that shows what runs are worth."""

from __future__ import annotations

import base64
import html
import io
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from thinned.core.config import to_json
from thinned.core.disk import read_regular
from thinned.core.errors import RequestError
from thinned.core.pages import (
    Plots,
    card,
    cards,
    folded,
    lead,
    percent,
    points,
    table,
    text,
    write_page,
)
from thinned.core.types import Dataset
from thinned.data.inspect import Place, duplicates, namer
from thinned.data.sources.load import open_source
from thinned.dropout.audit.findings import Audit
from thinned.runs import figures, verdicts
from thinned.runs.doctor import audited
from thinned.runs.predictions import (
    Witness,
    appraise,
    fitted,
    other_images,
    predictions_of,
    same_images,
    sets_for,
    tempered,
)
from thinned.runs.run import Run
from thinned.trust import intervals, scores
from thinned.trust.appraisal import (
    COVERAGES,
    Appraisal,
    other_measures,
    told_apart,
    uncertainties,
)
from thinned.trust.conformal import Conformal, SetKind, SetScores
from thinned.trust.sampling import Predictions

_DEFINITIONS = {
    "nll": "NLL (nats per image)",
    "brier": "Brier score (summed over classes, 0 to 2)",
    "ece": f"ECE ({scores.BINS} bins of equal width)",
    "adaptive_ece": f"adaptive ECE ({scores.BINS} bins of equal count)",
    "aurc": "AURC (mean error over all coverages)",
}
_SHOWN = 12
_TOP = 3
_LISTED = 20
"""Classes up to which a table of them is not folded."""
_DRAWS = 16
_REPEATS = 1000
_EXACT, _THUMB = 64, 224
_LOOKED_THROUGH = 4 << 30
"""Bytes of images up to which equal ones are looked for: each has to be read."""


@dataclass(frozen=True)
class _Shown:
    """A run, with all that its part of the page is made of.

    Attributes:
        run: which.
        found: what its answers to the test images are worth.
        outside: its answers to other images, if there are any.
        sets: how sets of classes are made, if they are.
        audit: of its dropout, or why there is none.
        warmer: its answers after a temperature that validation images chose, and that; if there is.
    """

    run: Run
    found: Appraisal
    outside: Predictions | None
    sets: Conformal | None
    audit: Audit | str
    warmer: tuple[Appraisal, float] | None


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
        None if coverage is None else sets_for(Witness([run], samples), coverage, sets, False)
        for run in runs
    ]
    shown = [
        _shown(run, images, promised, samples)
        for run, images, promised in zip(runs, others, made, strict=True)
    ]
    both = [card("Loss", figures.loss_curve(runs, plots)), _scores(shown, samples)]
    own = [_cards(each, plots, f"run{number}", ood) for number, each in enumerate(shown, 1)]
    if len(runs) == 1:
        parts = [_first(shown[0], plots), cards(*both, *own[0])]
    else:
        parts = [_compared(shown, plots), cards(*both)]
        for run, found in zip(runs, own, strict=True):
            parts += [f"<h2>{html.escape(run.folder.name)}</h2>", cards(*found)]
    write_page(out, "Thinned: " + ", ".join(run.folder.name for run in runs), parts)
    plots.write_files()
    return out


def _shown(run: Run, others: Any, sets: Conformal | None, samples: int) -> _Shown:
    found = appraise([run], run.test_images(), samples)
    outside = None if others is None else predictions_of([run], others, samples, vary=True)
    return _Shown(run, found, outside, sets, _audit(run), _warmer(run, found, samples))


def _audit(run: Run) -> Audit | str:
    try:
        return audited(run.built, run.state, _DRAWS)
    except RequestError as error:
        return str(error)


def _warmer(run: Run, found: Appraisal, samples: int) -> tuple[Appraisal, float] | None:
    if not run.dataset.validation:
        return None
    chosen = fitted([run], samples)
    if chosen.doubt:
        return None
    answers = tempered(found.predictions, chosen.temperature)
    return Appraisal(answers, found.labels, found.classes), chosen.temperature


def _calibration(shown: _Shown) -> str:
    warmer, temperature = shown.warmer or (None, 1.0)
    return verdicts.calibration(shown.found, warmer, temperature)


def _first(shown: _Shown, plots: Plots) -> str:
    """The first screen of the page of one run."""
    run, found = shown.run, shown.found
    audit = None if isinstance(shown.audit, str) else shown.audit
    records = run.metrics
    warmer = shown.warmer
    verdict = [
        _calibration(shown),
        verdicts.mistakes(found),
        verdicts.dropout(audit),
    ]
    trained = verdicts.Trained(
        shlex.quote(str(run.folder)),
        run.config.epochs,
        bool(run.dataset.validation),
        audit,
        run.best is None and verdicts.falls(records),
        verdicts.learned_by_heart(records, found),
        warmer is not None and verdicts.needs_temperature(found, warmer[0]),
    )
    title = (
        f"{run.folder.name}: {_network(run)}, trained on {run.facts.train_size:,} images of "
        f"{run.facts.name} ({len(run.facts.classes):,} classes)"
    )
    picture = figures.accuracy_curve([run], plots)
    return lead(title, verdicts.headline(found), verdict, verdicts.next_steps(trained), picture)


def _network(run: Run) -> str:
    named = run.config.model
    return type(run.built.model).__name__ if named == "auto" else named


def _compared(shown: Sequence[_Shown], plots: Plots) -> str:
    """The first screen of the page of several runs."""
    base, *rest = shown
    test = base.run.test_images()
    verdict = []
    for each in rest:
        names = each.run.folder.name, base.run.folder.name
        if not same_images(each.run.test_images(), test):
            verdict.append(f"{names[0]} is not compared: other test images.")
            continue
        difference = _gain(each.found.right, base.found.right)
        others = [
            (_gain(own, other),)
            for (_, own), (_, other) in zip(each.found.others, base.found.others, strict=True)
        ]
        low, high = intervals.over_images(np.mean, (difference,), others, repeats=_REPEATS)
        verdict.append(verdicts.difference(*names, float(difference.mean()), low, high))
    runs = [each.run for each in shown]
    title = "Compared: " + ", ".join(run.folder.name for run in runs)
    told = ", ".join(verdicts.headline(each.found)[0] for each in shown)
    below = f"of the test images right; differences by a paired bootstrap over {base.found.varied}"
    return lead(title, (told, below), verdict, (), figures.accuracy_curve(runs, plots))


def _gain(right: np.ndarray, base: np.ndarray) -> np.ndarray:
    return right.astype(float) - base.astype(float)


def _scores(shown: Sequence[_Shown], samples: int) -> str:
    passes = "1 sample" if samples == 1 else f"{samples} samples"
    how = f"{passes} of each network by MC dropout" if samples else "dropout off, one pass"
    named = [dict(_named(each.found)) for each in shown]
    rows = [
        [name, *(each.get(name, "-") for each in named)]
        for name in dict.fromkeys(name for each in named for name in each)
    ]
    held = table(["score", *(each.run.folder.name for each in shown)], rows)
    counts = ", ".join(dict.fromkeys(f"{len(each.found.labels):,}" for each in shown))
    kept = "".join(
        f" Of {html.escape(each.run.folder.name)}, {each.run.best} is used."
        for each in shown
        if each.run.best is not None
    )
    return card("Scores", f"<p>{counts} test images; {how}.{kept}</p>{held}")


def _named(found: Appraisal) -> Iterator[tuple[str, str]]:
    """Each score's name with its definition, and its value."""
    score = found.scores
    low, high = score["accuracy_low"], score["accuracy_high"]
    told = points([score["accuracy"], low, high], (high - low) / 2)
    how = "95 % interval over images and masks" if found.others else "Wilson's 95 % interval"
    yield f"accuracy, % ({how})", f"{told[0]} ({told[1]} to {told[2]})"
    for coverage in COVERAGES:
        (part,) = points([score[f"accuracy_at_{coverage:g}"]], (high - low) / 2)
        yield f"accuracy on the surest {percent(coverage)}, %", part
    if "top5" in score:
        (part,) = points([score["top5"]], (high - low) / 2)
        yield "accuracy, the label among the top 5, %", part
    for name, words in _DEFINITIONS.items():
        yield words, f"{score[name]:.3g}"


def _cards(shown: _Shown, plots: Plots, name: str, ood: str | None) -> Iterator[str]:
    run, found, outside = shown.run, shown.found, shown.outside
    other = None if outside is None else outside.entropy
    drawn = [
        figures.reliability(found, plots, name),
        figures.entropies(found, other, plots, name),
        figures.selective(found, plots, name),
    ]
    calibrated = _calibration(shown)
    beside = f'<div class="beside">{"".join(drawn)}</div>'
    yield card("How sure it is", _said(calibrated), beside, wide=True)
    yield card("What it mistakes", figures.confusion(found, plots, name), wide=True)
    yield from _pictures(shown)
    alone = shown.sets is None or outside is None
    yield card("Sets of classes", _sets(shown), wide=alone)
    if outside is not None:
        yield card(f"Other images: {ood}", _outsiders(found, outside), wide=alone)
    yield card("Dropout", *_dropout(shown, plots, name))
    yield card("Data", *_data(run.dataset))
    yield card("Filters of the first layer", _filters(run), wide=True)
    yield card("To repeat it", _repeat(run), wide=True)


def _said(words: str) -> str:
    return f"<p>{html.escape(words)}</p>"


def _outsiders(found: Appraisal, outside: Predictions) -> str:
    inside = found.predictions
    told_by = told_apart(
        uncertainties(inside.told),
        uncertainties(outside.told),
        other_measures(inside, outside),
    )
    rows = [
        [name]
        + [
            f"{score[key]:.3f} ({score[f'{key}_low']:.3f} to {score[f'{key}_high']:.3f})"
            for key in ("auroc", "fpr95")
        ]
        for name, score in told_by.items()
    ]
    told = f"How well {len(outside.probabilities):,} other images are told from the test images."
    return _said(told) + table(["told apart by", "AUROC (95 %)", "FPR95 (95 %)"], rows)


def _sets(shown: _Shown) -> str:
    if shown.sets is None:
        return ""
    found = shown.found
    scored = SetScores.of(shown.sets, found.probabilities, found.labels, found.classes)
    return text(str(scored))


def _pictures(shown: _Shown) -> Iterator[str]:
    found, test = shown.found, shown.run.test_images()
    confidence = found.probabilities.max(1)
    wrong = np.flatnonzero(~found.right)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:_SHOWN]
    unsure = np.argsort(confidence, kind="stable")[:_SHOWN]
    named = _named_files(shown.run)
    for title, chosen in (("The worst mistakes", worst), ("The least sure", unsure)):
        held = None if shown.sets is None else shown.sets.sets(found.probabilities[chosen])
        tiles = "".join(
            _tile(test.images[[row]][0], row, named(row), found, None if held is None else held[at])
            for at, row in enumerate(chosen.tolist())
        )
        yield card(title, f'<div class="tiles">{tiles}</div>' if tiles else "", wide=True)


def _named_files(run: Run) -> Callable[[int], str]:
    """What each test image is called: by its file within the data, where these are files."""
    named = namer(open_source(run.config.data, run.config.seed), run.dataset.splits)
    labels, folder = run.dataset.test.labels, f"{run.config.data.path}/"
    return lambda row: named(Place("test", row, int(labels[row]))).removeprefix(folder)


def _tile(image: np.ndarray, row: int, name: str, found: Appraisal, held: np.ndarray | None) -> str:
    p, label = found.probabilities[row], int(found.labels[row])
    names = found.classes
    says = f"is {names[label]}"
    if held is not None:
        says += f"; set: {', '.join(names[each] for each in np.flatnonzero(held)) or 'none'}"
    likely = np.argsort(-p, kind="stable")[:_TOP].tolist()
    bars = "".join(
        f'<p class="bar" style="--part:{p[each]:.0%}"><span>{html.escape(names[each])}</span>'
        f"<span>{percent(p[each])}</span></p>"
        for each in dict.fromkeys([*likely, label])
    )
    photo = ' class="photo"' if min(image.shape[:2]) > _EXACT else ""
    alt = f"test image {row}: says {names[likely[0]]}, {says}"
    return (
        f'<div class="tile"><img{photo} src="{_data_url(image)}" alt="{html.escape(alt)}">'
        f'<p class="quiet">{html.escape(name)}</p>'
        f"<p><strong>{html.escape(says)}</strong></p>{bars}</div>"
    )


def _dropout(shown: _Shown, plots: Plots, name: str) -> Iterator[str]:
    audit = shown.audit
    drawn = figures.rates(shown.run, plots, name)
    if isinstance(audit, str):
        yield _said(f"{verdicts.dropout(None)} {audit}")
        yield drawn
        return
    yield _said(verdicts.dropout(audit))
    rows = [
        [
            site.name,
            site.kind,
            verdicts.rate(site.rate),
            verdicts.rate(site.effective),
            "wrong" if audit.failures(site.name) else "right" if site.seen else "not seen",
        ]
        for site in audit.sites
    ]
    if rows:
        yield table(["site", "kind", "rate", "measured", "audit"], rows)
    yield drawn
    yield folded(f"The audit, over {_DRAWS} steps", text(str(audit)))


def _data(data: Dataset) -> Iterator[str]:
    splits, size = data.splits, len(data.classes)
    counts = {name: np.bincount(split.labels, minlength=size) for name, split in splits.items()}
    form = " x ".join(map(str, data.train.images.shape[1:]))
    yield _said(f"{verdicts.classes(counts, data.classes)} Images are {form}.")
    names, columns = [*data.classes, "all"], [[*each, each.sum()] for each in counts.values()]
    rows = [[name, *map("{:,}".format, row)] for name, *row in zip(names, *columns, strict=True)]
    held = table(["class", *counts], rows)
    yield held if size <= _LISTED else folded("Images of each class", held)
    yield from _repeats(data)
    if data.left_out:
        yield _said(f"{len(data.left_out):,} files cannot be read and were left out.")
    yield "".join(_said(f"{note[:1].upper()}{note[1:]}.") for note in data.notes)


def _repeats(data: Dataset) -> Iterator[str]:
    """How many images are there more than once, and where."""
    if sum(split.images.nbytes for split in data.splits.values()) > _LOOKED_THROUGH:
        yield _said("Equal images were not looked for in so many: thinned data inspect does.")
        return
    found = duplicates(data.splits)
    lines = [
        f"{count:,} images of {two} are in {one}, too." for (one, two), count in found.leaks.items()
    ]
    if found.conflicts:
        lines.append(f"{found.conflicts:,} images equal one of another class.")
    yield "".join(f'<p class="warn">{html.escape(line)}</p>' for line in lines)
    if not found.leaks:
        yield _said("No image is in two splits.")
    for split, count in found.repeats.items():
        yield _said(f"{count:,} images of {split} equal another one of {split}.")


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
        f'<div class="tile"><img src="{_data_url(scaled[..., index])}" '
        f'alt="filter {index} of the first layer"></div>'
        for index in range(scaled.shape[3])
    )
    return f'<div class="tiles small">{tiles}</div>'


def _repeat(run: Run) -> str:
    try:
        environment = json.loads(read_regular(run.folder / "environment.json"))
    except (OSError, ValueError):
        environment = {}
    shown = text(json.dumps(environment, indent=2))
    command = text(f"thinned train -c {shlex.quote(str(run.folder / 'config.json'))}")
    configuration = folded("Configuration", text(to_json(run.config)))
    return folded("Command, configuration, environment", command, configuration, shown)


def _data_url(image: np.ndarray) -> str:
    """A picture in the page; photos as small JPEGs, since fifty of them are many megabytes."""
    buffer, picture = io.BytesIO(), Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    kind = "JPEG" if min(picture.size) > _EXACT else "PNG"
    picture.thumbnail((_THUMB, _THUMB))
    picture.save(buffer, kind)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()
