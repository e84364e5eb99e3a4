"""Bad inputs for the command line, by family; `hostile_campaign.py` gives them to it.

A family is a function that makes one input in a folder and returns the words after ``thinned``. All
that it chooses comes from the `random.Random` that it is given.
"""

import datetime
import gzip
import io
import json
import pickle
import random
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from thinned.core.config import Config, MlpConfig, options
from thinned.dropout.sites import DropoutSpec
from thinned.models.catalog import network
from thinned.models.weights.load import shapes_of, to_safetensors

ZOO = (
    Path(__file__).parent.parent.parent / "shared" / "data" / "tricky_images" / "tricky_images.tar"
)
"""Pillow's own odd and broken files, where they lie beside the checkout."""

NUMBERS = [0, -1, 1, 0.5, 1e308, -1e308, 5e-324, 10**30, -(10**30), 2**63, 2**32, 10**5000]
NUMBERS += [float("nan"), float("inf"), -float("inf"), -0.0]
TEXTS = ["", " ", "auto", "none", "yes", "1e-3", "0x10", "1_000", "٣", "e\u0301", "🎲", "a" * 5000]
TEXTS += [
    "../..",
    "~",
    "~nobody/x",
    "$HOME",
    "\x00",
    "a\nb",
    "\x1b[2J",
    "[red]x[/red]",
    "os:system",
]
TEXTS += [
    "element",
    "tutorial",
    "sgd",
    "resnet",
    "c0-f0",
    "c99999-f1",
    "f" + "9" * 40,
    "tfds:",
    "hf:",
]
NAMES = ["a[1]", "*", "?", "n" * 300, "é" * 120, "🎲", "..", ".", "", " ", "-", "--", "~", "a/b/c"]
NAMES += ["../../out", "/", "/dev/null/x", "con", "a\nb", "\x1b[2J", "\udcff", "a\\b", ".hidden"]
NAMES += ["config.json", "{x}", "%s%n", "$(id)", "a ", "‮abc", "a\u0301", "'", '"', "#", ";", "step"]

TINY = {
    "model": "mlp",
    "mlp": {"hidden": [4]},
    "epochs": 1,
    "batch_size": 8,
    "data": {"path": "tiny.npz"},
}


def arrays(draw: random.Random, count: int = 24) -> dict[str, np.ndarray]:
    """Images and labels of three classes, whole."""
    pixels = np.random.default_rng(draw.getrandbits(32))
    labels = np.arange(count) % 3
    return {"images": pixels.integers(0, 255, (count, 8, 8), np.uint8), "labels": labels}


def tiny(folder: Path) -> Path:
    """A whole data set, for what is wrong elsewhere."""
    np.savez(folder / "tiny.npz", **arrays(random.Random(0)))
    return folder / "tiny.npz"


def names_of_options() -> list[str]:
    """Their dotted names."""
    return [name for name, _, _ in options(Config())]


def misspelt(word: str, draw: random.Random) -> str:
    """A word with one letter lost, doubled or another."""
    at = draw.randrange(len(word))
    return word[:at] + draw.choice(["", word[at] * 2, draw.choice("xQ._- é")]) + word[at + 1 :]


def bad_value(draw: random.Random, depth: int = 0) -> Any:
    """A value that hardly any option takes."""
    plain = [None, True, False, datetime.date(2024, 2, 29), datetime.datetime.min]
    kind = draw.choices(["number", "text", "plain", "list", "section"], [4, 2, 1, 1, 1])[0]
    if depth < 3 and kind == "list":
        return [bad_value(draw, depth + 1) for _ in range(draw.randrange(4))]
    if depth < 3 and kind == "section":
        return {str(draw.choice(TEXTS)): bad_value(draw, depth + 1) for _ in range(2)}
    return draw.choice({"number": NUMBERS, "text": TEXTS}.get(kind, plain))


def _train(folder: Path, file: str) -> list[str]:
    tiny(folder)
    return ["train", "-c", file, "--runs", "runs", "--name", "r"]


