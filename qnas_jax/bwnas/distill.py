"""Block-wise distillation: every block of the supernet learns to imitate the teacher's.

A block's input is the teacher's feature map before it, its target the one after it. So no block
waits for another, and one pass of the teacher serves them all.

References:
  Lu et al., 2023, https://arxiv.org/abs/2401.12350; Li et al., 2020 (DNA),
  https://arxiv.org/abs/1911.13053.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Key, PyTree

from qnas_jax import metrics
from qnas_jax.nn import supernet
from qnas_jax.nn.mbconv import layer_name
from qnas_jax.space import Block, Op, Space


class BlockState(NamedTuple):
    """What changes while a block is trained."""

    params: PyTree  # the supernet's
    optimizer: PyTree


State = tuple[BlockState, ...]


def init_supernet(key: Key[Array, ""], space: Space) -> tuple[supernet.Params, ...]:
    """Draws the parameters of a supernet: of every op at every layer of every block.

    Args:
      key: What they are drawn from; each block has its own.
      space: Blocks and ops.

    Returns:
      Of each block ``{"layer0": {"k3e6": parameters of an inverted residual, ...}, ...}``.
      Batch norms have no running statistics: they use those of the batch.

    References:
      He et al., 2015, https://arxiv.org/abs/1502.01852, eq. 10 (variance of the kernels).
    """
    keys = (jax.random.fold_in(key, i) for i in range(len(space.blocks)))
    pairs = zip(keys, space.blocks, strict=True)
    return tuple(supernet.init_block(key, block, space.ops) for key, block in pairs)


def init_state(
    params: Sequence[supernet.Params], optimizers: Sequence[optax.GradientTransformation]
) -> State:
    """Returns the state to begin distillation with; its items hold `params` and `optimizer`.

    Args:
      params: Of each block, see `init_supernet`.
      optimizers: One for each block.
    """
    pairs = zip(params, optimizers, strict=True)
    return tuple(BlockState(block, optimizer.init(block)) for block, optimizer in pairs)


def fresh_state(
    searched: Space,
    optimizers: tuple[optax.GradientTransformation, ...],
    key: Key[Array, ""],
) -> State:
    """The state to begin distillation with, of a supernet that is drawn here."""
    return init_state(init_supernet(key, searched), optimizers)


def uniform_path(key: Key[Array, ""], block: Block, ops: tuple[Op, ...]) -> Int[Array, "depth"]:
    """An op for each layer of a block, drawn uniformly."""
    return jax.random.randint(key, (block.depth,), 0, len(ops))


class BlockBatch(NamedTuple):
    """What a block learns from at a step.

    Attributes:
      block: The block.
      ops: Its candidates.
      x: Its input, the teacher's features [n, h, w, i].
      target: The teacher's features after it, [n, h2, w2, o].
      variance: Of each channel of the target, [o].
    """

    block: Block
    ops: tuple[Op, ...]
    x: Array
    target: Array
    variance: Array


class Loss(NamedTuple):
    """The NSR of the paths that a step trains."""

    total: Float[Array, ""]  # their sum, which is minimized
    mean: Float[Array, ""]  # what is reported


def fair_loss(params: supernet.Params, batch: BlockBatch, key: Key[Array, ""]) -> Loss:
    """The NSR of as many paths as there are ops.

    The paths are permutations of the ops, so every op of every layer is trained once.

    References:
      Chu et al., 2021, https://arxiv.org/abs/1907.01845 (strict fairness).
    """
    keys = jax.random.split(key, batch.block.depth - 1)
    orders = jax.vmap(lambda k: jax.random.permutation(k, len(batch.ops)))(keys)
    outputs = supernet.fair_paths(params, batch.block, batch.ops, batch.x, orders)
    total = jnp.sum(metrics.nsr(outputs, batch.target, batch.variance))
    return Loss(total, total / len(batch.ops))


def uniform_loss(params: supernet.Params, batch: BlockBatch, key: Key[Array, ""]) -> Loss:
    """The NSR of one path, which `uniform_path` draws."""
    path = uniform_path(key, batch.block, batch.ops)
    output = supernet.one_path(params, batch.block, batch.ops, batch.x, path)
    nsr = metrics.nsr(output, batch.target, batch.variance)
    return Loss(nsr, nsr)


class Sampling(NamedTuple):
    """Which ops a step trains.

    Attributes:
      loss: (parameters, batch, key) -> the NSR of the sampled paths.
      path: (key, block, ops) -> the op trained at each layer; None: all of them are.
    """

    loss: Callable[[supernet.Params, BlockBatch, Key[Array, ""]], Loss]
    path: Callable[[Key[Array, ""], Block, tuple[Op, ...]], Array] | None


SAMPLING = {
    "fair": Sampling(fair_loss, None),
    "uniform": Sampling(uniform_loss, uniform_path),
}


class Recipe(NamedTuple):
    """How the blocks of a supernet are trained.

    Attributes:
      features: Feature maps at all block boundaries, from a network's variables and images.
      searched: Blocks and ops.
      optimizers: One for each block.
      sampling: Which ops a step trains.
      key: What all sampling is drawn from.
      parts: Of a batch, each with its own batch-norm statistics; their gradients are averaged,
        so that as many devices can share a batch and still compute the same.
      compute: Type that the blocks compute in; the teacher, parameters, batch-norm statistics
        and losses stay float32.
    """

    features: Callable[[PyTree, Any], tuple[Array, ...]]
    searched: Space
    optimizers: tuple[optax.GradientTransformation, ...]
    sampling: Sampling
    key: Key[Array, ""]
    parts: int = 1
    compute: str = "float32"


def block_gradients(
    recipe: Recipe,
    i: int,
    params: PyTree,
    maps: tuple[Array, ...],
    number: Int[Array, ""],
    parts: int,
) -> tuple[Array, PyTree]:
    """Gradients of block `i` at a step.

    Args:
      recipe: How it is trained.
      i: Number of the block.
      params: The block's.
      maps: The teacher's feature maps of some images of the batch.
      number: Of the step.
      parts: Parts of the batch in these images.

    Returns:
      Mean NSR and mean gradients.
    """
    key = _block_key(recipe, i, number)
    block, ops = recipe.searched.blocks[i], recipe.searched.ops

    def of_part(part):
        x, target = part
        variance = metrics.channel_variance(target)
        batch = BlockBatch(block, ops, x.astype(recipe.compute), target, variance)
        loss = jax.value_and_grad(recipe.sampling.loss, has_aux=True)
        (_, nsr), gradients = loss(params, batch, key)
        return nsr, gradients

    if parts == 1:
        return of_part((maps[i], maps[i + 1]))
    split = [x.reshape(parts, -1, *x.shape[1:]) for x in maps[i : i + 2]]
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), lax.map(of_part, tuple(split)))


def _block_key(recipe, i, number):
    return jax.random.fold_in(jax.random.fold_in(recipe.key, number), i)


def updated(
    recipe: Recipe, i: int, state: BlockState, gradients: PyTree, number: Int[Array, ""]
) -> BlockState:
    """Block `i` after a step of its optimizer."""
    updates, optimizer = recipe.optimizers[i].update(gradients, state.optimizer, state.params)
    new = BlockState(optax.apply_updates(state.params, updates), optimizer)
    if recipe.sampling.path is None:
        return new
    block, ops = recipe.searched.blocks[i], recipe.searched.ops
    path = recipe.sampling.path(_block_key(recipe, i, number), block, ops)
    return _only_sampled(new, state, ops, path)


def metric(i: int) -> str:
    """The name of block `i`'s NSR in metrics."""
    return f"nsr_block{i + 1}"


