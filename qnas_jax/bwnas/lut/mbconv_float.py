"""A candidate of a layer on one node's output, in real numbers.

Every number is the one that the module of a single path gives. Each candidate is computed by
itself: joining their convolutions gains nothing on a CPU, and a wider matrix product adds up in
another order.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from qnas_jax import space
from qnas_jax.kernels import convolution
from qnas_jax.nn.conv import LINEAR, RELU6
from qnas_jax.quant import affine
from qnas_jax.quant.calibrate import FindRange


class Layer(NamedTuple):
    """What is fixed at compile time about a layer: its candidates and its shape."""

    ops: tuple[space.Op, ...]
    in_channels: int
    channels: int
    stride: int
    dilation: int
    residual: bool  # the input is added
    find_range: FindRange
    per_channel: bool  # a range for each channel of an activation, not one for all


class Kernel(NamedTuple):
    """A convolution's weights as real values on their grid, and the batch norm behind it."""

    values: Array  # [..., c]
    norm_scale: Array  # [c], as is the bias
    norm_bias: Array


class OpWeights(NamedTuple):
    """A candidate's three convolutions; of real values, or of codes (`byte_node.py`)."""

    expand: Any  # values [i, hidden]
    depthwise: Any  # values [k, k, hidden]
    project: Any  # values [hidden, o]


class Grid(NamedTuple):
    """Where values may lie; worked out once, for it is used by every pass over the pixels."""

    inverse: Array  # [c], as are all: one over the scale
    scale: Array
    low: Array  # the least value, and
    high: Array  # the greatest

    def least_code(self) -> Array:
        """The code of the least value, counted from that of zero."""
        return jnp.round(self.low * self.inverse)

    def greatest_byte(self) -> Array:
        """The code of the greatest value, counted from the least."""
        return jnp.round(self.high * self.inverse) - self.least_code()


class Step(NamedTuple):
    """Norm and grid behind a convolution: ``y = sum * factor + offset``."""

    factor: Array  # [c]
    offset: Array  # [c]
    grid: Grid


class OpCalibration(NamedTuple):
    """What calibration finds at a node for a candidate."""

    expand: Step
    depthwise: Step
    project: Step
    add: Grid | None  # of the sum; None where the input is not added


Node = tuple[OpCalibration, ...]  # by candidate


def gather_weights(
    params: dict, ops: tuple[space.Op, ...], w_bits: Int[Array, ""]
) -> tuple[OpWeights, ...]:
    """A layer's weights from the supernet's, on the grid of a bitwidth.

    They do not depend on the path: this is done once for each layer and bitwidth.
    """

    def kernel(found, part):
        codes, unit = weight_codes(found, part, w_bits)
        return Kernel(codes * unit, found["norm"]["scale"], found["norm"]["bias"])

    return by_part(params, ops, kernel)


def by_part(
    params: dict, ops: tuple[space.Op, ...], kernel: Callable[[dict, str], Any]
) -> tuple[OpWeights, ...]:
    """What `kernel(parameters, name)` makes of each convolution of each candidate."""
    return tuple(
        OpWeights(*[kernel(params[str(op)][part], part) for part in OpWeights._fields])
        for op in ops
    )


def weight_codes(
    found: dict, part: str, w_bits: Int[Array, ""]
) -> tuple[Float[Array, "... c"], Float[Array, "c"]]:
    """Codes of a convolution's weights, and real units of each, by output channel."""
    codes, unit = affine.weight_codes(found["kernel"], w_bits)
    return codes[:, :, 0] if part == "depthwise" else codes[0, 0], unit


def run_op(
    layer: Layer,
    weights: OpWeights,
    found: OpCalibration | None,
    x: Float[Array, "n h w i"],
    a_bits: Int[Array, ""],
) -> tuple[Float[Array, "n h2 w2 o"], OpCalibration]:
    """A candidate on one node's output.

    Args:
      layer: The layer's shape.
      weights: The candidate's.
      found: What calibration found. None: it is found now, each step from what the quantized
        steps before it give.
      x: The node's output, on its grid.
      a_bits: Bitwidth of the activations.

    Returns:
      The output, on its grid, and what calibration found.
    """
    settle = functools.partial(_settle, layer, a_bits)

    sums = convolution.pointwise(x, weights.expand.values)
    expand = found.expand if found else settle(sums, weights.expand, RELU6)
    h = on_grid(_normed(sums, expand), expand.grid)

    sums = convolution.depthwise(h, weights.depthwise.values, layer.stride, layer.dilation)
    depthwise = found.depthwise if found else settle(sums, weights.depthwise, RELU6)
    h = on_grid(_normed(sums, depthwise), depthwise.grid)

    sums = convolution.pointwise(h, weights.project.values)
    project = found.project if found else settle(sums, weights.project, LINEAR)
    y = on_grid(_normed(sums, project), project.grid)
    if not layer.residual:
        return y, OpCalibration(expand, depthwise, project, None)
    add = (found and found.add) or _grid(layer, a_bits, x + y)
    return on_grid(x + y, add), OpCalibration(expand, depthwise, project, add)


def _normed(sums, step):
    return sums * step.factor + step.offset


def on_grid(y: Float[Array, "n h w c"], grid: Grid) -> Float[Array, "n h w c"]:
    """Real values as the nearest on their grid.

    What exceeds the bounds of an activation is clipped here: the grid lies within them.
    """
    return affine.nearest(y, grid.inverse, grid.scale, grid.low, grid.high)


def _settle(layer, a_bits, sums, kernel, bounds):
    """The step behind a convolution: a norm by these very sums, and a grid."""
    mean, var = convolution.pixel_moments(sums)
    factor = kernel.norm_scale * lax.rsqrt(var + convolution.NORM_EPSILON)
    offset = kernel.norm_bias - mean * factor
    y = jnp.clip(sums * factor + offset, *bounds)
    return Step(factor, offset, _grid(layer, a_bits, y))


def _grid(layer, a_bits, y):
    """The grid of each channel of real values; the same for all, or each its own."""
    if layer.per_channel:
        range_ = jax.vmap(layer.find_range, (-1, None), out_axes=-1)(y, a_bits)
    else:
        range_ = jnp.broadcast_to(layer.find_range(y, a_bits)[:, None], (2, y.shape[-1]))
    return grid_of(range_, a_bits)


def grid_of(range_: Float[Array, "2 c"], a_bits: Int[Array, ""]) -> Grid:
    """The grid of each channel's clipping range."""
    scale, zero_point, q_max = affine.asymmetric_grid(range_, a_bits)
    low, high = 0 - zero_point, q_max - zero_point
    return Grid(1 / scale, scale, scale * low, scale * high)


def unpack(layer: Layer, packed: Float[Array, "size"]) -> Node:
    """A node from one vector; handing over a hundred small arrays would take a millisecond."""

    def step(width):
        return Step(jnp.zeros(width), jnp.zeros(width), grid(width))

    def grid(width):
        return Grid(*[jnp.zeros(width)] * len(Grid._fields))

    like = []
    for op in layer.ops:
        hidden = layer.in_channels * op.expansion
        add = grid(layer.channels) if layer.residual else None
        like.append(OpCalibration(step(hidden), step(hidden), step(layer.channels), add))
    return jax.flatten_util.ravel_pytree(tuple(like))[1](packed)
