"""Networks as Flax modules. `module.apply(variables, images)` computes what it is given.

With `params` and `batch_stats` it is float; with a collection `quant` (bitwidths and clipping
ranges, as arrays) it is quantized; with `mutable=["quant"]` it is calibrated.

    network = nn.DeepLabV3(nn.MobileNetV2(16, first, blocks, paths), 32, (2, 4), classes=19)
    variables = nn.initialize(network, jax.random.key(0), (1, 64, 128, 3))
"""

from qnas_jax.nn.classifier import Classifier
from qnas_jax.nn.conv import ConvBnAct
from qnas_jax.nn.deeplab import DeepLabV3, resize_logits
from qnas_jax.nn.init import initialize
from qnas_jax.nn.mbconv import BlockPath, MBConv
from qnas_jax.nn.mobilenet import MobileNetV2

__all__ = [
    "BlockPath",
    "Classifier",
    "ConvBnAct",
    "DeepLabV3",
    "MBConv",
    "MobileNetV2",
    "initialize",
    "resize_logits",
]
