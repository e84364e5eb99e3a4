"""A function parted by what of it depends on a random key, read off its jaxpr."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core

from thinned.core.types import Key

_INLINED = ("jit", "pjit", "checkpoint", "remat2")
_CALLS = (*_INLINED, "custom_jvp_call", "custom_vjp_call")


class Parted(NamedTuple):
    """A function of (key, shared, own), parted by what depends on the key.

    Attributes:
        trunk: from (shared, own) to the values where the parts meet: a list of those that do not
            depend on `own`, and a list of those that do.
        head: from (these two lists, key) to what the function returns.
        random: whether anything depends on the key at all.
    """

    trunk: Callable[[Any, Any], tuple[list[Any], list[Any]]]
    head: Callable[[list[Any], list[Any], Key], jax.Array]
    random: bool


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
    made = [*jaxpr.constvars, *given, *(var for each in trunk for var in each.outvars)]
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

    return Parted(run_trunk, run_head, out in random)


def is_affine(parted: Parted, fixed: list[Any], varying: list[Any], key: Key) -> bool:
    """Whether a head, given the key, is an affine function of the values that vary.

    It is where its derivatives do not depend on the point at which they are taken, as read off
    their jaxpr. What cannot be differentiated counts as not affine.
    """
    if not all(jnp.issubdtype(value.dtype, jnp.floating) for value in varying):
        return False

    def found(varying: list[Any], fixed: list[Any], key: Key) -> list[Any]:
        return derivatives(parted, fixed, varying, key)[1]

    try:
        jaxpr = jax.make_jaxpr(found)(varying, fixed, key).jaxpr
    except (TypeError, ValueError, NotImplementedError):
        return False
    return _reached(jaxpr, jaxpr.invars[: len(varying)]).isdisjoint(jaxpr.outvars)


def derivatives(
    parted: Parted, fixed: list[Any], varying: list[Any], key: Key
) -> tuple[jax.Array, list[Any]]:
    """What a head returns, [class], and its derivatives by each value that varies, [class, ...]."""
    out, pull = jax.vjp(lambda values: parted.head(fixed, values, key), varying)
    return out, jax.vmap(pull)(jnp.eye(len(out), dtype=out.dtype))[0]


def _inlined(closed: Any, args: Sequence[Any]) -> Any:
    """The same operations without calls around them: a trunk may end in the middle of one."""
    return jax.make_jaxpr(lambda *given: _run_inline(closed.jaxpr, closed.consts, *given))(*args)


def _run_inline(jaxpr: Any, consts: Sequence[Any], *args: Any) -> list[Any]:
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(var: Any) -> Any:
        return var.val if isinstance(var, jex_core.Literal) else known[var]

    for equation in jaxpr.eqns:
        inner = _called(equation) if equation.primitive.name in _INLINED else None
        if inner is None:
            given = list(dict.fromkeys(_variables(equation)))
            found = _function_of(jaxpr, given, equation.outvars, [equation])(*map(read, given))
        else:
            consts = getattr(equation.params["jaxpr"], "consts", ())
            found = _run_inline(inner, consts, *map(read, equation.invars))
        known.update(zip(equation.outvars, found, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _reached(jaxpr: Any, sources: Sequence[Any]) -> set[Any]:
    """The variables of a jaxpr that depend on `sources`, these included."""
    reached = set(sources)
    for equation in jaxpr.eqns:
        if reached.isdisjoint(_variables(equation)):
            continue
        inner = _called(equation)
        if inner is None:
            reached.update(equation.outvars)
            continue
        pairs = zip(equation.invars, inner.invars, strict=True)
        within = _reached(inner, [own for var, own in pairs if _is_in(var, reached)])
        pairs = zip(equation.outvars, inner.outvars, strict=True)
        reached.update(var for var, own in pairs if _is_in(own, within))
    return reached


def _variables(equation: Any) -> list[Any]:
    return [var for var in equation.invars if not isinstance(var, jex_core.Literal)]


def _is_in(var: Any, known: set[Any]) -> bool:
    return not isinstance(var, jex_core.Literal) and var in known


def _called(equation: Any) -> Any:
    """The jaxpr that an equation runs just once with its own inputs; None for other equations."""
    if equation.primitive.name not in _CALLS:
        return None
    inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    return getattr(inner, "jaxpr", inner)


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
