"""INT8 convolutions from codes to codes: product, batch norm and requantization in one call.

Activations are uint8 codes from 0, weights int8 codes in [-127, 127]. A sum of their products
becomes the code ``clip(round(sum * norm[0] + norm[1]), 0, norm[2])``, ties to even; `norm` holds
three numbers for each output channel.

Batch norm takes its mean and variance from the calibration images, and a range its bounds: `settle`
finds both from the `..._statistics` of the same sums. A channel's sums are converted to real values
and clipped in order, so the extremes of the sums give those of the activations.

There are two kernels. C++ (`native.py`) adds up in int32. XLA adds up in float32, which is
exact up to sums of 2**24; below that both give the same codes. This module is the one door to
C++: nothing else imports `native`.
"""

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int8, Int32, UInt8

from qnas_jax.kernels import convolution, native
from qnas_jax.quant import affine, calibrate

Kernel = Literal["C++", "XLA"]


class Found(NamedTuple):
    """Which kernel a machine can use.

    Attributes:
      kernel: The faster one.
      is_fast: Whether it is faster than convolutions of float32. XLA's was not on CPUs and a GPU.
      reason: On a CPU, why it is not C++; else empty.
    """

    kernel: Kernel
    is_fast: bool
    reason: str

    def chosen(self, compute: str) -> Kernel | None:
        """The kernel for a setting "int8", "float32" or "auto", the faster one; None: float32."""
        in_int8 = compute == "int8" or (compute == "auto" and self.is_fast)
        return self.kernel if in_int8 else None


def find_kernel(may_compile: bool = True) -> Found:
    """The kernel to use here, and the reason if the fast one is missing.

    Args:
      may_compile: Whether a C++ compiler may be started. Without, C++ is used only if an
        earlier run has compiled it.
    """
    if jax.default_backend() != "cpu":
        return Found("XLA", False, "")  # by 3 times on an H200, see docs/memory.md
    reason = native.missing(may_compile)
    return Found("XLA", False, reason) if reason else Found("C++", True, "")


def pack_pointwise(w: Float[np.ndarray, "i o"], kernel: Kernel) -> Int8[np.ndarray, "..."]:
    """Weight codes, in the order in which `pointwise` reads them."""
    return native.pack_pointwise(w) if kernel == "C++" else w.astype(np.int8)


def pack_depthwise(w: Float[np.ndarray, "k k c"], kernel: Kernel) -> Int8[np.ndarray, "..."]:
    """Weight codes, in the order in which `depthwise` reads them."""
    return native.pack_depthwise(w) if kernel == "C++" else w.astype(np.int8)


def pointwise(
    x: UInt8[Array, "n h w i"],
    w: Int8[Array, "..."],
    norm: Float[Array, "3 o"],
    kernel: Kernel,
) -> UInt8[Array, "n h w o"]:
    """A 1x1 convolution.

    Args:
      x: Activation codes.
      w: Weights from `pack_pointwise` for the same kernel.
      norm: Factor, offset and highest code of each output channel.
      kernel: What computes it, from `find_kernel`.
    """
    if kernel == "C++":
        return native.pointwise(x, w, norm)
    return _requantized(convolution.pointwise_codes(x, w), norm)


def depthwise(
    x: UInt8[Array, "n h w c"],
    w: Int8[Array, "..."],
    norm: Float[Array, "3 c"],
    stride: int,
    dilation: int,
    kernel: Kernel,
) -> UInt8[Array, "n h2 w2 c"]:
    """A depthwise convolution; the image is padded with code 0.

    Args:
      x: Activation codes.
      w: Weights from `pack_depthwise` for the same kernel.
      norm: Factor, offset and highest code of each channel.
      stride: Step between output pixels.
      dilation: Step between the kernel's taps.
      kernel: What computes it, from `find_kernel`.
    """
    if kernel == "C++":
        return native.depthwise(x, w, norm, stride, dilation)
    sums = convolution.depthwise(x.astype(jnp.float32), w.astype(jnp.float32), stride, dilation)
    return _requantized(sums, norm)


