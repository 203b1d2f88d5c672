"""Bitwidths of a given network's layers under a budget, without learning: the rivals of an agent.

A policy is int[layers, 2], the bitwidths of each layer's weights and of the activations that it
reads. Scores are lower for better policies; a function scores many at once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from qnas_jax.errors import InputError

TIE = 1e-6  # by which a bit is better than none where scores are equal

Score = Callable[[np.ndarray], np.ndarray]  # policies int[n, layers, 2] -> float[n]


class Choices(NamedTuple):
    """What is chosen from, and what it costs.

    Attributes:
      least: int[layers, 2], the smallest bitwidths.
      most: int[layers, 2], the largest; equal to the smallest where nothing is chosen.
      lead: int[layers], the first layer that reads the same tensor; its choice of activations
        is that of all of them.
      cost: float64[layers, w_bits, a_bits], indexed by the bitwidths themselves.
      budget: The highest sum over the layers.
    """

    least: np.ndarray
    most: np.ndarray
    lead: np.ndarray
    cost: np.ndarray
    budget: float

    @property
    def slots(self) -> np.ndarray:
        """The pairs (layer, 0 for weights or 1 for activations) that can be chosen."""
        leads = np.stack([np.ones(len(self.lead), bool), self.lead == np.arange(len(self.lead))], 1)
        return np.argwhere((self.least < self.most) & leads)


def costs_of(cost: np.ndarray, policies: np.ndarray) -> np.ndarray:
    """Returns the cost of each policy, float64[n]."""
    layers = np.arange(cost.shape[0])
    return np.asarray(cost[layers, policies[..., 0], policies[..., 1]].sum(-1))


def tied(lead: np.ndarray, policies: np.ndarray) -> np.ndarray:
    """Returns the policies with one choice of activations for all readers of a tensor."""
    return np.stack([policies[..., 0], policies[..., lead, 1]], -1)


def same_bits(choices: Choices, bits: int) -> np.ndarray:
    """Returns the policy of one bitwidth, but for layers that keep theirs."""
    return tied(choices.lead, np.clip(bits, choices.least, choices.most))


def uniform(choices: Choices) -> np.ndarray:
    """Returns the policy of the largest single bitwidth that meets the budget.

    Raises:
      InputError: None meets it.
    """
    smallest, largest = int(choices.least.min()), int(choices.most.max())
    lowest = costs_of(choices.cost, same_bits(choices, smallest))
    for bits in range(largest, smallest - 1, -1):
        policy = same_bits(choices, bits)
        if costs_of(choices.cost, policy) <= choices.budget:
            return policy
    raise InputError(f"the budget is {choices.budget:g}, the smallest bitwidths cost {lowest:g}")


def random(rng: np.random.Generator, choices: Choices, count: int) -> np.ndarray:
    """Returns random policies within the budget, int[count, layers, 2].

    Bitwidths are drawn, then taken off one by one in a random order until the budget is met.
    """
    shape = (count, *choices.least.shape)
    drawn = rng.integers(choices.least, choices.most, endpoint=True, size=shape)
    return np.stack([trimmed(choices, policy, rng.permutation(choices.slots)) for policy in drawn])


def trimmed(choices: Choices, policy: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Returns a policy with bits taken off, one at a time in this order, until it is affordable.

    The order is repeated. Where the budget is below all policies, the smallest is returned.

    Args:
      choices: Bounds and budget.
      policy: int[layers, 2].
      order: int[slots, 2], pairs as in `Choices.slots`.
    """
    policy = tied(choices.lead, policy)
    while costs_of(choices.cost, policy) > choices.budget and (policy > choices.least).any():
        for layer, kind in order:
            if policy[layer, kind] > choices.least[layer, kind]:
                policy[layer, kind] -= 1
                policy = tied(choices.lead, policy)
                if costs_of(choices.cost, policy) <= choices.budget:
                    break
    return policy


def sensitivities(score: Score, choices: Choices) -> np.ndarray:
    """Returns the score that each choice alone adds to that of the largest bitwidths.

    Returns:
      float64[layers, 2, bitwidths], indexed by the bitwidth; 0 at the largest, infinite outside
      of the bounds.
    """
    asked = [
        (layer, kind, bits)
        for layer, kind in choices.slots
        for bits in range(choices.least[layer, kind], choices.most[layer, kind])
    ]
    policies = np.repeat(choices.most[None], len(asked) + 1, 0)
    for policy, (layer, kind, bits) in zip(policies[1:], asked, strict=True):
        policy[layer, kind] = bits
    whole, *scores = score(tied(choices.lead, policies))
    found = np.full((*choices.least.shape, choices.cost.shape[1]), np.inf)
    np.put_along_axis(found, choices.most[..., None], 0.0, -1)
    for (layer, kind, bits), value in zip(asked, scores, strict=True):
        found[layer, kind, bits] = value - whole
    return found