def config_values(draw: random.Random, folder: Path) -> list[str]:
    """A small config in which one or two options have bad values, or bad names."""
    values = json.loads(json.dumps(TINY))
    for _ in range(draw.randint(1, 2)):
        *above, name = draw.choice(names_of_options()).split(".")
        section = values
        for part in above:
            inner = section.setdefault(part, {})
            section[part] = inner if isinstance(inner, dict) else {}
            section = section[part]
        name = misspelt(name, draw) if draw.random() < 0.2 else name
        section[name] = bad_value(draw)
    if draw.random() < 0.2:
        values[draw.choice(["data", "optim", "dropout", "mlp", "recipe"])] = bad_value(draw)
    if draw.random() < 0.3:
        (folder / "c.json").write_bytes(_as_json(values))
        return _train(folder, "c.json")
    text = yaml.dump(_short(values), allow_unicode=True).replace("HUGE", "1" + "0" * 5000)
    (folder / "c.yaml").write_text(text, "utf-8")
    return _train(folder, "c.yaml")


def _as_json(values: Any) -> bytes:
    text = json.dumps(_short(values), default=str)
    return text.replace('"HUGE"', "1" + "0" * 5000).encode()


def _short(value: Any) -> Any:
    """The same with a word for whole numbers of more digits than Python writes by itself."""
    if isinstance(value, dict):
        return {key: _short(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_short(inner) for inner in value]
    return "HUGE" if isinstance(value, int) and abs(value) > 10**4000 else value


def config_texts(draw: random.Random, folder: Path) -> list[str]:
    """A file that is hardly a config at all."""
    depth = draw.choice([5, 200, 3000, 100_000])
    aliases = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(20)
    )
    whole = yaml.dump(TINY).encode()
    cut = draw.randrange(1, len(whole))
    texts = [
        draw.randbytes(draw.randrange(1, 400)),
        b"[" * depth,
        b'{"data":' * depth,
        b"- " * depth,
        b"[" * depth + b"]" * depth,
        aliases.encode(),
        b"data: &d {path: *d}",
        b"&a [*a]",
        b"epochs: &e [*e]",
        b"<<: [1, 2]\nepochs: 1",
        b"<<: {epochs: 1}\nepochs: 2",
        b"!!python/object/apply:os.system [id]",
        b"data: !!python/name:os.system",
        b"epochs: !!set {1, 2}\n",
        b"epochs: !!omap [a: 1]\n",
        b"seed: !!int 'x'\n",
        b"seed: !!float []\n",
        b"seed: !!binary /w==\n",
        b"seed: !!timestamp 9999-99-99\n",
        b"seed: 2024-02-31\n",
        b"seed: 1:60:99\n",
        b"? [a, b]\n: 1\n",
        b"? {a: b}\n: 1\n",
        b"1: 2\nnull: 3\n2024-01-01: 4\n1.5: 2\ntrue: 0\n",
        b"epochs: 1\nepochs: 2\n",
        b"--- {}\n--- {}\n",
        b"epochs: *unknown\n",
        b"%YAML 9.9\n---\nepochs: 1\n",
        b"\xef\xbb\xbfepochs: 1\n",
        yaml.dump(TINY).encode("utf-16"),
        b"epochs:\t1\n\tseed: 1\n",
        b"\x00" * draw.randrange(1, 99),
        b"",
        b"null",
        b"7",
        b'"text"',
        b"{}" * 3,
        b"a: " + b"9" * 100_000,
        b"epochs: 1e" + b"9" * 400,
        whole[:cut],
        whole[:cut] + draw.randbytes(3) + whole[cut:],
    ]
    file = draw.choice(["c.yaml", "c.json", "c.txt", "c"])
    (folder / file).write_bytes(draw.choice(texts))
    return ["doctor", file, "--draws", "8"] if draw.random() < 0.2 else _train(folder, file)


