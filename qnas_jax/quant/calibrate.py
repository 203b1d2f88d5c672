"""Calibration: finds the clipping range of data.

A `FindRange` is a function (values, bitwidth) -> clipping range ``[alpha, beta]``.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from qnas_jax.quant import affine

FindRange = Callable[[Array, Array], Array]

CLIPPED = 1e-4  # fraction of the values that `percentile` clips, half of it at each end
SHARES = 20  # number of ranges that `mse` tries


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

    shares = jnp.arange(1, SHARES + 1) / SHARES
    return whole * shares[jnp.argmin(lax.map(error, shares))]


RANGES: dict[str, FindRange] = {"min_max": min_max, "percentile": percentile, "mse": mse}


def hull(a: Float[Array, "2"], b: Float[Array, "2"]) -> Float[Array, "2"]:
    """Returns the smallest range that contains both; merges the ranges of batches."""
    return jnp.stack([jnp.minimum(a[0], b[0]), jnp.maximum(a[1], b[1])])
