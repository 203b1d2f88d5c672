"""QA-BWNAS without a config or a folder: what `qnas_jax.bwnas` offers."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from qnas_jax import metrics
from qnas_jax.bwnas import distill
from qnas_jax.bwnas.distill import SAMPLING, Recipe, State, init_state, init_supernet
from qnas_jax.bwnas.lut import populate, prefix_tree, table, workload
from qnas_jax.bwnas.lut.table import Table
from qnas_jax.bwnas.search_front import search
from qnas_jax.errors import InputError
from qnas_jax.nn import supernet
from qnas_jax.nn.supernet import path_params
from qnas_jax.quant.calibrate import FindRange, min_max
from qnas_jax.space import LEAST_BITS, MOST_BITS, Bits, Space

__all__ = [
    "SAMPLING",
    "Recipe",
    "Table",
    "distill_step",
    "init_state",
    "init_supernet",
    "path_params",
    "score",
    "search",
]

Step = Callable[[PyTree, State, Array, Int[Array, ""]], tuple[State, dict[str, Array]]]


def distill_step(recipe: Recipe) -> Step:
    """Returns a compiled training step of all blocks of a supernet.

    Each block learns to give the teacher's features after it from those before it. Blocks do not
    wait for each other. The loss is the NSR (`metrics.nsr`) of the paths that are sampled.

    Args:
      recipe: The teacher's features, the search space, an optimizer for each block, which ops a
        step trains (`SAMPLING["fair"]`: all, each in one path), and a key for the sampling.

    Returns:
      A function (teacher's variables, state, images, number of the step as an int32 array) ->
      (new state, ``{"nsr_block1": mean NSR of the sampled paths, ...}``).

    References:
      Lu et al., 2023, https://arxiv.org/abs/2401.12350; Li et al., 2020,
      https://arxiv.org/abs/1911.13053 (distillation by blocks); Chu et al., 2021,
      https://arxiv.org/abs/1907.01845 (fair sampling).
    """
    step = distill.train_step(recipe)
    return lambda teacher, state, images, number: step(teacher, state, images, None, number)


def score(
    params: Sequence[supernet.Params],
    space: Space,
    bits: Sequence[Bits],
    maps: Sequence[Float[Array, "n _ _ _"]],
    find_range: FindRange = min_max,
    per_layer: bool = False,
) -> Table:
    """Scores every path of every block at every pair of bitwidths.

    A path is calibrated on the maps (batch-norm statistics and clipping ranges, at its
    bitwidths), then its NSR on the same maps is computed in float32. Paths that share a prefix
    share its computation.

    Args:
      params: Parameters of each block, see `init_supernet`.
      space: Blocks and ops.
      bits: Pairs of bitwidths of weights and of activations, each in [2, 8].
      maps: The teacher's features [images, height, width, channels] at all boundaries: the input
        of the first block, then the output of each block.
      find_range: Finds the clipping range of an activation: `quant.min_max`, `quant.percentile`,
        `quant.mse`, or any function (values, bits) -> [alpha, beta].
      per_layer: Whether each layer has its own bitwidths; else all layers of a block share them.

    Returns:
      A row for each block, path and bitwidths: NSR (not finite where a path fails) and
      `size_bytes`.

    Raises:
      InputError: A bitwidth is out of range, or the maps do not fit the blocks.

    References:
      Lu et al., 2023, https://arxiv.org/abs/2401.12350.
    """
    _check(space, bits, maps)
    parts = table.parts_of(space, bits, per_layer)
    nsr = [_part_nsr(part, params[part.block], space, maps, find_range) for part in parts]
    return table.build(np.concatenate(nsr).astype(np.float32), space, parts)


def _check(space, bits, maps) -> None:
    if not bits or not all(LEAST_BITS <= value <= MOST_BITS for pair in bits for value in pair):
        raise InputError(f"bits={tuple(bits)}: bitwidths lie in [{LEAST_BITS}, {MOST_BITS}]")
    wanted = [space.blocks[0].in_channels, *(block.channels for block in space.blocks)]
    found = [features.shape[-1] for features in maps]
    if found != wanted:
        raise InputError(
            f"maps of {found} channels: the input of the first block and the output of each "
            f"have {wanted}"
        )


def _part_nsr(part, params, space, maps, find_range) -> np.ndarray:
    x, target = map(jnp.asarray, maps[part.block : part.block + 2])
    block, variance = space.blocks[part.block], metrics.channel_variance(target)
    images, height, width, _ = x.shape
    work = workload.work(block, space.ops, part.bits, (height, width))
    nodes = populate.nodes_per_pass(work.node_bytes("float32") * images, *x.devices())
    tree = prefix_tree.build(params, block, space.ops, part.bits, find_range)
    calibration = prefix_tree.calibrate(tree, x, nodes)
    pixels = target.size // target.shape[-1]
    return prefix_tree.noise(tree, calibration, x, target, variance, nodes) / pixels
