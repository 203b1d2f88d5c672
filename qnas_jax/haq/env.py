"""The environment: an episode proposes the bitwidths of all layers, within a budget.

Each layer has two steps, its weights and the activations that it reads. A state has ten features of
the layer and of the step before; an action in [0, 1] becomes a bitwidth. After the episode, bits
are taken off until the cost meets the budget. All is data, so one program serves every device,
budget and order.

References:
  Wang et al., 2019, https://arxiv.org/abs/1811.08886, sections 3.1 to 3.3; the order of taking off
  bits is that of its code, https://github.com/mit-han-lab/haq.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from qnas_jax.haq import ddpg
from qnas_jax.haq.ddpg import DDPG, Agent
from qnas_jax.space import LEAST_BITS, MOST_BITS, Conv

FEATURES = 10  # of a state
REWARD_SCALE = 0.1  # of a point of accuracy


class Layers(NamedTuple):
    """The layers whose bitwidths are chosen, in the order in which they run.

    Attributes:
      features: float32[layers, 8], each in [0, 1]: depthwise, input and output channels, stride,
        kernel, weights, input pixels, number.
      lead: int32[layers], the first layer that reads the same tensor. Its choice of activations
        is that of all of them.
      least: int32[layers, 2], the smallest bitwidths of weights and of activations.
      most: int32[layers, 2], the largest; equal to the smallest where nothing is chosen.
      slots: int32[steps], what an episode decides, in order: 2 * layer is the weights of a layer,
        2 * layer + 1 its activations.
    """

    features: Array
    lead: Array
    least: Array
    most: Array
    slots: Array


class World(NamedTuple):
    """What a policy costs, and may cost.

    Attributes:
      cost: float32[layers, w_bits, a_bits], indexed by the bitwidths themselves.
      budget: The highest sum over the layers.
      order: int32[steps], the slots in the order in which bits are taken off.
    """

    cost: Array
    budget: Array
    order: Array


def describe(
    convs: Sequence[Conv],
    lead: Sequence[int] | np.ndarray,
    bounds: tuple[int, int] = (LEAST_BITS, MOST_BITS),
    chooses: tuple[bool, bool] = (True, True),
    pinned: Sequence[int] = (0, -1),
) -> Layers:
    """Returns the layers of a network.

    Args:
      convs: Its convolutions.
      lead: For each, the number of the first that reads the same tensor.
      bounds: The smallest and the largest bitwidth.
      chooses: Whether the bitwidths of weights, and those of activations, are chosen.
      pinned: Layers that keep the most bits. As published, the first, which reads the bytes of an
        image, and the last.
    """
    columns = np.array([_numbers(number, conv) for number, conv in enumerate(convs)], np.float64)
    low, high = columns.min(0), columns.max(0)
    features = (columns - low) / np.where(high > low, high - low, 1.0)
    least = np.full((len(convs), 2), bounds[0])
    most = np.full((len(convs), 2), bounds[1])
    least[:, ~np.array(chooses)] = bounds[1]
    least[list(pinned)] = bounds[1]
    lead = np.asarray(lead)
    for kept in np.flatnonzero(least[:, 1] == most[:, 1]):  # and with it what reads the same
        least[lead == lead[kept], 1] = bounds[1]
    return Layers(
        jnp.asarray(features, jnp.float32),
        jnp.asarray(lead, jnp.int32),
        jnp.asarray(least, jnp.int32),
        jnp.asarray(most, jnp.int32),
        jnp.asarray(np.arange(2 * len(convs)).reshape(-1, 2)[:, chooses].ravel(), jnp.int32),
    )


def _numbers(number: int, conv: Conv) -> tuple[int, ...]:
    depthwise = conv.groups > 1
    pixels = conv.in_height * conv.in_width
    # A layer that reads one pixel is a fully connected one, whose stride counts as 0.
    stride = conv.stride if pixels > 1 else 0
    sizes = (conv.in_channels, conv.out_channels, stride, conv.kernel, conv.weights, pixels)
    return (int(depthwise), *sizes, number)


def from_last(layers: Layers) -> Int[Array, "steps"]:
    """Returns the published order: from the last layer to the first, activations, then weights."""
    return layers.slots[::-1]


def to_bits(action: Float[Array, "*n"], least: Int[Array, ""], most: Int[Array, ""]):
    """Returns ``round(least - 0.5 + action * (most - least + 1))``, eq. 3, within the bounds."""
    bits = jnp.round(least - 0.5 + action * (most - least + 1))
    return jnp.clip(bits, least, most).astype(jnp.int32)


def tied(layers: Layers, bits: Int[Array, "l 2"]) -> Int[Array, "l 2"]:
    """Returns the bits, with one choice of activations for all readers of a tensor."""
    return jnp.stack([bits[:, 0], bits[layers.lead, 1]], axis=1)


def cost_of(world: World, bits: Int[Array, "l 2"]) -> Float[Array, ""]:
    """Returns the cost of a policy, the sum over its layers."""
    return jnp.sum(world.cost[jnp.arange(len(bits)), bits[:, 0], bits[:, 1]])


def within_budget(layers: Layers, world: World, bits: Int[Array, "l 2"]) -> Int[Array, "l 2"]:
    """Takes bits off, one at a time in the world's order, until the cost meets the budget.

    Sweeps over the layers repeat until the budget is met or all layers are at their smallest.
    """

    def too_much(found):
        bits, _ = found
        return (cost_of(world, bits) > world.budget) & jnp.any(bits > layers.least)

    def take_off(found):
        bits, place = found
        slot = world.order[place % len(world.order)]
        taken = _can_be_taken(layers, bits)[slot].astype(jnp.int32)
        return tied(layers, _without(bits, slot, taken)), place + 1

    return lax.while_loop(too_much, take_off, (tied(layers, bits), jnp.int32(0)))[0]


def from_highest(layers: Layers, world: World, bits: Int[Array, "l 2"]) -> Int[Array, "l 2"]:
    """Takes bits off where there are most, until the cost meets the budget.

    Among equal ones, the first in the world's order. So a proposal that is far too large becomes
    one of about the same bits everywhere, while the sweep of `within_budget` starves the layers
    that come first in the order.
    """

    def too_much(bits):
        return (cost_of(world, bits) > world.budget) & jnp.any(bits > layers.least)

    def take_off(bits):
        left = jnp.where(_can_be_taken(layers, bits), bits.ravel(), -1)
        slot = world.order[jnp.argmax(left[world.order])]
        return tied(layers, _without(bits, slot, 1))

    return lax.while_loop(too_much, take_off, tied(layers, bits))


def _can_be_taken(layers: Layers, bits: Int[Array, "l 2"]) -> Array:
    """Which slots have a bit that may be taken off: bool[2 * layers]."""
    leads = layers.lead == jnp.arange(len(bits))
    return ((bits > layers.least) & jnp.stack([jnp.ones_like(leads), leads], 1)).ravel()


def _without(bits: Int[Array, "l 2"], slot: Array, taken: Any) -> Int[Array, "l 2"]:
    return bits.ravel().at[slot].add(-taken).reshape(bits.shape)


Trim = Callable[[Layers, World, Array], Array]


class Episode(NamedTuple):
    """A proposal.

    Attributes:
      bits: int32[layers, 2], the policy within its budget.
      states: float32[steps, FEATURES].
      actions: float32[steps]: as proposed where the bits are those of the proposal, else an action
        that proposes the bits that are left.
    """

    bits: Array
    states: Array
    actions: Array


def propose(
    how: DDPG, layers: Layers, agent: Agent, world: World, trim: Trim = within_budget
) -> Episode:
    """Runs an episode: a step for the weights and one for the activations of each layer.

    Layers that are pinned take part like the others; their bits are set afterwards. `trim` then
    takes bits off. The first episode of all proposes the most bits everywhere (the paper's is
    random): what is left of them is near uniform bits, so the best policy is no worse than these.

    States and actions are those of the policy that is left, from which the agent learns. The
    paper's are those of the proposal: where bits are taken off, all large proposals give the same
    policy, and the actor then drifts to the largest actions and stays there.
    """
    least, most = jnp.min(layers.least), jnp.max(layers.most)

    def step(last, slot):
        layer, kind = slot // 2, slot % 2
        own = layers.features[layer]
        state = jnp.concatenate([own, jnp.stack([last, kind.astype(jnp.float32)])])
        action = jnp.where(agent.episodes == 0, 1.0, ddpg.act(how, agent, state, slot))
        bits = to_bits(action, least, most)
        return bits / most, (state, action, bits)

    first = jnp.float32(1.0)  # an image has the most bits
    _, (states, actions, proposed) = lax.scan(step, first, layers.slots)
    bits = layers.most.ravel().at[layers.slots].set(proposed).reshape(-1, 2)
    bits = trim(layers, world, jnp.clip(bits, layers.least, layers.most))
    left = bits.ravel()[layers.slots]
    actions = jnp.where(left == proposed, actions, (left - least + 0.5) / (most - least + 1))
    before = jnp.concatenate([first[None], left[:-1] / most])
    return Episode(bits, states.at[:, -2].set(before), actions)


def reward_of(accuracy: Float[Array, "*n"], original: float) -> Float[Array, "*n"]:
    """Returns the reward of accuracies in percent, eq. 6."""
    return REWARD_SCALE * (accuracy - original)
