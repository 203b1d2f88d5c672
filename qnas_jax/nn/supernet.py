"""A block whose layers hold every candidate op, as functions over its parameters.

Parameters are `{"layer0": {"k3e3": MBConv's, ...}, ...}`; those of a path are picked out
of them, in the form that `BlockPath` takes. Norms use the batch's own statistics while
training, so the supernet keeps none.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key, PyTree

from qnas_jax import space
from qnas_jax.nn.init import draw_kernels
from qnas_jax.nn.mbconv import layer_module, layer_name

Params = dict[str, dict[str, PyTree]]


def init_block(key: Key[Array, ""], block: space.Block, ops: tuple[space.Op, ...]) -> Params:
    """Fresh parameters of every op at every layer."""

    def zeros() -> Params:
        params: Params = {}
        for layer in range(block.depth):
            pixels = jnp.zeros((1, 2, 2, block.layer_shape(layer)[0]))
            modules = {str(op): layer_module(block, layer, op) for op in ops}
            params[layer_name(layer)] = {
                name: module.init(jax.random.key(0), pixels)["params"]
                for name, module in modules.items()
            }
        return params

    return jax.jit(lambda key: draw_kernels(zeros(), key))(key)


def fair_paths(
    params: Params,
    block: space.Block,
    ops: tuple[space.Op, ...],
    x: Float[Array, "n h w i"],
    orders: Int[Array, "joints ops"],
) -> Float[Array, "ops n h2 w2 o"]:
    """Trains as many paths as there are ops; every op of every layer is on exactly one.

    Args:
      params: The supernet's.
      block: Its shape.
      ops: Its candidates.
      x: The block's input.
      orders: A permutation for each joint of two layers: op `o` of layer `l + 1` reads
        the output of op `orders[l, o]` of layer `l`.

    Returns:
      The outputs of the last layer's ops.

    References:
      Chu et al., 2021, https://arxiv.org/abs/1907.01845 (strict fairness).
    """
    inputs = [x] * len(ops)
    outputs = jnp.stack(inputs)
    for layer in range(block.depth):
        if layer > 0:
            inputs = jnp.take(outputs, orders[layer - 1], axis=0, mode="clip")
        outputs = jnp.stack(
            [_apply_op(params, block, layer, op, inputs[i]) for i, op in enumerate(ops)]
        )
    return outputs


def one_path(
    params: Params,
    block: space.Block,
    ops: tuple[space.Op, ...],
    x: Float[Array, "n h w i"],
    path: Int[Array, "depth"],
) -> Float[Array, "n h2 w2 o"]:
    """Trains the path whose op indices are `path` (traced: one program for all paths)."""
    for layer in range(block.depth):
        branches = [
            lambda params, x, layer=layer, op=op: _apply_op(params, block, layer, op, x)
            for op in ops
        ]
        x = lax.switch(path[layer], branches, params, x)
    return x


def _apply_op(params, block, layer, op, x) -> Any:
    variables = {"params": params[layer_name(layer)][str(op)]}
    return layer_module(block, layer, op).apply(variables, x, train=True)


def path_params(params: Params, path: space.Path) -> PyTree:
    """The parameters of one path, as `BlockPath` takes them."""
    return {layer_name(i): params[layer_name(i)][str(op)] for i, op in enumerate(path)}


def with_blocks(fresh: PyTree, teacher: PyTree, blocks: dict[str, PyTree]) -> PyTree:
    """A network's variables with the blocks' parameters given and all else the teacher's.

    Args:
      fresh: The network's variables as `init` made them; its blocks' running statistics
        stay, as the supernet keeps none.
      teacher: The teacher's variables.
      blocks: Parameters of each searched block by its name in the encoder.
    """

    def encoder(collection, blocks):
        return {**teacher[collection], "encoder": {**teacher[collection]["encoder"], **blocks}}

    fresh_stats = {name: fresh["batch_stats"]["encoder"][name] for name in blocks}
    return {
        **fresh,
        "params": encoder("params", blocks),
        "batch_stats": encoder("batch_stats", fresh_stats),
    }


def inherited(
    fresh: PyTree, rest: PyTree, params: Sequence[Params], subnet: space.Subnet
) -> PyTree:
    """The variables of a subnet's network: its blocks from the supernet, all else given.

    Args:
      fresh: The network's variables as `init` made them.
      rest: `params` and `batch_stats` of the stem and the head, see `with_blocks`.
      params: The supernet's, by block.
      subnet: The subnet.
    """
    blocks = {
        f"block{i + 1}": path_params(params[i], tuple(choice.op for choice in block))
        for i, block in enumerate(subnet)
    }
    return with_blocks(fresh, rest, blocks)
