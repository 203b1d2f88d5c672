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


def cosine(lr: Any, steps: Any, warmup: int) -> Callable[[Any], Any]:
    """Returns a schedule step -> learning rate, linear up to `lr`, then a half cosine down to 0.

    Args:
      lr: Highest learning rate.
      steps: Number of steps.
      warmup: Steps before the highest learning rate, fewer than `steps`.

    References:
      Loshchilov and Hutter, 2017, https://arxiv.org/abs/1608.03983, eq. 5, without restarts.
    """

    def schedule(count):
        rise = (count + 1) / (warmup + 1)
        share = jnp.clip((count - warmup) / (steps - warmup), 0.0, 1.0)
        return lr * jnp.minimum(rise, 0.5 * (1 + jnp.cos(jnp.pi * share)))

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

    decay = optax.add_decayed_weights(weight_decay, mask=_kernels)
    return _clipped(clip, decay, optax.sgd(polynomial(lr, steps, power), momentum))


def adamw(
    lr: float, steps: int, warmup: int, weight_decay: float, clip: float = 0.0
) -> optax.GradientTransformation:
    """Returns AdamW with a cosine schedule.

    Args:
      lr: Highest learning rate.
      steps: Number of steps.
      warmup: Steps before the highest learning rate.
      weight_decay: Decay of kernels, times the learning rate; norms and biases do not decay.
      clip: Largest global norm of the gradients; 0 disables clipping.

    References:
      Loshchilov and Hutter, 2019, https://arxiv.org/abs/1711.05101, algorithm 2.
    """
    schedule = cosine(lr, steps, warmup)
    return _clipped(clip, optax.adamw(schedule, weight_decay=weight_decay, mask=_kernels))


def _kernels(params: Any) -> Any:
    """Which parameters decay."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _clipped(clip: float, *steps: optax.GradientTransformation) -> optax.GradientTransformation:
    chained = optax.chain(*steps)
    return optax.chain(optax.clip_by_global_norm(clip), chained) if clip else chained
