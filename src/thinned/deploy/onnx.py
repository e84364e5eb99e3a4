"""The plain pass as an ONNX model, which programs without JAX can run."""

from __future__ import annotations

import importlib
import logging
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend.core import jaxpr_as_fun

from thinned.core.errors import RequestError, need
from thinned.core.rng import fixed_settings
from thinned.deploy.programs import Programs
from thinned.models.apply import BATCH_SIZE

ONNX = "plain.onnx"
_OPSET = 21
"""Old enough for what people have, new enough for every operator of the package's networks."""


def needed_for_onnx() -> None:
    """Say before the work what an ONNX model takes.

    Raises:
        RequestError: ``jax2onnx`` or ``onnxruntime`` is not installed.
    """
    for module in ("jax2onnx", "onnxruntime"):
        need(module, "--onnx", "onnx")


@fixed_settings()
def onnx_of(programs: Programs, images: jax.ShapeDtypeStruct) -> bytes:
    """The plain program with its weights inside, as an ONNX model.

    Its input ``images`` u8 [image, height, width, channel] is of any number; its output ``logits``
    is f32 [run, image, class].

    Args:
        programs: of the runs.
        images: shape and dtype, with a symbolic number.

    Raises:
        RequestError: an operator has no form in ONNX that the converter knows.
    """
    converter: Any = importlib.import_module("jax2onnx")
    # Traced here: the converter would replace layers by its own, which cannot be mapped over
    # images and compute otherwise.
    traced = jax.make_jaxpr(lambda rows: programs.plain(programs.weights, rows))(images)
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        model: Any = converter.to_onnx(
            lambda rows: jaxpr_as_fun(traced)(rows)[0],
            [images],
            model_name="thinned",
            opset=_OPSET,
            input_names=["images"],
            output_names=["logits"],
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        operator = re.search(r"primitive '([^']+)'", reason)
        named = f"operator {operator[1]}" if operator else reason
        raise RequestError(f"the network cannot be converted to ONNX: {named}") from error
    finally:
        logger.setLevel(level)
    return model.SerializeToString()


def onnx_logits(path: Path, images: np.ndarray) -> np.ndarray:
    """Logits f32 [run, image, class] of images u8 [image, height, width, channel].

    By ONNX Runtime on the CPU, a batch at a time.
    """
    runtime: Any = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    starts = range(0, len(images), BATCH_SIZE)
    parts = [images[start : start + BATCH_SIZE] for start in starts]
    return np.concatenate([session.run(None, {"images": part})[0] for part in parts], 1)