def train_step(recipe: Recipe) -> Callable:
    """The step that trains every block of the supernet, for `loop.several`.

    Its first argument is the teacher's variables, its second the state.
    """

    @jax.jit
    def step(teacher, state: State, images, labels, number):
        del labels  # the teacher's features are the target
        maps = recipe.features(teacher, images)
        new_state, values = [], {}
        for i, block_state in enumerate(state):
            params = block_state.params
            nsr, gradients = block_gradients(recipe, i, params, maps, number, recipe.parts)
            new_state.append(updated(recipe, i, block_state, gradients, number))
            values[metric(i)] = nsr
        return tuple(new_state), values

    return step


def _only_sampled(new, old, ops, path):
    """The new state; ops that were not sampled keep the old one, momentum included."""
    sampled = {
        (layer_name(layer), str(op)): path[layer] == i
        for layer in range(len(path))
        for i, op in enumerate(ops)
    }

    def choose(keys, new, old):
        keys = [key.key for key in keys if isinstance(key, jax.tree_util.DictKey)]
        place = next((pair for pair in itertools.pairwise(keys) if pair in sampled), None)
        if place is None:  # the schedule's step count
            return new
        return jnp.where(sampled[place], new, old)

    return jax.tree_util.tree_map_with_path(choose, new, old)


def compared_paths(
    block: Block, ops: tuple[Op, ...], count: int, key: Key[Array, ""]
) -> Int[np.ndarray, "paths depth"]:
    """The largest path of a block, its smallest, then random ones, as indices of ops.

    The random ones are all different: a block with fewer than `count` paths has each once.
    """
    # Ops are all pairs of a kernel and an expansion: the last in order is greatest in both.
    extremes = [[ops.index(op)] * block.depth for op in (max(ops), min(ops))]
    rows = len(ops) ** block.depth
    drawn = jax.random.choice(key, rows, (min(count, rows),), replace=False)
    places = np.unravel_index(np.asarray(drawn), (len(ops),) * block.depth)
    return np.concatenate([extremes, np.stack(places, axis=1)])


def path_nsr(
    searched: Space,
    params: Sequence[supernet.Params],
    batches: Iterable[tuple[Array, ...]],
    paths: Sequence[Int[np.ndarray, "_ _"]],
) -> list[Float[np.ndarray, "_"]]:
    """NSR of single paths, as the training step defines it.

    Inputs, targets, the targets' variance and batch-norm statistics are those of the batch;
    nothing is quantized. With batches as large as in training, the mean over random paths is
    the training's NSR on other images.

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
