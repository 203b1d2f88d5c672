"""A candidate op of a layer on one node's output, in int8: `mbconv_float` on codes.

Sums of the convolutions in `kernels/int8.py` are exact, those of float32 are rounded, so of
100,000 values a few differ by one code. Calibration needs no real values for a min-max range: the
statistics of the sums suffice. It computes every sum twice, for its statistics and for its code,
which takes less time than to write the sums and to read them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from qnas_jax import space
from qnas_jax.kernels import convolution, int8
from qnas_jax.kernels.int8 import Kernel
from qnas_jax.nn import mbconv_float
from qnas_jax.nn.conv import LINEAR, RELU6, W_RANGE
from qnas_jax.nn.mbconv_float import (
    LayerSpec,
    OpWeights,
    QParams,
    by_part,
    on_grid,
)
from qnas_jax.quant import affine

CHANNELS = 1024  # whose weights are quantized at once


class CodedKernel(NamedTuple):
    """A convolution's quantized weights as codes, and the batch norm that follows."""

    values: Any  # as `kernels/int8.py` packs them
    scale: Any  # [c]
    total: Any  # [c], the sum of a channel's codes, the factor of the input's zero point
    norm_scale: Any  # [c], as is the bias
    norm_bias: Any


class QTensor(NamedTuple):
    """Quantized values, ``scale * (codes - zero_point)``."""

    codes: Array  # uint8[n, h, w, c]
    scale: Array  # []
    zero_point: Array  # []

    def real(self) -> Array:
        """The real values."""
        return int8.real(self.codes, self.scale, self.zero_point)


def quantized(y: Float[Array, "n h w c"], grid: QParams) -> QTensor:
    """Real values as codes of a grid that is the same for all channels."""
    zero_point = grid.zero_point()[0]
    codes = on_grid(y, grid) * grid.inverse[0] + zero_point
    return QTensor(jnp.round(codes).astype(jnp.uint8), grid.scale[0], zero_point)


def gather_codes(
    params: dict, ops: tuple[space.Op, ...], kernel: Kernel, w_bits: int
) -> tuple[OpWeights, ...]:
    """A layer's quantized weights by op, as codes; see `mbconv_float.gather_weights`.

    In NumPy: a program for it would take longer to compile than the programs that read the codes.
    """

    def coded(found, part):
        codes, scale = weight_codes(found["kernel"], w_bits, found.get(W_RANGE))
        codes = codes[:, :, 0] if part == "depthwise" else codes[0, 0]
        pack = int8.pack_depthwise if part == "depthwise" else int8.pack_pointwise
        total = codes.sum(tuple(range(codes.ndim - 1)), dtype=np.float32)
        norm = found["norm"]
        return CodedKernel(pack(codes, kernel), scale, total, norm["scale"], norm["bias"])

    own = jax.tree.leaves(params)[0]
    place = own.sharding if isinstance(own, jax.Array) else None
    with np.errstate(invalid="ignore"):  # any code will do for NaN, as its channel's scale is NaN
        return jax.device_put(by_part(jax.device_get(params), ops, coded), place)


def weight_codes(
    w: np.ndarray, bits: int, absmax: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """`affine.weight_codes` in NumPy: the same codes and scales."""
    own = np.abs(w).max(tuple(range(w.ndim - 1))) if absmax is None else absmax
    padded = np.pad(own, (0, -len(own) % CHANNELS))  # so that one program serves all kernels
    found = _weight_grid(padded, jnp.int32(bits))
    scale, inverse = (np.asarray(values)[: len(own)] for values in found)
    q_max = 2.0 ** (bits - 1) - 1
    return np.clip(np.rint(w * inverse), -q_max, q_max).astype(np.float32), scale


@jax.jit
def _weight_grid(absmax, bits):
    """By XLA, whose division by one number for all is not NumPy's."""
    scale, _ = affine.symmetric_grid(absmax, bits)
    return scale, 1 / scale


def calibrate_ops(
    layer: LayerSpec,
    kernel: Kernel,
    weights: Sequence[OpWeights],
    x: QTensor,
    a_bits: Int[Array, ""],
) -> tuple[QTensor, Float[Array, "size"]]:
    """Runs all ops on calibration images, and finds their statistics and min-max ranges on the way.

    See `mbconv_float.calibrate_op`; here the statistics come from the codes' exact sums.

    Returns:
      Their outputs, ops first, and what was found, as `mbconv_float.pack` packs it.
    """
    ys, steps, sums = [], [], []
    for own in weights:
        y, grid, of_op = _calibrated(layer, kernel, own, x, a_bits)
        if layer.residual:
            y, grid = int8.add(x.codes, y, _grid_of_input(x), grid, a_bits, kernel)
            scale, _, inverse, _, low, high = grid
            of_sum = jnp.stack([inverse, scale, low, high])
            sums.append(jnp.broadcast_to(of_sum[:, None], (4, layer.channels)))
        ys.append(QTensor(y, grid[0], grid[1]))
        steps += of_op
    of_channels = jnp.concatenate(steps, axis=1)
    grids = jnp.concatenate([of_channels[2:], *sums], axis=1)
    packed = jnp.concatenate([of_channels[:2].ravel(), grids.ravel()])
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *ys), packed


