"""Every path of a block, quantized and scored, over the trie of their prefixes.

A layer's output depends only on the choices before it, so each *node* of the prefix tree is
computed once, and all ops of the next layer read it. That stays exact under quantization:
batch-norm statistics, clipping ranges and the quantized input of a layer depend on nothing but
the prefix.

Two passes walk the tree. `calibrate` runs the calibration images and keeps what it finds at
each node; `noise` runs any number of images on what was kept, both in float32 or in int8.
Calibration for ranges other than min-max is always in float32. Bitwidths are arrays, so one
compiled program for each shape of a layer serves every bitwidth, homogeneous or mixed.
"""

import collections
import functools
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from qnas_jax import space
from qnas_jax.bwnas.lut import evaluate
from qnas_jax.bwnas.lut.mbconv_int8 import gather_codes
from qnas_jax.kernels.int8 import Kernel
from qnas_jax.nn import supernet
from qnas_jax.nn.mbconv_float import LayerSpec, gather_weights, layer_spec
from qnas_jax.quant.calibrate import FindRange, min_max
from qnas_jax.run import matrix
from qnas_jax.run.stage import reading

INPUT_BITS = 8  # of a block's input, which is another block's output
QUEUE = 8  # passes that may wait for the device

# Of each layer at each of its bitwidths.
Weights = tuple[tuple[evaluate.Weights, ...], ...]


class PrefixTree(NamedTuple):
    """A block's candidates at each layer: every op at each of some bitwidths.

    Attributes:
      layers: The shape of each layer.
      weights: Real values of the weights; None if nothing runs in float32.
      codes: Codes of the weights, if `noise` is to run in int8; else None.
      kernel: What computes int8 convolutions; None in float32.
      a_bits: Of each layer at each of its bitwidths.
    """

    layers: tuple[LayerSpec, ...]
    weights: Weights | None
    codes: Weights | None
    kernel: Kernel | None
    a_bits: tuple[tuple[Int[Array, ""], ...], ...]

    def branches(self, layer: int) -> int:
        """Candidates of a layer, each at each bitwidth."""
        return len(self.a_bits[layer]) * len(self.layers[layer].ops)

    def nodes(self, layer: int) -> int:
        """Nodes that a layer's candidates read; for the depth, the number of paths."""
        return math.prod(self.branches(before) for before in range(layer))


def calibration_compute(kernel: Kernel | None, find_range: FindRange) -> str:
    """The arithmetic of `calibrate`: "int8" only for min-max ranges, else "float32"."""
    return "int8" if kernel and find_range is min_max else "float32"


class Calibration(NamedTuple):
    """What calibration finds in a block.

    Attributes:
      input_range: Clipping range of the block's input, which has 8 bits.
      nodes: By layer and bitwidth, packed, [nodes of the layer, size].
    """

    input_range: np.ndarray
    nodes: Sequence[Sequence[np.ndarray | matrix.Matrix]]


@functools.partial(jax.jit, static_argnums=1)
def _gather_weights(params, ops, w_bits):
    return gather_weights(params, ops, jnp.int32(w_bits))


