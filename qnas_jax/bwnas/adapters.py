"""Adapters between a teacher and narrower subnets: a 1x1 projection at each block boundary.

A subnet has fewer channels than a wide teacher at the boundaries of the blocks. Each boundary gets
a projection onto the teacher's principal components. What a block reads and what it imitates are
projected features, so blocks, LUT and search know nothing of the teacher's width. At the end the
first projection is folded into the convolution before the first block and the last one into those
that read the last block, so a subnet has no layer for them.

The components are rotated at random: unrotated, the last channels would be mostly noise, and the
NSR weighs all channels alike.

References:
  Li et al., 2020, https://arxiv.org/abs/1911.13053, whose subnets end each block with a layer of
  the teacher's width.
"""

import logging
import pathlib
from collections.abc import Iterable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from qnas_jax import space
from qnas_jax.data.batching import central_crops
from qnas_jax.errors import InputError
from qnas_jax.kernels.convolution import NORM_EPSILON
from qnas_jax.nn.conv import LINEAR, ConvBnAct
from qnas_jax.nn.policy import at
from qnas_jax.nn.trace import Shape, Unit, trace
from qnas_jax.nn.units import Mean
from qnas_jax.run import parallel, processes
from qnas_jax.stages.experiment import Problem
from qnas_jax.stages.fit import Training
from qnas_jax.train import checkpoint, supervised
from qnas_jax.train.supervised import ADAPTERS

logger = logging.getLogger(__name__)

IMAGES, IMAGES_PER_PASS = 64, 8  # training images that the components are found on

Projection = Float[np.ndarray, "teacher student"]


def are_needed(problem: Problem) -> bool:
    """Whether the subnets have other channels than the teacher at the boundaries of blocks."""
    narrow, wide = _boundaries(problem)
    return narrow != wide


def _boundaries(problem):
    return _channels(problem.space.blocks), _channels(problem.teacher.encoder.blocks)


def of_run(folder: pathlib.Path, problem: Problem, how: Training, variables: PyTree) -> PyTree:
    """Returns the teacher's variables with the adapters of a run, if its subnets are narrower.

    They are found once and kept in `adapters.npz`: others would not fit a trained supernet.

    Args:
      folder: The folder of the supernet.
      problem: Images, teacher and search space.
      how: Has the crop and the seed.
      variables: The teacher's variables.
    """
    if not are_needed(problem):
        return variables
    narrow, wide = _boundaries(problem)
    check(problem.teacher, problem.val[0][0].shape)
    file = folder / "adapters.npz"
    with processes.first_goes_first("adapters"):
        if parallel.is_first() and not file.exists():
            indices = range(min(IMAGES, len(problem.train)))
            chunks = (indices[i : i + IMAGES_PER_PASS] for i in indices[::IMAGES_PER_PASS])
            images = (central_crops(problem.train, chunk, how.train.crop) for chunk in chunks)
            found, kept = fit(problem.teacher, variables, images, narrow, how.seed)
            shares = ", ".join(f"{100 * share:.1f}" for share in kept)
            logger.info("adapters: keep %s %% of the teacher's variance at the boundaries", shares)
            checkpoint.write_arrays(file, found)
    sides = enumerate(zip(wide, narrow, strict=True))
    like = {f"boundary{i}": np.zeros(shape, np.float32) for i, shape in sides}
    return {**variables, ADAPTERS: checkpoint.read_arrays(file, like)}


def _channels(blocks: Sequence[space.Block]) -> tuple[int, ...]:
    """Channels at all boundaries."""
    return (blocks[0].in_channels, *(block.channels for block in blocks))


def check(teacher: nn.Module, image_shape: Shape) -> None:
    """Checks that the first projection can be folded.

    Raises:
      InputError: The first block does not read a linear convolution.
    """
    before = trace(teacher, image_shape).stem[-1].module
    if not (isinstance(before, ConvBnAct) and before.bounds == LINEAR):
        raise InputError(
            "network.teacher_width: the teacher's first block reads a sum, which cannot be "
            "projected; it must have more channels in its stem than after it"
        )


def fit(
    teacher: nn.Module,
    variables: PyTree,
    images: Iterable[np.ndarray],
    channels: tuple[int, ...],
    seed: int,
) -> tuple[dict[str, Projection], list[float]]:
    """Returns a projection for each boundary, and the share of the variance that it keeps.

    Args:
      teacher: The teacher.
      variables: Its variables.
      images: Batches of images, uint8[n, h, w, 3].
      channels: The subnets' channels at each boundary.
      seed: Of the rotations.
    """
    features = supervised.features(teacher)

    @jax.jit
    def moments(images):
        maps = [m.reshape(-1, m.shape[-1]) for m in features(variables, images)]
        return [(x.T @ x, x.sum(0), jnp.float32(len(x))) for x in maps]

    parts = [jax.tree.map(lambda x: np.asarray(x, np.float64), moments(batch)) for batch in images]
    totals = jax.tree.map(lambda *leaves: np.sum(leaves, axis=0), *parts)
    rng, found, kept = np.random.default_rng(seed), {}, []
    for i, ((squares, total, count), width) in enumerate(zip(totals, channels, strict=True)):
        mean = total / count
        values, vectors = np.linalg.eigh(squares / count - np.outer(mean, mean))
        rotation, _ = np.linalg.qr(rng.normal(size=(width, width)))
        found[f"boundary{i}"] = (vectors[:, ::-1][:, :width] @ rotation).astype(np.float32)
        kept.append(float(values[::-1][:width].sum() / values.sum()))
    return found, kept


def folded(teacher: nn.Module, variables: PyTree, image_shape: Shape) -> PyTree:
    """Returns the teacher's variables as a subnet has them: adapters folded in, blocks unchanged.

    Args:
      teacher: The teacher.
      variables: Its variables; without adapters they are returned as they are.
      image_shape: Height, width and channels of an image.
    """
    if ADAPTERS not in variables:
        return variables
    adapters = variables[ADAPTERS]
    kinds = {kind: jax.tree.map(np.asarray, variables[kind]) for kind in ("params", "batch_stats")}
    traced = trace(teacher, image_shape)
    _fold_output(kinds, traced.stem[-1], adapters["boundary0"])
    last = adapters[f"boundary{len(adapters) - 1}"]
    readers, readable = [], {traced.encoder[-1].name}
    for unit in traced.head:
        if unit.inputs[0] in readable and isinstance(unit.module, Mean):
            readable.add(unit.name)
        elif unit.inputs[0] in readable:
            readers.append(unit)
    for unit in readers:
        leaves = at(kinds["params"], unit.name)
        leaves["kernel"] = np.einsum("klto,ts->klso", leaves["kernel"], last)
    return {**{k: v for k, v in variables.items() if k != ADAPTERS}, **kinds}


def _fold_output(kinds: PyTree, unit: Unit, projection: Projection) -> None:
    """Projects the output of a linear convolution: its norm becomes a bias."""
    params, stats = at(kinds["params"], unit.name), at(kinds["batch_stats"], unit.name)["norm"]
    norm = params["norm"]
    factor = norm["scale"] / np.sqrt(stats["var"] + NORM_EPSILON)
    params["kernel"] = np.einsum("klit,t,ts->klis", params["kernel"], factor, projection)
    bias = (norm["bias"] - stats["mean"] * factor) @ projection
    norm["scale"], norm["bias"] = np.full_like(bias, np.sqrt(1 + NORM_EPSILON)), bias
    stats["mean"], stats["var"] = np.zeros_like(bias), np.ones_like(bias)
