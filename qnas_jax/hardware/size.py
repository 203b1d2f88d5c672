"""The size of a network in bytes, in three senses.

- Logical bytes (`conv_bytes`, `network_bytes`), which a search compares: weights at their
  bitwidth, each tensor rounded up to whole bytes, and for each output channel a 4-byte scale and a
  4-byte bias. A target may have one scale for a layer.
- File bytes (`file_bytes`, and `shared_bytes` once for a network): the bytes in a file. File
  formats have 4-bit and 8-bit numbers, or only 8-bit ones, so 5 to 7 bits take as much as 8, and 2
  and 3 as much as 4.
- Runtime bytes (`runtime_bytes`): the bytes in memory while the network runs. Weights are unpacked
  to one byte each at every bitwidth.

A float network has 4 bytes for each weight and each bias (`float_bytes`). Scales of activations (a
few bytes a tensor) and the description of the graph are not counted.
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
PACKED_BITS, CONTAINER_BITS = 4, 8  # in which files store weights

Column: TypeAlias = Callable[[Conv, int], Values]  # bytes of a convolution at a bitwidth


@dataclasses.dataclass(frozen=True, slots=True)
class FileFormat:
    """What an exported file stores in addition to the logical bytes.

    Attributes:
      channel_bytes: Bytes for each output channel that has a scale.
      packs: Whether weights of at most 4 bits are stored in pairs.
      zero_point_bytes: Bytes for each output channel that convolutions with the same number of
        channels share.
    """

    channel_bytes: int
    packs: bool
    zero_point_bytes: int = 0


# In ONNX the scale of a bias is the product of stored scales; TFLite stores it.
ONNX_QDQ = FileFormat(channel_bytes=0, packs=True)
TFLITE = FileFormat(channel_bytes=SCALE_BYTES, packs=False, zero_point_bytes=8)


def conv_bytes(conv: Conv, w_bits, per_channel: bool = True) -> Values:
    """Logical bytes of one convolution at each of the bitwidths.

    Args:
      conv: The convolution.
      w_bits: Bitwidths of weights, an int or an array.
      per_channel: Whether each output channel has a scale, or all have one.
    """
    weights = -(-conv.weights * np.asarray(w_bits, np.int64) // 8)
    return weights + _scales(conv, per_channel) * SCALE_BYTES + conv.out_channels * BIAS_BYTES


def _scales(conv: Conv, per_channel: bool) -> int:
    return conv.out_channels if per_channel else 1


def kmeans_bytes(conv: Conv, w_bits) -> Values:
    """Logical bytes of one convolution with shared weights (`quant/clusters.py`).

    The number of each weight's centre at its bitwidth, the centres as floats, and for each output
    channel a 4-byte bias.
    """
    w_bits = np.asarray(w_bits, np.int64)
    numbers = -(-conv.weights * w_bits // 8)
    return numbers + FLOAT_BYTES * 2**w_bits + conv.out_channels * BIAS_BYTES


def file_bytes(conv: Conv, w_bits, file_format: FileFormat, per_channel: bool = True) -> Values:
    """Bytes of one convolution in a file; with the format given, a `Column`.

    Args:
      conv: The convolution.
      w_bits: Bitwidths of weights, an int or an array.
      file_format: `ONNX_QDQ` or `TFLITE`.
      per_channel: Whether each output channel has a scale, or all have one.
    """
    stored = conv_bytes(conv, container_bits(w_bits, file_format), per_channel)
    return stored + _scales(conv, per_channel) * file_format.channel_bytes


def shared_bytes(out_channels: Iterable[int], file_format: FileFormat) -> int:
    """Bytes in a file that its convolutions share, from the output channels of each."""
    return file_format.zero_point_bytes * sum(set(out_channels))


def container_bits(w_bits, file_format: FileFormat) -> Values:
    """Bits in which a file stores a weight of a bitwidth."""
    w_bits, _ = counts.checked_bits(w_bits, CONTAINER_BITS)
    packed = file_format.packs & (w_bits <= PACKED_BITS)
    return np.where(packed, PACKED_BITS, CONTAINER_BITS)


def runtime_bytes(conv: Conv) -> int:
    """Bytes of one convolution in a runtime's memory, the same at all bitwidths.

    Weights as int8; for each output channel the scale, the bias as int32 and the sum of its
    weights, which corrects the products for the input's zero point.
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
    """Bytes of a subnet's choice for one layer of a block; logical ones by default."""
    in_channels, stride = block.layer_shape(layer)
    shape = (1, 1, in_channels)  # the size does not depend on the pixels
    dilation = block.layer_dilation(layer)
    convs = space.mbconv_convs(choice.op, "", shape, block.channels, stride, dilation)
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