def monotone(added: np.ndarray) -> np.ndarray:
    """Returns sensitivities by which fewer bits never help.

    Scores of few images are noisy, and some say otherwise; an integer program would believe them.

    Args:
      added: See `sensitivities`.
    """
    known = np.where(np.isinf(added), -np.inf, np.maximum(added, 0.0))
    rising = np.maximum.accumulate(known[..., ::-1], axis=-1)[..., ::-1]
    return np.where(np.isinf(added), np.inf, rising)


def exact(added: np.ndarray, choices: Choices) -> np.ndarray:
    """Returns the policy with the smallest sum of sensitivities within the budget.

    An integer program, solved to optimality by SciPy's HiGHS: a binary variable for each layer and
    pair of bitwidths.

    Args:
      added: See `sensitivities`.
      choices: Bounds and budget.

    Raises:
      InputError: No policy meets the budget.
    """
    from scipy import sparse
    from scipy.optimize import Bounds, LinearConstraint, milp

    layers, bits = len(choices.lead), choices.cost.shape[1]
    leads = choices.lead == np.arange(layers)
    values = added[:, 0, :, None] + np.where(leads[:, None, None], added[:, 1, None, :], 0.0)
    allowed = _allowed(choices, bits)
    most: Any = allowed.ravel().astype(float)
    # HiGHS has absolute tolerances, so values and costs are scaled to the size of 1.
    values = np.nan_to_num(values, nan=np.inf, posinf=np.inf)
    largest = np.abs(values[allowed & np.isfinite(values)]).max(initial=0.0) or 1.0
    values = np.where(np.isfinite(values), values / largest, 1e6)
    missing = np.arange(bits)[::-1]  # of equal sums, the one with more bits
    values = values + TIE * (missing[:, None] + missing)
    values, cost = (
        np.where(allowed, v, 0.0).ravel() for v in (values, choices.cost / choices.budget)
    )
    one_pair = sparse.kron(sparse.eye(layers), np.ones(bits * bits))
    rules = [
        LinearConstraint(one_pair, 1, 1),
        LinearConstraint(cost[None], -np.inf, 1),
    ]
    # A reader has the activations of the first reader: sum_w x[lead, w, a] = sum_w x[layer, w, a].
    by_a_bits = sparse.kron(np.ones(bits), sparse.eye(bits))
    for layer in np.flatnonzero(~leads):
        row = np.zeros((1, layers))
        row[0, choices.lead[layer]], row[0, layer] = 1, -1
        rules.append(LinearConstraint(sparse.kron(row, by_a_bits), 0, 0))
    found = milp(
        values,
        constraints=rules,
        integrality=np.ones(values.size),
        bounds=Bounds(0, most),
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise InputError(f"no policy meets the budget {choices.budget:g}")
    best = found.x.reshape(layers, -1).argmax(1)
    return np.stack(np.divmod(best, bits), 1)


def _allowed(choices: Choices, bits: int) -> np.ndarray:
    """Which pairs of bitwidths a layer may have: bool[layers, w_bits, a_bits]."""
    values = np.arange(bits)
    within = (values >= choices.least[..., None]) & (values <= choices.most[..., None])
    return within[:, 0, :, None] & within[:, 1, None, :]


def greedy(score: Score, choices: Choices, per_round: int) -> np.ndarray:
    """Returns the policy that is left when the bits that hurt least are taken off.

    Every round scores the network as it then is, once with each bit taken off alone, and takes off
    those that add least for the cost that they save.

    Args:
      score: Scores policies.
      choices: Bounds and budget.
      per_round: Bits that are taken off in a round; fewer rounds need fewer scores.

    Raises:
      InputError: No policy meets the budget.
    """
    policy = tied(choices.lead, choices.most.copy())
    while (spent := costs_of(choices.cost, policy)) > choices.budget:
        slots = [s for s in choices.slots if policy[tuple(s)] > choices.least[tuple(s)]]
        if not slots:
            raise InputError(f"no policy meets the budget {choices.budget:g}")
        tried = np.repeat(policy[None], len(slots) + 1, 0)
        for one, (layer, kind) in zip(tried[1:], slots, strict=True):
            one[layer, kind] -= 1
        tried = tied(choices.lead, tried)
        now, *scores = score(tried)
        saved = spent - costs_of(choices.cost, tried[1:])
        hurts = np.maximum(np.array(scores) - now, 0.0)
        # What saves nothing comes last; of those that hurt nothing, first what saves most.
        worth = np.where(saved > 0, (hurts + 1e-6) / np.maximum(saved, 1e-12), np.inf)
        for place in np.argsort(worth, kind="stable")[:per_round]:
            layer, kind = slots[place]
            policy[layer, kind] -= 1
            policy = tied(choices.lead, policy)
            if costs_of(choices.cost, policy) <= choices.budget:
                break
    return policy
