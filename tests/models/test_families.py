"""Networks of named stages: their sites, scopes and statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import SMALL, images_for, made, random_weights, side_of

from thinned.core.errors import RequestError
from thinned.dropout.sites import DropoutSpec, dropout_sites
from thinned.engine.build import size_of
from thinned.models.catalog import SIDES, STAGED, has_branches
from thinned.models.weights.load import OWN, fitted, shapes_of

FAMILIES = [name for name in SMALL if name != "resnet-50"]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # Published: timm's results, torchvision's and Zagoruyko's tables. Those between two others
        # of a family wait for the night.
        ("efficientnet-lite0", 4_652_008),
        pytest.param("efficientnet-lite1", 5_416_680, marks=pytest.mark.long),
        pytest.param("efficientnet-lite2", 6_092_072, marks=pytest.mark.long),
        ("mobilenet-v2", 3_504_872),
        ("resnet-18", 11_689_512),
        pytest.param("resnet-34", 21_797_672, marks=pytest.mark.long),
        ("resnet-50", 25_557_032),
        ("vit-tiny-16", 5_717_416),
        pytest.param("vit-small-16", 22_050_664, marks=pytest.mark.long),
        ("vit-base-16", 86_567_656),
        ("wide-resnet-28-10", 36_479_194),
    ],
)
def test_sizes_are_as_published(name, parameters):
    classes, side = (1000, SIDES[name]) if name in STAGED else (10, 32)
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    variables = jax.eval_shape(made(name, classes=classes).init, jax.random.key(0), images)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == parameters


@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_lie_under_their_stages(name):
    model = made(name)
    shapes = shapes_of(model, images_for(name).shape[1:])
    stages = {collection: set() for collection in ("params", "batch_stats")}
    for path in shapes:
        collection, stage, _ = path.split("/", 2)
        stages[collection].add(stage)
    assert stages["params"] == set(model.stage_names)
    assert stages["batch_stats"] <= set(model.stage_names)
    assert shapes["params/head/kernel"][1] == 10
    assert has_branches(name)


DISTINCT = ("element", "channel", "path", "connect")
"""Kinds with places of their own; the others lie where one of these does."""
KINDS = ("element", "channel", "block", "path", "gaussian", "alpha", "concrete", "connect")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=() if kind in DISTINCT else pytest.mark.long)
        for name in FAMILIES
        for kind in (KINDS if "resnet" in name else ("channel", "path"))
    ],
)
def test_sites_by_kind(name, kind):
    model = made(name, DropoutSpec(kind))
    sites = dropout_sites(model, images_for(name), train=True)
    last = "head" if kind == "connect" else "Dropout_0"
    if name.startswith("vit") and kind in ("channel", "block"):
        assert not sites
    elif name.startswith("wide") and kind not in ("path", "concrete", "connect"):
        assert list(sites) == [f"blocks_{index}/between" for index in range(6)]
        assert {site.rate for site in sites.values()} == {0.3}
    elif kind == "path":
        *paths, head = sites
        assert paths
        assert head == last
        assert sites[head].kind == "element"
        rates = [sites[path].rate for path in paths]
        assert rates == sorted(rates)
        assert 0 < rates[0] < rates[-1] < 0.21
        assert [model.stage_of(path) for path in paths] == sorted(
            map(model.stage_of, paths), key=model.stage_names.index
        )
    else:
        assert list(sites) == [last]
        assert sites[last].rate == 0.2
        before = kind in ("channel", "block")
        assert model.stage_of(last) == model.stage_names[-2 if before else -1]
        assert len(sites[last].shape) == (4 if before else 2)


@pytest.mark.parametrize("kind", ["element", "path"])
def test_a_rate_that_is_named_holds_at_every_site(kind):
    model = made("resnet-18", DropoutSpec(kind, rate=0.4))
    sites = dropout_sites(model, images_for("resnet-18"), train=True)
    assert {site.rate for site in sites.values()} == {0.4}


@pytest.mark.parametrize("frozen", [False, True])
def test_training_drops_and_frozen_statistics_stay(frozen):
    name = "wide-resnet-10-1"
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    model = made(name, DropoutSpec("path"), frozen_statistics=frozen)
    variables = fitted(random_weights(model, name, OWN), name, model, (8, 8, 3)).variables

    @jax.jit
    def trained(key):
        options = {"rngs": {"dropout": jax.random.key(key)}, "mutable": ["batch_stats"]}
        return model.apply(variables, images, train=True, **options)

    first, statistics = trained(1)
    second, _ = trained(2)
    assert not np.array_equal(first, second)
    before, after = variables["batch_stats"], statistics["batch_stats"]
    same = jax.tree.leaves(jax.tree.map(np.array_equal, before, after))
    assert all(same) if frozen else not any(same)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wide-resnet-17-4", "is 6 n [+] 4"),
        ("wide-resnet-4-4", "no such network"),
        ("wide-resnet-16-0", "did you mean wide-resnet-16-4"),
        ("resnet-19", "did you mean resnet-18"),
    ],
)
def test_names_of_no_network_are_refused(name, message):
    with pytest.raises(RequestError, match=message):
        made(name)


def test_images_that_are_too_small_or_of_no_whole_patches_are_refused():
    with pytest.raises(RequestError, match="at least 32 x 32"):
        size_of("efficientnet-lite0", (28, 28, 3), 10)
    with pytest.raises(RequestError, match="multiples of 16"):
        size_of("vit-tiny-16", (40, 48, 3), 10)
    assert side_of("vit-tiny-16") % 16 == 0
