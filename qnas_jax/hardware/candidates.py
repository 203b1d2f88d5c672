"""What a target is asked the cost of: candidates, one list of them for each layer.

A layer of a search space has one candidate for each op. A layer of a given network has one
candidate, its own convolutions.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from qnas_jax import space
from qnas_jax.space import Block, Conv, Op


class Place(NamedTuple):
    """A layer of the search space and the shape of its input."""

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


class Candidate(NamedTuple):
    """A piece of a network, at any bitwidths.

    Attributes:
      place: Its name in the network: "block3/layer1", "stem".
      op: The op that it is; None for a piece that is no choice of a search space.
      shape: The height and width of its input; of an op also its input channels, channels,
        stride and dilation. Tables of measurements are looked up by place, op and shape.
      convs: Its convolutions. Models add up their costs.
    """

    place: str
    op: Op | None
    shape: tuple[int, ...]
    convs: tuple[Conv, ...]


Layer: TypeAlias = Sequence[Candidate]


def places(blocks: Sequence[Block], shape: tuple[int, int]) -> tuple[Place, ...]:
    """All layers of the blocks, in order.

    Args:
      blocks: The blocks, each reading the output of the one before.
      shape: Height and width of the first block's input.
    """
    height, width = shape
    found = []
    for number, block in enumerate(blocks):
        for layer in range(block.depth):
            channels, stride = block.layer_shape(layer)
            shapes = (height, width, channels, block.channels, stride, block.layer_dilation(layer))
            found.append(Place(number, layer, *shapes))
            height, width = -(-height // stride), -(-width // stride)
    return tuple(found)


def layers(where: Iterable[Place], ops: Iterable[Op]) -> tuple[Layer, ...]:
    """One layer for each place, with one candidate for each op."""
    ops = tuple(ops)
    return tuple(tuple(_of_op(place, op) for op in ops) for place in where)


def _of_op(place: Place, op: Op) -> Candidate:
    shape = (place.in_height, place.in_width, place.in_channels)
    sizes = (place.channels, place.stride, place.dilation)
    convs = space.mbconv_convs(op, str(place), shape, *sizes)
    return Candidate(str(place), op, place[2:], tuple(convs))


def given(name: str, convs: Iterable[Conv]) -> Layer:
    """A layer without a choice: some convolutions of a given network."""
    convs = tuple(convs)
    shape = max((conv.in_height, conv.in_width) for conv in convs)
    return (Candidate(name, None, shape, convs),)
