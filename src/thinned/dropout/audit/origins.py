"""What every array of a program is made of (keys, parameters, data), and where noise meets data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from thinned.dropout.audit.program import Block, Operation, Program, Value

CONSTANT, FROM_DATA = -1, -2
"""Origins of keys that come with no argument: written into the program, or made of its data."""

_BACKWARD = "transpose("
"""What JAX writes into the names of a backward pass."""

_GENERATORS = ("threefry2x32", "rng_bit_generator", "rng_uniform")

# fmt: off
_KEEP_UNIFORM = frozenset((
    "abs", "add", "and", "bitcast_convert_type", "broadcast_in_dim", "ceil", "clamp",
    "convert_element_type", "copy", "copy_p", "cos", "div", "eq", "erf_inv", "exp", "expm1",
    "floor", "ge", "gt", "integer_pow", "is_finite", "le", "log", "log1p", "logistic", "lt", "max",
    "min",
    "mul", "ne", "neg", "not", "optimization_barrier", "or", "pow", "pvary", "reduce_precision",
    "reshape", "rsqrt", "select_n", "sign", "sin", "slice", "sqrt", "square", "squeeze",
    "stop_gradient", "sub", "tanh", "transpose", "xor",
))
# fmt: on
"""Operations that make equal elements of equal elements."""


class Mark(NamedTuple):
    """What an array is made of.

    Attributes:
        keys: origins of the randomness in it: places of key arguments, `CONSTANT`, `FROM_DATA`.
        fixed: whether parameters or state are in it, other than single numbers beside noise: a
            rate that is an argument leaves noise what it is.
        data: whether the examples are in it, or noise that has met a weight.
        uniform: whether all its elements are equal.
    """

    keys: frozenset[int] = frozenset()
    fixed: bool = False
    data: bool = False
    uniform: bool = False

    @property
    def is_noise(self) -> bool:
        """Whether it is random and knows nothing of the data."""
        return bool(self.keys) and not self.data


@dataclass(eq=False, frozen=True)
class Site:
    """An operation in which noise meets data.

    Attributes:
        operation: the operation.
        noise: the place of the noise among its inputs.
        data: the place of the data.
        of_weights: whether the data are parameters.
        keys: origins of the noise.
    """

    operation: Operation
    noise: int
    data: int
    of_weights: bool
    keys: frozenset[int]


@dataclass(frozen=True)
class Origins:
    """What was found out about a program without running it.

    Attributes:
        marks: of every value.
        makers: value -> the operation that makes it.
        users: value -> the operations that read it.
        loops: value -> the loops and branches that it is made in, outermost first.
        leaves: value returned by the body of a loop or branch -> the same outside.
        sites: where noise meets data, those of a backward pass apart.
        backward: the same in the backward pass.
    """

    marks: dict[Value, Mark]
    makers: dict[Value, Operation] = field(default_factory=dict[Value, Operation])
    users: dict[Value, list[Operation]] = field(default_factory=dict[Value, list[Operation]])
    loops: dict[Value, tuple[tuple[Operation, Block], ...]] = field(
        default_factory=dict[Value, tuple[tuple[Operation, Block], ...]]
    )
    leaves: dict[Value, Value] = field(default_factory=dict[Value, Value])
    sites: list[Site] = field(default_factory=list[Site])
    backward: list[Site] = field(default_factory=list[Site])

    def mark(self, value: Value) -> Mark:
        """Of a value, a constant too."""
        return self.marks.get(value) or constant_mark(value)


def origins_of(program: Program, given: Mapping[Value, Mark]) -> Origins:
    """The origins of all values of a program, and its sites.

    Args:
        program: as traced.
        given: the marks of its arguments.
    """
    found = Origins(dict(given))
    _spread(found, program.block)
    _index(found, program.block, ())
    return found


def argument_marks(keys: Any, fixed: Any, data: Any) -> dict[Value, Mark]:
    """Marks of arguments, trees of values; keys count as such wherever they lie."""
    marks: dict[Value, Mark] = {}
    for place, value in enumerate(jax.tree.leaves((keys, fixed, data))):
        marks[value] = Mark(frozenset((place,)), uniform=value.size == 1)
    for value in jax.tree.leaves((fixed, data)):
        if not _is_key(value):
            marks[value] = Mark(fixed=True, uniform=value.size == 1)
    for value in jax.tree.leaves(data):
        if not _is_key(value):
            marks[value] = Mark(data=True)
    return marks


def constant_mark(value: Value) -> Mark:
    """Of what is written into the program: a key there is a source of noise, too."""
    # A legacy key cannot be told from other numbers but by its shape.
    legacy = value.dtype == jnp.uint32 and value.shape == (2,) and value.constant is not None
    keys = frozenset((CONSTANT,)) if _is_key(value) or legacy else frozenset[int]()
    return Mark(keys, uniform=_is_uniform(value))


def _is_uniform(value: Value) -> bool:
    if value.size == 1 or value.constant is None or _is_key(value):
        return value.size == 1
    array = np.asarray(value.constant)
    return bool(np.all(array == array.ravel()[:1]))


def _is_key(value: Value) -> bool:
    return value.dtype is not None and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


# Marks, from arguments to results.


def _spread(found: Origins, block: Block) -> None:
    for operation in block.operations:
        inputs = [found.mark(value) for value in operation.inputs]
        _RULES.get(operation.name, _ordinary)(found, operation, inputs)


def _ordinary(found: Origins, operation: Operation, inputs: Sequence[Mark]) -> None:
    marks = [_joined(inputs, operation.name, out) for out in operation.outputs]
    if _site(operation, inputs) is not None:
        marks = [mark._replace(data=True) for mark in marks]
    found.marks.update(zip(operation.outputs, marks, strict=True))


def _joined(inputs: Sequence[Mark], name: str, out: Value) -> Mark:
    keys = frozenset[int]().union(*(mark.keys for mark in inputs))
    data, fixed = any(mark.data for mark in inputs), [mark for mark in inputs if mark.fixed]
    if is_generator(name):
        origin = FROM_DATA if data or fixed else CONSTANT
        return Mark(keys or frozenset((origin,)), uniform=out.size == 1)
    uniform = bool(inputs) and name in _KEEP_UNIFORM and all(mark.uniform for mark in inputs)
    beside = [mark for mark in fixed if not (keys and mark.uniform)]
    return Mark(keys, bool(beside), data, uniform or out.size == 1)


def is_generator(name: str) -> bool:
    """Whether a primitive makes keys or random bits."""
    return name.startswith("random_") or name in _GENERATORS


def _merged(one: Mark, two: Mark) -> Mark:
    return Mark(
        one.keys | two.keys,
        one.fixed or two.fixed,
        one.data or two.data,
        one.uniform and two.uniform,
    )


def _enter(found: Origins, block: Block, marks: Iterable[Mark]) -> list[Mark]:
    for value, mark in zip(block.inputs, marks, strict=True):
        found.marks[value] = mark._replace(uniform=mark.uniform or value.size == 1)
    _spread(found, block)
    return [found.mark(value) for value in block.outputs]


def _settled(
    found: Origins, block: Block, fixed: list[Mark], carry: list[Mark], rows: list[Mark]
) -> list[Mark]:
    """Marks of what a loop's body returns, once a further round adds nothing."""
    while True:
        outputs = _enter(found, block, [*fixed, *carry, *rows])
        after = [_merged(*both) for both in zip(carry, outputs, strict=False)]
        if after == carry:
            return [*carry, *outputs[len(carry) :]]
        carry = after


