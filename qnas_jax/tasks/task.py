"""What a network is trained to do, and how well it does it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array

from qnas_jax import metrics
from qnas_jax.data.batching import Pairs, prefetch, stacked
from qnas_jax.errors import InputError

# Images uint8[n, h, w, 3] -> predicted classes uint8[n, ...], in the shape of the labels.
Classify = Callable[[np.ndarray], Any]
SAMPLES = 4  # images of the validation split whose predictions are kept


class Task(NamedTuple):
    """A task that is a choice among classes, for each image or for each pixel.

    Attributes:
      classes: Number of classes.
      loss: (logits, labels) -> mean loss of a batch.
      predict: (logits, (height, width) of the images) -> predicted classes, uint8.
      score: Confusion matrix, int64[classes, classes] -> figures by name, in percent.
      metric: Name of the main figure in `score` and in files; higher is better.
      title: Its name in log lines.
    """

    classes: int
    loss: Callable[[Array, Any], Array]
    predict: Callable[[Array, tuple[int, int]], Array]
    score: Callable[[np.ndarray], dict[str, Any]]
    metric: str
    title: str


def predictions(
    source: Classify, data: Pairs, batch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields labels and predicted classes of a data set, uint8[<= batch, ...] at a time.

    The last batch is padded to full size, so that it needs no second compilation.
    """
    starts = range(0, len(data), batch)
    indices = [range(s, min(s + batch, len(data))) for s in starts]
    for images, labels in prefetch(lambda i: stacked(data, indices[i]), 0, len(indices)):
        missing = ((0, batch - len(images)), (0, 0), (0, 0), (0, 0))
        found = source(np.pad(images, missing))
        yield labels, np.asarray(found)[: len(images)]


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
      predictions of the first few images by name.

    Raises:
      InputError: No label of the data set counts.
    """
    found, samples = {}, {}
    for name, source in sources.items():
        confusion, kept = np.zeros((task.classes, task.classes), np.int64), []
        for labels, predicted in predictions(source, data, batch):
            confusion += metrics.confusion(labels, predicted, task.classes)
            kept += list(predicted[: SAMPLES - len(kept)])
        if not confusion.any():
            raise InputError("no label of the validation split counts: all are ignored")
        found |= {f"{figure}_{name}": value for figure, value in task.score(confusion).items()}
        samples[name] = np.stack(kept)
    return found, samples
