"""The search space and its costs as plain data: ops, blocks, subnets and their text form.

Nothing here knows a network or an array library.
"""

import dataclasses
import re
from typing import NamedTuple


class Cost(NamedTuple):
    """A quantity that a search can minimize together with the NSR.

    Attributes:
      name: Its name in configs, tables and files; the last part is the unit.
      unit: The unit of its values.
      kind: The type of its values.
      title: Its name in text and on axes.
      lowest: How an error message names the subnet with the lowest value.
      shown_unit: The unit in reports and figures.
      per_shown_unit: Units in a shown unit.
    """

    name: str
    unit: str
    kind: type[int] | type[float]
    title: str
    lowest: str
    shown_unit: str
    per_shown_unit: float


# All costs, by name. A new one is one more line here, and a model or a column of measurements.
COSTS: dict[str, Cost] = {
    cost.name: cost
    for cost in (
        Cost("size_bytes", "bytes", int, "size", "the smallest subnet has", "kB", 1e3),
        Cost("latency_ms", "ms", float, "latency", "the fastest subnet takes", "ms", 1.0),
        Cost("energy_mj", "mJ", float, "energy", "the lowest-energy subnet takes", "mJ", 1.0),
    )
}


class Op(NamedTuple):
    """A candidate for a layer: an inverted residual (MBConv)."""

    kernel: int  # of the depthwise convolution: 3, 5, 7, ...
    expansion: int  # hidden channels over input channels

    def __str__(self) -> str:
        return f"k{self.kernel}e{self.expansion}"


def largest_op(ops: tuple[Op, ...]) -> Op:
    """The op that holds all others: the largest kernel and the largest expansion."""
    return Op(max(op.kernel for op in ops), max(op.expansion for op in ops))


Bits = tuple[int, int]  # of weights, of activations
LEAST_BITS, MOST_BITS = 2, 8  # of weights and of activations


class Choice(NamedTuple):
    """A subnet's choice for one layer: an op and its bitwidths."""

    op: Op
    w_bits: int
    a_bits: int


Subnet = tuple[tuple[Choice, ...], ...]  # [block][layer]
Path = tuple[Op, ...]  # the ops of one block


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """The layers between two boundaries of the teacher.

    Only the first layer has the stride and changes the number of channels.

    Attributes:
      dilation: Of the depthwise convolutions of the layers that `dilate` names.
      dilate: "all" layers, or the "first" alone.
    """

    in_channels: int
    channels: int
    stride: int
    dilation: int
    depth: int
    dilate: str = "all"

    def layer_shape(self, layer: int) -> tuple[int, int]:
        """Input channels and stride of a layer."""
        return (self.in_channels, self.stride) if layer == 0 else (self.channels, 1)

    def layer_dilation(self, layer: int) -> int:
        """Dilation of a layer's depthwise convolution."""
        return self.dilation if layer == 0 or self.dilate == "all" else 1


@dataclasses.dataclass(frozen=True, slots=True)
class Space:
    """The blocks of a network and the ops that each of their layers chooses from."""

    blocks: tuple[Block, ...]
    ops: tuple[Op, ...]

    def rows(self, block: int) -> int:
        """Number of paths of a block."""
        return len(self.ops) ** self.blocks[block].depth


