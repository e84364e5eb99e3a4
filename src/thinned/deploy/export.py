"""`thinned export`: runs become an artifact, which is compared with them before it is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export as jax_export

from thinned.core.config import to_json
from thinned.core.disk import whole_folder
from thinned.core.errors import RequestError, ThinnedError
from thinned.core.rng import a_few, fixed_settings
from thinned.core.types import Split
from thinned.deploy.artifact import (
    ABOUT,
    CARD,
    FORMAT,
    PLAIN,
    SAMPLED,
    WEIGHTS,
    Artifact,
    digest_of,
    needed,
    predicted,
)
from thinned.deploy.card import card_of
from thinned.deploy.onnx import ONNX, needed_for_onnx, onnx_logits, onnx_of
from thinned.deploy.programs import Programs, programs_of
from thinned.deploy.promises import Asked, Way, ways_of
from thinned.models.weights.load import to_safetensors
from thinned.runs.beginning import recorded_weights
from thinned.runs.environment import describe_environment, recorded_digest
from thinned.runs.predictions import common_test, members_of, predictions_of, tempered
from thinned.runs.run import Run
from thinned.trust.appraisal import Appraisal
from thinned.trust.sampling import Predictions, averaged

PLATFORMS = ("cpu", "cuda")
BOUND = 1e-6
_COMPARED = 1000
_KEPT_SCORES = ("accuracy", "accuracy_low", "accuracy_high", "nll", "brier", "ece")


class Parity(NamedTuple):
    """How an artifact's probabilities compare with the run's; its text is a line for people.

    Attributes:
        samples: thinned networks of each run; 0 for dropout off.
        images: test images that were compared.
        largest: difference of a probability.
        same: part of the images whose most probable class is the same.
        by: what computed them, where it is not JAX.
    """

    samples: int
    images: int
    largest: float
    same: float
    by: str = ""

    def __str__(self) -> str:
        """The difference, and the share of equal answers."""
        way = f"{self.samples} samples" if self.samples else "plain pass"
        way += f" by {self.by}" if self.by else ""
        return (
            f"{way}: probabilities differ by at most {self.largest:.1e}, {self.same:.2%} of the "
            f"answers are the same, on {self.images:,} test images"
        )


def export(
    runs: Sequence[Run],
    out: Path,
    asked: Asked | None = None,
    bound: float = BOUND,
    say: Callable[[str], None] = print,
    onnx: bool = False,
) -> list[Parity]:
    """Write an artifact: a folder that answers without runs, thinned or Flax.

    Args:
        runs: one, or several as an ensemble, of the same data.
        out: the folder, which must not exist.
        asked: samples to draw, and what to promise by the validation images.
        bound: largest difference of a probability from the runs' own.
        say: called with each line for people.
        onnx: whether to write the plain pass as an ONNX model, too.

    Returns:
        How its predictions compare with the runs' own.

    Raises:
        RequestError: `out` exists, a package is missing, or the runs do not fit together, cannot
            be sampled, or have an operator that ONNX has not.
        ThinnedError: the artifact predicts otherwise than the runs, or cannot be written.
    """
    needed("an artifact")
    if onnx:
        needed_for_onnx()
    asked = asked or Asked()
    with whole_folder(out) as draft:
        test = common_test(runs)
        programs = programs_of(runs, asked.samples)
        ways = ways_of(runs, asked)
        if all(way.temperature is None for way in ways):
            say("note: no validation images: no temperature, and nothing is promised")
        content = _content(runs, programs)
        if onnx:
            content[ONNX] = onnx_of(programs, _image_spec(runs[0]))
        about = _about(runs, programs, ways, content, _scores(runs, ways, test))
        content[ABOUT] = (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode()
        content[CARD] = card_of(about).encode()
        for name, part in content.items():
            (draft / name).write_bytes(part)
        found = _compared(runs, Artifact.open(draft), test)
        if onnx:
            found.append(_compared_by_onnx(runs, draft / ONNX, test))
        for parity in found:
            say(str(parity))
        worst = max(parity.largest for parity in found)
        if not worst <= bound:
            raise ThinnedError(
                f"the artifact's probabilities differ from the run's by {worst:.1e}, more than "
                f"{bound:g}: nothing was written; --bound allows more"
            )
    return found


def in_memory(runs: Sequence[Run], asked: Asked) -> Artifact:
    """What `export` would write, to be asked at once.

    Raises:
        RequestError: as `export`.
    """
    needed("serving")
    programs, first = programs_of(runs, asked.samples), runs[0]
    sampled = programs.sampled
    compiled = programs._replace(
        plain=jax.jit(programs.plain), sampled=None if sampled is None else jax.jit(sampled)
    )
    return Artifact(
        " + ".join(run.folder.name for run in runs),
        first.facts.classes,
        first.facts.image_shape,
        first.config.data.fit,
        compiled,
        tuple(ways_of(runs, asked)),
        digest_of(to_safetensors(programs.weights)),
    )


@fixed_settings()
def _content(runs: Sequence[Run], programs: Programs) -> dict[str, bytes]:
    weights = programs.weights
    images, keys = _image_spec(runs[0]), jax.ShapeDtypeStruct(programs.keys.shape, np.uint32)
    found = {WEIGHTS: to_safetensors(weights), PLAIN: _serial(programs.plain, weights, images)}
    if programs.sampled is not None:
        found[SAMPLED] = _serial(programs.sampled, weights, images, keys)
    return found


def _image_spec(run: Run) -> jax.ShapeDtypeStruct:
    (batch,) = jax_export.symbolic_shape("batch")
    return jax.ShapeDtypeStruct((batch, *run.facts.image_shape), np.uint8)


def _serial(function: Callable[..., jax.Array], weights: Any, *rest: Any) -> bytes:
    specs = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in weights.items()}
    try:
        exported = jax_export.export(jax.jit(function), platforms=PLATFORMS)(specs, *rest)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise RequestError(
            f"the network cannot be exported for any number of images: {reason}"
        ) from error
    return bytes(exported.serialize())


def _about(
    runs: Sequence[Run],
    programs: Programs,
    ways: Sequence[Way],
    content: Mapping[str, bytes],
    scores: list[dict[str, Any]],
) -> dict[str, Any]:
    facts, data = runs[0].facts, runs[0].config.data
    made = describe_environment(facts.name, recorded_digest(runs[0].folder) or "")
    return {
        "format": FORMAT,
        "classes": facts.classes,
        "image": {
            "shape": facts.image_shape,
            "dtype": "uint8",
            "range": [0, 255],
            "fit": data.fit,
            # Both are parts of the programs: they are told, not to be done again.
            "mean": facts.mean,
            "deviation": facts.deviation,
        },
        "samples": programs.samples,
        "keys": programs.keys.tolist(),
        "ways": [way.as_values() for way in ways],
        "scores": scores,
        "runs": [_told(run) for run in runs],
        "data": {**made["data"], "train_images": facts.train_size},
        "packages": made["packages"],
        "platforms": PLATFORMS,
        "sha256": {name: hashlib.sha256(part).hexdigest() for name, part in content.items()},
    }


def _told(run: Run) -> dict[str, Any]:
    return {
        "name": run.folder.name,
        "seed": run.config.seed,
        "step": int(run.state.step),
        "weights": run.weights,
        "config": without_folders(json.loads(to_json(run.config))),
        "pretrained": recorded_weights(run.folder),
    }


def without_folders(config: dict[str, Any]) -> dict[str, Any]:
    """A config as plain values that others may read: of paths of this machine, the last part."""

    def last(path: Any) -> Any:
        return Path(path).name if isinstance(path, str) and Path(path).is_absolute() else path

    data = {**config["data"], "path": last(config["data"]["path"])}
    return {**config, "data": data, "pretrained": last(config["pretrained"])}


def _scores(runs: Sequence[Run], ways: Sequence[Way], test: Split) -> list[dict[str, Any]]:
    """The scores of each way on all test images."""
    rows: list[dict[str, Any]] = []
    found = {way.samples: predictions_of(runs, test.images, way.samples) for way in ways}
    for way in ways:
        told = found[way.samples]
        told = told if way.temperature is None else tempered(told, way.temperature)
        scores = Appraisal(told, test.labels, runs[0].facts.classes).scores
        row = {"samples": way.samples, "calibrated": way.temperature is not None}
        rows.append({**row, "images": len(test), **{name: scores[name] for name in _KEPT_SCORES}})
    return rows


def _compared(runs: Sequence[Run], artifact: Artifact, test: Split) -> list[Parity]:
    """Each plain and sampled way, by the artifact as it was read back."""
    images = _few_of(test)
    return [
        _parity(runs, images, way.samples, artifact.predictions(images, way))
        for way in artifact.ways
        if way.temperature is None
    ]


def _compared_by_onnx(runs: Sequence[Run], model: Path, test: Split) -> Parity:
    images = _few_of(test)
    there = predicted(onnx_logits(model, images)[:, None], Way(0))
    return _parity(runs, images, 0, there)._replace(by="ONNX Runtime")


def _few_of(test: Split) -> np.ndarray:
    return np.asarray(test.images[a_few(len(test), _COMPARED)])


def _parity(runs: Sequence[Run], images: np.ndarray, samples: int, there: Predictions) -> Parity:
    own = averaged(members_of(runs, images, samples)).probabilities
    differ = float(np.abs(own - there.probabilities).max())
    same = float(np.mean(own.argmax(1) == there.probabilities.argmax(1)))
    return Parity(samples, len(images), differ, same)
