"""Networks as a row of named stages, so that a part of one can run, train or be kept alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
from flax import linen as nn

from thinned.dropout.linen import DropPath
from thinned.dropout.sites import DropoutSpec, dropped_dense

HEAD = "head"
"""The last stage of every network here: dropout and one dense layer."""
HEAD_SITE = "Dropout_0"
"""What is dropped before the head."""

Scaling = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and deviation of inputs in [0, 1], by channel."""
IMAGENET: Scaling = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Of ImageNet's training images, as PyTorch's model zoos scale their inputs."""


@dataclass(frozen=True)
class Passing:
    """How a stage is passed.

    Attributes:
        train: whether something is dropped.
        average: whether batch normalisation uses its running statistics.
        paths: what the stage's residual branches go through, one after another.
    """

    train: bool
    average: bool
    paths: tuple[Callable[[jax.Array], jax.Array], ...]


Stage = Callable[..., nn.Module]
"""Makes a module, given its ``name``, that is called with float [batch, ...] and a `Passing`."""


class Staged(nn.Module):
    """Base of the networks that are a row of stages; the last of them is the head.

    The parameters of a stage lie under the scope of its name, so that the first element of a path
    says how deep a parameter lies. What enters the head is f32 [batch, feature]: a map is averaged
    at the end of the stage before.

    Sites: ``Dropout_0`` before the head's dense layer; of kinds ``channel`` and ``block`` the last
    map, before its mean. With kind ``path`` the residual branches as well: ``DropPath_0`` and so
    on, numbered by block, also over blocks without a branch.

    Attributes:
        classes: number of classes.
        dropout: what is dropped; where it names no rate, 0.2 before the head and, along the blocks,
            rates that grow linearly to 0.2 (Huang et al. 2016, eq. 4; EfficientNet's values).
        frozen_statistics: whether batch normalisation uses its running statistics in training, too.
    """

    classes: int = 1000
    dropout: DropoutSpec = DropoutSpec()
    frozen_statistics: bool = False

    scaling: ClassVar[Scaling] = IMAGENET
    """How published weights want their inputs."""
    branches: ClassVar[int] = 1
    """Residual branches of a block."""
    inner: ClassVar[tuple[str, ...]] = ()
    """Kinds that are dropped inside the blocks, and nowhere else."""
    rate: ClassVar[float] = 0.2
    """Before the head, and along the last block's branches."""

    def stages(self) -> Mapping[str, Stage]:
        """All stages but the head, in order; those with residual branches are named ``blocks_``."""
        raise NotImplementedError

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The names of all stages, in order."""
        return (*self.stages(), HEAD)

    def stage_of(self, place: str) -> str:
        """The stage that a site, or a path of a variable, belongs to.

        >>> from thinned.models.vit import ViT
        >>> ViT().stage_of("DropPath_3"), ViT().stage_of("Dropout_0"), ViT().stage_of("neck/norm")
        ('blocks_1', 'head', 'neck')
        """
        first = place.split("/")[0]
        if first.startswith("DropPath_"):
            return f"blocks_{int(first.removeprefix('DropPath_')) // self.branches}"
        if first == HEAD_SITE:
            return self.stage_names[-2 if self.dropout.kind in ("channel", "block") else -1]
        return first

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool = False, begin: int = 0, stop: int | None = None
    ) -> jax.Array:
        """Logits f32 [batch, class] of images f32 [batch, height, width, channel].

        Args:
            images: scaled as `scaling` says; what enters stage `begin`, where that is not 0.
            train: whether to drop, and whether batch normalisation uses the batch.
            begin: the first stage that runs.
            stop: the first stage that does not, or None to run them all; then what enters that
                stage is returned.
        """
        x, names = images, self.stage_names
        for name in names[begin:stop]:
            x = self._head(x, train) if name == HEAD else self._stage(name, x, train)
            if name == names[-2] and x.ndim == 4:
                x = self._last_map(x, train).mean((1, 2))
        return x

    def _stage(self, name: str, x: jax.Array, train: bool) -> jax.Array:
        average = not train or self.frozen_statistics
        passing = Passing(train, average, self._paths(name, train))
        return self.stages()[name](name=name)(x, passing)

    def _paths(self, name: str, train: bool) -> tuple[Callable[[jax.Array], jax.Array], ...]:
        if self.dropout.kind != "path" or not name.startswith("blocks_"):
            return (_same,) * self.branches
        first = int(name.removeprefix("blocks_")) * self.branches
        return tuple(self._path(first + branch, train) for branch in range(self.branches))

    def _path(self, index: int, train: bool) -> DropPath:
        blocks = sum(name.startswith("blocks_") for name in self.stages())
        rate = self.dropout.rate_or(self.rate * (index + 1) / (blocks * self.branches))
        bits, name = self.dropout.bits, f"DropPath_{index}"
        return DropPath(rate, deterministic=not train, bits=bits, name=name)

    def _last_map(self, x: jax.Array, train: bool) -> jax.Array:
        if self.dropout.kind not in ("channel", "block") or self.dropout.kind in self.inner:
            return x
        return self.dropout.layer(HEAD_SITE, train=train, rate=self.rate)(x)

    def _head(self, x: jax.Array, train: bool) -> jax.Array:
        spec = self.dropout
        if spec.kind in self.inner:
            return nn.Dense(self.classes, name=HEAD)(x)
        if spec.kind == "path":
            spec = replace(spec, kind="element")
        return dropped_dense(
            x, self.classes, spec, train=train, site=HEAD_SITE, dense=HEAD, rate=self.rate
        )


def _same(branch: jax.Array) -> jax.Array:
    return branch


@dataclass(frozen=True)
class Style:
    """How a family's convolutions are padded, normalised and activated.

    Attributes:
        symmetric: whether both sides get the same zeros, as in PyTorch; else as TensorFlow's SAME,
            which at stride 2 may give the far side one more.
        momentum: what batch normalisation keeps of its running statistics at a step.
        epsilon: added to its variance.
        activation: after it.
    """

    symmetric: bool = True
    momentum: float = 0.9
    epsilon: float = 1e-5
    activation: Callable[[jax.Array], jax.Array] = nn.relu

    def padding(self, size: int, stride: int) -> str | list[tuple[int, int]]:
        """Of a kernel of an odd size; where both ways agree, by its name, which is faster."""
        edge = size // 2
        return "SAME" if stride == 1 or not self.symmetric else [(edge, edge), (edge, edge)]

    def norm(self, passing: Passing, name: str) -> nn.BatchNorm:
        """Batch normalisation."""
        return nn.BatchNorm(
            use_running_average=passing.average,
            momentum=self.momentum,
            epsilon=self.epsilon,
            name=name,
        )
