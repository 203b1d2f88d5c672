"""Networks as Flax modules.

The collections in `variables` decide what `module.apply(variables, images)` computes:

- `params` and `batch_stats`: the float network;
- with `quant` (bitwidths and clipping ranges, as arrays): the quantized network;
- with `quant` and `mutable=["quant"]`: calibration.

network = nn.DeepLabV3(nn.MobileNetV2(16, first, blocks, paths), 32, (2, 4), classes=19)
variables = nn.initialize(network, jax.random.key(0), (1, 64, 128, 3))
units = nn.trace(network, (64, 128, 3)).units              # in order, with who reads whom
quant = nn.with_policy(variables["quant"], {"encoder/block1/layer0/expand": (4, 8)})

Your own module can be traced and exported in the same way if it is made of the units `ConvBnAct`,
`Input`, `Add`, `Mean`, `Concat` and `Broadcast`.
"""

from qnas_jax.nn.classifier import Classifier
from qnas_jax.nn.conv import LINEAR, RELU, RELU6, ConvBnAct
from qnas_jax.nn.deeplab import DeepLabV3, resize_logits
from qnas_jax.nn.init import initialize
from qnas_jax.nn.mbconv import BlockPath, MBConv
from qnas_jax.nn.mobilenet import MobileNetV2, teacher_paths
from qnas_jax.nn.mobilenet_v1 import MobileNetV1
from qnas_jax.nn.policy import of_subnet as subnet_policy
from qnas_jax.nn.policy import with_policy
from qnas_jax.nn.supernet import with_blocks

# The function; the module of the same name is reached by `from qnas_jax.nn.trace import ...`.
from qnas_jax.nn.trace import Trace, Unit, trace
from qnas_jax.nn.units import Add, Broadcast, Concat, Input, Mean, pixels

__all__ = [
    "LINEAR",
    "RELU",
    "RELU6",
    "Add",
    "BlockPath",
    "Broadcast",
    "Classifier",
    "Concat",
    "ConvBnAct",
    "DeepLabV3",
    "Input",
    "MBConv",
    "Mean",
    "MobileNetV1",
    "MobileNetV2",
    "Trace",
    "Unit",
    "initialize",
    "pixels",
    "resize_logits",
    "subnet_policy",
    "teacher_paths",
    "trace",
    "with_blocks",
    "with_policy",
]
