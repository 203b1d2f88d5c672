"""DeepLabV3: a dilated encoder, atrous spatial pyramid pooling and a classifier."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qnas_jax.nn.conv import LINEAR, RELU, ConvBnAct, Grid
from qnas_jax.nn.mobilenet import MobileNetV2


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling and the convolution that joins its branches.

    The branches share one grid, as the concatenation of an integer network needs it.

    References:
      Chen et al., 2017, https://arxiv.org/abs/1706.05587, figure 5.
    """

    channels: int
    rates: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"], train: bool = False) -> Float[Array, "n h w o"]:
        """The joined branches."""
        pooled = Grid(name="mean")(jnp.mean(x, axis=(1, 2), keepdims=True))
        pooled = self._branch("pool", 1, 1)(pooled, train)
        branches = [
            jnp.broadcast_to(pooled, (*x.shape[:3], self.channels)),
            self._branch("point", 1, 1)(x, train),
        ]
        for rate in self.rates:
            branches.append(self._branch(f"rate{rate}", 3, rate)(x, train))
        joined = Grid(name="concat")(jnp.concatenate(branches, axis=-1))
        return ConvBnAct(self.channels, kernel=3, bounds=RELU, name="join")(joined, train)

    def _branch(self, name, kernel, dilation):
        return ConvBnAct(
            self.channels, kernel, dilation=dilation, bounds=RELU, grid=False, name=name
        )


class DeepLabV3(nn.Module):
    """The segmentation network, for the teacher and for every subnet alike.

    Attributes:
      encoder: Gives the features at all block boundaries; the last feeds the head.
      head_channels: Channels of each branch of the head.
      rates: Dilations of the head's 3x3 branches.
      classes: Classes to tell apart.
      dropout: Share of the joined features that training drops.
    """

    encoder: MobileNetV2
    head_channels: int
    rates: tuple[int, ...]
    classes: int
    dropout: float = 0.0

    def setup(self):
        """Names the head's parts."""
        self.aspp = ASPP(self.head_channels, self.rates)
        self.drop = nn.Dropout(self.dropout)
        self.classifier = ConvBnAct(self.classes, bounds=LINEAR, norm=False)

    def __call__(
        self, images: Float[Array, "n h w 3"], train: bool = False
    ) -> Float[Array, "n h2 w2 classes"]:
        """Logits at the resolution of the encoder's last features."""
        x = self.aspp(self.encoder(images, train)[-1], train)
        return self.classifier(self.drop(x, deterministic=not train), train)

    def features(self, images: Float[Array, "n h w 3"]) -> tuple[Float[Array, "n _ _ _"], ...]:
        """The features at all block boundaries, not training."""
        return self.encoder(images)


def resize_logits(
    logits: Float[Array, "n h w c"], height: int, width: int
) -> Float[Array, "n h2 w2 c"]:
    """Logits at the images' resolution, bilinear, pixel centres aligned."""
    shape = (logits.shape[0], height, width, logits.shape[-1])
    return jax.image.resize(logits, shape, "bilinear", antialias=False)
