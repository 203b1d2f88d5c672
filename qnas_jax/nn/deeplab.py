"""DeepLabV3: a dilated encoder, atrous spatial pyramid pooling and a classifier."""

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from qnas_jax.nn.conv import LINEAR, RELU, ConvBnAct
from qnas_jax.nn.mobilenet import MobileNetV2
from qnas_jax.nn.units import Broadcast, Concat, Mean


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling, and a convolution of the joined branches.

    Attributes:
      channels: Of each branch, and of the output.
      rates: Dilations of the 3x3 branches.

    References:
      Chen et al., 2017, https://arxiv.org/abs/1706.05587, figure 5.
    """

    channels: int
    rates: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"], train: bool = False) -> Float[Array, "n h w o"]:
        """The head's features."""
        pooled = self._branch("pool", 1, 1)(Mean(name="mean")(x), train)
        branches = [
            Broadcast(*x.shape[1:3], name="broadcast")(pooled),
            self._branch("point", 1, 1)(x, train),
        ]
        for rate in self.rates:
            branches.append(self._branch(f"rate{rate}", 3, rate)(x, train))
        joined = Concat(name="concat")(branches)
        return ConvBnAct(self.channels, kernel=3, bounds=RELU, name="join")(joined, train)

    def _branch(self, name, kernel, dilation):
        return ConvBnAct(
            self.channels, kernel, dilation=dilation, bounds=RELU, grid=False, name=name
        )


class DeepLabV3(nn.Module):
    """The segmentation network of the teacher and of every subnet.

    Attributes:
      encoder: Gives the features at all block boundaries; the head reads the last.
      head_channels: Channels of each branch of the head.
      rates: Dilations of the head's 3x3 branches.
      classes: Number of classes.
      dropout: Share of the head's features that training drops.
    """

    encoder: MobileNetV2
    head_channels: int
    rates: tuple[int, ...]
    classes: int
    dropout: float = 0.0

    def setup(self):
        """Makes the parts of the head."""
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
    """Returns logits at another resolution: bilinear, pixel centres aligned.

    Args:
      logits: Logits of each class.
      height: Height in pixels of the result.
      width: Width in pixels of the result.
    """
    shape = (logits.shape[0], height, width, logits.shape[-1])
    return jax.image.resize(logits, shape, "bilinear", antialias=False)
