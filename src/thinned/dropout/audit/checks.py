"""The audit: does dropout in a network do what it should? Measured, not read off its code."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from thinned.core.errors import RequestError
from thinned.dropout.audit.findings import Audit, AuditedSite, Check
from thinned.dropout.audit.measures import Draw, Measured, axis_of_examples, gathered
from thinned.dropout.audit.origins import (
    CONSTANT,
    FROM_DATA,
    Origins,
    argument_marks,
    is_generator,
    origins_of,
)
from thinned.dropout.audit.places import Place, gates_of, places_of
from thinned.dropout.audit.program import Program, Recorded, Watch, run, traced
from thinned.dropout.audit.subject import KEYS, RATES, Layer, Subject, words_of

_HINT = "derive the key from the step, as in jax.random.fold_in(key, step)"

_LEAST = 20
"""How many drops a site must be expected to show before its rate is judged."""

SIGMAS = 5.0
"""How far a measured rate or mean may lie from what it should be, in standard errors."""

_TRIES = 8
"""Steps in which a site's result has to reach the outputs at least once."""

_FEW = 10**7
"""Random numbers in an audit that take no time to speak of."""

_MASKS = ("keep", "scale")
_OPAQUE = ("pallas_call", "custom_call", "ffi_call", "pure_callback", "io_callback")


def inspect(subject: Subject) -> Audit:
    """Ask all questions of a network.

    Raises:
        RequestError: one of its functions cannot be traced.
    """
    inspected = _Inspection(subject)
    checks = [*inspected.whole()]
    for name in inspected.places:
        checks += inspected.site(name)
    sites = [inspected.audited(name) for name in inspected.names]
    return Audit(tuple(sites), tuple(checks))


