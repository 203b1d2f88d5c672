"""A trained network, quantized without training: ranges, weights, norms and biases by config."""

import logging

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from qnas_jax.nn import policy
from qnas_jax.nn.trace import Trace
from qnas_jax.ptq import equalize, norms, observe, per_tensor, ranges, rounding
from qnas_jax.quant import calibrate
from qnas_jax.run import recipes
from qnas_jax.train import supervised

logger = logging.getLogger(__name__)


def changes_weights(how: recipes.Quantize) -> bool:
    """Whether the quantized network has other variables than the float one."""
    clips = how.weight_ranges != "min_max"
    return bool(clips or how.equalize or how.rounding_steps or how.biases or how.norms)


def quantized(
    model: nn.Module,
    traced: Trace,
    variables: PyTree,
    quant: PyTree,
    batches: list[np.ndarray],
    how: recipes.Quantize,
    key: Key[Array, ""],
    per_channel: bool = True,
) -> tuple[PyTree, PyTree]:
    """Returns the variables and the policy of the quantized network.

    Each method works on what those before it gave: equalization, ranges of weights, ranges of
    activations, rounding of weights, and last the norms or the biases.

    Args:
      model: The network.
      traced: Its units.
      variables: Its `params` and `batch_stats`.
      quant: Its policy, with final bitwidths and the ranges of `init`.
      batches: Images, uint8[n, h, w, 3].
      how: The methods.
      key: PRNG key of adaptive rounding.
      per_channel: Whether weights have a scale for each output channel, or one for a layer.
    """
    variables = jax.tree.map(jnp.asarray, dict(variables))
    if how.equalize:
        names = [first.name for first, _ in equalize.pairs(traced)]
        peaks = _peaks(model, variables, batches, names)
        variables["params"] = jax.tree.map(
            jnp.asarray, equalize.equalized(traced, variables, peaks)
        )
    plain = dict(variables)
    if not per_channel:
        quant = per_tensor.with_ranges(traced, variables, quant, how.weight_ranges)
    elif how.weight_ranges != "min_max":
        variables["params"] = _clipped(traced, variables["params"], quant, how.weight_ranges)
    quant = _with_ranges(model, traced, variables, quant, batches, how.ranges, plain)
    images = np.concatenate(batches)
    if how.rounding_steps:
        variables["params"], errors = rounding.rounded(
            traced, variables, quant, images, how.rounding_steps, key, plain
        )
        shares = [one.adaptive / max(one.nearest, 1e-12) for one in errors.values()]
        logger.info("adaptive rounding: errors of layers fall to %.2f in the mean", np.mean(shares))
    if how.norms:
        settle = jax.jit(norms.settled, static_argnums=0)
        variables["batch_stats"] = settle(model, {**variables, "quant": quant}, images)
    elif how.biases:
        variables = norms.corrected(model, variables, quant, images, plain)
    return jax.device_get(variables), jax.device_get(quant)


def _peaks(
    model: nn.Module, variables: PyTree, batches: list[np.ndarray], names: list[str]
) -> dict[str, np.ndarray]:
    """Returns the largest output of each channel of some units in float."""
    found = observe.channel_ranges(model, variables, batches, names)
    return {name: highest for name, (_, highest) in found.items()}


def _clipped(traced: Trace, params: PyTree, quant: PyTree, kind: str) -> PyTree:
    """Weights clipped to a fraction of the largest magnitude of their output channel."""
    share = jax.jit(calibrate.weight_share, static_argnums=2)
    new = jax.tree.map(lambda leaf: leaf, params)
    for conv in traced.convs:
        leaves, bits = policy.at(new, conv.name), policy.at(quant, conv.name)["w_bits"]
        some = jnp.asarray(ranges.some(calibrate.relative(leaves["kernel"])))
        leaves["kernel"] = calibrate.clipped(leaves["kernel"], share(some, bits, kind))
    return new


def _with_ranges(model, traced, variables, quant, batches, kind: str, plain) -> PyTree:
    """The policy with ranges; those of "min_max" are found as published."""
    if kind == "min_max":
        return supervised.calibrated(model, variables, quant, batches)
    if kind == "best":
        return ranges.best(model, traced, variables, quant, batches, plain)
    found = ranges.ranges_of(model, traced, variables, batches, kind)
    return ranges.with_own(quant, found)
