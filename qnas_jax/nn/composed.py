"""A whole network whose ops are data: one program trains, calibrates or runs every subnet.

The network is the stem, the blocks of a supernet one after another, and the head. A subnet is a
number for each layer, so `lax.switch` picks the op and nothing is compiled for another subnet.
Under `vmap` it would compute every op: several subnets are run one after another.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PyTree, UInt8

from qnas_jax import space
from qnas_jax.nn import mbconv_float, supernet
from qnas_jax.nn.mbconv import BlockPath, layer_name
from qnas_jax.nn.mbconv_float import LayerSpec
from qnas_jax.nn.units import pixels
from qnas_jax.quant.calibrate import FindRange

# A block's number and its input -> its output.
RunBlock = Callable[[int, Array], Array]


class Composed(NamedTuple):
    """What is fixed about the network.

    Attributes:
      model: The network of any subnet; its stem and its head are used.
      searched: Blocks and ops.
    """

    model: nn.Module
    searched: space.Space


class Weights(NamedTuple):
    """The numbers of a network of shared weights.

    Attributes:
      rest: `params`, `batch_stats` and `quant` of a network with the stem and the head; its own
        blocks, if it has any, are not used.
      blocks: The supernet's parameters of each block.
    """

    rest: PyTree
    blocks: Sequence[supernet.Params]


class Choices(NamedTuple):
    """A subnet as numbers, int32[layers] each, or several with a leading axis.

    Attributes:
      ops: Numbers of ops in the space.
      w_bits: Bitwidths of weights.
      a_bits: Bitwidths of activations.
    """

    ops: Int[Array | np.ndarray, "*n layers"]
    w_bits: Int[Array | np.ndarray, "*n layers"]
    a_bits: Int[Array | np.ndarray, "*n layers"]


class Calibration(NamedTuple):
    """What calibration finds for a subnet.

    Attributes:
      rest: `batch_stats` and `quant` of the stem and the head.
      layers: A vector for each layer.
    """

    rest: PyTree
    layers: list[Array]


class Outputs(NamedTuple):
    """What a subnet gives for images.

    Attributes:
      logits: As the network's own.
      features: The output of each block.
    """

    logits: Array
    features: list[Array]


def choices_of(searched: space.Space, subnets: Sequence[space.Subnet]) -> Choices:
    """Returns subnets as numbers, int32[subnets, layers]."""
    rows = [
        [(searched.ops.index(c.op), c.w_bits, c.a_bits) for block in subnet for c in block]
        for subnet in subnets
    ]
    return Choices(*np.moveaxis(np.array(rows, np.int32), -1, 0))


def train_logits(
    composed: Composed,
    params: PyTree,
    batch_stats: PyTree,
    ops: Int[Array, "layers"],
    images: UInt8[Array, "n h w 3"],
    dropout: Array,
    compute: str = "float32",
) -> Any:
    """Returns the logits of a subnet in float while it is trained, float32.

    Norms use the batch's own statistics.

    Args:
      composed: The network.
      params: "rest" and "blocks", as in `Weights`.
      batch_stats: Of the stem and the head, which are not read.
      ops: The subnet's.
      images: Pixels as bytes.
      dropout: PRNG key.
      compute: Type that the network computes in.
    """
    found = composed.searched
    ends = np.cumsum([block.depth for block in found.blocks])

    def run_block(number: int, x: Array) -> Array:
        block = found.blocks[number]
        path = ops[ends[number] - block.depth : ends[number]]
        return supernet.one_path(params["blocks"][number], block, found.ops, x, path)

    variables = {"params": params["rest"], "batch_stats": batch_stats}
    how = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": dropout}}
    x = pixels(images).astype(compute)
    (logits, _), _ = _applied(composed, variables, x, run_block, **how)
    return logits.astype(jnp.float32)


def calibrate(
    composed: Composed,
    weights: Weights,
    chosen: Choices,
    find_range: FindRange,
    images: UInt8[Array, "n h w 3"],
) -> Calibration:
    """Finds batch-norm statistics and ranges of a subnet, each on the quantized layers before.

    Args:
      composed: The network.
      weights: Its numbers.
      chosen: The subnet.
      find_range: Finds the range of an activation in a searched layer; elsewhere it is the hull.
      images: On which it is calibrated.
    """
    found: list[Array] = []

    def run_layer(spec: LayerSpec, params: PyTree, place: int, x: Array) -> Array:
        w_bits, a_bits, longest = chosen.w_bits[place], chosen.a_bits[place], _longest(spec)

        def branch(op: space.Op):
            def run(params, x):
                own = mbconv_float.gather_weights(params, (op,), w_bits)[0]
                y, one = mbconv_float.calibrate_op(spec, own, x, a_bits)
                packed = mbconv_float.pack((one,))
                return y, jnp.pad(packed, (0, longest - len(packed)))

            return run

        y, packed = lax.switch(chosen.ops[place], [branch(op) for op in spec.ops], params, x)
        found.append(packed)
        return y

    run_block = _block_runner(composed, weights, find_range, run_layer)
    how = {"mutable": ["batch_stats", "quant"]}
    _, rest = _applied(composed, weights.rest, pixels(images), run_block, **how)
    return Calibration(rest, found)


def run(
    composed: Composed,
    weights: Weights,
    chosen: Choices,
    calibration: Calibration,
    find_range: FindRange,
    images: UInt8[Array, "n h w 3"],
) -> Outputs:
    """Runs a calibrated subnet, quantized.

    Args:
      composed: The network.
      weights: Its numbers.
      chosen: The subnet.
      calibration: What was found for it, see `calibrate`.
      find_range: As in `calibrate`.
      images: Pixels as bytes.
    """

    def run_layer(spec: LayerSpec, params: PyTree, place: int, x: Array) -> Array:
        w_bits, packed = chosen.w_bits[place], calibration.layers[place]

        def branch(op: space.Op):
            def run(params, x):
                alone = spec._replace(ops=(op,))
                own = mbconv_float.gather_weights(params, (op,), w_bits)[0]
                size = mbconv_float.packed_size(alone)
                one = mbconv_float.unpack(alone, packed[:size])[0]
                return mbconv_float.run_op(spec, own, one, x)

            return run

        return lax.switch(chosen.ops[place], [branch(op) for op in spec.ops], params, x)

    run_block = _block_runner(composed, weights, find_range, run_layer)
    variables = {**weights.rest, **calibration.rest}
    (logits, features), _ = _applied(composed, variables, pixels(images), run_block, mutable=[])
    return Outputs(logits, features)


def _longest(spec: LayerSpec) -> int:
    """Length of a layer's vector, whatever the op."""
    return max(mbconv_float.packed_size(spec._replace(ops=(op,))) for op in spec.ops)


def _block_runner(composed: Composed, weights: Weights, find_range, run_layer) -> RunBlock:
    """The function of a block that runs its layers in a row."""
    found = composed.searched
    firsts = np.cumsum([0, *(block.depth for block in found.blocks)])

    def run_block(number: int, x: Array) -> Array:
        block = found.blocks[number]
        for layer in range(block.depth):
            spec = mbconv_float.layer_spec(block, layer, found.ops, find_range)
            params = weights.blocks[number][layer_name(layer)]
            with jax.default_matmul_precision("highest"):
                x = run_layer(spec, params, int(firsts[number]) + layer, x)
        return x

    return run_block


def _applied(composed: Composed, variables: PyTree, x: Array, run_block: RunBlock, **how) -> Any:
    """Applies the network with other blocks; returns (logits, features) and what has changed."""
    features: list[Float[Array, "n h w c"]] = []

    def replace(call, args, kwargs, context):
        module = context.module
        if not (isinstance(module, BlockPath) and module.number is not None):
            return call(*args, **kwargs)
        features.append(run_block(module.number, args[0]))
        return features[-1]

    with nn.intercept_methods(replace):
        logits, changed = composed.model.apply(variables, x, **how)
    return (logits, features), changed
