"""Checks before the first stage, so that no later stage fails after hours."""

from collections.abc import Iterator
from typing import NamedTuple

import flax.linen as nn
import numpy as np

from qnas_jax import space
from qnas_jax.bwnas import search_front
from qnas_jax.bwnas.config import Config
from qnas_jax.bwnas.lut import table
from qnas_jax.bwnas.train_supernet import images_per_pass
from qnas_jax.data.batching import Dataset
from qnas_jax.errors import InputError
from qnas_jax.hardware import target as targets
from qnas_jax.hardware.deployment import Deployment
from qnas_jax.nn.conv import ConvBnAct
from qnas_jax.nn.trace import Unit, trace
from qnas_jax.run.config import Data
from qnas_jax.stages.experiment import Problem


class Statistics(NamedTuple):
    """A set of images that share batch statistics.

    Attributes:
      name: The setting that determines their number.
      value: Value of this setting.
      images: Number of images.
      shape: Height and width of the images.
      searched: Whether only norms in searched blocks share them, not those of the whole network.
      least: Value of the setting that gives two images.
    """

    name: str
    value: int
    images: int
    shape: tuple[int, int]
    searched: bool = True
    least: str = "2"


def inspect(config: Config, problem: Problem, deployed: Deployment) -> None:
    """Checks all inputs of the stages that the run has not made itself.

    Raises:
      InputError: A stage would refuse one, or learn nothing from it.
    """
    check_target(config, problem.space, deployed)
    check_norms(config, problem)
    for split in (problem.train, problem.val):
        split.check()
        check_item(config.data, split)


def check_item(data: Data, split: Dataset) -> None:
    """Checks what the first item of a data set is.

    Raises:
      InputError: Its image or its label has another type or size than the settings say.
    """
    (image, label), kind = split[0], type(split).__name__
    size = data.height, data.width
    of_labels = (size, np.uint8) if split.labels_per == "pixel" else ((), np.int32)
    for name, array, (shape, dtype) in (
        ("image", image, ((*size, 3), np.uint8)),
        ("label", label, of_labels),
    ):
        if np.shape(array) != shape or getattr(array, "dtype", None) != dtype:
            found = f"{getattr(array, 'dtype', type(array).__name__)}{[*np.shape(array)]}"
            raise InputError(
                f"data.source={data.source}: {kind} gives a first {name} {found}, must be "
                f"{np.dtype(dtype)}{[*shape]} for data.height={data.height}, "
                f"data.width={data.width}"
            )


def check_target(config: Config, searched: space.Space, deployed: Deployment) -> None:
    """Checks that the target knows all costs, and that a subnet can meet the budgets.

    Raises:
      InputError: See `target.check_knows` and `search_front.check_budgets`.
    """
    targets.check_knows(deployed.target, config.search.costs)
    check_per_tensor(config)
    per_layer, budgets = config.space.bits_per == "layer", config.search.budgets
    parts = table.parts_of(searched, config.space.bits, per_layer)
    search_front.check_budgets(searched, parts, deployed, dict(budgets))


def check_per_tensor(config: Config) -> None:
    """Refuses what gives norms new factors on a target with one scale of weights for a layer.

    Raises:
      InputError: A setting does.
    """
    if targets.named(config.hardware.target).per_channel:
        return
    for setting, value, way_out in (
        ("quantize.norms", config.quantize.norms, "set quantize.biases instead"),
        (
            "retrain.qat_norm_steps",
            config.retrain.qat_norm_steps,
            "set it to 0, with which norms are at rest in all steps",
        ),
    ):
        if value:
            rule = f"target {config.hardware.target!r} has one scale for all weights of a layer"
            so = "so the factors of its norm cannot change alone"
            raise InputError(f"{setting}={value}: {rule}, {so}; {way_out}")


def check_norms(config: Config, problem: Problem) -> None:
    """Refuses statistics over a single value, whose variance is always 0.

    Raises:
      InputError: A norm would see one value for each channel.
    """
    known = list(_statistics(config, problem))
    shapes = {one.shape for one in known}
    lone = {shape: _single_pixels(problem.teacher, shape) for shape in shapes}
    for one in known:
        names = [unit.name for unit in lone[one.shape] if unit.site or not one.searched]
        if names and one.images == 1:
            raise InputError(
                f"{one.name}={one.value}: {names[0]} gives a map of 1 x 1 pixel and statistics are "
                "of 1 image, so the variance of this one value is 0; "
                f"{one.name} must be at least {one.least}"
            )


def _single_pixels(teacher: nn.Module, shape: tuple[int, int]) -> list[Unit]:
    """The norms that see one pixel of each image; depths and ops do not change the shapes."""
    return [
        unit
        for unit in trace(teacher, (*shape, 3)).units
        if isinstance(unit.module, ConvBnAct) and unit.module.norm and unit.out_shape[:2] == (1, 1)
    ]


def _statistics(config: Config, problem: Problem) -> Iterator[Statistics]:
    """All places where norms, or the variance of a target, use the images' own statistics."""
    how, (height, width) = config.supernet, config.train.crop
    crop = height, width
    middle = min(height, config.data.height), min(width, config.data.width)
    batch, parts = config.train.batch, config.train.parts
    least = f"{2 * parts} for train.parts={parts}" if parts > 1 else "2"
    yield Statistics("train.batch", batch, batch // parts, crop, searched=False, least=least)
    part, least = how.batch // how.parts, f"{2 * how.parts} for supernet.parts={how.parts}"
    yield Statistics("supernet.batch", how.batch, part, crop, least=least)
    images = images_per_pass(how, problem.val)
    if images < how.batch:
        yield Statistics("data.val_images", images, images, middle)
    else:
        yield Statistics("supernet.batch", images, images, middle)
    for name in ("calibration_images", "images"):
        count = getattr(config.lut, name)
        yield Statistics(f"lut.{name}", count, count, middle)
    per_channel = targets.named(config.hardware.target).per_channel
    after = config.retrain.qat_steps and not config.retrain.qat_norm_steps and per_channel
    if config.quantize.norms or after:
        count = config.quantize.images
        yield Statistics("quantize.images", count, count, middle, searched=False)