OWN_FLAGS = {
    "study": "vary seeds baseline random search processes name",
    "find-lr": "low high steps out",
    "models": "size channels classes own",
    "predict": "samples calibrated risk confidence coverage sets per-class format out",
    "evaluate": "data.path samples calibrated coverage sets per-class ood worth corrupt format out",
    "reproduce": "budget rows seeds processes",
    "calibrate": "samples",
    "report": "out samples ood coverage sets figures",
    "doctor": "draws",
    "verify-resume": "kills",
    "data": "clear",
    "train": "resume config quiet name runs",
}
"""Flags of commands beside those of a config."""


def flags(draw: random.Random, folder: Path) -> list[str]:
    """Options of the command line: misspelt, with bad values or none, in the wrong place."""
    small = ["--model", "mlp", "--mlp.hidden", "4", "--epochs", "1", "--batch-size", "8"]
    small += ["--data", str(tiny(folder))]
    command = draw.choice([*OWN_FLAGS, "train", "train", "study", "study", "find-lr", "nonsense"])
    # Else what is wrong elsewhere would cost the minutes of what is right.
    short = {
        "study": ["--seeds", "1"],
        "find-lr": ["--steps", "20"],
        "verify-resume": ["--kills=0"],
    }
    words = [command, *short.get(command, [])]
    names = OWN_FLAGS.get(command, "config").split()
    if command in ("train", "study", "find-lr", "verify-resume"):
        words += small
        names = draw.choice([names, names_of_options(), names_of_options()])
    if command == "study" and draw.random() < 0.5:
        option = draw.choice(names_of_options())
        varied = ["", "=", f"{option}=", f"{option}=1:0:-1", f"{option}=0:1:0", _word(draw)]
        varied += [f"{option}={_word(draw)},{_word(draw)}", f"{option}=0:1e9:1e-9"]
        return [*words, "--vary", draw.choice(varied)]
    for _ in range(draw.randint(1, 2)):
        name = draw.choice(names).replace("_", "-")
        flag = "--" + (misspelt(name, draw) if draw.random() < 0.2 else name)
        words += draw.choice(
            [[flag, _word(draw)], [f"{flag}={_word(draw)}"], [flag], [_word(draw)]]
        )
    return words


def _word(draw: random.Random) -> str:
    value = draw.choice([*NUMBERS, *TEXTS, "1,2", "[1]", "{}", "None", "nan"])
    huge = isinstance(value, int) and abs(value) > 10**4000
    # A word of the command line can hold no null.
    return ("9" * 5000 if huge else str(value)).replace("\x00", "\x01")


def encoded(draw: random.Random, side: int | None = None) -> tuple[bytes, str]:
    """An image file of any mode, format and size, perhaps an odd one."""
    modes = {"PNG": "1 L LA P RGB RGBA I;16", "JPEG": "L RGB CMYK", "GIF": "L P RGB"}
    modes |= {"BMP": "1 L P RGB", "TIFF": "1 L LA RGB RGBA CMYK F I;16 I LAB", "WEBP": "RGB RGBA"}
    kind = draw.choice(list(modes))
    size = (side, side) if side else draw.choice([(1, 1), (8, 8), (9, 30), (1, 900), (700, 2)])
    image = Image.new(draw.choice(modes[kind].split()), size)
    if image.mode in ("L", "RGB"):
        image = Image.frombytes(image.mode, size, draw.randbytes(len(image.tobytes())))
    box = io.BytesIO()
    image.save(box, kind)
    return box.getvalue(), {"JPEG": ".jpg", "TIFF": ".tif"}.get(kind, f".{kind.lower()}")


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be huge."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        held = kind + body
        return struct.pack(">I", len(body)) + held + struct.pack(">I", zlib.crc32(held))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def put_image(draw: random.Random, folder: Path, sound: float) -> None:
    """One image file, sound with that probability, else broken, odd or none."""
    folder.mkdir(parents=True, exist_ok=True)
    data, suffix = encoded(draw)
    name = draw.choice(["a", "b b", "ü", "[1]", "x\ny", "\udcff", "e\u0301"]) + str(draw.random())
    path = folder / (name + suffix)
    if draw.random() < sound:
        path.write_bytes(encoded(draw, 8)[0])
        return
    zoo = zoo_files()
    kind = draw.randrange(9 if zoo else 8)
    if kind == 0:
        data = data[: draw.randrange(len(data))]
    elif kind == 1:
        data = flipped(data, draw)
    elif kind == 2:
        data = bomb(draw.choice([70_000, 2**31 - 1, 12_000]), draw.choice([70_000, 1, 12_000]))
    elif kind == 3:
        data = draw.randbytes(draw.randrange(300))
    elif kind == 4:
        path = path.with_name("w" + draw.choice([".jpg", ".png", ".webp", ".gif", ".tif", ".txt"]))
    elif kind == 5:
        path.symlink_to(draw.choice(["nowhere", path.name, "..", "/dev/null", "/dev/zero"]))
        return
    elif kind == 6:
        path.mkdir()
        return
    elif kind == 8:
        data, path = draw.choice(zoo)[1], path.with_suffix(draw.choice(zoo)[0])
    path.write_bytes(data)


