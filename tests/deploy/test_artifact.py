"""Artifacts: they answer as their runs do, without these, and stand alone."""

import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import yaml
from conftest import blobs
from jax import export as jax_export
from PIL import Image
from scipy import special

from thinned.cli.main import main
from thinned.core.config import Config, DataConfig, DropoutConfig, MlpConfig
from thinned.core.errors import RequestError, ThinnedError
from thinned.deploy.artifact import Artifact
from thinned.deploy.export import export, without_folders
from thinned.deploy.promises import Asked, Way
from thinned.deploy.server import Model
from thinned.runs import predictions as trust
from thinned.runs.train import train

ASKED = Asked(samples=7, coverage=0.8, risk=0.4, ood_fpr=0.1)
PROMISED = ("--coverage", "0.8", "--risk", "0.4", "--ood-fpr", "0.1")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("deploy")


@pytest.fixture(scope="module")
def runs(base, tiny_data):
    """Heads that are affine and that are not."""
    data = DataConfig(path=str(tiny_data), validation=60)
    common = {"data": data, "epochs": 2, "batch_size": 20}
    mlp = Config(model="mlp", mlp=MlpConfig((8,)), **common)
    cnn = Config(model="cnn", seed=1, **common)
    return [train(mlp, runs=base, name="mlp"), train(cnn, runs=base, name="cnn")]


@pytest.fixture(scope="module")
def folder(base, runs):
    export(runs, base / "both", ASKED, say=lambda line: None)
    return base / "both"


@pytest.fixture(scope="module")
def images():
    return blobs(13, 5)[0][..., None]


def test_an_artifact_answers_as_its_runs_do(runs, folder, images):
    artifact = Artifact.open(folder)
    for samples in (0, 7):
        own = trust.predictions_of(runs, images, samples)
        there = artifact.predictions(images, artifact.way(samples, False))
        for name in ("probabilities", "deviation", "mutual_information", "energy"):
            found, wanted = getattr(there, name), getattr(own, name)
            np.testing.assert_allclose(found, wanted, atol=1e-5 if name == "energy" else 1e-6)
    # Any number of images, whatever stands beside them.
    one = artifact.predictions(images[4:5], artifact.way(7, False))
    np.testing.assert_allclose(one.probabilities[0], own.probabilities[4], atol=1e-6)


def test_once_it_is_warm_nothing_is_compiled_for_any_number_of_images(folder, caplog):
    artifact = Artifact.open(folder)
    model = Model(artifact, artifact.best_way(7))
    image = np.zeros(artifact.image_shape, np.uint8)

    def compiled():
        return [each for each in caplog.messages if each.startswith("Compiling")]

    with jax.log_compiles():
        model.warm_up()
        assert len(compiled()) >= len(model.sizes)
        caplog.clear()
        for count in (1, 2, 4, 7, 17, 64):
            assert len(model([image] * count)) == count
        assert not compiled()


def test_both_programs_are_lowered_for_cpu_and_cuda(folder):
    for name in ("plain.jax", "sampled.jax"):
        program = jax_export.deserialize(bytearray((folder / name).read_bytes()))
        assert program.platforms == ("cpu", "cuda")


