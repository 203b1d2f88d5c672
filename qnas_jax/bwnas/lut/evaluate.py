"""The compiled passes over a tree: all candidates of a layer on several nodes at once.

Nodes are the first axis. Their values are real, or `Bytes`; what calibration found at each
travels packed into one vector.
"""

import functools
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
from jaxtyping import Array

from qnas_jax import metrics
from qnas_jax.bwnas.lut import mbconv_int8
from qnas_jax.bwnas.lut.mbconv_float import grid_of, on_grid, run_op, unpack
from qnas_jax.bwnas.lut.mbconv_int8 import Bytes

Values = Array | Bytes


@functools.partial(jax.jit, static_argnums=0)
def run_nodes(layer, weights, xs, a_bits, packed):
    """All candidates on several nodes' outputs; theirs are nodes of the next level.

    Args:
      layer: The candidates and the layer's shape.
      weights: Theirs, of real values or of codes, as the nodes' outputs are.
      xs: The nodes' outputs, [nodes, n, h, w, i].
      a_bits: Bitwidth of the activations.
      packed: What calibration found, [nodes, size]. None: it is found now, in real numbers.

    Returns:
      The candidates' outputs, [nodes * ops, n, h2, w2, o], and what calibration found.
    """

    def run(x, packed):
        ys, found = _candidates(layer, weights, x, a_bits, packed)
        ys = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ys)
        return ys, jax.flatten_util.ravel_pytree(found)[0]

    ys, packed = jax.vmap(run)(xs, packed)
    return jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:]), ys), packed


def _candidates(layer, weights, x, a_bits, packed):
    """Each candidate's output on one node's, and what calibration found."""
    found: Any = [None] * len(weights) if packed is None else unpack(layer, packed)
    if isinstance(x, Bytes):
        pairs = zip(weights, found, strict=True)
        return [mbconv_int8.run_op(layer, *both, x) for both in pairs], found
    with jax.default_matmul_precision("highest"):  # accelerators would round real values first
        results = [run_op(layer, *both, x, a_bits) for both in zip(weights, found, strict=True)]
    ys, found = zip(*results, strict=True)
    return ys, found


@functools.partial(jax.jit, static_argnums=0)
def leaf_noise(layer, weights, xs, a_bits, packed, target, variance):
    """Noise over signal behind the last layer, summed over images and pixels, [paths]."""

    def run(x, packed):
        ys, _ = _candidates(layer, weights, x, a_bits, packed)
        ys = [y.real() if isinstance(y, Bytes) else y for y in ys]
        return jnp.stack([jnp.sum(jnp.square(y - target), axis=(0, 1, 2)) for y in ys])

    noise = jax.vmap(run)(xs, packed).reshape(-1, len(variance))
    return jnp.mean(noise / (variance + metrics.NSR_EPSILON), axis=-1)


@functools.partial(jax.jit, static_argnums=3)
def root(x, a_bits, range_, in_bytes: bool) -> Values:
    """A block's input as the output of one node.

    The bitwidth is an argument, for a constant would be compiled to other roundings.
    """
    grid = grid_of(jnp.broadcast_to(range_[:, None], (2, x.shape[-1])), a_bits)
    values = mbconv_int8.as_bytes(x, grid) if in_bytes else on_grid(x, grid)
    return jax.tree.map(lambda leaf: leaf[None], values)
