"""Weight sharing: a tensor's weights become the nearest of ``2**bits`` centres.

The bitwidth is data: there are always `MOST` centres, of which ``2**bits`` are in use.

References:
  Han et al., 2016, https://arxiv.org/abs/1510.00149, section 3.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

MOST = 256  # centres of 8 bits, the largest bitwidth
ITERATIONS = 50


def centres(
    w: Float[Array, "*shape"], bits: Int[Array, ""], iterations: int = ITERATIONS
) -> Float[Array, "256"]:
    """Returns the centres of a tensor's weights by Lloyd's algorithm, ascending.

    It begins at quantiles of the weights, so that no cluster begins empty. One that gets empty
    keeps its centre.

    Args:
      w: Weights.
      bits: Bitwidth in ``[1, 8]``; an array, so it can be traced and vmapped.
      iterations: Of Lloyd's algorithm.

    Returns:
      ``2**bits`` centres, then infinity.
    """
    values, used = jnp.sort(w.ravel()), jnp.arange(MOST) < (1 << bits)
    shares = (jnp.arange(MOST) + 0.5) / (1 << bits)
    # A quantile is the value at its place; of fewer values than centres some are taken twice.
    places = jnp.clip(shares * values.size, 0, values.size - 1).astype(jnp.int32)
    start = jnp.where(used, values[places], jnp.inf)

    def iterate(_, found):
        nearest = assign(values, found)
        ones = jax.ops.segment_sum(jnp.ones_like(values), nearest, MOST)
        sums = jax.ops.segment_sum(values, nearest, MOST)
        moved = jnp.where(ones > 0, sums / jnp.maximum(ones, 1), found)
        return jnp.sort(jnp.where(used, moved, jnp.inf))

    return lax.fori_loop(0, iterations, iterate, start)


def assign(w: Float[Array, "*shape"], found: Float[Array, "256"]) -> Int[Array, "*shape"]:
    """Returns the number of the nearest centre of each weight."""
    return jnp.searchsorted((found[1:] + found[:-1]) / 2, w)


def share(w: Float[Array, "*shape"], codes: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns the weights with each cluster at its mean.

    The gradient flows through the means: an SGD step on the result moves each cluster by the mean
    of its weights' gradients, as HAQ's code finetunes centres.

    Args:
      w: Weights; they may have been trained since they were clustered.
      codes: The cluster of each, which stays.
    """
    flat = codes.ravel()
    counts = jax.ops.segment_sum(jnp.ones(flat.size, w.dtype), flat, MOST)
    means = jax.ops.segment_sum(w.ravel(), flat, MOST) / jnp.maximum(counts, 1)
    return means[codes]


def kmeans(w: Float[Array, "*shape"], bits: Int[Array, ""]) -> Float[Array, "*shape"]:
    """Returns the weights, each replaced by the nearest of ``2**bits`` centres."""
    return share(w, assign(w, centres(w, bits)))
