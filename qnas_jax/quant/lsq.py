"""Learned step sizes: the scale of a grid is trained with the weights.

Values are those of `affine.snap` bit for bit. Rounding passes the gradient of the values straight
through inside of the grid. The step ``s`` gets, with ``v = x / s``,

    round(v) - v                 inside of the grid,
    the lowest or highest code   (less the zero point) where it is clipped,

times ``1 / sqrt(n * q_max)`` for ``n`` values that share the step, so that steps learn as fast as
weights do.

References:
  Esser et al., 2020, https://arxiv.org/abs/1902.08153 (eq. 3 and section 2.2).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qnas_jax.quant import affine


@jax.custom_jvp
def _snap(x, step, zero_point, q_min, q_max):
    return affine.snap(x, step, zero_point, q_min, q_max)


@_snap.defjvp
def _snap_jvp(primals, tangents):
    x, step, zero_point, q_min, q_max = primals
    low, high = (affine.over(q - zero_point, x) for q in (q_min, q_max))
    v = x * affine.over(1 / step, x)
    code = jnp.round(v)
    inside = (code >= low) & (code <= high)
    of_step = jnp.where(inside, code - v, jnp.clip(code, low, high))
    out = jnp.where(inside, tangents[0], 0.0) + of_step * affine.over(tangents[1], x)
    return _snap(*primals), out


@jax.custom_jvp
def slower(step, factor):
    """Returns the step as it is; its gradient is multiplied by the factor."""
    del factor
    return step


@slower.defjvp
def _slower_jvp(primals, tangents):
    step, factor = primals
    return step, tangents[0] * factor


@jax.jit
def fake_quant(
    x: Float[Array, "*shape"], range_: Float[Array, "2"], bits: Int[Array, ""]
) -> Float[Array, "*shape"]:
    """Rounds activations as `affine.fake_quant`, with a gradient for the grid's step.

    Args:
      x: Values in real units.
      range_: The range that is learned, see `range_of`.
      bits: Bitwidth in ``[2, 8]``; an array, so it can be traced and vmapped.
    """
    step, zero_point, q_max = affine.asymmetric_grid(range_, bits)
    step = slower(step, jax.lax.rsqrt(x.size * q_max))
    return _snap(x, step, zero_point, 0.0, q_max)


def range_of(
    step: Float[Array, ""], zero_point: Float[Array, ""], bits: Int[Array, ""]
) -> Float[Array, "2"]:
    """Returns the range of a grid: its step is learned, its zero point stays."""
    return step * jnp.stack([-zero_point, affine.q_max_asymmetric(bits) - zero_point])


@jax.jit
def fake_quant_weight(
    w: Float[Array, "*shape channels"], step: Float[Array, "channels"], bits: Int[Array, ""]
) -> Float[Array, "*shape channels"]:
    """Rounds weights to a symmetric grid of each output channel, whose step is learned.

    Args:
      w: Weights in real units; output channels last.
      step: Distance of the grid's points by channel; the caller keeps it above 0.
      bits: Bitwidth in ``[2, 8]``; an array, so it can be traced and vmapped.
    """
    q_max = ((jnp.int32(1) << (bits - 1)) - 1).astype(jnp.float32)
    step = slower(step, jax.lax.rsqrt(w.size // w.shape[-1] * q_max))
    return _snap(w, step, 0.0, -q_max, q_max)