def flipped(data: bytes, draw: random.Random) -> bytes:
    """The same with some bits flipped."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 3, 30])):
        if changed:
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


_zoo: list[tuple[str, bytes]] = []


def zoo_files() -> list[tuple[str, bytes]]:
    """Endings and bytes of Pillow's odd files; none where they are not at hand."""
    if not _zoo and ZOO.is_file():
        with tarfile.open(ZOO) as tar:
            for member in tar:
                held = tar.extractfile(member) if member.isfile() else None
                if held is not None:
                    _zoo.append((Path(member.name).suffix, held.read()))
    return _zoo


def _looked_at(path: str, draw: random.Random) -> list[str]:
    way = draw.randrange(4)
    if way == 0:
        return ["data", "convert", path, "out.npz"]
    if way == 1:
        small = ["--model", "mlp", "--mlp.hidden", "4", "--epochs", "1", "--batch-size", "8"]
        return [
            "train",
            "--data",
            path,
            *small,
            "--data.size",
            "8",
            "--runs",
            "runs",
            "--name",
            "r",
        ]
    extra = draw.choice([[], [], ["--data.on-error", "fail"], ["--data.size", "8"]])
    return ["data", "inspect", path, *extra]


def image_folders(draw: random.Random, folder: Path) -> list[str]:
    """Folders of images in every layout, good and bad, with good and bad files in them."""
    base, sound = folder / "photos", draw.choice([0.0, 0.7, 0.9, 0.9])
    base.mkdir()
    splits = draw.choice([[""], [""], ["train", "test"], ["train", "val", "test"], ["test"]])
    splits = draw.choice([splits, splits, ["train"], ["Train", "other"]])
    names = [
        "cat",
        "dog",
        "ü",
        "u\u0308",
        "x\ny",
        "🎲",
        "[1]",
        "train",
        "a" * 200,
        ".hid",
        "\udcff",
    ]
    for split in splits:
        for name in draw.sample(names[: draw.choice([2, 3, 11])], draw.choice([1, 2, 2, 2, 2, 2])):
            for _ in range(draw.choice([0, 3, 5, 5, 8, 8])):
                inner = draw.choice(["", "", "deep/er"])
                put_image(draw, base / split / name / inner, sound)
        if draw.random() < 0.1 and (base / split).is_dir():
            (base / split / "loop").symlink_to(draw.choice([".", "..", "loop", "/nowhere"]))
    if draw.random() < 0.1:
        put_image(draw, base, 0.5)
    return _looked_at("photos", draw)


def image_files(draw: random.Random, folder: Path) -> list[str]:
    """Single files for `predict`, with a whole run."""
    given = folder / "given"
    given.mkdir()
    for _ in range(draw.randint(1, 4)):
        put_image(draw, given, 0.2)
    paths = [str(path.relative_to(folder)) for path in sorted(given.iterdir())]
    paths = draw.choice([paths, paths, ["given"], ["given"], [*paths, "given/none.png"]])
    extra = draw.choice([[], [], ["--format", "csv"], ["--format", "json", "--out", "o.json"]])
    extra = draw.choice([extra, extra, ["--samples", "4"], ["--risk", _word(draw)]])
    return ["predict", "whole", *paths, *extra]


