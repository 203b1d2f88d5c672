"""Every path of a block, quantized and scored, over the tree of their prefixes.

A layer's output depends only on the choices before it, so each *node* of the tree (a
prefix) is computed once and all candidates of the next layer read it. That stays exact
under quantization: batch-norm statistics, clipping ranges and the quantized input of a
layer depend on nothing but the prefix.

Two passes walk the tree. `calibrate` runs the calibration images and keeps what it finds
at each node; `noise` runs any number of images on what was kept. Bitwidths are arrays, so
one compiled program for each shape of a layer serves every bitwidth, homogeneous or mixed.
"""

import collections
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qnas_jax import space
from qnas_jax.nn import kernels, supernet
from qnas_jax.node import Layer, OpWeights, gather_weights, leaf_noise, root, run_nodes
from qnas_jax.quant.calibrate import FindRange

INPUT_BITS = 8  # of a block's input, which is another block's output
QUEUE = 8  # passes that may wait for the device


class Tree(NamedTuple):
    """A block's candidates at each layer: every op at each of some bitwidths.

    Attributes:
      layers: The shape of each layer.
      weights: Of each layer at each of its bitwidths.
      a_bits: Of each layer at each of its bitwidths.
    """

    layers: tuple[Layer, ...]
    weights: tuple[tuple[tuple[OpWeights, ...], ...], ...]
    a_bits: tuple[tuple[Int[Array, ""], ...], ...]

    def branches(self, layer: int) -> int:
        """Candidates of a layer, each at each bitwidth."""
        return len(self.a_bits[layer]) * len(self.layers[layer].ops)

    def nodes(self, layer: int) -> int:
        """Nodes that a layer's candidates read; for the depth, the number of paths."""
        return math.prod(self.branches(above) for above in range(layer))


class Calibration(NamedTuple):
    """What calibration finds in a block.

    Attributes:
      input_range: Clipping range of the block's input, which has 8 bits.
      nodes: By layer and bitwidth, packed, [nodes of the layer, size].
    """

    input_range: np.ndarray
    nodes: list[list[np.ndarray]]


_gather = jax.jit(gather_weights, static_argnums=(1, 2))


def build(
    params: supernet.Params,
    block: space.Block,
    ops: tuple[space.Op, ...],
    bits: Sequence[Sequence[space.Bits]],
    find_range: FindRange,
    per_channel: bool = False,
    codes: bool | None = None,
) -> Tree:
    """The tree of a block's paths.

    Args:
      params: The block's supernet.
      block: Its shape.
      ops: Its candidates.
      bits: The bitwidths (of weights, of activations) that each layer may take.
      find_range: How a clipping range is found (see `quant/calibrate.py`).
      per_channel: Whether each channel of an activation has a range of its own.
      codes: Whether values travel as codes; by default where that is faster. With a scale
        for each channel they cannot.
    """
    codes = not per_channel and (kernels.prefers_codes() if codes is None else codes)
    weights = []
    for layer, choices in enumerate(bits):
        gathered = {
            w_bits: _gather(params[f"layer{layer}"], ops, codes, jnp.int32(w_bits))
            for w_bits in dict.fromkeys(w for w, _ in choices)
        }
        weights.append(tuple(gathered[w_bits] for w_bits, _ in choices))
    return Tree(
        tuple(_layer(block, i, ops, find_range, per_channel, codes) for i in range(block.depth)),
        tuple(weights),
        tuple(tuple(jnp.int32(a_bits) for _, a_bits in choices) for choices in bits),
    )


def _layer(block, number, ops, find_range, per_channel, codes):
    in_channels, stride = block.layer_shape(number)
    residual = stride == 1 and in_channels == block.channels
    return Layer(ops, stride, block.dilation, residual, find_range, per_channel, codes)


def calibrate(
    tree: Tree,
    x: Float[Array, "n h w i"],
    nodes_per_pass: int = 1,
    folder: pathlib.Path | None = None,
) -> Calibration:
    """Statistics and ranges at every node.

    Args:
      tree: The block's.
      x: The block's input on the calibration images.
      nodes_per_pass: Nodes that are run at once.
      folder: Where to write what is found, as it may exceed the memory.
    """
    input_range = np.asarray(tree.layers[0].find_range(x, jnp.int32(INPUT_BITS)))
    nodes: list[list[Any]] = [[None] * len(choices) for choices in tree.a_bits]

    def run(layer, choice, ids, xs, units):
        weights, a_bits = tree.weights[layer][choice], tree.a_bits[layer][choice]
        ys, units, found = run_nodes(tree.layers[layer], weights, xs, units, a_bits, None)
        if nodes[layer][choice] is None:
            shape = (tree.nodes(layer), found.shape[1])
            file = folder and folder / _nodes_file(layer, choice)
            nodes[layer][choice] = _empty(shape, file)
        nodes[layer][choice][ids] = found  # waits, so that passes do not queue up in memory
        return ys, units

    for _ in _leaves(tree, _root(tree, x, input_range), run, nodes_per_pass):
        pass
    if folder is not None:
        np.save(folder / _RANGE_FILE, input_range)
    return Calibration(input_range, nodes)


