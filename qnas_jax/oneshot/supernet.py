"""The training of a one-shot supernet: a whole network, one path in a step.

SPOS draws a uniform path for each step. FairNAS draws a permutation of the ops for each layer, and
trains as many paths as there are ops, so that each op of each layer is trained once, before the sum
of their gradients is applied. A step here trains one path of either, so as many steps cost as much.

References:
  Guo et al., 2020, https://arxiv.org/abs/1904.00420 (SPOS);
  Chu et al., 2021, https://arxiv.org/abs/1907.01845 (FairNAS, strict fairness).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, PyTree

from qnas_jax import space
from qnas_jax.errors import InputError
from qnas_jax.nn import composed, inherit, supernet
from qnas_jax.nn.composed import Composed
from qnas_jax.nn.mbconv import layer_name


class State(NamedTuple):
    """Everything that changes.

    Attributes:
      params: "rest", of the stem and the head, and "blocks", by block, layer and op.
      optimizer: The optimizer's state.
    """

    params: PyTree
    optimizer: PyTree


# (key, number of the step, layers, ops) -> the op of each layer.
Sample = Callable[[Key[Array, ""], Int[Array, ""], int, int], Int[Array, "layers"]]


def uniform_path(
    key: Key[Array, ""], number: Int[Array, ""], layers: int, ops: int
) -> Int[Array, "layers"]:
    """Returns a path of which each op is drawn uniformly."""
    return jax.random.randint(jax.random.fold_in(key, number), (layers,), 0, ops)


def fair_path(
    key: Key[Array, ""], number: Int[Array, ""], layers: int, ops: int
) -> Int[Array, "layers"]:
    """Returns a path of which as many in a row have each op of each layer once."""
    keys = jax.random.split(jax.random.fold_in(key, number // ops), layers)
    orders = jax.vmap(lambda own: jax.random.permutation(own, ops))(keys)
    return orders[:, number % ops]


class Sampling(NamedTuple):
    """How paths are drawn.

    Attributes:
      path: See `Sample`.
      fair: Whether gradients are added up over as many paths as there are ops.
    """

    path: Sample
    fair: bool


SAMPLING = {"uniform": Sampling(uniform_path, False), "fair": Sampling(fair_path, True)}


def check_fair_steps(setting: str, steps: int, ops: int) -> None:
    """Refuses steps of a fair supernet of which the last ones would change no weight.

    Args:
      setting: The name of the steps' setting.
      steps: Paths in all.
      ops: Number of ops.

    Raises:
      InputError: The steps are no multiple of the ops.
    """
    if steps % ops:
        rule = f"must be a multiple of the {ops} ops: weights change once each was trained"
        raise InputError(f"{setting}={steps}: {rule} (a fair supernet)")


def first_params(
    key: Key[Array, ""], searched: space.Space, teacher: PyTree, inherited: bool
) -> PyTree:
    """Returns the parameters before the first step.

    Args:
      key: What ops are drawn from.
      searched: Blocks and ops.
      teacher: The teacher's parameters; the stem and the head are its own.
      inherited: Whether ops begin as the teacher's layers, see `nn/inherit.py`.
    """
    own, blocks = dict(teacher["encoder"]), []
    for number, block in enumerate(searched.blocks):
        drawn = supernet.init_block(jax.random.fold_in(key, number), block, searched.ops)
        layers = own.pop(f"block{number + 1}")
        blocks.append(inherit.block_params(drawn, layers) if inherited else drawn)
    return {"rest": {**teacher, "encoder": own}, "blocks": tuple(blocks)}


def optimizer_of(
    sampling: Sampling, optimizer: optax.GradientTransformation, ops: int
) -> optax.GradientTransformation:
    """Returns the optimizer of a sampling: a fair one waits for a path of each op.

    Args:
      sampling: How paths are drawn.
      optimizer: What applies gradients.
      ops: Number of ops.
    """
    if not sampling.fair:
        return optimizer
    return optax.MultiSteps(optimizer, ops, use_grad_mean=False).gradient_transformation()


def init_state(params: PyTree, optimizer: optax.GradientTransformation) -> State:
    """Returns the state at step 0."""
    return State(params, optimizer.init(params))


def train_step(
    network: Composed,
    loss: Callable[[Array, Any], Array],
    sampling: Sampling,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    compute: str = "float32",
) -> Callable:
    """Returns a step (batch_stats, state, images, labels, number) -> state, metrics.

    Its first argument are the statistics of a network with this stem and head; they are not read.

    Args:
      network: The network.
      loss: (logits, labels) -> mean loss.
      sampling: How paths are drawn.
      optimizer: See `optimizer_of`.
      key: Of paths and dropout.
      compute: Type that the network computes in; parameters stay float32.
    """
    searched = network.searched
    depths = [block.depth for block in searched.blocks]

    @jax.jit
    def step(batch_stats, state: State, images, labels, number):
        path = sampling.path(key, number, sum(depths), len(searched.ops))
        dropout = jax.random.fold_in(jax.random.fold_in(key, number), 1)

        def loss_of(params):
            logits = composed.train_logits(
                network, params, batch_stats, path, images, dropout, compute
            )
            return loss(logits, labels)

        value, gradients = jax.value_and_grad(loss_of)(state.params)
        updates, kept = optimizer.update(gradients, state.optimizer, state.params)
        new = State(optax.apply_updates(state.params, updates), kept)
        if not sampling.fair:
            new = _only_sampled(new, state, searched.ops, depths, path)
        return new, {"loss": value}

    return step


def _only_sampled(new: State, old: State, ops, depths: Sequence[int], path) -> State:
    """The new state; ops that were not sampled keep the old one, momentum included."""
    places = [(block, layer) for block, depth in enumerate(depths) for layer in range(depth)]
    sampled: dict[tuple, Array] = {
        (block, layer_name(layer), str(op)): path[place] == number
        for place, (block, layer) in enumerate(places)
        for number, op in enumerate(ops)
    }

    def choose(keys, new, old):
        names = [getattr(key, "key", getattr(key, "idx", None)) for key in keys]
        triples = zip(names, names[1:], names[2:], strict=False)
        place = next((triple for triple in triples if triple in sampled), None)
        return new if place is None else jnp.where(sampled[place], new, old)

    return jax.tree_util.tree_map_with_path(choose, new, old)
