"""What a search with a trained network does before its first step."""

import pathlib
from typing import Any

from jaxtyping import PyTree

from qnas_jax.data.batching import Part
from qnas_jax.run import artefacts, parallel
from qnas_jax.stages import fit
from qnas_jax.stages import train as train_stage
from qnas_jax.stages.evaluation import Trained
from qnas_jax.stages.experiment import Problem
from qnas_jax.train import mesh


def held_out(problem: Problem, count: int) -> tuple[Problem, Part]:
    """Returns the problem without the last training images, and these, on which choices are scored.

    Args:
      problem: The problem.
      count: Number of images that are held out.
    """
    left = len(problem.train) - count
    kept = Part(problem.train, range(left, len(problem.train)))
    return problem._replace(train=Part(problem.train, range(left))), kept


def teacher(
    workdir: pathlib.Path, config: Any, problem: Problem, mark: Any
) -> tuple[Trained, PyTree]:
    """Trains the network in float, or takes it; writes `config.json`.

    Args:
      workdir: The folder of the run.
      config: Of a system, checked.
      problem: Images and task; its teacher is the network.
      mark: What the network is, for the mark of its stage.

    Returns:
      The network, and its variables.

    Raises:
      InputError: A setting, an image or a file cannot be used; before anything takes long.
    """
    training = fit.training(config)
    mesh.check_batch("train.batch", config.train.batch)
    train_stage.teacher_stage(workdir, problem, training, mark, config.teacher)
    for split in (problem.train, problem.val):
        split.check()
    if parallel.is_first() and not (workdir / "config.json").exists():
        artefacts.write_json(workdir / "config.json", config)
    return train_stage.train_teacher(workdir, problem, training, mark, config.teacher)
