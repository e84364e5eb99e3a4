"""One image file to one array: the rules, against Pillow's own pictures of the same scene."""

import io
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from thinned.data import decode as images
from thinned.data.decode import (
    LARGEST_PIXELS,
    Unreadable,
    decode,
    decode_image,
    from_array,
    read_header,
)

# In the program they are ignored around the decoding of a whole folder.
pytestmark = pytest.mark.filterwarnings("ignore")
TRICKY = ROOT.parent / "shared" / "data" / "tricky_images" / "tricky_images.tar"
SCENE = np.random.default_rng(0).integers(0, 256, (6, 4, 3)).astype(np.uint8)
SCENE = np.kron(SCENE, np.ones((16, 16, 1), np.uint8))
BROKEN = {
    "broken.png",
    "broken_data_stream.png",
    "decompression_bomb.gif",
    "hopper_unknown_pixel_mode.tif",
    "libtiff_segfault.tif",
    "no_cursors.cur",
    "png_decompression_dos.png",
    "truncated_end_chunk.png",
    "truncated_image.png",
    "truncated_jpeg.jpg",
}


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def close(one, two, bound=6.0):
    assert np.abs(one.astype(float) - two.astype(float)).mean() < bound


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "WEBP", "JPEG"])
def test_every_format_gives_the_same_scene(kind):
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(kind, {})
    content = saved(Image.fromarray(SCENE), kind, **options)
    assert read_header(content).size == (96, 64)
    close(decode(content, (96, 64), 3), SCENE, 6 if kind == "JPEG" else 0.5)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation, kind):
    turns = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda a: np.rot90(a),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = turns[orientation](SCENE)
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(kind, {})
    content = saved(Image.fromarray(SCENE), kind, exif=exif, **options)
    # PNG keeps it behind its pixels: asking for it would unpack the image.
    assert kind == "PNG" or read_header(content).size == expected.shape[:2]
    close(decode(content, expected.shape[:2], 3), expected)


def test_modes_are_brought_to_the_channels_asked_for():
    picture = Image.fromarray(SCENE)
    grey = np.asarray(picture.convert("L"))
    for mode in ("P", "RGBA", "L", "LA", "1"):
        content = saved(picture.convert(mode))
        assert decode(content, (96, 64), 3).shape == (96, 64, 3)
        assert decode(content, (96, 64), 1).shape == (96, 64, 1)
    close(decode(saved(picture), (96, 64), 1)[..., 0], grey, 1)
    cmyk = decode(saved(picture.convert("CMYK"), "TIFF"), (96, 64), 3)
    close(cmyk, np.asarray(picture.convert("CMYK").convert("RGB")), 1)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    close(decode(saved(deep), (96, 64), 1)[..., 0], grey, 1)
    floats = Image.fromarray((grey / 255).astype(np.float32))
    close(decode(saved(floats, "TIFF"), (96, 64), 1)[..., 0], grey, 1)


def test_transparency_is_laid_on_white():
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert np.all(decode(saved(clear), (8, 8), 3) == 255)


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(content, (8, 8), 3)[0, 0].tolist() == [255, 0, 0]


def test_crop_keeps_the_middle_and_pad_keeps_everything():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    content = saved(Image.fromarray(wide))
    assert np.all(decode(content, (10, 10), 3, "crop") == 255)
    padded = decode(content, (30, 30), 3, "pad")
    assert not padded[:10].any()
    assert not padded[20:].any()
    assert padded[15, 15].tolist() == [255] * 3


@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 3]))
def test_any_size_can_be_asked_for(height, width, channels):
    array = SCENE[..., :channels]
    for fit in ("crop", "pad"):
        assert from_array(array, (height, width), channels, fit).shape == (height, width, channels)
    assert np.array_equal(from_array(array, (96, 64), channels), array)