def array_files(draw: random.Random, folder: Path) -> list[str]:
    """npz, CSV, IDX and CIFAR files, cut short, flipped, or at odds with themselves."""
    return draw.choice([_npz, _csv, _idx, _cifar])(draw, folder)


def _npz(draw: random.Random, folder: Path) -> list[str]:
    held: dict[str, Any] = arrays(draw)
    if draw.random() < 0.2:
        held = {"x_train": held["images"], "y_train": held["labels"]} | {"x_test": held["images"]}
    key = draw.choice(list(held))
    odd = [np.array(draw.choice([*NUMBERS[:11], *TEXTS])), np.zeros((0, 8, 8)), np.zeros(24)]
    odd += [np.full((24, 8, 8), np.nan), np.zeros((24, 8, 8, 4)), np.array([{}] * 24, object)]
    odd += [
        np.arange(24) - 5,
        np.arange(24) * 10**17,
        np.array(["ü\n"] * 24),
        np.zeros(24, "M8[s]"),
    ]
    odd += [np.zeros((24, 8, 8), complex), np.zeros((24, 0, 8), np.uint8), np.zeros(3, "V5")]
    odd += [np.full(24, "a\x00b"), np.zeros((24, 9, 5), np.uint8), held[key][: draw.randrange(24)]]
    if draw.random() < 0.7:
        held[key] = draw.choice(odd)
    if draw.random() < 0.2:
        held[draw.choice(["classes", "extra", "y", "x"])] = draw.choice(odd)
    box = io.BytesIO()
    draw.choice([np.savez, np.savez_compressed])(box, **held)
    data = box.getvalue()
    if draw.random() < 0.4:
        cut = data[: draw.randrange(len(data))]
        data = draw.choice([cut, flipped(data, draw), draw.randbytes(50)])
    (folder / "d.npz").write_bytes(data)
    return _looked_at("d.npz", draw)


def _csv(draw: random.Random, folder: Path) -> list[str]:
    for number in range(6):
        (folder / f"{number}.png").write_bytes(encoded(draw, 8)[0])
    header = draw.choice(["path,label", "file,class,split", "a,b", "", "path,path", "PATH,Label"])
    cells = ["", "cat", "train", "nope", "\x00", "1.5", "nan", "=1+1", '"open', "../x", "🎲", "0"]
    rows = []
    for number in range(draw.choice([0, 1, 12])):
        row = [f"{number % 6}.png", draw.choice(["cat", "dog"]), draw.choice(["train", "test"])]
        if draw.random() < 0.3:
            row[draw.randrange(3)] = draw.choice(cells)
        rows.append(",".join(row[: draw.choice([2, 3, header.count(",") + 1])]))
    text = draw.choice(["\n", "\r\n", "\n\n"]).join([header, *rows])
    data = text.encode(draw.choice(["utf-8", "utf-8", "utf-16", "utf-8-sig"]))
    if draw.random() < 0.3:
        data = draw.choice([flipped(data, draw), data * 50, data + b"\xff," + b"x" * 200_000])
    (folder / "d.csv").write_bytes(data)
    return _looked_at("d.csv", draw)


def _idx(draw: random.Random, folder: Path) -> list[str]:
    (base := folder / "idx").mkdir()
    for split in ("train", "t10k"):
        held = arrays(draw)
        for kind, array in (("images-idx3", held["images"]), ("labels-idx1", held["labels"])):
            sizes = np.asarray(array.shape, ">u4")
            if draw.random() < 0.15:
                sizes[draw.randrange(len(sizes))] = draw.choice([0, 1, 23, 2**16, 2**32 - 1])
            data = bytes([0, 0, 8, array.ndim]) + sizes.tobytes() + array.astype(np.uint8).tobytes()
            if draw.random() < 0.15:
                data = draw.choice([data[: draw.randrange(len(data))], flipped(data, draw), b""])
            if packed := draw.random() < 0.5:
                data = gzip.compress(data)
                if draw.random() < 0.15:
                    data = draw.choice([data[: draw.randrange(len(data))], flipped(data, draw)])
            if draw.random() < 0.95:
                (base / f"{split}-{kind}-ubyte{'.gz' if packed else ''}").write_bytes(data)
    (base / "train-extra-ubyte").write_bytes(b"")
    return _looked_at("idx", draw)


