"""What a device runs, and what a layer costs on it.

A `Target` is a description: the ops and bitwidths that the device runs, and a `Cost` for each
thing it takes, latency or energy. A new device is one more entry of `TARGETS`:

    "my_device": Target("my_device", kernels=(3, 5), bits=((8, 8),), costs=of_model(...))

What a device is not said to run never enters the search space.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from qnas_jax import space
from qnas_jax.errors import InputError
from qnas_jax.space import Bits, Block, Conv, Op

FIXED_BITS = 8  # of all that is not searched: the stem, the first group, the head
GRANULARITIES = ("network", "block", "layer")  # what may have bitwidths of its own


class Place(NamedTuple):
    """A layer of the search space in a picture of the deployed size."""

    block: int  # from 0
    layer: int  # from 0
    in_height: int
    in_width: int
    in_channels: int
    channels: int
    stride: int
    dilation: int

    def __str__(self) -> str:
        return f"block{self.block + 1}/layer{self.layer}"  # as in the network


# Of an op in a place at some bitwidths of weights and of activations, int64[n] each: float64[n].
# Not finite where the device does not run it.
LayerCost = Callable[[Place, Op, np.ndarray, np.ndarray], np.ndarray]
# Of a part of the network that is in no block, "stem" (with the first group) or "head", with
# its convolutions at `FIXED_BITS`.
PartCost = Callable[[str, Sequence[Conv]], float]
# Of a convolution on a device, at some bitwidths of weights and of activations.
ConvCost = Callable[[Any, Conv, np.ndarray, np.ndarray], np.ndarray]


class Cost(NamedTuple):
    """One thing that a network takes: the sum over its layers and its fixed parts."""

    of_layer: LayerCost
    of_part: PartCost


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """A device. What is left empty is not restricted.

    Attributes:
      name: What it is called.
      kernels: Kernels of depthwise convolutions that it runs.
      expansions: Expansions of inverted residuals that it runs.
      bits: Pairs of weights' and activations' bitwidths that it runs.
      granularity: The smallest part with bitwidths of its own, one of `GRANULARITIES`.
      per_channel: Whether weights may have a scale for each output channel.
      costs: By column of the table, "latency_ms" and "energy_mj", those that are known.
    """

    name: str
    kernels: tuple[int, ...] = ()
    expansions: tuple[int, ...] = ()
    bits: tuple[Bits, ...] = ()
    granularity: str = "layer"
    per_channel: bool = True
    costs: Mapping[str, Cost] = dataclasses.field(default_factory=dict)


class Choices(NamedTuple):
    """What a search may choose from, before and after a target was asked."""

    kernels: tuple[int, ...]
    expansions: tuple[int, ...]
    bits: tuple[Bits, ...]


def runnable(target: Target, wanted: Choices) -> Choices:
    """What a target runs of the choices, in their order.

    Raises:
      InputError: It runs no kernel, no expansion or no bitwidths among them.
    """
    return Choices(
        _kept(target, "kernels", wanted.kernels),
        _kept(target, "expansions", wanted.expansions),
        _kept(target, "bits", wanted.bits),
    )


def _kept(target: Target, name: str, choices: tuple) -> tuple:
    runs = getattr(target, name)
    kept = tuple(choice for choice in choices if not runs or choice in runs)
    if not kept:
        raise InputError(
            f"target {target.name!r} runs none of the space's {name} {choices}; it runs {runs}"
        )
    return kept


def check_granularity(target: Target, bits: Sequence[Bits], bits_per: str) -> None:
    """Refuses bitwidths chosen more finely than the target runs them.

    Args:
      target: The device.
      bits: The pairs to choose from.
      bits_per: What chooses, "block" or "layer".

    Raises:
      InputError: It does not run that.
    """
    if not target.per_channel:
        raise InputError(
            f"target {target.name!r} runs one scale for all weights of a layer; "
            "networks are quantized with one for each output channel: take another target"
        )
    finer = GRANULARITIES.index(bits_per) > GRANULARITIES.index(target.granularity)
    if len(bits) > 1 and finer:
        if target.granularity == "block":
            way_out = "set space.bits_per=block"
        else:
            way_out = "let space.w_bits and space.a_bits have one number each"
        raise InputError(
            f"target {target.name!r} has one pair of bitwidths for a {target.granularity}, "
            f"not for a {bits_per}: {way_out}"
        )


def places(blocks: Sequence[Block], shape: tuple[int, int]) -> tuple[Place, ...]:
    """All layers of the blocks.

    Args:
      blocks: One behind the other.
      shape: Height and width of the features ahead of the first.
    """
    height, width = shape
    found = []
    for number, block in enumerate(blocks):
        for layer in range(block.depth):
            channels, stride = block.layer_shape(layer)
            shapes = (height, width, channels, block.channels, stride, block.dilation)
            found.append(Place(number, layer, *shapes))
            height, width = -(-height // stride), -(-width // stride)
    return tuple(found)


def subnet_cost(cost: Cost, where: Sequence[Place], subnet: space.Subnet) -> float:
    """What the blocks of a subnet take, without the fixed parts; where: its places."""
    choices = (choice for block in subnet for choice in block)
    return sum(
        float(cost.of_layer(place, op, np.array([w_bits]), np.array([a_bits]))[0])
        for place, (op, w_bits, a_bits) in zip(where, choices, strict=True)
    )


def fixed_costs(target: Target, parts: Mapping[str, Sequence[Conv]]) -> dict[str, float]:
    """What a target takes for the parts that are in no block, by its costs' names."""
    return {
        name: sum(cost.of_part(part, convs) for part, convs in parts.items())
        for name, cost in target.costs.items()
    }


def of_model(
    device: Any, latency_ms: ConvCost | None = None, energy_mj: ConvCost | None = None
) -> dict[str, Cost]:
    """Costs of a device whose layers take the sum of what their convolutions take.

    Args:
      device: The parameters that the models work with.
      latency_ms: Model of a convolution's latency, if there is one.
      energy_mj: Model of its energy, if there is one.
    """
    models = {"latency_ms": latency_ms, "energy_mj": energy_mj}
    return {name: _summed(device, model) for name, model in models.items() if model}


def _summed(device: Any, model: ConvCost) -> Cost:
    def of_layer(place, op, w_bits, a_bits):
        shape = (place.in_height, place.in_width, place.in_channels)
        convs = space.mbconv_convs(
            op, str(place), shape, place.channels, place.stride, place.dilation
        )
        found = sum(model(device, conv, w_bits, a_bits) for conv in convs)
        return np.broadcast_to(np.asarray(found, np.float64), np.shape(w_bits))

    def of_part(part, convs):
        del part
        bits = np.array([FIXED_BITS])
        return float(sum(np.sum(model(device, conv, bits, bits)) for conv in convs))

    return Cost(of_layer, of_part)


NONE = Target("none")  # no device in mind: all is run, and only the size is known
TARGETS: dict[str, Target] = {target.name: target for target in (NONE,)}


def named(name: str) -> Target:
    """The target of that name.

    Raises:
      InputError: There is none.
    """
    if name not in TARGETS:
        raise InputError(f"hardware.target={name!r}: must be {' or '.join(map(repr, TARGETS))}")
    return TARGETS[name]
