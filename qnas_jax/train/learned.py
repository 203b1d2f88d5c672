"""Learned scales: the grids of weights and of activations are trained with the weights.

The parameters of such a training are `network`, those of the network, and `steps`, the distance of
each grid's points. `quantize` makes of them the variables that the network reads, with the policy
as data: one program trains every policy of a network, and `vmap` several at once.

References:
  Esser et al., 2020, https://arxiv.org/abs/1902.08153.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from qnas_jax.nn import policy
from qnas_jax.nn.conv import W_SCALE
from qnas_jax.nn.fake_quant import LEARNED
from qnas_jax.nn.trace import Trace
from qnas_jax.nn.units import Input
from qnas_jax.quant import affine, lsq

WEIGHTS, ACTIVATIONS = "weights", "activations"


def begin(traced: Trace, params: PyTree, quant: PyTree) -> PyTree:
    """Returns the parameters of the first step: the grids are those of a quantized network.

    Args:
      traced: The units of the network.
      params: Its parameters.
      quant: Its policy, with ranges.
    """
    params, quant = jax.tree.map(jnp.asarray, (params, quant))
    steps = {
        WEIGHTS: {
            conv.name: affine.weight_codes(
                policy.at(params, conv.name)["kernel"], policy.at(quant, conv.name)["w_bits"]
            )[1]
            for conv in traced.convs
        },
        ACTIVATIONS: {name: scale for name, scale, _ in _grids(traced, quant)},
    }
    return {"network": params, "steps": steps}


def quantize(traced: Trace, params: PyTree, quant: PyTree, rate: float = 1.0) -> PyTree:
    """Returns the variables that the network reads in training, without `batch_stats`.

    Args:
      traced: The units of the network.
      params: What `begin` returned, or a training made of it.
      quant: The policy. Of its ranges only the zero points count, which are not learned.
      rate: Factor of the gradients of all steps: how much slower than weights they learn.
    """
    new = jax.tree.map(lambda leaf: leaf, quant)
    steps = jax.tree.map(lambda step: lsq.slower(step, rate), params["steps"])
    for name, scale in steps[WEIGHTS].items():
        policy.at(new, name)[W_SCALE] = _above_zero(scale)
    for name, _, zero_point in _grids(traced, quant):
        leaves, step = policy.output_at(new, name), _above_zero(steps[ACTIVATIONS][name])
        del leaves["range"]
        leaves[LEARNED] = lsq.range_of(step, zero_point, leaves["a_bits"])
    return {"params": params["network"], "quant": new}


def with_fixed_ranges(quant: PyTree) -> PyTree:
    """Returns a policy whose learned ranges are plain ones; any other stays as it is."""
    if not isinstance(quant, dict):
        return quant
    return {
        "range" if key == LEARNED else key: with_fixed_ranges(value) for key, value in quant.items()
    }


def template(traced: Trace, params: PyTree, quant: PyTree) -> PyTree:
    """Returns a policy of the structure and the shapes of a learned one, to read one into."""
    new = jax.tree.map(lambda leaf: leaf, quant)
    for conv in traced.convs:
        kernel = policy.at(params, conv.name)["kernel"]
        policy.at(new, conv.name)[W_SCALE] = jnp.ones(kernel.shape[-1:])
    return new


def _grids(traced: Trace, quant: PyTree) -> Iterator[tuple[str, jax.Array, jax.Array]]:
    """Yields the unit, the step and the zero point of each grid; that of the image is known."""
    for unit in traced.units:
        if unit.has_grid and not isinstance(unit.module, Input):
            leaves = policy.output_at(quant, unit.name)
            yield unit.name, *affine.asymmetric_grid(leaves["range"], leaves["a_bits"])[:2]


def _above_zero(step: jax.Array) -> jax.Array:
    """A step below this would be taken for that of an empty range, see `affine`."""
    return jnp.maximum(step, 1e-20)
