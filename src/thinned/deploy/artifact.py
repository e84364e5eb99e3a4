"""A classifier that stands alone: weights, programs and what is known of them, in one folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from thinned.core.disk import read_regular
from thinned.core.errors import RequestError, need
from thinned.core.rng import fixed_settings
from thinned.data.decode import Fit
from thinned.deploy.programs import Programs
from thinned.deploy.promises import Way
from thinned.engine.devices import use_compilation_cache
from thinned.models.apply import BATCH_SIZE, padded_batches
from thinned.runs.answers import Answers
from thinned.runs.predictions import tempered
from thinned.runs.run import fitting_images
from thinned.trust.sampling import Predictions, averaged, joined, of_logits

ABOUT, WEIGHTS, CARD = "model.json", "weights.safetensors", "README.md"
PLAIN, SAMPLED = "plain.jax", "sampled.jax"
FORMAT = 1


def needed(wanted: str) -> None:
    """Say before the work what an artifact takes.

    Raises:
        RequestError: ``flatbuffers`` or ``safetensors`` is not installed.
    """
    for module in ("flatbuffers", "safetensors"):
        need(module, wanted, "export")


@dataclass(frozen=True)
class Artifact:
    """What answers without the run: functions of images, and what is promised of them.

    Attributes:
        name: for people.
        classes: their names, in the order of the labels.
        image_shape: (height, width, channel).
        fit: how images of other shapes are brought to it.
        programs: what is computed.
        ways: to predict, with their promises.
        digest: of the weights, in hexadecimal digits.
    """

    name: str
    classes: tuple[str, ...]
    image_shape: tuple[int, ...]
    fit: Fit
    programs: Programs
    ways: tuple[Way, ...]
    digest: str

    @classmethod
    def open(cls, folder: Path | str) -> Artifact:
        """Read an artifact that `thinned.deploy.export.export` wrote.

        Raises:
            RequestError: there is none, it is damaged, or what reads it is not installed.
        """
        folder = Path(folder)
        needed("an artifact")
        use_compilation_cache()
        try:
            return _opened(folder, json.loads(read_regular(folder / ABOUT)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RequestError(f"{folder} is no artifact, or damaged: {reason}") from error

    @property
    def samples(self) -> int:
        """Thinned networks of each run that it can ask; 0 for none."""
        return self.programs.samples

    @fixed_settings()
    def logits(self, images: np.ndarray, samples: int) -> np.ndarray:
        """Logits f32 [run, sample, image, class] of images u8 [image, height, width, channel].

        Args:
            images: each number of them is compiled once.
            samples: 0 for dropout off, which counts as one sample, or those of the artifact.
        """
        programs = self.programs
        if not samples or programs.sampled is None:
            return np.asarray(programs.plain(programs.weights, images))[:, None]
        return np.asarray(programs.sampled(programs.weights, images, programs.keys))

    def predictions(self, images: np.ndarray, way: Way) -> Predictions:
        """What is predicted for images u8 [image, height, width, channel], at least one.

        Raises:
            RequestError: they are of another shape.
        """
        images = fitting_images(images, self.image_shape)

        def part(rows: np.ndarray, mask: np.ndarray) -> Predictions:
            return predicted(self.logits(images[rows], way.samples)[:, :, mask], way)

        batches = padded_batches(len(images), min(BATCH_SIZE, len(images)))
        return joined((part(rows, mask) for rows, mask in batches), len(images))

    def way(self, samples: int, calibrated: bool) -> Way:
        """The way to predict with so many samples.

        Raises:
            RequestError: the artifact has no such way.
        """
        for way in self.ways:
            if (way.samples, way.temperature is not None) == (samples, calibrated):
                return way
        if samples not in {way.samples for way in self.ways}:
            other = f"or --samples {self.samples}" if self.samples else "alone"
            raise RequestError(f"{self.name} was exported for --samples 0 {other}, not {samples}")
        raise RequestError(
            f"{self.name} has no temperature: its run held out no validation images to fit one"
        )

    def best_way(self, samples: int) -> Way:
        """The way with so many samples: tempered, where there is a temperature.

        Raises:
            RequestError: as `way`.
        """
        return self.way(samples, any(way.temperature is not None for way in self.ways))

    def answers(self, way: Way) -> Answers:
        """How it answers."""
        return Answers(
            self.classes,
            self.image_shape,
            self.fit,
            partial(self.predictions, way=way),
            way.samples,
            way.selection,
            way.sets,
            way.known,
        )


def predicted(logits: np.ndarray, way: Way) -> Predictions:
    """What logits f32 [run, sample, image, class] say, tempered as the way has it."""
    found = averaged([of_logits(member) for member in logits])
    return found if way.temperature is None else tempered(found, way.temperature)


def _opened(folder: Path, about: Mapping[str, Any]) -> Artifact:
    from safetensors.numpy import load

    if about["format"] != FORMAT:
        raise ValueError(f"its format is {about['format']!r}, and {FORMAT} is read")
    samples = int(about["samples"])
    names = [WEIGHTS, PLAIN, *([SAMPLED] if samples else [])]
    content = {name: _checked(folder / name, about["sha256"][name]) for name in names}
    programs = Programs(
        jax.device_put(load(content[WEIGHTS])),
        _called(content[PLAIN]),
        _called(content[SAMPLED]) if samples else None,
        np.asarray(about["keys"], np.uint32),
        samples,
    )
    return Artifact(
        str(folder),
        tuple(map(str, about["classes"])),
        tuple(map(int, about["image"]["shape"])),
        cast(Fit, about["image"]["fit"]),
        programs,
        tuple(map(Way.from_values, about["ways"])),
        digest_of(content[WEIGHTS]),
    )


def _checked(path: Path, sha256: str) -> bytes:
    if not path.is_file():
        raise ValueError(f"it has no {path.name}")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path.name} differs from the digest in {ABOUT}")
    return content


def _called(content: bytes) -> Callable[..., jax.Array]:
    from jax import export

    return jax.jit(export.deserialize(bytearray(content)).call)


def digest_of(weights: bytes) -> str:
    """By which an artifact's weights are told from others: 32 digits of their SHA-256."""
    return hashlib.sha256(weights).hexdigest()[:32]
