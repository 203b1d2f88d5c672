"""Runs LiteRT files on the CPU by the LiteRT interpreter."""

import os
import pathlib
import warnings
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from qnas_jax.errors import InputError
from qnas_jax.export.graph import Graph
from qnas_jax.export.litert import write as litert_file
from qnas_jax.export.litert.rounding import Kernels
from qnas_jax.run import disk

RESOLVERS = {
    "xnnpack": OpResolverType.BUILTIN,
    "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "reference": OpResolverType.BUILTIN_REF,
}


def session(
    model: bytes | pathlib.Path,
    threads: int = 1,
    kernels: Kernels = "xnnpack",
    inner: bool = False,
) -> Interpreter:
    """A model, ready to run.

    Args:
      model: The model or its file.
      threads: How many it may use.
      kernels: Whose kernels run it.
      inner: Whether inner tensors can be read afterwards; see `tensors`.

    Raises:
      InputError: The file is missing or is no model that runs here.
    """
    given: dict[str, Any] = {"model_content": model}
    if isinstance(model, pathlib.Path):
        given = {"model_path": os.fspath(model)}
    try:
        with warnings.catch_warnings():
            # LiteRT warns each time that keeping inner tensors takes memory.
            warnings.filterwarnings("ignore", ".*preserve_all_tensors")
            ready = Interpreter(
                **given,
                num_threads=threads,
                experimental_op_resolver_type=RESOLVERS[kernels],
                experimental_preserve_all_tensors=inner,
            )
        ready.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        if not isinstance(model, pathlib.Path):
            raise
        disk.check_readable(model, error)
        reason = str(error).splitlines()[0][:200]
        raise InputError(f"{model}: is no model that runs here ({reason})") from None
    return ready


def run(ready: Interpreter, images: np.ndarray) -> np.ndarray:
    """The model's output for images [n, height, width, channels], usually class maps."""
    (out,) = (detail["index"] for detail in ready.get_output_details())
    return np.concatenate([_invoked(ready, image).get_tensor(out) for image in images])


def tensors(ready: Interpreter, network: Graph, images: np.ndarray) -> dict[str, np.ndarray]:
    """Every tensor of the network by its name: the graph's codes (uint8), or real values.

    Args:
      ready: The network's model, a session with `inner`.
      network: The network.
      images: What it reads, [n, height, width, channels].
    """
    places = {detail["name"]: detail["index"] for detail in ready.get_tensor_details()}
    wanted = [node.out for node in network.nodes]
    found: dict[str, list[np.ndarray]] = {out.name: [] for out in wanted}
    for image in images:
        _invoked(ready, image)
        for out in wanted:
            found[out.name].append(ready.get_tensor(places[out.name]).reshape(1, *out.shape))
    joined = {name: np.concatenate(values) for name, values in found.items()}
    for out in wanted:
        if out.grid is not None:
            joined[out.name] = litert_file.codes(out.grid, joined[out.name])
    return {network.x.name: images, **joined}


def _invoked(ready: Interpreter, image: np.ndarray) -> Interpreter:
    (source,) = (detail["index"] for detail in ready.get_input_details())
    ready.set_tensor(source, image[None])
    ready.invoke()
    return ready
