"""Whole networks, trained and evaluated: the teacher and the chosen subnets."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import PyTree

from qnas_jax import space
from qnas_jax.errors import InputError
from qnas_jax.export import fold, simulate, tie_free
from qnas_jax.hardware import size
from qnas_jax.nn import init, policy, weights
from qnas_jax.nn.trace import Shape, convs, trace
from qnas_jax.run import artefacts, config
from qnas_jax.run.stage import Stage, begun_with, is_begun, is_finished
from qnas_jax.stages.experiment import Problem, Purpose, data_mark, key, teacher_subnet
from qnas_jax.stages.fit import Training, batches, fit, optimizer_of, plan, range_images, rate_of
from qnas_jax.tasks.task import Classify, Task, evaluate
from qnas_jax.train import checkpoint, loop, supervised
from qnas_jax.train.supervised import TrainState

logger = logging.getLogger(__name__)


class Trained(NamedTuple):
    """A network that a stage trained and evaluated.

    Attributes:
      stage: The stage.
      model: The network.
      subnet: Its ops and bitwidths.
      weights: The folder of its checkpoint, within that of the stage.
    """

    stage: Stage
    model: nn.Module
    subnet: space.Subnet
    weights: str = "checkpoint"


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
    try:
        return Stage(workdir / "teacher", made_from)
    except InputError as error:
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
        checkpoint.adopt(stage.folder / "checkpoint", how.train.steps, given)
        logger.info("teacher: taken from %s", source.checkpoint)
    step_key = key(how.seed, Purpose.TEACHER_TRAIN)
    variables = _train_network(workdir, problem, how, trained, start, step_key, "teacher")
    finish(problem, how, trained, variables, fresh["quant"])
    return trained, variables


def subnet_stage(
    workdir: pathlib.Path, distilled: Stage, subnet: str, how: config.Retrain
) -> Stage:
    """Returns the stage of a retrained subnet.

    Args:
      workdir: The folder of the run.
      distilled: The stage of the supernet.
      subnet: The subnet in its text form.
      how: How it is trained.
    """
    made_from = {"supernet": distilled.hash, "subnet": subnet, "init": how.init, **_recipe(how)}
    return Stage(workdir / "retrain" / _folder_name(subnet), made_from, _recipe(config.Retrain()))


def retrained_teacher_stage(workdir: pathlib.Path, teacher: Stage, how: config.Retrain) -> Stage:
    """Returns the stage in which the teacher is trained on, as long as a subnet."""
    made_from = {"teacher": teacher.hash, **_recipe(how)}
    return Stage(workdir / "retrained_teacher", made_from, _recipe(config.Retrain()))


def _recipe(how: config.Retrain) -> dict[str, int | float]:
    """What differs from `train`, as a mark names it; older marks have the defaults."""
    return {"retrain.steps": how.steps, "retrain.lr": how.lr}


def _folder_name(subnet: str) -> str:
    """The subnet, or its beginning and a hash if file systems would refuse its length."""
    return subnet if len(subnet) <= 200 else f"{subnet[:180]}-{artefacts.digest(subnet)}"


def retrain(
    workdir: pathlib.Path,
    problem: Problem,
    how: Training,
    trained: Trained,
    start: Callable[[PyTree], PyTree],
    title: str,
) -> None:
    """Trains a network again and evaluates it, in float and quantized; does nothing if done.

    Args:
      workdir: The folder of the run.
      problem: Images and task.
      how: How the network is trained and evaluated.
      trained: The subnet or the teacher, and its stage.
      start: Gives the initial variables from random ones.
      title: Name of the training in log lines.
    """
    stage, model, subnet, _ = trained
    if stage.done:
        return
    stage.begin()
    fresh = init.initialize(model, key(how.seed, Purpose.RETRAIN_INIT), (1, *how.train.crop, 3))
    quant = _with_bits(model, fresh["quant"], subnet, problem)
    step_key = key(how.seed, Purpose.RETRAIN_TRAIN)
    variables = _train_network(workdir, problem, how, trained, start(fresh), step_key, title)
    finish(problem, how, trained, variables, quant)


def _with_bits(model: nn.Module, quant: PyTree, subnet: space.Subnet, problem: Problem) -> PyTree:
    """The policy of a subnet."""
    return policy.with_bits(quant, trace(model, problem.val[0][0].shape), subnet)


def _train_network(workdir, problem, how, trained, fresh, step_key, title) -> PyTree:
    """Trains a network; returns its variables."""
    given, optimizer = how.train, optimizer_of(how.train, how.train.lr)
    step = supervised.train_step(
        trained.model, problem.task.loss, optimizer, step_key, given.compute
    )
    whole = loop.Watched(
        "the network", "loss", rate_of(given, given.lr), "train.lr", lambda state: state
    )
    planned = plan(trained.stage, how, title, given.steps, [whole])
    state, make_batch = (
        supervised.fresh_state(fresh, optimizer),
        batches(problem.train, how, given.batch),
    )
    return fit(workdir, planned, loop.several(step), state, make_batch).variables()


def finish(problem: Problem, how: Training, trained: Trained, variables, quant) -> None:
    """Evaluates a network, writes `metrics.json` and some predictions, and finishes its stage."""
    stage, model, subnet, _ = trained
    if stage.done:
        return
    quant = _calibrated(problem, how, trained, variables, quant)
    shape, task = problem.val[0][0].shape, problem.task
    sources = {
        "fp32": functools.partial(supervised.predictor(model, task.predict), variables),
        # What the files compute; with fake quantization, biases would not be rounded.
        "quantized": simulated(task, model, variables, quant, shape),
    }
    found, samples = evaluate(sources, problem.val, how.run.eval_batch, task)
    sizes = network_sizes(model, quant, shape)
    with artefacts.writing(stage.folder / "samples.npz") as file:
        np.savez_compressed(file, allow_pickle=False, **samples)
    described = {"subnet": space.format_subnet(subnet), **found, **sizes}
    artefacts.write_json(stage.folder / "metrics.json", described)
    stage.finish()
    logger.info(
        "%s: %s %.2f %% in float, %.2f %% quantized, %.1f kB",
        stage.folder.name,  # "teacher", or the subnet
        task.metric.title,
        found[f"{task.metric.name}_fp32"],
        found[f"{task.metric.name}_quantized"],
        sizes["size_bytes"] / 1e3,
    )


def simulated(task: Task, model: nn.Module, variables, quant, shape: Shape) -> Classify:
    """Returns a function images -> classes by rank, as the integers of a network's file do."""
    logits = simulate.logits(fold.fold(model, variables, quant, shape, resize=task.per_pixel))
    predict = jax.jit(task.predict, static_argnums=1)
    return lambda images: predict(logits(images), shape[:2])