def _cifar(draw: random.Random, folder: Path) -> list[str]:
    (base := folder / "cifar").mkdir()
    for name in draw.choice([["data_batch_1", "test_batch"], ["test_batch"], ["train", "test"]]):
        count = draw.choice([0, 3, 20])
        data = b"".join(bytes([n % 3]) + draw.randbytes(3072) for n in range(count))
        if draw.random() < 0.5:
            data = draw.choice([data[:-1], flipped(data, draw), data + b"\xff" * 3073])
        (base / f"{name}.bin").write_bytes(data)
    if draw.random() < 0.3:
        text = draw.choice([b"", b"\xff\xfe", b"a\na\na\n", b"x\n" * 1000])
        (base / "batches.meta.txt").write_bytes(text)
    return _looked_at("cifar", draw)


def run_folders(draw: random.Random, folder: Path) -> list[str]:
    """A copy of a whole run with damaged files."""
    run = folder / "whole"
    files = sorted(path for path in run.rglob("*") if path.is_file())
    for _ in range(draw.choice([1, 1, 2])):
        # The named ones are few among the many of the checkpoints.
        named = [path for path in files if path.parent == run]
        _damage(draw.choice(draw.choice([named, files])), draw)
    small = ["--epochs", draw.choice(["1", "2", "3", "3", "3"])]
    (folder / "x.png").write_bytes(encoded(draw, 8)[0])
    return draw.choice(
        [
            ["train", "--resume", "whole", *small],
            ["train", "--resume", "whole", *small],
            ["evaluate", "whole"],
            ["evaluate", "whole", "--samples", "2"],
            ["predict", "whole", "x.png"],
            ["predict", "whole", "x.png", "--calibrated", "--risk", "0.5"],
            ["calibrate", "whole"],
            ["doctor", "whole", "--draws", "8"],
        ]
    )


def _damage(path: Path, draw: random.Random) -> None:
    if not path.is_file():
        return
    data = path.read_bytes()
    kind = draw.randrange(8)
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.unlink()
        path.mkdir()
    elif kind in (2, 3) and path.suffix in (".json", ".jsonl"):
        path.write_bytes(_other_json(data, draw))
    elif kind == 4:
        path.unlink()
        path.symlink_to(draw.choice([path.name, "nowhere", "/dev/null", ".."]))
    else:
        cut = data[: draw.randrange(len(data) + 1)]
        path.write_bytes(draw.choice([cut, flipped(data, draw), b"", b"\x00" * len(data)]))


def _other_json(data: bytes, draw: random.Random) -> bytes:
    """JSON as before, with another value or without one, at any depth; or other JSON."""
    lines = data.splitlines() if data.count(b"\n{") else [data]
    at = draw.randrange(len(lines)) if lines else 0
    try:
        section = whole = json.loads(lines[at])
    except (ValueError, IndexError):
        return b"{}"
    while isinstance(section, dict) and section:
        key = draw.choice(list(section))
        if isinstance(section[key], dict) and draw.random() < 0.8:
            section = section[key]
            continue
        section[key] = bad_value(draw)
        if draw.random() < 0.3:
            del section[key]
        break
    odd = [b"[]", b"null", b"7", b"[" * 100_000, b'{"a": ' * 3000]
    lines[at] = draw.choice(odd) if draw.random() < 0.2 else _as_json(whole)
    return b"\n".join(lines) + b"\n"