def noise(
    tree: Tree,
    calibration: Calibration,
    x: Float[Array, "n h w i"],
    target: Float[Array, "n h2 w2 o"],
    variance: Float[Array, "o"],
    nodes_per_pass: int = 1,
) -> np.ndarray:
    """Every path's NSR times the number of pixels, float64[rows].

    Sums over chunks of images can be added up; divided by all their pixels they are the
    NSR of `metrics.nsr`.
    """
    last = len(tree.layers) - 1

    def run(layer, choice, ids, xs, units):
        packed = calibration.nodes[layer][choice][ids]
        weights, a_bits = tree.weights[layer][choice], tree.a_bits[layer][choice]
        arguments = (tree.layers[layer], weights, xs, units, a_bits, packed)
        if layer == last:
            return leaf_noise(*arguments, target, variance)
        return run_nodes(*arguments)[:2]

    result = np.empty(tree.nodes(last + 1))
    waiting: collections.deque[tuple[np.ndarray, Array]] = collections.deque()
    for leaf in _leaves(tree, _root(tree, x, calibration.input_range), run, nodes_per_pass):
        waiting.append(leaf)
        if len(waiting) > QUEUE:
            rows, found = waiting.popleft()
            result[rows] = found
    for rows, found in waiting:
        result[rows] = found
    return result


def _empty(shape: tuple[int, int], file: pathlib.Path | None) -> np.ndarray:
    if file is None:
        return np.empty(shape, np.float32)
    return np.lib.format.open_memmap(file, "w+", np.float32, shape)


def _root(tree, x, input_range):
    return root(tree.layers[0], x, jnp.int32(INPUT_BITS), input_range)


def load_calibration(folder: pathlib.Path, tree: Tree) -> Calibration:
    """Reads what was found in that tree and written into a folder, page by page as needed."""
    nodes = [
        [np.load(folder / _nodes_file(layer, choice), mmap_mode="r") for choice in range(len(bits))]
        for layer, bits in enumerate(tree.a_bits)
    ]
    return Calibration(np.load(folder / _RANGE_FILE), nodes)


_RANGE_FILE = "input_range.npy"


def _nodes_file(layer: int, choice: int) -> str:
    return f"nodes-{layer}-{choice}.npy"


def _leaves(
    tree: Tree, root: tuple[Array, Array], run: Callable[..., Any], nodes_per_pass: int
) -> Iterator[tuple[np.ndarray, Any]]:
    """Walks the tree, deepest first: what `run` gives at the last layer, and for which rows.

    `run(layer, bitwidth, nodes, xs, units)` gives the outputs of some nodes' candidates
    and what they stand for. At any time only one pass of each level is held. Candidates are
    numbered by bitwidth, then by op.
    """

    def walk(layer, ids, xs, units):
        # As many nodes a pass as divide them: one program for all passes.
        size = max(n for n in range(1, min(nodes_per_pass, len(ids)) + 1) if len(ids) % n == 0)
        ops = len(tree.layers[layer].ops)
        for start in range(0, len(ids), size):
            part = slice(start, start + size)
            first = ids[part] * tree.branches(layer)
            for choice in range(len(tree.a_bits[layer])):
                children = (first[:, None] + choice * ops + np.arange(ops)).ravel()
                outputs = run(layer, choice, ids[part], xs[part], units[part])
                if layer + 1 < len(tree.layers):
                    yield from walk(layer + 1, children, *outputs)
                else:
                    yield children, outputs

    yield from walk(0, np.zeros(1, np.int64), *root)


def compilations() -> int:
    """Programs compiled so far for trees."""
    functions: list[Any] = [run_nodes, leaf_noise]
    return sum(function._cache_size() for function in functions)


class Work(NamedTuple):
    """What a block's tree takes for one image.

    Attributes:
      macs: Multiply-accumulate operations.
      bytes: Written and read again, every activation once.
      node_bytes: Held while one node runs, at most.
    """

    macs: int
    bytes: int
    node_bytes: int


def work(
    block: space.Block,
    ops: tuple[space.Op, ...],
    bits: Sequence[Sequence[space.Bits]],
    shape: tuple[int, int],
) -> Work:
    """The work of a tree on one image whose features ahead of the block have that shape."""
    nodes, macs, moved, held = 1, 0, 0, 0
    for choices, convs in zip(bits, space.block_convs(block, ops, shape), strict=True):
        values = sum(conv.out_channels * conv.out_pixels for conv in convs)
        macs += nodes * len(choices) * sum(conv.macs for conv in convs)
        moved += nodes * len(choices) * 2 * kernels.VALUE_BYTES * values
        held = max(held, 2 * kernels.VALUE_BYTES * values)
        nodes *= len(choices) * len(ops)
    return Work(macs, moved, held)
