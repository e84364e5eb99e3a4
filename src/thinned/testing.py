"""For the tests of other projects: dropout in this model does what it should."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from thinned.dropout.audit.findings import Audit
from thinned.dropout.audit.front import audit
from thinned.dropout.audit.functions import audit_function


def assert_dropout(
    model: Any, *args: Any, proved: bool = True, ignore: Sequence[str] = (), **options: Any
) -> Audit:
    """Fail a test unless dropout in a model is right, see `thinned.audit`.

    Args:
        model: a module of Flax, Equinox or Haiku, or a function of keys and data.
        args: as of `thinned.audit`, or of `thinned.audit_function`: the keys first, then the data.
        proved: whether places that cannot be looked at are failures, too.
        ignore: names of places, as in the report, that may be as they are.
        options: of these functions.

    Returns:
        The audit, for further assertions.

    Raises:
        AssertionError: with the report as its text.
        RequestError: arguments make no sense.
    """
    __tracebackhide__ = True
    asked = audit_function if inspect.isroutine(model) else audit
    audited = asked(model, *args, **options)
    failed = [check for check in audited.failures() if check.site not in ignore]
    unseen = [name for name in audited.unseen if name not in ignore] if proved else []
    if failed or unseen:
        raise AssertionError(f"dropout is not right:\n{audited}")
    return audited
