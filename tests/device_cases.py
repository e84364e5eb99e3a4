"""What must hold on several devices, for which a CPU passes; prints JSON.

Begun by `dropout/test_devices.py`, in a process of its own: devices are counted when JAX starts.
"""

import json
import sys
import traceback

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from test_kinds import KINDS, inputs

from thinned import audit_function
from thinned.dropout.bits import keep_mask

DEVICES = 4


def bits_are_drawn_where_they_are_used() -> None:
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    for bits in ("threefry", "fast"):
        for spec in (PartitionSpec("data"), PartitionSpec(None, "data")):

            def draw(key, bits=bits):
                return keep_mask(key, (16, 12), 0.3, bits)

            sharded = jax.jit(draw, out_shardings=NamedSharding(mesh, spec))
            compiled = sharded.lower(jax.random.key(0)).compile().as_text()
            assert "all-gather" not in compiled
            assert "all-reduce" not in compiled
            assert np.array_equal(sharded(jax.random.key(0)), draw(jax.random.key(0)))


def kinds_do_the_same() -> None:
    """Forward and backward."""
    x, rate, key = inputs(), jnp.float32(0.4), jax.random.key(1)
    mesh = jax.make_mesh((DEVICES,), ("batch",))
    spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
    assert len(spread.devices()) == DEVICES
    for kind, bits in (("element", "threefry"), *((kind, "fast") for kind in KINDS)):

        def both(value, kind=kind, bits=bits):
            y, back = jax.vjp(lambda v: KINDS[kind](v, rate, key, bits=bits), value)
            return y, back(jnp.ones_like(y))[0]

        for single, several in zip(jax.jit(both)(x), jax.jit(both)(spread), strict=True):
            np.testing.assert_allclose(single, several, rtol=1e-4, atol=1e-4, err_msg=kind)


def one_mask_for_all_is_found() -> None:
    mesh = Mesh(np.asarray(jax.devices()), ("b",))
    found = []
    for own in (True, False):

        def local(key, x, own=own):
            key = jax.random.fold_in(key, jax.lax.axis_index("b")) if own else key
            return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x / 0.5, 0)

        split = PartitionSpec("b")
        network = jax.shard_map(
            local, mesh=mesh, in_specs=(PartitionSpec(), split), out_specs=split
        )
        audit = audit_function(
            network,
            lambda step: jax.random.fold_in(jax.random.key(0), step),
            jnp.ones((4, 8)),
            draws=8,
        )
        found.append([check.question for check in audit.failures()])
    assert found == [[], ["devices have masks of their own"]]


CASES = (bits_are_drawn_where_they_are_used, kinds_do_the_same, one_mask_for_all_is_found)


def main() -> None:
    assert len(jax.devices()) == DEVICES
    wrong = {}
    for case in CASES:
        try:
            case()
        except Exception:
            wrong[case.__name__] = traceback.format_exc()
    json.dump(wrong, sys.stdout)


if __name__ == "__main__":
    main()
