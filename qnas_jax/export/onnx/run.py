"""Runs ONNX files on the CPU by ONNX Runtime."""

import os
import pathlib
from collections.abc import Iterable

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from qnas_jax.errors import InputError

QUIET = 3  # ONNX Runtime's level of errors


def session(
    model: onnx.ModelProto | pathlib.Path,
    threads: int = 1,
    optimized: pathlib.Path | None = None,
) -> onnxruntime.InferenceSession:
    """A model, ready to run.

    Args:
      model: The model or its file.
      threads: How many it may use.
      optimized: Where to write the graph that really runs, if anywhere.

    Raises:
      InputError: The file is missing or is no model that runs here.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = QUIET
    if optimized:
        options.optimized_model_filepath = os.fspath(optimized)
    given = os.fspath(model) if isinstance(model, pathlib.Path) else model.SerializeToString()
    try:
        return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own errors have no common class
        if not isinstance(model, pathlib.Path):
            raise
        raise InputError(f"{model}: is no model that runs here ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]


def run(ready: onnxruntime.InferenceSession, images: np.ndarray) -> np.ndarray:
    """What the model gives for images [n, height, width, channels]; class maps, mostly."""
    return np.asarray(ready.run(None, {ready.get_inputs()[0].name: images})[0])


def with_outputs(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """The model with inner tensors as further outputs; see `tensors`."""
    known = {name for node in model.graph.node for name in node.output}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for name in names:
        if name not in known:
            raise InputError(f"{name!r}: the model has no such tensor")
        copy.graph.output.append(helper.make_empty_tensor_value_info(name))
    return copy


def tensors(ready: onnxruntime.InferenceSession, images: np.ndarray) -> dict[str, np.ndarray]:
    """Every output by its name; inner tensors, channels first, are put channels last."""
    names = [output.name for output in ready.get_outputs()]
    found = ready.run(names, {ready.get_inputs()[0].name: images})
    arrays = [np.asarray(value) for value in found]
    inner = {k: np.moveaxis(v, 1, -1) for k, v in zip(names[1:], arrays[1:], strict=True)}
    return {names[0]: arrays[0], **inner}
