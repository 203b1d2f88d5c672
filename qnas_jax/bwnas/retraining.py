"""Subnets trained to the end: their blocks begin as the supernet's, all else as the teacher's."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import PyTree

from qnas_jax.bwnas import adapters
from qnas_jax.bwnas.config import Config
from qnas_jax.nn import supernet
from qnas_jax.stages import fit, policies
from qnas_jax.stages import train as train_stage
from qnas_jax.stages.evaluation import Trained
from qnas_jax.stages.experiment import Problem
from qnas_jax.stages.fit import Training


class Beginning(NamedTuple):
    """What the training of every subnet begins from.

    Attributes:
      config: The config of the run.
      problem: Images, task and networks.
      teacher: The teacher's variables as subnets have them, see `adapters.folded`.
      params: The supernet's, by block.
      taught_by: What a network learns besides the labels.
    """

    config: Config
    problem: Problem
    teacher: PyTree
    params: Sequence[supernet.Params]
    taught_by: policies.Teacher | None


def beginning(
    config: Config, problem: Problem, variables: PyTree, params: Sequence[supernet.Params]
) -> Beginning:
    """Returns the beginning of all subnets of a run.

    Args:
      config: Its config.
      problem: Images, task and networks.
      variables: The teacher's.
      params: The supernet's, by block.
    """
    folded = adapters.folded(problem.teacher, variables, problem.val[0][0].shape)
    return Beginning(
        config, problem, folded, params, policies.taught_by(config.retrain, problem, variables)
    )


def retrain(
    workdir: pathlib.Path, begins: Beginning, how: Training, trained: Trained, title: str
) -> None:
    """Trains a subnet and evaluates it, in float and quantized; does nothing if done.

    Args:
      workdir: The folder of the run.
      begins: What the training begins from.
      how: How networks are trained again.
      trained: The subnet and its stage.
      title: Name of the training in log lines.
    """

    def start(fresh: PyTree) -> PyTree:
        if begins.config.retrain.init == "scratch":
            return fresh
        return supernet.inherited(fresh, begins.teacher, begins.params, trained.subnet)

    train_stage.retrain(workdir, begins.problem, how, trained, start, title, begins.taught_by)


def retrain_teacher(
    workdir: pathlib.Path, config: Config, problem: Problem, teacher: Trained, variables: PyTree
) -> Trained:
    """Trains the teacher on for as many steps as a subnet, and evaluates it; nothing if done.

    Args:
      workdir: The folder of the run.
      config: Its config.
      problem: Images, task and networks.
      teacher: The teacher.
      variables: Its variables.
    """
    stage = train_stage.retrained_teacher_stage(workdir, teacher.stage, config.retrain)
    again, how = teacher._replace(stage=stage), fit.retraining(fit.training(config), config.retrain)
    taught_by = policies.taught_by(config.retrain, problem, variables)
    train_stage.retrain(
        workdir, problem, how, again, lambda _: variables, "retrain teacher", taught_by
    )
    return again
