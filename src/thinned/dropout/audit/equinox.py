"""The audit of Equinox modules."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from thinned.dropout.audit.checks import inspect
from thinned.dropout.audit.findings import Audit
from thinned.dropout.audit.functions import Arrays, roots_of, usual_key
from thinned.dropout.audit.subject import Layer, Subject, checked_batch, checked_draws


def audit_equinox(
    model: Any,
    *args: Any,
    train: Mapping[str, Any] | None = None,
    evaluate: Mapping[str, Any] | None = None,
    evaluation: Any = None,
    call: Callable[..., Any] | None = None,
    rngs: Callable[[int], Any] | None = None,
    init_rngs: Any = None,
    rates: Mapping[str, float] | None = None,
    draws: int = 64,
) -> Audit:
    """Measure what dropout does in an Equinox module; other arguments as of `audit`.

    Args:
        model: as it is in training.
        args: batches.
        evaluation: the module at prediction time; by ``eqx.nn.inference_mode`` when absent.
        call: what is done with (module, *args, key=key); when absent, ``jax.vmap`` of the module
            over the examples, each with a key of its own.
        rngs: from the step to the key.
    """
    checked_draws(draws)
    checked_batch(args[:1])
    library: Any = importlib.import_module("equinox")
    trained, examples, modes = Arrays(model), Arrays(args), (train or {}, evaluate or {})
    evaluated = Arrays(library.nn.inference_mode(model) if evaluation is None else evaluation)
    how = call or _mapped

    def training(key: Any, fixed: Any, arrays: Any) -> Any:
        own = trained.rebuilt(fixed)
        return Arrays(how(own, *examples.rebuilt(arrays), key=key, **modes[0])).arrays, {}

    def evaluating(key: Any, _: Any, arrays: Any) -> Any:
        own = evaluated.rebuilt(evaluated.arrays)
        return Arrays(how(own, *examples.rebuilt(arrays), key=key, **modes[1])).arrays

    return inspect(
        Subject(
            training=training,
            keys=rngs or usual_key,
            fixed=trained.arrays,
            data=examples.arrays,
            evaluation=evaluating,
            layers=lambda: _off(library, model),
            name=lambda place, _: place.line or place.path,
            roots=roots_of(init_rngs),
            rates=rates or {},
            draws=draws,
        )
    )


def _mapped(model: Any, *args: Any, key: Any, **options: Any) -> Any:
    batch = jax.tree.leaves(args)[0].shape[0]

    def one(own: Any, *example: Any) -> Any:
        return model(*example, key=own, **options)

    return jax.vmap(one)(jax.random.split(key, batch), *args)


def _off(library: Any, model: Any) -> dict[str, Layer]:
    """The layers that are off in training; the program does not name those that are on."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(
        model, is_leaf=lambda node: isinstance(node, library.nn.Dropout)
    )
    return {
        jax.tree_util.keystr(path).lstrip("."): Layer("element", float(node.p))
        for path, node in pairs
        if isinstance(node, library.nn.Dropout) and node.inference
    }