def run_names(draw: random.Random, folder: Path) -> list[str]:
    """Names of runs and studies, and folders of them, that are hardly any."""
    data = str(tiny(folder))
    name = draw.choice(NAMES) if draw.random() < 0.7 else draw.choice(NAMES) + draw.choice(NAMES)
    small = ["--data", data, "--model", "mlp", "--mlp.hidden", "4", "--epochs", "1"]
    made = ["--batch-size", "8", "--quiet"]
    # Where an option may name any folder, outside and the whole disk are no fault of the answer.
    inside = "./" + name.replace("..", "")
    return draw.choice(
        [
            ["train", *small, *made, f"--name={name}"],
            ["train", *small, *made, f"--name={name}"],
            ["train", *small, *made, f"--runs={inside}", "--name", "r"],
            ["train", "--resume", name],
            ["study", *small, "--batch-size", "8", "--seeds", "1", f"--name={name}"],
            ["evaluate", name],
            ["predict", name, name],
            ["data", "inspect", inside],
            ["train", *small, *made, "-c", name],
        ]
    )


STAGED = "wide-resnet-10-1"
"""The smallest network that takes weights of others."""


def weights_files(draw: random.Random, folder: Path) -> list[str]:
    """Weights to begin with: damaged, hostile, of another network; or a damaged run."""
    if draw.random() < 0.2:
        run_folders(draw, folder)
        tiny(folder)
        small = ["--data", "tiny.npz", "--epochs", "1", "--batch-size", "8", "--mlp.hidden", "4"]
        small += ["--finetune", draw.choice(["all", "all", "Dense_1", "head"])]
        return ["train", *small, "--pretrained", "whole", "--runs", "runs", "--name", "r"]
    ending = draw.choice([".pth"] * 3 + [".safetensors"] * 4 + [".pt", ".bin", ".PTH"])
    held = _odd_tensors(draw) if draw.random() < 0.6 else _tensors()
    sound = to_safetensors(held) if ending == ".safetensors" else _pytorch(held)
    file, kind = folder / f"w{ending}", draw.randrange(6)
    if kind == 0:
        sound = sound[: draw.randrange(len(sound))]
    elif kind == 1:
        sound = flipped(sound, draw)
    elif kind == 2:
        sound = draw.choice([_hostile_pickle(draw), _zipped(_hostile_pickle(draw), {})])
    elif kind == 3:
        size = struct.pack("<Q", draw.choice([0, 2, 10**6, 2**63, 2**64 - 1]))
        sound = draw.choice([b"", b"{}", size + b"{}" * 8, size + b"[" * 50_000, sound + b"x"])
    file.write_bytes(sound)
    images = arrays(draw)["images"][..., None].repeat(draw.choice([1, 3, 3, 3, 3, 3]), -1)
    np.savez(folder / "tiny.npz", images=images, labels=np.arange(24) % 3)
    given = draw.choice([file.name] * 20 + [".", "none.pth", "tiny.npz", "hf:", "imagenet"])
    model = draw.choice([STAGED] * 12 + ["auto", "mlp", "resnet-18"])
    tune = draw.choice(["head"] * 5 + ["all", "", "nonsense", "head,head", "blocks_1,head"])
    small = ["--epochs", "1", "--batch-size", "8", "--runs", "runs", "--name", "r"]
    words = ["train", "--data", "tiny.npz", "--model", model, "--pretrained", given]
    return [*words, "--finetune", tune, *small]


def _tensors() -> dict[str, np.ndarray]:
    """Whole weights of the smallest network, by the paths of its variables."""
    model = network(STAGED, 3, DropoutSpec(), MlpConfig())
    return {
        name: np.full(shape, 0.01, np.float32)
        for name, shape in shapes_of(model, (8, 8, 3)).items()
    }


def _odd_tensors(draw: random.Random) -> dict[str, np.ndarray]:
    """The same with one that is not finite, another shape or type, missing, or too many."""
    held = _tensors()
    name = draw.choice(list(held))
    array = held.pop(name)
    odd = [np.full_like(array, draw.choice([np.nan, np.inf, 1e38])), array[..., :0], array[None]]
    odd += [array.astype(draw.choice([np.float64, np.float16, np.int32, bool])), array.ravel()]
    kind = draw.randrange(8)
    if kind < 6:
        held[name] = draw.choice(odd)
    elif kind == 6:
        held[draw.choice([*TEXTS[1:], "a/b/c", f"{name}/x", name + " "])] = array
    else:
        held = {each.replace("params", draw.choice(["x", "stem"])): a for each, a in held.items()}
    return held


