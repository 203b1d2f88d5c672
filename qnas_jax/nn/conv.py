"""Convolution, batch norm and activation as one layer that can be quantized.

The collections that `apply(variables, images)` is given decide what it computes:

- without `quant`: float;
- with `quant`: quantized, with the bitwidths and ranges of that collection;
- with `quant` mutable: calibration. Every range grows to hold the values of the batch, and
  each layer reads the quantized output of the layers before it;
- with `batch_stats` mutable, not training: the statistics of the norms become those of the
  batch.

The layer computes in the type of its input; parameters and statistics are float32.

Batch norm is not folded here. Weights that are quantized per output channel keep their codes
when a norm is folded into them (see `quant/affine.py`), so both orders give the same values.
"""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from qnas_jax.kernels import convolution
from qnas_jax.nn.fake_quant import PIXEL_RANGE, FakeQuant, default_bits, is_quantized
from qnas_jax.quant import affine, lsq

# An activation is the interval that it clips to.
RELU6 = (0.0, 6.0)
RELU = (0.0, math.inf)
LINEAR = (-math.inf, math.inf)

# Leaves of `quant` that only some policies have, float32[channels].
W_SCALE = "w_scale"  # the scale of each output channel, where it was learned
W_RANGE = "w_range"  # the magnitude of the highest code, where it is not that of the channel

STATISTICS_DECAY = 0.9  # of the running mean and variance, per training step


class Norm(nn.Module):
    """Batch norm, then the activation.

    Attributes:
      bounds: The interval that the activation clips to.
    """

    bounds: tuple[float, float]

    @nn.compact
    def __call__(self, u: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h w c"]:
        """Normalizes by the batch when training or recalibrating, else as stored."""
        channels = u.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        stored = self.is_mutable_collection("batch_stats") and not self.is_initializing()
        if train or stored:
            y, mean, var = convolution.norm_act(u, scale, bias, self.bounds)
            if stored:
                decay = STATISTICS_DECAY if train else 0.0
                old_mean, old_var = self._statistics(channels)
                old_mean.value = decay * old_mean.value + (1 - decay) * mean
                old_var.value = decay * old_var.value + (1 - decay) * var
            return y
        mean, var = self._statistics(channels)
        factor = scale * lax.rsqrt(var.value + convolution.NORM_EPSILON)
        return jnp.clip(convolution.affine(u, factor, bias - mean.value * factor), *self.bounds)

    def _statistics(self, channels):
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        return mean, self.variable("batch_stats", "var", jnp.ones, (channels,))


class ConvBnAct(nn.Module):
    """Convolution, batch norm, activation and fake quantization of the output.

    Attributes:
      features: Output channels.
      kernel: Side of the kernel, odd.
      depthwise: One kernel per channel; `features` is then the number of input channels.
      bounds: The interval that the activation clips to.
      norm: Batch norm, or a bias where false.
      grid: Whether the output has a grid of its own. False for a layer that only a `Concat`
        reads: joined tensors share one grid.
      padding: What lies around the image, for each input channel; zero where it is empty. Only
        for a dense layer that reads pixels. Where quantized, it is rounded to their grid.
    """

    features: int
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    depthwise: bool = False
    bounds: tuple[float, float] = RELU6
    norm: bool = True
    grid: bool = True
    padding: tuple[float, ...] = ()

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w i"], train: bool = False
    ) -> Float[Array, "n h2 w2 o"]:
        """Output in real units, on the grid of `a_bits` where quantized."""
        inputs = 1 if self.depthwise else x.shape[-1]
        shape = (self.kernel, self.kernel, inputs, self.features)
        w = self.param("kernel", nn.initializers.zeros, shape)  # see nn/init.py
        if self.is_initializing():
            self.variable("quant", "w_bits", default_bits)
        if is_quantized(self, "w_bits"):
            w = self._on_grid(w, self.variable("quant", "w_bits", default_bits).value)
        w = w.astype(x.dtype)
        if self.depthwise:
            u = convolution.depthwise(x, w[:, :, 0], self.stride, self.dilation)
        elif self.kernel == 1 and self.stride == 1:
            u = convolution.pointwise(x, w[0, 0])
        else:
            u = self._padded_conv(x, w)
        if self.norm:
            y = Norm(self.bounds, name="norm")(u, train)
        else:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            bias = lax.broadcast_to_rank(bias.astype(u.dtype), u.ndim)
            y = jnp.clip(u + bias, *self.bounds)
        return FakeQuant(name="out")(y) if self.grid else y

    def _on_grid(self, w, bits):
        """Weights on the grid over their range or a given one, or on that of learned scales."""
        if self.has_variable("quant", W_SCALE):
            return lsq.fake_quant_weight(w, self.get_variable("quant", W_SCALE), bits)
        return affine.fake_quant_weight(w, bits, self.get_variable("quant", W_RANGE))

    def _padded_conv(self, x, w):
        """A dense convolution. What lies around is subtracted first, and so becomes zero."""
        if not any(self.padding):
            return convolution.conv(x, w, self.stride, self.dilation)
        around = jnp.array(self.padding, jnp.float32)
        if is_quantized(self, "w_bits"):
            around = affine.fake_quant(around, jnp.array(PIXEL_RANGE), default_bits())
        around = around.astype(x.dtype)
        u = convolution.conv(x - around[None, None, None], w, self.stride, self.dilation)
        return u + jnp.einsum("klio,i->o", w, around)[None, None, None]
