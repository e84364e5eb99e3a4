"""What changes the bits of a run is fixed or recorded, and compared when it goes on."""

import hashlib
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import thinned
from thinned.core.config import Config, DataConfig, DropoutConfig, MlpConfig
from thinned.core.errors import RequestError
from thinned.runs.environment import describe_environment, environment_changes


def config(tiny_data, **data):
    return Config(
        epochs=2,
        batch_size=32,
        model="mlp",
        mlp=MlpConfig(hidden=(16,)),
        data=DataConfig(path=str(tiny_data), **data),
        dropout=DropoutConfig(bits="threefry"),
    )


def digest(run):
    leaves = jax.tree.leaves(run.state.params)
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()


@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory):
    return thinned.train(config(tiny_data), name="usual", runs=tmp_path_factory.mktemp("runs"))


@pytest.fixture
def other_settings():
    names = {
        "jax_threefry_partitionable": False,
        "jax_enable_x64": True,
        "jax_default_prng_impl": "rbg",
    }
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in names.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.parametrize("data", [{}, {"in_memory": "no"}])
def test_a_run_is_the_same_under_any_settings(finished, tiny_data, tmp_path, other_settings, data):
    run = thinned.train(config(tiny_data, **data), name="other", runs=tmp_path)
    assert digest(run) == digest(finished)
    losses = [[record["loss"] for record in each.metrics] for each in (run, finished)]
    assert losses[0] == losses[1]
    assert run.evaluate().totals.loss / 77 == finished.metrics[-1]["loss"]
    assert run.predict(finished.dataset.test.images[:3]).dtype == np.float32


def test_samples_are_the_same_under_any_settings(finished, other_settings):
    from thinned.runs.predictions import predictions_of

    images = finished.dataset.test.images[:5]
    found = predictions_of([finished], images, 3).probabilities
    with jax.threefry_partitionable(True), jax.enable_x64(False):
        expected = predictions_of([finished], images, 3).probabilities
    assert np.array_equal(found, expected)


def test_settings_are_recorded_and_others_refused(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished.folder, folder)
    path = folder / "environment.json"
    recorded = json.loads(path.read_text())
    assert recorded["settings"]["jax_threefry_partitionable"] is True
    assert recorded["settings"]["jax_enable_x64"] is False
    thinned.resume(folder)
    with (
        jax.default_matmul_precision("highest"),
        pytest.raises(RequestError, match="JAX_DEFAULT_MATMUL_PRECISION=None"),
    ):
        thinned.resume(folder)
    recorded["settings"]["jax_enable_x64"] = True
    path.write_text(json.dumps(recorded))
    with pytest.raises(RequestError, match="JAX_ENABLE_X64=True, and JAX is now set to False"):
        thinned.resume(folder)
    # A record of before, or none that can be read, is no reason.
    for text in (json.dumps({**recorded, "settings": None}), "[]", "{"):
        path.write_text(text)
        thinned.resume(folder)


def test_other_threads_are_told(tmp_path):
    now = describe_environment("some", "0")
    assert now["cpu_affinity"] >= 1
    path = tmp_path / "environment.json"
    path.write_text(json.dumps({**now, "cpu_threads": now["cpu_threads"] + 1}))
    (line,) = environment_changes(path, now)
    assert f"PJRT_NPROC={now['cpu_threads'] + 1}" in line
    path.write_text(json.dumps(now))
    assert environment_changes(path, now) == []


def test_threads_are_those_of_the_record_where_jax_has_not_started(tmp_path):
    path = tmp_path / "environment.json"
    path.write_text(json.dumps({"cpu_threads": 3}))
    program = (
        "import os; from pathlib import Path\n"
        "from thinned.runs.environment import describe_environment, fix_threads\n"
        "from thinned.core.errors import RequestError\n"
        "os.environ['PJRT_NPROC'] = 'many'\n"
        "try:\n"
        "    fix_threads()\n"
        "except RequestError as error:\n"
        "    print(error)\n"
        "os.environ['PJRT_NPROC'] = '2'\n"
        f"fix_threads(Path({str(path)!r}))\n"
        "first = describe_environment('', '')['cpu_threads']\n"
        "fix_threads()\n"
        "print(first, describe_environment('', '')['cpu_threads'], os.environ['PJRT_NPROC'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    refused, told = done.stdout.splitlines()
    assert refused == "PJRT_NPROC is 'many': must be a whole number of at least 1"
    assert told.split() == ["3", "3", "2"]
