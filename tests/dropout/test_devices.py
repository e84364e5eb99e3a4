"""Masks on several devices are those on one, and an audit sees where they are not."""

import json
import os
import subprocess
import sys

import device_cases
import pytest
from conftest import ROOT

PLACES = ("src", "tests", "tests/dropout")


@pytest.fixture(scope="module")
def wrong():
    count = f"--xla_force_host_platform_device_count={device_cases.DEVICES}"
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {count}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(str(ROOT / place) for place in PLACES),
    }
    command = [sys.executable, "-m", "device_cases"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", [case.__name__ for case in device_cases.CASES])
def test_on_several_devices(wrong, case):
    assert case not in wrong, wrong[case]
