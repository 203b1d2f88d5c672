"""Block-wise distillation: every block of the supernet learns to imitate the teacher's.

A block's input is the teacher's feature map ahead of it and its target the one behind it,
so no block waits for another, and one pass of the teacher serves them all.

References:
  Lu et al., 2023, https://arxiv.org/abs/2401.12350; Li et al., 2020 (DNA),
  https://arxiv.org/abs/1911.13053.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Key, PyTree

from qnas_jax import metrics, space
from qnas_jax.nn import supernet


class BlockState(NamedTuple):
    """All that changes while a block is trained."""

    params: PyTree  # the supernet's
    optimizer: PyTree


State = tuple[BlockState, ...]


def fresh_state(
    searched: space.Space,
    optimizers: tuple[optax.GradientTransformation, ...],
    key: Key[Array, ""],
) -> State:
    """The state to begin distillation with."""
    state = []
    for i, (block, optimizer) in enumerate(zip(searched.blocks, optimizers, strict=True)):
        params = supernet.init_block(jax.random.fold_in(key, i), block, searched.ops)
        state.append(BlockState(params, optimizer.init(params)))
    return tuple(state)


# (params, block, ops, input, target, variance, key)
#   -> mean NSR, gradients, op sampled at each layer or None for all
Gradients = Callable[..., tuple[Array, PyTree, Array | None]]


def fair_gradients(
    params: supernet.Params,
    block: space.Block,
    ops: tuple[space.Op, ...],
    x: Float[Array, "n h w i"],
    target: Float[Array, "n h2 w2 o"],
    variance: Float[Array, "o"],
    key: Key[Array, ""],
) -> tuple[Float[Array, ""], PyTree, None]:
    """Gradients of the summed NSR of as many paths as there are ops.

    The paths are permutations of the ops, so every op of every layer is trained once.

    References:
      Chu et al., 2021, https://arxiv.org/abs/1907.01845 (strict fairness).
    """
    keys = jax.random.split(key, block.depth - 1)
    orders = jax.vmap(lambda k: jax.random.permutation(k, len(ops)))(keys)

    def loss(params):
        outputs = supernet.fair_paths(params, block, ops, x, orders)
        return jnp.sum(metrics.nsr(outputs, target, variance))

    total, gradients = jax.value_and_grad(loss)(params)
    return total / len(ops), gradients, None


def uniform_gradients(
    params: supernet.Params,
    block: space.Block,
    ops: tuple[space.Op, ...],
    x: Float[Array, "n h w i"],
    target: Float[Array, "n h2 w2 o"],
    variance: Float[Array, "o"],
    key: Key[Array, ""],
) -> tuple[Float[Array, ""], PyTree, Int[Array, "depth"]]:
    """Gradients of the NSR of one path, its ops drawn uniformly."""
    path = jax.random.randint(key, (block.depth,), 0, len(ops))

    def loss(params):
        output = supernet.one_path(params, block, ops, x, path)
        return metrics.nsr(output, target, variance)

    return *jax.value_and_grad(loss)(params), path


SAMPLING: dict[str, Gradients] = {"fair": fair_gradients, "uniform": uniform_gradients}


def train_step(
    features: Callable[[PyTree, Any], tuple[Array, ...]],
    teacher: PyTree,
    searched: space.Space,
    optimizers: tuple[optax.GradientTransformation, ...],
    gradients_of: Gradients,
    key: Key[Array, ""],
) -> Callable:
    """The step that trains every block of the supernet; see `train.fit`.

    Args:
      features: Feature maps at all block boundaries, from a network's variables and images.
      teacher: The teacher's variables.
      searched: Blocks and ops.
      optimizers: One for each block.
      gradients_of: `fair_gradients` or `uniform_gradients`.
      key: What all sampling is drawn from.
    """

    @jax.jit
    def step(teacher, state: State, images, labels, number):
        del labels  # the teacher's features are the target
        maps = features(teacher, images)
        step_key = jax.random.fold_in(key, number)
        new_state, values = [], {}
        for i, (block, (params, optimizer_state)) in enumerate(
            zip(searched.blocks, state, strict=True)
        ):
            target = maps[i + 1]
            variance = metrics.channel_variance(target)
            block_key = jax.random.fold_in(step_key, i)
            nsr, gradients, path = gradients_of(
                params, block, searched.ops, maps[i], target, variance, block_key
            )
            updates, new_optimizer = optimizers[i].update(gradients, optimizer_state, params)
            new = BlockState(optax.apply_updates(params, updates), new_optimizer)
            if path is not None:
                new = _only_sampled(new, BlockState(params, optimizer_state), searched.ops, path)
            new_state.append(new)
            values[f"nsr_block{i + 1}"] = nsr
        return tuple(new_state), values

    return functools.partial(step, teacher)


def _only_sampled(new, old, ops, path):
    """The new state, but that of an op that was not sampled as it was, momentum too."""
    names = [str(op) for op in ops]

    def choose(place, new, old):
        keys = [key.key for key in place if isinstance(key, jax.tree_util.DictKey)]
        layer = next((k for k in keys if k.startswith("layer")), None)
        if layer is None:  # the schedule's step count
            return new
        op = names.index(keys[keys.index(layer) + 1])
        return jnp.where(path[int(layer[5:])] == op, new, old)

    return jax.tree_util.tree_map_with_path(choose, new, old)


def compared_paths(
    block: space.Block, ops: tuple[space.Op, ...], count: int, key: Key[Array, ""]
) -> Int[np.ndarray, "paths depth"]:
    """The largest path of a block, its smallest, then random ones, as indices of ops.

    The random ones are all different, so a block with fewer than `count` paths gives each
    of them once.
    """
    # Ops are all pairs of a kernel and an expansion: the last in order is greatest in both.
    extremes = [[ops.index(op)] * block.depth for op in (max(ops), min(ops))]
    rows = len(ops) ** block.depth
    drawn = jax.random.choice(key, rows, (min(count, rows),), replace=False)
    places = np.unravel_index(np.asarray(drawn), (len(ops),) * block.depth)
    return np.concatenate([extremes, np.stack(places, axis=1)])


def path_nsr(
    searched: space.Space,
    params: Sequence[supernet.Params],
    batches: Iterable[tuple[Array, ...]],
    paths: Sequence[Int[np.ndarray, "_ _"]],
) -> list[Float[np.ndarray, "_"]]:
    """NSR of paths by themselves, just as the training step defines it.

    Inputs, targets, the targets' variance and the norms' statistics are those of the batch,
    nothing is quantized. With batches as large as in training, the mean over random paths is
    the training's NSR on other pictures.

    Args:
      searched: Blocks and ops.
      params: The supernet's, of each block.
      batches: The teacher's feature maps at all block boundaries, batch by batch.
      paths: Of each block, indices of ops [paths, depth]. One program serves them all.

    Returns:
      Of each block, the NSR of its paths, the mean over the batches.
    """

    @jax.jit
    def measure(params, maps):
        blocks = zip(searched.blocks, params, maps[:-1], maps[1:], paths, strict=True)
        return [_block_nsr(block, searched.ops, *given) for block, *given in blocks]

    found = [jax.device_get(measure(params, maps)) for maps in batches]
    return [np.stack(values).mean(axis=0, dtype=np.float64) for values in zip(*found, strict=True)]


def _block_nsr(block, ops, params, x, target, paths) -> Float[Array, "paths"]:
    variance = metrics.channel_variance(target)

    def nsr(path):
        return metrics.nsr(supernet.one_path(params, block, ops, x, path), target, variance)

    return lax.map(nsr, jnp.asarray(paths))  # one after the other: as much memory as one path
