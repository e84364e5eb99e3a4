"""The places of a program where something is dropped: what happens there, and what to look at."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from thinned.dropout.audit.origins import Mark, Origins, Site, is_generator
from thinned.dropout.audit.program import Operation, Value

# fmt: off
_PASS = frozenset((
    "broadcast_in_dim", "convert_element_type", "copy", "copy_p", "optimization_barrier", "pvary",
    "reduce_precision", "reshape", "select_n", "squeeze", "transpose",
))
# fmt: on
"""Operations that hand on what they are given, at most in another shape."""

_PRODUCTS = ("dot_general", "conv_general_dilated")
_FAR = 1e3
"""What is put in the place of something dropped, and is larger, is to be minus infinity."""


@dataclass(frozen=True)
class Factor:
    """A number that all data are multiplied by, divided by or shifted by, near a site."""

    name: str
    value: Value


@dataclass(eq=False, frozen=True)
class Place:
    """A place where something is dropped: a site, and those that work on what it gave.

    Attributes:
        path: names of the scopes around it, without those of JAX's transforms.
        line: where in the user's code it is.
        sites: in their order.
        action: ``keep`` (a mask), ``scale`` (a factor), ``add``, ``choose`` (between two results),
            or the name of a primitive of which nothing is known.
        shape: of the result.
        drawn: shape of what was drawn, before it was spread over the result.
        instead: what takes the place of what is dropped, None for zero.
        before, after: numbers that scale the data just before and after.
        loops: what goes around it: ``layers``, ``examples`` or ``rounds`` of a scan, ``devices``
            that share the data, or ``replicas`` of them.
        branch: number of the branch that it lies in, if any.
    """

    path: str
    line: str
    sites: tuple[Site, ...]
    action: str
    shape: tuple[int, ...]
    drawn: tuple[int, ...]
    instead: Value | None
    before: tuple[Factor, ...]
    after: tuple[Factor, ...]
    loops: tuple[str, ...]
    branch: int | None

    @property
    def keys(self) -> frozenset[int]:
        """Origins of its noise."""
        return frozenset[int]().union(*(site.keys for site in self.sites))

    @property
    def of_weights(self) -> bool:
        """Whether parameters are dropped, not activations."""
        return self.sites[0].of_weights

    @property
    def kind(self) -> str:
        """What is dropped together, as far as the program tells."""
        if self.action not in ("keep", "scale"):
            return {"add": "noise", "choose": "choice"}.get(self.action, self.action)
        if self.of_weights:
            return "connect"
        if self.instead is not None:
            return "alpha"
        inner = self.drawn[1:]
        if len(self.drawn) == len(self.shape) > 1 and self.drawn != self.shape:
            if set(inner) == {1}:
                return "path"
            if len(inner) > 1 and set(inner[:-1]) == {1}:
                return "channel"
        return "element"

    def asked_to_share(self, axis: int) -> bool:
        """Whether the draw has an axis of examples that is 1 long: somebody wrote so."""
        return len(self.drawn) == len(self.shape) and self.drawn[axis] == 1 < self.shape[axis]

    def looked_at(self) -> Iterator[Value]:
        """What has to be recorded whole."""
        for site in self.sites:
            yield site.operation.inputs[site.noise]

    def numbers(self) -> Iterator[Value]:
        """What has to be recorded, but is all the same number."""
        yield from (factor.value for factor in (*self.before, *self.after))
        if self.instead is not None:
            yield self.instead


def places_of(origins: Origins, sites: Iterable[Site]) -> list[Place]:
    """The places of some sites of a program, in the order of the program."""
    groups: list[list[Site]] = []
    for site in sites:
        before = _before(origins, site)
        home = next((group for group in groups if _continues(group[-1], site, before)), None)
        if home is None:
            groups.append([site])
        else:
            home.append(site)
    return [_place(origins, group) for group in groups]


def _continues(last: Site, site: Site, before: _Way) -> bool:
    one, two = last.operation, site.operation
    here = (one.path, one.line, last.keys) == (two.path, two.line, site.keys)
    return here and before.end is one


def _place(origins: Origins, sites: list[Site]) -> Place:
    first, last = sites[0], sites[-1]
    action, instead = _action(origins, first)
    result = first.operation.outputs[0]
    noise = first.operation.inputs[first.noise]
    around = origins.loops[result]
    branches = [block.number for loop, block in around if loop.name == "cond"]
    return Place(
        path=_plain(first.operation.path),
        line=first.operation.line,
        sites=tuple(sites),
        action=action,
        shape=result.shape,
        drawn=_drawn(origins, noise).shape,
        instead=instead,
        before=tuple(_before(origins, first).factors),
        after=tuple(_after(origins, last).factors),
        loops=tuple(_loops(origins, around)),
        branch=branches[-1] if branches else None,
    )


def _plain(path: str) -> str:
    """A name stack without the names of transforms, of products, and of methods."""
    names: list[str] = []
    for name in re.sub(r"\w+\(|\)", "", path).split("/"):
        owner, _, method = name.partition(".")
        # Linen puts a method behind its module; products have their specification for a name.
        repeated = bool(method and names) and names[-1] == owner
        if name and "->" not in name and "," not in name and not repeated:
            names.append(name)
    return "/".join(names)


def _action(origins: Origins, site: Site) -> tuple[str, Value | None]:
    operation, name = site.operation, site.operation.name
    if jnp.issubdtype(operation.outputs[0].dtype, jnp.integer):
        return "choose", None  # Tokens that are masked have no mean to be kept.
    if name == "select_n" and site.noise == 0:
        return _selection(origins, site)
    if name == "cond" or (name in ("gather", "dynamic_slice", "sort") and site.noise > site.data):
        return "choose", None
    if name in ("and", "or") and operation.outputs[0].dtype == bool:
        return "keep", None
    if name == "mul" or (name == "div" and site.noise == 1):
        return "scale", None
    return ("add", None) if name in ("add", "sub", "add_any") else (name, None)


def _selection(origins: Origins, site: Site) -> tuple[str, Value | None]:
    cases = site.operation.inputs[1:]
    others = [case for place, case in enumerate(cases, 1) if place != site.data]
    if len(others) != 1 or not origins.mark(others[0]).uniform or origins.mark(others[0]).data:
        return "choose", None
    other = _source(origins, others[0])
    zero = other.constant is not None and np.all(np.asarray(other.constant) == 0)
    return "keep", None if zero else other


def _source(origins: Origins, value: Value) -> Value:
    """The number that an array of equal numbers is made of."""
    while value.constant is None and (maker := origins.makers.get(value)) is not None:
        if maker.name not in ("broadcast_in_dim", "convert_element_type", "reshape"):
            return value
        value = maker.inputs[0]
    return value


def _drawn(origins: Origins, value: Value) -> Value:
    """Noise as it was drawn, before it was copied along axes."""
    while (maker := origins.makers.get(value)) is not None and not is_generator(maker.name):
        marks = [(origins.mark(each), each) for each in maker.inputs]
        noise = [each for mark, each in marks if mark.is_noise]
        if not noise or maker.blocks:
            return value
        # A word of the key itself, spread out, is not where positions differ.
        largest = max(noise, key=lambda each: (not origins.mark(each).uniform, each.size))
        rest = [mark for mark, each in marks if each is not largest]
        # Where the words of a key meet positions, the draw itself is made.
        if largest.size < value.size and not all(mark.uniform or mark.is_noise for mark in rest):
            return value
        value = largest
    return value


@dataclass
class _Way:
    """The numbers met on a way along the data, and the operation at its end."""

    factors: list[Factor]
    end: Operation | None


def _before(origins: Origins, site: Site) -> _Way:
    return _walked(
        origins,
        site.operation.inputs[site.data],
        origins.makers.get,
        lambda step: step[1],
        through=(),
    )


def _after(origins: Origins, site: Site) -> _Way:
    def user(value: Value) -> Operation | None:
        while not origins.users.get(value) and value in origins.leaves:
            value = origins.leaves[value]
        found = origins.users.get(value, [])
        return found[0] if len(found) == 1 else None

    through = _PRODUCTS if site.of_weights else ()
    return _walked(
        origins,
        site.operation.outputs[0],
        user,
        lambda step: step[0].outputs[0],
        through=through,
    )


def _walked(
    origins: Origins,
    value: Value,
    step: Callable[[Value], Operation | None],
    follow: Callable[[tuple[Operation, Value]], Value],
    through: tuple[str, ...],
) -> _Way:
    way = _Way([], None)
    while (operation := step(value)) is not None:
        way.end = operation
        data = [each for each in operation.inputs if not _is_number(origins.mark(each))]
        others = [each for each in operation.inputs if _is_number(origins.mark(each))]
        if operation.name in through:
            data = data[:1]
        elif len(data) != 1 or len(operation.outputs) != 1:
            return way
        if operation.name in ("mul", "div", "add", "sub") and others:
            if operation.name == "div" and operation.inputs[0] is not data[0]:
                return way
            way.factors.append(Factor(operation.name, _source(origins, others[0])))
        elif operation.name not in (*_PASS, *through):
            return way
        value = follow((operation, data[0]))
    way.end = None
    return way


def _is_number(mark: Mark) -> bool:
    return mark.uniform and not mark.keys and not mark.data


def _loops(origins: Origins, around: Iterable[tuple[Operation, Any]]) -> Iterator[str]:
    for loop, block in around:
        if loop.name == "shard_map":
            specs = zip(loop.inputs, loop.equation.params["in_specs"], strict=True)
            split = any(origins.mark(value).data and any(spec) for value, spec in specs)
            yield "devices" if split else "replicas"
        elif loop.name == "scan":
            params = loop.equation.params
            rows = block.inputs[params["num_consts"] + params["num_carry"] :]
            marks = [origins.mark(row) for row in rows]
            examples = any(mark.data for mark in marks)
            layers = any(mark.fixed and not mark.keys for mark in marks)
            yield "examples" if examples else "layers" if layers else "rounds"


# What was recorded, as gates.


def gates_of(place: Place, seen: dict[str, Any]) -> np.ndarray | None:
    """Gates f32 [round, ...shape] of a place; None where it was never reached.

    A gate is what data are multiplied by, before the numbers of `Place.before` and `after`; of
    other actions, the noise itself.
    """
    product: Any = 1.0
    for site in place.sites:
        noise = np.asarray(seen[f"v{site.operation.inputs[site.noise].number}"])
        product = product * _gate(place, site, noise)
    shape = place.shape if place.action in ("keep", "scale") else product.shape[_depth(place) :]
    lead = product.shape[: _depth(place)]
    gates = np.broadcast_to(product, (*lead, *shape)).reshape(-1, *shape)
    if place.branch is not None:
        taken = np.broadcast_to(np.asarray(seen[f"b{place.branch}"]), lead).reshape(-1)
        gates = gates[taken]
    return gates if len(gates) else None


def _depth(place: Place) -> int:
    return len(place.loops)


def _gate(place: Place, site: Site, noise: np.ndarray) -> np.ndarray:
    name = site.operation.name
    if jnp.issubdtype(noise.dtype, jnp.floating):
        noise = noise.astype(np.float32)
    if name == "select_n" and site.noise == 0 and place.action == "keep":
        gate = (noise.astype(np.int32) == site.data - 1).astype(np.float32)
    elif name == "or":
        gate = 1 - noise.astype(np.float32)
    elif name == "div" and site.noise == 1:
        gate = 1 / noise
    else:
        gate = noise.astype(np.float32)
    lead, rank = gate.shape[: _depth(place)], len(place.shape)
    inner = gate.shape[_depth(place) :]
    # A single number beside an array has no axes of its own.
    return gate.reshape(*lead, *(1,) * (rank - len(inner)), *inner) if not inner else gate


def number_of(value: Value, seen: dict[str, Any], depth: int) -> np.ndarray:
    """A number [round] of a place, f64; one for all rounds where it does not change."""
    if value.constant is not None:
        return np.asarray(value.constant, np.float64).reshape(-1)[:1]
    array = np.asarray(seen[f"v{value.number}"]).astype(np.float64)
    return array.reshape(-1) if 0 < array.ndim <= depth else array.reshape(-1)[:1]


def is_far(number: float) -> bool:
    """Whether a number stands for minus infinity, as in a softmax."""
    return not abs(number) < _FAR
