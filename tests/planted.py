"""Faults of dropout, planted in small networks of every library, for the audit to find."""

from __future__ import annotations

import importlib.util
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from thinned.dropout.audit.front import audit
from thinned.dropout.audit.functions import audit_function

BATCH, RATE, WIDTH, DRAWS = 6, 0.4, 16, 8
INIT, ROOT = jax.random.split(jax.random.key(0))
RANDOM = np.random.default_rng(1)
IMAGES = jnp.asarray(RANDOM.standard_normal((BATCH, 4, 4, 3), np.float32))
TOKENS = jnp.asarray(RANDOM.integers(0, 11, (BATCH, 5)))
ROWS = jnp.asarray(RANDOM.standard_normal((BATCH, WIDTH), np.float32))

FAULTS = {
    "frozen key": "masks change from step to step",
    "constant key": "no key is a constant of the program",
    "key shared by sites": "sites differ from one another",
    "key shared by layers of a scan": "layers have masks of their own",
    "key shared by streams": "no key is shared with initialisation or between streams",
    "key of init": "no key is shared with initialisation or between streams",
    "stream not given": "each site draws from a stream that was given",
    "off in training": "dropout is on in training",
    "on in evaluation": "dropout is off in evaluation",
    "result discarded": "what was dropped reaches the outputs",
    "wrong scale": "the mean is kept",
    "one mask for the batch": "each example has a mask of its own",
    "other mask backward": "the backward pass drops what the forward pass dropped",
    "statistics disturbed": "sampling at prediction time leaves statistics alone",
}
"""Fault -> the question that has to fail; faults of devices have a test of their own."""

IN_SITE = ("constant key", "result discarded", "wrong scale", "one mask for the batch")
IN_SITE = (*IN_SITE, "other mask backward")


def bernoulli_dropout(x, key, rate, shape=None):
    mask = jax.random.bernoulli(key, 1 - rate, x.shape if shape is None else shape)
    return jnp.where(mask, x / (1 - rate), 0)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def other_backward(x, key, rate):
    return bernoulli_dropout(x, key, rate)


other_backward.defvjp(
    lambda x, key, rate: (other_backward(x, key, rate), key),
    lambda rate, key, g: (bernoulli_dropout(g, jax.random.fold_in(key, 1), rate), None),
)


def planted(x, key, rate, fault):
    """Dropout as somebody may write it, with one fault or none."""
    if fault == "constant key":
        return bernoulli_dropout(x, jax.random.key(5), rate)
    if fault == "result discarded":
        bernoulli_dropout(x, key, rate)
        return x
    if fault == "wrong scale":
        return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x, 0)
    if fault == "one mask for the batch":
        return bernoulli_dropout(x, key, rate, x.shape[1:])
    if fault == "other mask backward":
        return other_backward(x, key, rate)
    return bernoulli_dropout(x, key, rate)


# Linen.


class Drop(nn.Module):
    rate: float
    fault: str | None = None

    @nn.compact
    def __call__(self, x, off, rng=None):
        if self.fault in IN_SITE and not off:
            return planted(x, self.make_rng("dropout"), self.rate, self.fault)
        off = {"off in training": True, "on in evaluation": False}.get(self.fault, off)
        return nn.Dropout(self.rate, name="inner")(x, deterministic=off, rng=rng)


class Block(nn.Module):
    """Attention and two dense layers, each with dropout."""

    fault: str | None = None

    @nn.compact
    def __call__(self, x, off):
        y = nn.MultiHeadDotProductAttention(2, dropout_rate=0.3, deterministic=off)(
            nn.LayerNorm()(x)
        )
        shared = self.fault == "key shared by sites" and not off
        key = self.make_rng("dropout") if shared else None
        x = x + Drop(RATE, name="one")(y, off, key)
        y = nn.Dense(WIDTH)(nn.gelu(nn.Dense(WIDTH)(nn.LayerNorm()(x))))
        return x + Drop(RATE, self.fault, name="two")(y, off, key)


class ViT(nn.Module):
    fault: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(WIDTH, (2, 2), (2, 2))(x).reshape(len(x), -1, WIDTH)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        x = nn.Dropout(0.1, deterministic=not train)(x)
        return nn.Dense(3)(Block(self.fault)(x, not train).mean(1))


class Layer(nn.Module):
    fault: str | None = None

    @nn.compact
    def __call__(self, x, off):
        return nn.remat(Block, static_argnums=2)(self.fault)(x, off), None


