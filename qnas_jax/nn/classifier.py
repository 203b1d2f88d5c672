"""MobileNetV2 as it was published: the encoder, its last features and a class for the image."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from qnas_jax.nn.conv import LINEAR, ConvBnAct, Grid
from qnas_jax.nn.mobilenet import MobileNetV2


class Classifier(nn.Module):
    """The classification network.

    Attributes:
      encoder: Its last features are what the head reads.
      features: Channels ahead of the mean over the pixels; 1280 as published.
      classes: Classes to tell apart.

    References:
      Sandler et al., 2018, https://arxiv.org/abs/1801.04381, table 2.
    """

    encoder: MobileNetV2
    features: int
    classes: int

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w 3"], train: bool = False
    ) -> Float[Array, "n 1 1 classes"]:
        """Logits of each image."""
        x = self.encoder(images, train)[-1]
        x = ConvBnAct(self.features, name="last")(x, train)
        x = Grid(name="mean")(jnp.mean(x, axis=(1, 2), keepdims=True))
        return ConvBnAct(self.classes, bounds=LINEAR, norm=False, name="classifier")(x, train)
