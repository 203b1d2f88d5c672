"""What a file holds, layer by layer: `model.json`."""

from typing import Any

import numpy as np

from qnas_jax import space
from qnas_jax.export import graph
from qnas_jax.export.graph import Graph
from qnas_jax.hardware import size
from qnas_jax.hardware.size import PACKED_BITS


def describe(network: Graph, file_bytes: dict[str, int]) -> dict[str, Any]:
    """The layers of a graph and their bytes.

    `size_bytes` is what the size table counts: weights at their bitwidth, a scale and a bias
    for each output channel. `stored_bytes` is what a file holds of it: weights of 4 bits
    and fewer in pairs, of 5 to 7 in a byte each. What a file has beyond that
    (`graph_bytes`) are names, nodes, and the grids of the activations.

    Args:
      network: The graph that the files were written from.
      file_bytes: Sizes of the files, by their names.
    """
    tensors = network.tensors()
    layers = [_layer(conv, tensors) for conv in network.convs]
    logical, stored = (sum(layer[k] for layer in layers) for k in ("size_bytes", "stored_bytes"))
    return {
        "input": _tensor(network.x),
        "output": _tensor(network.out),
        "size_bytes": logical,
        "stored_bytes": stored,
        "graph_bytes": {name: held - stored for name, held in file_bytes.items()},
        "file_bytes": file_bytes,
        "layers": layers,
        "tensors": [_tensor(tensor) for tensor in tensors.values()],
    }


def _tensor(tensor: graph.Tensor) -> dict[str, Any]:
    found: dict[str, Any] = {"name": tensor.name, "shape": list(tensor.shape)}
    if tensor.grid:
        scale, zero_point, bits = tensor.grid
        found |= {"bits": bits, "scale": scale, "zero_point": zero_point}
    return found


def _layer(conv: graph.Conv, tensors: dict[str, graph.Tensor]) -> dict[str, Any]:
    height, width, channels = tensors[conv.x].shape
    outputs = conv.weights.shape[-1]
    record = space.Conv(
        conv.out.name,
        conv.kernel,
        conv.stride,
        conv.dilation,
        conv.groups,
        channels,
        outputs,
        height,
        width,
    )
    found = {
        "name": record.name,
        "kernel": record.kernel,
        "stride": record.stride,
        "dilation": record.dilation,
        "groups": record.groups,
        "in_channels": channels,
        "out_channels": outputs,
        "bounds": [b if np.isfinite(b) else None for b in conv.bounds],
        "macs": record.macs,
    }
    if conv.w_bits is None or conv.w_scale is None or conv.out.grid is None:
        found["size_bytes"] = found["stored_bytes"] = size.float_bytes([record])
        return found
    packed = conv.w_bits <= PACKED_BITS
    return found | {
        "w_bits": conv.w_bits,
        "a_bits": conv.out.grid.bits,
        "w_scale_min": float(conv.w_scale.min()),
        "w_scale_max": float(conv.w_scale.max()),
        "w_container": "int4" if packed else "int8",
        "scale": conv.out.grid.scale,
        "zero_point": conv.out.grid.zero_point,
        "size_bytes": int(size.conv_bytes(record, conv.w_bits)),
        "stored_bytes": int(size.file_bytes(record, conv.w_bits, size.ONNX_QDQ)),
    }
