"""Networks as files that deploy: ONNX, and TFLite where LiteRT is installed.

graph = export.to_graph(network, variables, quant, (64, 128, 3), resize=True)
pathlib.Path("network.onnx").write_bytes(export.to_onnx(graph))
"""

from qnas_jax.export.files import to_onnx, to_tflite
from qnas_jax.export.fold import fold as to_graph
from qnas_jax.export.graph import Graph

__all__ = ["Graph", "to_graph", "to_onnx", "to_tflite"]
