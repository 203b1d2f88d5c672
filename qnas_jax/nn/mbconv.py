"""The inverted residual, and a block of them."""

import flax.linen as nn
from jaxtyping import Array, Float

from qnas_jax import space
from qnas_jax.nn.conv import LINEAR, ConvBnAct
from qnas_jax.nn.units import Add


class MBConv(nn.Module):
    """Inverted residual: expand (1x1), depthwise (k x k), project (1x1, linear).

    The input is added where stride and channels allow it. Where quantized, each of the four
    results (expanded, filtered, projected, added) has a grid of its own.

    Attributes:
      op: Kernel and expansion.
      features: Output channels.
      stride: Of the depthwise convolution, as is the dilation.
      place: Block and layer of a search space (both from 0); None outside of searched blocks.

    References:
      Sandler et al., 2018, https://arxiv.org/abs/1801.04381, table 1.
    """

    op: space.Op
    features: int
    stride: int = 1
    dilation: int = 1
    place: tuple[int, int] | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w i"], train: bool = False
    ) -> Float[Array, "n h2 w2 o"]:
        """The layer's output, on its grid where quantized."""
        hidden = x.shape[-1] * self.op.expansion
        y = x
        if self.op.expansion > 1:
            y = ConvBnAct(hidden, name="expand")(y, train)
        y = ConvBnAct(
            hidden,
            self.op.kernel,
            self.stride,
            self.dilation,
            depthwise=True,
            name="depthwise",
        )(y, train)
        y = ConvBnAct(self.features, bounds=LINEAR, name="project")(y, train)
        if self.stride == 1 and x.shape[-1] == self.features:
            y = Add(name="add")(x, y)
        return y


class BlockPath(nn.Module):
    """One path of a block: its layers in a row, each with its op of the path.

    Attributes:
      block: Shape of the block.
      ops: The path.
      number: Of the block in the search space, from 0; None for a block outside of it.
    """

    block: space.Block
    ops: space.Path
    number: int | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w i"], train: bool = False
    ) -> Float[Array, "n h2 w2 o"]:
        """The block's output."""
        for layer, op in enumerate(self.ops):
            place = None if self.number is None else (self.number, layer)
            x = layer_module(self.block, layer, op, layer_name(layer), place)(x, train)
        return x


def layer_name(layer: int) -> str:
    """What a layer is called in the variables of its block."""
    return f"layer{layer}"


def layer_module(
    block: space.Block,
    layer: int,
    op: space.Op,
    name: str | None = None,
    place: tuple[int, int] | None = None,
) -> MBConv:
    """The inverted residual with that op at a layer of a block."""
    stride = block.layer_shape(layer)[1]
    return MBConv(op, block.channels, stride, block.layer_dilation(layer), place, name=name)
