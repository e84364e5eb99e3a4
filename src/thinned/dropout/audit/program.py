"""A function's program: its jaxpr with all calls opened, which can be read and run in parts.

Calls (``jit``, ``checkpoint``, functions with derivatives of their own) become part of what calls
them, so that every array has one name and one maker. Loops, branches and ``shard_map`` keep their
bodies as blocks of their own.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex_core
from jax.sharding import PartitionSpec

CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "checkpoint",
    "remat",
    "remat2",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
)
"""Operations that run a jaxpr just once with their own inputs."""

_LIBRARIES = ("jax", "flax", "equinox", "haiku", "jaxtyping", "optax", "thinned")
_STANDARD = ("contextlib", "functools", "inspect", "runpy", "threading")
_NUMBERS = count()


@dataclass(eq=False, frozen=True)
class Value:
    """An array of the program.

    Attributes:
        number: unlike that of any other.
        shape, dtype: of the array, in one round of the loops that it is made in.
        constant: the array itself where it is known without running anything, else None.
    """

    number: int
    shape: tuple[int, ...]
    dtype: Any
    constant: Any = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(eq=False, frozen=True)
class Operation:
    """One equation of the program.

    Attributes:
        name: of the primitive.
        inputs, outputs: what it reads and makes.
        blocks: the bodies of a loop, of branches or of a ``shard_map``.
        path: the names of the scopes around it, joined by ``/``; empty where nobody named any.
        line: where in the user's code it is made, as ``file.py:12 (function)``.
        equation, home: the equation, and the jaxpr that it is part of.
    """

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    blocks: tuple[Block, ...]
    path: str
    line: str
    equation: Any
    home: Any


@dataclass(eq=False, frozen=True)
class Block:
    """Operations in their order, as a function of `inputs`."""

    inputs: tuple[Value, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[Value, ...]
    number: int = field(default_factory=_NUMBERS.__next__)

    def everything(self) -> Iterator[Operation]:
        """All operations, those of inner blocks after the one that holds them."""
        for operation in self.operations:
            yield operation
            for block in operation.blocks:
                yield from block.everything()


@dataclass(frozen=True)
class Program:
    """A traced function.

    Attributes:
        block: what it does.
        inputs: values of its arguments, a tree like them.
        outputs: the tree of what it returns, of shapes and dtypes.
        rules: for each function in it that has a gradient of its own, what goes into that.
    """

    block: Block
    inputs: Any
    outputs: Any
    rules: tuple[tuple[Value, ...], ...]


def traced(function: Callable[..., Any], *args: Any) -> Program:
    """The program of `function` at arguments like `args`, trees of arrays."""
    closed, outputs = jax.make_jaxpr(function, return_shape=True)(*args)
    reader = _Reader()
    block = reader.block(closed.jaxpr, closed.consts, "", None)
    inputs = jax.tree.unflatten(jax.tree.structure(args), block.inputs)
    return Program(block, inputs, outputs, tuple(reader.rules))


# From a jaxpr to blocks.


def _value(aval: Any, constant: Any = None) -> Value:
    shape = getattr(aval, "shape", ())
    return Value(next(_NUMBERS), tuple(shape), getattr(aval, "dtype", None), constant)


@dataclass
class _Reader:
    """Opens jaxprs; notes what goes into functions that have a gradient of their own."""

    rules: list[tuple[Value, ...]] = field(default_factory=list[tuple[Value, ...]])

    def block(self, jaxpr: Any, consts: Sequence[Any], path: str, line: str | None) -> Block:
        inputs = tuple(_value(var.aval) for var in jaxpr.invars)
        operations: list[Operation] = []
        outputs = self._opened(jaxpr, consts, inputs, path, line, operations)
        return Block(inputs, tuple(operations), tuple(outputs))

    def _opened(
        self,
        jaxpr: Any,
        consts: Sequence[Any],
        inputs: Sequence[Value],
        path: str,
        line: str | None,
        operations: list[Operation],
    ) -> list[Value]:
        """Append the operations of a jaxpr, calls opened; the values it returns."""
        known: dict[Any, Value] = dict(zip(jaxpr.invars, inputs, strict=True))
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            known[var] = _value(var.aval, const)

        def read(var: Any) -> Value:
            return _value(var.aval, var.val) if isinstance(var, jex_core.Literal) else known[var]

        for equation in jaxpr.eqns:
            name, given = equation.primitive.name, tuple(map(read, equation.invars))
            inner_path = _joined(path, str(equation.source_info.name_stack))
            inner_line = _line(equation) if line is None else line
            if name.startswith("custom_vjp"):
                self.rules.append(given)
            if name in CALLS:
                inner = _called(equation)
                # A library may have traced it for another caller: the line is this one's.
                below = inner_line if _is_of_library(inner) else None
                made = self._opened(*_parts(inner), given, inner_path, below, operations)
            else:
                blocks = tuple(
                    self.block(
                        *_parts(each), inner_path, inner_line if _is_of_library(each) else None
                    )
                    for each in _bodies(equation)
                )
                made = [_value(var.aval) for var in equation.outvars]
                place = (inner_path, inner_line, equation, jaxpr)
                operations.append(Operation(name, given, tuple(made), blocks, *place))
            known.update(zip(equation.outvars, made, strict=True))
        return [read(var) for var in jaxpr.outvars]


def _called(equation: Any) -> Any:
    params = equation.params
    return params.get("jaxpr", params.get("call_jaxpr", params.get("fun_jaxpr")))


def _parts(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def _bodies(equation: Any) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    if name == "while":
        return [params["cond_jaxpr"], params["body_jaxpr"]]
    if name == "cond":
        return list(params["branches"])
    return [params["jaxpr"]] if name in ("scan", "shard_map") else []


def _joined(*names: str) -> str:
    return "/".join(filter(None, names))


def _is_of_library(jaxpr: Any) -> bool:
    name = getattr(getattr(_parts(jaxpr)[0], "debug_info", None), "func_filename", None)
    return bool(name) and _is_foreign(name)


@cache
def _is_foreign(path: str) -> bool:
    """Whether a file belongs to a library that calls and is called by the user's own code."""
    files = (getattr(sys.modules.get(name), "__file__", None) for name in _LIBRARIES)
    folders = [os.path.dirname(file) + os.sep for file in files if file]
    standard = [os.path.join(sysconfig.get_path("stdlib"), name) for name in _STANDARD]
    return path.startswith((*folders, *standard, "<"))


