"""Tensors from PyTorch's files, of both formats, without unpickling.

A pickle is a program, and Python's own machine for it calls whatever the file names. The machine
here knows the few instructions that tensors by name are written with, calls nothing, and refuses
every name but those of ordered dictionaries, tensors and storages, when the name is read.

Formats: before PyTorch 1.6 a few pickles, then the raw storages ("legacy" in its source); since
then a ZIP file of one pickle and a file for each storage.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import jax.numpy as jnp
import numpy as np

from thinned.core.errors import RequestError, told

MOST_INSTRUCTIONS = 1_000_000
"""Of one pickle; a tensor takes about thirty."""

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MOST_AXES = 16
_WRAPPERS = ("state_dict", "model", "model_state_dict")

_DTYPES: Mapping[str, np.dtype[Any]] = {
    "Float": np.dtype("<f4"),
    "Double": np.dtype("<f8"),
    "Half": np.dtype("<f2"),
    "BFloat16": np.dtype(jnp.bfloat16),
    "Long": np.dtype("<i8"),
    "Int": np.dtype("<i4"),
    "Short": np.dtype("<i2"),
    "Char": np.dtype("i1"),
    "Byte": np.dtype("u1"),
    "Bool": np.dtype("?"),
}
_DICTIONARY = "collections OrderedDict"
_TENSOR = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"
_STORAGES = {f"torch {name}Storage": dtype for name, dtype in _DTYPES.items()}
_KNOWN = {_DICTIONARY, _TENSOR, _PARAMETER, *_STORAGES}


class _Refused(Exception):
    """What is wrong with a file, in words."""


@dataclass(frozen=True)
class _Name:
    """A name in a module of Python's; never looked up."""

    text: str


@dataclass(frozen=True)
class _Storage:
    """Numbers that are kept under `key`, for tensors to be parts of."""

    dtype: np.dtype[Any]
    key: str
    size: int


@dataclass(frozen=True)
class _Tensor:
    """A part of a storage; offset and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_MARK = object()


@dataclass
class _Machine:
    """Reads one pickle: values on a stack, those to be named again in a memo; notes storages."""

    stack: list[Any] = field(default_factory=list[Any])
    memo: dict[int, Any] = field(default_factory=dict[int, Any])
    storages: dict[str, _Storage] = field(default_factory=dict[str, _Storage])

    def run(self, stream: io.BytesIO) -> Any:
        """The value of the pickle that begins where `stream` is, which ends behind it."""
        for step, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if step >= MOST_INSTRUCTIONS:
                raise _Refused(f"has more than {MOST_INSTRUCTIONS:,} instructions")
            if opcode.name == "STOP":
                return self.stack.pop()
            self._step(opcode.name, argument)
        raise _Refused("has no end")

    def _step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _TUPLES:
            self._gather(_TUPLES[name])
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        elif name not in ("PROTO", "FRAME"):
            raise _Refused(f"has the instruction {name}, which tensors by name do not need")

    def _gather(self, count: int) -> None:
        if count > len(self.stack):
            raise _Refused("takes a value that is not there")
        self.stack[len(self.stack) - count :] = [tuple(self.stack[len(self.stack) - count :])]

    def since_mark(self) -> list[Any]:
        """The values since the last mark, taken off the stack with it."""
        values: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def name(self, argument: str) -> None:
        """A name, which must be known."""
        if argument not in _KNOWN:
            raise _Refused(f"names {told(argument.replace(' ', '.', 1))}, which is no tensor")
        self.stack.append(_Name(argument))

    def name_of_two(self, _: Any) -> None:
        """A name whose module and rest are on the stack."""
        rest, module = self.stack.pop(), self.stack.pop()
        self.name(f"{module} {rest}" if isinstance(module, str) and isinstance(rest, str) else "?")

    def remember(self, place: int | None) -> None:
        """Keep the last value, to be named again."""
        self.memo[len(self.memo) if place is None else place] = self.stack[-1]

    def again(self, place: int) -> None:
        """A value that was kept."""
        self.stack.append(self.memo[place])

    def storage(self, _: Any) -> None:
        """A storage, from the values that stand for it."""
        storage = _storage_of(self.stack.pop())
        self.storages[storage.key] = storage
        self.stack.append(storage)

    def call(self, _: Any) -> None:
        """What a known name makes of its arguments."""
        arguments, name = self.stack.pop(), self.stack.pop()
        if not isinstance(arguments, tuple) or not isinstance(name, _Name):
            raise _Refused("calls what is no name")
        self.stack.append(_made(name.text, cast(tuple[Any, ...], arguments)))

    def ignore_state(self, _: Any) -> None:
        """Attributes of a dictionary, which hold no tensors."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict):
            raise _Refused("sets attributes of what is no dictionary")

    def set_items(self, pairs: list[Any]) -> None:
        """Entries of the dictionary on the stack."""
        place = self.stack[-1]
        if not isinstance(place, dict) or len(pairs) % 2:
            raise _Refused("has entries of what is no dictionary")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str | int):
                raise _Refused("has an entry whose name is no text")
            place[key] = value

    def append(self, values: list[Any]) -> None:
        """Elements of the list on the stack."""
        place = self.stack[-1]
        if not isinstance(place, list):
            raise _Refused("has elements of what is no list")
        cast(list[Any], place).extend(values)


