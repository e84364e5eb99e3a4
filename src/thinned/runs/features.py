"""What a network's still part makes of images, computed once for each image and kept.

Where only the last stages train or drop, all before them is a fixed function of the image. Its
outputs lie in the user's cache by a digest of that function and of each image's pixels: whatever
run, seed, arm of a study or split asks for an image's features, they are computed once.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterator
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
from thinned.engine.build import Built, example
from thinned.engine.logs import Silent, view_for
from thinned.engine.step import TrainState
from thinned.models.apply import Frozen, Normalised, Stages, padded_batches

_BATCH = 16
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
        shape = _entering(built, count)
        used = _only(state.variables, built.parts[:count])
        total = hashlib.sha256(f"1 {jax.__version__} {type(built.model).__name__}".encode())
        total.update(f"{built.model} {count} {built.facts.image_shape}".encode())
        for path, leaf in jax.tree.leaves_with_path(used):
            total.update(jax.tree_util.keystr(path).encode())
            total.update(np.ascontiguousarray(leaf).data)
        return cls(apply_fn, used, shape, total.hexdigest()[:_DIGEST])


def _entering(built: Built, count: int) -> tuple[int, ...]:
    def run(images: Any) -> Any:
        return built.model.init_with_output(jax.random.key(0), images, stop=count)[0]

    found: Any = jax.eval_shape(run, example(built.facts))
    return tuple(found.shape[1:])


def _only(variables: Variables, names: Collection[str]) -> Variables:
    """The variables without the parameters and statistics of other stages."""
    found: dict[str, Any] = {}
    for kind, held in variables.items():
        if kind == "input_statistics":
            found[kind] = held
        else:
            found[kind] = {name: part for name, part in held.items() if name in names}
    return found


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
    tail = Frozen(Stages(built.model.apply, begin=built.cut))
    return replace(built, augment=None, plan=plan), state.replace(apply_fn=tail), dataset


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
    made = {
        name: _of_split(trunk, split, None, 0, built.config.seed, name, quiet)
        for name, split in dataset.splits.items()
        if name != "train" and len(split)
    }
    views = views_of(built)
    parts = [
        _of_split(
            trunk, dataset.train, built.augment, view, built.config.seed, _named(view, views), quiet
        )
        for view in range(views)
    ]
    train = Split(np.concatenate([part.images for part in parts]), np.tile(dataset.train.labels, views))
    none = Split(np.zeros((0, *trunk.shape), np.float32), np.zeros(0, np.int32))
    return replace(
        dataset,
        train=train,
        test=made.get("test", none),
        validation=made.get("validation"),
    )


def _named(view: int, views: int) -> str:
    return "train" if views == 1 else f"train, view {view + 1} of {views}"


def _of_split(
    trunk: Trunk, split: Split, augment: Augment | None, view: int, seed: int, name: str, quiet: bool
) -> Split:
    manner = trunk.digest
    if augment is not None:
        told = f"{manner} {augment} {seed} {view}"
        manner = hashlib.sha256(told.encode()).hexdigest()[:_DIGEST]
    digests = [digest for part, _ in split.parts() for digest in map(_digest, part)]
    known = _kept(manner, trunk.shape)
    missing = [row for row, digest in enumerate(digests) if digest not in known]
    if missing:
        vary = None if augment is None else partial(_varied, augment, seed, view)
        known |= _computed(trunk, split, missing, digests, manner, vary, name, quiet)
    return Split(np.stack([known[digest] for digest in digests]), split.labels)


def _digest(image: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()[:_DIGEST]


def _kept(manner: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Image digest -> features f32, of all packs that were made in this manner."""
    found: dict[str, np.ndarray] = {}
    for kept in packs_in(cache_folder("features")):
        if not kept.folder.name.startswith(manner):
            continue
        pack = open_pack(kept.folder)
        if pack is None:
            continue
        rows = pack.images[np.arange(len(pack.images))].view(np.float32)
        found.update(zip(pack.beside["digests"], rows.reshape(-1, *shape), strict=True))
    return found


def _computed(
    trunk: Trunk,
    split: Split,
    rows: list[int],
    digests: list[str],
    manner: str,
    vary: Any,
    name: str,
    quiet: bool,
) -> dict[str, np.ndarray]:
    """Image digest -> features f32, computed now, and kept."""
    # Equal images have equal features.
    first = {digests[row]: row for row in reversed(rows)}
    wanted = np.asarray(sorted(first.values()))
    own = [digests[row] for row in wanted]
    found: dict[str, np.ndarray] = {}

    def made(view: Silent) -> Iterator[tuple[int, np.ndarray]]:
        for place, features in _run(trunk, split, wanted, own, vary, name, view):
            found[own[place]] = features
            yield place, features.reshape(-1).view(np.uint8)

    with view_for(quiet, 0, len(wanted), "features") as view:
        size = 4 * int(np.prod(trunk.shape))
        name_of = hashlib.sha256(" ".join(own).encode()).hexdigest()[:8]
        folder = cache_folder("features") / f"{manner}-{name_of}"
        write_pack(folder, (size,), made(view), {"digests": own})
    return found


def _run(
    trunk: Trunk,
    split: Split,
    wanted: np.ndarray,
    digests: list[str],
    vary: Any,
    name: str,
    view: Silent,
) -> Iterator[tuple[int, np.ndarray]]:
    started, batch = 0.0, min(_BATCH, len(wanted))
    for number, (places, mask) in enumerate(padded_batches(len(wanted), batch)):
        images = jnp.asarray(split.images[wanted[places]])
        keys = np.asarray([int(digests[place][:8], 16) for place in places], np.uint32)
        if vary is not None:
            images = vary(as_float(images), jnp.asarray(keys))
        features = np.asarray(_features(trunk.apply_fn, trunk.variables, images))
        for place, row in zip(places[mask], features[mask], strict=True):
            yield int(place), row
        view.advance(int(mask.sum()))
        if number == 0:
            # The first call holds the compilation.
            started = time.monotonic()
        elif number == 2:
            left = (time.monotonic() - started) / 2 * (len(wanted) / batch - 3)
            if left > _TOLD_S:
                view.say(f"features of {len(wanted):,} images ({name}): about {_told(left)}")


def _told(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"


@partial(jax.jit, static_argnames="apply_fn")
def _features(apply_fn: Any, variables: Variables, images: jax.Array) -> jax.Array:
    return apply_fn(variables, as_float(images), train=False)


@partial(jax.jit, static_argnames="augment")
def _varied(
    augment: Augment, seed: Any, view: Any, images: jax.Array, digests: jax.Array
) -> jax.Array:
    """A view of each image: what is drawn depends on its pixels, and not on its place."""
    root: Key = key_for(seed, "augment", view)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(root, digests)
    labels = jnp.zeros(1, jnp.int32)
    one = jax.vmap(lambda image, key: augment(image[None], labels, key).images[0])
    return one(images, keys)
