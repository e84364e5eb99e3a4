"""From a config and the facts of its data to everything that a training needs, made once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import errors as flax_errors
from flax import linen as nn

from thinned.core.config import Config, MlpConfig, flag, options, recipe
from thinned.core.errors import RequestError, told
from thinned.core.rng import key_for, stream_root
from thinned.core.types import Key, Variables
from thinned.data.augment import Augment, augment_for
from thinned.data.facts import Facts
from thinned.dropout.sites import INPUT, MAPS, DropoutSpec, Site, dropout_sites
from thinned.engine.finetune import part_of, parts_of, still, trained
from thinned.engine.optim import LOSS_NUMBERS, Rule, numbers_at, optimizer, with_numbers
from thinned.engine.plan import Plan
from thinned.engine.step import TrainState, create_state
from thinned.models.apply import Normalised
from thinned.models.catalog import PHOTOS, RESIDUAL, SMALLEST, has_branches, network
from thinned.models.own import is_own
from thinned.models.staged import Staged

_FAULTS = (TypeError, ValueError, AttributeError, flax_errors.FlaxError)


@dataclass(frozen=True)
class Built:
    """What a config makes of the facts of its data; made once by `Built.of`, then handed down.

    Attributes:
        config: what is asked for.
        facts: of the data.
        model: the network; its rates travel beside the batch, not in it.
        sites: where it drops something.
        plan: what each step of a run will do.
        augment: how training images are varied, or None.
        on_features: whether it learns from what the first `cut` stages make of images.
        start: gives the variables of a pretrained network, laid over those that are drawn; or None.
    """

    config: Config
    facts: Facts
    model: nn.Module
    sites: Mapping[str, Site]
    plan: Plan
    augment: Augment | None
    on_features: bool = False
    start: Callable[[], Variables] | None = field(default=None, compare=False)

    @classmethod
    def of(
        cls,
        config: Config,
        facts: Facts,
        labels: np.ndarray | None = None,
        start: Callable[[], Variables] | None = None,
    ) -> Built:
        """Build it, before anything is written.

        Args:
            config: what is asked for.
            facts: of the data.
            labels: i32 [example] of the training images; needed for balanced sampling.
            start: reads the variables that a pretrained network begins with.

        Raises:
            RequestError: an option does not fit the data or the network; says which.
        """
        _refuse_unfit_data(config, facts)
        model = build_model(config, facts)
        sites = _sites(model, config, facts)
        _refuse_unfit_sites(config, facts, sites)
        augment = augment_for(config.augment, facts.image_shape, len(facts.classes), facts.plain)
        fixed = {name: float(site.rate) for name, site in sites.items() if not site.learned}
        balanced = labels if config.data.balance == "sampling" else None
        plan = Plan(config, facts.train_size, fixed, augment is not None, balanced)
        built = cls(config, facts, model, sites, plan, augment, start=start)
        if config.is_pretrained:
            _refuse_unfit_training(built)
        return built

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The parts of the network, see `thinned.engine.finetune.parts_of`."""
        return parts_of(self.model, example(self.facts))

    @cached_property
    def trains(self) -> tuple[str, ...]:
        """Names of the parts that train: all, unless a pretrained network keeps some."""
        if not self.config.is_pretrained:
            return self.parts
        return trained(self.config.finetune, self.parts, model_name(self.config, self.facts))

    @cached_property
    def cut(self) -> int:
        """How many stages come before the first that trains or drops: what they make is kept."""
        if not (self.config.is_pretrained and isinstance(self.model, Staged)):
            return 0
        return still(self.model, self.trains, self.plan.peak_rates)

    def is_fixed(self, name: str) -> bool:
        """Whether no step changes the parameters, or the collection, of that outermost name."""
        if not self.config.is_pretrained:
            return False
        if name == "batch_stats":
            # Networks of other kinds have no way to leave them alone.
            return self.config.batch_statistics == "frozen" and isinstance(self.model, Staged)
        part = part_of(self.model, name)
        return part in self.parts and part not in self.trains

    def _factors(self) -> dict[str, float]:
        decay = self.config.optim.layer_decay
        if decay is None:
            return {}
        deep = len(self.parts) - 1
        return {name: decay ** (deep - index) for index, name in enumerate(self.parts)}

    def initial_state(self) -> TrainState:
        """The state at step 0: a pure function of the config and the facts, made anew.

        Training donates it, so it is not kept.

        Raises:
            RequestError: a network of the user's own cannot be initialised.
        """
        config, facts = self.config, self.facts
        tx = optimizer(Rule.of(config.optim, self._factors()))
        start = None if self.start is None else self.start()
        try:
            state = create_state(
                self.model, example(facts), params_key(config), tx, start, self.is_fixed
            )
        except _FAULTS as error:
            raise _explained(config, error) from error
        numbers = numbers_at(config, self.plan.steps_per_epoch)(np.int32(0))
        own = {name: numbers[name] for name in numbers if name not in LOSS_NUMBERS}
        state = state.replace(opt_state=with_numbers(state.opt_state, own))
        if config.optim.ema is not None:
            # Copies: the state is donated, and no buffer can be given away twice.
            state = state.replace(
                average=jax.tree.map(jnp.copy, state.params),
                average_state=jax.tree.map(jnp.copy, state.model_state) or None,
            )
        if facts.mean is None or facts.deviation is None:
            return state
        return state.replace(
            apply_fn=Normalised(state.apply_fn),
            constants={
                **state.constants,
                **Normalised.statistics(facts.mean, facts.deviation),
            },
        )


