"""The steps of a search: shared weights learn, and with them the logits of all choices.

Every step draws a choice. The widest network in float learns the labels, and the drawn subnet, with
its few bits, learns what the widest one says: without help, few bits pull the shared weights apart.

References:
  Yu et al., 2020, https://arxiv.org/abs/2003.11142 (the largest network teaches the others).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key, PyTree

from qnas_jax.hqnas import relax
from qnas_jax.hqnas.relax import Bounds
from qnas_jax.hqnas.shared import Shared, Shares
from qnas_jax.nn.units import pixels
from qnas_jax.train import distillation, optimizers


class How(NamedTuple):
    """How weights and logits learn: numbers, so that one program serves warm-up and all searches.

    Attributes:
      steps: Number of steps.
      lr: Of the weights, the highest; falls to 0 as a cosine.
      logit_lr: Of the logits; 0: they stay as they are, and choices cost nothing.
      temperature: Of draws, the first and the last; between, it falls in proportion.
      rate: Of the controller, see `relax.controlled`.
      most_weight: Of a cost.
      damping: Of weights that oscillate, see `nested.chosen_weights`; grows from 0 to this.
    """

    steps: Array | int
    lr: Array | float
    logit_lr: Array | float
    temperature: tuple[Array | float, Array | float]
    rate: Array | float
    most_weight: Array | float
    damping: Array | float


class State(NamedTuple):
    """All that changes.

    Attributes:
      params: The shared weights.
      optimizer: That of the weights.
      logits: Of each layer's choices.
      logit_optimizer: That of the logits.
      weights: Of each cost in the loss.
    """

    params: PyTree
    optimizer: PyTree
    logits: Shares
    logit_optimizer: PyTree
    weights: dict[str, Array]


class Network(NamedTuple):
    """The widest network.

    Attributes:
      model: It.
      shared: Its layers.
      variables: Its fresh `quant` and `batch_stats`; norms use the batch's own statistics.
      loss: (logits, labels) -> mean loss.
    """

    model: nn.Module
    shared: Shared
    variables: PyTree
    loss: Callable[[Array, Any], Array]


# The rates are applied by the step, as numbers of `How`.
WEIGHTS = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())
LOGITS = optax.scale_by_adam(b1=0.5)


def begin(params: PyTree, logits: Shares, costs: tuple[str, ...]) -> State:
    """Returns the state before the first step."""
    # Strongly typed, as a step returns them: else the second step would be compiled again.
    logits = Shares(*(jnp.asarray(x, jnp.float32) for x in logits))
    zero = {name: jnp.float32(0) for name in costs}
    return State(params, WEIGHTS.init(params), logits, LOGITS.init(logits), zero)


def step(network: Network, relaxation: relax.Relaxation, bilevel: bool) -> Callable:
    """Returns a step (how, bounds, key, state, images, labels, number) -> state, metrics.

    The key is that of draws and dropout; each step folds its number into it.

    Args:
      network: The widest network.
      relaxation: How a step makes a network of logits.
      bilevel: Whether logits learn on the second half of a batch, and weights on the first.
    """
    apply = functools.partial(outputs, network)

    def of_widest(params, images, labels, key):
        found = apply({"params": params}, images, key)
        return network.loss(found, labels), found

    def of_drawn(params, logits, weights, bounds, images, target, keys, temperature, damping):
        shares = relaxation.shares(logits, keys[0], temperature)
        quant = network.variables["quant"]
        read = relaxation.read(network.shared, quant, params, shares, damping)
        soft = distillation.cross_entropy(apply(read, images, keys[2]), target)
        return soft + relax.penalty(relax.probabilities(logits), bounds, weights), soft

    def slopes(state: State, bounds, images, labels, keys, *annealed):
        half = len(images) // 2 if bilevel else len(images)
        (hard, target), widest = jax.value_and_grad(of_widest, has_aux=True)(
            state.params, images[:half], labels[:half], keys[1]
        )
        # With this XLA gives up the activations of the widest network before it makes those of the
        # drawn subnet.
        total = jax.tree.reduce(lambda total, g: total + jnp.sum(g), widest, jnp.float32(0))
        images = images + jnp.isnan(total).astype(images.dtype)
        given = state.params, state.logits, state.weights, bounds
        of = functools.partial(jax.grad, of_drawn, has_aux=True)
        if bilevel:
            drawn, soft = of(0)(*given, images[:half], target, keys, *annealed)
            later = apply({"params": state.params}, images[half:], keys[1])
            moved, _ = of(1)(*given, images[half:], later, keys, *annealed)
        else:
            (drawn, moved), soft = of((0, 1))(*given, images, target, keys, *annealed)
        both = jax.tree.map(jnp.add, widest, drawn)
        return both, moved, {"loss": hard, "imitation": soft}

    def one(how: How, bounds: Bounds, key, state: State, images, labels, number):
        keys = jax.random.split(jax.random.fold_in(key, number), 3)
        part = number / how.steps
        first, last = how.temperature
        temperature = first * (last / first) ** part
        annealed = temperature, how.damping * part
        slope, logit_slope, figures = slopes(state, bounds, images, labels, keys, *annealed)
        moved, optimizer = WEIGHTS.update(slope, state.optimizer)
        lr = optimizers.cosine(how.lr, how.steps, 0)(number)
        params = jax.tree.map(lambda w, m: w - lr * m, state.params, moved)
        moved, own = LOGITS.update(logit_slope, state.logit_optimizer)
        logits = jax.tree.map(lambda x, m: x - how.logit_lr * m, state.logits, moved)
        over = relax.excess(relax.probabilities(logits), bounds)
        rate = jnp.where(how.logit_lr > 0, how.rate, 0.0)
        weights = relax.controlled(state.weights, over, rate, how.most_weight)
        after = State(params, optimizer, logits, own, weights)
        return after, {**figures, **_figures(network, after, bounds)}

    return one


def outputs(network: Network, read: PyTree, images: Array, key: Key[Array, ""]) -> Array:
    """Returns the task's logits, with norms of the batch's own statistics.

    Args:
      network: The network.
      read: Its variables, without `batch_stats`.
      images: uint8[n, h, w, 3].
      key: PRNG key of dropout.
    """
    read = {**read, "batch_stats": network.variables["batch_stats"]}
    found: Any = network.model.apply(
        read, pixels(images), train=True, mutable=["batch_stats"], rngs={"dropout": key}
    )
    return found[0]


def _figures(network: Network, state: State, bounds: Bounds) -> dict[str, Array]:
    """What progress lines and curves show."""
    likely = relax.probabilities(state.logits)
    bits = jnp.array(network.shared.bits, jnp.float32)
    found = {
        "w_bits": jnp.mean(likely.w @ bits),
        "a_bits": jnp.mean(likely.a @ bits),
        "op_entropy": -jnp.mean(jnp.sum(likely.op * jnp.log(likely.op + 1e-9), -1)),
    }
    shared = network.shared
    names = shared.ops, [f"w{b}" for b in shared.bits], [f"a{b}" for b in shared.bits]
    for candidates, values in zip(names, likely, strict=True):  # the mean over the layers
        means = jnp.mean(values, 0)
        found |= {f"p_{name}": mean for name, mean in zip(candidates, means, strict=True)}
    for name, over in relax.excess(likely, bounds).items():
        found[f"{name}_over_budget"] = over
        found[f"{name}_weight"] = state.weights[name]
    return found
