"""One node of a block's tree: all candidates of a layer on one input, quantized.

Candidates are computed one after another: joining their convolutions gains nothing on a CPU,
and a wider matrix product adds up in another order. Values on a grid travel in one of two
forms. As *real* values every number is the one that the module of a single path gives. As
*codes* (whole numbers, centred so that zero is zero) they suit accelerators: codes of up to
8 bits are exact in bfloat16, and sums of their products exact in float32 up to 2**24.
Between layers a code is held as a byte, counted from the least.
"""

import functools
from typing import NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

from qnas_jax import metrics, space
from qnas_jax.nn import kernels
from qnas_jax.nn.conv import LINEAR, RELU6
from qnas_jax.quant import affine
from qnas_jax.quant.calibrate import FindRange


class Layer(NamedTuple):
    """What is fixed at compile time about a layer: its candidates and its shape."""

    ops: tuple[space.Op, ...]
    stride: int
    dilation: int
    residual: bool  # the input is added
    find_range: FindRange
    per_channel: bool  # a range for each channel of an activation, not one for all
    codes: bool  # values travel as codes


class Kernel(NamedTuple):
    """A convolution's weights on their grid, and the batch norm behind it."""

    values: Array  # [..., c]
    unit: Array  # real units of each value, [c], as are all below
    norm_scale: Array
    norm_bias: Array


class OpWeights(NamedTuple):
    """A candidate's three convolutions."""

    expand: Kernel  # values [i, hidden]
    depthwise: Kernel  # values [k, k, hidden]
    project: Kernel  # values [hidden, o]


class Grid(NamedTuple):
    """Where values may lie; worked out once, for it is used by every pass over the pixels."""

    inverse: Array  # [c], as are all: one over the scale
    scale: Array  # of a value of one: the grid's, or one where values are codes
    low: Array  # the least value, and
    high: Array  # the greatest
    unit: Array  # what a value of one stands for: one, or the grid's scale for codes


class Step(NamedTuple):
    """Norm and grid behind a convolution: ``real = sum * factor + offset``."""

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
    params: dict, ops: tuple[space.Op, ...], codes: bool, w_bits: Int[Array, ""]
) -> tuple[OpWeights, ...]:
    """A layer's weights from the supernet's, on the grid of a bitwidth.

    They do not depend on the path: this is done once for each layer and bitwidth.
    """

    def kernel(op, part):
        found = params[str(op)][part]
        values, unit = affine.weight_codes(found["kernel"], w_bits)
        if not codes:
            values, unit = values * unit, jnp.ones_like(unit)
        values = values[:, :, 0] if part == "depthwise" else values[0, 0]
        return Kernel(values, unit, found["norm"]["scale"], found["norm"]["bias"])

    return tuple(OpWeights(*[kernel(op, part) for part in OpWeights._fields]) for op in ops)


def run_node(
    layer: Layer,
    weights: tuple[OpWeights, ...],
    x: Float[Array, "n h w i"] | UInt8[Array, "n h w i"],
    unit: Float[Array, "2 i"],
    a_bits: Int[Array, ""],
    node: Node | None,
) -> tuple[
    Float[Array, "ops n h2 w2 o"] | UInt8[Array, "ops n h2 w2 o"], Float[Array, "ops 2 o"], Node
]:
    """All candidates of a layer on one node's output.

    Args:
      layer: The candidates and the layer's shape.
      weights: Theirs.
      x: The node's output, on its grid: real values, or codes as bytes.
      unit: What its values stand for: real units of each code, and the code of a byte of
        zero; one and zero where values are real.
      a_bits: Bitwidth of the activations.
      node: What calibration found here. None: it is found now, each step from what the
        quantized steps before it give.

    Returns:
      The candidates' outputs, what their values stand for, and what calibration found.
    """
    x = _load(layer, x, unit[1])
    results = [
        _run_op(layer, one, x, unit[0], a_bits, node and node[i]) for i, one in enumerate(weights)
    ]
    ys, grids, founds = zip(*results, strict=True)
    ys = jnp.stack([_store(layer, *both) for both in zip(ys, grids, strict=True)])
    return ys, jnp.stack([_unit(layer, grid) for grid in grids]), founds


def _store(layer, y, grid):
    return (y - grid.low).astype(jnp.uint8) if layer.codes else y


def _load(layer, stored, low):
    return stored.astype(low.dtype) + low if layer.codes else stored


def _unit(layer, grid):
    return jnp.stack([grid.unit, grid.low if layer.codes else jnp.zeros_like(grid.low)])