def _scan(found: Origins, operation: Operation, inputs: Sequence[Mark]) -> None:
    params = operation.equation.params
    first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
    marks = _settled(
        found,
        operation.blocks[0],
        list(inputs[:first]),
        list(inputs[first:last]),
        list(inputs[last:]),
    )
    found.marks.update(zip(operation.outputs, marks, strict=True))


def _while(found: Origins, operation: Operation, inputs: Sequence[Mark]) -> None:
    params, (test, body) = operation.equation.params, operation.blocks
    first, last = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    marks = _settled(found, body, list(inputs[first:last]), list(inputs[last:]), [])
    _enter(found, test, [*inputs[:first], *marks])
    found.marks.update(zip(operation.outputs, marks, strict=True))


def _branches(found: Origins, operation: Operation, inputs: Sequence[Mark]) -> None:
    each = [_enter(found, block, inputs[1:]) for block in operation.blocks]
    for place, out in enumerate(operation.outputs):
        mark = inputs[0]._replace(uniform=out.size == 1)
        for outputs in each:
            mark = _merged(mark, outputs[place])
        found.marks[out] = mark


def _opened(found: Origins, operation: Operation, inputs: Sequence[Mark]) -> None:
    marks = _enter(found, operation.blocks[0], inputs)
    found.marks.update(zip(operation.outputs, marks, strict=True))


_RULES: dict[str, Any] = {
    "scan": _scan,
    "while": _while,
    "cond": _branches,
    "shard_map": _opened,
}


# Sites.


def _site(operation: Operation, marks: Sequence[Mark]) -> Site | None:
    """Where noise meets data, if it does in this operation."""
    if is_generator(operation.name) or (operation.blocks and operation.name != "cond"):
        return None
    noise = [place for place, mark in enumerate(marks) if mark.is_noise]
    data = [place for place, mark in enumerate(marks) if mark.data]
    if operation.name == "cond":
        noise = [place for place in noise if place == 0]
    weights = [
        place
        for place, mark in enumerate(marks)
        if mark.fixed
        and not mark.keys
        and not mark.uniform
        # A rate of each feature is no weight.
        and len(operation.inputs[place].shape) >= 2
    ]
    if not noise or not (data or weights):
        return None
    met = data or weights
    if operation.name == "select_n":
        # The choice is what is random, where it is.
        noise = [place for place in noise if place == 0] or noise
        met = [place for place in met if place != 0] or met
    return Site(operation, noise[0], met[0], not data, marks[noise[0]].keys)


def _index(found: Origins, block: Block, around: tuple[tuple[Operation, Block], ...]) -> None:
    for value in block.inputs:
        found.loops[value] = around
    for operation in block.operations:
        for value in operation.inputs:
            found.users.setdefault(value, []).append(operation)
        for value in operation.outputs:
            found.makers[value], found.loops[value] = operation, around
        site = _site(operation, [found.mark(value) for value in operation.inputs])
        if site is not None:
            (found.backward if _BACKWARD in operation.path else found.sites).append(site)
        for inner in operation.blocks:
            _leave(found, operation, inner)
            _index(found, inner, (*around, (operation, inner)))


def _leave(found: Origins, operation: Operation, block: Block) -> None:
    if len(block.outputs) == len(operation.outputs):
        found.leaves.update(zip(block.outputs, operation.outputs, strict=True))
