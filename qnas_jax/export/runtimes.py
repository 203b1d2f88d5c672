"""What files are written for, and run by: ONNX Runtime, and LiteRT where it is installed."""

import functools
import importlib.util
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from qnas_jax.export import onnx as onnx_file
from qnas_jax.export import run
from qnas_jax.export.graph import Graph
from qnas_jax.export.parity import Codes
from qnas_jax.segment import ClassMaps


class Runtime(NamedTuple):
    """A file format and what runs it.

    Attributes:
      suffix: Of the files' names.
      file: A network's file, as bytes.
      class_maps: Opens a file; gives a function images -> class maps.
      tensors: A network's tensors of codes for some images.
    """

    suffix: str
    file: Callable[[Graph], bytes]
    class_maps: Callable[[pathlib.Path], ClassMaps]
    tensors: Callable[[Graph, np.ndarray], Codes]


def has_litert() -> bool:
    """Whether LiteRT is installed; see docs/litert.md."""
    return importlib.util.find_spec("ai_edge_litert") is not None


def installed() -> tuple[Runtime, ...]:
    """All runtimes that there are here, ONNX Runtime first."""
    return (onnx_runtime(), *([litert_runtime()] if has_litert() else []))


def onnx_runtime() -> Runtime:
    """ONNX files, by ONNX Runtime on the CPU."""

    def tensors(network: Graph, images: np.ndarray) -> Codes:
        inner = [node.out.name for node in network.nodes if node.out.grid]
        ready = run.session(run.with_outputs(onnx_file.model(network), inner))
        return run.tensors(ready, images)

    return Runtime(
        ".onnx",
        lambda network: onnx_file.model(network).SerializeToString(),
        lambda path: functools.partial(run.run, run.session(path)),
        tensors,
    )


def litert_runtime() -> Runtime:
    """LiteRT files, by XNNPACK on the CPU."""
    from qnas_jax.export import litert, litert_run

    def tensors(network: Graph, images: np.ndarray) -> Codes:
        ready = litert_run.session(litert.model(network), inner=True)
        return litert_run.tensors(ready, network, images)

    return Runtime(
        ".tflite",
        litert.model,
        lambda path: functools.partial(litert_run.run, litert_run.session(path)),
        tensors,
    )
