"""The networks of the benchmark: a small space, and one network that is each of them.

The network of the largest op is trained with some of its weights held at zero, so that it computes
what the network of other ops computes: a smaller kernel has zeros around it, and hidden channels
that an op does not have are zero. Which ones is data, so one compiled program trains all networks.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from qnas_jax.nn import init, policy
from qnas_jax.nn.classifier import Classifier
from qnas_jax.nn.mbconv import layer_name
from qnas_jax.nn.mobilenet import MobileNetV2
from qnas_jax.nn.trace import Trace, trace
from qnas_jax.quant.affine import over
from qnas_jax.space import Block, Op, Space, largest_op


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What the benchmark is made from; two equal plans make equal benchmarks.

    Attributes:
      space: Blocks of one layer each. The ops expand their input, and one of them has both the
        largest kernel and the largest expansion.
      bits: Bitwidths of a block, of its weights and of its activations.
      seeds: Trainings of each network.
      first: The group before the first block; its input channels are those of the stem.
      stem_stride: Stride of the first convolution.
      head_channels: Channels of which the mean over the pixels is taken.
      classes: Number of classes.
      size: Height and width of images.
      train_images: Images to train on.
      val_images: Images to count right answers on, at most 65,535.
      calibration_images: Images in which ranges are found, the first to train on.
      nsr_images: Images to take the NSR of, the first to count right answers on. So many to train
        on give the statistics of a distilled op's norms.
      steps: Steps of a training.
      teacher_steps: Steps of the teacher's training.
      distill_steps: Steps in which an op learns to imitate a block of the teacher.
      batch: Images in a step.
      lr: Highest learning rate, of a network and of a distilled op.
      weight_decay: Of AdamW.
      shift: Pixels by which an image is moved at most.
      ranges: How activations are clipped, a key of `calibrate.RANGES`.
    """

    space: Space
    bits: tuple[int, ...]
    seeds: int
    first: Block
    stem_stride: int
    head_channels: int
    classes: int
    size: int
    train_images: int
    val_images: int
    calibration_images: int
    nsr_images: int
    steps: int
    teacher_steps: int
    distill_steps: int
    batch: int
    lr: float
    weight_decay: float
    shift: int
    ranges: str

    @property
    def networks(self) -> int:
        """How many networks there are."""
        return len(self.space.ops) ** len(self.space.blocks)

    @property
    def policies(self) -> int:
        """How many policies each network has."""
        return len(self.bits) ** len(self.space.blocks)


# 4**4 networks with 5**4 policies each; sized so that all is made within an hour on two cores.
# So short a training has its price: trainings differ by more than networks do, see `objects.md`.
PLAN = Plan(
    space=Space(
        (
            Block(16, 16, stride=1, dilation=1, depth=1),
            Block(16, 24, stride=2, dilation=1, depth=1),
            Block(24, 24, stride=1, dilation=1, depth=1),
            Block(24, 32, stride=1, dilation=1, depth=1),
        ),
        tuple(Op(kernel, expansion) for kernel in (3, 5) for expansion in (2, 4)),
    ),
    bits=(8, 6, 4, 3, 2),
    seeds=3,
    first=Block(8, 16, stride=2, dilation=1, depth=1),
    stem_stride=2,
    head_channels=64,
    classes=12,
    size=24,
    train_images=8000,
    val_images=750,
    calibration_images=64,
    nsr_images=256,
    steps=400,
    teacher_steps=4000,
    distill_steps=300,
    batch=32,
    lr=2e-2,
    weight_decay=1e-4,
    shift=2,
    ranges="mse",
)


class Network(NamedTuple):
    """The network of the largest op.

    Attributes:
      model: The module.
      traced: Its units.
    """

    model: Classifier
    traced: Trace


def classifier(plan: Plan, ops: tuple[Op, ...]) -> Classifier:
    """The network with an op in each block."""
    paths = tuple((op,) for op in ops)
    stem, stride = plan.first.in_channels, plan.stem_stride
    encoder = MobileNetV2(stem, plan.first, plan.space.blocks, paths, stem_stride=stride)
    return Classifier(encoder, plan.head_channels, plan.classes)


