"""MobileNetV1: depthwise separable convolutions, the mean, a class."""

import flax.linen as nn
from jaxtyping import Array, Float

from qnas_jax import space
from qnas_jax.nn.conv import LINEAR, ConvBnAct
from qnas_jax.nn.units import Input, Mean

STEM = 32
# (channels, stride) of each depthwise separable convolution.
LAYERS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2))
LAYERS += ((1024, 1),)


class MobileNetV1(nn.Module):
    """The classification network.

    Attributes:
      width: Width multiplier of all channels.
      classes: Number of classes.
      layers: (channels, stride) of each depthwise separable convolution.
      stem_stride: Stride of the first convolution; 1 for images of 32 x 32 pixels or so.
      dropout: Share of the mean's channels that training drops.

    References:
      Howard et al., 2017, https://arxiv.org/abs/1704.04861, table 1.
    """

    width: float
    classes: int
    layers: tuple[tuple[int, int], ...] = LAYERS
    stem_stride: int = 2
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w 3"], train: bool = False
    ) -> Float[Array, "n 1 1 classes"]:
        """Logits of each image."""
        x = Input(name="input")(images)
        stem = space.scaled_channels(STEM, self.width)
        x = ConvBnAct(stem, kernel=3, stride=self.stem_stride, name="stem")(x, train)
        for i, (channels, stride) in enumerate(self.layers):
            x = ConvBnAct(
                x.shape[-1], kernel=3, stride=stride, depthwise=True, name=f"depthwise{i}"
            )(x, train)
            channels = space.scaled_channels(channels, self.width)
            x = ConvBnAct(channels, name=f"point{i}")(x, train)
        x = Mean(name="mean")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return ConvBnAct(self.classes, bounds=LINEAR, norm=False, name="classifier")(x, train)
