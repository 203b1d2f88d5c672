"""What a network is trained to do, and how well it does it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array

from qnas_jax.data.batching import Pairs, prefetch, stacked
from qnas_jax.errors import InputError
from qnas_jax.metrics import Metric

# Images uint8[n, h, w, 3] -> classes in the shape of the labels, or ranked; see `ranked`.
Classify = Callable[[np.ndarray], Any]
SAMPLES = 4  # images of the validation split whose predictions are kept


class Task(NamedTuple):
    """A task that is a choice among classes, for each image or for each pixel.

    Attributes:
      names: Names of the classes.
      per_pixel: Whether each pixel of an image has a class, or the whole image.
      loss: (logits, labels) -> mean loss of a batch.
      predict: (logits, (height, width) of the images) -> classes, or classes by rank.
      tally: (labels, classes by rank) -> counts, int64, that add up over batches.
      score: Counts -> figures by name, in percent.
      metric: The main figure among those of `score`; higher is better.
    """

    names: tuple[str, ...]
    per_pixel: bool
    loss: Callable[[Array, Any], Array]
    predict: Callable[[Array, tuple[int, int]], Array]
    tally: Callable[[np.ndarray, np.ndarray], np.ndarray]
    score: Callable[[np.ndarray], dict[str, Any]]
    metric: Metric

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.names)


def full_batches(data: Pairs, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields images uint8[batch, h, w, 3] and labels [<= batch, ...] of a whole data set.

    The last images are padded to a full batch, so that they need no second compilation.
    """
    starts = range(0, len(data), batch)
    indices = [range(s, min(s + batch, len(data))) for s in starts]
    for images, labels in prefetch(lambda i: stacked(data, indices[i]), 0, len(indices)):
        missing = ((0, batch - len(images)), (0, 0), (0, 0), (0, 0))
        yield np.pad(images, missing), labels


def ranked(found: Any, labels: np.ndarray) -> np.ndarray:
    """Returns what a source gave for a padded batch as classes by rank, best first.

    Args:
      found: Classes in the shape of the labels, or with ones, or with ranks as the last axis.
      labels: The labels of the images before padding, int[n, ...].

    Returns:
      int[n, ..., ranks].
    """
    return np.asarray(found)[: len(labels)].reshape(*labels.shape, -1)


def evaluate(
    sources: Mapping[str, Classify], data: Pairs, batch: int, task: Task
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Scores several computations on a data set.

    Args:
      sources: Functions images -> predicted classes, by name.
      data: The validation split.
      batch: Images per batch.
      task: The task.

    Returns:
      FIGURE_NAME -> value for each figure of the task and each name of a source, and the
      predicted classes of the first few images by name.

    Raises:
      InputError: No label of the data set counts.
    """
    found, samples = {}, {}
    for name, source in sources.items():
        counts: Any = 0
        kept = []
        for images, labels in full_batches(data, batch):
            classes = ranked(source(images), labels)
            counts = counts + task.tally(labels, classes)
            kept += list(classes[: SAMPLES - len(kept), ..., 0])
        if not np.any(counts):
            raise InputError("no label of the validation split counts: all are ignored")
        found |= {f"{figure}_{name}": value for figure, value in task.score(counts).items()}
        samples[name] = np.stack(kept)
    return found, samples