def model_name(config: Config, facts: Facts) -> str:
    """The network that a config means: ``auto`` is the CNN for small grey images, else ResNet."""
    if config.model != "auto":
        return config.model
    if config.is_pretrained:
        return PHOTOS
    height, width, channels = facts.image_shape
    return "cnn" if channels == 1 and max(height, width) <= 32 else "resnet"


def build_model(config: Config, facts: Facts) -> nn.Module:
    """The network that a config names; equal configs give the same object."""
    wanted = config.dropout
    spec = DropoutSpec(wanted.kind, bits=wanted.bits)
    if wanted.kind == "block":
        spec = replace(spec, block_size=wanted.block_size)
    if wanted.kind == "concrete":
        spec = replace(spec, rate=wanted.rate, examples=facts.train_size)
    name = model_name(config, facts)
    shape = config.mlp if name == "mlp" else MlpConfig()
    frozen = config.is_pretrained and config.batch_statistics == "frozen"
    return _network(name, len(facts.classes), spec, shape, frozen)


@cache
def _network(
    name: str, classes: int, dropout: DropoutSpec, mlp: MlpConfig, frozen: bool
) -> nn.Module:
    """One object for equal networks: a compiled step is found again by it."""
    return network(name, classes, dropout, mlp, frozen_statistics=frozen)


def _refuse_unfit_training(built: Built) -> None:
    """Refuse what a pretrained network cannot do; its parts are looked up by that."""
    config = built.config
    if config.batch_statistics == "trained" and config.finetune != "all":
        raise RequestError(
            "--batch-statistics trained goes with --finetune all: statistics of parts that do not "
            "train stay as they are"
        )
    if config.optim.layer_decay is not None and not isinstance(built.model, Staged):
        name = model_name(config, built.facts)
        raise RequestError(f"--optim.layer-decay: nobody knows the order of the parts of {name}")
    _ = built.trains  # Refuses names of parts that there are not.
    varied = built.augment
    if built.cut and varied is not None and (varied.mixup or varied.cutmix):
        raise RequestError(
            "--augment.mixup and --augment.cutmix mix images, and of these only features are kept: "
            "give --finetune all"
        )


def params_key(config: Config) -> Key:
    """The key that initialises the parameters."""
    if config.randomness.derivation == "tutorial":
        return stream_root(config.seed, "params", "tutorial")
    return key_for(config.seed, "params")


def _explained(config: Config, error: Exception) -> Exception:
    """What went wrong in a network of the user's own, in one line."""
    if not is_own(config.model):
        return error
    reason = " ".join(str(error).split())[:200]
    return RequestError(f"--model {config.model} cannot be initialised: {reason}")


