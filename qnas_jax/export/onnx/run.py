"""Runs ONNX files on the CPU by ONNX Runtime.

Its fastest instructions for bytes on x86 CPUs with AVX2 but without VNNI add two products of
uint8 and int8 in 16 bits, where they saturate. With a session option (`EXACT`) it makes the
weights uint8 and sums in 32 bits. On CPUs with VNNI that is slower and not needed, so sessions
set it only if sums saturate in a trial.
"""

import functools
import os
import pathlib
from collections.abc import Iterable

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from qnas_jax.errors import InputError
from qnas_jax.export.onnx.write import IR_VERSION, OPSET
from qnas_jax.run import disk

QUIET = 3  # ONNX Runtime's level of errors
PROVIDERS = ["CPUExecutionProvider"]
EXACT = ("session.x64quantprecision", "1")


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
    options = _options(threads, exact=saturates())
    if optimized:
        options.optimized_model_filepath = os.fspath(optimized)
    given = os.fspath(model) if isinstance(model, pathlib.Path) else model.SerializeToString()
    try:
        return onnxruntime.InferenceSession(given, options, providers=PROVIDERS)
    except Exception as error:  # ONNX Runtime's own errors have no common class
        if not isinstance(model, pathlib.Path):
            raise
        disk.check_readable(model, error)
        raise InputError(f"{model}: is no model that runs here ({_first_line(error)})") from None


def _options(threads: int, exact: bool) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = QUIET
    if exact:
        options.add_session_config_entry(*EXACT)
    return options


@functools.cache
def saturates(exact: bool = False) -> bool:
    """Whether sums of bytes saturate in ONNX Runtime on this CPU.

    This is tried out, because builds of ONNX Runtime use different kernels on the same CPU.

    Args:
      exact: Whether the session is asked for exact sums (`EXACT`).
    """
    model, x = _largest_sums()
    options = _options(1, exact)
    ready = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=PROVIDERS)
    return not np.array_equal(np.asarray(ready.run(None, {"x": x})[0]), x)


def _largest_sums(channels: int = 16) -> tuple[onnx.ModelProto, np.ndarray]:
    """A convolution of the largest bytes whose output equals its input, and this input."""
    x = np.full((1, channels, 4, 4), 255, np.uint8)
    weights = np.full((channels, channels, 1, 1), 127, np.int8)
    scale = np.float32(channels * 127)  # so that the sum of all products is the code 255
    zeros = {"zero": np.uint8(0), "signed": np.int8(0)}
    held = {"weights": weights, "one": np.float32(1), "scale": scale, **zeros}
    names = ("x", "one", "zero", "weights", "one", "signed", "scale", "zero")
    graph = helper.make_graph(
        [helper.make_node("QLinearConv", names, ["y"])],
        "largest sums",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, x.shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION), x


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]


def run(ready: onnxruntime.InferenceSession, images: np.ndarray) -> np.ndarray:
    """The model's output for images [n, height, width, channels], usually class maps."""
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
