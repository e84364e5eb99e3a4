"""Image classifiers in JAX/Flax in which dropout is right, nearly free, measured and used.

Names are loaded when first used, so that ``import thinned`` alone imports no JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thinned.config import Config as Config
    from thinned.dropout.functional import dropout as dropout
    from thinned.dropout.layers import Dropout as Dropout
    from thinned.errors import RequestError as RequestError
    from thinned.errors import ThinnedError as ThinnedError
    from thinned.evaluate import evaluate as evaluate
    from thinned.models.cnn import CNN as CNN
    from thinned.rng import key_for as key_for
    from thinned.run import Run as Run
    from thinned.run import resume as resume
    from thinned.run import train as train
    from thinned.state import TrainState as TrainState
    from thinned.state import create_state as create_state
    from thinned.step import Batch as Batch
    from thinned.step import train_step as train_step

__version__ = "0.1.0"

_HOMES = {
    "Batch": "thinned.step",
    "CNN": "thinned.models.cnn",
    "Config": "thinned.config",
    "Dropout": "thinned.dropout.layers",
    "RequestError": "thinned.errors",
    "Run": "thinned.run",
    "ThinnedError": "thinned.errors",
    "TrainState": "thinned.state",
    "create_state": "thinned.state",
    "dropout": "thinned.dropout.functional",
    "evaluate": "thinned.evaluate",
    "key_for": "thinned.rng",
    "resume": "thinned.run",
    "train": "thinned.run",
    "train_step": "thinned.step",
}

__all__ = [
    "Batch",
    "CNN",
    "Config",
    "Dropout",
    "RequestError",
    "Run",
    "ThinnedError",
    "TrainState",
    "__version__",
    "create_state",
    "dropout",
    "evaluate",
    "key_for",
    "resume",
    "train",
    "train_step",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'thinned' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