_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE"),
}
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_ACTIONS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.since_mark())),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_of_two,
    "MEMOIZE": _Machine.remember,
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "BINGET": _Machine.again,
    "LONG_BINGET": _Machine.again,
    "BINPERSID": _Machine.storage,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.ignore_state,
    "SETITEM": lambda machine, _: machine.set_items(
        [machine.stack.pop(), machine.stack.pop()][::-1]
    ),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
}


def _made(name: str, arguments: tuple[Any, ...]) -> Any:
    if name == _DICTIONARY and not arguments:
        return {}
    if name == _PARAMETER and arguments and isinstance(arguments[0], _Tensor):
        return arguments[0]
    if name == _TENSOR and len(arguments) >= 4:
        storage, offset, shape, strides = arguments[:4]
        whole = isinstance(storage, _Storage) and _is_count(offset)
        if whole and _are_counts(shape) and _are_counts(strides) and len(shape) == len(strides):
            return _Tensor(storage, offset, shape, strides)
    raise _Refused(f"gives {told(name.split(' ')[1])} what it does not take")


def _storage_of(parts: Any) -> _Storage:
    # Legacy files add a view of the storage, which PyTorch has not written since version 0.4.
    if isinstance(parts, tuple) and len(cast(Any, parts)) in (5, 6) and parts[5:] in ((), (None,)):
        said, kind, key, _, size = cast(tuple[Any, ...], parts)[:5]
        known = said == "storage" and isinstance(kind, _Name) and kind.text in _STORAGES
        if known and isinstance(key, str) and _is_count(size):
            return _Storage(_STORAGES[kind.text], key, size)
    raise _Refused("has a storage that is described otherwise than PyTorch does")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48


def _are_counts(values: Any) -> bool:
    return (
        isinstance(values, tuple)
        and len(cast(Any, values)) <= _MOST_AXES
        and all(map(_is_count, cast(Any, values)))
    )


def read_pickled(content: bytes, where: str) -> dict[str, np.ndarray]:
    """The tensors of a file that ``torch.save`` wrote of a module's ``state_dict()``.

    Also of a dictionary that holds one as ``state_dict``, ``model`` or ``model_state_dict``.

    Args:
        content: of the file; the tensors are views of it, where they are kept as they are used.
        where: what the file is called in messages.

    Returns:
        Name -> array, bf16 as ``ml_dtypes`` has it; what is no tensor is left out.

    Raises:
        RequestError: the file is cut short or damaged, or holds what is no tensor by name.
    """
    try:
        is_zip = content[:4] == b"PK\x03\x04"
        value, storages = (_zipped if is_zip else _legacy)(content)
        return {
            name: _array(tensor, storages)
            for name, tensor in _by_name(value).items()
            if isinstance(tensor, _Tensor)
        }
    except _Refused as error:
        raise RequestError(f"{where} cannot be used: it {error}") from error
    except _DAMAGE as error:
        raise RequestError(
            f"{where} is cut short or damaged, or no file of PyTorch's: {_line(error)}"
        ) from error