def _run_op(layer, weights, x, unit, a_bits, found):
    """A candidate's output, its grid, and what calibration found."""
    settle = functools.partial(_settle, layer, a_bits)

    sums, real = _contract(layer, x, unit, weights.expand)
    expand = found.expand if found else settle(sums, real, weights.expand, RELU6)
    h = _on_grid(_normed(sums, expand), expand.grid)

    sums = kernels.depthwise(h, weights.depthwise.values, layer.stride, layer.dilation)
    real = weights.depthwise.unit * expand.grid.unit
    depthwise = found.depthwise if found else settle(sums, real, weights.depthwise, RELU6)
    h = _on_grid(_normed(sums, depthwise), depthwise.grid)

    sums, real = _contract(layer, h, depthwise.grid.unit, weights.project)
    project = found.project if found else settle(sums, real, weights.project, LINEAR)
    y, grid, add = _on_grid(_normed(sums, project), project.grid), project.grid, None
    if layer.residual:
        total = x * unit + y * grid.unit if layer.codes else x + y
        grid = add = found.add if found else _grid(layer, a_bits, total)
        y = _on_grid(total, grid)
    return y, grid, OpCalibration(expand, depthwise, project, add)


def _contract(layer, x, unit, kernel):
    """Sums of products over the input's channels, and what one unit of them stands for."""
    if layer.codes:
        return kernels.pointwise_codes(x, kernel.values), kernel.unit * unit[0]
    return kernels.pointwise(x, kernel.values), kernel.unit


def _normed(sums, step):
    return sums * step.factor + step.offset


def _on_grid(y, grid):
    """Real values as the nearest on their grid.

    What exceeds the bounds of an activation is clipped here: the grid lies within them.
    """
    return affine.nearest(y, grid.inverse, grid.scale, grid.low, grid.high)


def _settle(layer, a_bits, sums, real, kernel, bounds):
    """The step behind a convolution: a norm by these very sums, and a grid."""
    mean, var = kernels.pixel_moments(sums)
    factor = kernel.norm_scale * lax.rsqrt(var * real**2 + kernels.NORM_EPSILON) * real
    offset = kernel.norm_bias - mean * factor
    y = jnp.clip(sums * factor + offset, *bounds)
    return Step(factor, offset, _grid(layer, a_bits, y))


def _grid(layer, a_bits, y):
    """The grid of each channel of real values; the same for all, or each its own."""
    if layer.per_channel:
        range_ = jax.vmap(layer.find_range, (-1, None), out_axes=-1)(y, a_bits)
    else:
        range_ = jnp.broadcast_to(layer.find_range(y, a_bits)[:, None], (2, y.shape[-1]))
    return _grid_of(layer, a_bits, range_)


def _grid_of(layer, a_bits, range_):
    scale, zero_point, q_max = affine.asymmetric_grid(range_, a_bits)
    low, high = 0 - zero_point, q_max - zero_point
    one = jnp.ones_like(scale)
    if layer.codes:
        return Grid(1 / scale, one, low, high, unit=scale)
    return Grid(1 / scale, scale, scale * low, scale * high, unit=one)


def unpack(layer, weights, packed) -> Node:
    """A node from one vector; handing over a hundred small arrays would take a millisecond."""

    def step(width):
        return Step(jnp.zeros(width), jnp.zeros(width), grid(width))

    def grid(width):
        return Grid(*[jnp.zeros(width)] * len(Grid._fields))

    like = []
    for one in weights:
        hidden, features = (k.values.shape[-1] for k in (one.depthwise, one.project))
        add = grid(features) if layer.residual else None
        like.append(OpCalibration(step(hidden), step(hidden), step(features), add))
    return jax.flatten_util.ravel_pytree(tuple(like))[1](packed)


@functools.partial(jax.jit, static_argnums=0)
def run_nodes(layer, weights, xs, units, a_bits, packed):
    """`run_node` over several nodes; the outputs are nodes of the next level.

    What calibration found travels packed, [nodes, size].
    """

    def run(x, unit, packed):
        node = None if packed is None else unpack(layer, weights, packed)
        ys, units, node = run_node(layer, weights, x, unit, a_bits, node)
        return ys, units, jax.flatten_util.ravel_pytree(node)[0]

    ys, units, packed = jax.vmap(run)(xs, units, packed)
    return ys.reshape(-1, *ys.shape[2:]), units.reshape(-1, *units.shape[2:]), packed


@functools.partial(jax.jit, static_argnums=0)
def leaf_noise(layer, weights, xs, units, a_bits, packed, target, variance):
    """Noise over signal behind the last layer, summed over images and pixels, [paths]."""
    ys, units, _ = run_nodes(layer, weights, xs, units, a_bits, packed)
    unit, low = (units[:, i, None, None, None] for i in range(2))
    difference = _load(layer, ys, low) * unit - target
    noise = jnp.sum(jnp.square(difference), axis=(1, 2, 3))
    return jnp.mean(noise / (variance + metrics.NSR_EPSILON), axis=-1)


@functools.partial(jax.jit, static_argnums=0)
def root(layer, x, a_bits, range_):
    """A block's input as the output of one node.

    The bitwidth is an argument, for a constant would be compiled to other roundings.
    """
    per_channel = jnp.broadcast_to(range_[:, None], (2, x.shape[-1]))
    grid = _grid_of(layer, a_bits, per_channel)
    return _store(layer, _on_grid(x, grid), grid)[None], _unit(layer, grid)[None]