def network_sizes(model: nn.Module, quant: PyTree, image_shape: Shape) -> dict[str, int]:
    """Returns the bytes of a network and of its encoder, quantized and in float, and its MACs."""
    traced, bits = trace(model, image_shape), policy.w_bits(quant)
    found = traced.convs
    by_conv = {conv.name: int(size.conv_bytes(conv, bits[conv.name])) for conv in found}
    encoder = sum(by_conv[conv.name] for conv in convs(traced.encoder))
    return {
        "size_bytes": sum(by_conv.values()),
        "encoder_size_bytes": encoder,
        "float_size_bytes": size.float_bytes(found),
        "macs": sum(conv.macs for conv in found),
    }


def _calibrated(problem: Problem, how: Training, trained: Trained, variables, quant) -> PyTree:
    """Returns the policy with its ranges, which are found once and kept in `quant.npz`."""
    file = trained.stage.folder / "quant.npz"
    if not file.exists():
        crops = range_images(problem.train, how)
        found = supervised.calibrated(trained.model, variables, quant, crops)
        shape = problem.val[0][0].shape
        network = fold.fold(trained.model, variables, found, shape, resize=problem.task.per_pixel)
        found = tie_free.with_agreed_sums(network, found)
        checkpoint.write_arrays(file, found)
    return checkpoint.read_arrays(file, quant)


def load(problem: Problem, how: Training, trained: Trained) -> tuple[PyTree, PyTree]:
    """Returns the variables and the calibrated policy of a network whose stage is finished."""
    random = key(how.seed, Purpose.TEACHER_INIT)  # overwritten by the checkpoint
    fresh = init.initialize(trained.model, random, (1, *how.train.crop, 3))
    state = supervised.fresh_state(fresh, optimizer_of(how.train, how.train.lr))
    variables = checkpoint.load(trained.stage.folder / trained.weights, state).variables()
    quant = _with_bits(trained.model, fresh["quant"], trained.subnet, problem)
    return variables, _calibrated(problem, how, trained, variables, quant)
