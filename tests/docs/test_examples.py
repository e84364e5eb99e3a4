"""The examples in docstrings give what they show."""

import doctest
import importlib

import pytest
from conftest import ROOT

SOURCE = ROOT / "src"
MODULES = sorted(
    ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for path in SOURCE.rglob("*.py")
    if ">>> " in path.read_text()
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_hold(name):
    failures, tried = doctest.testmod(importlib.import_module(name))
    assert tried
    assert not failures
