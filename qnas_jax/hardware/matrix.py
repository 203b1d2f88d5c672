"""What layers cost on a target, as arrays.

Every search is a way to choose from these arrays: a table of blocks and a policy gather from
them, and a relaxed search weights them with probabilities.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from qnas_jax.errors import InputError
from qnas_jax.hardware import size
from qnas_jax.hardware.candidates import Candidate, Layer, given
from qnas_jax.hardware.target import Target
from qnas_jax.space import COSTS, Bits, Conv, Op, Subnet


def cost_matrix(
    target: Target, layers: Sequence[Layer], bits: Sequence[Bits]
) -> dict[str, np.ndarray]:
    """Every cost of every candidate of every layer at every pair of bitwidths.

    Args:
      target: The device.
      layers: The layers of a network, each with its candidates; `candidates.layers` gives those
        of a search space, `candidates.given` those of a given network.
      bits: Pairs of bitwidths, of weights and of activations.

    Returns:
      float64[layers, ops, bits] by the name of the cost: "size_bytes", which is known for every
      target, and all costs of the target. NaN where the target does not run the candidate, and
      where a layer has fewer candidates than another. A network's cost is the sum over its layers.

    Raises:
      InputError: A model of the target does not know a bitwidth or a kind of convolution.
    """
    w_bits, a_bits = np.array(bits, np.int64).reshape(-1, 2).T
    shape = (len(layers), max(map(len, layers), default=0), len(bits))
    found = {name: np.full(shape, np.nan) for name in ("size_bytes", *target.costs)}
    for number, layer in enumerate(layers):
        for op, candidate in enumerate(layer):
            sizes = _size_bytes(candidate, w_bits, target.per_channel)
            found["size_bytes"][number, op] = np.where(w_bits <= target.most_w_bits, sizes, np.nan)
            runs = _runs(target, candidate, bits)
            for name, cost in target.costs.items():
                costs = cost(candidate, w_bits, a_bits)
                found[name][number, op] = np.where(runs, costs, np.nan)
    return found


def _size_bytes(candidate: Candidate, w_bits: np.ndarray, per_channel: bool):
    return sum(size.conv_bytes(conv, w_bits, per_channel) for conv in candidate.convs)


def _runs(target: Target, candidate: Candidate, bits: Sequence[Bits]) -> np.ndarray:
    """Whether the target runs an op at each pair of bitwidths: bool[bits]."""
    if candidate.op is None:
        return np.ones(len(bits), bool)
    kernel, expansion = candidate.op
    runs_op = (not target.kernels or kernel in target.kernels) and (
        not target.expansions or expansion in target.expansions
    )
    return np.array([runs_op and (not target.bits or pair in target.bits) for pair in bits])


def subnet_costs(
    costs: Mapping[str, np.ndarray], ops: Sequence[Op], bits: Sequence[Bits], subnet: Subnet
) -> dict[str, float]:
    """What the blocks of a subnet cost, without the fixed parts.

    Args:
      costs: The matrix of the subnet's search space, see `cost_matrix`.
      ops: The ops of its second axis.
      bits: The bitwidths of its third axis.
      subnet: Ops and bitwidths of each layer.
    """
    choices = [choice for block in subnet for choice in block]
    op = [ops.index(choice.op) for choice in choices]
    pair = [bits.index((choice.w_bits, choice.a_bits)) for choice in choices]
    layer = np.arange(len(choices))
    return {name: sum(values[layer, op, pair].tolist()) for name, values in costs.items()}


def fixed_costs(
    target: Target, parts: Mapping[str, Sequence[Conv]]
) -> dict[str, dict[str, int | float]]:
    """What the parts of a network cost that are in no block, by cost and by part.

    Args:
      target: The device.
      parts: The convolutions of each part, by its name in tables of measurements: "stem" (from
        the image to the first block) and "head" (after the last block). All have the target's
        `fixed_bits`.

    Raises:
      InputError: A part was not measured on the target.
    """
    fixed = tuple(given(name, convs) for name, convs in parts.items())
    w_bits, a_bits = target.fixed_bits
    found = cost_matrix(target, fixed, [target.fixed_bits])
    for number, (part,) in enumerate(fixed):
        if not all(np.isfinite(values[number]).all() for values in found.values()):
            height, width = part.shape
            raise InputError(
                f"target {target.name!r}: nothing was measured for {part.place}, "
                f"{height} x {width}, w{w_bits}a{a_bits}"
            )
    return {
        name: dict(zip(parts, map(COSTS[name].kind, values[:, 0, 0].tolist()), strict=True))
        for name, values in found.items()
    }
