"""Trains a whole network in float; calibrates it; runs it in float or quantized."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key, PyTree

from qnas_jax.nn.units import pixels
from qnas_jax.run import parallel
from qnas_jax.train import distillation
from qnas_jax.train.distillation import Distillation


class TrainState(NamedTuple):
    """Everything that changes during training."""

    params: PyTree
    batch_stats: PyTree
    optimizer: PyTree

    def variables(self) -> PyTree:
        """Returns the variables of the float network."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def fresh_state(variables: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state at step 0."""
    params = variables["params"]
    return TrainState(params, variables["batch_stats"], optimizer.init(params))


ADAPTERS = "adapters"  # a collection of projections, one for each boundary; see `features`


def features(model: nn.Module) -> Callable[[PyTree, Any], tuple[Array, ...]]:
    """Returns a function (variables, images) -> feature maps at all block boundaries, in float.

    If the variables have adapters, "boundary0", "boundary1", ... [channels, fewer channels], the
    maps are projected by them.
    """

    def run(variables, images) -> Any:
        variables = dict(variables)
        adapters = variables.pop(ADAPTERS, None)
        maps: Any = model.apply(variables, pixels(images), method="features")
        if adapters is None:
            return maps
        return tuple(x @ adapters[f"boundary{i}"] for i, x in enumerate(maps))

    return run


def train_step(
    model: nn.Module,
    loss: Callable[[Array, Any], Array],
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    compute: str = "float32",
    distill: Distillation | None = None,
    parts: int = 1,
) -> Callable:
    """Returns a supervised training step, in float, in the form that `loop.several` takes.

    Args:
      model: The network.
      loss: (logits in float32, labels) -> mean loss of the batch.
      optimizer: Optimizer of the parameters.
      key: PRNG key of dropout.
      compute: Data type of the network's computation; parameters, batch-norm statistics and the
        loss stay float32.
      distill: What the network learns from another one, whose variables are then the step's first
        argument.
      parts: See `policy_step`.
    """
    step = policy_step(model, loss, optimizer, key, _float, compute, distill, parts=parts)
    if distill:
        return lambda variables, *given: step((None, variables), *given)
    return functools.partial(step, None)


def _float(params: PyTree, bits: None) -> PyTree:
    del bits
    return {"params": params}


def policy_step(
    model: nn.Module,
    loss: Callable[[Array, Any], Array],
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    quantize: Callable[[PyTree, Any], PyTree],
    compute: str = "float32",
    distill: Distillation | None = None,
    frozen: bool = False,
    parts: int = 1,
) -> Callable:
    """Returns a training step of a network under a policy, which is the step's first argument.

    The policy is data: one program trains every policy, and `vmap` several at once. Gradients pass
    through rounding as if it were not there (straight through).

    Args:
      model: The network.
      loss: (logits in float32, labels) -> mean loss of the batch.
      optimizer: Optimizer of the parameters.
      key: PRNG key of dropout.
      quantize: (params, policy) -> the variables that the network reads, without `batch_stats`.
      compute: See `train_step`.
      distill: What the network learns from another one. The step's first argument is then a pair:
        the policy, and the teacher's variables.
      frozen: Whether batch norms use and keep their stored statistics; nothing is dropped then.
      parts: Parts of a batch, each with batch-norm statistics of its own; stored is their mean. It
        divides the batch.
    """

    def applied(variables, images, dropout):
        return distillation.applied(
            model,
            variables,
            images,
            train=not frozen,
            mutable=[] if frozen else ["batch_stats"],
            rngs={"dropout": dropout},
        )

    def loss_of(params, batch_stats, policy, images, labels, dropout, target):
        variables = {**quantize(params, policy), "batch_stats": batch_stats}
        run = applied if parts == 1 else _in_parts(applied, parts)
        outputs, changed = run(variables, pixels(images).astype(compute), dropout)
        outputs = jax.tree.map(lambda x: x.astype(jnp.float32), outputs)
        value = loss(outputs.logits, labels)
        if distill:
            value += distillation.loss(outputs, target, distill.terms)
        return value, changed.get("batch_stats", batch_stats)

    @jax.jit
    def step(policy, state: TrainState, images, labels, number):
        dropout, target = jax.random.fold_in(key, number), None
        if distill:
            policy, variables = policy
            target = distillation.applied(distill.teacher, variables, pixels(images))[0]
        (value, batch_stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            state.params, state.batch_stats, policy, images, labels, dropout, target
        )
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, batch_stats, optimizer_state), {"loss": value}

    return step


def _in_parts(applied: Callable, parts: int) -> Callable:
    """The function (variables, images, key) -> outputs and what changed, part by part."""

    def run(variables, images, key):
        split = images.reshape(parts, -1, *images.shape[1:])
        # The mapped axis becomes one of the batch in each layer, at the cost of the whole batch.
        outputs, changed = jax.vmap(applied, (None, 0, 0))(
            variables, split, jax.random.split(key, parts)
        )
        whole = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outputs)
        return whole, jax.tree.map(lambda x: jnp.mean(x, axis=0), changed)

    return run


def predictor(
    model: nn.Module, predict: Callable[[Array, tuple[int, int]], Array]
) -> Callable[[PyTree, Any], Array]:
    """Returns a compiled function (variables, images) -> predicted classes, uint8[n, ...].

    The network is quantized if the variables contain `quant` (see `nn/conv.py`), else float.

    Args:
      model: The network.
      predict: (logits, (height, width) of the images) -> predicted classes.
    """

    @jax.jit
    def run(variables, images):
        logits: Any = model.apply(variables, pixels(images))
        return predict(logits, images.shape[1:3])

    return run


def calibrated(
    model: nn.Module, variables: PyTree, quant: PyTree, batches: Iterable[np.ndarray]
) -> PyTree:
    """Returns the policy with ranges widened to cover the activations of all batches.

    Args:
      model: The network.
      variables: Its `params` and `batch_stats`.
      quant: The policy, with its final bitwidths and the ranges of `init`.
      batches: Images, uint8[n, h, w, 3].
    """

    @jax.jit
    def calibrate(variables, images):
        return model.apply(variables, pixels(images), mutable=["quant"])[1]["quant"]

    # Placed like the results of the program; else the second batch would compile it again.
    quant = jax.device_put(quant, parallel.team().devices[0])
    for images in batches:
        quant = calibrate({**variables, "quant": quant}, images)
    return quant
