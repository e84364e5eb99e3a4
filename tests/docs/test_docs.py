"""The tutorial runs with its assertions, and stays in step with its notebook."""

import json
import subprocess
import sys

import jupytext
import nbclient
import pytest
from conftest import ROOT

TUTORIAL = ROOT / "docs" / "tutorial.md"


def cells(notebook):
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


def test_the_notebook_is_the_page():
    page, notebook = jupytext.read(TUTORIAL), jupytext.read(TUTORIAL.with_suffix(".ipynb"))
    assert cells(page) == cells(notebook), "run: make notebook"
    saved = json.loads(TUTORIAL.with_suffix(".ipynb").read_text())
    assert all(not cell.get("outputs") for cell in saved["cells"])


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_the_tutorial_runs_and_all_it_asserts_holds(monkeypatch, tmp_path):
    monkeypatch.setenv("THINNED_QUICK", "1")
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = jupytext.read(TUTORIAL)
    options = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=540, resources=options).execute()
    checks = sum(cell.source.count("assert ") for cell in notebook.cells)
    assert checks >= 8


def test_the_reference_of_commands_is_up_to_date():
    script = ROOT / "scripts" / "write_reference.py"
    subprocess.run([sys.executable, str(script), "--check"], check=True)


def test_every_page_is_in_the_site():
    index = (ROOT / "docs" / "index.md").read_text()
    pages = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    listed = {line.strip() + ".md" for line in index.splitlines()}
    assert {page for page in pages if not page.startswith("_build")} - listed == {"index.md"}
