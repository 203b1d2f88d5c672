"""Every path of a block, quantized and scored, over the tree of their prefixes.

A layer's output depends only on the ops before it, so each *node* of the tree (a prefix)
is computed once and all candidates of the next layer read it. That stays exact under
quantization: batch-norm statistics, clipping ranges and the quantized input of a layer
depend on nothing but the prefix. All candidates share their input, so their expansions
are one matrix product, and candidates of one kernel size share a depthwise convolution.

Two passes walk the tree. `calibrate` runs the calibration images and keeps each node's
statistics and ranges; `noise` runs any number of images on what was kept. Bitwidths are
arrays: one compiled program for each shape of a layer serves them all.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from qnas_jax import metrics, space
from qnas_jax.nn import kernels, supernet
from qnas_jax.nn.conv import RELU6
from qnas_jax.quant import affine
from qnas_jax.quant import calibrate as ranges

INPUT_BITS = 8  # of a block's input, which is another block's output


class Layer(NamedTuple):
    """What is fixed at compile time about a layer: its candidates and its shape."""

    ops: tuple[space.Op, ...]
    stride: int
    dilation: int


class Norm(NamedTuple):
    """Scale and bias of batch norms."""

    scale: Array
    bias: Array


class Weights(NamedTuple):
    """A layer's candidates side by side, weights on the grid of one bitwidth.

    Hidden channels stand in the order of the ops.
    """

    expand: Array  # [i, hidden of all ops]
    expand_norm: Norm  # [hidden of all ops]
    depthwise: tuple[Array, ...]  # per op [k, k, hidden]
    depthwise_norm: Norm  # [hidden of all ops]
    project: tuple[Array, ...]  # per op [hidden, o]
    project_norm: Norm  # [ops, o]

    @property
    def widths(self) -> list[int]:
        """Hidden channels of each op."""
        return [w.shape[-2] for w in self.project]


class Settled(NamedTuple):
    """What calibration finds behind one of a layer's three convolutions."""

    factor: Array  # per channel; with offset, in place of the batch norm
    offset: Array
    range_: Array  # [2, ops], of the activation


class Node(NamedTuple):
    """What calibration finds at a node: all that its candidates need to run."""

    expand: Settled
    depthwise: Settled
    project: Settled
    add: Array  # [2, ops], range of the sum with the input


def gather_weights(params: dict, ops: tuple[space.Op, ...], w_bits: Int[Array, ""]) -> Weights:
    """A layer's weights from the supernet's, quantized per output channel.

    Integer weights do not depend on the path: this is done once for each bitwidth.
    """

    def kernel(part):
        return [affine.fake_quant_weight(params[str(op)][part]["kernel"], w_bits) for op in ops]

    def norm(part, join):
        leaves = [params[str(op)][part]["norm"] for op in ops]
        return Norm(join([n["scale"] for n in leaves]), join([n["bias"] for n in leaves]))

    return Weights(
        expand=jnp.concatenate([w[0, 0] for w in kernel("expand")], axis=-1),
        expand_norm=norm("expand", jnp.concatenate),
        depthwise=tuple(w[:, :, 0] for w in kernel("depthwise")),
        depthwise_norm=norm("depthwise", jnp.concatenate),
        project=tuple(w[0, 0] for w in kernel("project")),
        project_norm=norm("project", jnp.stack),
    )


def run_node(
    layer: Layer,
    weights: Weights,
    x: Float[Array, "n h w i"],
    a_bits: Int[Array, ""],
    node: Node | None,
) -> tuple[Float[Array, "ops n h2 w2 o"], Node]:
    """All candidates of a layer on one node's output.

    Args:
      layer: The candidates and the layer's shape.
      weights: Their weights.
      x: The node's output, on its grid.
      a_bits: Bitwidth of the activations.
      node: Statistics and ranges. None: each is found on the way, from what the quantized
        parts before it give.

    Returns:
      The candidates' outputs, on their grids, and the statistics and ranges.
    """
    widths = weights.widths
    u = kernels.pointwise(x, weights.expand)
    h, expand = _hidden(u, weights.expand_norm, widths, a_bits, node and node.expand)
    u = _depthwise(h, weights, layer)
    h, depthwise = _hidden(u, weights.depthwise_norm, widths, a_bits, node and node.depthwise)
    parts = _split(h, widths)
    u = jnp.stack([kernels.pointwise(h, w) for h, w in zip(parts, weights.project, strict=True)])
    if node is None:
        factor, offset = jax.vmap(_norm)(u, weights.project_norm)
    else:
        factor, offset, _ = node.project
    y = u * factor[:, None, None, None] + offset[:, None, None, None]
    y, range_ = _on_grids(y, a_bits, node and node.project.range_)
    add = range_
    if layer.stride == 1 and x.shape[-1] == y.shape[-1]:
        y, add = _on_grids(x + y, a_bits, node and node.add)
    return y, Node(expand, depthwise, Settled(factor, offset, range_), add)


def _hidden(u, norm, widths, a_bits, settled):
    """Norm, ReLU6 and grid of all ops' hidden channels."""
    factor, offset = _norm(u, norm) if settled is None else settled[:2]
    y = jnp.clip(u * factor + offset, *RELU6)
    if settled is None:
        found = [ranges.min_max(part) for part in _split(y, widths)]
        settled = Settled(factor, offset, jnp.stack(found, axis=1))
    per_channel = jnp.repeat(
        settled.range_, np.array(widths), axis=1, total_repeat_length=y.shape[-1]
    )
    return affine.fake_quant(y, per_channel, a_bits), settled


def _on_grids(y, a_bits, range_):
    """Each op's output on its grid, [ops, ...], and the ranges, [2, ops]."""
    if range_ is None:
        range_ = jax.vmap(ranges.min_max, out_axes=1)(y)
    return jax.vmap(affine.fake_quant, (0, 1, None))(y, range_, a_bits), range_


