"""What a network's still part makes of images, computed once for each image and kept.

Where only the last stages train or drop, all before them is a fixed function of the image. Its
outputs lie in the user's cache by a digest of that function and of each image's pixels: whatever
run, seed, arm of a study or split asks for an image's features, they are computed once.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thinned.core.disk import cache_folder
from thinned.core.rng import key_for
from thinned.core.types import Dataset, Key, Split, Variables
from thinned.data.augment import Augment
from thinned.data.batch import as_float
from thinned.data.pack import open_pack, packs_in, write_pack
from thinned.data.split import image_digests
from thinned.engine.build import Built, example
from thinned.engine.checkpoint import digest
from thinned.engine.logs import Silent, told_time, view_for
from thinned.engine.step import TrainState
from thinned.models.apply import (
    INPUT_STATISTICS,
    Frozen,
    Normalised,
    Stages,
    in_pieces,
    padded_batches,
)

_BATCH = 16
_TIMED = 2
_TOLD_S = 10.0
_DIGEST = 32


@dataclass(frozen=True)
class Trunk:
    """The still part of a network, as a function of images.

    Attributes:
        apply_fn: of that part, with `variables`.
        variables: of the network.
        shape: of what it makes of one image.
        digest: of all that decides what it makes.
    """

    apply_fn: Any
    variables: Variables
    shape: tuple[int, ...]
    digest: str

    @classmethod
    def of(cls, built: Built, state: TrainState, count: int) -> Trunk:
        """The first `count` stages of a built network, with the variables of a state."""
        apply_fn: Any = Frozen(Stages(built.model.apply, stop=count))
        if built.facts.mean is not None:
            apply_fn = Normalised(apply_fn)
        shape = entering(built, count)
        used = _only(state.variables, built.parts[:count])
        told = f"2 {jax.__version__} {built.model} {count} {built.facts.image_shape} {digest(used)}"
        return cls(apply_fn, used, shape, _short(told.encode()))


def entering(built: Built, count: int) -> tuple[int, ...]:
    """The shape of what the stages before `count` make of one image."""

    def run(images: Any) -> Any:
        return built.model.init_with_output(jax.random.key(0), images, stop=count)[0]

    entering: Any = jax.eval_shape(run, example(built.facts))
    return tuple(entering.shape[1:])


def _only(variables: Variables, names: Collection[str]) -> Variables:
    """The variables without the parameters and statistics of other stages."""
    own: dict[str, Any] = {}
    for kind, held in variables.items():
        if kind == INPUT_STATISTICS:
            own[kind] = held
        else:
            own[kind] = {name: part for name, part in held.items() if name in names}
    return own


def shortened(
    built: Built, state: TrainState, dataset: Dataset, quiet: bool = True
) -> tuple[Built, TrainState, Dataset]:
    """The same training on kept features, where the network has a still part; else as it is.

    Args:
        built, state: of the training.
        dataset: of images.
        quiet: as for `featured`.

    Raises:
        ThinnedError: as `featured`.
    """
    if not built.cut:
        return built, state, dataset
    dataset = featured(Trunk.of(built, state, built.cut), built, dataset, quiet)
    plan = replace(built.plan, augments=False, views=views_of(built))
    short = replace(built, augment=None, plan=plan, on_features=True)
    return short, state.replace(apply_fn=_tail(built)), dataset


def read_by(
    built: Built, state: TrainState, images: Any, keep: bool = True
) -> tuple[TrainState, Any]:
    """A state that predicts, and images as it reads them: features where a part is still.

    Args:
        built: what the run is made of.
        state: of all stages, as `thinned.runs.run.Run.state`.
        images: u8 [image, height, width, channel], or anything that reads so by indexing.
        keep: whether their features are kept for whoever asks again.

    Raises:
        ThinnedError: as `featured`.
    """
    if not built.cut:
        return state, images
    trunk = Trunk.of(built, state, built.cut)
    made = features_of(trunk, Split(images, np.zeros(len(images), np.int32)), keep=keep)
    return state.replace(apply_fn=_tail(built)), made


def _tail(built: Built) -> Frozen:
    return Frozen(Stages(built.model.apply, begin=built.cut))


def views_of(built: Built) -> int:
    """How many varied views of each training image are kept; 1 where none are varied."""
    return 1 if built.augment is None else built.config.augment.views


def featured(trunk: Trunk, built: Built, dataset: Dataset, quiet: bool = True) -> Dataset:
    """A dataset whose images are features: those that are kept, and those computed now.

    Training images come once for each view, one view after another, where they are varied.

    Args:
        trunk: what makes them.
        built: says how training images are varied.
        dataset: the images.
        quiet: whether to show nothing while they are computed.

    Raises:
        ThinnedError: the disk is full, or the cache cannot be written.
    """
    train, count = dataset.train, views_of(built)
    ways = [_Way(trunk, "images")]
    if built.augment is not None:
        ways = [_Way.varied(trunk, built, view, count) for view in range(count)]
    features = np.concatenate([way.features(train, quiet) for way in ways])
    made = {
        name: Split(features_of(trunk, split, quiet), split.labels)
        for name, split in dataset.splits.items()
        if name != "train"
    }
    return replace(dataset, train=Split(features, np.tile(train.labels, count)), **made)


def features_of(trunk: Trunk, split: Split, quiet: bool = True, keep: bool = True) -> np.ndarray:
    """The features f32 [example, ...] of images as they are; those computed now are kept, or not.

    Raises:
        ThinnedError: as `featured`.
    """
    return _Way(trunk, "images").features(split, quiet, keep)


@dataclass(frozen=True)
class _Way:
    """How features of images are made.

    Attributes:
        trunk: makes them.
        name: of the images, for people.
        vary: makes another image of each, from images f32 and digests u32 [batch]; or None.
        told: says how `vary` does so.
    """

    trunk: Trunk
    name: str
    vary: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    told: str = ""

    @classmethod
    def varied(cls, trunk: Trunk, built: Built, view: int, count: int) -> _Way:
        """The features of a view of training images."""
        seed, augment = built.config.seed, built.augment
        vary = partial(_varied, augment, key_for(seed, "augment", view))
        return cls(trunk, f"images, view {view + 1} of {count}", vary, f"{augment} {seed} {view}")

    @property
    def digest(self) -> str:
        """Of all that decides what an image's features are, but the image."""
        return _short(f"{self.trunk.digest} {self.told}".encode())

    def features(self, split: Split, quiet: bool, keep: bool = True) -> np.ndarray:
        """f32 [example, ...], each computed at most once where they are kept."""
        digests = [digest.hex()[:_DIGEST] for digest in image_digests(split)]
        known = self._kept()
        # Equal images have equal features.
        first = {name: row for row, name in reversed(list(enumerate(digests)))}
        missing = sorted(row for name, row in first.items() if name not in known)
        if missing:
            own = {digests[row]: row for row in missing}
            with view_for(quiet, 0, len(own), "features") as view:
                known |= self._computed(split, own, view, keep)
        empty = np.zeros((0, *self.trunk.shape), np.float32)
        return np.stack([known[digest] for digest in digests]) if digests else empty

    def _kept(self) -> dict[str, np.ndarray]:
        """Image digest -> features, of all packs that were made in this way."""
        by_digest: dict[str, np.ndarray] = {}
        for kept in packs_in(cache_folder("features")):
            pack = open_pack(kept.folder) if kept.folder.name.startswith(self.digest) else None
            if pack is not None:
                rows = pack.images[np.arange(len(pack.images))].view(np.float32)
                shaped = rows.reshape(-1, *self.trunk.shape)
                by_digest.update(zip(pack.beside["digests"], shaped, strict=True))
        return by_digest

    def _computed(
        self, split: Split, own: dict[str, int], view: Silent, keep: bool
    ) -> dict[str, np.ndarray]:
        """Image digest -> features, computed now, and kept, or not."""
        digests, by_digest = list(own), dict[str, np.ndarray]()
        if not keep:
            return dict(zip(digests, self._run(split, own, view), strict=True))

        def made() -> Iterator[tuple[int, np.ndarray]]:
            for place, features in enumerate(self._run(split, own, view)):
                by_digest[digests[place]] = features
                yield place, np.ascontiguousarray(features).reshape(-1).view(np.uint8)

        folder = cache_folder("features") / f"{self.digest}-{_short(' '.join(own).encode())[:8]}"
        write_pack(folder, (4 * math.prod(self.trunk.shape),), made(), {"digests": digests})
        return by_digest

    def _run(self, split: Split, own: dict[str, int], view: Silent) -> Iterator[np.ndarray]:
        """The features of rows of a split, batch by batch; says how long the rest will take."""
        rows = np.asarray(list(own.values()))
        words = np.asarray([int(digest[:8], 16) for digest in own], np.uint32)
        started, batch = 0.0, min(_BATCH, len(rows))
        for number, (places, mask) in enumerate(padded_batches(len(rows), batch)):
            images = jnp.asarray(split.images[rows[places]])
            if self.vary is not None:
                images = self.vary(as_float(images), jnp.asarray(words[places]))
            made = _features(self.trunk.apply_fn, self.trunk.variables, images)
            yield from np.asarray(made)[mask]
            view.advance(int(mask.sum()))
            if number == _TIMED:
                left = (time.monotonic() - started) / _TIMED * (len(rows) / batch - 1 - _TIMED)
                if left > _TOLD_S:
                    view.say(f"features of {len(rows):,} {self.name}: about {_in_words(left)}")
            elif number == 0:
                # The first call held the compilation.
                started = time.monotonic()


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGEST]


def _in_words(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else told_time(seconds)


@partial(jax.jit, static_argnames="apply_fn")
def _features(apply_fn: Any, variables: Variables, images: jax.Array) -> jax.Array:
    return in_pieces(lambda part: apply_fn(variables, as_float(part), train=False), images)


@partial(jax.jit, static_argnames="augment")
def _varied(augment: Augment, view: Key, images: jax.Array, digests: jax.Array) -> jax.Array:
    """A view of each image: what is drawn depends on its pixels, and not on its place."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(view, digests)
    labels = jnp.zeros(1, jnp.int32)
    return jax.vmap(lambda image, key: augment(image[None], labels, key).images[0])(images, keys)
