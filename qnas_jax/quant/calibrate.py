"""Calibration: finds the clipping range of data.

A `FindRange` is a function (values, bitwidth) -> clipping range ``[alpha, beta]``.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from qnas_jax.quant import affine

FindRange = Callable[[Array, Array], Array]

CLIPPED = 1e-4  # fraction of the values that `percentile` clips, half of it at each end
SHARES = 20  # number of ranges that `mse` and `kl` try
BINS = 2048  # of the histogram of `kl`
TINY = 1e-10  # stands for a probability of 0


def min_max(x: Float[Array, "*shape"], bits: Int[Array, ""]) -> Float[Array, "2"]:
    """Returns the full range of `x`, alpha = min and beta = max, for every bitwidth.

    Both are NaN if a value is NaN.

    References:
      Lu et al., 2023, https://arxiv.org/abs/2401.12350 (the published calibration).
    """
    del bits
    return affine.nan_if_any(x, jnp.stack([jnp.min(x), jnp.max(x)]))


def percentile(x: Float[Array, "*shape"], bits: Int[Array, ""]) -> Float[Array, "2"]:
    """Returns the range between two quantiles; the most extreme 0.01 % of the values are clipped.

    References:
      Wu et al., 2020, https://arxiv.org/abs/2004.09602, section 4.1.
    """
    del bits
    return jnp.quantile(x, jnp.array([CLIPPED / 2, 1 - CLIPPED / 2]))


def mse(x: Float[Array, "*shape"], bits: Int[Array, ""]) -> Float[Array, "2"]:
    """Returns the full range, scaled by the fraction with the smallest squared error.

    The fractions 1/20, 2/20, ..., 1 are tried.

    References:
      Banner et al., 2019, https://arxiv.org/abs/1810.05723 (clipping by squared error).
    """
    whole = min_max(x, bits)

    def error(share):
        return jnp.mean(jnp.square(affine.fake_quant(x, whole * share, bits) - x))

    return whole * best_share(lax.map(error, _shares()))


def kl(x: Float[Array, "*shape"], bits: Int[Array, ""]) -> Float[Array, "2"]:
    """Returns the full range, scaled by the fraction with the smallest KL divergence.

    The divergence is that of the quantized values' distribution from the values' own; see
    `divergences`.

    References:
      Migacz, 2017, 8-bit inference with TensorRT (the histograms).
      Wang et al., 2019, https://arxiv.org/abs/1811.08886, section 3.4.
    """
    whole = min_max(x, bits)

    def rounded(values, share):
        return affine.fake_quant(values, whole * share, bits)

    return whole * best_share(divergences(x, bits, rounded))


def relative(w: Float[Array, "*shape channels"]) -> Float[Array, "*shape channels"]:
    """Returns weights divided by the largest magnitude of their output channel (the last axis)."""
    absmax = jnp.max(jnp.abs(w), tuple(range(w.ndim - 1)))
    return w / affine.over(jnp.where(absmax > 0, absmax, 1.0), w)


def weight_share(x: Float[Array, "n"], bits: Int[Array, ""], name: str) -> Float[Array, ""]:
    """Returns the fraction of its largest magnitude to which every output channel is clipped.

    It is one fraction for all channels, so that also those with few weights (depthwise) have a
    meaningful one.

    Args:
      x: `relative` weights.
      bits: Bitwidth in ``[2, 8]``.
      name: How it is chosen, "min_max" (1: nothing is clipped), "mse" or "kl".
    """
    if name == "min_max":
        return jnp.float32(1)

    def rounded(values, share):
        scale, q_max = affine.symmetric_grid(share, bits)
        return affine.snap(values, scale, 0.0, -q_max, q_max)

    if name == "mse":
        return best_share(
            lax.map(lambda share: jnp.mean(jnp.square(rounded(x, share) - x)), _shares())
        )
    both = jnp.concatenate([x, -x])  # so that the histogram is symmetric, too
    return best_share(divergences(both, bits, rounded))


def clipped(
    w: Float[Array, "*shape channels"], share: Float[Array, ""]
) -> Float[Array, "*shape channels"]:
    """Returns weights clipped to a fraction of the largest magnitude of their output channel."""
    absmax = lax.stop_gradient(jnp.max(jnp.abs(w), tuple(range(w.ndim - 1)), keepdims=True))
    return jnp.clip(w, -share * absmax, share * absmax)


def _shares() -> Array:
    return jnp.arange(1, SHARES + 1) / SHARES


def best_share(errors: Float[Array, "shares"]) -> Float[Array, ""]:
    """Returns the tried fraction of the range with the smallest error; 1 if none is finite."""
    return jnp.where(jnp.any(jnp.isfinite(errors)), _shares()[jnp.argmin(errors)], 1.0)


def divergences(
    x: Float[Array, "*shape"], bits: Int[Array, ""], rounded: Callable[[Array, Array], Array]
) -> Float[Array, "shares"]:
    """Returns a KL divergence for each fraction of the range, 1/20, 2/20, ..., 1.

    P is the histogram of the values, those outside of the range counted in its outermost bins. Q
    is the histogram of those inside, spread evenly over the bins that are not empty and are
    rounded to the same point. Infinite where the range has fewer bins than the grid has points.

    Args:
      x: Values.
      bits: Bitwidth.
      rounded: (values, fraction) -> the values on the grid over that fraction of the range.
    """
    low, high = min_max(x, bits)
    counts, edges = jnp.histogram(x, BINS, (low, jnp.where(high > low, high, low + 1)))
    counts, middles = counts.astype(jnp.float32), (edges[1:] + edges[:-1]) / 2

    def divergence(share):
        inside = (middles >= low * share) & (middles <= high * share)
        held = jnp.where(inside, counts, 0.0)
        first, last = jnp.argmax(inside), BINS - 1 - jnp.argmax(inside[::-1])
        below = jnp.sum(jnp.where(middles < low * share, counts, 0.0))
        above = jnp.sum(jnp.where(middles > high * share, counts, 0.0))
        p = held.at[first].add(below).at[last].add(above)
        points = rounded(middles, share)  # ascending, as the middles are
        steps = (points[1:] != points[:-1]).astype(jnp.int32)
        point = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(steps)])
        filled = (held > 0).astype(jnp.float32)
        mass, bins = (jax.ops.segment_sum(values, point, BINS) for values in (held, filled))
        q = jnp.where(held > 0, (mass / jnp.maximum(bins, 1))[point], 0.0)
        p, q = p / jnp.sum(p), q / jnp.maximum(jnp.sum(q), 1.0)
        terms = jnp.where(p > 0, p * jnp.log(jnp.maximum(p, TINY) / jnp.maximum(q, TINY)), 0.0)
        return jnp.where(jnp.sum(inside) >= (1 << bits), jnp.sum(terms), jnp.inf)

    return lax.map(divergence, _shares())


RANGES: dict[str, FindRange] = {
    "min_max": min_max,
    "percentile": percentile,
    "mse": mse,
    "kl": kl,
}


def hull(a: Float[Array, "2"], b: Float[Array, "2"]) -> Float[Array, "2"]:
    """Returns the smallest range that contains both; merges the ranges of batches."""
    return jnp.stack([jnp.minimum(a[0], b[0]), jnp.maximum(a[1], b[1])])
