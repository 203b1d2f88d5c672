"""What a network's file holds: weights at their bitwidth, scales and biases.

A float network carries 4 bytes for each weight and each bias. A quantized one carries its
weights at `w_bits` (each tensor rounded up to whole bytes), and for each output channel
a 4-byte scale and a 4-byte bias. Scales of activations (a few bytes a tensor) and the
description of the graph are not counted.
"""

from collections.abc import Iterable

import numpy as np

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
