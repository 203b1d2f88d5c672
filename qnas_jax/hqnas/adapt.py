"""A finished search for another device, another budget or another preference: only logits move.

What each choice of each layer adds to the loss, alone, is measured once at the end of the search,
with the shared weights, on held-out images, around the most likely network. Logits then learn on
the sum of these scores and on the expected cost, which takes a second and no image. Added scores
say less than that of a whole network, so draws from the new logits are scored as those of a search.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from qnas_jax.hqnas import relax
from qnas_jax.hqnas.relax import Costs
from qnas_jax.hqnas.shared import Shares

STEPS = 1000
LR = 0.05
RATE = 0.05  # of the controller
MOST_LOGIT = 3.0  # the largest difference of two logits at the beginning


def sensitivities(
    losses: Callable[[np.ndarray], np.ndarray], found: np.ndarray, counts: tuple[int, int, int]
) -> Shares:
    """Returns what each choice adds to the loss of a network, all others being as they are.

    Args:
      losses: Networks as numbers of their candidates, uint8[n, layers, 3] -> float[n].
      found: The network, uint8[layers, 3].
      counts: Number of ops, of bits of weights and of bits of activations.

    Returns:
      float32[layers, candidates] for each kind of choice; 0 at the network itself.
    """
    places = [
        (part, layer, value)
        for part, count in enumerate(counts)
        for layer in range(len(found))
        for value in range(count)
        if value != found[layer, part]
    ]
    tried = np.repeat(found[None], len(places) + 1, 0)
    for other, (part, layer, value) in zip(tried[1:], places, strict=True):
        other[layer, part] = value
    whole, *values = losses(tried)
    added = [np.zeros((len(found), count), np.float32) for count in counts]
    for (part, layer, value), loss in zip(places, values, strict=True):
        added[part][layer, value] = loss - whole
    return Shares(*(jnp.asarray(one) for one in added))


def expected_loss(shares: Shares, added: Shares) -> Float[Array, ""]:
    """Returns the mean of the added scores, see `sensitivities`."""
    parts = zip(shares, added, strict=True)
    return sum((jnp.sum(p * s) for p, s in parts), jnp.float32(0))


@jax.jit
def adapted(
    logits: Shares,
    added: Shares,
    bounds: dict[str, Costs],
    prices: dict[str, Float[Array, ""]],
    most_weight: Float[Array, ""],
) -> Shares:
    """Returns the logits after learning on cached scores.

    Args:
      logits: Of the finished search.
      added: What each choice adds to the loss, see `sensitivities`.
      bounds: Costs with budgets, which a controller holds.
      prices: Names of costs in `bounds` that have a fixed weight instead (in the loss for a cost of
        one budget): the user's preference. No budget is held for them.
      most_weight: Of a cost that a controller holds.
    """
    optimizer = optax.adam(LR)
    held = {name: one for name, one in bounds.items() if name not in prices}

    def loss(logits, weights):
        likely = relax.probabilities(logits)
        value = expected_loss(likely, added) + relax.penalty(likely, held, weights)
        for name, price in prices.items():
            value += price * relax.expected_cost(likely, bounds[name]) / bounds[name].budget
        return value

    def step(state, _):
        logits, own, weights = state
        moved, own = optimizer.update(jax.grad(loss)(logits, weights), own)
        logits = Shares(*optax.apply_updates(logits, moved))  # pyright: ignore
        over = relax.excess(relax.probabilities(logits), held)
        return (logits, own, relax.controlled(weights, over, RATE, most_weight)), None

    zero = {name: jnp.float32(0) for name in held}
    start = movable(logits)
    return jax.lax.scan(step, (start, optimizer.init(start), zero), None, STEPS)[0][0]


def movable(logits: Shares) -> Shares:
    """Returns logits of the same order that can still change.

    Probabilities near 0 have no gradient.
    """
    each = (x - jnp.max(x, -1, keepdims=True) for x in logits)
    return Shares(*(jnp.maximum(x, -MOST_LOGIT) for x in each))