class Place(NamedTuple):
    """An inverted residual among others of a layer, whose norms and grids are held together.

    Attributes:
      kernel: Of the depthwise convolution, as are the next two.
      stride: Step between output pixels.
      dilation: Step between the kernel's taps.
      hidden: Channels in between.
      channels: Channels of the output.
      first: Where its norms begin: those of the three convolutions follow each other.
      op: The number of its grids.
    """

    kernel: int
    stride: int
    dilation: int
    hidden: int
    channels: int
    first: int
    op: int


def mbconv(
    x: UInt8[Array, "n h w i"],
    weights: Sequence[Int8[Array, "..."]],
    norms: Float[Array, "3 all"],
    grids: Float[Array, "ops grids 4"],
    place: Place,
    kernel: Kernel,
) -> UInt8[Array, "n h2 w2 o"]:
    """An inverted residual: `pointwise`, `depthwise`, `pointwise`, and the sum with the input.

    Args:
      x: Activation codes.
      weights: Of the three convolutions, packed for the same kernel.
      norms: Factor, offset and highest code of each channel of several inverted residuals.
      grids: Of each: scale, zero point, inverse of the scale and highest code of the output; if
        the input is added, of the input, of what it is added to, and of the sum.
      place: Which one it is, and its sizes.
      kernel: What computes it, from `find_kernel`.
    """
    if kernel == "C++":
        return native.mbconv(x, weights, norms, grids, place._asdict())
    ends = np.cumsum([place.first, place.hidden, place.hidden, place.channels])
    own = [norms[:, start:end] for start, end in itertools.pairwise(ends)]
    y = pointwise(x, weights[0], own[0], kernel)
    y = depthwise(y, weights[1], own[1], place.stride, place.dilation, kernel)
    y = pointwise(y, weights[2], own[2], kernel)
    if grids.shape[1] == 1:
        return y
    of_x, of_y, own = grids[place.op]
    return _on_grid(real(x, *of_x[:2]) + real(y, *of_y[:2]), own)


def mbconv_noise(
    x: UInt8[Array, "n h w i"],
    weights: Sequence[Int8[Array, "..."]],
    norms: Float[Array, "3 all"],
    grids: Float[Array, "ops grids 4"],
    target: Float[Array, "n h2 w2 o"],
    place: Place,
    kernel: Kernel,
) -> Float[Array, "o"]:
    """Squared distances of `mbconv` from a target, summed over images and pixels."""
    if kernel == "C++":
        return native.mbconv_noise(x, weights, norms, grids, target, place._asdict())
    y = mbconv(x, weights, norms, grids, place, kernel)
    return jnp.sum(jnp.square(real(y, *grids[place.op, -1, :2]) - target), axis=(0, 1, 2))


def real(
    codes: UInt8[Array, "n h w c"], scale: Float[Array, ""], zero_point: Float[Array, ""]
) -> Float[Array, "n h w c"]:
    """Real values, ``scale * (codes - zero_point)``, bit-identical to those of the float path.

    The bound changes no value. It keeps the compiler from fusing the product into a sum, which
    changes the rounding: thousands of sums of two grids are half-way between codes.
    """
    return jnp.maximum((codes - zero_point) * scale, -zero_point * scale)


def pointwise_statistics(
    x: UInt8[Array, "n h w i"],
    w: Int8[Array, "..."],
    center: Int32[Array, "o"],
    kernel: Kernel,
) -> Float[Array, "4 o"]:
    """Mean, variance, lowest and highest of each channel's sums of a 1x1 convolution.

    Args:
      x: Activation codes.
      w: Weights from `pack_pointwise` for the same kernel.
      center: Subtracted from each channel's sums, before anything is rounded.
      kernel: What computes it, from `find_kernel`.
    """
    if kernel == "C++":
        return native.pointwise_statistics(x, w, center[None])
    sums = convolution.pointwise_codes(x, w)
    return _statistics(sums - lax.broadcast_to_rank(center.astype(jnp.float32), sums.ndim))


def depthwise_statistics(
    x: UInt8[Array, "n h w c"],
    w: Int8[Array, "..."],
    stride: int,
    dilation: int,
    kernel: Kernel,
) -> Float[Array, "4 c"]:
    """Mean, variance, lowest and highest of each channel's sums of a depthwise convolution.

    Args:
      x: Activation codes; the image is padded with code 0.
      w: Weights from `pack_depthwise` for the same kernel.
      stride: Step between output pixels.
      dilation: Step between the kernel's taps.
      kernel: What computes it, from `find_kernel`.
    """
    if kernel == "C++":
        return native.depthwise_statistics(x, w, stride, dilation)
    x, w = x.astype(jnp.float32), w.astype(jnp.float32)
    return _statistics(convolution.depthwise(x, w, stride, dilation))


