"""Bytes of a network: three columns that are never mixed up.

- Logical bytes (`conv_bytes`, `network_bytes`): weights at their bitwidth, each tensor rounded
  up to whole bytes, and for each output channel a 4-byte scale and a 4-byte bias. What a
  search compares.
- File bytes (`file_bytes`): what a file format stores. It has 4-bit and 8-bit numbers only, so
  5 to 7 bits take as much as 8, and 2 and 3 as much as 4.
- Runtime bytes (`runtime_bytes`): what stays in memory while the network runs, weights being
  unpacked to one byte each, whatever their bitwidth.

A float network carries 4 bytes for each weight and each bias (`float_bytes`). Scales of
activations (a few bytes a tensor) and the description of the graph are not counted.
"""

import dataclasses
from collections.abc import Iterable

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


@dataclasses.dataclass(frozen=True, slots=True)
class FileFormat:
    """What a file carries for each output channel beside its weights and their scale.

    Attributes:
      zero_point_bits: Of the weights' zero point; none for the width of a stored weight.
      bias_bytes: The bias, with its own scale and zero point where it has them.
    """

    zero_point_bits: int | None
    bias_bytes: int


# DequantizeLinear takes a zero point of the type that it reads, and of a bias a scale.
ONNX_QDQ = FileFormat(zero_point_bits=None, bias_bytes=BIAS_BYTES + SCALE_BYTES)
# Scales are float32 and zero points int64, and biases have their own; so do files of
# litert-converter 0.5.0.
TFLITE = FileFormat(zero_point_bits=64, bias_bytes=BIAS_BYTES + SCALE_BYTES + 8)


def conv_bytes(conv: Conv, w_bits) -> Values:
    """Logical bytes of one convolution at each of the bitwidths (an int or an array)."""
    weights = -(-conv.weights * np.asarray(w_bits, np.int64) // 8)
    return weights + conv.out_channels * (SCALE_BYTES + BIAS_BYTES)


def file_bytes(conv: Conv, w_bits, file_format: FileFormat) -> Values:
    """Bytes that one convolution takes in a file.

    Args:
      conv: The convolution.
      w_bits: Bitwidths of weights, an int or an array.
      file_format: `ONNX_QDQ` or `TFLITE`.
    """
    w_bits, _ = counts.checked_bits(w_bits, CONTAINER_BITS)
    stored_bits = np.where(w_bits <= PACKED_BITS, PACKED_BITS, CONTAINER_BITS)
    zero_point_bits = file_format.zero_point_bits or stored_bits
    channels = conv.out_channels
    packed = -(-conv.weights * stored_bits // 8) - (-channels * zero_point_bits // 8)
    return packed + channels * (SCALE_BYTES + file_format.bias_bytes)


def runtime_bytes(conv: Conv) -> int:
    """Bytes that a runtime holds of one convolution, the same at all bitwidths.

    Weights as int8; for each output channel the scale, the bias as int32 and the sum of its
    weights, which takes the input's zero point out of the products.
    """
    return conv.weights + conv.out_channels * (SCALE_BYTES + BIAS_BYTES + COLUMN_SUM_BYTES)


def network_bytes(convs: Iterable[Conv], w_bits: int) -> int:
    """Logical bytes of several convolutions, all at one bitwidth."""
    return int(sum(conv_bytes(conv, w_bits) for conv in convs))


def float_bytes(convs: Iterable[Conv]) -> int:
    """Bytes of several convolutions in float32, batch norm folded."""
    return sum(FLOAT_BYTES * (conv.weights + conv.out_channels) for conv in convs)


def layer_bytes(block: space.Block, layer: int, choice: space.Choice) -> int:
    """Bytes of what a subnet takes at one layer of a block."""
    in_channels, stride = block.layer_shape(layer)
    shape = (1, 1, in_channels)  # the size does not depend on the pixels
    convs = space.mbconv_convs(choice.op, "", shape, block.channels, stride, block.dilation)
    return network_bytes(convs, choice.w_bits)


def subnet_bytes(blocks: Iterable[space.Block], subnet: space.Subnet) -> int:
    """Bytes of a subnet's blocks."""
    return sum(
        layer_bytes(block, layer, choice)
        for block, choices in zip(blocks, subnet, strict=True)
        for layer, choice in enumerate(choices)
    )
