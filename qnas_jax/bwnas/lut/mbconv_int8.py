"""A candidate op of a layer on one node's output, in int8: `mbconv_float.run_op` on codes.

Sums of the convolutions in `kernels/int8.py` are exact, those of float32 are rounded, so of
100,000 values a few differ by one code. Calibration stays in float32: one outlier sets a min-max
range, and everything after it depends on the range.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qnas_jax import space
from qnas_jax.kernels import int8
from qnas_jax.kernels.int8 import Kernel
from qnas_jax.nn.mbconv_float import (
    LayerSpec,
    OpCalibration,
    OpWeights,
    QParams,
    Step,
    by_part,
    on_grid,
    weight_codes,
)


class CodedKernel(NamedTuple):
    """A convolution's quantized weights as codes."""

    values: Array  # as `kernels/int8.py` packs them
    scale: Array  # [c]
    total: Array  # [c], the sum of a channel's codes, the factor of the input's zero point


class QTensor(NamedTuple):
    """Quantized values, ``scale * (codes - zero_point)``."""

    codes: Array  # uint8[n, h, w, c]
    scale: Array  # []
    zero_point: Array  # []

    def real(self) -> Array:
        """The real values, bit-identical to those of the float path.

        The bound changes no value. It keeps the compiler from fusing the product into a sum
        that follows, which would change the rounding: thousands of sums of two grids are
        half-way between codes.
        """
        lowest = -self.zero_point * self.scale
        return jnp.maximum((self.codes - self.zero_point) * self.scale, lowest)


def quantized(y: Float[Array, "n h w c"], grid: QParams) -> QTensor:
    """Real values as codes of a grid that is the same for all channels."""
    zero_point = grid.zero_point()[0]
    codes = on_grid(y, grid) * grid.inverse[0] + zero_point
    return QTensor(jnp.round(codes).astype(jnp.uint8), grid.scale[0], zero_point)


def gather_codes(
    params: dict, ops: tuple[space.Op, ...], kernel: Kernel, w_bits: Int[Array, ""]
) -> tuple[OpWeights, ...]:
    """A layer's quantized weights by op, as codes; see `mbconv_float.gather_weights`."""

    def coded(found, part):
        codes, scale = weight_codes(found, part, w_bits)
        pack = int8.pack_depthwise if part == "depthwise" else int8.pack_pointwise
        return CodedKernel(pack(codes, kernel), scale, jnp.sum(codes, range(codes.ndim - 1)))

    return by_part(params, ops, coded)


def run_op(
    layer: LayerSpec, kernel: Kernel, weights: OpWeights, found: OpCalibration, x: QTensor
) -> QTensor:
    """Runs an op that is calibrated; see `mbconv_float.run_op`.

    After ReLU6 the code of zero is 0, so padding with code 0 is right, and there is no zero
    point to correct for.
    """
    norm = _norm(found.expand, weights.expand, x.scale, x.zero_point)
    h = int8.pointwise(x.codes, weights.expand.values, norm, kernel)
    norm = _norm(found.depthwise, weights.depthwise, found.expand.grid.scale[0])
    h = int8.depthwise(h, weights.depthwise.values, norm, layer.stride, layer.dilation, kernel)
    norm = _norm(found.project, weights.project, found.depthwise.grid.scale[0])
    y = int8.pointwise(h, weights.project.values, norm, kernel)
    grid = found.project.grid
    y = QTensor(y, grid.scale[0], grid.zero_point()[0])
    return y if found.add is None else quantized(x.real() + y.real(), found.add)


def _norm(
    step: Step,
    kernel: CodedKernel,
    scale: Float[Array, ""],
    zero_point: Float[Array, ""] | float = 0.0,
) -> Float[Array, "3 c"]:
    """A step after a convolution as `kernels/int8.py` takes it.

    Args:
      step: Batch norm and grid.
      kernel: The convolution's weights.
      scale: Of the convolution's input.
      zero_point: Of the convolution's input.
    """
    grid = step.grid
    factor = step.factor * grid.inverse * kernel.scale * scale
    offset = step.offset * grid.inverse + grid.zero_point() - kernel.total * factor * zero_point
    return jnp.stack([factor, offset, grid.q_max()])
