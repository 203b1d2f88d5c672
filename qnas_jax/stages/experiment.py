"""What a config amounts to: pictures, networks, the target and the search space."""

import copy
import dataclasses
import enum
import functools
import logging
import pathlib
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

from qnas_jax import space
from qnas_jax.data import labels
from qnas_jax.data.batching import Augmentation, Batch, Dataset, Resized, stacked, training_batch
from qnas_jax.data.cityscapes import Cityscapes
from qnas_jax.data.streets import Streets
from qnas_jax.hardware import candidates, deployment, matrix, measured, size
from qnas_jax.hardware import target as targets
from qnas_jax.hardware.deployment import Deployment
from qnas_jax.nn import mobilenet
from qnas_jax.nn.deeplab import DeepLabV3
from qnas_jax.nn.trace import convs, trace
from qnas_jax.run import artefacts, parallel, paths
from qnas_jax.run.config import Config

logger = logging.getLogger(__name__)

CLASSES = len(labels.NAMES)
PATHS = ("data.root", "teacher.checkpoint", "hardware.table")  # all that a config names


class Purpose(enum.IntEnum):
    """What random keys are drawn for; each purpose has its own."""

    TEACHER_INIT = 0
    TEACHER_TRAIN = 1
    SUPERNET_INIT = 2
    SUPERNET_TRAIN = 3
    RETRAIN_INIT = 4
    RETRAIN_TRAIN = 5
    SUPERNET_PATHS = 6


@dataclasses.dataclass(frozen=True)
class Setting:
    """All that the stages of a run share.

    Attributes:
      config: What the run was told.
      workdir: Where it leaves its artefacts.
      train_data: The training split.
      val_data: The validation split.
      first: The encoder's first group, which is in no searched block.
      teacher_blocks: The teacher's blocks.
      searched: The search space; its blocks differ from the teacher's in depth alone.
      target: The device that networks are searched for.
    """

    config: Config
    workdir: pathlib.Path
    train_data: Dataset
    val_data: Dataset
    first: space.Block
    teacher_blocks: tuple[space.Block, ...]
    searched: space.Space
    target: targets.Target

    def teacher(self) -> DeepLabV3:
        """The teacher network."""
        return self._network(self.teacher_blocks, mobilenet.teacher_paths(self.teacher_blocks))

    def teacher_subnet(self) -> space.Subnet:
        """The teacher as if it were a subnet, at 8 bits."""
        paths = mobilenet.teacher_paths(self.teacher_blocks)
        return tuple(tuple(space.Choice(op, 8, 8) for op in path) for path in paths)

    def student(self, subnet: space.Subnet) -> DeepLabV3:
        """The network that a subnet is."""
        paths = tuple(tuple(choice.op for choice in block) for block in subnet)
        return self._network(self.searched.blocks, paths)

    def _network(self, blocks, paths) -> DeepLabV3:
        network = self.config.network
        stem = space.scaled_channels(space.MOBILENET_V2_STEM, network.width)
        encoder = mobilenet.MobileNetV2(stem, self.first, blocks, paths)
        return DeepLabV3(encoder, network.head_channels, network.rates, CLASSES, network.dropout)

    @property
    def bits(self) -> tuple[tuple[int, int], ...]:
        """The bitwidths of weights and activations that a block may take."""
        return tuple(zip(self.config.space.w_bits, self.config.space.a_bits, strict=True))

    def key(self, purpose: Purpose) -> Key[Array, ""]:
        """The key from which one of the run's purposes draws."""
        return jax.random.fold_in(jax.random.key(self.config.seed), purpose)

    def training_batch(self, step: int, batch: int) -> Batch:
        """The augmented pictures of a training step, this process's share of them."""
        how = Augmentation(self.config.train.crop, self.config.train.scale)
        share = parallel.share(batch)
        return training_batch(self.train_data, self.config.seed, step, batch, how, share)

    def training_crops(self, indices: range) -> np.ndarray:
        """The middles of training pictures as they are, uint8[n, *crop, 3]."""
        return self._crops(self.train_data, indices)

    def validation_crops(self, indices: range) -> np.ndarray:
        """The middles of validation pictures as they are, uint8[n, *crop, 3]."""
        return self._crops(self.val_data, indices)

    def _crops(self, data: Dataset, indices: range) -> np.ndarray:
        images = stacked(data, indices).images
        height, width = self.middle()
        top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
        return images[:, top : top + height, left : left + width]

    def middle(self) -> tuple[int, int]:
        """Height and width of the middles of pictures: the crop's, or the picture's if less."""
        (height, width), data = self.config.train.crop, self.config.data
        return min(height, data.height), min(width, data.width)

    def picture(self) -> tuple[int, int, int]:
        """Height, width and channels of a picture of the deployed size."""
        return (*_picture(self.config), 3)

    @property
    def resizes(self) -> bool:
        """Whether the deployed size is another than that of the validation pictures."""
        return self.picture()[:2] != (self.config.data.height, self.config.data.width)

    def deployed_data(self) -> Dataset:
        """The validation split at the deployed size, resized where that is another."""
        return Resized(self.val_data, *self.picture()[:2]) if self.resizes else self.val_data

    @functools.cached_property
    def fixed_convs(self) -> dict[str, list[space.Conv]]:
        """What is in no searched block: `stem` within the encoder, `head` behind it."""
        traced = trace(self.teacher(), self.picture())
        return {"stem": convs(traced.stem), "head": convs(traced.head)}

    def fixed_bytes(self, column: size.Column = size.conv_bytes) -> dict[str, int]:
        """Bytes of what is in no searched block; logical ones by default."""
        bits = targets.FIXED_BITS
        return {part: size.network_bytes(c, bits, column) for part, c in self.fixed_convs.items()}

    def places(self) -> tuple[candidates.Place, ...]:
        """Every layer of the search space in an image of the deployed size."""
        return candidates.places(self.searched.blocks, _features(self.config, self.first))

    def deployment(self) -> Deployment:
        """The search space on the target, in an image of the deployed size."""
        return Deployment(self.target, self.places(), self.fixed_convs)

    def teacher_costs(self) -> dict[str, float]:
        """The known costs of the target for the teacher at 8 bits."""
        where = candidates.places(self.teacher_blocks, _features(self.config, self.first))
        deployed, subnet = self.deployment()._replace(places=where), self.teacher_subnet()
        ops, bits = tuple({choice.op for block in subnet for choice in block}), ((8, 8),)
        fixed = deployed.fixed()
        blocks = matrix.subnet_costs(deployed.matrix(ops, bits), ops, bits, subnet)
        found = {name: sum(fixed[name].values()) + blocks[name] for name in self.target.costs}
        return {name: value for name, value in found.items() if np.isfinite(value)}

    def data_mark(self) -> dict[str, Any]:
        """What the pictures are, for the hash of what is made from them.

        Rendered ones are what their settings say, and files what they hold, not where they lie.
        """
        mark = artefacts.plain(self.config.data)
        mark |= {"train_images": len(self.train_data), "val_images": len(self.val_data)}
        del mark["threads"]
        files = [data for data in (self.train_data, self.val_data) if isinstance(data, Cityscapes)]
        if not files:
            return {**mark, "root": ""}
        del mark["root"], mark["seed"]
        return {**mark, "content": artefacts.digest([data.content() for data in files])}


