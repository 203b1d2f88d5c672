"""From logits to a network: draws within the budget, scored with the shared weights."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Key

from qnas_jax import space
from qnas_jax.errors import InputError
from qnas_jax.hqnas import relax
from qnas_jax.hqnas.shared import Shared, Shares, codes_of, one_hot, subnet_at, subnet_of


class Scored(NamedTuple):
    """A subnet with its score.

    Attributes:
      subnet: Ops and bitwidths.
      cost: Of the whole network, in the unit of the budget.
      accuracy: On the held-out images with the shared weights, in percent.
    """

    subnet: space.Subnet
    cost: float
    accuracy: float


def scored(
    described: Shared,
    logits: Shares,
    costs: relax.Costs,
    evaluate: Callable[[list[space.Subnet]], np.ndarray],
    key: Key[Array, ""],
    count: int,
) -> list[Scored]:
    """Returns the most likely subnet and some draws, brought within the budget, the best first.

    Args:
      described: The layers.
      logits: Of their choices.
      costs: What bounds the subnets.
      evaluate: Subnets -> accuracies.
      key: PRNG key of the draws.
      count: Number of subnets.
    """
    drawn = relax.draws(logits, key, max(count - 1, 1))
    each = [Shares(*(part[i] for part in drawn)) for i in range(count - 1)]
    subnets = [subnet_of(described, one) for one in (relax.most_likely(logits), *each)]
    subnets = list(dict.fromkeys(within(described, one, costs) for one in subnets))
    rows = zip(subnets, evaluate(subnets), strict=True)
    found = [Scored(s, cost_of(described, s, costs), float(a)) for s, a in rows]
    return sorted(found, key=lambda one: -one.accuracy)


def cost_of(described: Shared, subnet: space.Subnet, costs: relax.Costs) -> float:
    """Returns the cost of a subnet."""
    return float(relax.expected_cost(one_hot(described, subnet), costs))


def within(described: Shared, subnet: space.Subnet, costs: relax.Costs) -> space.Subnet:
    """Returns a subnet that meets the budget: the given one, or one of less.

    One layer after another takes another choice, each time that which saves least, so that the
    result stays near the given subnet.

    Raises:
      InputError: No subnet meets the budget.
    """
    layers = np.asarray(costs.layers, np.float64)
    flat = layers.reshape(len(layers), -1)
    most = float(costs.budget) - float(costs.fixed)
    codes = codes_of(described, subnet)
    chosen = np.array(np.ravel_multi_index(tuple(codes.T), layers.shape[1:]))
    while flat[np.arange(len(flat)), chosen].sum() > most * (1 + 1e-6):
        saved = flat[np.arange(len(flat)), chosen][:, None] - flat
        saved = np.where(saved > 0, saved, np.inf)
        layer, choice = np.unravel_index(np.argmin(saved), saved.shape)
        if np.isinf(saved[layer, choice]):
            raise InputError(f"no subnet meets the budget {float(costs.budget):g}")
        chosen[layer] = choice
    return subnet_at(described, np.stack(np.unravel_index(chosen, layers.shape[1:]), 1))
