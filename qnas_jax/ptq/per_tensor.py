"""One scale for all weights of a layer, for devices that have none for each output channel.

A device reads kernels with their batch norms folded in, ``w[c] * f[c]``. There, all channels share
the magnitude ``A`` that has the highest code. The network keeps its norms apart, so in it each
channel has the range ``A / |f[c]|``, and the codes are the same.

A channel that reads only zeros is left out of ``A``: its norm divides by almost zero, so it would
have the largest weights of all. They multiply nothing, so they may be clipped.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from qnas_jax.nn.conv import W_RANGE
from qnas_jax.nn.policy import at
from qnas_jax.nn.trace import Trace
from qnas_jax.ptq import norms, ranges
from qnas_jax.quant import affine, calibrate

LEAST_GAIN = 2.0**-20  # of the largest one: the weights of such a channel have code 0
IDLE = 0.01  # of the largest sum of a layer: a channel with less reads only zeros
TINY = 1e-30


def with_ranges(traced: Trace, variables: PyTree, quant: PyTree, kind: str) -> PyTree:
    """Returns a policy in which each layer has one scale of weights, as a file has them.

    Args:
      traced: The units of the network.
      variables: Its `params` and `batch_stats`.
      quant: The policy; its bitwidths may still change if `kind` is "min_max".
      kind: How the range of a layer is chosen, a kind of `calibrate.weight_share`.
    """
    new = jax.tree.map(lambda leaf: leaf, quant)
    share = jax.jit(calibrate.weight_share, static_argnums=2)
    for conv in traced.convs:
        kernel = jnp.asarray(at(variables["params"], conv.name)["kernel"])
        gain = jnp.asarray(norms.gain(variables["params"], variables["batch_stats"], conv.name))
        stats = at(variables["batch_stats"], conv.name).get("norm")
        alive = alive_of(gain, stats) if stats else jnp.ones_like(gain, bool)
        found, leaves = of_channels(kernel, gain, alive), at(new, conv.name)
        if kind != "min_max":
            whole = kernel / affine.over(jnp.where(found > 0, found, 1.0), kernel)
            values = jnp.where(affine.over(alive, whole), jnp.clip(whole, -1, 1), 0.0)
            found = found * share(jnp.asarray(ranges.some(values)), leaves["w_bits"], kind)
        leaves[W_RANGE] = found
    return new


def template(traced: Trace, params: PyTree, quant: PyTree) -> PyTree:
    """Returns a policy of the structure and the shapes of `with_ranges`."""
    new = jax.tree.map(lambda leaf: leaf, quant)
    for conv in traced.convs:
        channels = at(params, conv.name)["kernel"].shape[-1:]
        at(new, conv.name)[W_RANGE] = np.ones(channels, np.float32)
    return new


def alive_of(gain: Float[Array, "channels"], stats: PyTree) -> Bool[Array, "channels"]:
    """Returns which channels read more than zeros.

    Their sums, behind the norm's factor, are not far smaller than those of the largest channel.

    Args:
      gain: ``|f|``, the magnitude by which the norm multiplies.
      stats: The mean and the variance of the channels' sums.
    """
    sums = jnp.sqrt(jnp.square(stats["mean"]) + stats["var"]) * gain
    return sums >= IDLE * jnp.max(sums)


def of_channels(
    kernel: Float[Array, "*shape channels"],
    gain: Float[Array, "channels"],
    alive: Bool[Array, "channels"],
) -> Float[Array, "channels"]:
    """Returns the range of each output channel: ``A / |f|``, nothing that counts being clipped.

    Args:
      kernel: Weights without the norm.
      gain: ``|f|``, the magnitude by which the norm multiplies.
      alive: Which channels set ``A``.
    """
    largest = jnp.max(jnp.abs(kernel), tuple(range(kernel.ndim - 1)))
    shared = jnp.max(jnp.where(alive, largest * gain, 0.0))
    return shared / jnp.maximum(gain, jnp.maximum(LEAST_GAIN * jnp.max(gain), TINY))
