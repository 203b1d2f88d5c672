"""A module's quantizable convolutions as a flat list of records, and its policy."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from qnas_jax import space
from qnas_jax.nn.conv import ConvBnAct


def convs(module: nn.Module, image_shape: tuple[int, ...]) -> list[space.Conv]:
    """The convolutions in the order in which they run, on one input of that shape.

    Nothing is computed: the module is only traced.
    """
    records = []

    def record(next_call, args, kwargs, context):
        layer = context.module
        if isinstance(layer, ConvBnAct) and context.method_name == "__call__":
            _, height, width, channels = args[0].shape
            records.append(
                space.Conv(
                    "/".join(layer.path),
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
        return next_call(*args, **kwargs)

    def run(image):
        with nn.intercept_methods(record):
            return module.init(jax.random.key(0), image)

    jax.eval_shape(run, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    return records


def with_bits(quant: PyTree, subnet: space.Subnet) -> PyTree:
    """The policy with each searched layer's bitwidths set to the subnet's.

    Args:
      quant: A `quant` collection of a network whose encoder holds `block1/layer0/...`.
      subnet: Bitwidths by block and layer; all else keeps what it has.
    """
    leaves = flatten_dict(quant)
    for path, value in leaves.items():
        block, layer = _place(path)
        if block and path[-1] in ("w_bits", "a_bits"):
            choice = subnet[block - 1][layer]
            bits = choice.w_bits if path[-1] == "w_bits" else choice.a_bits
            leaves[path] = jnp.full_like(value, bits)
    return unflatten_dict(leaves)


def _place(path: tuple[str, ...]) -> tuple[int, int]:
    """Block (1, 2, ...; 0: none) and layer that a variable belongs to."""
    for outer, inner in itertools.pairwise(path):
        if outer.startswith("block") and inner.startswith("layer"):
            return int(outer[5:]), int(inner[5:])
    return 0, 0


def w_bits(quant: PyTree) -> dict[str, int]:
    """The weights' bitwidth of each convolution, by the name that `convs` gives it."""
    leaves = flatten_dict(quant)
    return {"/".join(p[:-1]): int(value) for p, value in leaves.items() if p[-1] == "w_bits"}
