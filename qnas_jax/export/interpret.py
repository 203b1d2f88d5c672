"""Runs a graph in NumPy; the reference for every runtime."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from qnas_jax.export import graph
from qnas_jax.export.graph import Graph, Node, QParams
from qnas_jax.quant import integer


def run(
    network: Graph, images: np.ndarray, rule: integer.Rule = integer.by_float
) -> dict[str, np.ndarray]:
    """Runs a graph and returns all tensors by name: codes (uint8) or real values (float32).

    Args:
      network: The graph, quantized or float.
      images: Input, [n, height, width, channels]; codes or real values.
      rule: How accumulators are rounded to codes.

    Raises:
      OverflowError: An accumulator of the quantized network does not fit into int32.
    """
    return walk(network, images, functools.partial(step, rule=rule))


def walk(network: Graph, images: Any, compute: Callable[[Node, list, list], Any]) -> dict[str, Any]:
    """Evaluates a graph node by node and returns all tensors by name.

    Args:
      network: The graph.
      images: Input of the graph.
      compute: Function (node, inputs, grids of the inputs) -> output; see `step`.
    """
    values, tensors = {network.x.name: images}, network.tensors()
    for node in network.nodes:
        inputs = [values[name] for name in node.inputs]
        grids = [tensors[name].grid for name in node.inputs]
        values[node.out.name] = compute(node, inputs, grids)
    return values


def step(
    node: Node,
    inputs: list[np.ndarray],
    grids: list,
    rule: integer.Rule = integer.by_float,
) -> np.ndarray:
    """Returns the output of one node; `grids` are those of its inputs (None in float)."""
    x, read, written = inputs[0], grids[0], node.out.grid
    match node:
        case graph.ConvNode():
            return _conv(node, x, read, rule)
        case graph.Add() if written:
            a, b, out = ((grid.scale, grid.zero_point) for grid in (*grids, written))
            return integer.add(inputs[0], inputs[1], a, b, out, written.q_max)
        case graph.Add():
            return inputs[0] + inputs[1]
        case graph.Mean() if written:
            sums, pixels = integer.mean(x, read.zero_point)
            factor = mean_multiplier(read, written, pixels)
            return integer.requantize(sums, factor, written.zero_point, (0, written.q_max), rule)
        case graph.Mean():
            return x.mean((1, 2), keepdims=True)
        case graph.Dequantize():
            return read.reals(x)
        case graph.Broadcast():
            return np.broadcast_to(x, (len(x), *node.out.shape))
        case graph.Concat():
            return np.concatenate(inputs, -1)
        case graph.Resize():
            return resize(x, *node.out.shape[:2])
        case graph.ArgMax():
            return x.argmax(-1)[..., None].astype(graph.class_type(x.shape[-1]))


def _conv(node: graph.ConvNode, x: np.ndarray, read, rule: integer.Rule) -> np.ndarray:
    written = node.out.grid
    if written is None or node.w_scale is None or node.bias_codes is None:
        how = (node.stride, node.dilation, node.groups)
        around = np.array(node.padding) if node.padding else None
        total = integer.accumulate(x, node.weights, *how, around) + node.bias
        return np.clip(total, *node.bounds).astype(np.float32)
    bounds = written.code_bounds(node.bounds)
    found, factor = sums(node, x, read), multiplier(node, read)
    return integer.requantize(found, factor, written.zero_point, bounds, rule)


def sums(conv: graph.ConvNode, x: np.ndarray, read: QParams) -> Int[np.ndarray, "n h w c"]:
    """Returns the accumulators of a quantized convolution."""
    assert conv.bias_codes is not None
    how = (conv.stride, conv.dilation, conv.groups, conv.padding_codes(read))
    return integer.conv(x, read.zero_point, conv.weights, conv.bias_codes, *how)


def multiplier(conv: graph.ConvNode, read: QParams) -> Float[np.ndarray, "c"]:
    """Returns the scale of a convolution's accumulators over its output's scale, float32."""
    assert conv.out.grid is not None and conv.w_scale is not None
    return np.float32(read.scale) * conv.w_scale / np.float32(conv.out.grid.scale)


def mean_multiplier(read: QParams, out: QParams, pixels: int) -> Float[np.ndarray, "1"]:
    """Returns the scale of a sum over `pixels` pixels over the scale of their mean, float32."""
    return np.asarray([read.scale / (out.scale * pixels)], np.float32)


def resize(
    x: Float[np.ndarray, "n h w c"], height: int, width: int
) -> Float[np.ndarray, "n h2 w2 c"]:
    """Resizes bilinearly with half-pixel centres; edges are repeated."""
    rows, columns = _weights(x.shape[1], height), _weights(x.shape[2], width)
    return np.einsum("ab,cd,nbdk->nack", rows, columns, x, optimize=True).astype(np.float32)


def _weights(inputs: int, outputs: int) -> Float[np.ndarray, "{outputs} {inputs}"]:
    """Interpolation weights along one side."""
    centre = (np.arange(outputs) + 0.5) * inputs / outputs - 0.5
    centre = np.clip(centre, 0, inputs - 1)[:, None]
    return np.maximum(1 - np.abs(centre - np.arange(inputs)), 0)
