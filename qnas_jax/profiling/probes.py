"""What is timed for a table of latencies: the pieces that a search adds up.

Whole networks are cut into pieces. A piece reads and gives codes, as it does inside of a
network, channels last, so that runtimes run the very same kernels for it.
"""

from collections.abc import Callable, Sequence

import numpy as np

from qnas_jax import space
from qnas_jax.export import graph
from qnas_jax.export.graph import Graph
from qnas_jax.hardware.measured import FLOAT_BITS, Subject
from qnas_jax.nn.deeplab import DeepLabV3
from qnas_jax.profiling import slices, synthetic

Student = Callable[[space.Subnet], DeepLabV3]


def layers(
    student: Student,
    searched: space.Space,
    bits: Sequence[space.Bits | None],
    image_shape: graph.Shape,
) -> dict[Subject, Graph]:
    """Every op in every position at every bitwidth, the stem and the head.

    Args:
      student: The network that a subnet is.
      searched: The search space.
      bits: Bitwidths of weights and activations; None for float.
      image_shape: Height, width and channels of the pictures.
    """
    found: dict[Subject, Graph] = {}
    for pair in bits:
        for op in searched.ops:
            choice = space.Choice(op, *(pair or (FLOAT_BITS, FLOAT_BITS)))
            subnet = tuple((choice,) * block.depth for block in searched.blocks)
            for subject, piece in _pieces(student, subnet, image_shape).items():
                found.setdefault(subject, piece)
    return found


def blocks(
    student: Student,
    searched: space.Space,
    bits: Sequence[space.Bits],
    image_shape: graph.Shape,
    count: int,
    seed: int,
) -> dict[Subject, Graph]:
    """Random paths of every block as a whole, at bitwidths that its layers share.

    Args:
      student: The network that a subnet is.
      searched: The search space.
      bits: Bitwidths to choose from.
      image_shape: Height, width and channels of the pictures.
      count: Paths of each block, less where several are the same.
      seed: Of the choice.
    """
    rng = np.random.default_rng(seed)
    found: dict[Subject, Graph] = {}
    for _ in range(count):
        subnet = random_subnet(rng, searched, bits, per_layer=False)
        layers = list(slices.layers(network(student, subnet, image_shape)).values())[1:-1]
        for number, choices in enumerate(subnet):
            whole, layers = slices.chained(layers[: len(choices)]), layers[len(choices) :]
            path = space.format_path(tuple(choice.op for choice in choices))
            found[_subject(f"block{number + 1}", path, whole, choices[0][1:])] = whole
    return found


def random_subnet(
    rng: np.random.Generator, searched: space.Space, bits: Sequence[space.Bits], per_layer: bool
) -> space.Subnet:
    """A subnet, every path as likely as the others; bitwidths chosen by layer or by block."""
    subnet = []
    for block in searched.blocks:
        pairs = rng.integers(len(bits), size=block.depth if per_layer else 1)
        pairs = np.broadcast_to(pairs, block.depth)
        picked = zip(rng.integers(len(searched.ops), size=block.depth), pairs, strict=True)
        subnet.append(tuple(space.Choice(searched.ops[op], *bits[pair]) for op, pair in picked))
    return tuple(subnet)


def network(student: Student, subnet: space.Subnet, image_shape: graph.Shape) -> Graph:
    """The network that a subnet is, its weights made up; float where bitwidths say so."""
    bits = [[(choice.w_bits, choice.a_bits) for choice in block] for block in subnet]
    quantized = bits[0][0][0] != FLOAT_BITS
    return synthetic.network(student(subnet), bits if quantized else None, image_shape)


def _pieces(student: Student, subnet: space.Subnet, image_shape) -> dict[Subject, Graph]:
    """The parts of a subnet whose layers all have the same bitwidths."""
    (stem, *inner, head) = slices.layers(network(student, subnet, image_shape)).items()
    choices = [choice for block in subnet for choice in block]
    float_ = choices[0].w_bits == FLOAT_BITS
    fixed = (FLOAT_BITS, FLOAT_BITS) if float_ else synthetic.FIXED
    found = {_subject(place, "", piece, fixed): piece for place, piece in (stem, head)}
    for (place, piece), (op, *pair) in zip(inner, choices, strict=True):
        found[_subject(place, str(op), piece, pair)] = piece
    return found


def _subject(place: str, path: str, piece: Graph, bits: Sequence[int]) -> Subject:
    """How the table names a piece."""
    convs = piece.convs
    first = next((conv for conv in convs if conv.groups > 1), convs[0])
    height, width, in_channels = piece.x.shape
    channels = convs[-1].out.shape[-1]
    shapes = (height, width, in_channels, channels, first.stride, first.dilation)
    return Subject(place, path, *shapes, *bits)
