"""From data to a clipping range.

A `FindRange` takes values and the bitwidth that they are to have, and gives the clipping
range ``[alpha, beta]``.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from qnas_jax.quant import affine

FindRange = Callable[[Array, Array], Array]

CLIPPED = 1e-4  # share of the values that `percentile` clips, half of them at each end
SHARES = 20  # of the whole range, tried by `mse`


def min_max(x: Float[Array, "*shape"], bits: Int[Array, ""]) -> Float[Array, "2"]:
    """The whole range of `x`: alpha = min, beta = max; the same at every bitwidth.

    References:
      Lu et al., 2023, https://arxiv.org/abs/2401.12350 (the published calibration).
    """
    del bits
    return jnp.stack([jnp.min(x), jnp.max(x)])


def percentile(x: Float[Array, "*shape"], bits: Int[Array, ""]) -> Float[Array, "2"]:
    """The range that leaves out the most extreme values, one in ten thousand.

    References:
      Wu et al., 2020, https://arxiv.org/abs/2004.09602, section 4.1.
    """
    del bits
    return jnp.quantile(x, jnp.array([CLIPPED / 2, 1 - CLIPPED / 2]))


def mse(x: Float[Array, "*shape"], bits: Int[Array, ""]) -> Float[Array, "2"]:
    """Of the shrunk whole ranges, the one whose grid has the least squared error.

    Shares of 1/20, 2/20, ..., 1 of the whole range are tried.

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
    """The smallest range that holds both; joins what batches of data have shown."""
    return jnp.stack([jnp.minimum(a[0], b[0]), jnp.maximum(a[1], b[1])])