def _calibrated(layer, kernel, weights, x, a_bits):
    """An op's codes, their grid, and the steps of its convolutions; see `int8.settle`."""

    def settled(own, statistics, before, bounds):
        unit = own.scale * before[0]
        rate = lax.rsqrt(unit * unit * statistics[1] + convolution.NORM_EPSILON)
        weights = own.scale, own.total, own.norm_scale, own.norm_bias
        return int8.settle(statistics, rate, weights, before, a_bits, bounds, kernel)

    center = jnp.round(weights.expand.total * x.zero_point).astype(jnp.int32)
    found = int8.pointwise_statistics(x.codes, weights.expand.values, center, kernel)
    expand, grid, norm = settled(weights.expand, found, _grid_of_input(x), RELU6)
    h = int8.pointwise(x.codes, weights.expand.values, norm, kernel)

    values, how = weights.depthwise.values, (layer.stride, layer.dilation, kernel)
    found = int8.depthwise_statistics(h, values, *how)
    depthwise, grid, norm = settled(weights.depthwise, found, grid, RELU6)
    h = int8.depthwise(h, values, norm, *how)

    center = jnp.zeros(layer.channels, jnp.int32)
    found = int8.pointwise_statistics(h, weights.project.values, center, kernel)
    project, grid, norm = settled(weights.project, found, grid, LINEAR)
    y = int8.pointwise(h, weights.project.values, norm, kernel)
    return y, grid, (expand, depthwise, project)


def _grid_of_input(x):
    return jnp.stack([x.scale, x.zero_point])


def run_ops(
    layer: LayerSpec,
    kernel: Kernel,
    weights: Sequence[OpWeights],
    packed: Float[Array, "size"],
    x: QTensor,
) -> QTensor:
    """Runs all ops of a layer that are calibrated, see `mbconv_float.run_op`; ops come first."""
    norms, grids = _norms_and_grids(layer, weights, packed, x)
    ys = [
        int8.mbconv(x.codes, values, norms, grids, place, kernel)
        for values, place in _places(layer, weights)
    ]
    return QTensor(jnp.stack(ys), *grids[:, -1, :2].T)


def noise_of_ops(
    layer: LayerSpec,
    kernel: Kernel,
    weights: Sequence[OpWeights],
    packed: Float[Array, "size"],
    x: QTensor,
    target: Float[Array, "n h2 w2 o"],
) -> Float[Array, "ops o"]:
    """Squared errors of `run_ops`, summed over images and pixels."""
    norms, grids = _norms_and_grids(layer, weights, packed, x)
    return jnp.stack(
        [
            int8.mbconv_noise(x.codes, values, norms, grids, target, place, kernel)
            for values, place in _places(layer, weights)
        ]
    )


def _places(layer, weights):
    """Each op's weights, and where its norms and grids are."""
    first = 0
    for number, (op, own) in enumerate(zip(layer.ops, weights, strict=True)):
        hidden = layer.in_channels * op.expansion
        sizes = op.kernel, layer.stride, layer.dilation, hidden, layer.channels
        yield [one.values for one in own], int8.Place(*sizes, first, number)
        first += 2 * hidden + layer.channels


def _norms_and_grids(layer, weights, packed, x):
    """Norms and grids of all ops as `int8.mbconv` takes them.

    In a few operations on all channels: with some for each op, programs take ten times as long to
    compile. After ReLU6 the code of zero is 0, so padding with code 0 is right, and there is no
    zero point to correct for.
    """
    found, sizes = mbconv_float.joined(layer, packed), mbconv_float.widths(layer)
    added = [layer.channels] * len(layer.ops) if layer.residual else []
    of_channel, total = np.repeat(np.arange(len(sizes)), sizes), sum(sizes)
    is_first = of_channel % 3 == 0  # of an op's convolutions: it reads x

    def one_of_each(values):  # by step, then by sum
        return values[np.cumsum([0, *sizes, *added])[:-1]]

    scale, zero_point = found.grid.scale, found.grid.zero_point()
    inverse, top = found.grid.inverse, found.grid.q_max()
    before = jnp.concatenate([x.scale[None], one_of_each(scale)])  # of each step's input, but x
    scale_before = before[np.where(is_first, 0, of_channel)]
    zero_before = jnp.where(is_first, x.zero_point, 0.0)
    kernels = [one for op in weights for one in op]
    own_scale = jnp.concatenate([one.scale for one in kernels])
    own_total = jnp.concatenate([one.total for one in kernels])
    factor = found.factor * inverse[:total] * own_scale * scale_before
    offset = found.offset * inverse[:total] + zero_point[:total] - own_total * factor * zero_before
    norms = jnp.stack([factor, offset, top[:total]])

    grids = jnp.stack([one_of_each(values) for values in (scale, zero_point, inverse, top)], -1)
    outputs = [grids[2 : len(sizes) : 3]]
    if added:
        of_x = jnp.stack([x.scale, x.zero_point, *jnp.zeros(2)])  # nothing is rounded to it
        outputs = [jnp.broadcast_to(of_x, (len(added), 4)), *outputs, grids[len(sizes) :]]
    return norms, jnp.stack(outputs, 1)
