"""The codes of LiteRT's three sets of kernels, in NumPy. The sets differ in their rounding.

- `xnnpack`, the default: `integer.by_float` for convolutions and means, 20-bit integer
  multipliers for sums of two tensors.
- `builtin`, LiteRT's own fast kernels: `integer.by_fixed_point_up` for convolutions and means,
  `integer.by_fixed_point` for sums. A depthwise convolution computes groups of eight channels;
  the remaining channels also use `integer.by_fixed_point`. The mean rounds its zero point
  separately.
- `reference`, the slow and simple kernels: `integer.by_fixed_point` everywhere.

References:
  LiteRT, https://github.com/google-ai-edge/LiteRT, `tflite/kernels`; XNNPACK,
  https://github.com/google/XNNPACK. Found by comparing codes of ai-edge-litert 2.3.0.
"""

import functools
from typing import Literal, TypeAlias

import numpy as np

from qnas_jax.export import graph, interpret
from qnas_jax.export.graph import Graph, Node, QParams
from qnas_jax.quant import integer

Kernels: TypeAlias = Literal["xnnpack", "builtin", "reference"]

XNNPACK_BITS = 20  # bits of the larger multiplier of a sum
LANES = 8  # channels that the builtin depthwise convolution computes at once
INT8_MAX = 127
HEADROOM = 20  # bits by which the builtin sum shifts its terms


def run(network: Graph, images: np.ndarray, kernels: Kernels) -> dict[str, np.ndarray]:
    """Runs a graph with a set of kernels and returns all tensors by name; see `interpret.run`."""
    return interpret.walk(network, images, functools.partial(step, kernels=kernels))


def step(node: Node, inputs: list[np.ndarray], grids: list, kernels: Kernels) -> np.ndarray:
    """Returns the output of one node; see `interpret.step`."""
    if node.out.grid is not None:
        match node:
            case graph.ConvNode() if kernels != "xnnpack":
                return _conv(node, inputs[0], grids[0], kernels)
            case graph.Add():
                add = xnnpack_add if kernels == "xnnpack" else _fixed_point_add
                return add(inputs, grids, node.out.grid)
            case graph.Mean() if kernels == "builtin":
                return _builtin_mean(inputs[0], grids[0], node.out.grid)
            case graph.Mean() if kernels == "reference":
                return interpret.step(node, inputs, grids, integer.by_fixed_point)
    return interpret.step(node, inputs, grids, integer.by_float)


def _conv(conv: graph.ConvNode, x: np.ndarray, read: QParams, kernels: Kernels) -> np.ndarray:
    """A convolution with fixed-point multipliers, which are computed in float64."""
    out = conv.out.grid
    assert out is not None and conv.w_scale is not None
    sums = interpret.sums(conv, x, read)
    multiplier = read.scale * conv.w_scale.astype(np.float64) / out.scale
    bounds = out.code_bounds(conv.bounds)
    channels = len(multiplier)
    ups = 0 if kernels == "reference" else channels
    if kernels != "reference" and conv.groups > 1:
        ups -= channels % LANES
    parts = [
        integer.requantize(sums[..., part], multiplier[part], out.zero_point, bounds, rule)
        for part, rule in (
            (slice(ups), integer.by_fixed_point_up),
            (slice(ups, None), integer.by_fixed_point),
        )
    ]
    return np.concatenate(parts, -1)


def xnnpack_add(inputs: list[np.ndarray], grids: list[QParams], out: QParams) -> np.ndarray:
    """Returns the codes of a sum by integer multipliers and a shift; ties round up."""
    ratios = [np.float32(grid.scale) / np.float32(out.scale) for grid in grids]
    shift = XNNPACK_BITS - int(np.floor(np.log2(max(ratios))))
    total = np.full(inputs[0].shape, 1 << (shift - 1), np.int64)
    for codes, grid, ratio in zip(inputs, grids, ratios, strict=True):
        whole = np.int64(np.rint(np.ldexp(np.float64(ratio), shift)))
        total = total + (codes.astype(np.int64) - grid.zero_point) * whole
    return _on(out, total >> shift)


def _fixed_point_add(inputs: list[np.ndarray], grids: list[QParams], out: QParams) -> np.ndarray:
    """Rescales both terms to a common grid with spare bits, then their sum to the output's grid."""
    common = 2 * max(grid.scale for grid in grids)
    total = np.zeros(inputs[0].shape, np.int64)
    for codes, grid in zip(inputs, grids, strict=True):
        term = (codes.astype(np.int64) - grid.zero_point) << HEADROOM
        total = total + integer.by_fixed_point(term, np.array([grid.scale / common]))
    last = np.array([common / (2.0**HEADROOM * out.scale)])
    return _on(out, integer.by_fixed_point(total, last))


def _builtin_mean(codes: np.ndarray, grid: QParams, out: QParams) -> np.ndarray:
    """The mean of int8 codes; the zero point's share is rounded separately, ties away from zero."""
    end = INT8_MAX - grid.q_max  # int8 code - uint8 code (see `write.zero_point`)
    sums, pixels = integer.mean(codes, -end)
    scale, zero = np.float32(grid.scale), np.float32(grid.zero_point + end)
    offset = zero * scale / np.float32(out.scale)
    offset = int(np.trunc(offset + np.copysign(np.float32(0.5), offset)))
    multiplier = np.array([scale / (np.float32(pixels) * np.float32(out.scale))], np.float64)
    mean = integer.by_fixed_point_up(sums, multiplier)
    return _on(out, mean - offset)


def _on(out: QParams, centred: np.ndarray) -> np.ndarray:
    """Adds the zero point and clips to the codes of a grid."""
    return np.clip(centred + out.zero_point, 0, out.q_max).astype(np.uint8)
