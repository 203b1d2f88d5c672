"""Counts of what a convolution computes, on any device; and checks for all cost models.

MACs are `Conv.macs`.
"""

import numpy as np

from qnas_jax.errors import InputError
from qnas_jax.space import Conv

MOST_BITS = 8
Values = np.ndarray | np.integer | np.floating  # one for each given bitwidth, or one


def bitops(conv: Conv, w_bits, a_bits) -> Values:
    """Products of single bits for one image: MACs x w_bits x a_bits.

    Args:
      conv: The convolution.
      w_bits: Bitwidths of weights, an int or an array.
      a_bits: Bitwidths of activations, an int or an array; both broadcast.
    """
    w_bits, a_bits = checked_bits(w_bits, a_bits)
    return conv.macs * w_bits * a_bits


def checked_bits(w_bits, a_bits, most: int = MOST_BITS) -> tuple[np.ndarray, np.ndarray]:
    """Both bitwidths as int64 of one shape.

    Raises:
      InputError: A bitwidth is below 1 or above `most`.
    """
    w_bits, a_bits = np.asarray(w_bits, np.int64), np.asarray(a_bits, np.int64)
    for name, bits in (("w_bits", w_bits), ("a_bits", a_bits)):
        if bits.min() < 1 or bits.max() > most:
            raise InputError(f"{name}={bits.tolist()}: this device's model knows 1 to {most} bits")
    w_bits, a_bits = np.broadcast_arrays(w_bits, a_bits)
    return w_bits, a_bits


def is_depthwise(conv: Conv) -> bool:
    """Whether each output channel reads only one input channel.

    Raises:
      InputError: The convolution is neither dense nor depthwise.
    """
    if conv.groups == 1:
        return False
    if conv.groups == conv.in_channels == conv.out_channels:
        return True
    raise InputError(
        f"{conv.name}: groups={conv.groups} of {conv.in_channels} channels; the models of"
        " accelerators know dense (groups=1) and depthwise convolutions"
    )
