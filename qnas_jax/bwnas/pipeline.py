"""The order of the stages.

    images > teacher > supernet > LUT > front > retrained subnets > files > report

Each stage finds its inputs, is skipped or resumed (see `run/stage.py`), and leaves its files in
the folder of the run.
"""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import PyTree

from qnas_jax import space
from qnas_jax.bwnas import (
    adapters,
    inspection,
    populate_table,
    retraining,
    search_front,
    train_supernet,
)
from qnas_jax.bwnas.config import Config
from qnas_jax.bwnas.lut.table import Table
from qnas_jax.data.batching import stacked
from qnas_jax.export import runtimes
from qnas_jax.hardware.deployment import Deployment
from qnas_jax.nn import supernet
from qnas_jax.report import page
from qnas_jax.report.outcome import as_text
from qnas_jax.run import artefacts, parallel, processes
from qnas_jax.run.stage import Stage, is_finished
from qnas_jax.search.front import Point
from qnas_jax.stages import dry_run, fit, qat
from qnas_jax.stages import export as export_stage
from qnas_jax.stages import latency as latency_stage
from qnas_jax.stages import train as train_stage
from qnas_jax.stages.evaluation import Trained
from qnas_jax.stages.experiment import Problem, prepare, teacher_costs
from qnas_jax.tasks.task import SAMPLES
from qnas_jax.train import mesh

__all__ = ["as_text", "begin", "run"]


def run(given: Config, workdir: pathlib.Path) -> dict[str, Any]:
    """Runs every stage that is not finished.

    Only one process at a time may do that in a folder, or several that work together.

    Args:
      given: The config.
      workdir: The folder of the run.

    Returns:
      The content of `report/results.json`; of several processes, in the first.

    Raises:
      InputError: A setting, an image or a file of the run cannot be used.
      Diverged: A loss or a state is no longer finite.
      Stopped: SIGTERM came; the same call resumes the run.
    """
    found = search(given, workdir)
    config, problem, _, teacher, variables = found.begun
    picked = search_front.chosen(found.points, config.search, config.retrain.subnets)
    retrained = _retrain(workdir, config, problem, found, variables, picked)
    again = (
        retraining.retrain_teacher(workdir, config, problem, teacher, variables)
        if config.retrain.teacher
        else None
    )
    networks = [teacher, *([again] if again else []), *retrained]
    aware = _train_aware(workdir, config, problem, networks)
    finish = functools.partial(_finish, workdir, found, picked, retrained, again, aware)
    return processes.by_first("files", finish) or {}


def _finish(
    workdir: pathlib.Path,
    found: "Searched",
    picked: Sequence[Point],
    retrained: list[Trained],
    again: Trained | None,
    aware: dict[str, Trained],
) -> dict[str, Any]:
    """Writes the files of all networks, times them, and writes the report."""
    config, problem, deployed, teacher, _ = found.begun
    how, subnets = fit.training(config), [point.subnet for point in picked]
    final = [aware.get(one.stage.folder.name, one) for one in (teacher, *retrained)]
    networks = dict(zip([latency_stage.TEACHER, *subnets], final, strict=True))
    written = export_stage.export_all(workdir, problem, how, deployed, list(networks.values()))
    exported = dict(zip(networks, written, strict=True))
    timed = latency_stage.time_networks(workdir, problem, config.network, deployed, subnets)
    stages = [teacher.stage, found.distilled, found.populated, found.searched, timed]
    results = write_report(
        workdir, config, problem, deployed, stages, retrained, again, exported, aware
    )
    folders = [stage.folder for stage in exported.values()]
    export_stage.check(folders, problem.task, config.export.max_drop)
    return results


class Begun(NamedTuple):
    """A run whose teacher is trained."""

    config: Config
    problem: Problem
    deployed: Deployment
    teacher: Trained
    variables: PyTree


def begin(given: Config, workdir: pathlib.Path) -> Begun:
    """Runs only the first stage: prepares the run and trains the teacher."""
    return _with_teacher(workdir, *_prepared(given, workdir))


def _prepared(given: Config, workdir: pathlib.Path) -> tuple[Config, Problem, Deployment]:
    """Checks all that can be checked before the first stage."""
    given.check()
    config, problem, deployed = prepare(given)
    inspection.inspect(config, problem, deployed)
    mesh.check_batch("train.batch", config.train.batch)
    how = fit.training(config)
    # Read twice if one is given: a wrong one is refused before anything takes long.
    train_stage.teacher_stage(workdir, problem, how, config.network, config.teacher)
    with processes.first_goes_first("begin"):
        if parallel.is_first() and not is_finished(workdir / "teacher"):
            runtime = runtimes.named("onnxruntime")
            dry_run.dry_run(problem, config.space.bits, deployed.image_shape, runtime)
        if parallel.is_first() and not (workdir / "config.json").exists():
            artefacts.write_json(workdir / "config.json", config)
    return config, problem, deployed


def _with_teacher(
    workdir: pathlib.Path, config: Config, problem: Problem, deployed: Deployment
) -> Begun:
    how = fit.training(config)
    teacher, variables = train_stage.train_teacher(
        workdir, problem, how, config.network, config.teacher
    )
    return Begun(config, problem, deployed, teacher, variables)


