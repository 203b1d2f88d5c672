"""A candidate op of a layer on one node's output, in float32 with fake quantization.

The numbers are those of the Flax module of a single path. Each op is computed by itself:
joining the convolutions of several gains nothing on a CPU, and a wider matrix product adds up
in another order.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from qnas_jax import space
from qnas_jax.kernels import convolution
from qnas_jax.nn.conv import LINEAR, RELU6, W_RANGE
from qnas_jax.quant import affine
from qnas_jax.quant.calibrate import FindRange


class LayerSpec(NamedTuple):
    """What is fixed at compile time about a layer: its ops and its shape.

    Attributes:
      ops: The candidates.
      in_channels: Channels of the input.
      channels: Channels of the output.
      stride: Of the depthwise convolution.
      dilation: Of the depthwise convolution.
      residual: Whether the input is added to the output.
      find_range: Finds the clipping range of an activation.
      per_channel: Whether each channel of an activation has its own range.
    """

    ops: tuple[space.Op, ...]
    in_channels: int
    channels: int
    stride: int
    dilation: int
    residual: bool
    find_range: FindRange
    per_channel: bool


def layer_spec(
    block: space.Block,
    number: int,
    ops: tuple[space.Op, ...],
    find_range: FindRange,
    per_channel: bool = False,
) -> LayerSpec:
    """Returns a layer of a block, see `LayerSpec`."""
    in_channels, stride = block.layer_shape(number)
    residual = stride == 1 and in_channels == block.channels
    dilation = block.layer_dilation(number)
    return LayerSpec(
        ops, in_channels, block.channels, stride, dilation, residual, find_range, per_channel
    )


class Kernel(NamedTuple):
    """A convolution's quantized weights as real values, and the batch norm that follows."""

    values: Array  # [..., c]
    norm_scale: Array  # [c], as is the bias
    norm_bias: Array


class OpWeights(NamedTuple):
    """An op's three convolutions: `Kernel` here, codes in `mbconv_int8`."""

    expand: Any  # values [i, hidden]
    depthwise: Any  # values [k, k, hidden]
    project: Any  # values [hidden, o]


class QParams(NamedTuple):
    """The affine grid of an activation, per channel, as each pass over the pixels reads it."""

    inverse: Array  # [c], as are all: 1 / scale
    scale: Array
    low: Array  # the lowest real value, scale * (0 - zero_point)
    high: Array  # the highest real value, scale * (q_max - zero_point)

    def zero_point(self) -> Array:
        """The code of zero; the code of the lowest value is 0."""
        return -jnp.round(self.low * self.inverse)

    def q_max(self) -> Array:
        """The highest code."""
        return jnp.round(self.high * self.inverse) + self.zero_point()


class Step(NamedTuple):
    """Batch norm and grid after a convolution: ``y = sum * factor + offset``."""

    factor: Array  # [c]
    offset: Array  # [c]
    grid: QParams


class OpCalibration(NamedTuple):
    """What calibration finds for an op on a node's output."""

    expand: Step
    depthwise: Step
    project: Step
    add: QParams | None  # of the residual sum; None if there is none


Node = tuple[OpCalibration, ...]  # by op


def gather_weights(
    params: dict, ops: tuple[space.Op, ...], w_bits: Int[Array, ""]
) -> tuple[OpWeights, ...]:
    """A layer's quantized weights by op, as real values.

    They do not depend on the path: this is done once for each layer and bitwidth.
    """

    def kernel(found, part):
        codes, scale = weight_codes(found, part, w_bits)
        return Kernel(
            codes * affine.over(scale, codes), found["norm"]["scale"], found["norm"]["bias"]
        )

    return by_part(params, ops, kernel)


def by_part(
    params: dict, ops: tuple[space.Op, ...], kernel: Callable[[dict, str], Any]
) -> tuple[OpWeights, ...]:
    """The result of `kernel(parameters, name)` for each convolution of each op."""
    return tuple(
        OpWeights(*[kernel(params[str(op)][part], part) for part in OpWeights._fields])
        for op in ops
    )


def weight_codes(
    found: dict, part: str, w_bits: Int[Array, ""]
) -> tuple[Float[Array, "... c"], Float[Array, "c"]]:
    """A convolution's weight codes, and the scale of each output channel."""
    codes, scale = affine.weight_codes(found["kernel"], w_bits, absmax=found.get(W_RANGE))
    return codes[:, :, 0] if part == "depthwise" else codes[0, 0], scale


def calibrate_op(
    layer: LayerSpec,
    weights: OpWeights,
    x: Float[Array, "n h w i"],
    a_bits: Int[Array, ""],
) -> tuple[Float[Array, "n h2 w2 o"], OpCalibration]:
    """Runs an op on calibration images, and finds its statistics and ranges on the way.

    Each step is calibrated on the quantized output of the steps before it.

    Args:
      layer: The layer's shape.
      weights: The op's.
      x: The node's output, on its grid.
      a_bits: Bitwidth of the activations.

    Returns:
      The op's output, on its grid, and what was found.
    """
    settle = functools.partial(_settle, layer, a_bits)

    sums = convolution.pointwise(x, weights.expand.values)
    expand = settle(sums, weights.expand, RELU6)
    h = _normed(sums, expand)

    sums = convolution.depthwise(h, weights.depthwise.values, layer.stride, layer.dilation)
    depthwise = settle(sums, weights.depthwise, RELU6)
    h = _normed(sums, depthwise)

    sums = convolution.pointwise(h, weights.project.values)
    project = settle(sums, weights.project, LINEAR)
    y = _normed(sums, project)
    if not layer.residual:
        return y, OpCalibration(expand, depthwise, project, None)
    add = find_grid(layer, a_bits, x + y)
    return on_grid(x + y, add), OpCalibration(expand, depthwise, project, add)


