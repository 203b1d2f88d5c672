"""Integer-only reference of every operation that is exported, in NumPy.

Activations are uint8 codes of a grid (``real = scale * (code - zero_point)``), weights int8
codes with zero point 0, biases and sums int32. Sums are exact; the one place where runtimes
may differ is how a sum becomes a code again, which is a `Rule`:

- `by_float`: the sum times a float32 multiplier, ties to even. ONNX Runtime does that, and
  XNNPACK below LiteRT.
- `by_fixed_point`: the sum times a 31-bit integer and a shift, rounded twice. LiteRT's
  reference kernels do that.
- `by_fixed_point_up`: the same, but the second rounding puts ties upwards. LiteRT's fast
  kernels do that for convolutions.

References:
  Jacob et al., 2018, https://arxiv.org/abs/1712.05877, section 2.2 and appendix B.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int, UInt8

Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (sums, multipliers) -> whole numbers

INT32 = np.iinfo(np.int32)
MOST_SHIFT = 31  # beyond it a fixed-point multiplier is zero


def by_float(sums: Int[np.ndarray, "*n c"], multiplier: Float[np.ndarray, "#c"]) -> np.ndarray:
    """Sums times float32 multipliers, ties to even; int64."""
    scaled = sums.astype(np.float32) * multiplier.astype(np.float32)
    return np.rint(scaled).astype(np.int64)


def by_fixed_point(
    sums: Int[np.ndarray, "*n c"], multiplier: Float[np.ndarray, "#c"]
) -> np.ndarray:
    """Sums times multipliers of 31 bits and a shift, each step rounded; int64.

    The product's upper half is rounded with ties away from zero (towards zero below zero, as
    the authors' code does), and so is the shift behind it, ties away from zero.

    References:
      Jacob et al., 2018, https://arxiv.org/abs/1712.05877, appendix B; gemmlowp,
      `SaturatingRoundingDoublingHighMul` and `RoundingDivideByPOT`.
    """
    high, right = _upper_half(sums, multiplier)
    mask = (np.int64(1) << right) - 1
    over = (high & mask) > (mask >> 1) + (high < 0)
    return (high >> right) + over


def by_fixed_point_up(
    sums: Int[np.ndarray, "*n c"], multiplier: Float[np.ndarray, "#c"]
) -> np.ndarray:
    """As `by_fixed_point`, but the shift rounds ties upwards; int64."""
    high, right = _upper_half(sums, multiplier)
    return (high + ((np.int64(1) << right) >> 1)) >> right


def _upper_half(sums, multiplier) -> tuple[np.ndarray, np.ndarray]:
    """Rounded upper halves of the products, and by how much they are still to be shifted."""
    mantissa, exponent = np.frexp(multiplier.astype(np.float64))
    whole = np.rint(mantissa * 2.0**31).astype(np.int64)
    exponent = exponent + (whole == 2**31)
    whole = np.where(whole == 2**31, 2**30, whole)
    whole = np.where(exponent < -MOST_SHIFT, 0, whole)
    left, right = np.maximum(exponent, 0), np.clip(-exponent, 0, MOST_SHIFT)
    product = np.clip(sums.astype(np.int64) << left, INT32.min, INT32.max) * whole
    nudge = np.where(product >= 0, 2**30, 1 - 2**30)
    return _truncated(product + nudge), right


def _truncated(product: np.ndarray) -> np.ndarray:
    """Divided by 2**31, rounded towards zero."""
    return np.sign(product) * (np.abs(product) >> 31)


def accumulate(
    x: Int[np.ndarray, "n h w i"] | Float[np.ndarray, "n h w i"],
    w: Int[np.ndarray, "k k j o"] | Float[np.ndarray, "k k j o"],
    stride: int,
    dilation: int,
    groups: int,
) -> Float[np.ndarray, "n h2 w2 o"]:
    """A convolution with zeros around, as float64: exact for whole numbers below 2**53."""
    k, _, inputs, outputs = w.shape
    pad, reach = dilation * (k - 1) // 2, dilation * (k - 1)
    x = np.pad(x.astype(np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows, columns = ((side - reach - 1) // stride + 1 for side in x.shape[1:3])
    total = np.zeros((len(x), rows, columns, outputs))
    for i, j in np.ndindex(k, k):
        top, left = i * dilation, j * dilation
        window = x[
            :,
            top : top + (rows - 1) * stride + 1 : stride,
            left : left + (columns - 1) * stride + 1 : stride,
        ]
        if groups == 1:
            total += window @ w[i, j].astype(np.float64)
        else:
            split = window.reshape(*window.shape[:3], groups, inputs)
            taps = w[i, j].reshape(inputs, groups, outputs // groups).astype(np.float64)
            total += np.einsum("nhwgi,igo->nhwgo", split, taps).reshape(total.shape)
    return total


def conv(
    codes: UInt8[np.ndarray, "n h w i"],
    zero_point: int,
    weights: Int[np.ndarray, "k k j o"],
    bias: Int[np.ndarray, "o"],
    stride: int,
    dilation: int,
    groups: int,
) -> Int[np.ndarray, "n h2 w2 o"]:
    """Sums of a convolution and its bias, int32; padding is the zero point.

    Raises:
      OverflowError: A sum does not fit.
    """
    x = codes.astype(np.int32) - zero_point
    total = accumulate(x, weights, stride, dilation, groups) + bias
    if np.abs(total).max(initial=0) > INT32.max:
        raise OverflowError(f"a sum of {np.abs(total).max():.0f} does not fit into 32 bits")
    return total.astype(np.int32)


def requantize(
    sums: Int[np.ndarray, "*n c"],
    multiplier: Float[np.ndarray, "#c"],
    zero_point: int,
    bounds: tuple[int, int],
    rule: Rule = by_float,
) -> UInt8[np.ndarray, "*n c"]:
    """Codes of sums.

    Args:
      sums: Of a convolution, or of an image's pixels.
      multiplier: Scale of the sums over the scale of the codes.
      zero_point: Of the codes.
      bounds: Lowest and highest code, of the grid or of the activation.
      rule: How it is rounded.
    """
    return np.clip(rule(sums, multiplier) + zero_point, *bounds).astype(np.uint8)


def mean(
    codes: UInt8[np.ndarray, "n h w c"], zero_point: int
) -> tuple[Int[np.ndarray, "n 1 1 c"], int]:
    """Sums over an image's pixels, int32, and how many pixels there are."""
    x = codes.astype(np.int32) - zero_point
    return x.sum((1, 2), dtype=np.int32, keepdims=True), x.shape[1] * x.shape[2]


def add(
    a: UInt8[np.ndarray, "*n"],
    b: UInt8[np.ndarray, "*n"],
    a_grid: tuple[float, int],
    b_grid: tuple[float, int],
    out_grid: tuple[float, int],
    q_max: int,
) -> UInt8[np.ndarray, "*n"]:
    """Codes of the sum of two tensors, each grid a scale and a zero point; ties to even.

    In float32, each term times its scale over the output's, all zero points gathered in one
    constant first, in the order that ONNX Runtime has on CPUs with fused products.
    """
    scale = np.float32(out_grid[0])
    a_ratio, b_ratio = np.float32(a_grid[0]) / scale, np.float32(b_grid[0]) / scale
    zeros = _fused(a_ratio, np.float32(a_grid[1]), b_ratio * np.float32(b_grid[1]))
    total = _fused(b, b_ratio, np.float32(out_grid[1]) - zeros)
    total = _fused(a, a_ratio, total)
    return np.clip(np.rint(total), 0, q_max).astype(np.uint8)


def _fused(x, factor, offset) -> np.ndarray:
    """``x * factor + offset`` in float32, rounded once."""
    return np.asarray(x * np.float64(factor) + np.float64(offset), np.float32)