class Searched(NamedTuple):
    """A run whose subnets are scored.

    Attributes:
      begun: The run, with the adapters among the teacher's variables.
      distilled: The stage of the supernet.
      params: The supernet's parameters by block.
      populated: The stage of the table.
      rows: The table.
      searched: The stage of the search.
      points: The front.
    """

    begun: Begun
    distilled: Stage
    params: list[supernet.Params]
    populated: Stage
    rows: Table
    searched: Stage
    points: list[Point]


def search(given: Config, workdir: pathlib.Path) -> Searched:
    """Runs all stages up to the front of the subnets; raises like `run`."""
    config, problem, deployed = _prepared(given, workdir)
    how = fit.training(config)
    ahead = train_supernet.compile_ahead(workdir, problem, how, config.supernet)
    begun = _with_teacher(workdir, config, problem, deployed)
    teacher, variables = begun.teacher, begun.variables
    variables = adapters.of_run(workdir / "supernet", problem, how, variables)
    train_supernet.supernet_stage(  # refuses another one before anything takes long
        workdir, teacher.stage, config.space, config.supernet, how.seed
    )
    if ahead:  # while its thread compiles, this one would wait
        populate_table.compile_ahead(
            workdir, problem, deployed, config.space, config.lut, config.kernels, how.train.crop,
            variables,
        )  # fmt: skip
    distilled, params = train_supernet.train_supernet(
        workdir, problem, how, config.space, config.supernet, teacher.stage, variables, ahead
    )
    populated, rows = populate_table.populate_table(
        workdir, problem, deployed, config.space, config.lut, config.kernels, how.train.crop,
        distilled, variables, params,
    )  # fmt: skip
    with processes.first_goes_first("search"):
        searched, points = search_front.search_front(
            workdir, config.search, deployed, populated, rows
        )
    begun = begun._replace(variables=variables)
    return Searched(begun, distilled, params, populated, rows, searched, points)


def _retrain(
    workdir: pathlib.Path,
    config: Config,
    problem: Problem,
    searched: Searched,
    variables: PyTree,
    picked: Sequence[Point],
) -> list[Trained]:
    """Retrains subnets of the front, from the supernet's weights or from random ones."""
    how = fit.retraining(fit.training(config), config.retrain)
    begins = retraining.beginning(config, problem, variables, searched.params)
    found, trainings = [], []
    for i, point in enumerate(picked, 1):
        stage = train_stage.subnet_stage(workdir, searched.distilled, point.subnet, config.retrain)
        subnet = space.parse_subnet(point.subnet)
        trained = Trained(stage, problem.student(subnet), subnet)
        title = f"retrain {i}/{len(picked)}"
        train = functools.partial(retraining.retrain, workdir, begins, how, trained, title)
        trainings += [] if stage.done else [train]
        found.append(trained)
    mesh.train_all(how.train.batch, trainings)
    return found


def _train_aware(
    workdir: pathlib.Path, config: Config, problem: Problem, networks: Sequence[Trained]
) -> dict[str, Trained]:
    """Trains networks under their bitwidths, if the config wants that, by the names of folders."""
    if not config.retrain.qat_steps:
        return {}
    how = fit.training(config)
    # Other settings are refused before anything takes long.
    stages = [qat.stage_of(workdir, config.retrain, one) for one in networks]
    trainings = [
        functools.partial(qat.train, workdir, problem, how, config.retrain, one)
        for one, stage in zip(networks, stages, strict=True)
        if not stage.done
    ]
    mesh.train_all(how.train.batch, trainings)
    aware = qat.finished(workdir, config.retrain, networks)
    return {one.stage.folder.name: network for one, network in zip(networks, aware, strict=True)}


def write_report(
    workdir: pathlib.Path,
    config: Config,
    problem: Problem,
    deployed: Deployment,
    stages: Sequence[Stage],
    retrained: Sequence[Trained],
    retrained_teacher: Trained | None,
    exported: Mapping[str, Stage],
    aware: Mapping[str, Trained],
) -> dict[str, Any]:
    """Writes `report/` from the files of all stages; returns its `results.json`.

    Args:
      workdir: The folder of the run.
      config: Its config.
      problem: Images and networks.
      deployed: Target and size of deployed images.
      stages: The stages that the run has once.
      retrained: The retrained subnets.
      retrained_teacher: The teacher that was trained on, if there is one.
      exported: The stages that wrote files, by the names that `latency.json` has for the networks.
      aware: The networks after quantization-aware training, if there was one, by the names of their
        folders.
    """
    artefacts.write_json(workdir / "config.json", config)  # all stages have accepted it
    seconds = {stage.folder.name: round(stage.seconds, 1) for stage in stages}
    again = [retrained_teacher] if retrained_teacher else []
    seconds["retrain"] = round(sum(one.stage.seconds for one in (*retrained, *again)), 1)
    if aware:
        seconds["qat"] = round(sum(one.stage.seconds for one in aware.values()), 1)
    seconds["export"] = round(sum(stage.seconds for stage in exported.values()), 1)
    samples = stacked(problem.val, range(min(SAMPLES, len(problem.val))))
    exports = {name: stage.folder for name, stage in exported.items()}
    files = export_stage.summary(exports, problem.task.metric.name, latency_stage.of_run(workdir))
    folders = [trained.stage.folder for trained in retrained]
    costs = teacher_costs(deployed, problem.teacher)
    return page.write(
        workdir, problem.task.metric, problem.task.names, seconds, folders, samples, costs, files,
        retrained_teacher.stage.folder if retrained_teacher else None,
        {name: one.stage.folder for name, one in aware.items()},
    )  # fmt: skip
