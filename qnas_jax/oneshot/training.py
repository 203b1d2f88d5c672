"""The stage that trains a one-shot supernet, and the scores of its subnets."""

import dataclasses
import pathlib
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from qnas_jax import space
from qnas_jax.data.batching import Dataset, central_crops
from qnas_jax.nn import init
from qnas_jax.nn.composed import Composed, Weights
from qnas_jax.oneshot import supernet
from qnas_jax.oneshot.config import Oneshot
from qnas_jax.run import artefacts
from qnas_jax.run.stage import Stage
from qnas_jax.stages import candidates, scoring
from qnas_jax.stages.candidates import Score, Setting
from qnas_jax.stages.experiment import Problem, Purpose, key
from qnas_jax.stages.fit import Training, batches, fit, optimizer_of, plan, rate_of
from qnas_jax.train import loop, mesh


class Trained(NamedTuple):
    """A trained supernet.

    Attributes:
      stage: Its stage.
      network: The network of shared weights.
      weights: Its numbers.
    """

    stage: Stage
    network: Composed
    weights: Weights


def train(
    workdir: pathlib.Path,
    problem: Problem,
    training: Training,
    how: Oneshot,
    teacher: Stage,
    variables: PyTree,
    name: str,
) -> Trained:
    """Trains a supernet, one path in a step.

    Args:
      workdir: The folder of the run.
      problem: Images, task and space; its training images are those of the supernet.
      training: Crops, seed and the rest of a training.
      how: Sampling, steps and optimizer.
      teacher: The stage of the teacher.
      variables: The teacher's, as subnets have them.
      name: Of its folder in `oneshot`.
    """
    searched, sampling = problem.space, supernet.SAMPLING[how.sampling]
    network = network_of(problem)
    made_from = {
        "teacher": teacher.hash,
        "space": [str(op) for op in searched.ops],
        "depths": [block.depth for block in searched.blocks],
        "supernet": {name: artefacts.plain(how)[name] for name in how.TRAINING},
        "images": len(problem.train),
        "seed": training.seed,
    }
    stage = Stage(workdir / "oneshot" / name, made_from)
    stage.begin()
    # One step of the optimizer, and one batch, for all paths whose gradients are added up.
    paths = len(searched.ops) if sampling.fair else 1
    updates = dataclasses.replace(how, steps=how.steps // paths, warmup=how.warmup // paths)
    optimizer = supernet.optimizer_of(sampling, optimizer_of(updates, how.lr), paths)
    first = supernet.first_params(
        key(training.seed, Purpose.SUPERNET_INIT), searched, variables["params"],
        how.init == "teacher",
    )  # fmt: skip
    step = supernet.train_step(
        network, problem.task.loss, sampling, optimizer,
        key(training.seed, Purpose.SUPERNET_TRAIN), how.compute,
    )  # fmt: skip
    rate = rate_of(updates, how.lr)
    watched = loop.Watched(
        "the supernet", "loss", lambda step: rate(step // paths), "oneshot.lr", lambda state: state
    )
    planned = plan(stage, training, f"supernet {name}", how.steps, [watched])
    make_batch = batches(problem.train, training, how.batch)
    state = fit(
        workdir, planned, loop.several(step, variables["batch_stats"]),
        supernet.init_state(first, optimizer), lambda number: make_batch(number // paths),
        loop.AS_SAVED if stage.done else mesh.layout(how.batch),
    )  # fmt: skip
    stage.finish()
    rest = rest_of(network, training, {**variables, "params": state.params["rest"]})
    return Trained(stage, network, Weights(rest, state.params["blocks"]))


def rest_of(network: Composed, training: Training, variables: PyTree) -> PyTree:
    """Returns the stem's and the head's variables as `Weights` has them, at 8 bits.

    Args:
      network: The network.
      training: Has the size of its images.
      variables: Their `params` and `batch_stats`.
    """
    fresh = init.initialize(network.model, jax.random.key(0), (1, *training.train.crop, 3))
    own = {kind: variables[kind] for kind in ("params", "batch_stats")}
    return {**own, "quant": fresh["quant"]}


def network_of(problem: Problem) -> Composed:
    """Returns the network of shared weights; its stem and head are those of any subnet."""
    first = space.Choice(problem.space.ops[0], 8, 8)
    smallest = tuple((first,) * block.depth for block in problem.space.blocks)
    return Composed(problem.student(smallest), problem.space)


def setting(problem: Problem, training: Training, how: Oneshot, held_out: Dataset) -> Setting:
    """Returns on what subnets are scored.

    Args:
      problem: The first training images are those of batch norms and ranges.
      training: Has the crop.
      how: Numbers of images, and the kind of ranges.
      held_out: Images that train nothing.
    """
    norm_images = central_crops(problem.train, range(how.norm_images), training.train.crop)
    images = scoring.batches(held_out, how.images_per_pass)
    return Setting(problem.task, how.ranges, np.asarray(norm_images), images, at_once=how.at_once)


def scorer(trained: Trained, given: Setting) -> Score:
    """Returns what scores subnets with the weights of a supernet."""
    return candidates.scorer(trained.network, trained.weights, given)
