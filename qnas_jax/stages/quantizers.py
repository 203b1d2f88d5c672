"""What a policy does to a network: linear quantization, or shared weights.

A `Quantize` is a function (parameters, bits) -> the variables that the network reads. The bits are
data, int32[layers, 2]: bitwidths of each convolution's weights and of the tensor that it reads.
"""

from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from qnas_jax.nn import policy
from qnas_jax.nn.trace import Trace
from qnas_jax.ptq.ranges import by_bits, ranges_of, some, with_ranges
from qnas_jax.quant import calibrate, clusters
from qnas_jax.space import MOST_BITS

Quantize = Callable[[PyTree, Any], PyTree]


def grid_of(traced: Trace) -> dict[str, str]:
    """Returns, for each convolution by name, the unit on whose grid its input is."""
    units, found = {unit.name: unit for unit in traced.units}, {}
    for unit in traced.units:
        if unit.conv:
            read = units[unit.inputs[0]]
            while not read.has_grid:  # one that only repeats what it reads
                read = units[read.inputs[0]]
            found[unit.name] = read.name
    return found


def lead_of(traced: Trace) -> np.ndarray:
    """Returns the number of the first convolution that reads the same tensor, for each."""
    grids = list(grid_of(traced).values())
    return np.array([grids.index(grid) for grid in grids])


def unit_policy(traced: Trace, bits: Any) -> dict[str, tuple[Any, Any]]:
    """Returns the policy by units: bitwidths of each unit's weights and of its output.

    A tensor that no convolution reads, such as a term of a sum, has 8 bits.
    """
    a_bits = {}
    names = grid_of(traced)
    for number, grid in enumerate(names.values()):
        a_bits.setdefault(grid, bits[number, 1])
    w_bits = {name: bits[number, 0] for number, name in enumerate(names)}
    return {
        unit.name: (w_bits.get(unit.name, MOST_BITS), a_bits.get(unit.name, MOST_BITS))
        for unit in traced.units
        if unit.conv or unit.has_grid
    }


def linear(
    model: nn.Module,
    traced: Trace,
    variables: PyTree,
    quant: PyTree,
    batches: Iterable[np.ndarray],
    ranges: str,
) -> Quantize:
    """Returns linear quantization, with a clipping range for each tensor and bitwidth.

    Weights are clipped before they are quantized on the grid over the rest, so that a network with
    clipped weights is quantized, and exported, as any other.

    Args:
      model: The network.
      traced: Its units.
      variables: Its `params` and `batch_stats`.
      quant: Its fresh `quant` collection.
      batches: Images, uint8[n, h, w, 3], on which the ranges of activations are found.
      ranges: How ranges are chosen, "min_max", "mse" or "kl".
    """
    shares = _weight_shares(traced, variables["params"], ranges)
    found = ranges_of(model, traced, variables, batches, ranges)

    def quantize(params, bits):
        params = _without_alias(params)
        for number, name in enumerate(shares):
            leaves = policy.at(params, name)
            w_share = shares[name][bits[number, 0]]
            leaves["kernel"] = calibrate.clipped(leaves["kernel"], w_share)
        by_unit = unit_policy(traced, bits)
        return {"params": params, "quant": with_ranges(quant, by_unit, found)}

    return quantize


def _without_alias(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf, tree)


def _weight_shares(traced: Trace, params: PyTree, ranges: str) -> dict[str, Array]:
    """For each convolution, the fraction of its weights' range by bitwidth, float32[9]."""
    find = by_bits(lambda values, bits: calibrate.weight_share(values, bits, ranges))
    return {
        conv.name: find(some(calibrate.relative(policy.at(params, conv.name)["kernel"])))
        for conv in traced.convs
    }


def shared(traced: Trace, params: PyTree) -> Quantize:
    """Returns weight sharing: clusters of each layer's weights, at the mean of each cluster.

    The clusters are those of the given weights at every bitwidth; training moves their means.
    Activations stay in float.

    Args:
      traced: The units of the network.
      params: Its parameters.
    """
    bits = jnp.arange(1, MOST_BITS + 1)

    @jax.jit
    def clustered(w):
        return jax.lax.map(
            lambda b: clusters.assign(w, clusters.centres(w, b)).astype(jnp.uint8), bits
        )

    names = [conv.name for conv in traced.convs]
    codes = {name: clustered(policy.at(params, name)["kernel"]) for name in names}

    def quantize(params, bits):
        params = _without_alias(params)
        for number, name in enumerate(names):
            leaves = policy.at(params, name)
            own = codes[name][bits[number, 0] - 1].astype(jnp.int32)
            leaves["kernel"] = clusters.share(leaves["kernel"], own)
        return {"params": params}

    return quantize
