"""How good subnets are with the shared weights: their accuracy, and the loss of the search."""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from qnas_jax.data.batching import stacked
from qnas_jax.hqnas import learn
from qnas_jax.hqnas.experiment import Begun, norm_images
from qnas_jax.run.log import Progress
from qnas_jax.stages import scoring
from qnas_jax.stages.scoring import Evaluate, Scores, Tested

# Subnets as numbers, uint8[n, layers, 3], see `shared.codes_of` -> float[n].
Losses = Callable[[np.ndarray], np.ndarray]


def scorer(begun: Begun, params: PyTree) -> Evaluate:
    """Returns what scores subnets on the held-out images, with the shared weights.

    The loss is that of `imitations`. Subnets are as `shared.codes_of` gives them. Nothing is
    compiled for another subnet.
    """
    config, network = begun.config, begun.network
    variables = {"params": params, "batch_stats": network.variables["batch_stats"]}
    tested = Tested(network.model, begun.problem.task, variables, begun.quantize)
    images = scoring.batches(begun.held_out, config.hqnas.images_per_pass)
    accuracies = scoring.evaluator(tested, images, norm_images(begun))
    losses = imitations(begun, params, config.hqnas.near_images)

    def evaluate(subnets: np.ndarray) -> Scores:
        return Scores(accuracies(subnets).accuracy, losses(subnets))

    return evaluate


def imitations(begun: Begun, params: PyTree, count: int) -> Losses:
    """Returns what says how far subnets are from the widest network, by the loss of the search.

    It is far less noisy on few images than the loss of the labels.

    Args:
      begun: The run.
      params: The shared weights.
      count: Number of held-out images.
    """
    network, count = begun.network, min(count, len(begun.held_out))
    # Norms use the statistics of a pass, so all passes have as many images.
    per_pass = count // -(-count // begun.config.hqnas.images_per_pass)
    passes = [range(at, at + per_pass) for at in range(0, count - per_pass + 1, per_pass)]
    images = [jnp.asarray(stacked(begun.held_out, places).images) for places in passes]
    widest = jax.jit(functools.partial(learn.outputs, network))
    targets = [widest({"params": params}, each, jax.random.key(0)) for each in images]
    read = jax.jit(begun.quantize)

    def losses(subnets: np.ndarray) -> np.ndarray:
        found = []
        for codes in subnets:
            made = read(params, codes)
            each = [begun.imitate(made, x, y) for x, y in zip(images, targets, strict=True)]
            found.append(float(np.mean(each)))
        return np.array(found)

    return losses


def with_progress(losses: Losses, title: str, total: int) -> Losses:
    """Returns the same, with progress lines over all calls.

    Args:
      losses: See `imitations`.
      title: What is scored.
      total: How many subnets, in all calls.
    """
    progress, done = Progress(title, total), itertools.count(1)

    def shown(subnets: np.ndarray) -> np.ndarray:
        found = []
        for codes in subnets:
            found.append(losses(codes[None])[0])
            progress.show(next(done))
        return np.array(found)

    return shown