def run_op(
    layer: LayerSpec,
    weights: OpWeights,
    found: OpCalibration,
    x: Float[Array, "n h w i"],
) -> Float[Array, "n h2 w2 o"]:
    """Runs an op that is calibrated.

    Args:
      layer: The layer's shape.
      weights: The op's.
      found: What calibration found.
      x: The node's output, on its grid.

    Returns:
      The op's output, on its grid.
    """
    h = _normed(convolution.pointwise(x, weights.expand.values), found.expand)
    sums = convolution.depthwise(h, weights.depthwise.values, layer.stride, layer.dilation)
    h = _normed(sums, found.depthwise)
    y = _normed(convolution.pointwise(h, weights.project.values), found.project)
    return y if found.add is None else on_grid(x + y, found.add)


def _normed(sums, step):
    return on_grid(convolution.affine(sums, step.factor, step.offset), step.grid)


def on_grid(y: Float[Array, "n h w c"], grid: QParams) -> Float[Array, "n h w c"]:
    """Real values rounded to the nearest on their grid.

    The grid is within the activation's bounds, so this clips to them too.
    """
    return affine.nearest(y, grid.inverse, grid.scale, grid.low, grid.high)


def _settle(layer, a_bits, sums, kernel, bounds):
    """The step after a convolution: batch norm by the statistics of these sums, and a grid."""
    mean, var = convolution.pixel_moments(sums)
    factor = kernel.norm_scale * lax.rsqrt(var + convolution.NORM_EPSILON)
    offset = kernel.norm_bias - mean * factor
    y = jnp.clip(convolution.affine(sums, factor, offset), *bounds)
    return Step(factor, offset, find_grid(layer, a_bits, y))


def find_grid(layer: LayerSpec, a_bits: Int[Array, ""], y: Float[Array, "... c"]) -> QParams:
    """The grid of real values: the same for all channels, or one for each."""
    if layer.per_channel:
        range_ = jax.vmap(layer.find_range, (-1, None), out_axes=-1)(y, a_bits)
    else:
        range_ = jnp.broadcast_to(layer.find_range(y, a_bits)[:, None], (2, y.shape[-1]))
    return grid_of(range_, a_bits)


def grid_of(range_: Float[Array, "2 c"], a_bits: Int[Array, ""]) -> QParams:
    """The grid of each channel's clipping range."""
    scale, zero_point, q_max = affine.asymmetric_grid(range_, a_bits)
    low, high = 0 - zero_point, q_max - zero_point
    return QParams(1 / scale, scale, scale * low, scale * high)


def widths(layer: LayerSpec) -> list[int]:
    """Channels of all steps of a layer: of each op's three convolutions."""
    return [
        width
        for op in layer.ops
        for width in (*[layer.in_channels * op.expansion] * 2, layer.channels)
    ]


def pack(found: Node) -> Float[Array, "size"]:
    """What calibration found for a layer's ops as one vector: see `joined`."""
    steps = [step for op in found for step in (op.expand, op.depthwise, op.project)]
    grids = [step.grid for step in steps] + [op.add for op in found if op.add is not None]
    factors, offsets = [step.factor for step in steps], [step.offset for step in steps]
    return jnp.concatenate([*factors, *offsets, *itertools.chain(*zip(*grids, strict=True))])


def joined(layer: LayerSpec, packed: Float[Array, "size"]) -> Step:
    """All steps of a layer as one, side by side; behind their grids those of the sums."""
    steps = sum(widths(layer))
    sums = len(layer.ops) * layer.channels if layer.residual else 0
    factor, offset, *grids = jnp.split(packed, np.cumsum([steps, steps, *[steps + sums] * 3]))
    return Step(factor, offset, QParams(*grids))


def packed_size(layer: LayerSpec) -> int:
    """How many numbers calibration finds for all ops of a layer on a node's output."""
    steps, numbers = sum(widths(layer)), len(QParams._fields)
    sums = len(layer.ops) * layer.channels if layer.residual else 0
    return (2 + numbers) * steps + numbers * sums


def unpack(layer: LayerSpec, packed: Float[Array, "size"]) -> Node:
    """A node's calibration from one vector; passing a hundred small arrays would take 1 ms."""
    whole, sizes = joined(layer, packed), widths(layer)
    added = [layer.channels] * len(layer.ops) if layer.residual else []

    def parts(values, sizes):
        return jnp.split(values, np.cumsum(sizes)[:-1])

    fields = zip(*[parts(values, sizes + added) for values in whole.grid], strict=True)
    grids = [QParams(*values) for values in fields]
    both = zip(parts(whole.factor, sizes), parts(whole.offset, sizes), grids, strict=False)
    steps = [Step(*values) for values in both]
    sums = grids[len(steps) :] or [None] * len(layer.ops)
    of_ops = steps[0::3], steps[1::3], steps[2::3], sums
    return tuple(OpCalibration(*op) for op in zip(*of_ops, strict=True))
