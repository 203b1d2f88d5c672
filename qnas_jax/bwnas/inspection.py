"""What is looked at before the first stage begins, so that no later one refuses it after hours."""

import logging
import time
from collections.abc import Iterator
from typing import NamedTuple

from qnas_jax.bwnas import search_front
from qnas_jax.bwnas.lut import table
from qnas_jax.bwnas.train_supernet import images_per_pass
from qnas_jax.data.cityscapes import Cityscapes
from qnas_jax.errors import InputError
from qnas_jax.nn.conv import ConvBnAct
from qnas_jax.nn.trace import Unit, trace
from qnas_jax.stages.experiment import Setting

logger = logging.getLogger(__name__)


class Statistics(NamedTuple):
    """Images over which norms take statistics together.

    Attributes:
      name: The setting that says how many they are.
      value: Of this setting.
      images: Their number.
      shape: Their height and width.
      searched: Whether only norms of searched blocks take them, not those of the whole network.
      least: Value of the setting that gives two images.
    """

    name: str
    value: int
    images: int
    shape: tuple[int, int]
    searched: bool = True
    least: str = "2"


def inspect(setting: Setting) -> None:
    """Looks at everything that the stages will read and that a run has not made itself.

    Raises:
      InputError: A stage would refuse it, or learn nothing from it.
    """
    check_target(setting)
    check_norms(setting)
    begin = time.monotonic()
    splits = [s for s in (setting.train_data, setting.val_data) if isinstance(s, Cityscapes)]
    for split in splits:
        split.check()
    if splits:
        pairs, seconds = sum(map(len, splits)), time.monotonic() - begin
        logger.info("data: looked at %d images and their labels in %.1f s", pairs, seconds)


def check_target(setting: Setting) -> None:
    """Refuses a target or budgets that no subnet can meet.

    Raises:
      InputError: See `search_front.check_budgets`.
    """
    per_layer, budgets = setting.config.space.bits_per == "layer", setting.config.search.budgets
    parts = table.parts_of(setting.searched, setting.bits, per_layer)
    search_front.check_budgets(setting.searched, parts, setting.deployment(), dict(budgets))


def check_norms(setting: Setting) -> None:
    """Refuses statistics of one value: its variance is 0, whatever it is.

    Raises:
      InputError: A norm would see one value for each channel.
    """
    known = list(_statistics(setting))
    lone = {shape: _single_pixels(setting, shape) for shape in {one.shape for one in known}}
    for one in known:
        names = [unit.name for unit in lone[one.shape] if unit.site or not one.searched]
        if names and one.images == 1:
            raise InputError(
                f"{one.name}={one.value}: {names[0]} gives a map of 1 x 1 pixel and statistics are "
                "of 1 image, so the variance of this one value is 0; "
                f"{one.name} must be at least {one.least}"
            )


def _single_pixels(setting: Setting, shape: tuple[int, int]) -> list[Unit]:
    """The norms that see a single pixel of each image; depths and ops change no shape."""
    return [
        unit
        for unit in trace(setting.teacher(), (*shape, 3)).units
        if isinstance(unit.module, ConvBnAct) and unit.module.norm and unit.out_shape[:2] == (1, 1)
    ]


def _statistics(setting: Setting) -> Iterator[Statistics]:
    """Wherever norms, or the variance of a block's target, use the images' own statistics."""
    config = setting.config
    (height, width), middle, how = config.train.crop, setting.middle(), config.supernet
    crop = height, width
    yield Statistics("train.batch", config.train.batch, config.train.batch, crop, searched=False)
    part, least = how.batch // how.parts, f"{2 * how.parts} for supernet.parts={how.parts}"
    yield Statistics("supernet.batch", how.batch, part, crop, least=least)
    images = images_per_pass(setting)
    if images < how.batch:
        yield Statistics("data.val_images", images, images, middle)
    else:
        yield Statistics("supernet.batch", images, images, middle)
    for name in ("calibration_images", "images"):
        count = getattr(config.lut, name)
        yield Statistics(f"lut.{name}", count, count, middle)
