"""A module's quantizable convolutions as a flat list of records, and its policy."""

import itertools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from qnas_jax import space
from qnas_jax.nn.conv import ConvBnAct, Grid


class Unit(NamedTuple):
    """A convolution or a grid of a network, and what it is given."""

    module: ConvBnAct | Grid
    in_shape: tuple[int, int, int]  # height, width, channels
    out_shape: tuple[int, int, int]


def units(module: nn.Module, image_shape: tuple[int, ...]) -> dict[str, Unit]:
    """Convolutions and grids by name, in the order in which they end, on one such input.

    Nothing is computed: the module is only traced.
    """
    found = {}

    def record(next_call, args, kwargs, context):
        out = next_call(*args, **kwargs)
        if isinstance(context.module, (ConvBnAct, Grid)) and context.method_name == "__call__":
            name = "/".join(context.module.path)
            found[name] = Unit(context.module, args[0].shape[1:], out.shape[1:])
        return out

    def run(image):
        with nn.intercept_methods(record):
            return module.init(jax.random.key(0), image)

    jax.eval_shape(run, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    return found


def convs(module: nn.Module, image_shape: tuple[int, ...]) -> list[space.Conv]:
    """The convolutions in the order in which they run, on one input of that shape."""
    records = []
    for name, (layer, (height, width, channels), _) in units(module, image_shape).items():
        if isinstance(layer, ConvBnAct):
            records.append(
                space.Conv(
                    name,
                    layer.kernel,
                    layer.stride,
                    layer.dilation,
                    channels if layer.depthwise else 1,
                    channels,
                    layer.features,
                    height,
                    width,
                )
            )
    return records


def with_bits(quant: PyTree, subnet: space.Subnet) -> PyTree:
    """The policy with each searched layer's bitwidths set to the subnet's.

    Args:
      quant: A `quant` collection of a network whose encoder holds `block1/layer0/...`.
      subnet: Bitwidths by block and layer; all else keeps what it has.
    """

    def choose(path, value):
        names = [key.key for key in path]
        block, layer = _place(names)
        if not block or names[-1] not in ("w_bits", "a_bits"):
            return value
        return jnp.full_like(value, getattr(subnet[block - 1][layer], names[-1]))

    return jax.tree_util.tree_map_with_path(choose, quant)


def _place(names: list[str]) -> tuple[int, int]:
    """Block (1, 2, ...; 0: none) and layer that a variable belongs to."""
    for outer, inner in itertools.pairwise(names):
        if outer.startswith("block") and inner.startswith("layer"):
            return int(outer[5:]), int(inner[5:])
    return 0, 0


def w_bits(quant: PyTree) -> dict[str, int]:
    """The weights' bitwidth of each convolution, by the name that `convs` gives it."""
    leaves = jax.tree_util.tree_leaves_with_path(quant)
    named = (([key.key for key in path], value) for path, value in leaves)
    return {"/".join(names[:-1]): int(v) for names, v in named if names[-1] == "w_bits"}
