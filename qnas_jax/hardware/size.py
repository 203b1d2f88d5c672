"""What a network's file holds: weights at their bitwidth, scales and biases.

A float network carries 4 bytes for each weight and each bias. A quantized one carries its
weights at `w_bits` (each tensor rounded up to whole bytes), and for each output channel
a 4-byte scale and a 4-byte bias. Scales of activations (a few bytes a tensor) and the
description of the graph are not counted.
"""

from collections.abc import Iterable

import numpy as np

from qnas_jax import space
from qnas_jax.space import Conv

SCALE_BYTES = 4
BIAS_BYTES = 4
FLOAT_BYTES = 4


def conv_bytes(conv: Conv, w_bits) -> np.ndarray | np.integer:
    """Bytes of one quantized convolution at each of the bitwidths (an int or an array)."""
    weights = -(-conv.weights * np.asarray(w_bits, np.int64) // 8)
    return weights + conv.out_channels * (SCALE_BYTES + BIAS_BYTES)


def network_bytes(convs: Iterable[Conv], w_bits: int) -> int:
    """Bytes of several quantized convolutions, all at one bitwidth."""
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
