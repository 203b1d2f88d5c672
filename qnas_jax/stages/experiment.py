"""Builds the records of an experiment from its config: the problem and the deployment."""

import copy
import dataclasses
import enum
import functools
import logging
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Key

from qnas_jax import space
from qnas_jax.data.batching import Dataset, Resized
from qnas_jax.hardware import candidates, deployment, matrix, measured
from qnas_jax.hardware import target as targets
from qnas_jax.hardware.candidates import Place
from qnas_jax.hardware.deployment import Deployment
from qnas_jax.nn import mobilenet
from qnas_jax.nn.classifier import Classifier
from qnas_jax.nn.deeplab import DeepLabV3
from qnas_jax.nn.trace import convs, trace
from qnas_jax.run import artefacts, config, parallel, paths
from qnas_jax.stages import sources
from qnas_jax.tasks import classification, segmentation
from qnas_jax.tasks.task import Task

logger = logging.getLogger(__name__)

PATHS = ("data.root", "teacher.checkpoint", "hardware.table")  # settings that are paths

Given = TypeVar("Given", bound=config.Config)


class Purpose(enum.IntEnum):
    """What random keys are drawn for; each purpose has its own key."""

    TEACHER_INIT = 0
    TEACHER_TRAIN = 1
    SUPERNET_INIT = 2
    SUPERNET_TRAIN = 3
    RETRAIN_INIT = 4
    RETRAIN_TRAIN = 5
    SUPERNET_PATHS = 6
    AGENTS = 7
    TUNING = 8
    ROUNDING = 9
    QAT = 10


class Problem(NamedTuple):
    """What is to be learned, and the networks that may learn it.

    Attributes:
      task: Loss, prediction and score.
      train: The training split.
      val: The validation split.
      teacher: The teacher network.
      student: Gives the network of a subnet.
      space: The search space. Its blocks differ from the teacher's in depth, and in channels if
        the teacher is wider.
    """

    task: Task
    train: Dataset
    val: Dataset
    teacher: nn.Module
    student: Callable[[space.Subnet], nn.Module]
    space: space.Space


