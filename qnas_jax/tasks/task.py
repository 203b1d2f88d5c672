"""What a network is trained to do, and how well it does it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array

from qnas_jax.data.batching import Pairs, prefetch, stacked
from qnas_jax.errors import InputError
from qnas_jax.metrics import Metric
from qnas_jax.run import parallel, processes

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


def full_batches(
    data: Pairs, batch: int, lane: int = 0, lanes: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields images uint8[batch, h, w, 3] and labels [<= batch, ...] of a whole data set.

    The last images are padded to a full batch, so that they need no second compilation.

    Args:
      data: Images with labels.
      batch: Images per batch.
      lane: Which of the batches: every `lanes`-th from this one on.
      lanes: See `lane`.
    """
    starts = range(0, len(data), batch)[lane::lanes]
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
    """Scores several computations on a data set; all devices share its batches.

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
        counts, samples[name] = _counts(source, data, batch, task)
        if not np.any(counts):
            raise InputError("no label of the validation split counts: all are ignored")
        found |= {f"{figure}_{name}": value for figure, value in task.score(counts).items()}
    return found, samples


def _counts(source: Classify, data: Pairs, batch: int, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Returns the counts of all batches, and the classes of the first few images."""
    team = parallel.team()
    lanes = team.count * len(team.devices)
    counts: list[Any] = [0] * lanes
    kept: dict[int, np.ndarray] = {}
    needed = range(-(-min(SAMPLES, len(data)) // batch))  # batches

    def work(lane: int, device: parallel.Device) -> None:
        del device  # that of this thread
        for i, (images, labels) in enumerate(full_batches(data, batch, lane, lanes)):
            if parallel.is_given_up():
                return
            classes = ranked(source(images), labels)
            counts[lane] = counts[lane] + task.tally(labels, classes)
            if lane + i * lanes in needed:
                kept[lane + i * lanes] = classes[..., 0]

    parallel.spread(range(lanes), work)
    total = np.asarray(sum(processes.gathered("counts", np.asarray(sum(counts)))))
    for i in needed:
        if i not in kept:  # of another process
            images, labels = next(full_batches(data, batch, i, len(data)))
            kept[i] = ranked(source(images), labels)[..., 0]
    return total, np.concatenate([kept[i] for i in needed])[:SAMPLES]
