"""Integer-only reference of every exported operation, in NumPy.

Activations are uint8 codes of a grid (``real = scale * (code - zero_point)``), weights are int8
codes with zero point 0, biases and accumulators are int32. Accumulators are exact. Runtimes
differ only in how they requantize an accumulator to a code. That is a `Rule`:

- `by_float`: times a float32 multiplier, ties to even. Used by ONNX Runtime, and by XNNPACK in
  LiteRT.
- `by_fixed_point`: times a 31-bit integer, then a shift; each step rounds. Used by LiteRT's
  reference kernels.
- `by_fixed_point_up`: the same, but the shift rounds ties up. Used by LiteRT's fast kernels for
  convolutions.

References:
  Jacob et al., 2018, https://arxiv.org/abs/1712.05877, section 2.2 and appendix B.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int, UInt8

Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (accumulators, multipliers) -> integers

INT32 = np.iinfo(np.int32)
MOST_SHIFT = 31  # with a larger shift, a fixed-point multiplier is zero


def by_float(sums: Int[np.ndarray, "*n c"], multiplier: Float[np.ndarray, "#c"]) -> np.ndarray:
    """Multiplies accumulators by float32 multipliers, ties to even; returns int64."""
    scaled = sums.astype(np.float32) * multiplier.astype(np.float32)
    return np.rint(scaled).astype(np.int64)


def by_fixed_point(
    sums: Int[np.ndarray, "*n c"], multiplier: Float[np.ndarray, "#c"]
) -> np.ndarray:
    """Multiplies accumulators by 31-bit multipliers and shifts, rounding twice; returns int64.

    The upper half of the product is rounded with ties away from zero (for negative products
    towards zero, as in the authors' code). The shift then rounds ties away from zero.

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
    """Like `by_fixed_point`, but the shift rounds ties up; returns int64."""
    high, right = _upper_half(sums, multiplier)
    return (high + ((np.int64(1) << right) >> 1)) >> right


def _upper_half(sums, multiplier) -> tuple[np.ndarray, np.ndarray]:
    """Rounded upper halves of the products, and the right shifts that remain."""
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
    """`product / 2**31`, rounded towards zero."""
    return np.sign(product) * (np.abs(product) >> 31)


def accumulate(
    x: Int[np.ndarray, "n h w i"] | Float[np.ndarray, "n h w i"],
    w: Int[np.ndarray, "k k j o"] | Float[np.ndarray, "k k j o"],
    stride: int,
    dilation: int,
    groups: int,
    padding: Int[np.ndarray, "#i"] | Float[np.ndarray, "#i"] | None = None,
) -> Float[np.ndarray, "n h2 w2 o"]:
    """Returns a padded convolution in float64, which is exact for integers below 2**53.

    Args:
      x: What is convolved.
      w: The kernel.
      stride: In both directions, as is the dilation.
      dilation: Distance of the taps.
      groups: 1, or the number of channels (depthwise).
      padding: What lies around `x`, by channel; None for zero.
    """
    if padding is not None and padding.any():
        # Less the padding, there are zeros around `x`.
        inner = accumulate(x - padding, w, stride, dilation, groups)
        return inner + np.einsum("klio,i->o", w.astype(np.float64), padding.astype(np.float64))
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
    padding: UInt8[np.ndarray, "_"] | None = None,
) -> Int[np.ndarray, "n h2 w2 o"]:
    """Returns the int32 accumulators of a convolution with bias.

    Args:
      codes: What is convolved.
      zero_point: Its code of zero.
      weights: Codes of the kernel.
      bias: In steps of the accumulators.
      stride: In both directions, as is the dilation.
      dilation: Distance of the taps.
      groups: 1, or the number of channels (depthwise).
      padding: Codes that lie around, by channel; None for the zero point.

    Raises:
      OverflowError: An accumulator does not fit into int32.
    """
    x = codes.astype(np.int32) - zero_point
    around = None if padding is None else padding.astype(np.int32) - zero_point
    total = accumulate(x, weights, stride, dilation, groups, around) + bias
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
    """Returns the codes of int32 accumulators.

    Args:
      sums: Accumulators of a convolution, or sums over the pixels of an image.
      multiplier: Scale of the accumulators divided by the scale of the codes.
      zero_point: Zero point of the codes.
      bounds: Lowest and highest code, of the grid or of the activation function.
      rule: The rounding rule.
    """
    return np.clip(rule(sums, multiplier) + zero_point, *bounds).astype(np.uint8)


def mean(
    codes: UInt8[np.ndarray, "n h w c"], zero_point: int
) -> tuple[Int[np.ndarray, "n 1 1 c"], int]:
    """Returns the int32 sums over the pixels of each image, and the number of pixels."""
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
    """Returns the codes of the sum of two tensors; ties round to even.

    Computed in float32, in the order of ONNX Runtime on CPUs with fused multiply-add: each term
    is multiplied by its scale over the output's scale, and one constant holds all zero points.

    Args:
      a: Codes of the first term.
      b: Codes of the second term.
      a_grid: Scale and zero point of `a`.
      b_grid: Scale and zero point of `b`.
      out_grid: Scale and zero point of the sum.
      q_max: Highest code of the sum.
    """
    scale = np.float32(out_grid[0])
    a_ratio, b_ratio = np.float32(a_grid[0]) / scale, np.float32(b_grid[0]) / scale
    zeros = _fused(a_ratio, np.float32(a_grid[1]), b_ratio * np.float32(b_grid[1]))
    total = _fused(b, b_ratio, np.float32(out_grid[1]) - zeros)
    total = _fused(a, a_ratio, total)
    return np.clip(np.rint(total), 0, q_max).astype(np.uint8)


def _fused(x, factor, offset) -> np.ndarray:
    """A fused multiply-add, ``x * factor + offset``, in float32."""
    return np.asarray(x * np.float64(factor) + np.float64(offset), np.float32)
