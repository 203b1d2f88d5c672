"""A candidate of a layer on one node's output, in bytes: what `node.py` computes, on codes.

Codes are counted from the least. Sums in the convolutions of `kernels/int8.py` are exact, those
of real numbers rounded, so a few values in 100,000 lie a code beside. Calibration stays in real
numbers: a range hangs on a single value, and all behind it on the range.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qnas_jax import space
from qnas_jax.bwnas.lut.mbconv_float import (
    Grid,
    Layer,
    OpCalibration,
    OpWeights,
    Step,
    by_part,
    on_grid,
    weight_codes,
)
from qnas_jax.kernels import int8


class ByteKernel(NamedTuple):
    """A convolution's weights as codes."""

    values: Array  # as `kernels/int8.py` packs them
    unit: Array  # real units of a code, [c]
    total: Array  # of a channel's codes, [c]: what a sum grows by with each input's code


class Bytes(NamedTuple):
    """Values as codes: what a node gives."""

    codes: Array  # uint8[n, h, w, c], counted from the least
    scale: Array  # real units of a code, []
    least: Array  # the code of a byte of zero, []

    def real(self) -> Array:
        """The values, as the very floats that real arithmetic has.

        The bound changes nothing, but keeps the product from being fused into a sum behind it
        and so from being rounded otherwise: sums of two grids lie half-way between codes by
        the thousand.
        """
        return jnp.maximum((self.codes + self.least) * self.scale, self.least * self.scale)


def as_bytes(y: Float[Array, "n h w c"], grid: Grid) -> Bytes:
    """Real values as codes of a grid that is the same for all channels."""
    least = grid.least_code()[0]
    codes = on_grid(y, grid) * grid.inverse[0] - least
    return Bytes(jnp.round(codes).astype(jnp.uint8), grid.scale[0], least)


def gather_bytes(
    params: dict, ops: tuple[space.Op, ...], w_bits: Int[Array, ""]
) -> tuple[OpWeights, ...]:
    """A layer's weights from the supernet's, as codes; see `node.gather_weights`."""

    def kernel(found, part):
        codes, unit = weight_codes(found, part, w_bits)
        pack = int8.pack_depthwise if part == "depthwise" else int8.pack_pointwise
        return ByteKernel(pack(codes), unit, jnp.sum(codes, range(codes.ndim - 1)))

    return by_part(params, ops, kernel)


def run_op(layer: Layer, weights: OpWeights, found: OpCalibration, x: Bytes) -> Bytes:
    """A candidate on one node's output; see `node.run_op`.

    Behind ReLU6 the least code is that of zero, so padding with zeros is right, and bytes
    need no correction.
    """
    norm = _byte_norm(found.expand, weights.expand, x.scale, x.least)
    h = int8.pointwise(x.codes, weights.expand.values, norm)
    norm = _byte_norm(found.depthwise, weights.depthwise, found.expand.grid.scale[0])
    h = int8.depthwise(h, weights.depthwise.values, norm, layer.stride, layer.dilation)
    norm = _byte_norm(found.project, weights.project, found.depthwise.grid.scale[0])
    y = int8.pointwise(h, weights.project.values, norm)
    grid = found.project.grid
    y = Bytes(y, grid.scale[0], grid.least_code()[0])
    return y if found.add is None else as_bytes(x.real() + y.real(), found.add)


def _byte_norm(
    step: Step,
    kernel: ByteKernel,
    scale: Float[Array, ""],
    least: Float[Array, ""] | float = 0.0,
) -> Float[Array, "3 c"]:
    """A step as `kernels/int8.py` takes it, behind a convolution of bytes.

    Args:
      step: Norm and grid behind it.
      kernel: Its weights.
      scale: Real units of each of its input's codes.
      least: Its input's code of a byte of zero.
    """
    grid = step.grid
    factor = step.factor * grid.inverse * kernel.unit * scale
    offset = step.offset * grid.inverse - grid.least_code() + kernel.total * factor * least
    return jnp.stack([factor, offset, grid.greatest_byte()])
