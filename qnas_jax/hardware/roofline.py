"""The roofline model: a layer takes as long as its arithmetic or its memory traffic.

The longer of the two decides.

References:
  Williams et al., 2009, https://doi.org/10.1145/1498765.1498785.
"""

import numpy as np

from qnas_jax.hardware import counts
from qnas_jax.hardware.counts import Values
from qnas_jax.hardware.devices import Roofline
from qnas_jax.space import Conv


def latency_ms(device: Roofline, conv: Conv, w_bits, a_bits) -> Values:
    """Milliseconds of a convolution for one image.

    Both operands are widened to the wider one, and to a bitwidth that the device has: if its
    smallest is 8, then 4 bits save no time.

    Args:
      device: The device.
      conv: The convolution.
      w_bits: Bitwidths of weights, an int or an array.
      a_bits: Bitwidths of activations, an int or an array; both broadcast.
    """
    widest = np.maximum(*_widths(device, w_bits, a_bits))
    peak = np.array(device.peak_ops_per_s)[np.searchsorted(device.bits, widest)]
    moved = traffic_bytes(device, conv, w_bits, a_bits)
    return np.maximum(2 * conv.macs / peak, moved / device.bandwidth_bytes_per_s) * 1e3


def traffic_bytes(device: Roofline, conv: Conv, w_bits, a_bits) -> Values:
    """Bytes that cross the memory bus for one image; arguments as for `latency_ms`.

    Weights always do. The input and the output stay on the chip as far as they fit there together
    with the weights; the rest is stored and loaded. The output counts with the input's bitwidth.
    """
    w_width, a_width = _widths(device, w_bits, a_bits)
    weights = -(-conv.weights * w_width // 8)
    pixels = conv.in_height * conv.in_width * conv.in_channels
    features = -(-(pixels + conv.out_pixels * conv.out_channels) * a_width // 8)
    spilled = np.clip(weights + features - device.on_chip_bytes, 0, features)
    return weights + spilled


def _widths(device: Roofline, w_bits, a_bits) -> tuple[Values, Values]:
    """The smallest bitwidths of the device that hold the given ones."""
    known = np.array(device.bits)
    w_bits, a_bits = counts.checked_bits(w_bits, a_bits, most=device.bits[-1])
    return known[np.searchsorted(known, w_bits)], known[np.searchsorted(known, a_bits)]
