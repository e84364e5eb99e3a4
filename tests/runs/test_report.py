"""The report: one file, right figures, and in a real browser no error and no request."""

import html
import json
import re
import shutil
import subprocess
from urllib.parse import urlsplit
from xml.etree import ElementTree

import numpy as np
import pytest
from axe import violations
from conftest import blobs, write_idx

from thinned.cli.main import main
from thinned.core.config import Config, DataConfig, DropoutConfig, MlpConfig
from thinned.core.pages import Plots
from thinned.runs import figures, report, verdicts
from thinned.runs.doctor import audited
from thinned.runs.predictions import Witness, appraise, sets_for
from thinned.runs.train import train
from thinned.trust.appraisal import Appraisal
from thinned.trust.conformal import SetScores
from thinned.trust.sampling import Predictions
from thinned.trust.scores import bootstrap

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")

needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="Chromium is not installed: apt install chromium"
)

figure = pytest.importorskip("matplotlib.figure")


SMALL = {"model": "mlp", "mlp": MlpConfig(hidden=(16,))}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_data):
    base = tmp_path_factory.mktemp("reported")
    made = []
    for name, kind in (("one & <only>", "element"), ("learned", "concrete")):
        dropout = DropoutConfig(kind=kind, rate=0.3, input_rate=0.3)
        data = DataConfig(path=str(tiny_data), validation=30)
        config = Config(data=data, epochs=3, batch_size=20, dropout=dropout, **SMALL)
        made.append(train(config, name=name, runs=base))
    return made


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    noise = np.random.default_rng(0).integers(0, 256, (40, 8, 8)).astype(np.uint8)
    labels = np.arange(40) % 3
    other = write_idx(tmp_path_factory.mktemp("noise"), (noise, labels), (noise, labels))
    words = ["report", str(runs[0].folder), "--samples", "5", "--ood", str(other)]
    words += ["--coverage", "0.9", "--sets", "aps"]
    assert main(words) == 0
    return runs[0].folder / "report.html"


def test_the_page_holds_everything_itself_and_is_small(page):
    text = page.read_text()
    assert len(text) < 1_000_000
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
    told = ", ".join(f"{split} {ends[split]['loss']:.3f}" for split in ends)
    assert f"at the end {told}" in text
    told = ", ".join(f"{split} {ends[split]['accuracy']:.2%}" for split in ends)
    told = told.replace("%", "\N{NO-BREAK SPACE}%")
    assert f"at the end {told}" in text
    assert "and of other images (mean" in text


def test_it_says_how_it_was_made_and_what_its_scores_mean(page, runs):
    text = page.read_text()
    assert "77 test images; 5 samples of each network by MC dropout" in text
    found = appraise(runs[:1], runs[0].test_images(), 5)
    score, (large, below) = found.scores, verdicts.headline(found)
    assert f"<strong>{large}</strong> {below}" in text
    assert verdicts.mistakes(found) in text
    assert f'<th scope="row">NLL (nats per image)</th><td>{score["nll"]:.3g}</td>' in text
    brier = f"Brier score (summed over classes, 0 to 2)</th><td>{score['brier']:.3g}</td>"
    assert brier in text
    assert '<th scope="row">mutual information</th>' in text


def test_its_sets_are_those_of_evaluate_and_stand_below_each_image(page, runs):
    run, text = runs[0], html.unescape(page.read_text())
    made = sets_for(Witness([run], 5), 0.9, "aps", per_class=False)
    found = appraise([run], run.test_images(), 5)
    assert str(SetScores.of(made, found.probabilities, found.labels, found.classes)) in text
    held, unsure = made.sets(found.probabilities), found.probabilities.max(1).argmin()
    names = ", ".join(np.asarray(found.classes)[held[unsure]])
    assert re.search(rf"test image {unsure}: [^;]*; set: {names}\"", text)


def test_it_shows_what_dropout_does_and_what_the_data_are(page, runs):
    text = page.read_text()
    audit = audited(runs[0].built, runs[0].state, 16)
    assert verdicts.dropout(audit) in text
    assert f'<th scope="row">{audit.sites[0].name}</th><td>element</td><td>0.3</td>' in text
    counts = np.bincount(runs[0].dataset.train.labels)
    assert f'<th scope="row">0</th><td>{counts[0]}</td>' in text
    assert "No image is in two splits." in text


def test_images_that_are_in_two_splits_are_told(runs, tmp_path):
    (images, labels), test = blobs(90, 5), blobs(77, 6)
    test[0][:3] = images[:3]
    other = write_idx(tmp_path / "data", (images, labels), test)
    config = Config(data=DataConfig(path=str(other)), epochs=1, batch_size=20, **SMALL)
    run = train(config, name="leaking", runs=tmp_path)
    assert '<p class="warn">3 images of test are in train, too.</p>' in "".join(
        report._repeats(run.dataset)
    )