def test_a_shrunk_image_is_smoothed():
    stripes = np.tile(np.asarray([0, 255], np.uint8), (64, 32))[..., None]
    assert np.all(np.abs(from_array(stripes, (16, 16), 1).astype(int) - 127) < 20)


def test_too_many_pixels_are_refused_before_they_are_unpacked():
    side = int(LARGEST_PIXELS**0.5) + 1
    content = saved(Image.new("1", (side, side)))
    with pytest.raises(Unreadable, match="more than 100,000,000 pixels"):
        decode(content, (8, 8), 3)


@given(st.binary(max_size=300), st.integers(0, 400))
def test_no_content_does_anything_but_give_an_image_or_a_reason(noise, cut):
    for content in (noise, saved(Image.fromarray(SCENE[:16]))[:cut] + noise):
        try:
            assert decode(content, (8, 8), 3).shape == (8, 8, 3)
        except Unreadable as error:
            assert "\n" not in str(error)


@pytest.mark.skipif(not TRICKY.exists(), reason="the tricky images are not here")
def test_of_the_tricky_files_only_the_broken_ones_are_refused(tmp_path):
    with tarfile.open(TRICKY) as archive:
        archive.extractall(tmp_path, filter="data")
    refused = set()
    files = [
        path for path in sorted((tmp_path / "tricky_images").iterdir()) if path.suffix != ".txt"
    ]
    assert len(files) >= 70
    for path in files:
        try:
            read_header(path)
            assert decode(path, (32, 32), 3).shape == (32, 32, 3)
        except Unreadable as error:
            assert str(error)
            refused.add(path.name)
    assert refused == BROKEN


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "L", "I;16", "F", "1", "RGB"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_large_images_decode_alike_in_little_memory(mode, orientation, monkeypatch):
    picture = Image.fromarray(np.kron(SCENE, np.ones((6, 7, 1), np.uint8)))
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    elif mode == "F":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.float32) / 255)
    else:
        picture = picture.convert(mode)
    if mode in ("RGBA", "LA"):
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"exif": exif} | ({"transparency": 3} if mode == "P" else {})
    content = saved(picture, "TIFF" if mode == "F" else "PNG", **options)
    whole = decode(content, (24, 16), 3)
    monkeypatch.setattr(images, "LARGE_PIXELS", 1000)
    monkeypatch.setattr(images, "_BAND_PIXELS", 5000)
    close(decode(content, (24, 16), 3), whole, 2)
    # So large a target that nothing is reduced: then not a bit differs.
    monkeypatch.setattr(images, "_LEFT_TO_FILTER", 1000)
    assert np.array_equal(decode(content, (24, 16), 3), whole)


def test_a_large_palette_with_transparency_takes_about_its_own_bytes():
    picture = Image.new("P", (4000, 3000))
    picture.putpalette(list(range(256)) * 3)
    content = saved(picture, transparency=0)
    code = (
        "import io, resource, sys; from thinned.data import decode as images\n"
        "images.decode(open(0, 'rb').read(), (8, 8), 3)"
        " if len(sys.argv) > 1 else open(0, 'rb').read()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )

    def peak_kb(*arguments):
        command = [sys.executable, "-c", code, *arguments]
        return int(subprocess.run(command, input=content, stdout=-1, check=True).stdout)

    # 12 million pixels are 12 MB as they are, but 144 MB as three layers of RGBA.
    assert peak_kb("decode") - peak_kb() < 40_000


def test_a_picture_already_open_is_refused_by_its_size_as_well():
    side = int(LARGEST_PIXELS**0.5) + 1
    with pytest.raises(Unreadable, match="more than 100,000,000 pixels"):
        decode_image(Image.open(io.BytesIO(saved(Image.new("1", (side, side))))), (8, 8), 3)


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "zero.png"):
        with pytest.raises(Unreadable, match="^not a regular file$"):
            decode(tmp_path / name, (8, 8), 3)
        with pytest.raises(Unreadable, match="^not a regular file$"):
            read_header(tmp_path / name)
