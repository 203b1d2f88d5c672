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

    It begins with centres as dense as is best for many of them: as the cube root of the weights'
    density (Panter and Dite, 1951). Quantiles would leave too few for the tails. A cluster that
    gets empty keeps its centre.

    Args:
      w: Weights.
      bits: Bitwidth in ``[1, 8]``; an array, so it can be traced and vmapped.
      iterations: Of Lloyd's algorithm.

    Returns:
      ``2**bits`` centres, then infinity.
    """
    values, used = jnp.sort(w.ravel()), jnp.arange(MOST) < (1 << bits)
    start = jnp.where(used, values[_first_places(values, bits)], jnp.inf)

    def iterate(_, found):
        moved = _means(values, assign(values, found), jnp.where(used, found, 0.0))
        return jnp.sort(jnp.where(used, moved, jnp.inf))

    return lax.fori_loop(0, iterations, iterate, start)


def _first_places(values, bits):
    """Places among sorted values at which centres begin; those that are not used are anywhere."""
    count, number = 1 << bits, jnp.arange(MOST)
    shares = (number + 0.5) / count
    gaps = jnp.diff(values)
    # A gap between neighbours is one over the density; its power 2/3 is the density to the power
    # 1/3, times the gap.
    mass = jnp.concatenate([jnp.zeros(1), jnp.cumsum(gaps ** (2 / 3))])
    dense = jnp.searchsorted(mass, shares * mass[-1])
    dense = lax.cummax(dense - number) + number  # no place twice
    dense = jnp.minimum(dense, values.size - count + number)
    rank = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum((gaps > 0).astype(jnp.int32))])
    distinct = rank[-1] + 1
    each = jnp.searchsorted(rank, (shares * distinct).astype(jnp.int32))
    # Of few distinct values each has a centre.
    return jnp.clip(jnp.where(distinct <= count, each, dense), 0, values.size - 1)


def _means(values, nearest, middle):
    """The mean of each cluster; `middle` where it is empty.

    The sums are of distances to a number near each cluster: a float32 sum of many equal numbers
    is wrong by percents.
    """
    counts = jax.ops.segment_sum(jnp.ones(nearest.size, jnp.int32), nearest, MOST)
    sums = jax.ops.segment_sum(values - middle[nearest], nearest, MOST)
    return middle + sums / jnp.maximum(counts, 1)


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
    values, flat = w.ravel(), codes.ravel()
    highest = lax.stop_gradient(jax.ops.segment_max(values, flat, MOST))
    middle = jnp.where(jnp.isfinite(highest), highest, 0.0)  # no number where a cluster is empty
    # The means move with the weights alone: what `middle` adds, it takes off again.
    return _means(values, flat, middle)[codes]


def kmeans(w: Float[Array, "*shape"], bits: Int[Array, ""]) -> Float[Array, "*shape"]:
    """Returns the weights, each replaced by the nearest of ``2**bits`` centres."""
    return share(w, assign(w, centres(w, bits)))
