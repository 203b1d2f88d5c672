"""BISMO: bit-serial matrix products on an FPGA, as in HAQ's simulator.

A matrix product takes one pass for each pair of a weight's and an activation's bit, on an array
of `rows` x `columns` dot products of `dot_bits` single bits. Its operands come through ports of
`axi_bits`. The slowest of the three decides. HAQ's simulator was not published, only one table of
it: MobileNetV2 on the cloud device, in cycles of a whole batch. These formulas were read off that
table and carried over to other arrays and ports.

References:
  Umuroglu et al., 2018, https://arxiv.org/abs/1806.08862.
  Wang et al., 2019, https://arxiv.org/abs/1811.08886, section 4.1, and the table in
  https://github.com/mit-han-lab/haq, lib/simulator/lookup_tables.
"""

import numpy as np

from qnas_jax.hardware import counts
from qnas_jax.hardware.counts import Values
from qnas_jax.hardware.devices import Bismo
from qnas_jax.space import Conv

# Both from that table; no paper explains them.
WEIGHT_FETCHES = 16  # times that the weights of a layer pass their port
CHANNEL_BITS = 16  # to which a bit of a depthwise channel's window is padded


def latency_ms(device: Bismo, conv: Conv, w_bits, a_bits) -> Values:
    """Milliseconds of a convolution for one batch of `device.batch` images.

    Args:
      device: The accelerator.
      conv: The convolution, dense or depthwise; one on a single pixel is a fully connected layer.
      w_bits: Bitwidths of weights, an int or an array.
      a_bits: Bitwidths of activations, an int or an array; both broadcast.
    """
    return cycles(device, conv, w_bits, a_bits) / device.clock_hz * 1e3


def cycles(device: Bismo, conv: Conv, w_bits, a_bits) -> Values:
    """Cycles of a convolution for one batch, float64; arguments as for `latency_ms`."""
    w_bits, a_bits = counts.checked_bits(w_bits, a_bits)
    pixels, taps = device.batch * conv.out_pixels, conv.kernel**2
    if counts.is_depthwise(conv):  # fetching its windows takes longest
        window_bits = -(-taps // CHANNEL_BITS) * CHANNEL_BITS
        return a_bits * pixels * conv.out_channels * window_bits / device.axi_bits
    if conv.in_height == conv.in_width == 1:  # loading its weights takes longest
        return w_bits * conv.weights / device.axi_bits
    dots = -(-taps * conv.in_channels // device.dot_bits)
    fetch = device.dot_bits / device.axi_bits  # of one operand's bits of a dot product
    compute = w_bits * a_bits * pixels * dots * conv.out_channels / (device.rows * device.columns)
    inputs = a_bits * pixels * dots * fetch
    weights = w_bits * conv.out_channels * dots * fetch * WEIGHT_FETCHES
    return np.maximum(compute, np.maximum(inputs, weights))
