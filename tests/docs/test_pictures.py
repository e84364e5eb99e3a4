"""The pictures of masks are what the functions draw today."""

import runpy

from conftest import ROOT


def test_pictures_of_masks_are_those_that_the_functions_draw():
    drawn = runpy.run_path(str(ROOT / "scripts" / "mask_pictures.py"))["pictures"]()
    kept = {path.stem: path.read_text() for path in (ROOT / "docs" / "masks").glob("*.svg")}
    assert kept == drawn, "run: python scripts/mask_pictures.py"