def _pytorch(tensors: dict[str, np.ndarray]) -> bytes:
    """A file as PyTorch's own ``save`` writes it, made of the instructions of a pickle."""
    kinds = {"float32": "Float", "float64": "Double", "float16": "Half", "int32": "Int"}
    body, storages = b"\x80\x02}(", dict[str, bytes]()
    for key, (name, array) in enumerate(tensors.items()):
        kind = kinds.get(array.dtype.name, "Bool")
        storages[f"{key}"] = array.tobytes()
        strides = [step // array.itemsize for step in array.strides]
        body += _text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n((" + _text("storage")
        body += f"ctorch\n{kind}Storage\n".encode() + _text(str(key)) + _text("cpu")
        body += _number(array.size) + b"tQ" + _number(0) + _numbers(array.shape)
        body += _numbers(strides) + b"\x89)tR"
    return _zipped(body + b"u.", storages)


def _text(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def _numbers(values: Any) -> bytes:
    return b"(" + b"".join(map(_number, values)) + b"t"


def _zipped(pickled: bytes, storages: dict[str, bytes]) -> bytes:
    box = io.BytesIO()
    with zipfile.ZipFile(box, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        for key, content in storages.items():
            archive.writestr(f"a/data/{key}", content)
    return box.getvalue()


class _Call:
    """Pickled as a call of anything."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


def _hostile_pickle(draw: random.Random) -> bytes:
    """A pickle that would run something, fill the memory or never end, were it unpickled."""
    around = f"ctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\n{draw.choice(TEXTS)}\n"
    return draw.choice(
        [
            pickle.dumps({"w": _Call(eval, ("open('../../evil', 'w').write('x')",))}, 2),
            pickle.dumps(_Call(exec, ("open('../../evil', 'w').write('x')",)), draw.randrange(6)),
            pickle.dumps({"w": _Call(bytearray, (10**12,))}, 2),
            pickle.dumps({"w": np.zeros(3)}, draw.randrange(6)),
            pickle.dumps(arrays(draw), draw.randrange(6)),
            b"\x80\x02" + b"]" * 200_000 + b".",
            b"\x80\x02]" + b"(]q\x00h\x00h\x00e" * 50_000 + b".",
            b"\x80\x02" + b"(" * 300_000 + b"t.",
            b"\x80\x02}" + _text("w") + b"r\xff\xff\xff\x7f" + b"j\xff\xff\xff\x7fs.",
            b"\x80\x02\x8b\xff\xff\xff\x7f" + b"\xff" * 9 + b".",
            b"\x80\x02X\xff\xff\xff\xff.",
            b"\x80\x04\x95" + b"\xff" * 8 + b".",
            b"I" + b"9" * 100_000 + b"\n.",
            b"F1e999\n.",
            around.encode("utf-8", "surrogatepass") + _number(2**62) + b"tQ.",
            draw.randbytes(draw.randrange(300)),
            b"",
        ]
    )


Family = Callable[[random.Random, Path], list[str]]
FAMILIES: dict[str, tuple[Family, bool]] = {
    "values in a config": (config_values, False),
    "texts as a config": (config_texts, False),
    "flags": (flags, False),
    "image folders": (image_folders, False),
    "image files": (image_files, True),
    "array files and tables": (array_files, False),
    "damaged run folders": (run_folders, True),
    "names": (run_names, False),
    "weights files": (weights_files, True),
}
"""Each family, and whether it needs a copy of a whole run in its folder, `whole`."""


def made(family: str, seed: int, index: int, folder: Path, whole: Path) -> list[str]:
    """Make an input in an empty folder; the same for the same family, seed and index."""
    make, needs_run = FAMILIES[family]
    if needs_run:
        shutil.copytree(whole, folder / "whole", symlinks=True)
    return make(random.Random(f"{family} {seed} {index}"), folder)
