"""Fresh variables.

Modules create their kernels as zeros and this draws all of them at once: one random draw
for a whole network compiles in a second, one for each kernel takes ten.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Key, PyTree


def initialize(module: nn.Module, key: Key[Array, ""], shape: tuple[int, ...]) -> PyTree:
    """All collections of a module whose input has that shape, kernels drawn."""

    @jax.jit
    def fresh(key):
        variables = module.init(key, jnp.zeros(shape))
        return {**variables, "params": draw_kernels(variables["params"], key)}

    return fresh(key)


def draw_kernels(params: PyTree, key: Key[Array, ""]) -> PyTree:
    """`params` with every leaf named `kernel` drawn anew; the rest as it is.

    Kernels are normal with variance ``2 / fan_in``; the fan-in is all axes but the last.

    References:
      He et al., 2015, https://arxiv.org/abs/1502.01852, eq. 10.
    """
    leaves = flatten_dict(params)
    kernels = {path: leaf for path, leaf in leaves.items() if path[-1] == "kernel"}
    sizes = [leaf.size for leaf in kernels.values()]
    noise = jax.random.normal(key, (sum(sizes),))
    offset = 0
    for (path, leaf), size in zip(kernels.items(), sizes, strict=True):
        deviation = math.sqrt(2 / math.prod(leaf.shape[:-1]))
        leaves[path] = deviation * noise[offset : offset + size].reshape(leaf.shape)
        offset += size
    return unflatten_dict(leaves)