class Bert(nn.Module):
    """Token and position embeddings, layers in a scan and rematerialised."""

    fault: str | None = None

    @nn.compact
    def __call__(self, tokens, train=False):
        x = nn.Embed(11, WIDTH)(tokens) * WIDTH**0.5
        x = nn.Dropout(0.1, deterministic=not train)(x)
        split = {"params": True, "dropout": self.fault != "key shared by layers of a scan"}
        layers = nn.scan(Layer, {"params": 0}, split_rngs=split, length=2, in_axes=nn.broadcast)
        x, _ = layers(self.fault)(x, not train)
        return nn.Dense(3)(x[:, 0])


class Wrn(nn.Module):
    fault: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        running = not train and self.fault != "statistics disturbed"
        key = self.make_rng("dropout") if self.fault == "key shared by sites" and train else None
        x = nn.Conv(8, (3, 3))(x)
        for number in range(2):
            y = nn.relu(nn.BatchNorm(use_running_average=running)(x))
            y = nn.Conv(8, (3, 3))(y)
            fault = self.fault if number else None
            y = Drop(RATE, fault)(nn.relu(y), not train, key)
            x = x + nn.Conv(8, (3, 3))(y)
        return nn.Dense(3)(x.mean((1, 2)))


@cache
def _variables(kind):
    data = TOKENS if kind is Bert else IMAGES
    return jax.jit(lambda: kind().init(INIT, data))()


def fresh(step):
    return jax.random.fold_in(ROOT, step)


def linen(kind, fault):
    data = TOKENS if kind is Bert else IMAGES
    options = {"rngs": lambda step: {"dropout": fresh(step)}}
    if fault == "frozen key":
        options["rngs"] = lambda step: {"dropout": ROOT}
    elif fault == "key of init":
        options["rngs"] = lambda step: {"dropout": fresh(step) if step else INIT}
    elif fault == "key shared by streams":
        options["rngs"] = lambda step: {"dropout": fresh(step), "noise": fresh(step)}
    elif fault == "stream not given":
        options["rngs"] = lambda step: {"params": fresh(step)}
    return audit(
        kind(fault), data, variables=_variables(kind), init_rngs=INIT, draws=DRAWS, **options
    )


# NNX.


class NnxDrop(nnx.Module):
    """Dropout of somebody's own, with a key of the module's stream."""

    def __init__(self, fault, rngs):
        self.rngs, self.fault = rngs.dropout.fork(), fault

    def __call__(self, x):
        return planted(x, self.rngs(), RATE, self.fault)