def settle(
    statistics: Float[Array, "4 c"],
    rate: Float[Array, "c"],
    weights: Sequence[Float[Array, "c"]],
    before: Float[Array, "numbers"],
    a_bits: Int32[Array, ""],
    bounds: tuple[float, float],
    kernel: Kernel,
) -> tuple[Float[Array, "6 c"], Float[Array, "6"], Float[Array, "3 c"]]:
    """Batch norm by the statistics of a convolution's sums, and the grid of what follows it.

    Args:
      statistics: Of the sums less the share of the input's zero point.
      rate: 1 / standard deviation of each channel's real values.
      weights: Of each channel scale and sum of the codes, and the norm's factor and offset.
      before: Scale and zero point of the input, and any numbers after them.
      a_bits: Bitwidth of the activation.
      bounds: Of the activation.
      kernel: What computes it, from `find_kernel`.

    Returns:
      Of each channel, factor and offset of real sums, and inverse of the scale, scale, lowest and
      highest real value of the min-max grid; this grid, see `add`; and both as `pointwise` and
      `depthwise` take them.
    """
    if kernel == "C++":
        return native.settle(statistics, rate, weights, before, a_bits, bounds)
    scale, total, norm_scale, norm_bias = weights
    unit = scale * before[0]
    factor = norm_scale * rate
    offset = norm_bias - unit * statistics[0] * factor
    extremes = jnp.clip(convolution.affine(unit[None] * statistics[2:], factor, offset), *bounds)
    grid = _min_max_grid(extremes, a_bits)
    of_codes = factor * grid[2] * scale * before[0]
    start = offset * grid[2] + grid[1] - total * of_codes * before[1]
    scale, _, inverse, top, low, high = jnp.broadcast_to(grid[:, None], (6, len(factor)))
    step = jnp.stack([factor, offset, inverse, scale, low, high])
    return step, grid, jnp.stack([of_codes, start, top])


def add(
    x: UInt8[Array, "n h w c"],
    y: UInt8[Array, "n h w c"],
    of_x: Float[Array, "numbers"],
    of_y: Float[Array, "others"],
    a_bits: Int32[Array, ""],
    kernel: Kernel,
) -> tuple[UInt8[Array, "n h w c"], Float[Array, "6"]]:
    """The sum of two tensors on its min-max grid.

    Args:
      x: Codes.
      y: Codes.
      of_x: Scale and zero point, and any numbers after them.
      of_y: The same of `y`.
      a_bits: Bitwidth of the sum.
      kernel: What computes it, from `find_kernel`.

    Returns:
      Codes and grid: scale, zero point, 1 / scale, highest code, lowest and highest real value.
    """
    if kernel == "C++":
        return native.add(x, y, of_x, of_y, a_bits)
    total = real(x, *of_x[:2]) + real(y, *of_y[:2])
    grid = _min_max_grid(total, a_bits)
    return _on_grid(total, grid), grid


def _min_max_grid(values, a_bits):
    """The min-max grid of values; see `add`."""
    scale, zero_point, q_max = affine.asymmetric_grid(calibrate.min_max(values, a_bits), a_bits)
    low, high = scale * (0 - zero_point), scale * (q_max - zero_point)
    return jnp.stack([scale, zero_point, 1 / scale, q_max, low, high])


def _on_grid(values, grid):
    return jnp.clip(jnp.round(values * grid[2]) + grid[1], 0, grid[3]).astype(jnp.uint8)


def _statistics(sums):
    pixels = range(sums.ndim - 1)
    extremes = jnp.min(sums, pixels), jnp.max(sums, pixels)
    return jnp.stack([*convolution.pixel_moments(sums), *extremes])


def _requantized(sums, norm):
    highest = lax.broadcast_to_rank(norm[2], sums.ndim)
    return jnp.clip(jnp.round(convolution.affine(sums, norm[0], norm[1])), 0, highest).astype(
        jnp.uint8
    )
