"""Shared fixtures: small data with something to learn, and one compilation cache for all tests."""

import gc
import gzip
import os
import re
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Before JAX is imported, so that every worker and every subprocess shares what was compiled.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time goes into compiling small programs that run once: without XLA's optimisations it
# is half as long. Modules marked `optimised` and the nightly run have programs as users have them.
QUICK = "JAX_DISABLE_MOST_OPTIMIZATIONS"
QUICK_ANYWAY = os.environ.get(QUICK)
# Of the hundred frames that lead to an operation here, one is written down with it.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "1")
if QUICK_ANYWAY is None and version("jax").startswith("0.10."):
    # Half of what is left, and two thirds of that. Later versions do not know the first, and end
    # the process.
    FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
# See thinned.cli.main.main.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

hypothesis.settings.register_profile("thinned", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("thinned")


# A collection visits all that JAX holds of its programs: as often as Python would, that takes some
# hundredths of the time. What is there before the first test stays for good.
gc.set_threshold(50_000, 20, 20)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with optimised programs first: between them and others all programs are let go.

    The small ones of `core` last, so that the workers end together.
    """
    core = ROOT / "tests" / "core"
    items.sort(
        key=lambda item: (item.get_closest_marker("optimised") is None, core in item.path.parents)
    )


def pytest_collection_finish() -> None:
    """What was imported and collected needs no visit any more."""
    gc.collect()
    gc.freeze()


def idx_bytes(array: np.ndarray) -> bytes:
    """An array of u8 as an IDX file."""
    header = bytes([0, 0, 8, array.ndim]) + np.asarray(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def gzipped(content: bytes) -> bytes:
    """Compressed, the same at any time: it may become the name of a test."""
    return gzip.compress(content, mtime=0)


def write_idx(folder: Path, train: tuple, test: tuple) -> Path:
    """Four gzipped IDX files: (images u8 [n, h, w], labels [n]) for train and test."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (images, labels) in (("train", train), ("t10k", test)):
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzipped(idx_bytes(images)))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzipped(idx_bytes(labels)))
    return folder


def blobs(count: int, seed: int, size: int = 8, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Images u8 [count, size, size] whose class shows in which rows are bright."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    images = random.integers(0, 120, (count, size, size))
    for label in range(classes):
        images[labels == label, label * size // classes : (label + 1) * size // classes] += 120
    return images.astype(np.uint8), labels.astype(np.uint8)


def uniform_values(seed: int, *shape: int) -> jax.Array:
    """Numbers f32 in [0, 1). JAX would compile a program for every shape, in every worker."""
    return jnp.asarray(np.random.default_rng(seed).random(shape, np.float32))


def normal_values(seed: int, *shape: int) -> jax.Array:
    """Standard normal numbers f32, as `uniform_values`."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def with_devices(count: int) -> dict[str, str]:
    """The environment of a process in which a CPU passes for so many, and tests can be imported."""
    own = f"--xla_force_host_platform_device_count={count}"
    places = (ROOT / place for place in ("src", "tests", "tests/dropout"))
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {own}",
        "PYTHONPATH": os.pathsep.join(map(str, places)),
    }


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of IDX files: 200 training and 77 test images, 8 x 8, 3 classes."""
    return write_idx(tmp_path_factory.mktemp("tiny"), blobs(200, 0), blobs(77, 1))


MEMORY_KIB = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 1024
LIMIT_KIB = max(2 << 20, MEMORY_KIB // 6)
"""Of memory that a process of tests may hold before its compiled programs are let go."""


def memory_kib() -> int:
    """What this process holds now; 0 where nothing says so."""
    status = Path("/proc/self/status")
    held = re.search(r"VmRSS:\s+(\d+)", status.read_text()) if status.exists() else None
    return int(held[1]) if held else 0


@pytest.fixture(scope="module", autouse=True)
def _programs_are_compiled_as_the_module_needs(request: pytest.FixtureRequest):
    optimised = request.node.get_closest_marker("optimised") is not None
    quick = QUICK_ANYWAY or str(int(not optimised))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(QUICK, quick)
        # Programs are kept from module to module, since most are small and common to many; but
        # thousands of them take gigabytes, and those of the other way are not to be used.
        if jax.config.read(QUICK.lower()) != (quick == "1") or memory_kib() > LIMIT_KIB:
            jax.clear_caches()
            jax.config.update(QUICK.lower(), quick == "1")
        yield
