"""What a file holds, layer by layer: `model.json`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from qnas_jax import space
from qnas_jax.export import graph
from qnas_jax.export.graph import Graph
from qnas_jax.hardware import size


class File(NamedTuple):
    """A file that a graph was written to: its format, its size, what gives its exact codes."""

    file_format: size.FileFormat
    file_bytes: int
    exact_with: str


def describe(network: Graph, files: Mapping[str, File]) -> dict[str, Any]:
    """The layers of a graph and their bytes.

    `size_bytes` is what a search compares: weights at their bitwidth, and a scale and a bias for
    each output channel. `stored_bytes` is what the size table says of each file: weights in the
    type that the format has for them (`w_container`), what the format stores for each channel,
    and (in the sum over layers) what it stores once. The rest of a file (`graph_bytes`)
    is names, nodes and the grids of the activations.

    Args:
      network: The graph that the files were written from.
      files: The files by their names.
    """
    tensors = network.tensors()
    layers = [_layer(conv, tensors, files) for conv in network.convs]
    channels = [
        layer["out_channels"]
        for layer in layers
        if "w_bits" in layer and layer["w_scale_min"] < layer["w_scale_max"]
    ]
    stored = {
        name: sum(layer["stored_bytes"][name] for layer in layers)
        + size.shared_bytes(channels, file.file_format)
        for name, file in files.items()
    }
    return {
        "picture": list(network.x.shape[:2]),
        "input": _tensor(network.x),
        "output": _tensor(network.out),
        "size_bytes": sum(layer["size_bytes"] for layer in layers),
        "stored_bytes": stored,
        "graph_bytes": {name: file.file_bytes - stored[name] for name, file in files.items()},
        "file_bytes": {name: file.file_bytes for name, file in files.items()},
        "exact_with": {name: file.exact_with for name, file in files.items()},
        "layers": layers,
        "tensors": [_tensor(tensor) for tensor in tensors.values()],
    }


def _tensor(tensor: graph.Tensor) -> dict[str, Any]:
    found: dict[str, Any] = {"name": tensor.name, "shape": list(tensor.shape)}
    if tensor.grid:
        scale, zero_point, bits = tensor.grid
        found |= {"bits": bits, "scale": scale, "zero_point": zero_point}
    return found


def _layer(
    conv: graph.ConvNode, tensors: dict[str, graph.Tensor], files: Mapping[str, File]
) -> dict[str, Any]:
    height, width, channels = tensors[conv.x].shape
    how = (conv.kernel, conv.stride, conv.dilation, conv.groups, channels, conv.weights.shape[-1])
    record = space.Conv(conv.out.name, *how, height, width)
    names = ("name", "kernel", "stride", "dilation", "groups", "in_channels", "out_channels")
    found: dict[str, Any] = {name: getattr(record, name) for name in names}
    found["bounds"] = [b if np.isfinite(b) else None for b in conv.bounds]
    if conv.padding:
        found["padding"] = list(conv.padding)
    found["macs"] = record.macs
    if conv.w_bits is None:
        floats = size.float_bytes([record])
        return found | {"size_bytes": floats, "stored_bytes": dict.fromkeys(files, floats)}
    return found | _quantized(conv, record, files)


def _quantized(
    conv: graph.ConvNode, record: space.Conv, files: Mapping[str, File]
) -> dict[str, Any]:
    """Bitwidths, scales and bytes of a quantized convolution."""
    w_bits, w_scale, grid = conv.w_bits, conv.w_scale, conv.out.grid
    assert w_bits is not None and w_scale is not None and grid is not None
    formats = {name: file.file_format for name, file in files.items()}
    per_channel = bool(np.ptp(w_scale))
    return {
        "w_bits": w_bits,
        "a_bits": grid.bits,
        "w_scale_min": float(w_scale.min()),
        "w_scale_max": float(w_scale.max()),
        "w_container": {n: f"int{size.container_bits(w_bits, f)}" for n, f in formats.items()},
        "scale": grid.scale,
        "zero_point": grid.zero_point,
        "size_bytes": int(size.conv_bytes(record, w_bits, per_channel)),
        "stored_bytes": {
            n: int(size.file_bytes(record, w_bits, f, per_channel)) for n, f in formats.items()
        },
    }
