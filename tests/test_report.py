"""The report: one file, right figures, and in a real browser no error and no request."""

import re
import shutil
import subprocess
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import write_idx

from thinned.cli import main
from thinned.config import Config, DataConfig, DropoutConfig
from thinned.run import train

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_data):
    base = tmp_path_factory.mktemp("reported")
    made = []
    for name, kind in (("one & <only>", "element"), ("learned", "concrete")):
        dropout = DropoutConfig(kind=kind, rate=0.3)
        data = DataConfig(path=str(tiny_data), validation=30)
        config = Config(data=data, epochs=3, batch_size=20, dropout=dropout)
        made.append(train(config, name=name, runs=base))
    return made


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    noise = np.random.default_rng(0).integers(0, 256, (40, 8, 8)).astype(np.uint8)
    labels = np.arange(40) % 3
    other = write_idx(tmp_path_factory.mktemp("noise"), (noise, labels), (noise, labels))
    words = ["report", str(runs[0].folder), "--samples", "5", "--ood", str(other)]
    assert main(words) == 0
    return runs[0].folder / "report.html"


def test_the_page_holds_everything_itself_and_is_small(page):
    text = page.read_text()
    assert len(text) < 3_000_000
    # Names of XML dialects are no addresses that anything is fetched from.
    links = re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "url(http" not in text
    assert "@import" not in text
    assert "one &amp; &lt;only&gt;" in text
    assert "<only>" not in text


def test_its_figures_are_those_of_the_records(page, runs):
    text = page.read_text()
    ends = {record["split"]: record for record in runs[0].metrics}
    told = ", ".join(f"{split} {ends[split]['loss']:.4f}" for split in ends)
    assert f"at the end {told}" in text
    gap = ends["test"]["accuracy"] - ends["train"]["accuracy"]
    assert f"test less train {gap:+.4f}" in text
    assert "and of other images (mean" in text
    assert "<td>Conv_0</td>" in text


def test_every_figure_is_well_formed_and_says_what_it_shows(page):
    figures = re.findall(r"<figure>(<svg.*?</svg>)", page.read_text(), re.S)
    assert len(figures) == 7
    ids = []
    for figure in figures:
        root = ElementTree.fromstring(figure)
        assert root.get("role") == "img"
        assert len(root.get("aria-label")) > 20
        ids += [each.get("id") for each in root.iter() if each.get("id")]
    assert len(ids) == len(set(ids))
    pictures = re.findall(r"<img [^>]+>", page.read_text())
    assert pictures
    assert all('alt="' in picture for picture in pictures)


def test_several_runs_stand_side_by_side_with_their_difference(runs, tmp_path):
    out, figures = tmp_path / "both.html", tmp_path / "figures"
    words = ["report", *(str(run.folder) for run in runs)]
    assert main([*words, "--out", str(out), "--figures", str(figures)]) == 0
    text = out.read_text()
    assert "paired bootstrap" in text
    one, two = (run.evaluate().totals.accuracy for run in runs)
    assert f"<td>{two - one:+.4f}</td>" in text
    assert "learned 0." in text
    assert (figures / "curve-loss.png").stat().st_size > 1000
    ElementTree.parse(figures / "curve-loss.svg")


def test_what_cannot_be_reported_is_said(tmp_path, capsys, monkeypatch, runs):
    assert main(["report", str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err
    assert main(["report", str(runs[0].folder), "--out", "/nowhere/x.html"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert main(["report", str(runs[0].folder)]) == 2
    assert "pip install 'thinned[report]'" in capsys.readouterr().err


@pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed: apt install chromium")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_it_without_an_error_or_a_request(page, width, tmp_path):
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            f"--window-size={width},900",
            f"--user-data-dir={tmp_path}",
            f"--log-net-log={tmp_path / 'net.json'}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count("<figure>") == 7
    assert "AURC" in done.stdout
    asked = re.findall(r'"url":"https?://([^"/]+)', (tmp_path / "net.json").read_text())
    # The browser itself looks for updates at its maker's; the page asks for nothing.
    own = (".google.com", ".googleapis.com", ".gstatic.com", ".gvt1.com")
    assert not [host for host in asked if not host.endswith(own)]