def _line(equation: Any) -> str:
    trace = equation.source_info.traceback
    for frame in trace.frames if trace is not None else ():
        if not _is_foreign(frame.file_name):
            name = os.path.basename(frame.file_name)
            return f"{name}:{frame.line_num} ({frame.function_name.rsplit('.', 1)[-1]})"
    return ""


# Running a program.

Recorded = dict[str, Any]
"""What was seen on the way: ``v`` and a value's number -> its array; ``b`` and a block's number ->
whether that branch was taken. In front is an axis for each loop around it."""


@dataclass(frozen=True)
class Watch:
    """What to see, and what to spoil, while a program runs.

    Attributes:
        values: what to record.
        numbers: of what to record the first element only.
        spoiled: operation -> its place in `flags`.
        flags: bool [operation]; where True, the operation's outputs are spoiled: floats become NaN,
            truth values and whole numbers are inverted.
    """

    values: frozenset[Value] = frozenset()
    numbers: frozenset[Value] = frozenset()
    spoiled: Mapping[Operation, int] = field(default_factory=dict[Operation, int])
    flags: Any = None

    def wants(self, block: Block) -> bool:
        """Whether anything made in `block` is to be recorded."""
        return any(
            not wanted.isdisjoint(made)
            for made in (block.inputs, *(each.outputs for each in block.everything()))
            for wanted in (self.values, self.numbers)
        )

    def look(self, values: Sequence[Value], arrays: Sequence[Any]) -> Recorded:
        """What is to be recorded of some values."""
        seen: Recorded = {}
        for value, array in zip(values, arrays, strict=True):
            if value in self.values:
                seen[f"v{value.number}"] = array
            elif value in self.numbers:
                seen[f"v{value.number}"] = array.reshape(-1)[0]
        return seen


def run(block: Block, args: Sequence[Any], watch: Watch) -> tuple[list[Any], Recorded]:
    """What a block returns at `args`, and what was to be recorded.

    It is made of JAX's own operations, so that it can be compiled.
    """
    known: dict[Value, Any] = dict(zip(block.inputs, args, strict=True))
    seen = watch.look(block.inputs, args)

    def read(value: Value) -> Any:
        return known.get(value, value.constant)

    for operation in block.operations:
        made, inner = _RUN.get(operation.name, _plainly)(
            operation, list(map(read, operation.inputs)), watch
        )
        seen.update(inner)
        if operation in watch.spoiled:
            flag = watch.flags[watch.spoiled[operation]]
            made = [_spoiled(each, flag) for each in made]
        known.update(zip(operation.outputs, made, strict=True))
        seen.update(watch.look(operation.outputs, made))
    return list(map(read, block.outputs)), seen


def _spoiled(array: Any, flag: Any) -> Any:
    if jnp.issubdtype(array.dtype, jnp.inexact):
        return jnp.where(flag, jnp.asarray(jnp.nan, array.dtype), array)
    if array.dtype == bool or jnp.issubdtype(array.dtype, jnp.integer):
        return jnp.where(flag, ~array, array)
    return array


