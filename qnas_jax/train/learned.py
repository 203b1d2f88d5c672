"""Learned scales: the grids of weights and of activations are trained with the weights.

The parameters of such a training are `network`, those of the network, and `steps`, the distance of
each grid's points. `quantize` makes of them the variables that the network reads, with the policy
as data: one program trains every policy of a network, and `vmap` several at once.

Weights have a step for each output channel, or one for a layer whose policy has `w_range` (see
`ptq/per_tensor.py`). The factors of that layer's norm then stay as they are.

References:
  Esser et al., 2020, https://arxiv.org/abs/1902.08153.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from qnas_jax.nn import policy
from qnas_jax.nn.conv import W_RANGE, W_SCALE
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
    weights = {}
    for conv in traced.convs:
        leaves = policy.at(quant, conv.name)
        given = policy.at(params, conv.name)["kernel"], leaves["w_bits"], None, leaves.get(W_RANGE)
        step = affine.weight_codes(*given)[1]
        weights[conv.name] = jnp.median(step) if W_RANGE in leaves else step
    activations = {name: scale for name, scale, _ in _grids(traced, quant)}
    return {"network": params, "steps": {WEIGHTS: weights, ACTIVATIONS: activations}}


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
    network = jax.tree.map(lambda leaf: leaf, params["network"])
    for name, step in steps[WEIGHTS].items():
        leaves = policy.at(new, name)
        if W_RANGE in leaves:  # the step of a layer, in proportion to the ranges of its channels
            middle = jnp.median(leaves[W_RANGE])
            ratio = jnp.where(middle > 0, leaves[W_RANGE] / jnp.where(middle > 0, middle, 1.0), 1.0)
            step = lsq.slower(_above_zero(step), ratio.size**-0.5) * ratio
            _hold_norm(policy.at(network, name))
        leaves[W_SCALE] = _above_zero(step)
    for name, _, zero_point in _grids(traced, quant):
        leaves, step = policy.output_at(new, name), _above_zero(steps[ACTIVATIONS][name])
        del leaves["range"]
        leaves[LEARNED] = lsq.range_of(step, zero_point, leaves["a_bits"])
    return {"params": network, "quant": new}


def _hold_norm(params: PyTree) -> None:
    """Keeps a norm's factors as they are: with one scale for a layer they cannot change alone."""
    if "norm" in params:
        params["norm"]["scale"] = jax.lax.stop_gradient(params["norm"]["scale"])


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
