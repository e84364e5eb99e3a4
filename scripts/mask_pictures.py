"""Draw docs/masks/*.svg: the mask of every kind of dropout, and a frozen one beside fresh ones.

python scripts/mask_pictures.py

No colour depends on the page's: the pictures stand on light and on dark ones.
"""

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from thinned.core.rng import key_for
from thinned.dropout import functional

FOLDER = Path(__file__).parent.parent / "docs" / "masks"
_CELL, _GAP = 8, 12
_LEVELS = 10
_KEPT, _NEGATIVE, _NOTHING = "#1a7fc1", "#d55e00", "#7a7f87"
_STEPS = 6


def pictures() -> dict[str, str]:
    """Name -> SVG; each shows what is made of ones."""
    key = jax.random.key(0)
    dense, maps = jnp.ones((8, 32)), jnp.ones((2, 6, 6, 6))
    tiles = {
        "element": _one(functional.dropout(dense, 0.5, key)),
        "channel": _channels(functional.channel_dropout(maps, 0.5, key)),
        "block": _channels(functional.drop_block(jnp.ones((1, 18, 18, 2)), 0.3, key, block_size=5)),
        "path": _channels(functional.drop_path(jnp.ones((2, 6, 6, 6)), 0.5, jax.random.key(3))),
        "gaussian": _one(functional.gaussian_dropout(dense, 0.5, key)),
        "alpha": _one(functional.alpha_dropout(dense, 0.5, key)),
        "concrete": _one(functional.concrete_dropout(dense, 0.5, key, temperature=0.5)),
        "connect": _one(functional.drop_connect(jnp.eye(8), dense, 0.5, key, per_example=False)),
        "frozen": _steps([key] * _STEPS),
        "fresh": _steps([key_for(0, "dropout", step) for step in range(_STEPS)]),
    }
    return {name: svg(np.asarray(each)) for name, each in tiles.items()}


def svg(tiles: np.ndarray) -> str:
    """A picture of tiles [row, column, height, width]: full for the largest, hollow for 0."""
    rows, columns, height, width = tiles.shape
    right, down = width * _CELL + _GAP, height * _CELL + _GAP
    size = columns * right - _GAP, rows * down - _GAP
    drawn = "".join(_paths(tiles, right, down))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-1 -1 {size[0] + 2} {size[1] + 2}" '
        f'width="{size[0] + 2}" height="{size[1] + 2}">{drawn}</svg>\n'
    )


def _paths(tiles: np.ndarray, right: int, down: int) -> Iterator[str]:
    """One path for all cells that look the same."""
    levels = np.rint(_LEVELS * tiles / np.abs(tiles).max()).astype(int)
    for level in np.unique(levels).tolist():
        cells = "".join(
            f"M{column * right + x * _CELL} {row * down + y * _CELL}h7v7h-7z"
            for row, column, y, x in np.argwhere(levels == level).tolist()
        )
        colour = _KEPT if level > 0 else _NEGATIVE
        look = f'fill="{colour}" fill-opacity="{abs(level) / _LEVELS:g}"'
        if level == 0:
            look = f'fill="none" stroke="{_NOTHING}" stroke-opacity=".45"'
        yield f'<path {look} d="{cells}"/>'


def _one(values: jax.Array) -> jax.Array:
    return values[None, None]


def _channels(values: jax.Array) -> jax.Array:
    """A row for each example, a tile for each of its maps."""
    return values.transpose(0, 3, 1, 2)


def _steps(keys: list[jax.Array]) -> jax.Array:
    """A tile for each step, and last how often each unit was kept in all of them."""
    masks = jnp.stack([functional.dropout(jnp.ones((8, 8)), 0.5, key) for key in keys])
    return jnp.concatenate([masks, masks.mean(0, keepdims=True)])[None]


def main() -> None:
    """Write them all."""
    FOLDER.mkdir(exist_ok=True)
    for name, picture in pictures().items():
        (FOLDER / f"{name}.svg").write_text(picture)


if __name__ == "__main__":
    main()