def build(
    params: supernet.Params,
    block: space.Block,
    ops: tuple[space.Op, ...],
    bits: Sequence[Sequence[space.Bits]],
    find_range: FindRange,
    per_channel: bool = False,
    kernel: Kernel | None = None,
) -> PrefixTree:
    """The prefix tree of a block's paths.

    Args:
      params: The block's supernet.
      block: Its shape.
      ops: Its candidates.
      bits: The bitwidths (of weights, of activations) that each layer may take.
      find_range: How a clipping range is found (see `quant/calibrate.py`).
      per_channel: Whether each channel of an activation has its own range.
      kernel: Of int8 convolutions, if `noise` is to run in int8 (see `mbconv_int8.py`); None
        for float32.

    Raises:
      ValueError: For int8 with a range for each channel.
    """
    if kernel and per_channel:
        raise ValueError("int8 has one range for all channels of an activation")

    def gathered(gather: Callable[..., evaluate.Weights], *how: Any) -> Weights:
        found = [
            {w: gather(params[f"layer{layer}"], ops, *how, w) for w, _ in choices}
            for layer, choices in enumerate(bits)
        ]
        return tuple(
            tuple(by_bits[w_bits] for w_bits, _ in choices)
            for by_bits, choices in zip(found, bits, strict=True)
        )

    in_float = calibration_compute(kernel, find_range) == "float32"
    return PrefixTree(
        tuple(layer_spec(block, i, ops, find_range, per_channel) for i in range(block.depth)),
        gathered(_gather_weights) if in_float else None,
        gathered(gather_codes, kernel) if kernel else None,
        kernel,
        tuple(tuple(jnp.int32(a_bits) for _, a_bits in choices) for choices in bits),
    )


def calibrate(
    tree: PrefixTree,
    x: Float[Array, "n h w i"],
    nodes_per_pass: int = 1,
    folder: pathlib.Path | None = None,
) -> Calibration:
    """Finds statistics and ranges at every node.

    Args:
      tree: The block's.
      x: The block's input on the calibration images.
      nodes_per_pass: Nodes that are run at once.
      folder: Where to write what is found, as it may exceed the memory; None: nowhere.
    """
    find_range = jax.jit(tree.layers[0].find_range)
    input_range = np.asarray(find_range(x, jnp.int32(INPUT_BITS)))
    nodes: list[list[Any]] = [[None] * len(choices) for choices in tree.a_bits]

    passes = passes_of_calibration(tree)

    def run(layer, choice, ids, xs):
        weights, a_bits = passes.weights[layer][choice], tree.a_bits[layer][choice]
        ys, found = passes.calibrate(tree.layers[layer], weights, xs, a_bits)
        if nodes[layer][choice] is None:
            shape = (tree.nodes(layer), found.shape[1])
            file = folder and folder / _nodes_file(layer, choice)
            nodes[layer][choice] = (
                matrix.create(file, shape) if file else np.empty(shape, np.float32)
            )
        nodes[layer][choice][ids] = found  # waits, so that passes do not queue up in memory
        return ys

    start = passes.start(x, jnp.int32(INPUT_BITS), input_range)
    for _ in _leaves(tree, start, run, nodes_per_pass):
        pass
    if folder is not None:
        np.save(folder / _RANGE_FILE, input_range)
    return Calibration(input_range, nodes)


def noise(
    tree: PrefixTree,
    calibration: Calibration,
    x: Float[Array, "n h w i"],
    target: Float[Array, "n h2 w2 o"],
    variance: Float[Array, "o"],
    nodes_per_pass: int = 1,
) -> np.ndarray:
    """Every path's NSR times the number of pixels, float64[rows].

    Sums over chunks of images can be added up; divided by all their pixels they are the
    NSR of `metrics.nsr`.

    Args:
      tree: The block's.
      calibration: What was found at its nodes.
      x: The block's input on some images.
      target: The teacher's output on them.
      variance: Of each channel of the target, over all images.
      nodes_per_pass: Nodes that are run at once.
    """
    passes = passes_of(tree)
    start = passes.start(x, jnp.int32(INPUT_BITS), calibration.input_range)

    def run(layer, choice, ids, xs):
        packed = calibration.nodes[layer][choice][ids]
        arguments = (tree.layers[layer], passes.weights[layer][choice], xs, packed)
        if layer + 1 < len(tree.layers):
            return passes.run_layer(*arguments)
        return passes.nsr(*arguments, target, variance)

    result = np.empty(tree.nodes(len(tree.layers)))
    waiting: collections.deque[tuple[np.ndarray, Array]] = collections.deque()
    for leaf in _leaves(tree, start, run, nodes_per_pass):
        waiting.append(leaf)
        if len(waiting) > QUEUE:
            rows, found = waiting.popleft()
            result[rows] = found
    for rows, found in waiting:
        result[rows] = found
    return result


