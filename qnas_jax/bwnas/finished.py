"""The trained networks of a finished run, found without training."""

import functools
import pathlib

from qnas_jax import space
from qnas_jax.bwnas import train_supernet
from qnas_jax.bwnas.config import Config
from qnas_jax.errors import InputError
from qnas_jax.hardware import size
from qnas_jax.run.listing import listed
from qnas_jax.run.stage import read_json
from qnas_jax.stages import fit
from qnas_jax.stages import train as train_stage
from qnas_jax.stages.evaluation import Trained
from qnas_jax.stages.experiment import Problem, teacher_subnet


def subnets(workdir: pathlib.Path) -> list[str]:
    """Returns the retrained subnets of a run, in the order of their names.

    Raises:
      InputError: There is none.
    """
    files = listed(workdir, "retrain/*/metrics.json")
    if not files:
        raise InputError(f"{workdir}: holds no retrained subnet")
    return [read_json(file, "subnet")["subnet"] for file in files]


def trained(
    workdir: pathlib.Path, config: Config, problem: Problem, count: int | None = None
) -> list[Trained]:
    """Returns the teacher and the retrained subnets of a run, the subnets by size.

    Args:
      workdir: The folder of the run.
      config: Its config.
      problem: What it learned.
      count: How many subnets, at most; None: all, and at least one.

    Raises:
      InputError: There is no retrained subnet, or the run was made with other settings.
    """
    picked = [space.parse_subnet(subnet) for subnet in subnets(workdir)] if count != 0 else []
    how = fit.training(config)
    teacher = train_stage.teacher_stage(workdir, problem, how, config.network, config.teacher)
    distilled = train_supernet.supernet_stage(
        workdir, teacher, config.space, config.supernet, config.seed
    )
    found = [Trained(teacher, problem.teacher, teacher_subnet(problem.teacher))]
    column = functools.partial(size.conv_bytes, per_channel=how.per_channel)
    by_size = sorted(picked, key=lambda s: size.subnet_bytes(problem.space.blocks, s, column))
    for subnet in by_size[:count]:
        text = space.format_subnet(subnet)
        stage = train_stage.subnet_stage(workdir, distilled, text, config.retrain)
        found.append(Trained(stage, problem.student(subnet), subnet))
    for network in found:
        if not network.stage.done:
            raise InputError(f"{network.stage.folder}: is not finished; launch/main.py resumes it")
    return found
