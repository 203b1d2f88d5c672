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
import operator
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qnas_jax import space
from qnas_jax.bwnas.lut.evaluate import Values, leaf_noise, root, run_nodes
from qnas_jax.bwnas.lut.mbconv_float import Layer, OpWeights, gather_weights
from qnas_jax.bwnas.lut.mbconv_int8 import gather_bytes
from qnas_jax.nn import supernet
from qnas_jax.quant.calibrate import FindRange
from qnas_jax.run import matrix
from qnas_jax.run.stage import reading

INPUT_BITS = 8  # of a block's input, which is another block's output
QUEUE = 8  # passes that may wait for the device
VALUE_BYTES = {False: 4, True: 1}  # of an activation, in floats or in bytes

# Of each layer at each of its bitwidths.
Weights = tuple[tuple[tuple[OpWeights, ...], ...], ...]


class Tree(NamedTuple):
    """A block's candidates at each layer: every op at each of some bitwidths.

    Attributes:
      layers: The shape of each layer.
      weights: Real values of the weights.
      codes: The weights as codes, where `noise` is worked out in bytes, else None.
      a_bits: Of each layer at each of its bitwidths.
    """

    layers: tuple[Layer, ...]
    weights: Weights
    codes: Weights | None
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
    nodes: Sequence[Sequence[np.ndarray | matrix.Matrix]]


_gather = jax.jit(gather_weights, static_argnums=1)
_gather_bytes = jax.jit(gather_bytes, static_argnums=1)


def build(
    params: supernet.Params,
    block: space.Block,
    ops: tuple[space.Op, ...],
    bits: Sequence[Sequence[space.Bits]],
    find_range: FindRange,
    per_channel: bool = False,
    in_bytes: bool = False,
) -> Tree:
    """The tree of a block's paths.

    Args:
      params: The block's supernet.
      block: Its shape.
      ops: Its candidates.
      bits: The bitwidths (of weights, of activations) that each layer may take.
      find_range: How a clipping range is found (see `quant/calibrate.py`).
      per_channel: Whether each channel of an activation has a range of its own.
      in_bytes: Whether noise is worked out in bytes (see `byte_node.py`), which have one range
        for all channels.

    Raises:
      ValueError: For bytes with ranges of their own.
    """
    if in_bytes and per_channel:
        raise ValueError("bytes have one range for all channels")

    def gathered(gather):
        found = [
            {w: gather(params[f"layer{layer}"], ops, jnp.int32(w)) for w in {w for w, _ in choices}}
            for layer, choices in enumerate(bits)
        ]
        return tuple(
            tuple(by_bits[w_bits] for w_bits, _ in choices)
            for by_bits, choices in zip(found, bits, strict=True)
        )

    return Tree(
        tuple(_layer(block, i, ops, find_range, per_channel) for i in range(block.depth)),
        gathered(_gather),
        gathered(_gather_bytes) if in_bytes else None,
        tuple(tuple(jnp.int32(a_bits) for _, a_bits in choices) for choices in bits),
    )


def _layer(block, number, ops, find_range, per_channel):
    in_channels, stride = block.layer_shape(number)
    residual = stride == 1 and in_channels == block.channels
    return Layer(
        ops,
        in_channels,
        block.channels,
        stride,
        block.dilation,
        residual,
        find_range,
        per_channel,
    )


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

    def run(layer, choice, ids, xs):
        weights, a_bits = tree.weights[layer][choice], tree.a_bits[layer][choice]
        ys, found = run_nodes(tree.layers[layer], weights, xs, a_bits, None)
        if nodes[layer][choice] is None:
            shape = (tree.nodes(layer), found.shape[1])
            file = folder and folder / _nodes_file(layer, choice)
            nodes[layer][choice] = (
                matrix.create(file, shape) if file else np.empty(shape, np.float32)
            )
        nodes[layer][choice][ids] = found  # waits, so that passes do not queue up in memory
        return ys

    for _ in _leaves(tree, _root(x, input_range, False), run, nodes_per_pass):
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
    weights = tree.codes or tree.weights

    def run(layer, choice, ids, xs):
        packed = calibration.nodes[layer][choice][ids]
        a_bits = tree.a_bits[layer][choice]
        arguments = (tree.layers[layer], weights[layer][choice], xs, a_bits, packed)
        if layer == last:
            return leaf_noise(*arguments, target, variance)
        return run_nodes(*arguments)[0]

    result = np.empty(tree.nodes(last + 1))
    waiting: collections.deque[tuple[np.ndarray, Array]] = collections.deque()
    start = _root(x, calibration.input_range, tree.codes is not None)
    for leaf in _leaves(tree, start, run, nodes_per_pass):
        waiting.append(leaf)
        if len(waiting) > QUEUE:
            rows, found = waiting.popleft()
            result[rows] = found
    for rows, found in waiting:
        result[rows] = found
    return result


