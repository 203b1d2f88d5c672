"""Training and measuring a segmentation network, in float and quantized."""

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
    """All that changes while a network is trained."""

    params: PyTree
    batch_stats: PyTree
    optimizer: PyTree

    def variables(self) -> PyTree:
        """What the float network is applied with."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def fresh_state(variables: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """The state to begin training with."""
    params = variables["params"]
    return TrainState(params, variables["batch_stats"], optimizer.init(params))


def pixels(images: UInt8[Array, "n h w 3"]) -> Float[Array, "n h w 3"]:
    """Bytes as floats in [-1, 1), in steps of 1/128: what networks take."""
    return images.astype(jnp.float32) / 128 - 1


def cross_entropy(
    logits: Float[Array, "n h w classes"], labels: UInt8[Array, "n h w"]
) -> Float[Array, ""]:
    """Mean over the pixels that are not ignored."""
    counted = labels != metrics.IGNORE
    safe = jnp.where(counted, labels, 0).astype(jnp.int32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, safe)
    return jnp.sum(losses * counted) / jnp.maximum(jnp.sum(counted), 1)


def polynomial(lr: float, steps: int, power: float) -> Callable[[Any], Any]:
    """A schedule: the learning rate at a step, from `lr` at step 0 down to zero at `steps`."""

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
    """SGD with momentum, a polynomial schedule to zero, and decay of the kernels.

    Args:
      lr: Learning rate at the first step.
      steps: Number of steps.
      power: Of the schedule.
      momentum: Of the gradients.
      weight_decay: Of kernels; not of norms and biases.
      clip: Gradients whose norm is above it are shortened to it; 0: none are.
    """

    def kernels(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

    decay = optax.add_decayed_weights(weight_decay, mask=kernels)
    sgd = optax.chain(decay, optax.sgd(polynomial(lr, steps, power), momentum))
    return optax.chain(optax.clip_by_global_norm(clip), sgd) if clip else sgd


def features(model: DeepLabV3) -> Callable[[PyTree, Any], tuple[Array, ...]]:
    """A function (variables, images) -> feature maps at all block boundaries, in float."""

    def run(variables, images) -> Any:
        return model.apply(variables, pixels(images), method="features")

    return run


def train_step(
    model: DeepLabV3,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    compute: str = "float32",
) -> Callable:
    """The step that trains a network on labelled pictures, as `train.several` takes it.

    Args:
      model: The network.
      optimizer: Of its parameters.
      key: What dropout is drawn from.
      compute: Type that the network computes in; parameters, norms' statistics and the loss
        stay float32.
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
    """A compiled function (variables, images) -> class maps, uint8[n, h, w].

    The variables decide whether the network is float or quantized (see `nn/conv.py`).
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
    """Labels and predicted class maps of a whole data set, uint8[<= batch, h, w] at a time.

    The last, smaller batch is filled up, so that it is not compiled anew.
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
    """The policy with every range grown to hold what the pictures show.

    Args:
      model: The network.
      variables: Its `params` and `batch_stats`.
      quant: The policy: bitwidths as they shall be, ranges as `init` made them.
      batches: Pictures, uint8[n, h, w, 3].
    """

    @jax.jit
    def calibrate(variables, images):
        return model.apply(variables, pixels(images), mutable=["quant"])[1]["quant"]

    for images in batches:
        quant = calibrate({**variables, "quant": quant}, images)
    return quant
