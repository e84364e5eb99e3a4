"""The device: what is held on it, what it has compiled, and its memory running out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress

import jax
import numpy as np

from thinned.core.disk import cache_folder
from thinned.core.errors import ThinnedError
from thinned.core.types import Split
from thinned.data.batch import Batch


def use_compilation_cache() -> None:
    """Keep compiled programs on the disk between processes, unless JAX was told where already.

    Without a place for them each process compiles anew: nothing is worse for it but the wait.
    """
    # An entry that a killed process left half written is compiled anew: nothing to worry about.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation")
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        with suppress(ThinnedError):
            jax.config.update("jax_compilation_cache_dir", str(cache_folder("xla")))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@contextmanager
def xla_flags(**wanted: int) -> Generator[None]:
    """XLA starts with these flags, unless it was given its own; it looks at them once.

    Processes that are begun later do not see them.
    """
    given = os.environ.get("XLA_FLAGS")
    own = [f"--{name}={value}" for name, value in wanted.items() if name not in (given or "")]
    os.environ["XLA_FLAGS"] = " ".join([given or "", *own]).strip()
    try:
        yield
    finally:
        if given is None:
            del os.environ["XLA_FLAGS"]
        else:
            os.environ["XLA_FLAGS"] = given


def on_device(split: Split) -> Batch:
    """A split on the device; the images stay u8."""
    images = split.images
    held = images if isinstance(images, np.ndarray) else images[np.arange(len(images))]
    return Batch(*jax.device_put((held, split.labels)))


class OutOfMemory(ThinnedError):
    """The device has too little memory for what is trained on it."""


@contextmanager
def memory_told() -> Generator[None]:
    """What runs out of the device's memory in here says so in one line, and what to do."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemory(
            "the device has too little memory: give a smaller network or --batch-size, or "
            "--data.in-memory no"
        ) from error
