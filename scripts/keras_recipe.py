"""Run the Keras recipe of docs/own-program.md: `python scripts/keras_recipe.py`.

Needs ``pip install keras`` beside thinned, best in an environment of its own. The code is taken
from the page, so that what is shown there is what has run.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np

PAGE = Path(__file__).parents[1] / "docs" / "own-program.md"
RATE = 0.3


def recipe() -> Any:
    """The class that the page shows."""
    section = PAGE.read_text().split("## Keras on JAX")[1]
    space: dict[str, Any] = {"__name__": __name__}
    exec(section.split("```py\n")[1].split("```")[0], space)
    return space["Dropout"]


def fitted(kind: Any) -> Any:
    """A model with the recipe's layer, after two epochs on random numbers."""
    random = np.random.default_rng(0)
    images, labels = random.normal(size=(64, 20)).astype(np.float32), np.arange(64) % 10
    layers = [keras.layers.Dense(32, activation="relu"), kind(RATE, seed=1), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((20,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, optimizer="adam")
    before = np.asarray(model.layers[1].seeds.state.value)
    history = model.fit(images, labels, epochs=2, batch_size=16, verbose=0).history
    assert np.isfinite(history["loss"]).all(), history
    assert (before != np.asarray(model.layers[1].seeds.state.value)).any(), "fit drew no mask"
    assert np.array_equal(model.predict(images, verbose=0), model.predict(images, verbose=0))
    return model


def look(kind: Any) -> None:
    """Ask the layer itself."""
    ones = np.ones((100, 1000), np.float32)
    layer, twin = kind(RATE, seed=7), kind(RATE, seed=7)
    first, second = (np.asarray(layer(ones, training=True)) for _ in range(2))
    assert np.array_equal(first, np.asarray(twin(ones, training=True))), "the seed does not repeat"
    assert (first != second).any(), "the mask is frozen"
    error = (RATE * (1 - RATE) / ones.size) ** 0.5
    assert abs((first == 0).mean() - RATE) < 5 * error, (first == 0).mean()
    assert np.allclose(first[first != 0], 1 / (1 - RATE))
    assert np.array_equal(np.asarray(layer(ones)), ones), "it drops at prediction"


def saved(model: Any, kind: Any) -> None:
    """A saved model has its rate and predicts as before."""
    images = np.ones((2, 20), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        again = keras.saving.load_model(path, custom_objects={"Dropout": kind})
    assert again.layers[1].rate == RATE
    expected = model.predict(images, verbose=0)
    assert np.allclose(again.predict(images, verbose=0), expected, rtol=1e-5, atol=1e-6)


def main() -> None:
    kind = recipe()
    look(kind)
    saved(fitted(kind), kind)
    print(f"keras {keras.__version__}, jax {jax.__version__}: the recipe works")


if __name__ == "__main__":
    main()
