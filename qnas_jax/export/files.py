"""Graphs as the bytes of files."""

import importlib.util

from qnas_jax.errors import InputError
from qnas_jax.export.graph import Graph


def to_onnx(network: Graph) -> bytes:
    """Writes a network as an ONNX model (opset 21).

    A graph of images reads uint8[n, height, width, 3] and gives the class of each pixel,
    uint8[n, height, width]. A quantized graph has QDQ nodes: activations in uint8, weights in
    int8 (of at most 4 bits in int4) with a scale for each output channel, biases in int32.

    Args:
      network: The graph, see `to_graph`.

    Returns:
      The content of a `.onnx` file.
    """
    from qnas_jax.export.onnx import write

    return write.model(network).SerializeToString()


def to_tflite(network: Graph) -> bytes:
    """Writes a network of images as a TFLite model, which LiteRT runs.

    It reads and gives what the ONNX model does; see `to_onnx`.

    Args:
      network: The graph, see `to_graph`.

    Returns:
      The content of a `.tflite` file.

    Raises:
      InputError: LiteRT is not installed, or it has no such activation.
    """
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise InputError("LiteRT is not installed: pip install 'qnas-jax[litert]'")
    from qnas_jax.export.litert import write

    return write.model(network)
