"""Logits against PyTorch's, which scripts/weights_parity.py wrote; real weights."""

import itertools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from random_weights import SMALL, images_for, made, random_weights, side_of

from thinned.models.weights.load import OWN, fitted, has_imagenet, read_weights
from thinned.models.weights.tables import tables

EXPECTED = json.loads((Path(__file__).parent / "parity" / "logits.json").read_text())
REAL = Path(__file__).parents[3] / "shared" / "data" / "efficientnet_lite0"


@pytest.mark.parametrize("name", SMALL)
def test_logits_are_pytorchs_and_any_stage_goes_on_from_what_enters_it(name):
    model, images, side = made(name), images_for(name), side_of(name)
    writer = next(iter(tables(model)), OWN)
    weights = random_weights(model, name, writer)
    found = fitted(weights, name, model, (side, side, 3))
    assert found.head
    assert found.writer == writer
    expected = np.asarray(EXPECTED[name])
    bound = 1e-4 * np.abs(expected).max()
    # The images must show in the logits far more than the tolerance.
    assert np.abs(expected[0] - expected[1]).max() > 100 * bound

    last = len(model.stage_names) - 1
    one_by_one = traced_in_parts(model, range(1, last + 1)).trace(found.variables, images)
    found_logits = one_by_one.lower().compile()(found.variables, images)
    np.testing.assert_allclose(found_logits, expected, rtol=0, atol=bound)
    # Parts, of one stage or of more, must do step by step what the whole does.
    for cuts in ((), (last // 2, last)):
        other = traced_in_parts(model, cuts).trace(found.variables, images)
        assert steps_of(other) == steps_of(one_by_one)


def traced_in_parts(model, cuts):
    """A network as a function of variables and images that ends at some stages and goes on."""

    @jax.jit
    def parts(variables, x):
        for begin, stop in itertools.pairwise((0, *cuts, None)):
            assert begin < len(model.stage_names) - 1 or x.ndim == 2
            x = model.apply(variables, x, begin=begin, stop=stop)
        return x

    return parts


def steps_of(traced):
    return [(step.primitive, *map(str, step.outvars[0].aval.shape)) for step in traced.jaxpr.eqns]


@pytest.mark.skipif(not REAL.exists(), reason="the weights are not on this machine")
def test_the_real_weights_know_what_a_photo_shows():
    pytest.importorskip("safetensors")
    name, model = "efficientnet-lite0", made("efficientnet-lite0", classes=1000)
    weights = read_weights(str(REAL / "efficientnet-lite0.safetensors"))
    assert weights.licence == "Apache-2.0"
    found = fitted(weights, name, model, (64, 64, 3))
    assert found.head
    assert found.writer == "Melas-Kyriazi's"
    if has_imagenet(name):
        packaged = fitted(read_weights("imagenet"), name, model, (64, 64, 3))
        assert jax.tree.all(jax.tree.map(np.array_equal, packaged.variables, found.variables))
