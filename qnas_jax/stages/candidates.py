"""Scores subnets with the weights of a supernet: no training, one program for all of them."""

import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from qnas_jax import metrics, space
from qnas_jax.data.batching import Batch
from qnas_jax.nn import composed
from qnas_jax.nn.composed import Composed, Weights
from qnas_jax.quant.calibrate import RANGES
from qnas_jax.run import artefacts
from qnas_jax.run.log import Progress
from qnas_jax.run.stage import read_json
from qnas_jax.tasks.task import Task, ranked

SAVE_SECONDS = 20.0  # between two savings of scores

# Subnets -> their scores.
Score = Callable[[Sequence[space.Subnet]], "Scores"]


class Scores(NamedTuple):
    """What subnets reach with shared weights.

    Attributes:
      accuracy: float64[n], the task's main figure, in percent.
      nsr: float64[n, blocks], between the output of each block and the teacher's, all blocks before
        it being the subnet's own; empty without a teacher.
    """

    accuracy: np.ndarray
    nsr: np.ndarray


class Setting(NamedTuple):
    """On what subnets are scored.

    Attributes:
      task: Predictions and their score.
      ranges: How ranges of activations are chosen, a key of `calibrate.RANGES`.
      norm_images: uint8[n, h, w, 3], for batch norms and ranges.
      batches: Images with labels, as many in each.
      features: Images -> the teacher's features at all boundaries; None: no NSR.
      at_once: Subnets that a program scores in one pass, one after another.
    """

    task: Task
    ranges: str
    norm_images: np.ndarray
    batches: Sequence[Batch]
    features: Callable[[Array], tuple[Array, ...]] | None = None
    at_once: int = 1


def scorer(network: Composed, weights: Weights, setting: Setting) -> Score:
    """Returns what scores subnets: calibrated, quantized and run on all batches.

    Args:
      network: The network of shared weights.
      weights: Its numbers.
      setting: Images, and what is measured.
    """
    calibrate, run = _programs(network, setting.task, setting.ranges)
    norm_images = jnp.asarray(setting.norm_images)
    held = [jnp.asarray(batch.images) for batch in setting.batches]
    targets = [_targets(setting.features(images)) if setting.features else () for images in held]

    def score(subnets: Sequence[space.Subnet]) -> Scores:
        found = []
        for start in range(0, len(subnets), setting.at_once):
            chunk = list(subnets[start : start + setting.at_once])
            padded = chunk + chunk[-1:] * (setting.at_once - len(chunk))
            choices = composed.choices_of(network.searched, padded)
            calibration = calibrate(weights, choices, norm_images)
            parts = []
            for images, target in zip(held, targets, strict=True):
                parts.append(jax.device_get(run(weights, choices, calibration, images, target)))
            for place in range(len(chunk)):
                own = [(classes[place], nsr[place]) for classes, nsr in parts]
                found.append(_summed(setting, own))
        accuracy, nsr = zip(*found, strict=True) if found else ((), ())
        return Scores(np.array(accuracy, np.float64), np.array(nsr, np.float64))

    return score


def remembering(score: Score, file: pathlib.Path, title: str, at_once: int = 1) -> Score:
    """Returns what scores each subnet once, even if a run is interrupted.

    Args:
      score: Scores subnets.
      file: Where scores are kept, as JSON by the subnets' text.
      title: What progress lines call the work.
      at_once: Subnets that are passed on together.
    """

    def lookup(subnets: Sequence[space.Subnet]) -> Scores:
        held = read_json(file) if file.exists() else {}
        texts = [space.format_subnet(subnet) for subnet in subnets]
        pairs = dict(zip(texts, subnets, strict=True))
        left = {text: subnet for text, subnet in pairs.items() if text not in held}
        progress, saved = Progress(title, len(left)), time.monotonic()
        try:
            for start in range(0, len(left), at_once):
                chunk = list(left.items())[start : start + at_once]
                found = score([subnet for _, subnet in chunk])
                for (text, _), accuracy, nsr in zip(chunk, *found, strict=True):
                    # As text, since JSON has no infinity.
                    held[text] = [repr(float(value)) for value in (accuracy, *nsr)]
                if time.monotonic() - saved > SAVE_SECONDS:
                    artefacts.write_json(file, held)
                    saved = time.monotonic()
                progress.show(start + len(chunk))
        finally:  # also where the run is stopped
            if left:
                artefacts.write_json(file, held)
        rows = [[float(value) for value in held[text]] for text in texts]
        return Scores(np.array([row[0] for row in rows]), np.array([row[1:] for row in rows]))

    return lookup


def _summed(setting: Setting, parts: Sequence[tuple[Any, Any]]) -> tuple[float, np.ndarray]:
    """A subnet's figure over all batches, and the mean of its NSRs."""
    counts: Any = 0
    for batch, (classes, _) in zip(setting.batches, parts, strict=True):
        counts = counts + setting.task.tally(batch.labels, ranked(classes, batch.labels))
    figures = setting.task.score(counts)
    nsr = np.average(
        [nsr for _, nsr in parts], axis=0, weights=[len(b.images) for b in setting.batches]
    )
    return figures[setting.task.metric.name], nsr


@functools.lru_cache(maxsize=8)
def _programs(network: Composed, task: Task, ranges: str):
    """Calibration and runs of several subnets as programs, for all weights of a network."""
    find_range = RANGES[ranges]

    @jax.jit
    def calibrate(weights, choices, images):
        def one(chosen):
            return composed.calibrate(network, weights, chosen, find_range, images)

        return _each(one, choices)

    @jax.jit
    def run(weights, choices, calibration, images, target):
        def one(given):
            chosen, calibrated = given
            out = composed.run(network, weights, chosen, calibrated, find_range, images)
            nsr = [
                metrics.nsr(y, wanted, variance)
                for y, (wanted, variance) in zip(out.features, target, strict=False)
            ]
            return task.predict(out.logits, images.shape[1:3]), jnp.array(nsr)

        return _each(one, (choices, calibration))

    return calibrate, run


def _each(function: Callable, given: PyTree) -> PyTree:
    """`lax.map`, but without a loop for one: on CPUs a loop's body runs on fewer threads."""
    if len(jax.tree.leaves(given)[0]) > 1:
        return lax.map(function, given)
    return jax.tree.map(lambda x: x[None], function(jax.tree.map(lambda x: x[0], given)))


def _targets(maps: tuple[Array, ...]) -> tuple[tuple[Array, Array], ...]:
    """The teacher's output of each block, and its variance by channel."""
    return tuple((x, metrics.channel_variance(x)) for x in maps[1:])