class NnxTransformer(nnx.Module):
    def __init__(self, fault=None, *, rngs):
        self.fault = fault
        self.embed = nnx.Embed(11, WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            2, WIDTH, dropout_rate=0.3, broadcast_dropout=False, decode=False, rngs=rngs
        )
        self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
        self.dense = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.one = nnx.Dropout(RATE, rngs=rngs)
        self.two = NnxDrop(fault, rngs) if fault in IN_SITE else nnx.Dropout(RATE, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 3, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        key = self.one.rngs() if self.fault == "key shared by sites" else None
        x = self.one(x + self.attention(x), rngs=key)
        options = {"use_running_average": False} if self.fault == "statistics disturbed" else {}
        x = nnx.gelu(self.dense(self.norm(x, **options)))
        off = False if self.fault == "on in evaluation" else None
        if not isinstance(self.two, nnx.Dropout):
            x = x if self.one.deterministic else self.two(x)
        else:
            x = self.two(x, deterministic=off, rngs=key)
        return self.head(x.mean(1))


def of_nnx(fault):
    rngs = nnx.Rngs(params=0, dropout=0 if fault == "key of init" else 1)
    model = NnxTransformer(fault, rngs=rngs)
    model.train()
    if fault == "off in training":
        model.two.deterministic = True
    return audit(model, TOKENS, init_rngs=rngs, draws=DRAWS, carried=fault != "frozen key")


# Equinox.


def of_equinox(fault):
    import equinox as eqx

    class Mlp(eqx.Module):
        first: eqx.nn.Linear
        second: eqx.nn.Linear
        one: eqx.nn.Dropout
        two: eqx.nn.Dropout

        def __init__(self, key):
            keys = jax.random.split(key)
            self.first = eqx.nn.Linear(WIDTH, WIDTH, key=keys[0])
            self.second = eqx.nn.Linear(WIDTH, 3, key=keys[1])
            self.one, self.two = eqx.nn.Dropout(RATE), eqx.nn.Dropout(RATE)

        def __call__(self, x, *, key):
            a, b = jax.random.split(key)
            b = a if fault == "key shared by sites" else b
            x = jax.nn.relu(self.first(self.one(x, key=a)))
            if fault in IN_SITE and not self.one.inference:
                return self.second(planted(x, b, RATE, fault))
            off = False if fault == "on in evaluation" else None
            return self.second(self.two(x, key=b, inference=off))

    model, options = Mlp(INIT), {"rngs": fresh}
    if fault == "frozen key":
        options["rngs"] = lambda step: ROOT
    elif fault == "key of init":
        options["rngs"] = lambda step: fresh(step) if step else INIT
    elif fault == "off in training":
        model = eqx.tree_at(lambda m: m.two, model, eqx.nn.Dropout(RATE, inference=True))
    if fault == "one mask for the batch":
        options["call"] = lambda m, x, key: jax.vmap(lambda row: m(row, key=key))(x)
    return audit(model, ROWS, init_rngs=INIT, draws=DRAWS, **options)


# Haiku.


def of_haiku(fault):
    import haiku as hk

    def network(x, is_training):
        keys = [hk.next_rng_key(), hk.next_rng_key()] if is_training else [None, None]
        if fault == "on in evaluation":
            keys[1] = hk.next_rng_key()
        if fault == "key shared by sites":
            keys[1] = keys[0]
        x = hk.Linear(WIDTH)(hk.dropout(keys[0], RATE, x) if is_training else x)
        x = jax.nn.relu(x)
        if fault in IN_SITE and is_training:
            x = planted(x, keys[1], RATE, fault)
        elif keys[1] is not None:
            x = hk.dropout(keys[1], RATE, x)
        return hk.Linear(3)(x)

    options = {"rngs": fresh}
    if fault == "frozen key":
        options["rngs"] = lambda step: ROOT
    elif fault == "key of init":
        options["rngs"] = lambda step: fresh(step) if step else INIT
    return audit(hk.transform(network), ROWS, init_rngs=INIT, draws=DRAWS, **options)


# No library.


def of_function(fault):
    weights = jax.random.normal(INIT, (2, WIDTH, WIDTH)) / 4

    def network(key, weights, x):
        def layer(x, both):
            weight, key = both
            x = jnp.tanh(bernoulli_dropout(x, key, RATE) @ weight)
            own = key if fault == "key shared by sites" else jax.random.fold_in(key, 1)
            return planted(x, own, RATE, fault) @ weight, None

        keys = jax.random.split(key)
        if fault == "key shared by layers of a scan":
            keys = jnp.stack([key, key])
        return jax.lax.scan(jax.checkpoint(layer), x, (weights, keys))[0]

    def evaluation(key, weights, x):
        x, _ = jax.lax.scan(lambda x, weight: (jnp.tanh(x @ weight) @ weight, None), x, weights)
        return bernoulli_dropout(x, key, RATE) if fault == "on in evaluation" else x

    keys = {"frozen key": lambda step: ROOT}.get(fault, fresh)
    if fault == "key of init":
        keys = lambda step: fresh(step) if step else INIT  # noqa: E731
    return audit_function(
        network, keys, weights, ROWS, evaluation=evaluation, init_keys=INIT, draws=DRAWS
    )


NOT_OF = {
    "ViT (Linen)": ("key shared by layers of a scan", "statistics disturbed"),
    "BERT (Linen, scan, remat)": ("statistics disturbed",),
    "WRN (Linen)": ("key shared by layers of a scan",),
    "transformer (NNX)": (
        "key shared by layers of a scan",
        "key shared by streams",
        "stream not given",
    ),
}
"""Network -> faults that it cannot have."""
_LOOPLESS = ("key shared by layers of a scan",)
_FUNCTIONAL = ("key shared by streams", "stream not given", "statistics disturbed")
NOT_OF["MLP (Equinox)"] = (*_LOOPLESS, *_FUNCTIONAL)
NOT_OF["MLP (Haiku)"] = (*_LOOPLESS, *_FUNCTIONAL, "off in training")
NOT_OF["plain function"] = (*_FUNCTIONAL, "off in training")

NETWORKS = {
    "ViT (Linen)": partial(linen, ViT),
    "BERT (Linen, scan, remat)": partial(linen, Bert),
    "WRN (Linen)": partial(linen, Wrn),
    "transformer (NNX)": of_nnx,
    "MLP (Equinox)": of_equinox,
    "MLP (Haiku)": of_haiku,
    "plain function": of_function,
}
"""Network -> from a fault, or None, to its audit."""

NEEDS = {"MLP (Equinox)": "equinox", "MLP (Haiku)": "haiku"}


def is_installed(network):
    return network not in NEEDS or importlib.util.find_spec(NEEDS[network]) is not None
