"""The probes of a latency table: the slices of networks that a search adds up.

A slice reads and gives codes with the channels last, as inside the network, so that a runtime
uses the same kernels for it.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import numpy as np

from qnas_jax import space
from qnas_jax.export import graph
from qnas_jax.export.graph import Graph
from qnas_jax.hardware.measured import FLOAT_BITS, ProbeKey
from qnas_jax.nn.trace import Trace, trace
from qnas_jax.profiling import slices, synthetic

Student = Callable[[space.Subnet], nn.Module]


def layers(
    student: Student,
    searched: space.Space,
    bits: Sequence[space.Bits | None],
    image_shape: graph.Shape,
) -> dict[ProbeKey, Graph]:
    """Every op in every position at every bitwidth, the stem and the head.

    Args:
      student: Gives the network of a subnet.
      searched: The search space.
      bits: Bitwidths of weights and activations; None for float.
      image_shape: Height, width and channels of the images.
    """

    def subnet(op, pair):
        choice = space.Choice(op, *(pair or (FLOAT_BITS, FLOAT_BITS)))
        return tuple((choice,) * block.depth for block in searched.blocks)

    traces = {op: trace(student(subnet(op, None)), image_shape) for op in searched.ops}
    found: dict[ProbeKey, Graph] = {}
    for pair in bits:
        for op, traced in traces.items():
            for probe, part in _slices(traced, subnet(op, pair)).items():
                found.setdefault(probe, part)
    return found


def blocks(
    student: Student,
    searched: space.Space,
    bits: Sequence[space.Bits],
    image_shape: graph.Shape,
    count: int,
    seed: int,
) -> dict[ProbeKey, Graph]:
    """Random paths of whole blocks, at bitwidths that the layers of a block share.

    Args:
      student: Gives the network of a subnet.
      searched: The search space.
      bits: Bitwidths to choose from.
      image_shape: Height, width and channels of the images.
      count: Paths of each block; equal ones count as one.
      seed: Of the choice.
    """
    rng = np.random.default_rng(seed)
    found: dict[ProbeKey, Graph] = {}
    for _ in range(count):
        subnet = random_subnet(rng, searched, bits, per_layer=False)
        layers = list(slices.layers(network(student, subnet, image_shape)).values())[1:-1]
        for number, choices in enumerate(subnet):
            whole, layers = slices.chained(layers[: len(choices)]), layers[len(choices) :]
            path = space.format_path(tuple(choice.op for choice in choices))
            found[_probe_key(f"block{number + 1}", path, whole, choices[0][1:])] = whole
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
    """The network of a subnet with random weights."""
    return _network(trace(student(subnet), image_shape), subnet)


def _network(traced: Trace, subnet: space.Subnet) -> Graph:
    """The network at the bitwidths of the subnet; float where these say so."""
    bits = [[(choice.w_bits, choice.a_bits) for choice in block] for block in subnet]
    quantized = bits[0][0][0] != FLOAT_BITS
    return synthetic.network(traced, bits if quantized else None)


def _slices(traced: Trace, subnet: space.Subnet) -> dict[ProbeKey, Graph]:
    """The slices of a subnet whose layers all have the same bitwidths."""
    (stem, *inner, head) = slices.layers(_network(traced, subnet)).items()
    choices = [choice for block in subnet for choice in block]
    float_ = choices[0].w_bits == FLOAT_BITS
    fixed = (FLOAT_BITS, FLOAT_BITS) if float_ else synthetic.FIXED
    found = {_probe_key(place, "", part, fixed): part for place, part in (stem, head)}
    for (place, part), (op, *pair) in zip(inner, choices, strict=True):
        found[_probe_key(place, str(op), part, pair)] = part
    return found


def _probe_key(place: str, path: str, part: Graph, bits: Sequence[int]) -> ProbeKey:
    """How the table names a slice."""
    convs = part.convs
    first = next((conv for conv in convs if conv.groups > 1), convs[0])
    height, width, in_channels = part.x.shape
    channels = convs[-1].out.shape[-1]
    shapes = (height, width, in_channels, channels, first.stride, first.dilation)
    return ProbeKey(place, path, *shapes, *bits)