@dataclass
class _Inspection:
    subject: Subject

    # What the program does, found once.

    @cached_property
    def first_keys(self) -> Any:
        return self.subject.keys(0)

    @cached_property
    def arguments(self) -> tuple[Any, Any, Any]:
        return self.first_keys, self.subject.fixed, self.subject.data

    @cached_property
    def program(self) -> Program:
        return _traced(self.subject.training, self.arguments)

    @cached_property
    def origins(self) -> Origins:
        return origins_of(self.program, argument_marks(*self.program.inputs))

    @cached_property
    def key_paths(self) -> list[str]:
        """Where each argument lies in the trees of arguments, in the order of `Mark.keys`."""
        pairs, _ = jax.tree_util.tree_flatten_with_path(self.arguments)
        return ["/".join(map(_step, path[1:])) for path, _ in pairs]

    @cached_property
    def places(self) -> dict[str, Place]:
        return self._named(places_of(self.origins, self.origins.sites))

    def _named(self, places: list[Place]) -> dict[str, Place]:
        named: dict[str, Place] = {}
        given = [
            self.subject.name(place, self._key_path(place)) or place.line or "noise"
            for place in places
        ]
        for place, told in zip(places, given, strict=True):
            # Modules that share a scope (`nn.share_scope`) have a name each in the program, and one
            # path for all.
            inner = told.partition("/")[2]
            shared = told not in self.layers and inner in self.layers and inner not in given
            name = first = inner if shared else told
            number = 1
            while name in named:
                number += 1
                name = f"{first}#{number}"
            named[name] = place
        return named

    def _key_path(self, place: Place) -> str:
        """Path of the key argument that the noise of a place comes from, of its state too."""
        paths = [self.key_paths[key] for key in sorted(place.keys) if key >= 0]
        return paths[-1] if paths else ""

    @cached_property
    def layers(self) -> dict[str, Layer]:
        _ = self.program
        return dict(self.subject.layers())

    @cached_property
    def names(self) -> list[str]:
        """The places, and the layers that should be but are none."""
        return list(dict.fromkeys([*self.places, *self.idle]))

    @cached_property
    def idle(self) -> list[str]:
        """Layers with a rate that drop nothing: known ones, and those that draw for nothing."""
        return [
            name
            for name, layer in self.layers.items()
            if name not in self._homes.values()
            and (layer.known or name in self._drawing)
            and self._configured(name) not in (None, 0, 1)
        ]

    @cached_property
    def _drawing(self) -> set[str]:
        """Names under which anything random is made."""
        found = set[str]()
        for operation in self.program.block.everything():
            if is_generator(operation.name) and operation.path:
                parts = operation.path.split("/")
                found |= {"/".join(parts[1:n]) for n in range(2, len(parts) + 1)}
        return found

    @cached_property
    def _homes(self) -> dict[str, str]:
        """Place -> the layer that it is in."""
        homes: dict[str, str] = {}
        for name in self.places:
            path = name.partition("#")[0]
            inside = [
                layer for layer in self.layers if path == layer or path.startswith(f"{layer}/")
            ]
            if inside:
                homes[name] = max(inside, key=len)
        return homes

    def _layer(self, name: str) -> Layer | None:
        return self.layers.get(self._homes.get(name, name))

    def _configured(self, name: str) -> float | None:
        given = self.subject.rates.get(name)
        if given is not None:
            return float(given)
        layer = self._layer(name)
        return self.rates.get(self._homes.get(name, name), None) if layer else None

    @cached_property
    def rates(self) -> dict[str, float]:
        """Configured rates of layers."""
        plain = {
            name: float(layer.rate)
            for name, layer in self.layers.items()
            if isinstance(layer.rate, int | float)
        }
        found = self._first[1].get(RATES, {})
        return {**plain, **{name: float(rate) for name, rate in found.items()}}

    def _kind(self, name: str) -> str:
        layer, place = self._layer(name), self.places.get(name)
        own = layer.kind if layer is not None else ""
        return own or (place.kind if place is not None else "nothing")

    # Running it.

    @cached_property
    def _watch(self) -> Watch:
        spoiled = {place.sites[-1].operation: n for n, place in enumerate(self.places.values())}
        return _watching(self.places.values(), spoiled)

    @cached_property
    def _step(self) -> Any:
        watch, block = self._watch, self.program.block

        def step(flags: Any, *args: Any) -> Any:
            flagged = Watch(watch.values, watch.numbers, watch.spoiled, flags)
            outputs, seen = run(block, jax.tree.leaves(args), flagged)
            return jax.tree.unflatten(jax.tree.structure(self.program.outputs), outputs), seen

        return _compiled(step, watch, self.subject.draws)

    def _run(self, keys: Any, data: Any = None, spoiled: int | None = None) -> Any:
        flags = jnp.arange(max(len(self.places), 1)) == (-1 if spoiled is None else spoiled)
        data = self.subject.data if data is None else data
        (outputs, extra), seen = self._step(flags, keys, self.subject.fixed, data)
        return outputs, extra, seen

    @cached_property
    def _first(self) -> tuple[Any, dict[str, Any], Recorded]:
        return self._run(self.first_keys)

    @cached_property
    def _outputs(self) -> dict[int, Any]:
        return {}

    def _outputs_at(self, step: int) -> Any:
        """What the network returns at a step; the same for the questions of every site."""
        if step not in self._outputs:
            self._outputs[step] = self._run(self.steps[step])[0]
        return self._outputs[step]

    @cached_property
    def steps(self) -> list[Any]:
        """The keys of each step that is measured."""
        if KEYS not in self._first[1]:
            return [self.subject.keys(step) for step in range(self.subject.draws)]
        keys = [self.first_keys]
        while len(keys) < self.subject.draws:
            keys.append(self._run(keys[-1])[1][KEYS])
        return keys

    @cached_property
    def measured(self) -> dict[str, Measured]:
        """What was seen at each place that was ever reached."""
        raw: dict[str, list[Draw]] = {name: [] for name in self.places}
        for keys in self.steps:
            seen = jax.device_get(self._run(keys)[2])
            for name, place in self.places.items():
                draw = Draw.of(place, self._kind(name), self._axis(place), self.subject.batch, seen)
                raw[name] += [draw] if draw is not None else []
        return {name: gathered(draws) for name, draws in raw.items() if len(draws) > 1}

    def _axis(self, place: Place) -> int | None:
        if place.of_weights or place.action not in _MASKS:
            return None
        return axis_of_examples(place.shape, self.subject.batch)

    def audited(self, name: str) -> AuditedSite:
        place, measured = self.places.get(name), self.measured.get(name)
        rate = self._configured(name)
        if place is None:
            return AuditedSite(name, self._kind(name), (), rate, 0.0, 0.0)
        seen = measured is not None and place.action not in _OPAQUE
        if measured is None or place.action not in _MASKS:
            return AuditedSite(
                name, self._kind(name), place.shape, rate, None, 0.0, place.line, seen
            )
        return AuditedSite(
            name, self._kind(name), place.shape, rate, *measured.effective, place.line
        )

    # Questions about one site.

    def site(self, name: str) -> Iterator[Check]:
        place, measured, rate = self.places[name], self.measured.get(name), self._configured(name)
        yield self._is_seen(name, place, measured)
        yield self._no_constant(name, place)
        if measured is None:
            return
        yield self._reaches(name)
        yield self._changes(name, measured, rate)
        yield from self._rounds(name, place, measured)
        if place.action not in _MASKS:
            return
        yield self._acts(name, measured, rate)
        yield self._rate_holds(name, measured, rate)
        yield self._mean_kept(name, measured, rate)
        yield self._own_masks(name, place, measured, rate)

    def _is_seen(self, name: str, place: Place, measured: Measured | None) -> Check:
        opaque = f"what {place.action} does with its key cannot be seen"
        why = "it is in a branch that was not taken" if measured is None else opaque
        hidden = measured is None or place.action in _OPAQUE
        return Check("every site can be measured", name, None if hidden else True, why)

    def _no_constant(self, name: str, place: Place) -> Check:
        question = "no key is a constant of the program"
        if place.action not in _MASKS or FROM_DATA in place.keys:
            return Check(question, name, None, "nothing is dropped")
        hint = f"its key is written into the program, so that no step changes it: {_HINT}"
        return Check(question, name, place.keys != frozenset((CONSTANT,)), self._at(place, hint))

    def _at(self, place: Place, text: str) -> str:
        return f"{text} ({place.line})" if place.line and place.path else text

    def _reaches(self, name: str) -> Check:
        question = "what was dropped reaches the outputs"
        place, number = self.places[name], list(self.places).index(name)
        # One step may happen to drop all that follows.
        reached = any(
            not _equal(self._run(keys, spoiled=number)[0], self._outputs_at(step))
            for step, keys in enumerate(self.steps[:_TRIES])
        )
        hint = "the outputs do not depend on its result, which is thrown away"
        return Check(question, name, reached, self._at(place, hint))

    def _acts(self, name: str, measured: Measured, rate: float | None) -> Check:
        detail = f"a rate of {rate:g} has no effect" if rate else "it changes nothing"
        passed = None if rate == 0 else measured.active
        if not rate:
            detail = "rate is 0" if rate == 0 else detail
            passed = passed or None
        elif not measured.active and self._is_rare(name, rate):
            passed, detail = None, "the rate is too small to be seen: ask for more draws"
        return Check("dropout is on in training", name, passed, detail)

    def _chances(self, name: str) -> int:
        place = self.places[name]
        return max(math.prod(place.drawn), 1)

    def _is_rare(self, name: str, rate: float) -> bool:
        chances = self._chances(name) * self.subject.draws
        return 0 < rate < 1 and min(rate, 1 - rate) * chances < _LEAST

    def _rate_holds(self, name: str, measured: Measured, rate: float | None) -> Check:
        question = "the effective rate is the configured one"
        if rate is None or measured.frozen or not measured.active:
            why = "no rate is configured" if rate is None else "nothing changes"
            return Check(question, name, None, why)
        if self._is_rare(name, rate):
            return Check(question, name, None, "too few are dropped, or kept, to tell")
        if measured.of_variance and rate == 1:
            return Check(question, name, None, "the rate is 1")
        effective, error = measured.effective
        # The spread found among few draws may be none at all.
        least = np.sqrt(rate * (1 - rate) / (self._chances(name) * self.subject.draws))
        tolerance = SIGMAS * max(error, float(least)) + 1e-6
        return Check(
            question,
            name,
            bool(abs(effective - rate) <= tolerance),
            f"{effective:.4f} is dropped, {rate:.4f} was asked for",
        )

    def _mean_kept(self, name: str, measured: Measured, rate: float | None) -> Check:
        question = "the mean is kept"
        if measured.frozen or not measured.active or rate == 1 or not measured.means.size:
            why = "one mask says nothing" if measured.frozen else "there is nothing to be kept"
            return Check(question, name, None, why)
        off = np.nanmean(measured.means, 0) - measured.expected
        spread = np.nanstd(measured.means, 0, ddof=1) / np.sqrt(len(measured.means))
        # A hundredth is what bf16 may round the scale by.
        passed = bool(np.any(np.abs(off) <= SIGMAS * spread + 0.01))
        nearest = off[np.argmin(np.abs(off))] + measured.expected
        detail = f"the mean gate is {nearest:.4f}, not {measured.expected:g}"
        return Check(question, name, passed, self._at(self.places[name], detail))

    def _changes(self, name: str, measured: Measured, rate: float | None) -> Check:
        question = "masks change from step to step"
        constant = self.places[name].keys == frozenset((CONSTANT,))
        if rate in (0, 1) or not measured.active:
            return Check(question, name, None, "nothing is dropped")
        if constant and self.places[name].action not in _MASKS:
            return Check(question, name, None, "its numbers are written into the program")
        again = measured.frozen or measured.repeated
        return Check(question, name, not again, f"the same key and mask again: {_HINT}")

    def _rounds(self, name: str, place: Place, measured: Measured) -> Iterator[Check]:
        told = {
            "layers": "all layers of a scan have the same mask: split the key over them",
            "devices": "all devices have the same mask: fold the device's index into the key",
        }
        for loop, detail in told.items():
            if loop in place.loops:
                same = loop in measured.one_round and measured.active and not measured.frozen
                yield Check(f"{loop} have masks of their own", name, not same, detail)

    def _own_masks(self, name: str, place: Place, measured: Measured, rate: float | None) -> Check:
        question, axis = "each example has a mask of its own", self._axis(place)
        if rate in (0, 1) or not measured.active:
            return Check(question, name, None, "nothing is dropped")
        if axis is None:
            return Check(question, name, None, "it has no axis of examples")
        layer = self._layer(name)
        if (layer is not None and layer.shared) or place.asked_to_share(axis):
            return Check(question, name, None, "examples share masks as asked")
        detail = "all examples of a batch share one mask"
        return Check(question, name, not measured.one_mask, self._at(place, detail))

    # Questions about the network as a whole.

    def whole(self) -> Iterator[Check]:
        yield self._drops()
        yield from self._idle_layers()
        yield from self._streams()
        yield from self._separate_keys()
        yield from self._separate_sites()
        yield from self._off_in_evaluation()
        yield self._statistics_untouched()
        yield self._same_backward()
        yield self._devices()

    def _drops(self) -> Check:
        question = "the network drops something in training"
        rates = self.rates.values()
        if not self.places and rates and all(rate in (0, 1) for rate in rates):
            return Check(question, "", None, "the rates are 0 or 1")
        if not self.places and self.idle:
            return Check(question, "", None, "its layers are off")
        hint = "nothing random happens in training: dropout is left off, or wired to nothing"
        if any(is_generator(each.name) for each in self.program.block.everything()):
            hint = "random numbers are drawn, but nothing is done with them"
        return Check(question, "", bool(self.places), hint)

    def _idle_layers(self) -> Iterator[Check]:
        for name in self.idle:
            detail = f"a rate of {self._configured(name):g} has no effect"
            if name not in self._drawing:
                detail += ": it draws no key and lets everything pass, as if deterministic"
            yield Check("dropout is on in training", name, False, detail)

    def _streams(self) -> Iterator[Check]:
        """Flax silently takes the key of params for a stream that was not given."""
        for name, place in self.places.items():
            streams = {self.key_paths[key] for key in place.keys if key >= 0}
            if isinstance(self.first_keys, Mapping) and streams:
                yield Check(
                    "each site draws from a stream that was given",
                    name,
                    streams != {"params"},
                    "no key was given for its stream, and Flax silently took that of params: "
                    "pass rngs={'dropout': key}",
                )

    def _separate_keys(self) -> Iterator[Check]:
        question = "no key is shared with initialisation or between streams"
        first = {name: words_of(key) for name, key in self.subject.roots.items()}
        twins = _shared({}, first) or next(
            (
                (name, f"{other} at init")
                for name, words in first.items()
                for other, theirs in first.items()
                if KEYS in self._first[1] and name < other and words == theirs
            ),
            None,
        )
        if twins is not None:
            detail = f"the key of {twins[0]} is that of {twins[1]}: use another seed"
            yield Check(question, "", False, detail)
            return
        for step, keys in enumerate(self.steps):
            found = _shared(_streams_of(keys), first)
            if found is not None:
                stream, other = found
                detail = f"the key of {stream} at step {step} is that of {other}: split it first"
                yield Check(question, "", False, detail)
                return
        yield Check(question, "", True if first else None, "init_rngs was not given")

    def _separate_sites(self) -> Iterator[Check]:
        question = "sites differ from one another"
        names = [name for name in self.measured if self.places[name].action in _MASKS]
        for index, name in enumerate(names):
            twin = next((one for one in names[:index] if self._alike(one, name)), None)
            detail = self._at(self.places[name], f"the same random stream as {twin}")
            yield Check(question, name, twin is None, detail)

    def _alike(self, one: str, two: str) -> bool:
        first, second = self.measured[one], self.measured[two]
        a, b = first.prefixes, second.prefixes
        size = min(a.shape[1], b.shape[1])
        a, b = a[:, :size].ravel(), b[:, :size].ravel()
        if a.size < 64 or a.std() == 0 or b.std() == 0:
            return False
        found = float(np.corrcoef(a, b)[0, 1])
        # Masks of one key at different rates: the smaller set is within the larger.
        rates = sorted(float(np.mean(each == 0)) for each in (a, b))
        most = 1.0
        if 0 < rates[0] < rates[1] < 1:
            most = math.sqrt(rates[0] * (1 - rates[1]) / (rates[1] * (1 - rates[0])))
        return found > 0.5 * most and found * math.sqrt(self._free(one, two)) > 6

    def _free(self, one: str, two: str) -> int:
        """How many independent pairs of draws two sites have, at most."""
        sizes = (min(self._chances(name), 4096) for name in (one, two))
        return min(sizes) * self.subject.draws

    def _off_in_evaluation(self) -> Iterator[Check]:
        question, whole = "dropout is off in evaluation", "evaluation gives the same with every key"
        if self.subject.evaluation is None:
            yield Check(question, "", None, "no evaluation was given")
            return
        program = _traced(self.subject.evaluation, self.arguments)
        origins = origins_of(program, argument_marks(*program.inputs))
        places = self._named(places_of(origins, origins.sites))
        marks = [origins.mark(value) for value in program.block.outputs]
        random = any(key != CONSTANT for mark in marks for key in mark.keys)
        if not places and not random:
            yield Check(question, "", True)
            yield Check(whole, "", True)
            return
        compiled = _recorded(program, places.values())
        (one, seen), (two, _) = (compiled(*self._arguments(step)) for step in (0, 1))
        for name, place in places.items():
            gates = gates_of(place, jax.device_get(seen))
            on = gates is not None and (
                place.action not in _MASKS
                or bool(np.any(gates != gates.flat[0]) or gates.flat[0] == 0)
            )
            constant = place.action not in _MASKS and place.keys == frozenset((CONSTANT,))
            passed = None if constant else not on
            yield Check(question, name, passed, self._at(place, "it still draws masks"))
        same = not random or _equal(one, two)
        yield Check(whole, "", same, "the outputs depend on the key")

    def _arguments(self, step: int) -> tuple[Any, Any, Any]:
        return self.steps[step], self.subject.fixed, self.subject.data

    def _statistics_untouched(self) -> Check:
        question = "sampling at prediction time leaves statistics alone"
        if self.subject.sampled is None or not self.subject.statistics:
            return Check(question, "", None, "the network keeps no statistics")
        after = jax.jit(self.subject.sampled)(*self.arguments)
        for name, before in self.subject.statistics.items():
            if not _equal(before, after[name]):
                return Check(question, "", False, f"{name} is updated in evaluation")
        return Check(question, "", True)

    def _same_backward(self) -> Check:
        """Whether a function with a gradient of its own drops the same in it."""
        question = "the backward pass drops what the forward pass dropped"
        own = [rule for rule in self.program.rules if self._is_random(rule)]
        if not own:
            return Check(question, "", True if self.places else None, "nothing is dropped")
        try:
            program, args = self._gradient()
        except RequestError:
            return Check(question, "", None, "the network has no gradient")
        keys, fixed, *data = program.inputs
        marks = argument_marks(keys, fixed, data)
        origins = origins_of(program, marks)
        places = places_of(origins, [*origins.sites, *origins.backward])
        seen = jax.device_get(_recorded(program, places)(*args)[1])
        masks = self._masks()
        for place in places:
            wrong = _unknown_mask(place, gates_of(place, seen), masks)
            if wrong is not None:
                detail = "another mask than going forward: save the key and draw from that"
                return Check(question, wrong, False, f"{detail} ({place.line})")
        return Check(question, "", True)

    def _is_random(self, rule: Any) -> bool:
        return any(self.origins.mark(value).is_noise for value in rule)

    def _masks(self) -> dict[str, np.ndarray]:
        """What was dropped at step 0, by place: bool [round, ...]."""
        seen = jax.device_get(self._first[2])
        found = {
            name: gates_of(place, seen)
            for name, place in self.places.items()
            if place.action in _MASKS
        }
        return {name: gates == 0 for name, gates in found.items() if gates is not None}

    def _gradient(self) -> tuple[Program, tuple[Any, ...]]:
        """The program of the gradient of a weighted sum of the outputs."""
        outputs = self._first[0]
        weights = [
            jax.random.normal(jax.random.key(n), leaf.shape)
            for n, leaf in enumerate(jax.tree.leaves(outputs))
        ]

        def gradient(keys: Any, fixed: Any, data: Any, weights: Any) -> Any:
            leaves, tree = jax.tree.flatten((fixed, data))
            floats = [n for n, leaf in enumerate(leaves) if _is_float(leaf)]

            def loss(moved: list[Any]) -> Any:
                given = dict(zip(floats, moved, strict=True))
                mixed = [given.get(n, leaf) for n, leaf in enumerate(leaves)]
                # Of NNX, state must be made where it is used.
                own = jax.tree.map(lambda key: key, keys)
                found = self.subject.training(own, *jax.tree.unflatten(tree, mixed))[0]
                pairs = zip(jax.tree.leaves(found), weights, strict=True)
                return sum(jnp.sum(out * weight) for out, weight in pairs if _is_float(out))

            return jax.grad(loss)([leaves[n] for n in floats])

        args = (*self.arguments, weights)
        return _traced(gradient, args), args

    def _devices(self) -> Check:
        question = "devices draw different parts of one and the same mask"
        count, batch = jax.device_count(), self.subject.batch
        if count == 1 or not self.places:
            return Check(question, "", None, "there is one device" if count == 1 else "no site")
        if batch % count or any("devices" in place.loops for place in self.places.values()):
            why = f"{batch} examples cannot be spread over {count}"
            return Check(question, "", None, why if batch % count else "the program spreads itself")
        spread = NamedSharding(Mesh(np.asarray(jax.devices()), ("batch",)), PartitionSpec("batch"))
        data = jax.tree.map(
            lambda leaf: jax.device_put(leaf, spread) if np.shape(leaf)[:1] == (batch,) else leaf,
            self.subject.data,
        )
        seen = (self._run(self.first_keys, data)[2], self._first[2])
        many, single = map(jax.device_get, seen)
        for name, place in self.places.items():
            one, other = gates_of(place, many), gates_of(place, single)
            if one is None and other is None:
                continue
            if one is None or other is None or not np.allclose(one, other, 1e-3, 1e-3):
                return Check(question, name, False, "masks differ from those of a single device")
        return Check(question, "", True)


