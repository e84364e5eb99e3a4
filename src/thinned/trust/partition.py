"""A function parted by what of it depends on a random key, read off its jaxpr."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core

from thinned.core.types import Key

_CALLS = ("jit", "pjit", "checkpoint", "remat2", "custom_jvp_call", "custom_vjp_call")
"""Operations that run a jaxpr just once with their own inputs."""

# fmt: off
_AFFINE = frozenset((
    "add", "add_any", "broadcast_in_dim", "concatenate", "conv_general_dilated",
    "convert_element_type", "copy", "copy_p", "cumsum", "div", "dot_general", "dynamic_slice",
    "dynamic_update_slice", "expand_dims", "gather", "mul", "neg", "optimization_barrier", "pad",
    "reduce_sum", "reduce_window_sum", "reshape", "rev", "scatter", "scatter-add", "select_n",
    "slice", "split", "squeeze", "sub", "transpose",
))
# fmt: on
"""Operations that are affine: in all their operands together, but for those named below."""

_FACTORS = ("mul", "dot_general", "conv_general_dilated")
"""Operations that are affine in each operand alone."""

_FIXED = {
    "div": (1,),
    "gather": (1,),
    "dynamic_slice": range(1, 99),
    "dynamic_update_slice": range(2, 99),
    "scatter": (1,),
    "scatter-add": (1,),
    "select_n": (0,),
}
"""Operands in which an operation is not affine, whatever the others: indices, divisors, choices."""


class Parted(NamedTuple):
    """A function of (key, shared, own), parted by what depends on the key.

    Attributes:
        trunk: from (shared, own) to the values where the parts meet: a list of those that do not
            depend on `own`, and a list of those that do.
        head: from (these two lists, key) to what the function returns.
        random: whether anything depends on the key at all.
        width: elements of the largest array that the head makes of `own`.
    """

    trunk: Callable[[Any, Any], tuple[list[Any], list[Any]]]
    head: Callable[[list[Any], list[Any], Key], jax.Array]
    random: bool
    width: int


def split_by_key(
    function: Callable[[Key, Any, Any], jax.Array], key: Key, shared: Any, own: Any
) -> Parted:
    """Part a function by what of it depends on a key.

    Args:
        function: returns one array.
        key: any key of the kind that will be used.
        shared, own: its other arguments; trees of arrays.
    """
    flat, tree = jax.tree.flatten((shared, own))

    def flattened(key: Key, *leaves: Any) -> jax.Array:
        return function(key, *jax.tree.unflatten(tree, leaves))

    closed = _inlined(jax.make_jaxpr(flattened)(key, *flat), (key, *flat))
    jaxpr, (out,) = closed.jaxpr, closed.jaxpr.outvars
    first, *given = jaxpr.invars
    random = _reached(jaxpr, [first])
    varied = _reached(jaxpr, given[len(flat) - len(jax.tree.leaves(own)) :])
    trunk, head = [], []
    for equation in jaxpr.eqns:
        (trunk if random.isdisjoint(equation.outvars) else head).append(equation)
    made = [*jaxpr.constvars, *given, *(var for equation in trunk for var in equation.outvars)]
    needed = {out, *(var for equation in head for var in _variables(equation))}
    border = [var for var in made if var in needed]
    border.sort(key=varied.__contains__)
    fixed = sum(var not in varied for var in border)
    before = _function_of(jaxpr, [*jaxpr.constvars, *given], border, trunk)
    after = _function_of(jaxpr, [*border, first], [out], head)

    def run_trunk(shared: Any, own: Any) -> tuple[list[Any], list[Any]]:
        values = before(*closed.consts, *jax.tree.leaves((shared, own)))
        return values[:fixed], values[fixed:]

    def run_head(fixed: list[Any], varying: list[Any], key: Key) -> jax.Array:
        return after(*fixed, *varying, key)[0]

    sizes = (var.aval.size for equation in head for var in equation.outvars if var in varied)
    return Parted(run_trunk, run_head, out in random, max(sizes, default=0))


def is_affine(parted: Parted, fixed: list[Any], varying: list[Any], key: Key) -> bool:
    """Whether a head, given the key, is an affine function of the values that vary.

    It is where all that is done with them is affine by itself, as read off the operations. No
    derivative is asked: that of a rounded or clipped number may be any that its author wrote, and
    no image is tried: it may lie on the flat side of a threshold.
    """
    if not varying or not all(jnp.issubdtype(value.dtype, jnp.floating) for value in varying):
        return False
    jaxpr = jax.make_jaxpr(parted.head)(fixed, varying, key).jaxpr
    reached = _reached(jaxpr, jaxpr.invars[len(fixed) : len(fixed) + len(varying)])
    touched = (equation for equation in jaxpr.eqns if not reached.isdisjoint(_variables(equation)))
    return all(_keeps_affine(equation, reached) for equation in touched)


def _keeps_affine(equation: Any, reached: set[Any]) -> bool:
    """Whether an operation is affine in those of its operands that are `reached`."""
    name = equation.primitive.name
    places = [place for place, var in enumerate(equation.invars) if _is_in(var, reached)]
    # A float of 8 bits is a way to round; those of 16 are what networks compute in.
    wide = all(
        jnp.issubdtype(out.aval.dtype, jnp.floating) and out.aval.dtype.itemsize > 1
        for out in equation.outvars
    )
    single = name not in _FACTORS or len(places) == 1
    return name in _AFFINE and wide and single and not set(places) & set(_FIXED.get(name, ()))


def derivatives(
    parted: Parted, fixed: list[Any], varying: list[Any], key: Key
) -> tuple[jax.Array, list[Any]]:
    """What a head returns, [class], and its derivatives by each value that varies, [class, ...].

    They are those of what it computes: rules of a gradient's own (`jax.custom_vjp`) do not count.
    """
    out, pull = jax.vjp(lambda values: parted.head(fixed, values, key), varying)
    return out, jax.vmap(pull)(jnp.eye(len(out), dtype=out.dtype))[0]


def _inlined(closed: Any, args: Sequence[Any]) -> Any:
    """The same operations without calls around them: a trunk may end in the middle of one.

    Functions with derivatives of their own are opened, too: what is left is what they compute.
    """
    return jax.make_jaxpr(lambda *given: _run_inline(closed.jaxpr, closed.consts, *given))(*args)


def _run_inline(jaxpr: Any, consts: Sequence[Any], *args: Any) -> list[Any]:
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(var: Any) -> Any:
        return var.val if isinstance(var, jex_core.Literal) else known[var]

    for equation in jaxpr.eqns:
        inner = _called(equation)
        if inner is None:
            given = list(dict.fromkeys(_variables(equation)))
            outputs = _function_of(jaxpr, given, equation.outvars, [equation])(*map(read, given))
        else:
            outputs = _run_inline(*inner, *map(read, equation.invars))
        known.update(zip(equation.outvars, outputs, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _reached(jaxpr: Any, sources: Sequence[Any]) -> set[Any]:
    """The variables of a jaxpr that depend on `sources`, these included."""
    reached = set(sources)
    for equation in jaxpr.eqns:
        if not reached.isdisjoint(_variables(equation)):
            reached.update(equation.outvars)
    return reached


def _variables(equation: Any) -> list[Any]:
    return [var for var in equation.invars if not isinstance(var, jex_core.Literal)]


def _is_in(var: Any, known: set[Any]) -> bool:
    return not isinstance(var, jex_core.Literal) and var in known


def _called(equation: Any) -> tuple[Any, Sequence[Any]] | None:
    """The jaxpr, and its constants, that an equation runs once with its own inputs, if it does."""
    if equation.primitive.name not in _CALLS:
        return None
    inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    return getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())


def _function_of(
    jaxpr: Any, inputs: Sequence[Any], outputs: Sequence[Any], equations: Sequence[Any]
) -> Callable[..., list[Any]]:
    """Some equations of a jaxpr as a function of some of its variables."""
    part = jaxpr.replace(
        constvars=[],
        invars=list(inputs),
        outvars=list(outputs),
        eqns=list(equations),
        debug_info=jaxpr.debug_info.with_unknown_names(),
    )
    return jex_core.jaxpr_as_fun(jex_core.ClosedJaxpr(part, []))
