"""Distillation of whole networks: one learns the outputs of another, besides the labels."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from qnas_jax import metrics
from qnas_jax.nn.mobilenet import MobileNetV2
from qnas_jax.run.recipes import FEATURES, LOGITS


class Distillation(NamedTuple):
    """What a network learns from another one.

    Attributes:
      teacher: The other network.
      terms: The weights of "logits" and "features" in the loss; the labels have 1.
    """

    teacher: nn.Module
    terms: dict[str, float]


class Outputs(NamedTuple):
    """What a network computes of some images.

    Attributes:
      logits: As the network gives them.
      features: The outputs of its blocks.
    """

    logits: Array
    features: tuple[Array, ...]


def applied(
    model: nn.Module, variables: PyTree, images: Array, **options: Any
) -> tuple[Outputs, PyTree]:
    """Returns the outputs of a network, and the collections that it changed.

    Args:
      model: The network, whose encoder is a `MobileNetV2`.
      variables: Its variables.
      images: As the network reads them.
      **options: Of `model.apply`, see Flax.
    """
    mutable = [*options.pop("mutable", ()), "intermediates"]
    found: Any = model.apply(
        variables, images, mutable=mutable, capture_intermediates=_is_encoder, **options
    )
    logits, changed = found
    features = jax.tree.leaves(changed.pop("intermediates", {}))
    return Outputs(logits, tuple(features[1:])), changed


def _is_encoder(module: nn.Module, method: str) -> bool:
    return isinstance(module, MobileNetV2) and method == "__call__"


def loss(outputs: Outputs, teacher: Outputs, terms: dict[str, float]) -> Float[Array, ""]:
    """Returns the weighted sum of the differences of a network from its teacher.

    `logits` is the cross-entropy from the teacher's probabilities, mean over images and pixels;
    `features` the NSR of the blocks' outputs, mean over the blocks.

    Args:
      outputs: Of the network.
      teacher: Those of its teacher; features have the same shapes.
      terms: The weight of each term.

    References:
      Hinton et al., 2015, https://arxiv.org/abs/1503.02531 (eq. 2, with a temperature of 1).
    """
    total = jnp.float32(0)
    if LOGITS in terms:
        total += terms[LOGITS] * cross_entropy(outputs.logits, teacher.logits)
    if FEATURES in terms:
        pairs = zip(outputs.features, teacher.features, strict=True)
        each = [metrics.nsr(x, y, metrics.channel_variance(y)) for x, y in pairs]
        total += terms[FEATURES] * sum(each) / len(each)
    return total


def cross_entropy(
    logits: Float[Array, "*shape classes"], target: Float[Array, "*shape classes"]
) -> Float[Array, ""]:
    """Returns the cross-entropy of logits from the probabilities of others, mean over all."""
    likely = jax.nn.softmax(target, axis=-1)
    return -jnp.mean(jnp.sum(likely * jax.nn.log_softmax(logits, axis=-1), axis=-1))
