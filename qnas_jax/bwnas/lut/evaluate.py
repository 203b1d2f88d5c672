"""The compiled passes over a prefix tree: all ops of a layer on the outputs of several nodes.

Nodes are the first axis. What calibration finds at a node is packed into one vector. Bitwidths
are arguments: one program for each shape of a layer serves them all.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qnas_jax import metrics
from qnas_jax.bwnas.lut import mbconv_int8
from qnas_jax.bwnas.lut.mbconv_int8 import QTensor
from qnas_jax.kernels.int8 import Kernel
from qnas_jax.nn import mbconv_float
from qnas_jax.nn.mbconv_float import LayerSpec, OpWeights, grid_of, on_grid, unpack

Values = Array | QTensor  # the outputs of several nodes
Weights = tuple[OpWeights, ...]  # by op
Packed = Float[Array | np.ndarray, "nodes size"]  # what calibration found


@jax.jit
def float_input(
    x: Float[Array, "n h w c"], a_bits: Int[Array, ""], range_: Float[Array | np.ndarray, "2"]
) -> Float[Array, "1 n h w c"]:
    """A block's quantized input as the output of one node."""
    return on_grid(x, _same_grid(range_, x.shape[-1], a_bits))[None]


@jax.jit
def int8_input(
    x: Float[Array, "n h w c"], a_bits: Int[Array, ""], range_: Float[Array | np.ndarray, "2"]
) -> QTensor:
    """`float_input` as codes."""
    values = mbconv_int8.quantized(x, _same_grid(range_, x.shape[-1], a_bits))
    return jax.tree.map(lambda leaf: leaf[None], values)


def _same_grid(range_, channels, a_bits):
    return grid_of(jnp.broadcast_to(range_[:, None], (2, channels)), a_bits)


@functools.partial(jax.jit, static_argnums=0)
def calibrate_layer_float(
    layer: LayerSpec, weights: Weights, xs: Float[Array, "nodes n h w i"], a_bits: Int[Array, ""]
) -> tuple[Float[Array, "children n h2 w2 o"], Packed]:
    """Runs all ops on the outputs of several nodes, and calibrates them, in float32.

    Args:
      layer: The ops and the layer's shape.
      weights: Real values of the weights.
      xs: The nodes' outputs on the calibration images.
      a_bits: Bitwidth of the activations.

    Returns:
      The ops' outputs, nodes of the next level, and what calibration found.
    """

    def run(x):
        with _float32_products():
            results = [mbconv_float.calibrate_op(layer, one, x, a_bits) for one in weights]
        ys, found = zip(*results, strict=True)
        return jnp.stack(ys), mbconv_float.pack(found)

    ys, packed = jax.vmap(run)(xs)
    return _children(ys), packed


@functools.partial(jax.jit, static_argnums=(0, 1))
def calibrate_layer_int8(
    kernel: Kernel, layer: LayerSpec, weights: Weights, xs: QTensor, a_bits: Int[Array, ""]
) -> tuple[QTensor, Packed]:
    """`calibrate_layer_float` in int8, for min-max ranges: weights and outputs are codes."""

    def run(x):
        return mbconv_int8.calibrate_ops(layer, kernel, weights, x, a_bits)

    ys, packed = jax.vmap(run)(xs)
    return jax.tree.map(_children, ys), packed


@functools.partial(jax.jit, static_argnums=0)
def run_layer_float(
    layer: LayerSpec, weights: Weights, xs: Float[Array, "nodes n h w i"], packed: Packed
) -> Float[Array, "children n h2 w2 o"]:
    """Runs all ops on the outputs of several nodes, in float32.

    Args:
      layer: The ops and the layer's shape.
      weights: Real values of the weights.
      xs: The nodes' outputs.
      packed: What calibration found at each node.

    Returns:
      The ops' outputs, nodes of the next level.
    """
    return _children(
        jax.vmap(lambda *node: jnp.stack(_ops_float(layer, weights, *node)))(xs, packed)
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_layer_int8(
    kernel: Kernel, layer: LayerSpec, weights: Weights, xs: QTensor, packed: Packed
) -> QTensor:
    """`run_layer_float` in int8: weights are codes, and so are the outputs between layers."""

    def run(x, packed):
        return mbconv_int8.run_ops(layer, kernel, weights, packed, x)

    return jax.tree.map(_children, jax.vmap(run)(xs, packed))


@functools.partial(jax.jit, static_argnums=0)
def nsr_float(
    layer: LayerSpec,
    weights: Weights,
    xs: Float[Array, "nodes n h w i"],
    packed: Packed,
    target: Float[Array, "n h2 w2 o"],
    variance: Float[Array, "o"],
) -> Float[Array, "paths"]:
    """The NSR of each path through the last layer, times images and pixels, in float32.

    Args:
      layer: The ops and the last layer's shape.
      weights: Real values of the weights.
      xs: The nodes' outputs.
      packed: What calibration found at each node.
      target: The teacher's output.
      variance: Of each channel of the target, over all images.
    """
    noise = jax.vmap(lambda *node: _noise(_ops_float(layer, weights, *node), target))(xs, packed)
    return metrics.nsr_from_noise(noise.reshape(-1, len(variance)), variance)


@functools.partial(jax.jit, static_argnums=(0, 1))
def nsr_int8(
    kernel: Kernel,
    layer: LayerSpec,
    weights: Weights,
    xs: QTensor,
    packed: Packed,
    target: Float[Array, "n h2 w2 o"],
    variance: Float[Array, "o"],
) -> Float[Array, "paths"]:
    """`nsr_float` in int8."""

    def run(x, packed):
        return mbconv_int8.noise_of_ops(layer, kernel, weights, packed, x, target)

    noise = jax.vmap(run)(xs, packed).reshape(-1, len(variance))
    return metrics.nsr_from_noise(noise, variance)


def compilations() -> int:
    """Programs compiled so far for trees."""
    functions: Any = (
        *(calibrate_layer_float, run_layer_float, nsr_float),
        *(calibrate_layer_int8, run_layer_int8, nsr_int8),
    )
    return sum(function._cache_size() for function in functions)


def _ops_float(layer, weights, x, packed) -> list[Array]:
    """Each op's output on one node's."""
    pairs = zip(weights, unpack(layer, packed), strict=True)
    with _float32_products():
        return [mbconv_float.run_op(layer, *both, x) for both in pairs]


def _float32_products():
    """Accelerators would otherwise round float32 factors to fewer bits."""
    return jax.default_matmul_precision("highest")


def _children(ys):
    """[nodes, ops, ...] as nodes of the next level, [nodes * ops, ...]."""
    return ys.reshape(-1, *ys.shape[2:])


def _noise(ys, target):
    """Squared errors of each op's output, summed over images and pixels, [ops, channels]."""
    return jnp.stack([jnp.sum(jnp.square(y - target), axis=(0, 1, 2)) for y in ys])
