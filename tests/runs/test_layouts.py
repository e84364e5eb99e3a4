import json
import socket
import subprocess
import sys

import layout_cases
import numpy as np
import pytest
from conftest import with_devices
from hypothesis import given
from hypothesis import strategies as st

from thinned.core.config import Config
from thinned.core.errors import RequestError, ThinnedError
from thinned.engine.exact import CELLS, cells_of, spans
from thinned.engine.layout import layout_of, with_parallel
from thinned.engine.processes import joined, launched
from thinned.runs.run import Run
from thinned.runs.verify import Shape, differing

pytestmark = pytest.mark.optimised

TRAIN = ["--model", "mlp", "--mlp.hidden", "8", "--batch-size", "16", "--epochs", "2"]


def command(*words: str, devices: int = 1, **options):
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        env=with_devices(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


QUICK = ["alpha, streamed, adamw, clipped", "predictions"]


@pytest.fixture(scope="module", params=["quick", pytest.param("slow", marks=pytest.mark.long)])
def cases(request):
    every = (*layout_cases.CASES, "predictions")
    names = [name for name in every if (name in QUICK) == (request.param == "quick")]
    process = command("layout_cases", *names, devices=8)
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    return json.loads(said)


def test_any_number_of_devices_gives_the_same_bits(cases):
    for name, (one, *others) in cases.items():
        assert others, name
        for other in others:
            assert other == one, name


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


@pytest.mark.long
def test_two_processes_end_as_one_and_go_on_as_one(tmp_path, tiny_data):
    own = ["thinned", "train", *TRAIN, "--data.path", str(tiny_data), "--runs", str(tmp_path)]
    alone = command(*own, "--name", "one", "--parallel", "exact")
    alone.communicate()
    at = f"127.0.0.1:{free_port()}"
    together = [*own, "--name", "two", "--devices", "all", "--coordinator", at, "--processes", "2"]
    both = [command(*together, "--process", str(number)) for number in range(2)]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in (alone, *both)] == [0, 0, 0], said
    assert "2 devices of 2 processes" in said[0][0]
    assert "thinned" not in said[1][0]
    assert differing(Run.open(tmp_path / "one"), Run.open(tmp_path / "two")) == []


@given(batch=st.integers(1, 300), devices=st.integers(1, CELLS))
def test_every_cell_has_one_device_and_every_image_one_cell(batch, devices):
    cells = cells_of(batch)
    assert batch % cells == 0
    edges = spans(cells, min(devices, cells))
    covered = np.concatenate([np.arange(first, last) for first, last in edges])
    np.testing.assert_array_equal(covered, np.arange(cells))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"devices": 64, "parallel": "exact"}, "JAX finds 1"),
        ({"devices": 2, "parallel": "no"}, "begun on one device"),
    ],
)
def test_what_cannot_be_shared_is_refused(values, said):
    with pytest.raises(RequestError, match=said):
        layout_of(Config(**values))


def test_auto_is_written_out_before_a_run_begins():
    assert with_parallel(Config()).parallel == "no"
    assert with_parallel(Config(devices="all")).parallel == "exact"
    assert with_parallel(Config(devices="all", parallel="fast")).parallel == "fast"


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
    ],
)
def test_launchers_are_known_by_what_they_leave(environment, several):
    assert launched(environment) == several


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("127.0.0.1:1", None, 0), "go together"),
        (("127.0.0.1", 2, 0), "HOST:PORT"),
        (("127.0.0.1:1", 2, 2), "0 to 1"),
    ],
)
def test_processes_are_named_whole(given, said):
    with pytest.raises(RequestError, match=said), joined(*given):
        pass


def test_shapes_are_read():
    assert (Shape.of("4"), Shape.of("2x3")) == (Shape(1, 4), Shape(2, 3))
    with pytest.raises(ThinnedError, match="PROCESSESxDEVICES"):
        Shape.of("x3")