def _norm(u, norm):
    """Factor and offset per channel in place of a batch norm over `u`."""
    mean, var = kernels.pixel_moments(u)
    factor = norm.scale * lax.rsqrt(var + kernels.NORM_EPSILON)
    return factor, norm.bias - mean * factor


def _split(h, widths):
    return jnp.split(h, np.cumsum(widths)[:-1], axis=-1)


def _depthwise(h, weights, layer):
    """Depthwise convolutions of all ops, those of one kernel size in one call."""
    parts = _split(h, weights.widths)
    outputs: dict[int, Array] = {}
    for kernel in dict.fromkeys(op.kernel for op in layer.ops):
        members = [i for i, op in enumerate(layer.ops) if op.kernel == kernel]
        joined = kernels.depthwise(
            jnp.concatenate([parts[i] for i in members], axis=-1),
            jnp.concatenate([weights.depthwise[i] for i in members], axis=-1),
            layer.stride,
            layer.dilation,
        )
        apart = _split(joined, [weights.widths[i] for i in members])
        outputs.update(zip(members, apart, strict=True))
    return jnp.concatenate([outputs[i] for i in range(len(layer.ops))], axis=-1)


@functools.partial(jax.jit, static_argnums=0)
def _run(layer, weights, xs, a_bits, nodes):
    """`run_node` over several nodes; the outputs are nodes of the next level."""
    run = functools.partial(run_node, layer, weights)
    ys, nodes = jax.vmap(run, (0, None, 0))(xs, a_bits, nodes)
    return ys.reshape(-1, *ys.shape[2:]), nodes


@jax.jit
def _leaf_noise(ys, target, variance):
    """Noise over signal of each leaf, summed over images and pixels."""
    noise = jnp.sum(jnp.square(ys - target), axis=(1, 2, 3))
    return jnp.mean(noise / (variance + metrics.NSR_EPSILON), axis=-1)


_gather = jax.jit(gather_weights, static_argnums=1)


class CalibratedBlock(NamedTuple):
    """A block's supernet, quantized at one bitwidth and calibrated at every node.

    Attributes:
      layers: The shape of each layer.
      weights: Of each layer.
      a_bits: Bitwidth of the activations.
      input_range: Clipping range of the block's input, which is quantized at 8 bits.
      nodes: Statistics and ranges by (layer, first node).
      nodes_per_pass: Nodes that are run at once.
    """

    layers: tuple[Layer, ...]
    weights: tuple[Weights, ...]
    a_bits: Int[Array, ""]
    input_range: Float[Array, "2"]
    nodes: dict[tuple[int, int], Node]
    nodes_per_pass: int


def calibrate(
    params: supernet.Params,
    block: space.Block,
    ops: tuple[space.Op, ...],
    w_bits: Int[Array, ""],
    a_bits: Int[Array, ""],
    x: Float[Array, "n h w i"],
    nodes_per_pass: int = 1,
) -> CalibratedBlock:
    """Quantizes a block's supernet and calibrates every node of its tree.

    Args:
      params: The block's supernet.
      block: Its shape.
      ops: Its candidates.
      w_bits: Bitwidth of the weights.
      a_bits: Bitwidth of the activations.
      x: The block's input on the calibration images.
      nodes_per_pass: Nodes that are run at once.
    """
    tree = CalibratedBlock(
        layers=tuple(
            Layer(ops, block.layer_shape(layer)[1], block.dilation) for layer in range(block.depth)
        ),
        weights=tuple(
            _gather(params[f"layer{layer}"], ops, w_bits) for layer in range(block.depth)
        ),
        a_bits=a_bits,
        input_range=ranges.min_max(x),
        nodes={},
        nodes_per_pass=nodes_per_pass,
    )

    def run(layer, first, xs):
        ys, tree.nodes[layer, first] = _run(
            tree.layers[layer], tree.weights[layer], xs, a_bits, None
        )
        return ys

    for _, ys in _leaves(tree, x, run):
        ys.block_until_ready()  # else all passes would be queued, and held in memory
    return tree


def noise(
    tree: CalibratedBlock,
    x: Float[Array, "n h w i"],
    target: Float[Array, "n h2 w2 o"],
    variance: Float[Array, "o"],
) -> np.ndarray:
    """Every path's NSR times the number of pixels, float64[rows].

    Sums over chunks of images can be added up; divided by all their pixels they are the
    NSR of `metrics.nsr`.
    """

    def run(layer, first, xs):
        node = tree.nodes[layer, first]
        return _run(tree.layers[layer], tree.weights[layer], xs, tree.a_bits, node)[0]

    parts = [
        np.asarray(_leaf_noise(ys, target, variance), np.float64) for _, ys in _leaves(tree, x, run)
    ]
    return np.concatenate(parts)


def _leaves(
    tree: CalibratedBlock, x: Array, run: Callable[[int, int, Array], Array]
) -> Iterator[tuple[int, Array]]:
    """Walks the tree, deepest first: outputs of consecutive paths and the first's row.

    `run(layer, first node, outputs of some nodes)` gives their candidates' outputs. At any
    time only one pass of each level is held.
    """
    branches = len(tree.layers[0].ops)

    def walk(layer, first, xs):
        for start in range(0, len(xs), tree.nodes_per_pass):
            node = first + start
            ys = run(layer, node, xs[start : start + tree.nodes_per_pass])
            if layer + 1 < len(tree.layers):
                yield from walk(layer + 1, node * branches, ys)
            else:
                yield node * branches, ys

    x = affine.fake_quant(x, tree.input_range, jnp.int32(INPUT_BITS))
    yield from walk(0, 0, x[None])
