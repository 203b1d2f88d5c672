"""The units of a network: what export, layer lists and costs see of it.

A network that is made of these modules (and of modules made of them) can be traced
(`nn/trace.py`), and so exported, described and timed. Each runs between convolutions what an
integer network computes there.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from qnas_jax.nn.conv import ConvBnAct
from qnas_jax.nn.fake_quant import PIXEL_RANGE, OnGrid


def pixels(images: UInt8[Array, "n h w 3"]) -> Float[Array, "n h w 3"]:
    """Converts bytes to floats in [-1, 1), in steps of 1/128, as networks expect them."""
    return images.astype(jnp.float32) / 128 - 1


class Input(OnGrid):
    """The pixels of an image as `pixels` gives them, on the grid whose codes are its bytes."""

    fixed: tuple[float, float] | None = PIXEL_RANGE

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """The pixels."""
        return self.on_grid(images)


class Add(OnGrid):
    """Sum of two tensors of the same shape."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], y: Float[Array, "n h w c"]
    ) -> Float[Array, "n h w c"]:
        """``x + y``, on its grid where quantized."""
        return self.on_grid(x + y)


class Mean(OnGrid):
    """Mean over the pixels of each image (global average pooling)."""

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n 1 1 c"]:
        """The mean, on its grid where quantized."""
        return self.on_grid(jnp.mean(x, axis=(1, 2), keepdims=True))


class Concat(OnGrid):
    """Tensors joined by channels, all on one grid as an integer network needs it.

    Convolutions that only a concatenation reads have `grid=False`: its grid is theirs.
    """

    @nn.compact
    def __call__(self, xs: Sequence[Float[Array, "n h w _"]]) -> Float[Array, "n h w c"]:
        """The joined tensors, on their grid where quantized."""
        return self.on_grid(jnp.concatenate(list(xs), axis=-1))


class Broadcast(nn.Module):
    """A single pixel, repeated to a height and a width; the grid stays."""

    height: int
    width: int

    def __call__(self, x: Float[Array, "n 1 1 c"]) -> Float[Array, "n h w c"]:
        """The pixel, everywhere."""
        return jnp.broadcast_to(x, (x.shape[0], self.height, self.width, x.shape[-1]))


UNITS = (Input, ConvBnAct, Add, Mean, Concat, Broadcast)
