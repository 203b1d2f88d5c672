"""A policy, the bitwidths of a network's layers, in its `quant` collection.

For each unit, `quant` has at the unit's path `w_bits` (of a convolution's weights) and, for the
output, `a_bits` and `range`. Those of a convolution's output are one level deeper, in `out`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from qnas_jax import space
from qnas_jax.errors import InputError
from qnas_jax.nn.trace import Trace
from qnas_jax.space import LEAST_BITS, MOST_BITS

Bits = int | Int[Array, ""]
Policy = Mapping[str, tuple[Bits, Bits]]  # of weights and activations, by the unit's name


def at(collection: PyTree, name: str) -> Any:
    """The leaves of a unit in a collection; an empty dictionary if it has none."""
    for part in name.split("/"):
        held = collection.get(part)
        collection = held if isinstance(held, Mapping) else {}
    return collection


def output_at(collection: PyTree, name: str) -> Any:
    """The leaves of a unit's output in a collection; see `at`."""
    leaves = at(collection, name)
    return leaves.get("out", leaves)


def with_policy(quant: PyTree, policy: Policy) -> PyTree:
    """The `quant` collection with the bitwidths of some units set.

    Args:
      quant: The collection; what the policy does not name keeps its bitwidths.
      policy: Bitwidths of weights and of activations by the names of units. They may be arrays,
        traced or vmapped. A unit uses what it has: an `Add` has no weights.

    Raises:
      InputError: A bitwidth is out of range.
      ValueError: The policy names something that has no bitwidths.
    """
    new = jax.tree.map(lambda leaf: leaf, quant)
    for name, (w_bits, a_bits) in policy.items():
        leaves = at(new, name)
        holders = [(leaves, "w_bits", w_bits), (output_at(new, name), "a_bits", a_bits)]
        holders = [(held, leaf, bits) for held, leaf, bits in holders if leaf in held]
        if not holders:
            names = "trace(module, image_shape).units"
            raise ValueError(f"{name!r}: has no bitwidths; the units of a network are {names}")
        for held, leaf, bits in holders:
            if isinstance(bits, int) and not LEAST_BITS <= bits <= MOST_BITS:
                raise InputError(
                    f"{name!r}: {leaf}={bits}: bitwidths lie in [{LEAST_BITS}, {MOST_BITS}]"
                )
            held[leaf] = jnp.full_like(held[leaf], bits)
    return new


def with_most_w_bits(quant: PyTree, most: int) -> PyTree:
    """The `quant` collection in which no weights have more bits than `most`."""

    def capped(path, leaf):
        return jnp.minimum(leaf, most) if path[-1].key == "w_bits" else leaf

    return jax.tree_util.tree_map_with_path(capped, quant)


def of_subnet(traced: Trace, subnet: space.Subnet) -> Policy:
    """The policy of a subnet: the bitwidths of each layer for all units of that layer."""
    sites = {unit.name: unit.site for unit in traced.units}
    return {name: subnet[s.block][s.layer][1:] for name, s in sites.items() if s and subnet}


def with_bits(quant: PyTree, traced: Trace, subnet: space.Subnet) -> PyTree:
    """The `quant` collection with the bitwidths of a subnet; all else keeps what it has.

    Args:
      quant: The collection of a network.
      traced: The units of that network.
      subnet: Bitwidths by block and layer.
    """
    return with_policy(quant, of_subnet(traced, subnet))


def w_bits(quant: PyTree) -> dict[str, int]:
    """The bitwidth of the weights of each convolution by its name."""
    leaves = jax.tree_util.tree_leaves_with_path(quant)
    named = (([key.key for key in path], value) for path, value in leaves)
    return {"/".join(names[:-1]): int(v) for names, v in named if names[-1] == "w_bits"}
