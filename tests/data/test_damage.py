"""Damage to images: as its authors' programs do it, and knowing nothing of other images."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from thinned.core.types import Split
from thinned.data import damage
from thinned.data.damage import CIFAR_10_C, IMAGENET_C, MNIST_C, blurs
from thinned.data.damage.common import whole_levels

# Written by scripts/damage_reference.py.
REFERENCE = dict(np.load(Path(__file__).parent / "damage_reference.npz"))
SETS = {each.name: each for each in (CIFAR_10_C, IMAGENET_C, MNIST_C)}
KINDS = [f"{name}/{kind}" for name, each in SETS.items() for kind in each.kinds]
# OpenCV knows 32 places between two pixels; a blur of next to nothing leaves values just below a
# level or just above it.
FARTHEST = {"elastic_transform": 12, "glass_blur": 2}


@pytest.fixture(scope="module", autouse=True)
def ice(tmp_path_factory):
    """A package with what passes for photographs of ice; the first has a layer of opacity."""
    base, random = tmp_path_factory.mktemp("packages"), np.random.default_rng(3)
    folder = base / "imagecorruptions" / "frost"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('run')")
    modes = {"frost1.png": "RGBA", "frost2.png": "RGB", "frost3.png": "RGB"}
    modes |= {"frost4.jpg": "RGB", "frost5.jpg": "RGB"}
    for name, mode in modes.items():
        levels = random.integers(0, 256, (210, 190, len(mode))).astype(np.uint8)
        Image.fromarray(levels).save(folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(base))
        yield [np.asarray(Image.open(folder / name))[..., :3] for name in modes]


@pytest.mark.parametrize(("title", "nth"), [("CIFAR-10-C", 5), ("ImageNet-C", 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_frost_is_a_part_of_a_photograph_laid_over(ice, title, nth, channels):
    kind, side = SETS[title].kinds["frost"], 30
    images = np.random.default_rng(0).random((3, side, side, channels)).astype(np.float32)
    for kept, cover, *_ in kind.levels:
        found = kind.way(
            images, [np.random.default_rng(each) for each in range(3)], kept, cover, nth
        )
        for index, image in enumerate(images):
            # Line by line what make_cifar_c.py and make_imagenet_c.py do.
            random = np.random.default_rng(index)
            picture = ice[random.integers(5)]
            # Bilinear sampling at a fifth: the middle one of five.
            picture = picture[nth // 2 :: nth, nth // 2 :: nth]
            assert picture.shape[:2] == (210 // nth, 190 // nth)
            top = random.integers(0, picture.shape[0] - side)
            left = random.integers(0, picture.shape[1] - side)
            part = picture[top : top + side, left : left + side] / 255
            part = part if channels == 3 else part @ [[0.299], [0.587], [0.114]]
            np.testing.assert_allclose(found[index], kept * image + cover * part, atol=1e-5)


@pytest.mark.parametrize("shape", [(230, 64, 3), (64, 400, 3), (210, 190, 1)])
def test_photographs_of_ice_are_enlarged_for_larger_images(shape):
    black = Split(np.zeros((2, *shape), np.uint8), np.zeros(2, np.int32))
    found = damage.corrupted(black, IMAGENET_C.kinds["frost"], 5).images
    assert found.std() > 10
    assert not np.array_equal(*found)


@pytest.mark.parametrize("missing", ["package", "picture"])
def test_without_photographs_there_is_no_frost(missing, ice, tmp_path, monkeypatch):
    assert list(damage.corruptions_for((32, 32, 3)).kinds) == list(CIFAR_10_C.kinds)
    monkeypatch.setattr(damage.weather, "find_spec", lambda name: None)
    if missing == "picture":
        (tmp_path / "frost").mkdir()
        spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
        monkeypatch.setattr(damage.weather, "find_spec", lambda name: spec)
    for shape, whole in (((32, 32, 3), CIFAR_10_C), ((65, 32, 1), IMAGENET_C)):
        found = damage.corruptions_for(shape)
        assert set(whole.kinds) - set(found.kinds) == {"frost"}
        assert len(found.kinds) == 14
        assert damage.lacks_frost(found)
    assert not damage.lacks_frost(damage.corruptions_for((28, 28, 1)))


def kind_of(path):
    name, kind = path.split("/")
    return SETS[name].kinds[kind]


def split(count, *shape):
    random = np.random.default_rng(0)
    images = ndimage.gaussian_filter(random.normal(size=(count, *shape)), (0, 2, 2, 0))
    images = (images - images.min()) / np.ptp(images) * 255
    return Split(images.astype(np.uint8), np.zeros(count, np.int32))


def distance(whole, kind, severity):
    found = damage.corrupted(whole, kind, severity).images
    return np.abs(found - whole.images.astype(float)).mean()


def test_all_but_what_has_tests_of_its_own_are_in_the_reference():
    apart = {"MNIST-C/glass_blur", "CIFAR-10-C/frost", "ImageNet-C/frost"}
    assert set(KINDS) - set(REFERENCE) == apart


@pytest.mark.parametrize("path", [each for each in KINDS if each in REFERENCE])
def test_damage_is_what_its_authors_programs_make(path):
    image = REFERENCE["grey" if path.startswith("MNIST-C") else "colour"]
    images = np.atleast_3d(image)[None].astype(np.float32) / 255
    kind = kind_of(path)
    for level, expected in zip(kind.levels, REFERENCE[path], strict=True):
        found = kind.way(images, [np.random.default_rng(5)], *level)
        found = whole_levels(found)[0, ::3, ::3].reshape(expected.shape)
        far = np.abs(found - expected)
        assert far.max() <= FARTHEST.get(path.split("/")[1], 1)
        assert far.mean() < 0.5


@pytest.mark.parametrize("seed", [0, 1])
def test_a_shear_looks_up_pixels_where_the_published_formula_leads(seed):
    """`AffineTransform` of scikit-image 0.14 to 0.20, about 13.5, as corruptions.py calls it."""
    image = np.random.default_rng(9).random((28, 28)).astype(np.float32)
    (angle,) = MNIST_C.kinds["shear"].levels[0]
    assert angle == 0.4
    slant = angle * np.random.default_rng(seed).choice([-1, 1])
    scale_x = scale_y = 1
    rotation = 0
    rows, columns = np.indices((28, 28))
    x, y = columns - 13.5, rows - 13.5
    from_x = (scale_x * x * np.cos(rotation) - scale_y * y * np.sin(rotation + slant)) + 13.5
    from_y = scale_x * x * np.sin(rotation) + scale_y * y * np.cos(rotation + slant) + 13.5
    expected = ndimage.map_coordinates(image, [from_y, from_x], order=1, mode="grid-constant")
    shear = MNIST_C.kinds["shear"].way
    found = shear(image[None, ..., None], [np.random.default_rng(seed)], angle)
    np.testing.assert_allclose(found[0, ..., 0], expected, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("reach", "rounds"), [(1, 2), (2, 3), (4, 1)])
def test_pixels_go_where_the_authors_loop_carries_them(reach, rounds, channels):
    random = np.random.default_rng(reach)
    pixels = random.integers(0, 256, (2, 13, 17, channels)).astype(np.uint8)
    rows, columns = 13 - 2 * reach, 17 - 2 * reach
    moves = random.integers(-reach, reach, (2, rounds, rows, columns, 2))
    expected = pixels.copy()
    for image, all_moves in zip(expected, moves, strict=True):
        x = image[..., 0] if channels == 1 else image
        for turn in range(rounds):
            for i, h in enumerate(range(13 - reach, reach, -1)):
                for j, w in enumerate(range(17 - reach, reach, -1)):
                    dx, dy = all_moves[turn, i, j]
                    h_prime, w_prime = h + dy, w + dx
                    x[h, w], x[h_prime, w_prime] = x[h_prime, w_prime], x[h, w]
    blurs.shuffle(pixels, moves, reach, exchange=channels == 1)
    assert np.array_equal(pixels, expected)


def test_half_of_the_pixels_of_digits_are_carried_by_glass():
    sigma, reach, rounds, chance = MNIST_C.kinds["glass_blur"].levels[0]
    assert (sigma, reach, rounds) == IMAGENET_C.kinds["glass_blur"].levels[0]
    moves = blurs._moves(np.random.default_rng(0), (rounds, 200, 200), reach, chance)
    moved = (moves != 0).any(-1)
    # Of four moves one leads nowhere.
    assert moved.mean() == pytest.approx(chance * 3 / 4, abs=4 * np.sqrt(0.25 / moved.size))


@pytest.mark.parametrize("path", KINDS)
def test_an_image_is_damaged_alike_whatever_lies_beside_it(path, monkeypatch):
    kind = kind_of(path)
    whole = split(5, 22, 20, 1 if path.startswith("MNIST-C") else 3)
    severity = len(kind.levels)
    together = damage.corrupted(whole, kind, severity).images
    assert together.dtype == np.uint8
    assert together.shape == whole.images.shape
    assert not np.array_equal(together, whole.images)
    monkeypatch.setattr(damage, "_BLOCK", 2 * whole.images[0].size)
    parts = damage.corrupted(whole, kind, severity).images
    assert np.abs(parts - together.astype(int)).max() <= 1


@pytest.mark.parametrize("kind", ["gaussian_noise", "fog", "impulse_noise", "elastic_transform"])
def test_each_image_seed_and_severity_draws_anew(kind):
    way = CIFAR_10_C.kinds[kind].way
    same = damage.Kind(way, CIFAR_10_C.kinds[kind].levels[-1:] * 2)
    whole = Split(np.repeat(split(1, 16, 16, 3).images, 2, 0), np.zeros(2, np.int32))
    found = [damage.corrupted(whole, same, *at).images for at in ((1, 0), (1, 1), (2, 0))]
    drawn = np.concatenate(found)
    assert all(not np.array_equal(drawn[i], drawn[j]) for i in range(6) for j in range(i))
    assert np.array_equal(found[0], damage.corrupted(whole, same, 1).images)


@pytest.mark.parametrize("title", ["CIFAR-10-C", "ImageNet-C"])
@pytest.mark.parametrize(
    "kind",
    [
        "gaussian_noise",
        "shot_noise",
        "impulse_noise",
        "defocus_blur",
        "zoom_blur",
        "brightness",
        "contrast",
    ],
)
def test_damage_grows_with_its_severity(title, kind):
    kind, whole = SETS[title].kinds[kind], split(4, 32, 32, 3)
    found = [distance(whole, kind, severity) for severity in range(1, 6)]
    assert found == sorted(found)
    assert found[0] < found[4]


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 4), (7, 9, 2)])
def test_images_of_any_size_and_channels_are_damaged(shape):
    whole = split(2, *shape)
    for path in KINDS:
        kind = kind_of(path)
        assert damage.corrupted(whole, kind, len(kind.levels)).images.shape == (2, *shape)


def test_the_set_is_that_for_images_of_this_shape():
    assert damage.corruptions_for((9, 28, 28, 1)) is MNIST_C
    assert damage.corruptions_for((9, 32, 32, 3)) is CIFAR_10_C
    assert damage.corruptions_for((224, 224, 3)) is IMAGENET_C
    assert damage.corruptions_for((9, 60, 65, 1)) is IMAGENET_C
    assert [len(SETS[name].kinds) for name in SETS] == [15, 15, 15]