def test_predicting_files_gives_the_rows_of_the_runs(runs, folder, images, tmp_path, capsys):
    for index, image in enumerate(images):
        Image.fromarray(image[..., 0]).resize((20, 16)).save(tmp_path / f"{index:02}.png")
    folders = [str(run.folder) for run in runs]
    assert main(["calibrate", *folders, "--samples", "7"]) == 0
    rows = []
    for given in (folders, [str(folder)]):
        capsys.readouterr()
        options = ["--samples", "7", "--calibrated", *PROMISED, "--format", "json"]
        assert main(["predict", *given, str(tmp_path), *options]) == 0
        out, promises = capsys.readouterr()
        rows.append(([json.loads(line) for line in out.splitlines()], promises))
    (own, promised), (there, kept) = rows
    assert kept == promised
    assert len(own) == len(images)
    for one, two in zip(own, there, strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            close = 1e-5 if name == "energy" else 1e-6
            number = isinstance(value, float)
            assert two[name] == (pytest.approx(value, abs=close) if number else value)


ALONE = """
import sys

class Barrier:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("thinned", "flax", "optax", "orbax", "PIL"):
            raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, Barrier())
"""


def test_the_card_is_a_program_that_runs_without_thinned_and_flax(runs, folder, images):
    text = (folder / "README.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", text, re.S)
    np.save(folder / "images.npy", images)
    zeros = re.search(r"np\.zeros\(.*?\), np\.uint8\)", program)[0]
    program = ALONE + program.replace(zeros, 'np.load("images.npy")')
    program += '\nnp.savez("found.npz", plain=probabilities, mean=mean, spread=spread)\n'
    # Not the settings of a run, either.
    environment = {**os.environ, "JAX_ENABLE_X64": "1", "JAX_THREEFRY_PARTITIONABLE": "0"}
    command = [sys.executable, "-W", "ignore", "-c", program]
    try:
        subprocess.run(command, cwd=folder, env=environment, check=True)
        found = np.load(folder / "found.npz")
    finally:
        for name in ("images.npy", "found.npz"):
            (folder / name).unlink(missing_ok=True)
    for samples, name in ((0, "plain"), (7, "mean")):
        own = trust.predictions_of(runs, images, samples).probabilities
        np.testing.assert_allclose(found[name], own, atol=2e-6)
    assert 0.001 < found["spread"].max() < 0.5


def test_the_card_says_in_the_hubs_form_what_the_artifact_is_worth(runs, folder):
    text = (folder / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["pipeline_tag"] == "image-classification"
    metrics = front["model-index"][0]["results"][0]["metrics"]
    about = json.loads((folder / "model.json").read_text())
    probabilities = trust.predictions_of(runs, runs[0].dataset.test.images, 7).probabilities
    right = float(np.mean(probabilities.argmax(1) == runs[0].dataset.test.labels))
    assert metrics[0] == {"type": "accuracy", "value": pytest.approx(right, abs=1e-5)}
    last = about["scores"][-1]
    assert f"{last['accuracy']:.2%} ({last['accuracy_low']:.2%} to" in text
    assert about["data"]["train_images"] == 140


def test_ways_keep_their_numbers_through_json(folder):
    way = Artifact.open(folder).way(7, True)
    again = Way.from_values(json.loads(json.dumps(way.as_values(), allow_nan=False)))
    assert again.selection == way.selection
    assert again.known == way.known
    np.testing.assert_array_equal(again.sets.thresholds, way.sets.thresholds)
    none = way._replace(selection=way.selection._replace(threshold=-np.inf))
    text = json.dumps(none.as_values(), allow_nan=False)
    assert Way.from_values(json.loads(text)).selection.threshold == -np.inf


def refused(capsys, *words, code=2):
    capsys.readouterr()
    assert main([str(word) for word in words]) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def test_what_an_artifact_was_not_exported_for_is_refused_in_one_line(
    folder, base, capsys, tmp_path
):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    given = ("predict", folder, tmp_path / "a.png")
    assert "--samples 0 or --samples 7" in refused(capsys, *given, "--samples", "8")
    assert "exported for 0.8" in refused(capsys, *given, "--coverage", "0.9")
    assert "lac" in refused(capsys, *given, "--coverage", "0.8", "--sets", "aps")
    assert "exists already" in refused(capsys, "export", base / "mlp", folder)
    ood = ("--ood-fpr", "0.1", "--ood-score", "knn")
    assert "energy alone" in refused(capsys, *given, *ood)
    assert "no run folder" in refused(capsys, "export", tmp_path, tmp_path / "out")
    assert "--risk" in refused(capsys, "export", base / "mlp", tmp_path / "out", "--risk", "1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png"]


def test_a_damaged_artifact_is_refused(folder, tmp_path):
    for name, damage in {
        "weights.safetensors": lambda content: content[:-1] + b"\0\0",
        "sampled.jax": lambda content: content[: len(content) // 2],
        "model.json": lambda content: content.replace(b'"ways"', b'"was"'),
    }.items():
        shutil.copytree(folder, tmp_path / name)
        path = tmp_path / name / name
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(RequestError, match="damaged"):
            Artifact.open(tmp_path / name)


def test_an_artifact_that_differs_from_its_run_is_not_kept(runs, tmp_path):
    lines = []
    with pytest.raises(ThinnedError, match="differ from the run's by .*--bound"):
        export(runs[:1], tmp_path / "out", Asked(samples=0), bound=-1.0, say=lines.append)
    assert not list(tmp_path.iterdir())
    # Nor is it said to lack the validation images that it has.
    assert [line.partition(":")[0] for line in lines] == ["plain pass"]


def test_a_run_without_dropout_or_validation_has_a_plain_pass_and_no_promises(
    tiny_data, tmp_path, images
):
    data = DataConfig(path=str(tiny_data))
    wanted = Config(
        data=data,
        model="mlp",
        mlp=MlpConfig((8,)),
        dropout=DropoutConfig(rate=0.0, input_rate=0.0),
        epochs=1,
        batch_size=20,
    )
    run = train(wanted, runs=tmp_path, name="sure")
    with pytest.raises(RequestError, match="without dropout.*--samples 0"):
        export([run], tmp_path / "no")
    lines = []
    export([run], tmp_path / "yes", Asked(samples=0), say=lines.append)
    assert lines[0].startswith("note: no validation images")
    artifact = Artifact.open(tmp_path / "yes")
    assert artifact.ways == (Way(0),)
    logits = artifact.logits(images, 0)[0, 0]
    own = trust.predictions_of([run], images).probabilities
    np.testing.assert_allclose(special.softmax(logits, 1), own, atol=1e-6)
    with pytest.raises(RequestError, match="no temperature"):
        artifact.way(0, True)


def test_no_path_of_this_machine_leaves_it():
    config = {"data": {"path": "/home/me/photos", "size": 8}, "pretrained": "/home/me/weights.pth"}
    shared = without_folders(config)
    assert shared == {"data": {"path": "photos", "size": 8}, "pretrained": "weights.pth"}
    named = {"data": {"path": None}, "pretrained": "hf:timm/name"}
    assert without_folders(named) == named
