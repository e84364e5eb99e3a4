"""The audit of a network, of whichever library it is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn
from flax import nnx

from thinned.core.errors import RequestError
from thinned.core.types import Key
from thinned.dropout.audit.findings import Audit
from thinned.dropout.audit.linen import audit_linen


def audit(
    module: Any,
    *args: Any,
    train: Mapping[str, Any] | None = None,
    evaluate: Mapping[str, Any] | None = None,
    evaluation: Any = None,
    variables: Mapping[str, Any] | None = None,
    rngs: Callable[[int], Mapping[str, Key]] | Callable[[int], Any] | None = None,
    init_rngs: Key | Mapping[str, Key] | Any = None,
    draws: int = 64,
    rates: Mapping[str, float] | None = None,
    **options: Any,
) -> Audit:
    """Measure what dropout does in any module of Flax (Linen, NNX), Equinox or Haiku.

    What is random is read off the program that the module runs, whoever wrote its layers: dropout
    in attention, inside transforms and without a layer is found, too. For functions of no library,
    see `audit_function`.

    Args:
        module: the module in training; of NNX and Equinox, in the state in which it is trained.
        args: positional arguments of its call, the first a batch of at least two examples.
        train: keyword arguments of its call in training; of Linen found out from its signature
            (``train``, ``training`` or ``deterministic``) when absent.
        evaluate: the same in evaluation.
        evaluation: the module in evaluation, where the mode is an attribute of the module; of NNX
            after ``eval()``, of Equinox by ``inference_mode`` when absent.
        variables: its variables (Linen) or parameters (Haiku); initialised when absent.
        rngs: from the step to the ``rngs`` of ``apply``, to the key (Equinox, Haiku) or to an
            `nnx.Rngs` for the call, just as the training loop makes them; fresh and unrelated keys
            when absent, which finds out less. Of NNX, the module's own streams when absent.
        init_rngs: what ``init`` was given, to see whether a key is used twice.
        draws: how many steps to measure, at least 8.
        rates: configured drop probabilities by the names of places in the report, where the
            layers do not tell.
        options: ``call`` for NNX and Equinox: what is done with ``(module, *args)`` in place of
            calling it, in Equinox with ``key``; ``carried=False`` for NNX: the loop forgets the
            changed state of the streams.

    Returns:
        An `Audit`: ``print`` it, or look at ``passed``, ``sites`` and ``checks``.

    Raises:
        RequestError: arguments are missing or make no sense, or the module cannot be traced.
    """
    given: dict[str, Any] = {
        "train": train,
        "evaluate": evaluate,
        "rngs": rngs,
        "init_rngs": init_rngs,
        "draws": draws,
        "rates": rates,
        **options,
    }
    if isinstance(module, nn.Module):
        _refuse(options, (), "Linen")
        return audit_linen(module, *args, evaluation=evaluation, variables=variables, **given)
    if isinstance(module, nnx.Module):
        from thinned.dropout.audit.nnx import audit_nnx

        _refuse(options, ("call", "carried"), "NNX")
        return audit_nnx(module, *args, evaluation=evaluation, **given)
    if _is_of("equinox", "Module", module):
        from thinned.dropout.audit.equinox import audit_equinox

        _refuse(options, ("call",), "Equinox")
        return audit_equinox(module, *args, evaluation=evaluation, **given)
    if _is_of("haiku", "Transformed", module):
        from thinned.dropout.audit.haiku import audit_haiku

        _refuse(options, (), "Haiku")
        return audit_haiku(module, *args, variables=variables, **given)
    raise RequestError(
        "the audit needs a flax.linen.Module, or one of flax.nnx, Equinox or Haiku, not "
        f"{type(module).__name__}; for a function, use thinned.audit_function"
    )


def _is_of(library: str, name: str, module: Any) -> bool:
    """Whether a module is of a library, which it can only be if somebody imported that."""
    kind = getattr(sys.modules.get(library), name, None)
    return isinstance(kind, type) and isinstance(module, kind)


def _refuse(options: Mapping[str, Any], known: tuple[str, ...], library: str) -> None:
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise RequestError(f"the audit of a module of {library} has no option {unknown[0]}")
