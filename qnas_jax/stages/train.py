"""Whole networks, trained and evaluated: the teacher and the chosen subnets."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from qnas_jax.errors import InputError
from qnas_jax.nn import init, weights
from qnas_jax.run import artefacts, config, parallel, processes, recipes
from qnas_jax.run.stage import Stage, begun_with, is_begun, is_finished
from qnas_jax.space import MOST_BITS
from qnas_jax.stages import evaluation
from qnas_jax.stages.evaluation import Trained
from qnas_jax.stages.experiment import Problem, Purpose, data_mark, key, teacher_subnet
from qnas_jax.stages.fit import Training, batches, fit, optimizer_of, plan, rate_of
from qnas_jax.stages.policies import Teacher
from qnas_jax.train import checkpoint, loop, mesh, supervised
from qnas_jax.train.supervised import TrainState

logger = logging.getLogger(__name__)


def teacher_stage(
    workdir: pathlib.Path,
    problem: Problem,
    how: Training,
    network: Any,
    source: config.Teacher,
) -> Stage:
    """Returns the stage of the teacher.

    Args:
      workdir: The folder of the run.
      problem: Its images and its teacher.
      how: How the teacher is trained and evaluated.
      network: What the network is, for the mark of the stage.
      source: Where the teacher comes from.

    Raises:
      InputError: It was made from something else, or the given one cannot be used.
    """
    given = _given_teacher(workdir, problem, how, source)
    return _teacher_stage(workdir, problem, how, network, source, given)


def _teacher_stage(workdir, problem, how, network, source, given: TrainState | None) -> Stage:
    content = checkpoint.content(given.variables()) if given else ""
    if source.checkpoint and not given:  # it is gone, but the stage is finished
        content = begun_with(workdir / "teacher", "teacher")["checkpoint"]
    made_from = {
        "data": data_mark(problem, how.data),
        "network": network,
        "train": how.train,
        "teacher": dataclasses.replace(source, checkpoint=content),
        "quantize": how.quantize,
        "seed": how.seed,
    }
    if how.most_w_bits < MOST_BITS:
        made_from["most_w_bits"] = how.most_w_bits
    if not how.per_channel:
        made_from["per_channel"] = False
    try:
        return Stage(workdir / "teacher", made_from)
    except InputError as error:
        for name in ("most_w_bits", "per_channel"):
            if f"({name}: " in str(error):
                raise InputError(f"{error}; {name} is that of hardware.target") from None
        if "(data.content: " not in str(error):
            raise
        raise InputError(
            f"{error}; data.content is a hash of the images at data.root={how.data.root} "
            "(names, sizes, some bytes; None: an older version, which took the path)"
        ) from None


def _given_teacher(workdir, problem, how, source: config.Teacher) -> TrainState | None:
    """Returns the teacher that the config names, if it names one."""
    own = workdir / "teacher"
    if not source.checkpoint:
        return None
    given = pathlib.Path(source.checkpoint)
    if is_begun(given.parent) and not is_finished(given.parent):
        raise InputError(
            f"teacher.checkpoint={given}: its run did not finish the teacher; "
            "resume it with its own command"
        )
    of_file = weights.is_file(given) and not given.is_dir()
    if not given.exists() and is_finished(own) and source.finetune:
        return None  # its weights are no longer needed
    if not given.exists() and is_finished(own):
        raise InputError(
            f"teacher.checkpoint={given}: no such {'file' if of_file else 'folder'}; "
            f"this run has a copy of it: set it to {own / 'checkpoint'}"
        )
    if given.is_file() and not of_file:
        raise InputError(
            f"teacher.checkpoint={given}: must be a folder of checkpoints, or a file of weights "
            f"that ends in {' or '.join(weights.SUFFIXES)}"
        )
    optimizer = optimizer_of(how.train, how.train.lr)
    shapes = jax.eval_shape(lambda: _fresh_teacher(problem, how))
    like = {kind: shapes[kind] for kind in weights.KINDS}
    try:
        if of_file:
            loaded = weights.load(given, problem.teacher, like)
        else:
            zeros = jax.tree.map(
                lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype)), like
            )
            loaded = checkpoint.load_parts(given, zeros)  # it had any optimizer
    except InputError as error:
        raise InputError(f"teacher.checkpoint: {error}") from None
    return supervised.fresh_state(loaded, optimizer)


def _fresh_teacher(problem: Problem, how: Training) -> PyTree:
    shape = (1, *how.train.crop, 3)
    return init.initialize(problem.teacher, key(how.seed, Purpose.TEACHER_INIT), shape)


def train_teacher(
    workdir: pathlib.Path,
    problem: Problem,
    how: Training,
    network: Any,
    source: config.Teacher,
) -> tuple[Trained, PyTree]:
    """Trains the teacher (or the given one on, or takes that), and evaluates it.

    Returns:
      The teacher, and its variables.
    """
    given = _given_teacher(workdir, problem, how, source)
    stage = _teacher_stage(workdir, problem, how, network, source, given)
    stage.begin()
    trained = Trained(stage, problem.teacher, teacher_subnet(problem.teacher))
    fresh = _fresh_teacher(problem, how)
    start = fresh
    if given and source.finetune:
        start = given.variables()
        if not stage.done:
            logger.info("teacher: trained on from %s", source.checkpoint)
    elif given and not stage.done:
        with processes.first_goes_first("adopted"):
            if parallel.is_first():
                checkpoint.adopt(stage.folder / "checkpoint", how.train.steps, given)
        logger.info("teacher: taken from %s", source.checkpoint)
    step_key = key(how.seed, Purpose.TEACHER_TRAIN)
    variables = _train_network(workdir, problem, how, trained, start, step_key, "teacher")
    evaluation.finish(problem, how, trained, variables, fresh["quant"])
    return trained, variables


def subnet_stage(
    workdir: pathlib.Path, distilled: Stage, subnet: str, how: recipes.Retrain
) -> Stage:
    """Returns the stage of a retrained subnet.

    Args:
      workdir: The folder of the run.
      distilled: The stage of the supernet.
      subnet: The subnet in its text form.
      how: How it is trained.
    """
    made_from = {"supernet": distilled.hash, "subnet": subnet, "init": how.init, **recipe(how)}
    return Stage(workdir / "retrain" / folder_name(subnet), made_from, recipe(recipes.Retrain()))


def retrained_teacher_stage(workdir: pathlib.Path, teacher: Stage, how: recipes.Retrain) -> Stage:
    """Returns the stage in which the teacher is trained on, as long as a subnet."""
    made_from = {"teacher": teacher.hash, **recipe(how)}
    return Stage(workdir / "retrained_teacher", made_from, recipe(recipes.Retrain()))


def recipe(how: recipes.Retrain) -> dict[str, Any]:
    """Returns what differs from `train`, as a mark names it; older marks have the defaults."""
    distill = [list(pair) for pair in how.distill]
    return {"retrain.steps": how.steps, "retrain.lr": how.lr, "retrain.distill": distill}


def folder_name(subnet: str) -> str:
    """Returns the subnet, or its beginning and a hash if file systems would refuse its length."""
    return subnet if len(subnet) <= 200 else f"{subnet[:180]}-{artefacts.digest(subnet)}"


def retrain(
    workdir: pathlib.Path,
    problem: Problem,
    how: Training,
    trained: Trained,
    start: Callable[[PyTree], PyTree],
    title: str,
    teacher: Teacher | None = None,
) -> None:
    """Trains a network again and evaluates it, in float and quantized; does nothing if done.

    Args:
      workdir: The folder of the run.
      problem: Images and task.
      how: How the network is trained and evaluated.
      trained: The subnet or the teacher, and its stage.
      start: Gives the initial variables from random ones.
      title: Name of the training in log lines.
      teacher: What the network learns besides the labels.
    """
    stage, model, subnet = trained.stage, trained.model, trained.subnet
    if stage.done:
        return
    stage.begin()
    fresh = init.initialize(model, key(how.seed, Purpose.RETRAIN_INIT), (1, *how.train.crop, 3))
    quant = evaluation.with_bits(model, fresh["quant"], subnet, problem)
    step_key = key(how.seed, Purpose.RETRAIN_TRAIN)
    first = start(fresh)
    variables = _train_network(workdir, problem, how, trained, first, step_key, title, teacher)
    evaluation.finish(problem, how, trained, variables, quant)


def _train_network(workdir, problem, how, trained, fresh, step_key, title, teacher=None) -> PyTree:
    """Trains a network; returns its variables."""
    given, optimizer = how.train, optimizer_of(how.train, how.train.lr)
    distill = teacher.distill if teacher else None
    step = supervised.train_step(
        trained.model, problem.task.loss, optimizer, step_key, given.compute, distill, given.parts
    )
    steps = loop.several(step, teacher.variables) if teacher else loop.several(step)
    whole = loop.Watched(
        "the network", "loss", rate_of(given, given.lr), "train.lr", lambda state: state
    )
    planned = plan(trained.stage, how, title, given.steps, [whole])
    state, make_batch = (
        supervised.fresh_state(fresh, optimizer),
        batches(problem.train, how, given.batch),
    )
    layout = loop.AS_SAVED if trained.stage.done else mesh.layout(given.batch)
    return fit(workdir, planned, steps, state, make_batch, layout).variables()
