"""From logits to a network: draws within the budget, scored with the shared weights.

What choices add to the loss one by one says little about many changes at once, so whole subnets are
scored, and the best draw is improved by a local search.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from qnas_jax import space
from qnas_jax.errors import InputError
from qnas_jax.hqnas import relax
from qnas_jax.hqnas.relax import Bounds
from qnas_jax.hqnas.shared import Shared, Shares, codes_of, one_hot, subnet_at, subnet_of
from qnas_jax.search import pareto
from qnas_jax.stages.scoring import Scores

Prices = Mapping[str, Array]  # by the name of the cost
NO_PRICES: Prices = MappingProxyType({})

SLACK = 1e-6  # of a budget, for the rounding of sums
EPSILON = 1e-3  # of the front of added scores: how far its sums may be off, relatively
AT_ONCE = 8  # neighbours in a round of the local search
MOST_CHANGES = 3  # of a neighbour


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
    bounds: Bounds,
    added: Shares,
    evaluate: Callable[[list[space.Subnet]], Scores],
    key: Key[Array, ""],
    count: int,
    prices: Prices,
) -> list[Scored]:
    """Returns the most likely subnet, the best by added scores, and some draws; the best first.

    All are brought within the budgets, and filled up to them. The best is that of the lowest loss,
    with what its costs add if they have prices.

    Args:
      described: The layers.
      logits: Of their choices.
      bounds: What bounds the subnets; the first cost is that of the result.
      added: What each choice adds to the loss, see `adapt.sensitivities`.
      evaluate: Scores subnets.
      key: PRNG key of the draws.
      count: Number of subnets.
      prices: Of costs that have no budget, see `adapt.adapted`.
    """
    drawn = relax.draws(logits, key, max(count - 1, 1))
    each = [Shares(*(part[i] for part in drawn)) for i in range(count - 1)]
    subnets = [subnet_of(described, one) for one in (relax.most_likely(logits), *each)]
    held = {name: one for name, one in bounds.items() if name not in prices}
    subnets = [one for subnet in subnets if (one := within(described, subnet, held))]
    subnets = [filled(described, one, added, bounds, prices) for one in subnets]
    best = best_by_sum(described, added, bounds, prices)
    subnets = list(dict.fromkeys([best, *subnets]))[:count]
    scores, first = evaluate(subnets), next(iter(bounds.values()))
    found = [
        Scored(s, cost_of(described, s, first), float(a))
        for s, a in zip(subnets, scores.accuracy, strict=True)
    ]
    rank = scores.loss + [paid(described, subnet, bounds, prices) for subnet in subnets]
    return [found[place] for place in np.argsort(rank, kind="stable")]


def paid(described: Shared, subnet: space.Subnet, bounds: Bounds, prices: Prices) -> float:
    """Returns what the costs of a subnet add to its loss, see `adapt.adapted`."""
    shares = {
        name: cost_of(described, subnet, bounds[name]) / float(bounds[name].budget)
        for name in prices
    }
    return sum((float(price) * shares[name] for name, price in prices.items()), 0.0)


def climbed(
    described: Shared,
    subnet: space.Subnet,
    bounds: Bounds,
    added: Shares,
    losses: Callable[[np.ndarray], np.ndarray],
    key: Key[Array, ""],
    count: int,
    prices: Prices = NO_PRICES,
    parts: Sequence[int] = (0, 1, 2),
) -> space.Subnet:
    """Returns a subnet of lower loss, by local search.

    Each round scores a few random neighbours of the best subnet; the best of all stays. A neighbour
    has another op in some layers, or a bit more or less, and is brought within the budgets and
    filled up to them.

    Args:
      described: The layers.
      subnet: Where it begins.
      bounds: The costs.
      added: What each choice adds to the loss, see `adapt.sensitivities`.
      losses: Subnets as numbers of their candidates, uint8[n, layers, 3] -> float[n].
      key: PRNG key of the neighbours.
      count: How many subnets are scored at most, the first one among them.
      prices: Of costs that have no budget, see `adapt.adapted`.
      parts: What may change: ops (0), bits of weights (1), of activations (2).
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    held = {name: one for name, one in bounds.items() if name not in prices}
    best, least, seen, left = subnet, np.inf, {subnet}, count
    fresh = [subnet]
    while left > 0:
        for _ in range(10 * AT_ONCE):  # few subnets may be left in a small space
            near = within(described, _neighbour(described, best, rng, parts), held)
            if not near or not _same_but(described, best, near, parts):
                continue
            near = filled(described, near, added, bounds, prices)
            if near not in seen:
                seen.add(near)
                fresh.append(near)
            if len(fresh) >= min(AT_ONCE, left):
                break
        if not fresh:
            break
        values = losses(np.stack([codes_of(described, one) for one in fresh]))
        values = values + [paid(described, one, bounds, prices) for one in fresh]
        values = np.where(np.isnan(values), np.inf, values)
        if values.min() < least:
            best, least = fresh[int(np.argmin(values))], values.min()
        left, fresh = left - len(fresh), []
    return best


def _same_but(described: Shared, a: space.Subnet, b: space.Subnet, parts: Sequence[int]) -> bool:
    """Whether two subnets differ in these parts alone; `within` may have changed others."""
    fixed = [part for part in range(3) if part not in parts]
    return bool((codes_of(described, a)[:, fixed] == codes_of(described, b)[:, fixed]).all())