@functools.lru_cache
def widest(plan: Plan) -> Network:
    """The network of the largest op in every block."""
    model = classifier(plan, (largest_op(plan.space.ops),) * len(plan.space.blocks))
    return Network(model, trace(model, (plan.size, plan.size, 3)))


def fresh(plan: Plan, key: Key[Array, ""]) -> PyTree:
    """All fresh collections of the widest network."""
    return init.initialize(widest(plan).model, key, (1, plan.size, plan.size, 3))


def places(shape: tuple[int, ...], number: int) -> Int[np.ndarray, "blocks"]:
    """The place of each block's choice, from the number of all of them; the last is fastest."""
    return np.array(np.unravel_index(number, shape))


def ops_of(plan: Plan, network: int) -> Int[np.ndarray, "blocks"]:
    """The place of each block's op in `plan.space.ops`, from the number of a network."""
    return places((len(plan.space.ops),) * len(plan.space.blocks), network)


def at_block(block: int) -> str:
    """The name of a block's only layer in the variables of a network."""
    return f"encoder/block{block + 1}/{layer_name(0)}"


def masked_layer(space: Space, layer: PyTree, op: Int[Array, ""]) -> PyTree:
    """The parameters of an inverted residual of which all that an op does not have is zero.

    Args:
      space: The ops.
      layer: Parameters of the largest op.
      op: The op's place in `space.ops`; may be traced.
    """
    most, hidden = largest_op(space.ops), layer["depthwise"]["kernel"].shape[-1]
    inside = jnp.asarray(np.stack([_middle(o.kernel, most.kernel) for o in space.ops]))[op]
    counts = jnp.array([hidden * o.expansion // most.expansion for o in space.ops])
    kept = (jnp.arange(hidden) < counts[op]).astype(jnp.float32)
    found = {
        part: jax.tree.map(lambda leaf: leaf * over(kept, leaf), layer[part])
        for part in ("expand", "depthwise")
    }
    found["depthwise"]["kernel"] *= inside[:, :, None, None]
    kernel = layer["project"]["kernel"] * kept[None, None, :, None]
    return {**found, "project": {**layer["project"], "kernel": kernel}}


def _middle(side: int, most: int) -> Float[np.ndarray, "most most"]:
    """One in the middle of a kernel, zero around it."""
    return np.pad(np.ones((side, side), np.float32), (most - side) // 2)


def masked(plan: Plan, params: PyTree, ops: Int[Array, "blocks"]) -> PyTree:
    """The parameters of the network with these ops, as parameters of the widest one."""
    found = jax.tree.map(lambda leaf: leaf, params)
    for block in range(len(plan.space.blocks)):
        layer = policy.at(found, at_block(block))
        layer.update(masked_layer(plan.space, layer, ops[block]))
    return found


def drawn_layer(space: Space, layer: PyTree, op: Int[Array, ""]) -> PyTree:
    """`masked_layer` of fresh parameters, whose variance is then that of the op's own fan-in."""
    most = largest_op(space.ops)
    found = masked_layer(space, layer, op)
    sides = jnp.array([most.kernel / o.kernel for o in space.ops])
    channels = jnp.array([math.sqrt(most.expansion / o.expansion) for o in space.ops])
    found["depthwise"]["kernel"] *= sides[op]
    found["project"]["kernel"] *= channels[op]
    return found


def drawn(plan: Plan, key: Key[Array, ""], ops: Int[Array, "blocks"]) -> PyTree:
    """Fresh `params` and `batch_stats` of the network with these ops."""
    variables = fresh(plan, key)
    params = variables["params"]
    for block in range(len(plan.space.blocks)):
        layer = policy.at(params, at_block(block))
        layer.update(drawn_layer(plan.space, layer, ops[block]))
    return {"params": params, "batch_stats": variables["batch_stats"]}
