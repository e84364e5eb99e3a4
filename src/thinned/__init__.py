"""Image classifiers in JAX/Flax in which dropout is right, nearly free, measured and used.

Names are loaded when first used, so that ``import thinned`` alone imports no JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thinned.core.config import AugmentConfig as AugmentConfig
    from thinned.core.config import Config as Config
    from thinned.core.config import DataConfig as DataConfig
    from thinned.core.config import DropoutConfig as DropoutConfig
    from thinned.core.config import MlpConfig as MlpConfig
    from thinned.core.config import OptimConfig as OptimConfig
    from thinned.core.config import RandomnessConfig as RandomnessConfig
    from thinned.core.config import recipe as recipe
    from thinned.core.config import with_values as with_values
    from thinned.core.errors import RequestError as RequestError
    from thinned.core.errors import ThinnedError as ThinnedError
    from thinned.core.rng import key_for as key_for
    from thinned.data.sources.arrays import Arrays as Arrays
    from thinned.data.sources.load import load_data as load_data
    from thinned.dropout.attention import attention as attention
    from thinned.dropout.audit.findings import Audit as Audit
    from thinned.dropout.audit.front import audit as audit
    from thinned.dropout.audit.functions import audit_function as audit_function
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
    from thinned.models.cnn import CNN as CNN
    from thinned.runs.run import Run as Run
    from thinned.runs.train import resume as resume
    from thinned.runs.train import train as train
    from thinned.studies.study import Study as Study
    from thinned.studies.study import run_study as run_study

__version__ = "0.1.0"

_PUBLIC = {
    "core.config": "AugmentConfig Config DataConfig DropoutConfig MlpConfig OptimConfig "
    "RandomnessConfig recipe with_values",
    "core.errors": "RequestError ThinnedError",
    "core.rng": "key_for",
    "data.sources.arrays": "Arrays",
    "data.sources.load": "load_data",
    "dropout.audit.findings": "Audit",
    "dropout.audit.front": "audit",
    "dropout.audit.functions": "audit_function",
    "dropout.attention": "attention",
    "dropout.audit.watch_linen": "dropout_on",
    "dropout.linen": "AlphaDropout ChannelDropout ConcreteDropout DropBlock DropConnectDense "
    "Dropout DropPath GaussianDropout",
    "dropout.sites": "DropoutSpec dropout_sites rates_collection",
    "engine.evaluation": "evaluate",
    "engine.optim": "max_norm",
    "models.cnn": "CNN",
    "runs.run": "Run",
    "runs.train": "resume train",
    "studies.study": "Study run_study",
}
_HOMES = {name: f"thinned.{home}" for home, names in _PUBLIC.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'thinned' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
