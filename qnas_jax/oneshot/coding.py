"""Subnets as integers, the genes of a search, and what they cost.

A candidate has the number of an op for each layer, then the number of a pair of bitwidths for each
block, or for each layer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qnas_jax import space
from qnas_jax.errors import InputError
from qnas_jax.hardware.deployment import Deployment


class Coding(NamedTuple):
    """What the genes of a candidate number.

    Attributes:
      searched: Blocks and ops.
      bits: Pairs of bitwidths, of weights and of activations.
      per_layer: Whether each layer has bitwidths of its own, or each block.
    """

    searched: space.Space
    bits: tuple[space.Bits, ...]
    per_layer: bool


class Costs(NamedTuple):
    """A cost on a target, in its unit.

    Attributes:
      layers: float64[layers, ops, bits], infinite where the target does not run the op.
      fixed: Of all that is in no block.
    """

    layers: np.ndarray
    fixed: float


def depths(coding: Coding) -> list[int]:
    """Returns the number of layers of each block."""
    return [block.depth for block in coding.searched.blocks]


def least(coding: Coding) -> np.ndarray:
    """Returns the smallest genes, int64[genes]."""
    return np.zeros_like(most(coding))


def most(coding: Coding) -> np.ndarray:
    """Returns the largest genes, int64[genes]."""
    layers = sum(depths(coding))
    pairs = layers if coding.per_layer else len(depths(coding))
    counts = [len(coding.searched.ops)] * layers + [len(coding.bits)] * pairs
    return np.array(counts, np.int64) - 1


def _of_layers(coding: Coding, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number of each layer's op, and of its bitwidths: int64[n, layers] each."""
    own = depths(coding)
    layers = sum(own)
    pairs = genes[:, layers:]
    if not coding.per_layer:
        pairs = pairs[:, np.repeat(np.arange(len(own)), own)]
    return genes[:, :layers], pairs


def subnets_at(coding: Coding, genes: np.ndarray) -> list[space.Subnet]:
    """Returns candidates as subnets.

    Args:
      coding: What genes number.
      genes: int64[n, genes].
    """
    found, ends = [], np.cumsum(depths(coding))
    for ops, pairs in zip(*_of_layers(coding, genes), strict=True):
        choices = [
            space.Choice(coding.searched.ops[op], *coding.bits[pair])
            for op, pair in zip(ops, pairs, strict=True)
        ]
        blocks = zip(ends - depths(coding), ends, strict=True)
        found.append(tuple(tuple(choices[start:end]) for start, end in blocks))
    return found


def known_costs(deployed: Deployment, coding: Coding) -> dict[str, Costs]:
    """Returns every cost that the target knows, by its name.

    A candidate that lacks one of them does not run there, so that all its costs are infinite.

    Raises:
      InputError: A part of the network was not measured on the target.
    """
    found, fixed = deployed.matrix(coding.searched.ops, coding.bits), deployed.fixed()
    runs = np.all([np.isfinite(values) for values in found.values()], axis=0)
    return {
        name: Costs(np.where(runs, values, np.inf), float(sum(fixed[name].values())))
        for name, values in found.items()
    }


def costs_of(coding: Coding, costs: Costs, genes: np.ndarray) -> np.ndarray:
    """Returns what whole networks cost, float64[n]; infinite where the target does not run one.

    Args:
      coding: What genes number.
      costs: A cost of each candidate of each layer.
      genes: int64[n, genes].
    """
    ops, pairs = _of_layers(coding, genes)
    return costs.layers[np.arange(ops.shape[1]), ops, pairs].sum(1) + costs.fixed


def cheapest(coding: Coding, costs: Costs, name: str) -> np.ndarray:
    """Returns the genes of the cheapest subnet, int64[genes].

    Args:
      coding: What genes number.
      costs: A cost of each candidate of each layer.
      name: Of the cost, for the error.

    Raises:
      InputError: The target runs no subnet.
    """
    by_pair = costs.layers.min(1)  # of the cheapest op
    own = depths(coding)
    parts: Sequence[int] = [1] * sum(own) if coding.per_layer else own
    starts = np.cumsum([0, *parts[:-1]])
    pairs = np.add.reduceat(by_pair, starts, axis=0).argmin(1)
    each = np.repeat(pairs, parts)
    ops = costs.layers[np.arange(len(each)), :, each].argmin(1)
    genes = np.concatenate([ops, pairs]).astype(np.int64)
    if not np.isfinite(costs_of(coding, costs, genes[None])).all():
        rule = "the target runs no subnet of the space; its table lacks a layer with every op"
        raise InputError(f"oneshot.cost={name!r}: {rule}")
    return genes
