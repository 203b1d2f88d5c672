"""Convolutions of bytes to bytes, norm and grid included, in the form that is fastest here.

Activations are bytes: codes counted from the least. Weights are codes in [-127, 127]. Sums of
their products are exact: as 32-bit integers in C++ (`native.py`), or in XLA as float32, where
bytes are exact as bfloat16, the fastest type of accelerators, up to sums of 2**24.

A sum becomes a byte by a `norm` of three numbers for each channel,
``clip(round(sum * norm[0] + norm[1]), 0, norm[2])``, with ties to even.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8, UInt8

from qnas_jax.kernels import convolution, native


def is_fast() -> bool:
    """Whether these convolutions are faster here than those of floats."""
    return not _on_cpu() or native.available()


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _in_cpp() -> bool:
    return _on_cpu() and native.available()


def pack_pointwise(w: Float[Array, "i o"]) -> Int8[Array, "..."]:
    """Codes of weights, in the order in which `pointwise` reads them here."""
    return native.pack_pointwise(w) if _in_cpp() else w.astype(jnp.int8)


def pack_depthwise(w: Float[Array, "k k c"]) -> Int8[Array, "..."]:
    """Codes of weights, in the order in which `depthwise` reads them here."""
    return native.pack_depthwise(w) if _in_cpp() else w.astype(jnp.int8)


def pointwise(
    x: UInt8[Array, "n h w i"], w: Int8[Array, "..."], norm: Float[Array, "3 o"]
) -> UInt8[Array, "n h w o"]:
    """A 1x1 convolution.

    Args:
      x: Activations.
      w: Weights from `pack_pointwise`.
      norm: What makes bytes of sums: factor, offset, and the greatest byte.
    """
    if _in_cpp():
        return native.pointwise(x, w, norm)
    return _normed(convolution.pointwise_codes(x, w), norm)


def depthwise(
    x: UInt8[Array, "n h w c"],
    w: Int8[Array, "..."],
    norm: Float[Array, "3 c"],
    stride: int,
    dilation: int,
) -> UInt8[Array, "n h2 w2 c"]:
    """A depthwise convolution, with zeros around the image.

    Args:
      x: Activations.
      w: Weights from `pack_depthwise`.
      norm: See `pointwise`.
      stride: Of the pixels.
      dilation: Of the kernel.
    """
    if _in_cpp():
        return native.depthwise(x, w, norm, stride, dilation)
    sums = convolution.depthwise(x.astype(jnp.float32), w.astype(jnp.float32), stride, dilation)
    return _normed(sums, norm)


def _normed(sums, norm):
    return jnp.clip(jnp.round(sums * norm[0] + norm[1]), 0, norm[2]).astype(jnp.uint8)