class Conv(NamedTuple):
    """A quantizable convolution: everything that its cost depends on."""

    name: str  # in the network, e.g. "block1/layer0/expand"
    kernel: int
    stride: int
    dilation: int
    groups: int
    in_channels: int
    out_channels: int
    in_height: int
    in_width: int

    @property
    def weights(self) -> int:
        """Number of weights, biases not counted."""
        return self.kernel**2 * self.in_channels // self.groups * self.out_channels

    @property
    def out_pixels(self) -> int:
        """Pixels of the output map."""
        return -(-self.in_height // self.stride) * -(-self.in_width // self.stride)

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations for one image."""
        return self.weights * self.out_pixels


class Site(NamedTuple):
    """The place of a unit of a network (a convolution, a sum, ...) in a search space."""

    block: int  # from 0, as in `Subnet`, as is the layer
    layer: int
    part: str  # of the layer: "expand", "depthwise", "project" or "add"

    @property
    def layer_name(self) -> str:
        """Block and layer as tables name them: "block1/layer0"."""
        return f"block{self.block + 1}/layer{self.layer}"


def scaled_channels(channels: int, width: float) -> int:
    """Channels at a width multiplier: the multiple of 8 nearest to the product.

    Never less than 8 and never less than 90 % of the product.

    References:
      Sandler et al., 2018, https://arxiv.org/abs/1801.04381, the authors' code.
    """
    exact = channels * width
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * exact else rounded


MOBILENET_V2_STEM = 32
# (channels, layers) of each group of inverted residuals; the first has expansion 1.
MOBILENET_V2 = ((16, 1), (24, 2), (32, 3), (64, 4), (96, 3), (160, 3), (320, 1))


def mobilenet_v2_blocks(
    width: float, strides: tuple[int, ...], dilations: tuple[int, ...], dilate: str = "all"
) -> tuple[Block, ...]:
    """MobileNetV2's seven groups of inverted residuals; the first has expansion 1.

    Args:
      width: Width multiplier.
      strides: Stride of each group, seven numbers.
      dilations: Dilation of each group's depthwise convolutions, seven numbers.
      dilate: Which layers of a group are dilated, see `Block`; in MMSegmentation the "first".

    References:
      Sandler et al., 2018, https://arxiv.org/abs/1801.04381, table 2.
    """
    channels = [scaled_channels(MOBILENET_V2_STEM, width)]
    channels += [scaled_channels(c, width) for c, _ in MOBILENET_V2]
    return tuple(
        Block(channels[i], channels[i + 1], strides[i], dilations[i], layers, dilate)
        for i, (_, layers) in enumerate(MOBILENET_V2)
    )


def mbconv_convs(
    op: Op, name: str, shape: tuple[int, int, int], channels: int, stride: int, dilation: int
) -> list[Conv]:
    """The convolutions of an inverted residual on an input [height, width, channels]."""
    height, width, in_channels = shape
    hidden = in_channels * op.expansion
    depthwise = Conv(
        f"{name}/depthwise", op.kernel, stride, dilation, hidden, hidden, hidden, height, width
    )  # fmt: skip
    height, width = -(-height // stride), -(-width // stride)
    project = Conv(f"{name}/project", 1, 1, 1, 1, hidden, channels, height, width)
    if op.expansion == 1:
        return [depthwise, project]
    expand = Conv(f"{name}/expand", 1, 1, 1, 1, in_channels, hidden, *shape[:2])
    return [expand, depthwise, project]


def format_path(path: Path) -> str:
    """The text form of a block's ops: `k3e6-k5e3`."""
    return "-".join(str(op) for op in path)


def block_convs(block: Block, ops: tuple[Op, ...], shape: tuple[int, int]) -> list[list[Conv]]:
    """The convolutions of all ops, layer by layer, on features of that height and width."""
    height, width = shape
    layers = []
    for layer in range(block.depth):
        channels, stride = block.layer_shape(layer)
        size = (height, width, channels)
        how = (block.channels, stride, block.layer_dilation(layer))
        found = (mbconv_convs(op, "", size, *how) for op in ops)
        layers.append([conv for convs in found for conv in convs])
        height, width = -(-height // stride), -(-width // stride)
    return layers


def format_subnet(subnet: Subnet) -> str:
    """The text form: `k3e6-k5e3.w8a8_k7e6w4a8-k3e3w8a8`, blocks joined by `_`.

    A block whose layers share their bitwidths has them once, after its ops; else each op has them.
    """
    texts = []
    for block in subnet:
        bits = {(c.w_bits, c.a_bits) for c in block}
        if len(bits) == 1:
            (w_bits, a_bits) = bits.pop()
            texts.append(f"{format_path(tuple(c.op for c in block))}.w{w_bits}a{a_bits}")
        else:
            texts.append("-".join(f"{c.op}w{c.w_bits}a{c.a_bits}" for c in block))
    return "_".join(texts)


_LAYER = re.compile(r"k(\d+)e(\d+)(?:w(\d+)a(\d+))?")
_BITS = re.compile(r"w(\d+)a(\d+)")


def parse_subnet(text: str) -> Subnet:
    """Reads the text form; the inverse of `format_subnet`.

    Raises:
      ValueError: The text is not a subnet; the message names the part that is wrong.
    """
    return tuple(_parse_block(block) for block in text.strip().split("_"))


def _parse_block(text: str) -> tuple[Choice, ...]:
    layers, dot, shared = text.partition(".")
    bits = _BITS.fullmatch(shared) if dot else None
    if dot and not bits:
        raise ValueError(f"{shared!r} in {text!r}: bitwidths are written like w8a8")
    choices = []
    for layer in layers.split("-"):
        match = _LAYER.fullmatch(layer)
        if not match or bool(match[3]) == bool(bits):
            raise ValueError(f"{layer!r} in {text!r}: write k3e6-k5e3.w8a8, or k3e6w4a8-k5e3w8a8")
        w_bits, a_bits = (bits[1], bits[2]) if bits else (match[3], match[4])
        choices.append(Choice(Op(int(match[1]), int(match[2])), int(w_bits), int(a_bits)))
    return tuple(choices)
