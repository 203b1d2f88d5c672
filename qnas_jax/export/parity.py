"""Placeholder."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from qnas_jax import segment
from qnas_jax.export.graph import Graph
from qnas_jax.nn.conv import Grid


def simulator(model: nn.Module, network: Graph) -> Callable[[PyTree, Any], dict[str, Any]]:
    """A compiled function (variables, images) -> codes that fake quantization gives, by tensor.

    The variables hold `quant`. What is on no grid of its own (the branches that are joined on
    one) is not among them.
    """
    grids = {name: tensor.grid for name, tensor in network.tensors().items() if tensor.grid}

    @jax.jit
    def simulate(variables, images):
        _, state = model.apply(
            variables,
            segment.pixels(images),
            capture_intermediates=lambda module, _: isinstance(module, Grid),
            mutable=["intermediates"],
        )
        found = {}
        for path, value in jax.tree_util.tree_leaves_with_path(state["intermediates"]):
            place = "/".join(key.key for key in path if hasattr(key, "key"))
            name = place.removesuffix("/__call__").removesuffix("/out")
            if name in grids:
                found[name] = jnp.round(value / grids[name].scale) + grids[name].zero_point
        return {name: codes.astype(jnp.uint8) for name, codes in found.items()}

    return simulate
