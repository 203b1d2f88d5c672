"""Bytes of a network: three columns that are never mixed up.

- Logical bytes (`conv_bytes`, `network_bytes`): weights at their bitwidth, each tensor rounded
  up to whole bytes, and for each output channel a 4-byte scale and a 4-byte bias. What a
  search compares.
- File bytes (`file_bytes`, and `shared_bytes` once for a network): what a file format stores.
  It has 4-bit and 8-bit numbers only, or 8-bit ones alone, so 5 to 7 bits take as much as 8,
  and 2 and 3 as much as 4.
- Runtime bytes (`runtime_bytes`): what stays in memory while the network runs, weights being
  unpacked to one byte each, whatever their bitwidth.

A float network carries 4 bytes for each weight and each bias (`float_bytes`). Scales of
activations (a few bytes a tensor) and the description of the graph are not counted.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import TypeAlias

import numpy as np

from qnas_jax import space
from qnas_jax.hardware import counts
from qnas_jax.hardware.counts import Values
from qnas_jax.space import Conv

SCALE_BYTES = 4
BIAS_BYTES = 4
FLOAT_BYTES = 4
COLUMN_SUM_BYTES = 4  # of the weights of an output channel, for the input's zero point
PACKED_BITS, CONTAINER_BITS = 4, 8  # what files have to store weights in

Column: TypeAlias = Callable[[Conv, int], Values]  # bytes of a convolution at a bitwidth


@dataclasses.dataclass(frozen=True, slots=True)
class FileFormat:
    """What a file that is exported carries beyond the logical bytes.

    Attributes:
      channel_bytes: For each output channel.
      packs: Whether weights of 4 bits and fewer are stored in pairs.
      zero_point_bytes: For each output channel too, but equal ones stand in a file once: for
        all convolutions that have as many channels.
    """

    channel_bytes: int
    packs: bool
    zero_point_bytes: int = 0


# The scale of a bias is a product of what is there; or it is stored.
ONNX_QDQ = FileFormat(channel_bytes=0, packs=True)
TFLITE = FileFormat(channel_bytes=SCALE_BYTES, packs=False, zero_point_bytes=8)


def conv_bytes(conv: Conv, w_bits) -> Values:
    """Logical bytes of one convolution at each of the bitwidths (an int or an array)."""
    weights = -(-conv.weights * np.asarray(w_bits, np.int64) // 8)
    return weights + conv.out_channels * (SCALE_BYTES + BIAS_BYTES)


def file_bytes(conv: Conv, w_bits, file_format: FileFormat) -> Values:
    """Bytes that one convolution takes in a file; a column once the format is given.

    Args:
      conv: The convolution.
      w_bits: Bitwidths of weights, an int or an array.
      file_format: `ONNX_QDQ` or `TFLITE`.
    """
    stored = conv_bytes(conv, container_bits(w_bits, file_format))
    return stored + conv.out_channels * file_format.channel_bytes


def shared_bytes(out_channels: Iterable[int], file_format: FileFormat) -> int:
    """Bytes that a file holds of all its convolutions together, beside those of each."""
    return file_format.zero_point_bytes * sum(set(out_channels))


def container_bits(w_bits, file_format: FileFormat) -> Values:
    """Bits in which a file stores a weight of so many."""
    w_bits, _ = counts.checked_bits(w_bits, CONTAINER_BITS)
    packed = file_format.packs & (w_bits <= PACKED_BITS)
    return np.where(packed, PACKED_BITS, CONTAINER_BITS)


def runtime_bytes(conv: Conv) -> int:
    """Bytes that a runtime holds of one convolution, the same at all bitwidths.

    Weights as int8; for each output channel the scale, the bias as int32 and the sum of its
    weights, which takes the input's zero point out of the products.
    """
    return conv.weights + conv.out_channels * (SCALE_BYTES + BIAS_BYTES + COLUMN_SUM_BYTES)


def network_bytes(convs: Iterable[Conv], w_bits: int, column: Column = conv_bytes) -> int:
    """Bytes of several convolutions, all at one bitwidth; logical ones by default."""
    return int(sum(column(conv, w_bits) for conv in convs))


def float_bytes(convs: Iterable[Conv]) -> int:
    """Bytes of several convolutions in float32, batch norm folded."""
    return sum(FLOAT_BYTES * (conv.weights + conv.out_channels) for conv in convs)


def layer_bytes(
    block: space.Block, layer: int, choice: space.Choice, column: Column = conv_bytes
) -> int:
    """Bytes of what a subnet takes at one layer of a block; logical ones by default."""
    in_channels, stride = block.layer_shape(layer)
    shape = (1, 1, in_channels)  # the size does not depend on the pixels
    convs = space.mbconv_convs(choice.op, "", shape, block.channels, stride, block.dilation)
    return network_bytes(convs, choice.w_bits, column)


def subnet_bytes(
    blocks: Iterable[space.Block], subnet: space.Subnet, column: Column = conv_bytes
) -> int:
    """Bytes of a subnet's blocks; logical ones by default."""
    return sum(
        layer_bytes(block, layer, choice, column)
        for block, choices in zip(blocks, subnet, strict=True)
        for layer, choice in enumerate(choices)
    )
