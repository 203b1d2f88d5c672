"""Image classification: a class for each image, scored by top-1 and top-5 accuracy."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from qnas_jax import metrics
from qnas_jax.tasks.task import Task

RANKS = 5  # of the second accuracy, where there are more classes


def task(names: tuple[str, ...]) -> Task:
    """Returns the classification of images into the classes of these names."""
    return Task(
        names,
        per_pixel=False,
        loss=loss,
        predict=predict,
        tally=functools.partial(tally, len(names)),
        score=score,
        metric=metrics.TOP1,
    )


def loss(logits: Float[Array, "n 1 1 classes"], labels: Int[Array, "n"]) -> Float[Array, ""]:
    """Returns the mean cross-entropy of the images."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, 0, 0], labels)
    return jnp.mean(losses)


def predict(
    logits: Float[Array, "n 1 1 classes"], image_size: tuple[int, int]
) -> Int[Array, "n ranks"]:
    """Returns each image's classes, the best first: five if there are more, else one."""
    del image_size  # an image has one class at any size
    return lax.top_k(logits[:, 0, 0], ranks(logits.shape[-1]))[1]


def ranks(classes: int) -> int:
    """Returns how many classes `predict` gives of so many."""
    return RANKS if classes > RANKS else 1


def tally(classes: int, labels: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Returns `metrics.rank_counts` of a batch."""
    return metrics.rank_counts(labels, found, classes)


def score(counts: np.ndarray) -> dict[str, Any]:
    """Returns top-1, top-5 (if five classes were given) and each class's top-1, in percent."""
    hits, images = counts[:, :-1], counts[:, -1]
    found: dict[str, Any] = {"top1": metrics.top_accuracy(counts, 1)}
    if hits.shape[1] >= RANKS:
        found[f"top{RANKS}"] = metrics.top_accuracy(counts, RANKS)
    found["class_accuracy"] = [
        round(100 * int(hit) / int(count), 2) if count else None
        for hit, count in zip(hits[:, 0], images, strict=True)
    ]
    return found