def _root(x, input_range, in_bytes):
    return root(x, jnp.int32(INPUT_BITS), input_range, in_bytes)


def load_calibration(folder: pathlib.Path, tree: Tree) -> Calibration:
    """Reads what was found in that tree and written into a folder, row by row as needed.

    Raises:
      InputError: A file is missing or damaged, or the system does not give it.
    """
    nodes = [
        [matrix.load(folder / _nodes_file(layer, choice)) for choice in range(len(bits))]
        for layer, bits in enumerate(tree.a_bits)
    ]
    with reading(folder / _RANGE_FILE, folder) as file:
        return Calibration(np.load(file), nodes)


_RANGE_FILE = "input_range.npy"


def _nodes_file(layer: int, choice: int) -> str:
    return f"nodes-{layer}-{choice}.npy"


def _leaves(
    tree: Tree, start: Values, run: Callable[..., Any], nodes_per_pass: int
) -> Iterator[tuple[np.ndarray, Any]]:
    """Walks the tree, deepest first: what `run` gives at the last layer, and for which rows.

    `run(layer, bitwidth, nodes, xs)` gives the outputs of some nodes' candidates. At any
    time only one pass of each level is held. Candidates are numbered by bitwidth, then by op.
    """

    def walk(layer, ids, xs):
        # As many nodes a pass as divide them: one program for all passes.
        size = max(n for n in range(1, min(nodes_per_pass, len(ids)) + 1) if len(ids) % n == 0)
        ops = len(tree.layers[layer].ops)
        for start in range(0, len(ids), size):
            part = slice(start, start + size)
            inputs = jax.tree.map(operator.itemgetter(part), xs)
            first = ids[part] * tree.branches(layer)
            for choice in range(len(tree.a_bits[layer])):
                children = (first[:, None] + choice * ops + np.arange(ops)).ravel()
                outputs = run(layer, choice, ids[part], inputs)
                if layer + 1 < len(tree.layers):
                    yield from walk(layer + 1, children, outputs)
                else:
                    yield children, outputs

    yield from walk(0, np.zeros(1, np.int64), start)


def compilations() -> int:
    """Programs compiled so far for trees."""
    functions: list[Any] = [run_nodes, leaf_noise]
    return sum(function._cache_size() for function in functions)


class Work(NamedTuple):
    """What a block's tree takes for one image.

    Attributes:
      macs: Multiply-accumulate operations.
      values: Activations.
      node_values: Of them, those that are held while one node runs, at most.
    """

    macs: int
    values: int
    node_values: int

    def bytes(self, in_bytes: bool) -> int:
        """Moved, if every activation is written and read once."""
        return 2 * VALUE_BYTES[in_bytes] * self.values

    def node_bytes(self, in_bytes: bool) -> int:
        """Held while one node runs, at most, with as much for what is worked on."""
        return 2 * VALUE_BYTES[in_bytes] * self.node_values


def work(
    block: space.Block,
    ops: tuple[space.Op, ...],
    bits: Sequence[Sequence[space.Bits]],
    shape: tuple[int, int],
) -> Work:
    """The work of a tree on one image whose features ahead of the block have that shape."""
    nodes, macs, total, held = 1, 0, 0, 0
    for choices, convs in zip(bits, space.block_convs(block, ops, shape), strict=True):
        values = sum(conv.out_channels * conv.out_pixels for conv in convs)
        macs += nodes * len(choices) * sum(conv.macs for conv in convs)
        total += nodes * len(choices) * values
        held = max(held, values)
        nodes *= len(choices) * len(ops)
    return Work(macs, total, held)
