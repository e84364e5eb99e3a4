"""Image classifiers in JAX/Flax in which dropout is right, nearly free, measured and used.

Names are loaded when first used, so that ``import thinned`` alone imports no JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thinned.core.config import Config as Config
    from thinned.core.errors import RequestError as RequestError
    from thinned.core.errors import ThinnedError as ThinnedError
    from thinned.core.rng import key_for as key_for
    from thinned.data.batch import Batch as Batch
    from thinned.dropout.audit.checks import audit as audit
    from thinned.dropout.audit.findings import Audit as Audit
    from thinned.dropout.audit.watch_linen import dropout_on as dropout_on
    from thinned.dropout.linen import AlphaDropout as AlphaDropout
    from thinned.dropout.linen import ChannelDropout as ChannelDropout
    from thinned.dropout.linen import ConcreteDropout as ConcreteDropout
    from thinned.dropout.linen import DropBlock as DropBlock
    from thinned.dropout.linen import DropConnectDense as DropConnectDense
    from thinned.dropout.linen import Dropout as Dropout
    from thinned.dropout.linen import DropPath as DropPath
    from thinned.dropout.linen import GaussianDropout as GaussianDropout
    from thinned.dropout.sites import DropoutSpec as DropoutSpec
    from thinned.dropout.sites import dropout_sites as dropout_sites
    from thinned.dropout.sites import rates_collection as rates_collection
    from thinned.engine.evaluation import evaluate as evaluate
    from thinned.engine.optim import max_norm as max_norm
    from thinned.engine.step import TrainState as TrainState
    from thinned.engine.step import create_state as create_state
    from thinned.engine.step import train_step as train_step
    from thinned.models.cnn import CNN as CNN
    from thinned.runs.run import Run as Run
    from thinned.runs.run import resume as resume
    from thinned.runs.run import train as train

__version__ = "0.1.0"

_HOMES = {
    "AlphaDropout": "thinned.dropout.linen",
    "Audit": "thinned.dropout.audit.findings",
    "audit": "thinned.dropout.audit.checks",
    "dropout_on": "thinned.dropout.audit.watch_linen",
    "Batch": "thinned.engine.step",
    "CNN": "thinned.models.cnn",
    "ChannelDropout": "thinned.dropout.linen",
    "ConcreteDropout": "thinned.dropout.linen",
    "Config": "thinned.core.config",
    "DropBlock": "thinned.dropout.linen",
    "DropConnectDense": "thinned.dropout.linen",
    "DropPath": "thinned.dropout.linen",
    "Dropout": "thinned.dropout.linen",
    "DropoutSpec": "thinned.dropout.sites",
    "GaussianDropout": "thinned.dropout.linen",
    "RequestError": "thinned.core.errors",
    "Run": "thinned.runs.run",
    "ThinnedError": "thinned.core.errors",
    "TrainState": "thinned.engine.step",
    "create_state": "thinned.engine.step",
    "dropout_sites": "thinned.dropout.sites",
    "evaluate": "thinned.engine.evaluation",
    "key_for": "thinned.core.rng",
    "max_norm": "thinned.engine.optim",
    "rates_collection": "thinned.dropout.sites",
    "resume": "thinned.runs.run",
    "train": "thinned.runs.run",
    "train_step": "thinned.engine.step",
}

__all__ = [
    "AlphaDropout",
    "Audit",
    "audit",
    "dropout_on",
    "Batch",
    "CNN",
    "ChannelDropout",
    "ConcreteDropout",
    "Config",
    "DropBlock",
    "DropConnectDense",
    "DropPath",
    "Dropout",
    "DropoutSpec",
    "GaussianDropout",
    "RequestError",
    "Run",
    "ThinnedError",
    "TrainState",
    "__version__",
    "create_state",
    "dropout_sites",
    "evaluate",
    "key_for",
    "max_norm",
    "rates_collection",
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
