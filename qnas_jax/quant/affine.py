"""The affine grid: real values as small integers with a scale and a zero point.

Everywhere `real = scale * (code - zero_point)`. Bitwidths are arrays, so they can be
traced and vmapped: one compiled program serves them all. (`jax.jit` here only makes a network that
calls a function often trace it once for each shape.)

- Activations are asymmetric: codes `[0, 2**bits - 1]`, and zero is exactly on the grid.
- Weights are symmetric per output channel (the last axis): codes
  `[-(2**(bits-1) - 1), 2**(bits-1) - 1]`, zero point 0.

References:
  Jacob et al., 2018, https://arxiv.org/abs/1712.05877, section 2.1.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def q_max_asymmetric(bits: Int[Array, ""]) -> Float[Array, ""]:
    """The highest code of an activation, ``2**bits - 1``; the lowest is 0."""
    return ((jnp.int32(1) << bits) - 1).astype(jnp.float32)


def asymmetric_grid(
    range_: Float[Array, "2 *channels"], bits: Int[Array, ""]
) -> tuple[Float[Array, "*channels"], Float[Array, "*channels"], Float[Array, ""]]:
    """The grid of `2**bits` points over a clipping range.

    Computes ``scale = (beta - alpha) / (2**bits - 1)`` and
    ``zero_point = round(-alpha / scale)`` after widening the range to hold zero.

    Args:
      range_: The clipping range ``[alpha, beta]``, real units.
      bits: Bitwidth in ``[2, 8]``.

    Returns:
      scale (one where the range is empty), zero_point, and q_max; q_min is 0.
    """
    q_max = q_max_asymmetric(bits)
    alpha, beta = jnp.minimum(range_[0], 0.0), jnp.maximum(range_[1], 0.0)
    scale = _or_one((beta - alpha) / q_max)
    return scale, jnp.round(-alpha / scale), q_max


def symmetric_grid(
    absmax: Float[Array, "*channels"], bits: Int[Array, ""]
) -> tuple[Float[Array, "*channels"], Float[Array, ""]]:
    """The grid of `2**bits - 1` points over ``[-absmax, absmax]``.

    Returns:
      scale (one where `absmax` is zero) and q_max; q_min is ``-q_max``.
    """
    q_max = ((jnp.int32(1) << (bits - 1)) - 1).astype(jnp.float32)
    return _or_one(absmax / q_max), q_max


def _or_one(scale):
    """The scale, or one where nothing is to be told apart (or so little that it underflows)."""
    return jnp.where(scale < jnp.finfo(jnp.float32).tiny, 1.0, scale)


def quantize(x, scale, zero_point, q_min, q_max):
    """Codes of `x`: ``clip(round(x * (1 / scale)) + zero_point, q_min, q_max)``, as floats.

    Ties round to even. The arguments broadcast.
    """
    return jnp.clip(jnp.round(x * (1 / scale)) + zero_point, q_min, q_max)


def dequantize(codes, scale, zero_point):
    """Real values of codes: ``scale * (codes - zero_point)``."""
    return scale * (codes - zero_point)


@jax.custom_jvp
def snap(x, scale, zero_point, q_min, q_max):
    """The real value on the grid that is nearest to `x`.

    The gradient is straight-through: one where `x` lies inside the range, zero where it
    is clipped; none flows to the grid.
    """
    low, high = dequantize(q_min, scale, zero_point), dequantize(q_max, scale, zero_point)
    return nearest(x, 1 / scale, scale, low, high)


def nearest(x, inverse, scale, low, high):
    """The multiple of `scale` nearest to `x`, clipped; `inverse` is ``1 / scale``.

    This is `dequantize(quantize(x))` to the last bit, but clipped in real units: a product at
    the end would be fused into a sum behind it in one program and not in another, and then
    be rounded differently.
    """
    return jnp.clip(scale * jnp.round(x * inverse), low, high)


@snap.defjvp
def _snap_jvp(primals, tangents):
    x, scale, zero_point, q_min, q_max = primals
    code = jnp.round(x * (1 / scale)) + zero_point
    inside = (code >= q_min) & (code <= q_max)
    return snap(*primals), jnp.where(inside, tangents[0], 0.0)


@jax.jit
def fake_quant(
    x: Float[Array, "*shape"], range_: Float[Array, "2 *channels"], bits: Int[Array, ""]
) -> Float[Array, "*shape"]:
    """Rounds activations to the nearest of the ``2**bits`` points of an affine grid.

    Args:
      x: Values, real units.
      range_: Clipping range ``[alpha, beta]``, per tensor or per last-axis channel.
      bits: Bitwidth in ``[2, 8]``; an array, so it may be traced and vmapped.

    Returns:
      `x` on the grid. The gradient is one inside the range, zero where `x` is clipped.

    References:
      Jacob et al., 2018, https://arxiv.org/abs/1712.05877, eq. 1 and 12.
    """
    scale, zero_point, q_max = asymmetric_grid(range_, bits)
    return snap(x, scale, zero_point, 0.0, q_max)


def weight_codes(
    w: Float[Array, "*shape channels"], bits: Int[Array, ""]
) -> tuple[Float[Array, "*shape channels"], Float[Array, "channels"]]:
    """Weights as codes and the scale of each output channel; see `fake_quant_weight`."""
    scale, q_max = symmetric_grid(_absmax(w), bits)
    return quantize(w, scale, 0.0, -q_max, q_max), scale


def _absmax(w):
    return jnp.max(jnp.abs(w), axis=tuple(range(w.ndim - 1)))


@jax.jit
def fake_quant_weight(
    w: Float[Array, "*shape channels"], bits: Int[Array, ""]
) -> Float[Array, "*shape channels"]:
    """Rounds weights to a symmetric grid per output channel (the last axis).

    The scale of a channel is its largest magnitude over ``2**(bits-1) - 1``. A positive
    factor per channel (a folded batch norm) multiplies the scale and leaves the codes as
    they are, so weights can be quantized before or after folding.
    """
    scale, q_max = symmetric_grid(jax.lax.stop_gradient(_absmax(w)), bits)
    return snap(w, scale, 0.0, -q_max, q_max)