def prepare(config: Config, workdir: pathlib.Path) -> Setting:
    """Opens the pictures and lays out the networks.

    Raises:
      InputError: The pictures are not where the config says, or the target or the devices
        cannot be used.
    """
    parallel.check_devices()
    config = paths.with_homes(config, PATHS)
    network = config.network
    groups = space.mobilenet_v2_blocks(network.width, network.strides, network.dilations)
    blocks = tuple(
        dataclasses.replace(block, depth=depth)
        for block, depth in zip(groups[1:], config.space.depths, strict=True)
    )
    where = candidates.places(blocks, _features(config, groups[0]))
    device = deployment.device(config.hardware.target, config.hardware.table, where)
    targets.check_knows(device, config.search.costs)
    config = for_target(config, device)
    chosen = config.space
    ops = tuple(space.Op(k, e) for k in chosen.kernels for e in chosen.expansions)
    if config.hardware.table:
        _tell_what_is_missing(config, where, ops)
    train_data = _pictures(config, "train", config.data.train_images)
    config.check_images(len(train_data))
    return Setting(
        config=config,
        workdir=workdir,
        train_data=train_data,
        val_data=_pictures(config, "val", config.data.val_images),
        first=groups[0],
        teacher_blocks=groups[1:],
        searched=space.Space(blocks, ops),
        target=device,
    )


def for_target(config: Config, device: targets.Target) -> Config:
    """The config with what a target runs left in its space.

    Raises:
      InputError: Nothing is left, or the target does not choose bitwidths so finely.
    """
    chosen = copy.copy(config.space)
    pairs = tuple(zip(chosen.w_bits, chosen.a_bits, strict=True))
    wanted = targets.Choices(tuple(chosen.kernels), tuple(chosen.expansions), pairs)
    found = targets.runnable(device, wanted)
    for name, before, left in zip(wanted._fields, wanted, found, strict=True):
        if before != left:
            logger.info("target %s: of the %s %s it runs %s", device.name, name, before, left)
    targets.check_granularity(device, found.bits, chosen.bits_per)
    chosen.kernels, chosen.expansions = found.kernels, found.expansions
    chosen.w_bits, chosen.a_bits = zip(*found.bits, strict=True)
    return dataclasses.replace(config, space=chosen)


def _tell_what_is_missing(config: Config, where, ops) -> None:
    path, chosen = pathlib.Path(config.hardware.table), config.space
    pairs = tuple(zip(chosen.w_bits, chosen.a_bits, strict=True))
    lacking = measured.missing(measured.read(path), where, ops, pairs)
    if lacking:
        place, op, w_bits, a_bits = (*lacking[0][:2], *lacking[0][-2:])
        logger.info(
            "%s: %d lines are missing, so these are not run; the first is %s %s w%da%d",
            *(path, len(lacking), place, op, w_bits, a_bits),
        )


def _picture(config: Config) -> tuple[int, int]:
    """Height and width of pictures as deployed."""
    height, width = config.hardware.picture
    return (height, width) if height else (config.data.height, config.data.width)


def _features(config: Config, first: space.Block) -> tuple[int, int]:
    """Height and width of the features ahead of the first searched block."""
    height, width = _picture(config)
    stride = mobilenet.STEM_STRIDE * first.stride
    return -(-height // stride), -(-width // stride)


def _pictures(config: Config, split: str, count: int) -> Dataset:
    data = config.data
    if data.source == "streets":
        return Streets(data.seed, split, data.height, data.width, count)
    return Cityscapes(data.root, split, data.height, data.width, count)