def prepare(given: Given) -> tuple[Given, Problem, Deployment]:
    """Opens the images, and lays out the networks and the target.

    Args:
      given: The config of a system.

    Returns:
      The config with homes filled in and with the part of its space that the target runs; the
      problem; and the deployment.

    Raises:
      InputError: The images are not where the config says, or the target or the devices
        cannot be used.
    """
    parallel.check_devices()
    given = paths.with_homes(given, PATHS)
    network, shape = given.network, _image_shape(given)
    first, blocks = _student_groups(network, given.space)
    stride = network.stem_stride * first.stride
    features = -(-shape[0] // stride), -(-shape[1] // stride)
    where = candidates.places(blocks, features)
    device = deployment.device(given.hardware.target, given.hardware.table, where)
    given = copy.copy(given)
    given.space = for_target(given.space, device)
    ops = tuple(space.Op(k, e) for k in given.space.kernels for e in given.space.expansions)
    if given.hardware.table:
        _log_missing(pathlib.Path(given.hardware.table), where, ops, given.space.bits)
    train = sources.opened(given.data, "train")
    given.check_images(len(train))
    make_task = {"pixel": segmentation.task, "image": classification.task}[train.labels_per]
    task = make_task(train.names)
    built = networks(network, given.space, task)
    problem = Problem(task, train, sources.opened(given.data, "val"), *built)
    smallest = tuple((space.Choice(ops[0], 8, 8),) * block.depth for block in blocks)
    parts = _fixed_convs(problem.student(smallest), shape)
    return given, problem, Deployment(device, where, parts)


class Networks(NamedTuple):
    """The teacher, the network of a subnet, and the search space of a config."""

    teacher: nn.Module
    student: Callable[[space.Subnet], nn.Module]
    space: space.Space


def networks(network: config.Network, chosen: config.Space, task: Task) -> Networks:
    """Lays out the networks of a config; needs no images."""
    width = network.teacher_width or network.width
    teacher_first, teacher_blocks = _groups(network, width)
    first, blocks = _student_groups(network, chosen)
    ops = tuple(space.Op(k, e) for k in chosen.kernels for e in chosen.expansions)
    build = functools.partial(_network, network, task)
    return Networks(
        build(teacher_first, teacher_blocks, mobilenet.teacher_paths(teacher_blocks)),
        lambda subnet: build(first, blocks, tuple(tuple(c.op for c in b) for b in subnet)),
        space.Space(blocks, ops),
    )


def _student_groups(network: config.Network, chosen: config.Space):
    """The group that is in no block, and the blocks that are searched."""
    teacher_first, _ = _groups(network, network.teacher_width or network.width)
    first, narrow = _groups(network, network.width)
    # The stem is the teacher's, so that a subnet can inherit it.
    first = dataclasses.replace(first, in_channels=teacher_first.in_channels)
    pairs = zip(narrow, chosen.depths, strict=True)
    return first, tuple(dataclasses.replace(block, depth=depth) for block, depth in pairs)


def _groups(network: config.Network, width: float) -> tuple[space.Block, tuple[space.Block, ...]]:
    """The first group of MobileNetV2, which is in no block, and the others, which are blocks."""
    first, *others = space.mobilenet_v2_blocks(
        width, network.strides, network.dilations, network.dilate
    )
    return first, tuple(others)


def _network(network: config.Network, task: Task, first, blocks, paths) -> nn.Module:
    """The encoder with the head that the task needs."""
    padding = tuple(value / 128 - 1 for value in network.padding)
    encoder = mobilenet.MobileNetV2(
        first.in_channels, first, blocks, paths, padding, network.stem_stride
    )
    head = network.head_channels
    if task.per_pixel:
        return DeepLabV3(encoder, head, network.rates, task.classes, network.dropout)
    return Classifier(encoder, head, task.classes, network.dropout)


def _image_shape(given: config.Config) -> tuple[int, int, int]:
    """Height, width and channels of deployed images."""
    height, width = given.hardware.image_size
    return (height, width, 3) if height else (given.data.height, given.data.width, 3)


def _fixed_convs(network: nn.Module, image_shape) -> dict[str, list[space.Conv]]:
    """The convolutions that are in no searched block, by part; see `Deployment`."""
    traced = trace(network, image_shape)
    return {"stem": convs(traced.stem), "head": convs(traced.head)}


def for_target(chosen: config.Space, device: targets.Target) -> config.Space:
    """Returns the part of a space that a target runs, and logs what is left out.

    Raises:
      InputError: Nothing is left, or the target does not choose bitwidths so finely.
    """
    wanted = targets.Choices(tuple(chosen.kernels), tuple(chosen.expansions), chosen.bits)
    found = targets.runnable(device, wanted)
    for name, before, left in zip(wanted._fields, wanted, found, strict=True):
        if before != left:
            logger.info("target %s: %s %s instead of %s", device.name, name, left, before)
    targets.check_granularity(device, found.bits, chosen.bits_per)
    w_bits, a_bits = zip(*found.bits, strict=True)
    return dataclasses.replace(
        chosen,
        kernels=found.kernels,
        expansions=found.expansions,
        w_bits=w_bits,
        a_bits=a_bits,
    )


def _log_missing(
    table: pathlib.Path,
    where: tuple[Place, ...],
    ops: tuple[space.Op, ...],
    bits: tuple[space.Bits, ...],
) -> None:
    """Logs how many lines a table of measurements lacks."""
    missing = measured.missing(measured.read(table), where, ops, bits)
    if missing:
        place, op, w_bits, a_bits = (*missing[0][:2], *missing[0][-2:])
        logger.info(
            "%s: %d lines are missing, so these are not run; the first is %s %s w%da%d",
            *(table, len(missing), place, op, w_bits, a_bits),
        )


def key(seed: int, purpose: Purpose) -> Key[Array, ""]:
    """Returns the PRNG key of a purpose."""
    return jax.random.fold_in(jax.random.key(seed), purpose)


def teacher_subnet(teacher: nn.Module) -> space.Subnet:
    """Returns the teacher's ops as a subnet of 8 bits; () if its layers are no ops."""
    if not hasattr(teacher, "encoder"):
        return ()
    return tuple(tuple(space.Choice(op, 8, 8) for op in path) for path in teacher.encoder.paths)


def teacher_costs(deployed: Deployment, teacher: nn.Module) -> dict[str, float]:
    """Returns the known costs of the teacher at 8 bits on the target."""
    first, subnet = deployed.places[0], teacher_subnet(teacher)
    where = candidates.places(teacher.encoder.blocks, (first.in_height, first.in_width))
    deployed = deployed._replace(parts=_fixed_convs(teacher, deployed.image_shape))
    ops, bits = tuple({choice.op for block in subnet for choice in block}), ((8, 8),)
    blocks = matrix.subnet_costs(
        deployed._replace(places=where).matrix(ops, bits), ops, bits, subnet
    )
    fixed = deployed.fixed()
    found = {name: sum(fixed[name].values()) + blocks[name] for name in deployed.target.costs}
    return {name: value for name, value in found.items() if np.isfinite(value)}


def deployed_images(problem: Problem, data: config.Data, deployed: Deployment) -> Dataset:
    """Returns the validation split at the size of deployed images, resized if necessary."""
    return (
        Resized(problem.val, *deployed.image_shape[:2]) if resizes(data, deployed) else problem.val
    )


def resizes(data: config.Data, deployed: Deployment) -> bool:
    """Whether deployed images have another size than those of the validation split."""
    return deployed.image_shape[:2] != (data.height, data.width)


def data_mark(problem: Problem, data: config.Data) -> dict[str, Any]:
    """Returns what the images are, for the marks of stages.

    Rendered images are given by their settings. Files are given by their content, not by their
    path. A setting that came later counts only where it is used, so that the marks of older runs
    stay as they are.
    """
    mark = artefacts.plain(data)
    mark |= {"train_images": len(problem.train), "val_images": len(problem.val)}
    del mark["threads"], mark["cache_mb"]
    for later in ("name", "corruptions", "frequencies"):
        if not mark[later]:
            del mark[later]
    contents = [split.content() for split in (problem.train, problem.val)]
    if not any(contents):
        return {**mark, "root": ""}
    del mark["root"], mark["seed"]
    return {**mark, "content": artefacts.digest(contents)}
