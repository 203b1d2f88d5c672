"""MobileNetV2 as published: the encoder, a last convolution, the mean, a class."""

import flax.linen as nn
from jaxtyping import Array, Float

from qnas_jax.nn.conv import LINEAR, ConvBnAct
from qnas_jax.nn.mobilenet import MobileNetV2
from qnas_jax.nn.units import Mean


class Classifier(nn.Module):
    """The classification network.

    Attributes:
      encoder: The head reads its last features.
      head_channels: Channels of which the mean over the pixels is taken; 1280 as published.
      classes: Number of classes.
      dropout: Share of the mean's channels that training drops.

    References:
      Sandler et al., 2018, https://arxiv.org/abs/1801.04381, table 2.
    """

    encoder: MobileNetV2
    head_channels: int
    classes: int
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w 3"], train: bool = False
    ) -> Float[Array, "n 1 1 classes"]:
        """Logits of each image."""
        x = self.encoder(images, train)[-1]
        x = ConvBnAct(self.head_channels, name="last")(x, train)
        x = Mean(name="mean")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return ConvBnAct(self.classes, bounds=LINEAR, norm=False, name="classifier")(x, train)

    def features(self, images: Float[Array, "n h w 3"]) -> tuple[Float[Array, "n _ _ _"], ...]:
        """The features at all block boundaries, not training."""
        return self.encoder(images)