def _sites(model: nn.Module, config: Config, facts: Facts) -> Mapping[str, Site]:
    try:
        sites = dropout_sites(model, example(facts), train=True)
    except _FAULTS as error:
        raise _explained(config, error) from error
    for name in config.dropout.sites:
        if name not in sites:
            raise RequestError(
                f"--dropout.sites {name}: model {model_name(config, facts)} has no such site, "
                f"but {', '.join(sites)}"
            )
    return sites


def _refuse_unfit_data(config: Config, facts: Facts) -> None:
    if config.batch_size > facts.train_size:
        raise RequestError(
            f"--batch-size {config.batch_size} is larger than the {facts.train_size} training "
            "images"
        )
    _refuse_endless(config, facts.train_size // config.batch_size)
    _refuse_small(model_name(config, facts), facts.image_shape)


def _refuse_unfit_sites(config: Config, facts: Facts, sites: Mapping[str, Site]) -> None:
    name, kind = model_name(config, facts), config.dropout.kind
    _refuse_unreached(config, name, sites)
    if kind == "path" and not has_branches(name):
        raise RequestError(
            f"--dropout.kind path drops residual branches, and model {name} has none: "
            f"take --model {RESIDUAL}"
        )
    if kind in MAPS and all(site.learned for site in sites.values()):
        raise RequestError(
            f"--dropout.kind {kind} drops parts of feature maps, and model {name} has none"
        )


def _refuse_endless(config: Config, steps_per_epoch: int) -> None:
    """Refuse lengths of more steps than the 32 bits that count them can hold."""
    for option, described, value in options(config):
        if described.unit == "epochs" and (value or 0) * steps_per_epoch >= 2**31:
            raise RequestError(f"{flag(option)} is {told(value)}: more than 2^31 steps")


def _refuse_unreached(config: Config, name: str, sites: Mapping[str, Site]) -> None:
    """Refuse options that would change nothing: a study over them would find nothing."""
    usual = {option: value for option, _, value in options(recipe(config.recipe))}
    changed = [option for option, _, value in options(config) if value != usual[option]]
    for option in changed:
        if option.startswith("mlp.") and name != "mlp":
            raise RequestError(f"{flag(option)} shapes model mlp, and the model is {name}")
    asked = [option for option in changed if option.startswith("dropout.")]
    if not is_own(name) or not asked:
        return
    for option in ("kind", "bits", "block_size"):
        if f"dropout.{option}" in asked:
            raise RequestError(
                f"{flag(f'dropout.{option}')} reaches networks of the package only: write into "
                f"{name} what it drops, and how"
            )
    settable = [site for site, place in sites.items() if not place.learned]
    if not settable:
        raise RequestError(
            f"{flag(asked[0])} would change nothing: {name} has no layer of thinned whose rate "
            "can be set"
        )
    if "dropout.input_rate" in asked and INPUT not in settable:
        raise RequestError(f"--dropout.input-rate would change nothing: {name} has no site {INPUT}")


def _refuse_small(name: str, shape: tuple[int, ...]) -> None:
    height, width, _ = shape
    least = SMALLEST.get(name, 4)
    if min(height, width) < least:
        raise RequestError(
            f"images are {height} x {width}: the model needs at least {least} x {least} "
            "(--data.size)"
        )


def size_of(name: str, shape: tuple[int, int, int], classes: int) -> tuple[int, float]:
    """Parameters of a network, and multiplications and additions of a pass with one image.

    Args:
        name: as for ``--model``, but not ``auto``.
        shape: (height, width, channel) of the image.
        classes: number of classes.

    Raises:
        RequestError: there is no such network, or it cannot take such images.
    """
    facts = Facts("", tuple(map(str, range(classes))), shape, 1)
    _refuse_small(name, shape)
    model = build_model(Config(model=name), facts)
    variables = jax.eval_shape(model.init, jax.random.key(0), example(facts))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    lowered = jax.jit(lambda given, images: model.apply(given, images)).lower(
        variables, example(facts)
    )
    counted: Any = lowered.cost_analysis()
    return parameters, float(counted["flops"])


def example(facts: Facts, batch: int = 1) -> jax.Array:
    """A batch of ones in the shape of the images."""
    return jnp.ones((batch, *facts.image_shape), jnp.float32)
