"""MobileNetV2 as an encoder: stem, first bottleneck, and blocks of inverted residuals."""

import flax.linen as nn
from jaxtyping import Array, Float

from qnas_jax import space
from qnas_jax.nn.conv import ConvBnAct
from qnas_jax.nn.mbconv import BlockPath
from qnas_jax.nn.units import Input

TEACHER_OP = space.Op(kernel=3, expansion=6)


class MobileNetV2(nn.Module):
    """The encoder of the teacher and of every subnet.

    Attributes:
      stem: Channels of the first convolution.
      first: The group with expansion 1, which is in no searched block.
      blocks: The blocks that are distilled and searched.
      paths: The ops of each block's layers.
      padding: What lies around an image, see `ConvBnAct`.
      stem_stride: Stride of the first convolution; 1 for images of 32 x 32 pixels or so.

    References:
      Sandler et al., 2018, https://arxiv.org/abs/1801.04381, table 2.
    """

    stem: int
    first: space.Block
    blocks: tuple[space.Block, ...]
    paths: tuple[space.Path, ...]
    padding: tuple[float, ...] = ()
    stem_stride: int = 2

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w 3"], train: bool = False
    ) -> tuple[Float[Array, "n _ _ _"], ...]:
        """The features at all boundaries: the input of the first block and the output of each."""
        x = Input(name="input")(images)
        how = {"kernel": 3, "stride": self.stem_stride, "padding": self.padding}
        x = ConvBnAct(self.stem, **how, name="stem")(x, train)
        path = (space.Op(kernel=3, expansion=1),) * self.first.depth
        x = BlockPath(self.first, path, name="block0")(x, train)
        features = [x]
        for i, (block, path) in enumerate(zip(self.blocks, self.paths, strict=True)):
            x = BlockPath(block, path, number=i, name=f"block{i + 1}")(x, train)
            features.append(x)
        return tuple(features)


def teacher_paths(blocks: tuple[space.Block, ...]) -> tuple[space.Path, ...]:
    """The ops of MobileNetV2: kernel 3 and expansion 6 in every layer."""
    return tuple((TEACHER_OP,) * block.depth for block in blocks)
