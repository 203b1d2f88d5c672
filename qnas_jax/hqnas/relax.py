"""Choices as probabilities that learn by gradient, and a controller that holds the budget.

Each layer has logits for its ops, for the bits of its weights and for those of its activations.

References:
  Jang et al., 2017, https://arxiv.org/abs/1611.01144 (Gumbel-softmax, straight through).
  Wu et al., 2019, https://arxiv.org/abs/1812.03443 (the expected cost of a relaxed network).
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from qnas_jax.hqnas import shared
from qnas_jax.hqnas.shared import Shared, Shares


class Costs(NamedTuple):
    """What a network costs on a device, and the bound.

    Attributes:
      layers: float32[layers, ops, w_bits, a_bits] of each candidate, in any unit.
      fixed: What all else costs, in that unit.
      budget: The highest cost of the whole network.
    """

    layers: Array
    fixed: Array
    budget: Array


PROPORTION = 5.0  # of the controller: the weight of a cost that is twice its budget
MOST_EXCESS = 0.1  # relative to the budget, that a step of the controller counts

Bounds = Mapping[str, Costs]  # by the name of the cost


def first(described: Shared, first_bits: float) -> Shares:
    """Returns logits of ops that are equally likely, and of bits, the likelier the more.

    A search that begins with many bits takes off what the budget asks for. One that begins with
    equal chances keeps few bits wherever a loose budget does not press.

    Args:
      described: The layers.
      first_bits: Logit of the most bits; that of the fewest is 0, and the others lie between.
    """
    layers = len(described.layers)
    places = jnp.argsort(jnp.argsort(jnp.array(described.bits)))
    bits = first_bits * places / max(len(described.bits) - 1, 1)
    bits = jnp.broadcast_to(bits, (layers, len(described.bits)))
    return Shares(jnp.zeros((layers, len(described.ops))), bits, bits)


def probabilities(logits: Shares) -> Shares:
    """Returns the probability of each candidate, the continuous mixture."""
    return Shares(*(jax.nn.softmax(x, axis=-1) for x in logits))


def sample(logits: Shares, key: Key[Array, ""], temperature: Float[Array, ""]) -> Shares:
    """Returns a random choice, one-hot; its gradient is that of the relaxed choice.

    The largest of the logits with Gumbel noise is a draw from their softmax. The gradient is that
    of the softmax of the noisy logits over the temperature (straight through).

    Args:
      logits: Of each candidate.
      key: PRNG key.
      temperature: Above 0; the lower, the nearer is the relaxed choice to the one-hot one.
    """

    def one(logits, key):
        soft = jax.nn.softmax((logits + jax.random.gumbel(key, logits.shape)) / temperature)
        hard = jax.nn.one_hot(jnp.argmax(soft, -1), logits.shape[-1])
        return hard + (soft - jax.lax.stop_gradient(soft))

    return Shares(*map(one, logits, jax.random.split(key, len(logits))))


def mixture(logits: Shares, key: Key[Array, ""], temperature: Float[Array, ""]) -> Shares:
    """Returns the probabilities, in place of a random choice; see `sample`."""
    del key, temperature
    return probabilities(logits)


class Relaxation(NamedTuple):
    """How a step makes a network of logits.

    Attributes:
      shares: (logits, key, temperature) -> shares.
      read: (shared, quant, params, shares) -> variables, see `shared.chosen`.
    """

    shares: Callable
    read: Callable


RELAXATIONS = {
    "sampled": Relaxation(sample, shared.chosen),
    "mixture": Relaxation(mixture, shared.mixed),
}


def most_likely(logits: Shares) -> Shares:
    """Returns the choice of the highest probabilities, one-hot."""
    return Shares(*(jax.nn.one_hot(jnp.argmax(x, -1), x.shape[-1]) for x in logits))


def expected_cost(shares: Shares, costs: Costs) -> Float[Array, ""]:
    """Returns the mean cost of the networks that independent draws give, ``sum(p * cost)``.

    With one-hot shares it is the cost of that subnet.
    """
    return costs.fixed + jnp.einsum("lo,lw,la,lowa->", *shares, costs.layers)


def at_bits(costs: Costs, place: int) -> Costs:
    """Returns the costs of ops at one bitwidth, given by its place, whatever the bits are."""
    layers = costs.layers[:, :, place, place][:, :, None, None]
    return costs._replace(layers=jnp.broadcast_to(layers, costs.layers.shape))


def of_ops(described: Shared, bounds: Bounds) -> dict[str, Costs]:
    """Returns the costs of ops where bits are not known yet: those of the middle bitwidth."""
    by_bits = sorted(range(len(described.bits)), key=lambda place: described.bits[place])
    return {name: at_bits(one, by_bits[len(by_bits) // 2]) for name, one in bounds.items()}


def excess(shares: Shares, bounds: Bounds) -> dict[str, Array]:
    """Returns by how much each cost is above its budget, relative to it; negative below."""
    return {name: expected_cost(shares, one) / one.budget - 1 for name, one in bounds.items()}


def penalty(shares: Shares, bounds: Bounds, weights: Mapping[str, Array]) -> Float[Array, ""]:
    """Returns the term of the loss that pulls each cost to its budget.

    A weight is that of the controller, which follows slowly (see `controlled`), and a part in
    proportion to the present excess, without which the cost would swing around its budget.
    """
    total = jnp.float32(0)
    for name, over in excess(shares, bounds).items():
        now = jax.lax.stop_gradient(weights[name] + PROPORTION * over)
        total += jnp.maximum(now, 0.0) * over
    return total


def controlled(
    weights: Mapping[str, Array],
    over: Mapping[str, Array],
    rate: Array | float,
    most: Array | float,
) -> dict[str, Array]:
    """Returns the weights of the costs after a step, so that budgets hold without tuning.

    A weight grows while the cost is above its budget, and shrinks to 0 below (dual ascent on the
    Lagrangian). An excess counts up to `MOST_EXCESS`: else the weight would pile up while a cost
    comes down, and then press it far below its budget.

    Args:
      weights: Of each cost.
      over: Its relative excess, see `excess`.
      rate: How fast weights follow.
      most: Their bound.
    """
    counted = {name: jnp.minimum(over[name], MOST_EXCESS) for name in weights}
    return {name: jnp.clip(weights[name] + rate * counted[name], 0.0, most) for name in weights}


@functools.partial(jax.jit, static_argnums=(2,))
def draws(logits: Shares, key: Key[Array, ""], count: int) -> Shares:
    """Returns several choices, one-hot, the first axis being the choices."""
    keys = jax.random.split(key, count)
    return jax.vmap(lambda k: sample(logits, k, jnp.float32(1)))(keys)
