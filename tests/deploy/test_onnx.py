"""ONNX models: they answer as the run does, or one line says why there is none."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import blobs
from jax.extend.core import Primitive
from scipy import special

from thinned.cli.main import main
from thinned.core.config import Config, DataConfig
from thinned.core.errors import RequestError
from thinned.deploy.onnx import ONNX, onnx_logits, onnx_of
from thinned.deploy.programs import Programs
from thinned.runs import predictions as trust
from thinned.runs.train import train


def test_a_missing_package_is_named_before_any_work(monkeypatch, tmp_path, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "jax2onnx" else found(name)
    )
    assert main(["export", str(tmp_path / "none"), str(tmp_path / "out"), "--onnx"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--onnx needs jax2onnx: install it with pip install 'thinned[onnx]'" in error


def test_the_onnx_model_answers_as_the_run_does(tiny_data, tmp_path, capsys):
    pytest.importorskip("jax2onnx")
    pytest.importorskip("onnxruntime")
    data = DataConfig(path=str(tiny_data))
    wanted = Config(data=data, model="cnn", epochs=1, batch_size=20)
    run = train(wanted, runs=tmp_path, name="run")
    capsys.readouterr()
    words = ["export", str(run.folder), str(tmp_path / "out"), "--samples", "0", "--onnx"]
    assert main(words) == 0
    assert "plain pass by ONNX Runtime: probabilities differ by at most" in capsys.readouterr().out
    assert ONNX in (tmp_path / "out" / "README.md").read_text()
    own = trust.predictions_of([run], blobs(113, 5)[0][..., None]).probabilities
    # Any number of images.
    for count in (1, 113):
        logits = onnx_logits(tmp_path / "out" / ONNX, blobs(113, 5)[0][:count, ..., None])
        assert logits.shape == (1, count, 3)
        np.testing.assert_allclose(special.softmax(logits[0], 1), own[:count], atol=1e-6)


def test_an_operator_that_onnx_has_not_is_named():
    pytest.importorskip("jax2onnx")

    unheard = Primitive("unheard_of")
    unheard.def_abstract_eval(lambda images: images)

    def plain(weights, images):
        return unheard.bind(images.astype(jnp.float32))

    programs = Programs({}, plain, None, np.zeros((1, 2), np.uint32), 0)
    (batch,) = jax.export.symbolic_shape("batch")
    with pytest.raises(RequestError, match="converted to ONNX: operator unheard_of$"):
        onnx_of(programs, jax.ShapeDtypeStruct((batch, 2, 2, 1), np.uint8))
