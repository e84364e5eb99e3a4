"""Image classifiers in JAX/Flax in which dropout is right, nearly free, measured and used.

Names are loaded when first used, so that ``import thinned`` alone imports no JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thinned.config import Config as Config
    from thinned.dropout.audit import audit as audit
    from thinned.dropout.findings import Audit as Audit
    from thinned.dropout.layers import AlphaDropout as AlphaDropout
    from thinned.dropout.layers import ChannelDropout as ChannelDropout
    from thinned.dropout.layers import ConcreteDropout as ConcreteDropout
    from thinned.dropout.layers import DropBlock as DropBlock
    from thinned.dropout.layers import DropConnectDense as DropConnectDense
    from thinned.dropout.layers import Dropout as Dropout
    from thinned.dropout.layers import DropPath as DropPath
    from thinned.dropout.layers import GaussianDropout as GaussianDropout
    from thinned.dropout.recording import dropout_on as dropout_on
    from thinned.dropout.sites import DropoutSpec as DropoutSpec
    from thinned.dropout.sites import dropout_sites as dropout_sites
    from thinned.dropout.sites import rates_collection as rates_collection
    from thinned.errors import RequestError as RequestError
    from thinned.errors import ThinnedError as ThinnedError
    from thinned.evaluation import evaluate as evaluate
    from thinned.models.cnn import CNN as CNN
    from thinned.optim import max_norm as max_norm
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
    "AlphaDropout": "thinned.dropout.layers",
    "Audit": "thinned.dropout.findings",
    "audit": "thinned.dropout.audit",
    "dropout_on": "thinned.dropout.recording",
    "Batch": "thinned.step",
    "CNN": "thinned.models.cnn",
    "ChannelDropout": "thinned.dropout.layers",
    "ConcreteDropout": "thinned.dropout.layers",
    "Config": "thinned.config",
    "DropBlock": "thinned.dropout.layers",
    "DropConnectDense": "thinned.dropout.layers",
    "DropPath": "thinned.dropout.layers",
    "Dropout": "thinned.dropout.layers",
    "DropoutSpec": "thinned.dropout.sites",
    "GaussianDropout": "thinned.dropout.layers",
    "RequestError": "thinned.errors",
    "Run": "thinned.run",
    "ThinnedError": "thinned.errors",
    "TrainState": "thinned.state",
    "create_state": "thinned.state",
    "dropout_sites": "thinned.dropout.sites",
    "evaluate": "thinned.evaluation",
    "key_for": "thinned.rng",
    "max_norm": "thinned.optim",
    "rates_collection": "thinned.dropout.sites",
    "resume": "thinned.run",
    "train": "thinned.run",
    "train_step": "thinned.step",
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
