"""The metrics of the project, each defined once."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

NSR_EPSILON = 1e-6  # added to the variance, which is zero for a constant channel

IGNORE = 255  # label of pixels that are excluded from training and metrics


class Metric(NamedTuple):
    """The main figure of a task; in percent, higher is better.

    Attributes:
      name: Its name in files.
      title: Its name in text.
      by_class: Name of the figure that has its value for each class; None: the class is absent.
      class_title: The name of that one in text.
    """

    name: str
    title: str
    by_class: str
    class_title: str


MIOU = Metric("miou", "mIoU", "class_iou", "IoU")
TOP1 = Metric("top1", "top-1 accuracy", "class_accuracy", "Accuracy")


def channel_variance(target: Float[Array, "n h w c"]) -> Float[Array, "c"]:
    """Returns the variance of each channel over images and pixels."""
    return jnp.var(target, axis=(0, 1, 2))


def nsr(
    output: Float[Array, "*paths n h w c"],
    target: Float[Array, "n h w c"],
    variance: Float[Array, "c"],
) -> Float[Array, "*paths"]:
    """Returns the noise-to-signal ratio; lower is better.

    Computes ``1/C sum_c mean((output_c - target_c)^2) / (variance_c + eps)``, where the mean is
    over images and pixels. The scale is linear: predicting the target gives 0, predicting each
    channel's mean gives 1.

    Args:
      output: What each path predicts.
      target: The teacher's feature map.
      variance: `channel_variance` of the target.

    References:
      Lu et al., 2023, https://arxiv.org/abs/2401.12350, with the loss of
      Moons et al., 2021, https://arxiv.org/abs/2012.08859.
    """
    error = output - lax.broadcast_to_rank(target, output.ndim)
    noise = jnp.mean(jnp.square(error), axis=(-4, -3, -2))
    return nsr_from_noise(noise, variance)


def nsr_from_noise(
    noise: Float[Array, "*paths c"], variance: Float[Array, "c"]
) -> Float[Array, "*paths"]:
    """`nsr` from each channel's squared error; of a sum over pixels it is the NSR times pixels."""
    signal = lax.broadcast_to_rank(variance + NSR_EPSILON, noise.ndim)
    return jnp.mean(noise / signal, axis=-1)


def confusion(label: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """Returns pixel counts, int[classes, classes], by true (row) and predicted (column) class.

    Pixels with the label `IGNORE` are not counted.
    """
    counted = label != IGNORE
    pairs = label[counted].astype(np.int64) * classes + prediction[counted]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def class_iou(confusion_matrix: np.ndarray) -> np.ndarray:
    """Returns the intersection over union of each class in [0, 1]; NaN if the class is absent.

    References:
      Everingham et al., 2015, https://doi.org/10.1007/s11263-014-0733-5, section 4.
    """
    hits = np.diag(confusion_matrix).astype(np.float64)
    union = confusion_matrix.sum(0) + confusion_matrix.sum(1) - hits
    return np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)


def mean_iou(confusion_matrix: np.ndarray) -> float:
    """Returns the mean IoU of the classes that occur, in percent."""
    return 100 * float(np.nanmean(class_iou(confusion_matrix)))


def rank_counts(labels: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    """Counts at which rank the true class of each image is.

    Args:
      labels: Class of each image, int[n].
      found: Predicted classes of each image, the best first, int[n, ranks].
      classes: Number of classes.

    Returns:
      int64[classes, ranks + 1], by true class: images whose class has each rank, then all images.
    """
    every = np.ones((len(labels), 1), np.int64)
    counts = np.zeros((classes, found.shape[1] + 1), np.int64)
    np.add.at(counts, labels, np.hstack([found == labels[:, None], every]))
    return counts


def top_accuracy(counts: np.ndarray, ranks: int) -> float:
    """Returns the share of images whose class is among the best, in percent.

    Args:
      counts: Sum of `rank_counts`.
      ranks: How many classes are taken.
    """
    return round(100 * int(counts[:, :ranks].sum()) / int(counts[:, -1].sum()), 4)


def kendall_tau(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of two scores of the same items, ties accounted for (tau-b).

    NaN where there are fewer than two items, or all have the same score.

    References:
      Kendall, 1945, https://doi.org/10.1093/biomet/33.3.239.
    """
    from scipy import stats  # takes seconds to import

    if len(a) < 2:
        return float("nan")
    found: Any = stats.kendalltau(a, b)
    return float(found.statistic)