def _plainly(operation: Operation, args: list[Any], watch: Watch) -> tuple[list[Any], Recorded]:
    equation = operation.equation
    names = list(
        dict.fromkeys(var for var in equation.invars if not isinstance(var, jex_core.Literal))
    )
    places = [equation.invars.index(name) for name in names]
    part = operation.home.replace(
        constvars=[],
        invars=names,
        outvars=list(equation.outvars),
        eqns=[equation],
        debug_info=operation.home.debug_info.with_unknown_names(),
    )
    found = jex_core.jaxpr_as_fun(jex_core.ClosedJaxpr(part, []))(*(args[each] for each in places))
    return list(found), {}


def _scan(operation: Operation, args: list[Any], watch: Watch) -> tuple[list[Any], Recorded]:
    params, body = operation.equation.params, operation.blocks[0]
    consts, carries = params["num_consts"], params["num_carry"]
    fixed, start, rows = args[:consts], args[consts : consts + carries], args[consts + carries :]

    def step(carry: list[Any], row: list[Any]) -> tuple[list[Any], Any]:
        outputs, seen = run(body, [*fixed, *carry, *row], watch)
        return outputs[:carries], (outputs[carries:], seen)

    end, (stacked, seen) = jax.lax.scan(
        step, start, rows, length=params["length"], reverse=params["reverse"]
    )
    return [*end, *stacked], seen


def _while(operation: Operation, args: list[Any], watch: Watch) -> tuple[list[Any], Recorded]:
    """Of a loop of unknown length, the last round is recorded."""
    params, (test, body) = operation.equation.params, operation.blocks
    tested, fixed = params["cond_nconsts"], params["body_nconsts"]
    own, consts, start = args[:tested], args[tested : tested + fixed], args[tested + fixed :]
    silent = Watch(spoiled=watch.spoiled, flags=watch.flags)

    def step(state: Any) -> Any:
        return run(body, [*consts, *state[0]], watch)

    shapes = jax.eval_shape(lambda carry: run(body, [*consts, *carry], watch)[1], start)
    end, seen = jax.lax.while_loop(
        lambda state: run(test, [*own, *state[0]], silent)[0][0], step, (start, _nothing(shapes))
    )
    return end, seen


def _branch(operation: Operation, args: list[Any], watch: Watch) -> tuple[list[Any], Recorded]:
    index, given = args[0], args[1:]
    wanted = [block for block in operation.blocks if watch.wants(block)]
    shapes = [jax.eval_shape(lambda *a, b=b: run(b, a, watch)[1], *given) for b in wanted]
    empty = {name: each for shape in shapes for name, each in _nothing(shape).items()}
    empty |= {f"b{block.number}": jnp.zeros((), bool) for block in wanted}

    def taken(block: Block) -> Callable[..., Any]:
        def branch(*inputs: Any) -> Any:
            outputs, seen = run(block, inputs, watch)
            mark = {f"b{block.number}": jnp.ones((), bool)} if block in wanted else {}
            return outputs, {**empty, **seen, **mark}

        return branch

    chosen = index.astype(jnp.int32) if hasattr(index, "astype") else index
    return jax.lax.switch(chosen, list(map(taken, operation.blocks)), *given)


def _spread(operation: Operation, args: list[Any], watch: Watch) -> tuple[list[Any], Recorded]:
    """A ``shard_map``; what is recorded in it gets an axis for the devices in front."""
    params, (body,) = operation.equation.params, operation.blocks
    mesh = params["mesh"]
    axes = tuple(name for name in mesh.axis_names if name in params["manual_axes"])

    def local(*inputs: Any) -> Any:
        outputs, seen = run(body, inputs, watch)
        return outputs, {name: each[None] for name, each in seen.items()}

    outs = (list(params["out_specs"]), PartitionSpec(axes))
    spread = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=tuple(params["in_specs"]),
        out_specs=outs,
        axis_names=set(axes),
        check_vma=False,
    )
    return spread(*args)


def _varied(operation: Operation, args: list[Any], watch: Watch) -> tuple[list[Any], Recorded]:
    """Marks of the type system of ``shard_map``, of which nothing is checked here."""
    return args, {}


def _summed(operation: Operation, args: list[Any], watch: Watch) -> tuple[list[Any], Recorded]:
    """A sum over devices, whose typed form that type system alone takes."""
    return list(jax.lax.psum(args, operation.equation.params["axes"])), {}


def _nothing(shapes: Any) -> Any:
    return jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes)


_RUN: dict[str, Callable[[Operation, list[Any], Watch], tuple[list[Any], Recorded]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _branch,
    "shard_map": _spread,
    "pvary": _varied,
    "psum_invariant": _summed,
}
