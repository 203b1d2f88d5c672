"""Optimizers and learning-rate schedules."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def polynomial(lr: float, steps: int, power: float) -> Callable[[Any], Any]:
    """Returns a schedule step -> learning rate, from `lr` at step 0 to 0 at `steps`."""

    def schedule(count):
        return lr * jnp.maximum(1 - count / steps, 0.0) ** power

    return schedule


def sgd(
    lr: float,
    steps: int,
    power: float,
    momentum: float,
    weight_decay: float,
    clip: float = 0.0,
) -> optax.GradientTransformation:
    """Returns SGD with momentum, a polynomial schedule and weight decay.

    Args:
      lr: Learning rate at the first step.
      steps: Number of steps.
      power: Exponent of the schedule.
      momentum: Momentum coefficient.
      weight_decay: Decay of kernels; norms and biases do not decay.
      clip: Largest global norm of the gradients; 0 disables clipping.
    """

    def kernels(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

    decay = optax.add_decayed_weights(weight_decay, mask=kernels)
    sgd = optax.chain(decay, optax.sgd(polynomial(lr, steps, power), momentum))
    return optax.chain(optax.clip_by_global_norm(clip), sgd) if clip else sgd