def test_only_what_was_measured_is_told(runs, tmp_path):
    folder = tmp_path / "unmeasured"
    shutil.copytree(runs[0].folder, folder)
    records = [record for record in runs[0].metrics if record["split"] != "test"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    assert main(["report", str(folder)]) == 0
    text = (folder / "report.html").read_text()
    assert re.search(r"at the end train [0-9.]+, validation [0-9.]+ \(", text)
    assert "dropout off, one pass" in text


def test_runs_of_different_data_are_not_compared_image_by_image(runs, tmp_path):
    other = write_idx(tmp_path / "data", blobs(90, 5), blobs(77, 6))
    stranger = train(
        Config(data=DataConfig(path=str(other)), epochs=1, batch_size=20, **SMALL), runs=tmp_path
    )
    out = tmp_path / "both.html"
    assert main(["report", str(runs[0].folder), str(stranger.folder), "--out", str(out)]) == 0
    assert "is not compared: other test images." in out.read_text()


def test_learning_curves_have_a_colour_for_each_split_and_a_line_for_each_run(runs):
    axes = figure.Figure().add_subplot()

    class Painted:
        def draw(self, name, caption, paint):
            if name == "curve-loss":
                paint(axes)
                self.caption = caption
            return ""

    plots = Painted()
    figures.loss_curve(runs, plots)
    lines = {line.get_label(): line for line in axes.get_lines()}
    looks = {(line.get_color(), line.get_linestyle()) for line in lines.values()}
    assert len(looks) == len(lines) == 6
    for split in ("train", "validation", "test"):
        pair = [lines[f"{run.folder.name}, {split}"] for run in runs]
        assert pair[0].get_color() == pair[1].get_color()
        assert pair[0].get_marker() == pair[1].get_marker()
    assert len({line.get_marker() for line in lines.values()}) == 3
    assert all(tick == round(tick) for tick in axes.get_xticks())
    for run in runs:
        assert f"{run.folder.name} at the end train" in plots.caption


def test_every_figure_is_well_formed_and_says_what_it_shows(page):
    figures = re.findall(r"<figure>(<svg.*?</svg>)", page.read_text(), re.S)
    assert len(figures) == 5
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


def test_several_runs_stand_side_by_side_with_their_difference(runs, tmp_path, capsys):
    out, figures = tmp_path / "both.html", tmp_path / "figures"
    words = ["report", *(str(run.folder) for run in runs)]
    assert main([*words, "--out", str(out), "--figures", str(figures)]) == 0
    text = out.read_text()
    assert "paired bootstrap" in text
    one, two = (appraise([run], run.test_images()) for run in runs)
    gain = two.right.astype(float) - one.right
    names = [run.folder.name for run in (runs[1], runs[0])]
    told = verdicts.difference(*names, gain.mean(), *bootstrap(gain))
    assert html.escape(told) in text
    assert "learned 0." in text
    assert (figures / "curve-loss.png").stat().st_size > 1000
    ElementTree.parse(figures / "curve-loss.svg")
    taken = tmp_path / "taken"
    taken.write_text("mine")
    words = words[:2]
    assert main([*words, "--out", str(out), "--figures", str(taken)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    (figures / "curve-loss.png").unlink()
    (figures / "curve-loss.png").mkdir()
    assert main([*words, "--out", str(out), "--figures", str(figures)]) == 1
    error = capsys.readouterr().err
    assert "cannot write" in error
    assert error.count("\n") == 1
    assert not list(figures.glob(".*"))


def test_what_cannot_be_reported_is_said(tmp_path, capsys, monkeypatch, runs):
    assert main(["report", str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err
    assert main(["report", str(runs[0].folder), "--out", "/nowhere/x.html"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert main(["report", str(runs[0].folder)]) == 2
    assert "pip install 'thinned[report]'" in capsys.readouterr().err


def opened(path, tmp_path, width=390):
    """The page as a browser has built it, what its console says, and the hosts it asks for."""
    net = tmp_path / "net.json"
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--enable-logging=stderr",
            f"--window-size={width},900",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--log-net-log={net}",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    asked = [event.get("params", {}) for event in json.loads(net.read_text())["events"]]
    # What the browser does for itself has no origin.
    hosts = {
        urlsplit(each["url"]).netloc
        for each in asked
        if each.get("initiator", "not an origin") != "not an origin" and "url" in each
    }
    return done.stdout, said, hosts - {""}


@needs_browser
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_it_without_an_error_or_a_request(page, runs, width, tmp_path):
    shown, said, hosts = opened(page, tmp_path, width)
    assert not said
    assert not hosts
    assert shown.count("<figure>") == 5
    ends = {record["split"]: record for record in runs[0].metrics}
    told = ", ".join(f"{split} {ends[split]['loss']:.3f}" for split in ends)
    assert f"at the end {told}" in shown
    assert verdicts.headline(appraise(runs[:1], runs[0].test_images(), 5))[0] in shown


@needs_browser
def test_axe_finds_nothing_that_is_hard_to_use(page, tmp_path):
    assert not violations(BROWSER, page, tmp_path, dark=True)


@needs_browser
def test_the_browser_would_see_an_error_and_a_request(tmp_path):
    page = tmp_path / "control.html"
    page.write_text(
        "<!doctype html><script>console.error('wrong')</script>"
        '<img src="https://example.org/picture.png">'
    )
    _, said, hosts = opened(page, tmp_path)
    assert any("wrong" in line for line in said)
    assert hosts == {"example.org"}


def test_of_many_classes_the_most_mistaken_have_a_place_in_the_matrix():
    classes = 2000
    predicted, labels = np.asarray([7, 7, 9, 1]), np.asarray([3, 3, 9, 2])
    nothing = np.zeros(4)
    found = Predictions(np.eye(classes)[predicted], nothing, nothing, nothing, 1)
    names = tuple(f"<{index}>" for index in range(classes))
    told = figures.confusion(Appraisal(found, labels, names), Plots(None), "run")
    assert "the 100 of 2,000 with most of them" in told
    assert "<li>&lt;3&gt; is taken for &lt;7&gt;: 2 of 2 (100\N{NO-BREAK SPACE}%)</li>" in told
    # Paper has no room for so many columns: there stands the list.
    assert "on which the list stands alone" in told
    assert 'class="scroll matrix many"' in told
    matrix = ElementTree.fromstring(re.search("<table>.*</table>", told)[0])
    rows = [row.find("th").text for row in matrix.iter("tr")][1:]
    assert len(rows) == 100
    assert rows[:4] == ["<3>", "<7>", "<1>", "<2>"]
    assert [cell.text for cell in matrix.iter("td") if cell.get("style")] == ["2", "1"]
