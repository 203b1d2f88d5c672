"""Layers with made-up weights, to be timed: no network is built, nothing is calibrated."""

from typing import NamedTuple

import numpy as np

from qnas_jax import space
from qnas_jax.export import graph
from qnas_jax.export.graph import Graph, Node, Shape, Tensor
from qnas_jax.nn.conv import LINEAR, RELU6

X_RANGE = 4.0  # what is read, and what linear layers give, lies in [-4, 4)


class _Draft(NamedTuple):
    rng: np.random.Generator
    bits: space.Bits | None
    tensors: dict[str, Tensor]
    nodes: list[Node]

    def tensor(self, name: str, shape: Shape, bounds: graph.Bounds, bits: int) -> Tensor:
        if self.bits is None:
            return Tensor(name, shape)
        points = 2**bits
        if bounds == RELU6:
            return Tensor(name, shape, graph.Grid(6 / (points - 1), 0, bits))
        return Tensor(name, shape, graph.Grid(2 * X_RANGE / points, points // 2, bits))

    def append(self, node: Node) -> str:
        self.tensors[node.out.name] = node.out
        self.nodes.append(node)
        return node.out.name


def path(
    block: space.Block, ops: space.Path, bits: space.Bits | None, shape: Shape, seed: int = 0
) -> Graph:
    """The layers of a block, or its first few, with random weights.

    Values keep their size from layer to layer, so that no code saturates throughout.

    Args:
      block: The block.
      ops: The ops of its layers.
      bits: Bitwidths of weights and activations; None in float.
      shape: Height, width and channels of what it reads (which has 8 bits).
      seed: Of the weights.
    """
    draft = _Draft(np.random.default_rng(seed), bits, {}, [])
    read = draft.tensor("x", shape, LINEAR, 8)
    draft.tensors["x"] = read
    x = "x"
    for layer, op in enumerate(ops):
        _, stride = block.layer_shape(layer)
        name, below = f"layer{layer}", draft.tensors[x].shape
        y = x
        convs = space.mbconv_convs(op, name, below, block.channels, stride, block.dilation)
        for conv in convs:
            y = _conv(draft, conv, y)
        if stride == 1 and below[-1] == block.channels:
            out = draft.tensors[y]._replace(name=f"{name}/add")
            y = draft.append(graph.Add(out, (x, y)))
        x = y
    return Graph(read, tuple(draft.nodes))


def _conv(draft: _Draft, conv: space.Conv, x: str) -> str:
    bounds = LINEAR if conv.name.endswith("/project") else RELU6
    fan_in = conv.kernel**2 * conv.in_channels // conv.groups
    shape = (conv.kernel, conv.kernel, conv.in_channels // conv.groups, conv.out_channels)
    weights = draft.rng.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)
    bias = draft.rng.normal(0.5, 0.5, conv.out_channels).astype(np.float32)
    height, width = (-(-side // conv.stride) for side in (conv.in_height, conv.in_width))
    a_bits = draft.bits[1] if draft.bits else 8
    out = draft.tensor(conv.name, (height, width, conv.out_channels), bounds, a_bits)
    how = (conv.stride, conv.dilation, conv.groups, bounds)
    read = draft.tensors[x].grid
    if draft.bits is None or read is None:
        return draft.append(graph.Conv(out, x, weights, bias, *how))
    w_bits = draft.bits[0]
    scale = np.abs(weights).max((0, 1, 2)) / np.float32(2 ** (w_bits - 1) - 1)
    codes = np.rint(weights / scale).astype(np.int8)
    bias_codes = np.rint(bias / (read.scale * scale)).astype(np.int32)
    return draft.append(graph.Conv(out, x, codes, bias, *how, w_bits, scale, bias_codes))