class Passes(NamedTuple):
    """The passes of `evaluate` in one arithmetic, and the weights that they take."""

    weights: Any
    start: Callable[..., evaluate.Values]
    calibrate: Callable[..., tuple[evaluate.Values, Array]]
    run_layer: Callable[..., evaluate.Values]
    nsr: Callable[..., Array]


def passes_of(tree: PrefixTree) -> Passes:
    """The passes of `noise`."""
    if tree.codes is None:
        functions = evaluate.calibrate_layer_float, evaluate.run_layer_float, evaluate.nsr_float
        return Passes(tree.weights, evaluate.float_input, *functions)
    functions = evaluate.calibrate_layer_int8, evaluate.run_layer_int8, evaluate.nsr_int8
    of_kernel = (functools.partial(function, tree.kernel) for function in functions)
    return Passes(tree.codes, evaluate.int8_input, *of_kernel)


def passes_of_calibration(tree: PrefixTree) -> Passes:
    """The passes of `calibrate`."""
    return passes_of(tree if tree.weights is None else tree._replace(codes=None))


def load_calibration(folder: pathlib.Path, tree: PrefixTree) -> Calibration:
    """Reads what was found in that tree and written into a folder, row by row as needed.

    Raises:
      InputError: A file is missing or damaged, or cannot be read.
    """
    nodes = [
        [matrix.load(folder / _nodes_file(layer, choice)) for choice in range(len(bits))]
        for layer, bits in enumerate(tree.a_bits)
    ]
    with reading(folder / _RANGE_FILE, folder) as file:
        return Calibration(np.load(file), nodes)


_RANGE_FILE = "input_range.npy"


def _nodes_file(layer: int, choice: int) -> str:
    return f"steps-{layer}-{choice}.npy"


def pass_sizes(tree: PrefixTree, nodes_per_pass: int) -> Iterator[tuple[int, int]]:
    """Each layer and how many nodes are run at once there.

    A divisor of the nodes, so that all passes of a layer have one shape and one program.
    """
    nodes = 1  # that the pass before has given
    for layer, spec in enumerate(tree.layers):
        size = max(n for n in range(1, min(nodes_per_pass, nodes) + 1) if nodes % n == 0)
        yield layer, size
        nodes = size * len(spec.ops)


@functools.partial(jax.jit, static_argnums=2)
def _some(xs, start, size):
    """The outputs of some nodes; one call for all arrays, as each takes 0.2 ms by itself."""
    return jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, start, size), xs)


def _leaves(
    tree: PrefixTree, start: evaluate.Values, run: Callable[..., Any], nodes_per_pass: int
) -> Iterator[tuple[np.ndarray, Any]]:
    """Walks the tree depth first; yields rows, and what `run` returns for them.

    `run(layer, bitwidth, nodes, xs)` returns the outputs of some nodes' candidates; at the last
    layer, what is yielded. At any time only one pass of each level is held. Candidates are
    numbered by bitwidth, then by op.
    """

    sizes = dict(pass_sizes(tree, nodes_per_pass))

    def walk(layer, ids, xs):
        size = sizes[layer]
        ops = len(tree.layers[layer].ops)
        for start in range(0, len(ids), size):
            part = slice(start, start + size)
            inputs = xs if size == len(ids) else _some(xs, start, size)
            first = ids[part] * tree.branches(layer)
            for choice in range(len(tree.a_bits[layer])):
                children = (first[:, None] + choice * ops + np.arange(ops)).ravel()
                outputs = run(layer, choice, ids[part], inputs)
                if layer + 1 < len(tree.layers):
                    yield from walk(layer + 1, children, outputs)
                else:
                    yield children, outputs

    yield from walk(0, np.zeros(1, np.int64), start)