def _neighbour(
    described: Shared, subnet: space.Subnet, rng: np.random.Generator, parts: Sequence[int]
) -> space.Subnet:
    codes, steps = codes_of(described, subnet), np.argsort(described.bits)
    for _ in range(rng.integers(1, MOST_CHANGES + 1)):
        layer, part = rng.integers(len(codes)), rng.choice(parts)
        if part == 0:
            codes[layer, 0] = rng.integers(len(described.ops))
            continue
        place = int(np.flatnonzero(steps == codes[layer, part])[0]) + rng.choice((-1, 1))
        codes[layer, part] = steps[np.clip(place, 0, len(steps) - 1)]
    return subnet_at(described, codes)


def cost_of(described: Shared, subnet: space.Subnet, costs: relax.Costs) -> float:
    """Returns the cost of a subnet."""
    return float(relax.expected_cost(one_hot(described, subnet), costs))


def best_by_sum(
    described: Shared, added: Shares, bounds: Bounds, prices: Prices = NO_PRICES
) -> space.Subnet:
    """Returns the subnet of the smallest sum of added scores within all budgets.

    It is that of the Pareto front of the sums, within `EPSILON`.

    Args:
      described: The layers.
      added: What each choice adds to the loss, see `adapt.sensitivities`; infinite where a choice
        is not allowed.
      bounds: The costs.
      prices: Of costs that are added to the scores, and have no budget; see `adapt.adapted`.

    Raises:
      InputError: No subnet meets the budgets.
    """
    op, w, a = (np.asarray(part, np.float64) for part in added)
    least = (np.where(np.isfinite(part), part, np.inf).min(1, keepdims=True) for part in (op, w, a))
    op, w, a = (part - low for part, low in zip((op, w, a), least, strict=True))
    values = op[:, :, None, None] + w[:, None, :, None] + a[:, None, None, :]
    for name, price in prices.items():
        one = bounds[name]
        values = values + float(price) * np.asarray(one.layers) / float(one.budget)
    bounds = {name: one for name, one in bounds.items() if name not in prices}
    if not bounds:
        best = values.reshape(len(values), -1).argmin(1)
        return subnet_at(described, np.stack(np.unravel_index(best, values.shape[1:]), 1))
    costs = {name: np.asarray(one.layers, np.float64) for name, one in bounds.items()}
    tables = [
        np.stack([values[layer].ravel(), *(c[layer].ravel() for c in costs.values())], -1)
        for layer in range(len(values))
    ]
    front = pareto.pareto_front(tables, EPSILON)
    most = [float(one.budget) * (1 + SLACK) - float(one.fixed) for one in bounds.values()]
    allowed = np.flatnonzero((front.objectives[:, 1:] <= most).all(1))
    if not len(allowed):
        raise InputError(refusal(bounds))
    best = front.rows[allowed[np.argmin(front.objectives[allowed, 0])]]
    return subnet_at(described, np.stack(np.unravel_index(best, values.shape[1:]), 1))


def filled(
    described: Shared, subnet: space.Subnet, added: Shares, bounds: Bounds, prices: Prices
) -> space.Subnet:
    """Returns a subnet with as many more bits as the budgets allow, where they help most.

    Args:
      described: The layers.
      subnet: Within the budgets.
      added: What each choice adds to the loss, see `adapt.sensitivities`.
      bounds: The costs.
      prices: Of costs that have no budget, see `adapt.adapted`.
    """
    codes, bits = codes_of(described, subnet), np.array(described.bits)
    own = codes[:, :1] == np.arange(len(described.ops))
    more = [bits >= bits[codes[:, part]][:, None] for part in (1, 2)]
    allowed = zip(added, (own, *more), strict=True)
    return best_by_sum(
        described, Shares(*(jnp.where(mask, part, jnp.inf) for part, mask in allowed)), bounds,
        prices,
    )  # fmt: skip


def check(described: Shared, bounds: Bounds) -> None:
    """Raises InputError where no subnet meets all budgets together."""
    layers = len(described.layers)
    counts = len(described.ops), len(described.bits), len(described.bits)
    best_by_sum(described, Shares(*(jnp.zeros((layers, count)) for count in counts)), bounds)


def within(described: Shared, subnet: space.Subnet, bounds: Bounds) -> space.Subnet | None:
    """Returns a subnet that meets the budgets: the given one, or one of less.

    One layer after another takes another choice that raises no cost, each time that which saves
    least, so that the result stays near the given subnet. None where no such choice is left; with
    one budget there always is one.
    """
    if not bounds:
        return subnet
    costs = [np.asarray(one.layers, np.float64) / float(one.budget) for one in bounds.values()]
    most = np.array([1 - float(one.fixed) / float(one.budget) for one in bounds.values()])
    flat = np.stack([one.reshape(len(one), -1) for one in costs])  # [costs, layers, choices]
    rows, shape = np.arange(flat.shape[1]), costs[0].shape[1:]
    chosen = np.array(np.ravel_multi_index(tuple(codes_of(described, subnet).T), shape))
    while (over := flat[:, rows, chosen].sum(1) > most + SLACK).any():
        less = flat[:, rows, chosen][:, :, None] - flat
        saved = less[over].sum(0)
        saved = np.where((saved > 0) & (less >= 0).all(0), saved, np.inf)
        layer, choice = np.unravel_index(np.argmin(saved), saved.shape)
        if np.isinf(saved[layer, choice]):
            return None
        chosen[layer] = choice
    return subnet_at(described, np.stack(np.unravel_index(chosen, shape), 1))


def refusal(bounds: Bounds) -> str:
    """Returns what is said where no subnet meets the budgets."""
    budgets = ", ".join(f"{name} {float(one.budget):g}" for name, one in bounds.items())
    return f"no subnet meets the budgets: {budgets}"