def _traced(function: Any, args: tuple[Any, ...]) -> Program:
    try:
        return traced(function, *args)
    except RequestError:
        raise
    except Exception as error:
        said = str(error).strip().splitlines()
        raise RequestError(
            f"the network cannot be traced ({type(error).__name__}): {said[0] if said else ''}"
        ) from error


def _watching(places: Any, spoiled: Any = None) -> Watch:
    known = list(places)
    values = frozenset(value for place in known for value in place.looked_at())
    numbers = frozenset(value for place in known for value in place.numbers())
    return Watch(values, numbers - values, spoiled or {})


def _recorded(program: Program, places: Any) -> Any:
    watch = _watching(places)
    return _compiled(lambda *args: run(program.block, jax.tree.leaves(args), watch), watch, 1)


def _compiled(function: Any, watch: Watch, times: int) -> Any:
    """A compiled function; quickly so where compiling takes longer than running it."""
    seen = sum(value.size for value in watch.values) * times
    if jax.default_backend() == "cpu" and seen < _FEW:
        return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})
    return jax.jit(function)


def _unknown_mask(
    place: Place, gates: np.ndarray | None, masks: Mapping[str, np.ndarray]
) -> str | None:
    """The site whose mask a place of the backward pass should have, where it has none of any."""
    if gates is None or place.action not in _MASKS or len(np.unique(gates)) != 2:
        return None
    twins = {name: mask for name, mask in masks.items() if mask.shape == gates.shape}
    known = any(np.array_equal(gates == 0, mask) for mask in twins.values())
    return next(iter(twins), None) if not known and (gates == 0).any() else None


def _step(entry: Any) -> str:
    return str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry))))


def _streams_of(keys: Any) -> dict[str, tuple[int, ...]]:
    pairs, _ = jax.tree_util.tree_flatten_with_path(keys)
    return {
        "/".join(map(_step, path)) or "dropout": words_of(leaf)
        for path, leaf in pairs
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) or np.shape(leaf) == (2,)
    }


def _shared(
    streams: Mapping[str, tuple[int, ...]], first: Mapping[str, tuple[int, ...]]
) -> tuple[str, str] | None:
    """A stream whose key is also another's, or one of those of initialisation, and whose."""
    for name, words in streams.items():
        for other, theirs in streams.items():
            if other != name and theirs == words:
                return name, other
        for other, theirs in first.items():
            if theirs == words and (other != name or other == "params"):
                return name, f"{other} at init"
    return None


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _equal(one: Any, two: Any) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return all(np.array_equal(a, b, equal_nan=_is_float(a)) for a, b in pairs)
