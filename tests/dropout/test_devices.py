"""Masks on several devices are those on one, and an audit sees where they are not."""

import json
import subprocess
import sys

import device_cases
import pytest
from conftest import with_devices

pytestmark = pytest.mark.optimised


@pytest.fixture(scope="module")
def wrong():
    command = [sys.executable, "-m", "device_cases"]
    environment = with_devices(device_cases.DEVICES)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", [case.__name__ for case in device_cases.CASES])
def test_on_several_devices(wrong, case):
    assert case not in wrong, wrong[case]
