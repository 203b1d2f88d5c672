"""Affine quantization: real values as integer codes with a scale and a zero point.

Everywhere `real = scale * (code - zero_point)`. Bitwidths are arrays, so they can be traced and
vmapped: one compiled program serves all of them. (`jax.jit` on these functions only avoids
retracing them at every call within a network.)

- Activations are asymmetric: codes lie in `[0, 2**bits - 1]`, and zero is exactly on the grid.
- Weights are symmetric, with a scale per output channel (the last axis): codes lie in
  `[-(2**(bits-1) - 1), 2**(bits-1) - 1]`, and the zero point is 0. One scale for a kernel
  with its norm folded in becomes a scale for each channel here, see `ptq/per_tensor.py`.

References:
  Jacob et al., 2018, https://arxiv.org/abs/1712.05877, section 2.1.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


def q_max_asymmetric(bits: Int[Array, ""]) -> Float[Array, ""]:
    """Returns the highest code of an activation, ``2**bits - 1``; the lowest is 0."""
    return ((jnp.int32(1) << bits) - 1).astype(jnp.float32)


def asymmetric_grid(
    range_: Float[Array, "2 *channels"], bits: Int[Array, ""]
) -> tuple[Float[Array, "*channels"], Float[Array, "*channels"], Float[Array, ""]]:
    """Returns the grid of `2**bits` points over a clipping range.

    The range is first widened to include zero. Then
    ``scale = (beta - alpha) / (2**bits - 1)`` and ``zero_point = round(-alpha / scale)``.

    Args:
      range_: Clipping range ``[alpha, beta]`` in real units, per tensor or per channel.
      bits: Bitwidth in ``[2, 8]``.

    Returns:
      scale (1 where the range is empty), zero_point and q_max; q_min is 0.
    """
    q_max = q_max_asymmetric(bits)
    alpha, beta = jnp.minimum(range_[0], 0.0), jnp.maximum(range_[1], 0.0)
    scale = _or_one((beta - alpha) / q_max)
    return scale, jnp.round(-alpha / scale), q_max


def symmetric_grid(
    absmax: Float[Array, "*channels"], bits: Int[Array, ""]
) -> tuple[Float[Array, "*channels"], Float[Array, ""]]:
    """Returns the grid of `2**bits - 1` points over ``[-absmax, absmax]``.

    Args:
      absmax: Largest magnitude in real units, per tensor or per channel.
      bits: Bitwidth in ``[2, 8]``.

    Returns:
      scale (1 where `absmax` is zero) and q_max; q_min is ``-q_max``.
    """
    q_max = ((jnp.int32(1) << (bits - 1)) - 1).astype(jnp.float32)
    return _or_one(absmax / q_max), q_max


def _or_one(scale):
    """The scale, or 1 where it is zero or subnormal, as for an empty range."""
    return jnp.where(scale < jnp.finfo(jnp.float32).tiny, 1.0, scale)


def over(values, x):
    """Returns `values` of the last axis with leading axes of 1, to broadcast over `x`.

    A scalar stays a scalar. JAX would add the axes by itself, but the tests forbid that, as it
    hides mistakes.
    """
    rank = jnp.ndim(values)
    return lax.broadcast_to_rank(values, max(jnp.ndim(x), rank)) if rank else values


def quantize(x, scale, zero_point, q_min, q_max):
    """Returns the codes of `x`, as floats.

    Computes ``clip(round(x * (1 / scale)) + zero_point, q_min, q_max)``. Ties round to even. The
    grid is that of all values, or of each channel (the last axis).
    """
    return jnp.clip(_unclipped(x, scale, zero_point), over(q_min, x), over(q_max, x))


def _unclipped(x, scale, zero_point):
    return jnp.round(x * over(1 / scale, x)) + over(zero_point, x)


def dequantize(codes, scale, zero_point):
    """Returns the real values of codes, ``scale * (codes - zero_point)``."""
    return over(scale, codes) * (codes - over(zero_point, codes))


@jax.custom_jvp
def snap(x, scale, zero_point, q_min, q_max):
    """Rounds `x` to the nearest grid point, in real units.

    The gradient is straight-through: 1 where `x` lies inside the range and 0 where it is clipped.
    No gradient flows to the grid.
    """
    low, high = dequantize(q_min, scale, zero_point), dequantize(q_max, scale, zero_point)
    return nearest(x, 1 / scale, scale, low, high)


def nearest(x, inverse, scale, low, high):
    """Rounds `x` to a multiple of `scale` and clips to ``[low, high]``; `inverse` is ``1 / scale``.

    The result is bit-identical to `dequantize(quantize(x))`, but the last operation is the clip.
    If it were the product, some programs would fuse it with a following addition, which changes
    the rounding.
    """
    return jnp.clip(over(scale, x) * jnp.round(x * over(inverse, x)), over(low, x), over(high, x))


@snap.defjvp
def _snap_jvp(primals, tangents):
    x, scale, zero_point, q_min, q_max = primals
    code = _unclipped(x, scale, zero_point)
    inside = (code >= over(q_min, x)) & (code <= over(q_max, x))
    return snap(*primals), jnp.where(inside, tangents[0], 0.0)


@jax.jit
def fake_quant(
    x: Float[Array, "*shape"], range_: Float[Array, "2 *channels"], bits: Int[Array, ""]
) -> Float[Array, "*shape"]:
    """Rounds activations to the nearest of the ``2**bits`` points of an affine grid.

    Args:
      x: Values in real units.
      range_: Clipping range ``[alpha, beta]``, per tensor or per channel (the last axis).
      bits: Bitwidth in ``[2, 8]``; an array, so it can be traced and vmapped.

    Returns:
      `x` rounded to the grid. The gradient is 1 inside the range and 0 where `x` is clipped.

    References:
      Jacob et al., 2018, https://arxiv.org/abs/1712.05877, eq. 1 and 12.
    """
    scale, zero_point, q_max = asymmetric_grid(range_, bits)
    return snap(x, scale, zero_point, 0.0, q_max)


def weight_codes(
    w: Float[Array, "*shape channels"],
    bits: Int[Array, ""],
    scale: Float[Array, "channels"] | None = None,
    absmax: Float[Array, "channels"] | None = None,
) -> tuple[Float[Array, "*shape channels"], Float[Array, "channels"]]:
    """Returns the codes of weights and their scales by channel; see `fake_quant_weight`.

    Args:
      w: Weights in real units; output channels last.
      bits: Bitwidth in ``[2, 8]``.
      scale: Of each channel; None: that of `absmax`.
      absmax: The magnitude of each channel that has the highest code; None: its largest one.
    """
    own, q_max = symmetric_grid(_absmax(w) if absmax is None else absmax, bits)
    scale = own if scale is None else scale
    return quantize(w, scale, 0.0, -q_max, q_max), scale


def _absmax(w):
    axes = tuple(range(w.ndim - 1))
    return nan_if_any(w, jnp.max(jnp.abs(w), axes), axes)


def nan_if_any(x, extreme, axes=None):
    """Returns `extreme`, the minimum or maximum of `x` along `axes`, or NaN where `x` has a NaN.

    By themselves `jnp.min` and `jnp.max` lose NaN on the CPU, in vectors of 32,768 values and
    more with JAX 0.10.1, of 4,096 and more with 0.12.0.
    """
    return jnp.where(jnp.any(jnp.isnan(x), axes), jnp.nan, extreme)


@jax.jit
def fake_quant_weight(
    w: Float[Array, "*shape channels"],
    bits: Int[Array, ""],
    absmax: Float[Array, "channels"] | None = None,
) -> Float[Array, "*shape channels"]:
    """Rounds weights to a symmetric grid per output channel (the last axis).

    A channel's scale is its largest magnitude divided by ``2**(bits-1) - 1``. A positive factor
    per channel (a folded batch norm) multiplies the scale and does not change the codes, so
    weights can be quantized before or after folding.

    Args:
      w: Weights in real units; output channels last.
      bits: Bitwidth in ``[2, 8]``; an array, so it can be traced and vmapped.
      absmax: The magnitude of each channel that has the highest code, beyond which weights are
        clipped; None: its largest one.

    Returns:
      `w` rounded to the grid. The gradient is 1, and 0 where `w` is clipped.
    """
    absmax = _absmax(w) if absmax is None else absmax
    scale, q_max = symmetric_grid(jax.lax.stop_gradient(absmax), bits)
    return snap(w, scale, 0.0, -q_max, q_max)
