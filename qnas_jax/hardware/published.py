"""Published latencies and energies of networks on accelerators, and these networks.

All layers of a network have the same bitwidths. The source says that the first layer keeps 8 bits,
but its latencies over bitwidth b are p b^2 + q b within 1 %, without a constant. So no layer keeps
8 bits in these figures.

References:
  Wang et al., 2019, https://arxiv.org/abs/1811.08886v3, tables 3, 4 and 5 (their PACT and
    8-bit rows).
"""

from typing import NamedTuple

from qnas_jax import space
from qnas_jax.space import Conv, Op


class Figure(NamedTuple):
    """One published figure.

    Attributes:
      device: Name of an instance in `devices`.
      quantity: "latency_ms" of a batch of the device, or "energy_mj" of an image.
      network: Name in `NETWORKS`.
      w_bits: Bitwidth of all weights.
      a_bits: Bitwidth of all activations.
      value: The published value.
      table: Number of the table in the source.
    """

    device: str
    quantity: str
    network: str
    w_bits: int
    a_bits: int
    value: float
    table: int

    def __str__(self) -> str:
        return f"{self.device} {self.quantity} {self.network} w{self.w_bits}a{self.a_bits}"


BISMO = tuple(
    Figure(device, "latency_ms", network, bits, bits, value, 3)
    for device, network, values in (
        ("BISMO_EDGE", "mobilenet_v1", {4: 45.45, 5: 57.75, 6: 70.67, 8: 96.20}),
        ("BISMO_EDGE", "mobilenet_v2", {4: 52.15, 5: 66.94, 6: 82.49, 8: 115.84}),
        ("BISMO_CLOUD", "mobilenet_v1", {4: 57.49, 5: 77.52, 6: 99.86, 8: 151.09}),
        ("BISMO_CLOUD", "mobilenet_v2", {4: 74.46, 5: 99.43, 6: 127.07, 8: 189.82}),
    )
    for bits, value in values.items()
)
BITFUSION = tuple(
    Figure("BITFUSION", quantity, "mobilenet_v1", w_bits, a_bits, value, table)
    for quantity, table, values in (
        ("latency_ms", 4, {(4, 4): 7.86, (6, 4): 11.10, (6, 6): 19.99, (8, 8): 20.08}),
        ("energy_mj", 5, {(4, 4): 13.47, (6, 4): 16.57, (6, 6): 26.80, (8, 8): 31.03}),
    )
    for (w_bits, a_bits), value in values.items()
)

FIGURES = BISMO + BITFUSION

# Output channels and stride of each depthwise separable convolution.
MOBILENET_V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2))
MOBILENET_V1 += ((512, 1),) * 5 + ((1024, 2), (1024, 1))
SIDE, CLASSES = 224, 1000  # of ImageNet


def mobilenet_v1_convs() -> list[Conv]:
    """MobileNetV1 for ImageNet.

    References:
      Howard et al., 2017, https://arxiv.org/abs/1704.04861, table 1.
    """
    convs = [Conv("stem", 3, 2, 1, 1, 3, 32, SIDE, SIDE)]
    channels, side = 32, SIDE // 2
    for i, (out_channels, stride) in enumerate(MOBILENET_V1):
        name, shape = f"layer{i}", (side, side, channels)
        convs += space.mbconv_convs(Op(3, 1), name, shape, out_channels, stride, 1)
        channels, side = out_channels, -(-side // stride)
    return [*convs, Conv("classifier", 1, 1, 1, 1, channels, CLASSES, 1, 1)]


def mobilenet_v2_convs() -> list[Conv]:
    """MobileNetV2 for ImageNet.

    References:
      Sandler et al., 2018, https://arxiv.org/abs/1801.04381, table 2.
    """
    convs = [Conv("stem", 3, 2, 1, 1, 3, space.MOBILENET_V2_STEM, SIDE, SIDE)]
    side, last = SIDE // 2, 1280
    blocks = space.mobilenet_v2_blocks(1.0, (1, 2, 2, 2, 1, 2, 1), (1,) * 7)
    for i, block in enumerate(blocks):
        op = Op(3, 1 if i == 0 else 6)
        for layer in range(block.depth):
            channels, stride = block.layer_shape(layer)
            name, shape = f"block{i}/layer{layer}", (side, side, channels)
            convs += space.mbconv_convs(op, name, shape, block.channels, stride, 1)
            side = -(-side // stride)
    convs.append(Conv("head", 1, 1, 1, 1, blocks[-1].channels, last, side, side))
    return [*convs, Conv("classifier", 1, 1, 1, 1, last, CLASSES, 1, 1)]


NETWORKS = {"mobilenet_v1": mobilenet_v1_convs, "mobilenet_v2": mobilenet_v2_convs}
