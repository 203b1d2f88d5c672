"""From data to a clipping range."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def min_max(x: Float[Array, "*shape"]) -> Float[Array, "2"]:
    """The whole range of `x`: alpha = min, beta = max.

    References:
      Lu et al., 2023, https://arxiv.org/abs/2401.12350 (the published calibration).
    """
    return jnp.stack([jnp.min(x), jnp.max(x)])


def hull(a: Float[Array, "2"], b: Float[Array, "2"]) -> Float[Array, "2"]:
    """The smallest range that holds both; joins what batches of data have shown."""
    return jnp.stack([jnp.minimum(a[0], b[0]), jnp.maximum(a[1], b[1])])
