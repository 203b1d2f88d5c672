"""Fresh variables.

Modules create their kernels as zeros and this draws all of them at once: one random draw
for a whole network compiles in a second, one for each kernel takes ten.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree


def initialize(module: nn.Module, key: Key[Array, ""], shape: tuple[int, ...]) -> PyTree:
    """Returns all collections of a module, its kernels drawn, in one compiled program.

    Args:
      module: A Flax module that is called with one array.
      key: What the kernels are drawn from, see `draw_kernels`.
      shape: Shape of that array; [n, height, width, channels] of images.

    Returns:
      ``{"params": ..., "batch_stats": ..., "quant": ...}``, as far as the module has them.
    """
    return _program(module, shape)(key)


@functools.lru_cache(maxsize=16)  # the same network is begun and read several times in a run
def _program(module: nn.Module, shape: tuple[int, ...]) -> Callable[[Key[Array, ""]], PyTree]:
    @jax.jit
    def fresh(key):
        variables = module.init(key, jnp.zeros(shape))
        return {**variables, "params": draw_kernels(variables["params"], key)}

    return fresh


def draw_kernels(params: PyTree, key: Key[Array, ""]) -> PyTree:
    """`params` with every leaf named `kernel` drawn anew; the rest as it is.

    Kernels are normal with variance ``2 / fan_in``; the fan-in is all axes but the last.

    References:
      He et al., 2015, https://arxiv.org/abs/1502.01852, eq. 10.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    sizes = [leaf.size if path[-1].key == "kernel" else 0 for path, leaf in leaves]
    noise = jax.random.normal(key, (sum(sizes),))
    drawn, end = [], 0
    for (_, leaf), size in zip(leaves, sizes, strict=True):
        end += size
        deviation = math.sqrt(2 / math.prod(leaf.shape[:-1]))
        new = deviation * noise[end - size : end].reshape(leaf.shape) if size else leaf
        drawn.append(new)
    return jax.tree_util.tree_unflatten(structure, drawn)
