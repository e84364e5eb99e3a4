"""The audit of Haiku's transformed functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from thinned.dropout.audit.findings import Audit
from thinned.dropout.audit.functions import audit_function, usual_key


def audit_haiku(
    transformed: Any,
    *args: Any,
    train: Mapping[str, Any] | None = None,
    evaluate: Mapping[str, Any] | None = None,
    variables: Any = None,
    rngs: Callable[[int], Any] | None = None,
    init_rngs: Any = None,
    rates: Mapping[str, float] | None = None,
    draws: int = 64,
) -> Audit:
    """Measure what dropout does in what ``hk.transform`` gave; other arguments as of `audit`.

    Args:
        transformed: without state.
        args: of the function, all batches.
        train: keyword arguments in training; ``{"is_training": True}`` when absent.
        evaluate: the same at prediction time; ``{"is_training": False}`` when absent.
        variables: the parameters; initialised when absent.
        rngs: from the step to the key.
    """
    modes = train or {"is_training": True}, evaluate or {"is_training": False}
    started = jax.random.key(0) if init_rngs is None else init_rngs
    if variables is None:
        variables = jax.jit(lambda: transformed.init(started, *args, **modes[0]))()

    def applied(mode: Mapping[str, Any]) -> Callable[..., Any]:
        return lambda key, params, *given: transformed.apply(params, key, *given, **mode)

    return audit_function(
        applied(modes[0]),
        rngs or usual_key,
        variables,
        *args,
        batch=range(1, len(args) + 1),
        evaluation=applied(modes[1]),
        rates=rates,
        init_keys=init_rngs,
        draws=draws,
    )
