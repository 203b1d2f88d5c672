"""What a config amounts to: pictures, networks and the search space."""

import dataclasses
import enum
import pathlib
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

from qnas_jax import artefact, parallel, space, table
from qnas_jax.config import Config
from qnas_jax.data import labels
from qnas_jax.data.batching import Augmentation, Batch, Dataset, stacked, training_batch
from qnas_jax.data.cityscapes import Cityscapes
from qnas_jax.data.streets import Streets
from qnas_jax.hardware import size
from qnas_jax.nn import layers, mobilenet
from qnas_jax.nn.deeplab import DeepLabV3

CLASSES = len(labels.NAMES)
FIXED_BITS = 8  # of all that is not searched: the stem, the first group, the head


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
    """

    config: Config
    workdir: pathlib.Path
    train_data: Dataset
    val_data: Dataset
    first: space.Block
    teacher_blocks: tuple[space.Block, ...]
    searched: space.Space

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
        height, width = (
            min(c, s) for c, s in zip(self.config.train.crop, images.shape[1:3], strict=True)
        )
        top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
        return images[:, top : top + height, left : left + width]

    def fixed_bytes(self) -> dict[str, int]:
        """Bytes of what is in no searched block: `stem` within the encoder, `head` behind it."""
        convs = layers.convs(self.teacher(), (*self.config.train.crop, 3))
        stem = [c for c in convs if c.name.startswith(("encoder/stem", "encoder/block0"))]
        head = [c for c in convs if not c.name.startswith("encoder")]
        return {
            "stem": size.network_bytes(stem, FIXED_BITS),
            "head": size.network_bytes(head, FIXED_BITS),
        }

    def least_bytes(self) -> int:
        """Bytes of the smallest subnet there is."""
        parts = table.parts_of(self.searched, self.bits, per_layer=False)
        rows = table.build(np.zeros(sum(part.rows for part in parts)), self.searched, parts)
        blocks = [rows.costs["size_bytes"][rows.rows_of(b)].min() for b in range(rows.blocks)]
        return int(sum(blocks)) + sum(self.fixed_bytes().values())

    def data_mark(self) -> dict[str, Any]:
        """What the pictures are, for the hash of what is made from them."""
        mark = artefact.plain(self.config.data)
        del mark["threads"]
        return {**mark, "train_images": len(self.train_data), "val_images": len(self.val_data)}


def prepare(config: Config, workdir: pathlib.Path) -> Setting:
    """Opens the pictures and lays out the networks.

    Raises:
      InputError: The pictures are not where the config says.
    """
    network, chosen = config.network, config.space
    groups = space.mobilenet_v2_blocks(network.width, network.strides, network.dilations)
    blocks = tuple(
        dataclasses.replace(block, depth=depth)
        for block, depth in zip(groups[1:], chosen.depths, strict=True)
    )
    ops = tuple(space.Op(k, e) for k in chosen.kernels for e in chosen.expansions)
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
    )


def _pictures(config: Config, split: str, count: int) -> Dataset:
    data = config.data
    if data.source == "streets":
        return Streets(data.seed, split, data.height, data.width, count)
    return Cityscapes(data.root, split, data.height, data.width, count)
