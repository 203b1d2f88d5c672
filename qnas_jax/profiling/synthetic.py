"""Whole networks with made-up weights, to be timed: nothing is trained or calibrated.

What a layer takes does not depend on its numbers. The graphs are those that
`fold.of_network` draws, in milliseconds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qnas_jax import space
from qnas_jax.export import graph
from qnas_jax.export.fold import IMAGE, PIXELS
from qnas_jax.export.graph import Graph, Node, Shape, Tensor
from qnas_jax.hardware import board
from qnas_jax.nn.conv import DEFAULT_BITS, LINEAR, RELU, RELU6
from qnas_jax.nn.deeplab import DeepLabV3

FIXED = (DEFAULT_BITS, DEFAULT_BITS)  # weights and activations of all that is not searched
_REACH = 4.0  # what no activation bounds lies in [-4, 4)


class _Draft(NamedTuple):
    """A graph in the making.

    Attributes:
      rng: Draws the weights.
      quantized: Whether tensors are codes.
      tensors: What there is so far, by name.
      nodes: What gives them.
    """

    rng: np.random.Generator
    quantized: bool
    tensors: dict[str, Tensor]
    nodes: list[Node]

    def tensor(self, name: str, shape: Shape, bounds: graph.Bounds, bits: int) -> Tensor:
        """A tensor, on a grid where quantized."""
        return _codes(name, shape, bounds, bits) if self.quantized else Tensor(name, shape)

    def append(self, node: Node) -> str:
        """Adds a node; returns the name of what it gives."""
        self.tensors[node.out.name] = node.out
        self.nodes.append(node)
        return node.out.name

    def conv(self, conv: space.Conv, x: str, bounds: graph.Bounds, bits: space.Bits) -> str:
        """Adds a convolution; values keep their size, so that no code saturates throughout."""
        w_bits, a_bits = bits
        inputs = conv.in_channels // conv.groups
        shape = (conv.kernel, conv.kernel, inputs, conv.out_channels)
        deviation = np.sqrt(2 / (conv.kernel**2 * inputs))
        weights = (deviation * self.rng.standard_normal(shape, np.float32)).astype(np.float32)
        bias = self.rng.standard_normal(conv.out_channels, np.float32) / 2
        height, width = (-(-side // conv.stride) for side in (conv.in_height, conv.in_width))
        out = self.tensor(conv.name, (height, width, conv.out_channels), bounds, a_bits)
        how = (conv.stride, conv.dilation, conv.groups, bounds)
        read = self.tensors[x].grid
        if not self.quantized or read is None:
            return self.append(graph.Conv(out, x, weights, bias, *how))
        scale = np.abs(weights).max((0, 1, 2)) / np.float32(2 ** (w_bits - 1) - 1)
        codes = np.rint(weights / scale).astype(np.int8)
        bias_codes = np.rint(bias / (read.scale * scale)).astype(np.int32)
        return self.append(graph.Conv(out, x, codes, bias, *how, w_bits, scale, bias_codes))


def _codes(name: str, shape: Shape, bounds: graph.Bounds, bits: int) -> Tensor:
    """A tensor on the grid that such an activation fills."""
    low, high = max(bounds[0], -_REACH), bounds[1] if np.isfinite(bounds[1]) else _REACH
    scale = (high - low) / (2**bits - 1)
    return Tensor(name, shape, graph.Grid(float(scale), int(np.rint(-low / scale)), bits))


def _draft(x: Tensor, quantized: bool, seed: int) -> _Draft:
    return _Draft(np.random.default_rng(seed), quantized, {x.name: x}, [])


def network(
    model: DeepLabV3,
    bits: Sequence[Sequence[space.Bits]] | None,
    image_shape: Shape,
    seed: int = 0,
) -> Graph:
    """The whole segmentation network: bytes of an image in, its class map out.

    Args:
      model: The network; its parameters are not asked for.
      bits: Of the searched layers by block, weights' and activations'; None for float.
      image_shape: Height, width and channels of the pictures.
      seed: Of the weights.
    """
    image = Tensor(IMAGE, image_shape, PIXELS)
    draft = _draft(image, bits is not None, seed)
    x = IMAGE
    if bits is None:
        x = draft.append(graph.Dequantize(Tensor("pixels", image_shape), x))
    encoder = model.encoder
    height, width, channels = image_shape
    stem = space.Conv("encoder/stem", 3, 2, 1, 1, channels, encoder.stem, height, width)
    x = draft.conv(stem, x, RELU6, FIXED)
    first = (space.Op(kernel=3, expansion=1),) * encoder.first.depth
    x = _block(draft, "encoder/block0/", encoder.first, first, [FIXED] * len(first), x)
    for number, (block, path) in enumerate(zip(encoder.blocks, encoder.paths, strict=True)):
        of_block = bits[number] if bits else [FIXED] * len(path)
        x = _block(draft, f"encoder/block{number + 1}/", block, path, of_block, x)
    _head(draft, model, x, (height, width))
    return Graph(image, tuple(draft.nodes))


def _block(draft: _Draft, prefix: str, block: space.Block, path, bits, x: str) -> str:
    for layer, (op, (w_bits, a_bits)) in enumerate(zip(path, bits, strict=True)):
        place, stride = f"{prefix}layer{layer}", block.layer_shape(layer)[1]
        below = draft.tensors[x].shape
        y = x
        convs = space.mbconv_convs(op, place, below, block.channels, stride, block.dilation)
        for conv in convs:
            bounds = LINEAR if conv.name.endswith("/project") else RELU6
            y = draft.conv(conv, y, bounds, (w_bits, a_bits))
        if stride == 1 and below[-1] == block.channels:
            out = draft.tensor(f"{place}/add", draft.tensors[y].shape, LINEAR, a_bits)
            y = draft.append(graph.Add(out, (x, y)))
        x = y
    return x


def _head(draft: _Draft, model: DeepLabV3, x: str, image_size: tuple[int, int]) -> None:
    """Atrous spatial pyramid pooling, the classifier, and the class map."""
    height, width, channels = draft.tensors[x].shape
    features, a_bits = model.head_channels, FIXED[1]

    def conv(name, kernel, dilation, out_channels, x, bounds):
        rows, columns, in_channels = draft.tensors[x].shape
        shape = (in_channels, out_channels, rows, columns)
        return draft.conv(space.Conv(name, kernel, 1, dilation, 1, *shape), x, bounds, FIXED)

    mean = draft.append(graph.Mean(draft.tensor("aspp/mean", (1, 1, channels), LINEAR, a_bits), x))
    pool = conv("aspp/pool", 1, 1, features, mean, RELU)
    spread = draft.tensor("aspp/broadcast", (height, width, features), RELU, a_bits)
    branches = [draft.append(graph.Broadcast(spread, pool))]
    branches.append(conv("aspp/point", 1, 1, features, x, RELU))
    branches += [conv(f"aspp/rate{rate}", 3, rate, features, x, RELU) for rate in model.rates]
    shape = (height, width, features * len(branches))
    concat = draft.tensor("aspp/concat", shape, RELU, a_bits)
    x = draft.append(graph.Concat(concat, tuple(branches)))
    x = conv("aspp/join", 3, 1, features, x, RELU)
    x = conv("classifier", 1, 1, model.classes, x, LINEAR)
    if draft.quantized:
        x = draft.append(graph.Dequantize(Tensor("logits", (height, width, model.classes)), x))
    x = draft.append(graph.Resize(Tensor("resized", (*image_size, model.classes)), x))
    draft.append(graph.ArgMax(Tensor("classes", (*image_size, 1)), x))


def calls() -> dict[str, Graph]:
    """A tiny convolution and two in a row, to find out what a call takes; see `board.CALLS`."""
    return {name: _pointwise(count) for count, name in enumerate(board.CALLS, 1)}


def _pointwise(count: int) -> Graph:
    read = _codes("x", board.CALL_SHAPE, RELU, DEFAULT_BITS)
    draft = _draft(read, True, 0)
    (side, _, channels), x = read.shape, read.name
    for number in range(count):
        conv = space.Conv(f"conv{number}", 1, 1, 1, 1, channels, channels, side, side)
        x = draft.conv(conv, x, RELU, FIXED)
    return Graph(read, tuple(draft.nodes))