_DAMAGE = (
    *(ValueError, LookupError, TypeError, OverflowError, EOFError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, struct.error, OSError),
)
"""What Python's readers of pickles and ZIP files raise for any bytes."""


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"


def _by_name(value: Any) -> dict[Any, Any]:
    for wrapper in _WRAPPERS:
        if isinstance(value, dict) and isinstance(cast(Any, value).get(wrapper), dict):
            value = cast(Any, value)[wrapper]
            break
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in cast(Any, value)):
        raise _Refused("holds no tensors by name")
    return cast(dict[Any, Any], value)


Storages = Mapping[str, memoryview]


def _legacy(content: bytes) -> tuple[Any, Storages]:
    stream = io.BytesIO(content)
    if _Machine().run(stream) != _MAGIC or _Machine().run(stream) != _PROTOCOL:
        raise _Refused("does not begin as PyTorch's files do")
    system = _Machine().run(stream)
    if not isinstance(system, dict) or cast(Any, system).get("little_endian") is not True:
        raise _Refused("was written on a machine with another order of bytes")
    machine = _Machine()
    value = machine.run(stream)
    keys = _Machine().run(stream)
    return value, _raw(content, stream.tell(), keys, machine.storages)


def _raw(content: bytes, place: int, keys: Any, sizes: Mapping[str, _Storage]) -> Storages:
    """The storages that follow the pickles: each its number of elements, i64, and these."""
    storages: dict[str, memoryview] = {}
    view = memoryview(content)
    for key in keys:
        count = int.from_bytes(content[place : place + 8], "little", signed=True)
        if count != sizes[key].size:
            raise _Refused(
                "is cut short or damaged: a storage has another size than its tensors say"
            )
        place, size = place + 8, count * sizes[key].dtype.itemsize
        storages[key] = view[place : place + size]
        place += size
    return storages


def _zipped(content: bytes) -> tuple[Any, Storages]:
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        entries = {entry.filename: entry for entry in file.infolist()}
        (pickle,) = [name for name in entries if name.rpartition("/")[2] == "data.pkl"] or [""]
        if not pickle:
            raise _Refused("is a ZIP file without PyTorch's data.pkl")
        _refuse_bombs(list(entries.values()), len(content))
        folder = pickle.removesuffix("data.pkl")
        if f"{folder}byteorder" in entries and file.read(f"{folder}byteorder") != b"little":
            raise _Refused("was written on a machine with another order of bytes")
        value = _Machine().run(io.BytesIO(file.read(pickle)))
        keys = {
            tensor.storage.key for tensor in _by_name(value).values() if isinstance(tensor, _Tensor)
        }
        return value, {key: memoryview(file.read(f"{folder}data/{key}")) for key in keys}


def _refuse_bombs(entries: list[zipfile.ZipInfo], size: int) -> None:
    """PyTorch compresses nothing, so that what is in the file is no larger than the file."""
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise _Refused("is compressed, which PyTorch's files are not")
    if sum(entry.file_size for entry in entries) > size:
        raise _Refused("is cut short or damaged: its parts are larger than the whole")


def _array(tensor: _Tensor, storages: Storages) -> np.ndarray:
    storage, shape = tensor.storage, tensor.shape
    held = storages[storage.key]
    count = math.prod(shape)
    steps = zip(shape, tensor.strides, strict=True)
    last = tensor.offset + sum((length - 1) * stride for length, stride in steps) if count else 0
    size = storage.dtype.itemsize
    if len(held) < storage.size * size:
        raise _Refused("is cut short: a storage has fewer numbers than its tensors say")
    # Also as many elements at most: strides of 0 would make any number of one.
    if last >= max(storage.size, 1) or count > storage.size:
        raise _Refused("has a tensor that is larger than its storage")
    strides = [stride * size for stride in tensor.strides]
    if not count:
        return np.zeros(shape, storage.dtype)
    return np.ndarray(shape, storage.dtype, held, tensor.offset * size, strides)
