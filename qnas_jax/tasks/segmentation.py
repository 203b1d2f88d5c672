"""Semantic segmentation: a class for each pixel, scored by mIoU."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, UInt8

from qnas_jax import metrics
from qnas_jax.nn.deeplab import resize_logits
from qnas_jax.tasks.task import Task


def task(names: tuple[str, ...]) -> Task:
    """Returns the segmentation of images into the classes of these names, at most 255."""
    return Task(
        names,
        per_pixel=True,
        loss=loss,
        predict=predict,
        tally=functools.partial(tally, len(names)),
        score=score,
        metric=metrics.MIOU,
    )


def loss(
    logits: Float[Array, "n h w classes"], labels: UInt8[Array, "n h2 w2"]
) -> Float[Array, ""]:
    """Returns `cross_entropy` at the resolution of the labels."""
    return cross_entropy(resize_logits(logits, *labels.shape[1:]), labels)


def predict(
    logits: Float[Array, "n h w classes"], image_size: tuple[int, int]
) -> UInt8[Array, "n h2 w2"]:
    """Returns class maps at the images' resolution (height, width)."""
    return jnp.argmax(resize_logits(logits, *image_size), axis=-1).astype(jnp.uint8)


def tally(classes: int, labels: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Returns the confusion matrix of the best classes; see `metrics.confusion`."""
    return metrics.confusion(labels, found[..., 0], classes)


def score(confusion: np.ndarray) -> dict[str, Any]:
    """Returns the mIoU and each class's IoU in percent; None for a class that is absent."""
    class_iou = [
        None if np.isnan(iou) else round(100 * float(iou), 2)
        for iou in metrics.class_iou(confusion)
    ]
    return {"miou": round(metrics.mean_iou(confusion), 4), "class_iou": class_iou}


def cross_entropy(
    logits: Float[Array, "n h w classes"], labels: UInt8[Array, "n h w"]
) -> Float[Array, ""]:
    """Returns the mean cross-entropy over the pixels that are not ignored; 0 if all are."""
    counted = labels != metrics.IGNORE
    safe = jnp.where(counted, labels, 0).astype(jnp.int32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, safe)
    return jnp.sum(losses * counted) / jnp.maximum(jnp.sum(counted), 1)
