"""Trains and evaluates a segmentation network, in float and quantized."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree, UInt8

from qnas_jax import metrics
from qnas_jax.data.batching import Dataset, prefetch, stacked
from qnas_jax.nn.deeplab import DeepLabV3, resize_logits

ClassMaps = Callable[[np.ndarray], Any]  # uint8[n, h, w, 3] -> uint8[n, h, w]


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


def pixels(images: UInt8[Array, "n h w 3"]) -> Float[Array, "n h w 3"]:
    """Converts bytes to floats in [-1, 1), in steps of 1/128, as networks expect them."""
    return images.astype(jnp.float32) / 128 - 1


def cross_entropy(
    logits: Float[Array, "n h w classes"], labels: UInt8[Array, "n h w"]
) -> Float[Array, ""]:
    """Returns the mean cross-entropy over the pixels that are not ignored; 0 if all are."""
    counted = labels != metrics.IGNORE
    safe = jnp.where(counted, labels, 0).astype(jnp.int32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, safe)
    return jnp.sum(losses * counted) / jnp.maximum(jnp.sum(counted), 1)


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


def features(model: DeepLabV3) -> Callable[[PyTree, Any], tuple[Array, ...]]:
    """Returns a function (variables, images) -> feature maps at all block boundaries, in float."""

    def run(variables, images) -> Any:
        return model.apply(variables, pixels(images), method="features")

    return run


def train_step(
    model: DeepLabV3,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    compute: str = "float32",
) -> Callable:
    """Returns a supervised training step in the form that `loop.several` takes.

    Args:
      model: The network.
      optimizer: Optimizer of the parameters.
      key: PRNG key of dropout.
      compute: Data type of the network's computation; parameters, batch-norm statistics and the
        loss stay float32.
    """

    def loss_of(params, batch_stats, images, labels, dropout):
        output: Any = model.apply(
            {"params": params, "batch_stats": batch_stats},
            pixels(images).astype(compute),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout},
        )
        logits, updates = output
        logits = resize_logits(logits.astype(jnp.float32), *labels.shape[1:])
        return cross_entropy(logits, labels), updates["batch_stats"]

    @jax.jit
    def step(state: TrainState, images, labels, number):
        dropout = jax.random.fold_in(key, number)
        (loss, batch_stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            state.params, state.batch_stats, images, labels, dropout
        )
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, batch_stats, optimizer_state), {"loss": loss}

    return step


def predictor(model: DeepLabV3) -> Callable[[PyTree, Any], Array]:
    """Returns a compiled function (variables, images) -> class maps, uint8[n, h, w].

    The network is quantized if the variables contain `quant` (see `nn/conv.py`), else float.
    """

    @jax.jit
    def predict(variables, images):
        logits: Any = model.apply(variables, pixels(images))
        logits = resize_logits(logits, *images.shape[1:3])
        return jnp.argmax(logits, axis=-1).astype(jnp.uint8)

    return predict


def predictions(
    source: ClassMaps, data: Dataset, batch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields labels and predicted class maps of a data set, uint8[<= batch, h, w] at a time.

    The last batch is padded to full size, so that it needs no second compilation.
    """
    starts = range(0, len(data), batch)
    indices = [range(s, min(s + batch, len(data))) for s in starts]
    for images, labels in prefetch(lambda i: stacked(data, indices[i]), 0, len(indices)):
        missing = ((0, batch - len(images)), (0, 0), (0, 0), (0, 0))
        maps = source(np.pad(images, missing))
        yield labels, np.asarray(maps)[: len(images)]


def calibrated(
    model: DeepLabV3, variables: PyTree, quant: PyTree, batches: Iterable[np.ndarray]
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

    for images in batches:
        quant = calibrate({**variables, "quant": quant}, images)
    return quant
