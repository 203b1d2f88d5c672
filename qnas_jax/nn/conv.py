"""The unit that gets quantized: convolution, batch norm and activation as one layer.

What `apply(variables, images)` computes is decided by the collections it is given:

- without `quant`: float;
- with `quant`: quantized as that collection says (`w_bits`, `a_bits` and `range` are
  arrays, so they may be traced, vmapped, or trained through);
- with `quant` mutable: calibration; every range grows to hold what the batch shows, and
  later layers see the quantized output of the earlier ones;
- with `batch_stats` mutable, not training: the norms' statistics are replaced by the
  batch's own.

The input's type is what is computed in; parameters and the norms' statistics are float32.

Batch norm is never folded here: weights quantized per output channel keep their codes
under folding (see `quant/affine.py`), so both orders give the same values.
"""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from qnas_jax.kernels import convolution
from qnas_jax.quant import affine, calibrate

# An activation is the interval that it clips to.
RELU6 = (0.0, 6.0)
RELU = (0.0, math.inf)
LINEAR = (-math.inf, math.inf)

STATISTICS_DECAY = 0.9  # of the running mean and variance, per training step
DEFAULT_BITS = 8


def _bits():
    return jnp.int32(DEFAULT_BITS)


def _is_quantized(module: nn.Module, leaf: str) -> bool:
    """Whether a `quant` collection was given, or is being made by calibration."""
    if module.is_initializing():
        return False
    return module.is_mutable_collection("quant") or module.has_variable("quant", leaf)


class Grid(nn.Module):
    """Puts a tensor on its grid; the identity where no `quant` collection is given.

    Attributes:
      fixed: A range known beforehand; calibration leaves it as it is.
    """

    fixed: tuple[float, float] | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """`x` at `a_bits`, or `x` itself."""
        if self.is_initializing():
            self.variable("quant", "a_bits", _bits)
            self.variable("quant", "range", self._initial_range)
        if not _is_quantized(self, "a_bits"):
            return x
        a_bits = self.variable("quant", "a_bits", _bits).value
        range_ = self.variable("quant", "range", self._initial_range)
        if self.is_mutable_collection("quant") and self.fixed is None:
            range_.value = calibrate.hull(range_.value, calibrate.min_max(x, a_bits))
        return affine.fake_quant(x, range_.value, a_bits)

    def _initial_range(self):
        return jnp.array(self.fixed or (0.0, 0.0), jnp.float32)


class Norm(nn.Module):
    """Batch norm and the activation behind it.

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
        return jnp.clip(u * factor + (bias - mean.value * factor), *self.bounds)

    def _statistics(self, channels):
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        return mean, self.variable("batch_stats", "var", jnp.ones, (channels,))


class ConvBnAct(nn.Module):
    """Convolution, batch norm, activation, and the grid of the output.

    Attributes:
      features: Output channels.
      kernel: Side of the kernel, odd.
      depthwise: One kernel per channel; `features` is then the input's channels.
      bounds: The interval that the activation clips to.
      norm: Batch norm, or a bias where false.
      grid: Whether the output is put on a grid here; if not, its reader does it, as
        where several outputs are joined on one grid.
    """

    features: int
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    depthwise: bool = False
    bounds: tuple[float, float] = RELU6
    norm: bool = True
    grid: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w i"], train: bool = False
    ) -> Float[Array, "n h2 w2 o"]:
        """Output in real units, on the grid of `a_bits` where quantized."""
        inputs = 1 if self.depthwise else x.shape[-1]
        shape = (self.kernel, self.kernel, inputs, self.features)
        w = self.param("kernel", nn.initializers.zeros, shape)  # see nn/init.py
        if self.is_initializing():
            self.variable("quant", "w_bits", _bits)
        if _is_quantized(self, "w_bits"):
            w_bits = self.variable("quant", "w_bits", _bits)
            w = affine.fake_quant_weight(w, w_bits.value)
        w = w.astype(x.dtype)
        if self.depthwise:
            u = convolution.depthwise(x, w[:, :, 0], self.stride, self.dilation)
        elif self.kernel == 1 and self.stride == 1:
            u = convolution.pointwise(x, w[0, 0])
        else:
            u = convolution.conv(x, w, self.stride, self.dilation)
        if self.norm:
            y = Norm(self.bounds, name="norm")(u, train)
        else:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = jnp.clip(u + bias.astype(u.dtype), *self.bounds)
        return Grid(name="out")(y) if self.grid else y
