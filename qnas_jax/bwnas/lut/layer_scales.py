"""One scale of weights for each convolution of a supernet, see `ptq/per_tensor.py`.

The scale belongs to a kernel with its norm folded in. In a supernet the norm's variance depends on
the path, so each row of the table would have its own codes. Instead each op takes the variance that
it has in float on the path that has this op in every layer. That is exact in a block's first layer,
up to rounding, and an approximation in the others. So codes depend on layer and op alone, as they
do with a scale for each channel.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from qnas_jax import space
from qnas_jax.nn import supernet
from qnas_jax.nn.conv import W_RANGE
from qnas_jax.nn.mbconv import BlockPath, layer_name
from qnas_jax.ptq import norms, per_tensor


def with_ranges(
    params: supernet.Params,
    block: space.Block,
    ops: tuple[space.Op, ...],
    x: Float[Array, "n h w i"],
) -> supernet.Params:
    """Returns a block's supernet with the leaf `W_RANGE` beside each kernel.

    Args:
      params: The block's supernet.
      block: Its shape.
      ops: Its candidates.
      x: The block's input on the calibration images.
    """
    new = jax.tree.map(lambda leaf: leaf, params)
    for op in ops:
        path = (op,) * block.depth
        own = supernet.path_params(new, path)
        found = _ranges(BlockPath(block, path), own, x)
        for layer, parts in found.items():
            for part, range_ in parts.items():
                new[layer][str(op)][part][W_RANGE] = range_
    return new


@functools.partial(jax.jit, static_argnums=0)
def _ranges(path: BlockPath, params: PyTree, x: Array) -> dict[str, dict[str, Array]]:
    """The ranges of a path's channels, by layer and convolution."""
    found: Any = path.apply({"params": params}, x, mutable=["batch_stats"])[1]
    stats = found["batch_stats"]

    def range_of(layer: str, part: str) -> Array:
        gain = jnp.asarray(norms.gain(params[layer], stats[layer], part))
        alive = per_tensor.alive_of(gain, stats[layer][part]["norm"])
        return per_tensor.of_channels(params[layer][part]["kernel"], gain, alive)

    layers = map(layer_name, range(path.block.depth))
    return {layer: {part: range_of(layer, part) for part in stats[layer]} for layer in layers}
