"""One network that holds every subnet and every bitwidth: choices are data that change its weights.

The network is the subnet of the largest op, whose tensors are shared: a smaller kernel is the
middle of the largest, a smaller expansion the first hidden channels, which are sorted by what they
contribute, and fewer bits are the leading bits of the 8-bit codes (`quant/nested.py`). A choice is
three shares of a layer: of its ops, of the bits of its weights, and of the bits of its activations.
One-hot shares give a subnet, others a mixture. Both take the time of the largest op.

References:
  Cai et al., 2020, https://arxiv.org/abs/1908.09791 (smaller ops within larger ones).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from qnas_jax import space
from qnas_jax.nn import inherit, policy
from qnas_jax.nn.trace import Trace
from qnas_jax.quant.nested import chosen_weights, mixed_weights

PARTS = ("expand", "depthwise", "project")
TRANSFORM = "transform"  # of a layer's smaller kernels, see `with_transforms`


class Shares(NamedTuple):
    """A choice for each layer: weights of all candidates, which sum to 1. One-hot for a subnet.

    Attributes:
      op: float32[layers, ops].
      w: float32[layers, bitwidths], of weights.
      a: float32[layers, bitwidths], of activations.
    """

    op: Array
    w: Array
    a: Array


class Shared(NamedTuple):
    """What is fixed about a network of shared weights.

    Attributes:
      ops: The candidates; the largest kernel and the largest expansion are one of them.
      bits: The bitwidths to choose from.
      layers: The path of each layer in the parameters, "encoder/block1/layer0".
      depths: Number of layers of each block.
      units: The layer of each unit that has a grid, by the unit's name.
    """

    ops: tuple[space.Op, ...]
    bits: tuple[int, ...]
    layers: tuple[str, ...]
    depths: tuple[int, ...]
    units: dict[str, int]


def widest(found: space.Space, bits: int = 8) -> space.Subnet:
    """Returns the subnet that holds all others."""
    choice = space.Choice(space.largest_op(found.ops), bits, bits)
    return tuple((choice,) * block.depth for block in found.blocks)


def describe(traced: Trace, found: space.Space, bits: tuple[int, ...]) -> Shared:
    """Returns what a search needs of the network.

    Args:
      traced: The units of the widest subnet.
      found: The search space.
      bits: The bitwidths to choose from.
    """
    layers: list[str] = []
    units = {}
    for unit in traced.units:
        if unit.site:
            path = unit.name.rpartition("/")[0]
            if path not in layers:
                layers.append(path)
            if unit.has_grid:
                units[unit.name] = layers.index(path)
    depths = tuple(block.depth for block in found.blocks)
    return Shared(found.ops, bits, tuple(layers), depths, units)


def chosen(
    shared: Shared,
    quant: PyTree,
    params: PyTree,
    shares: Shares,
    damping: Float[Array, ""] | float = 0.0,
) -> PyTree:
    """Returns the variables that the network reads under a choice, without `batch_stats`.

    Args:
      shared: The network's layers.
      quant: Its fresh `quant` collection; what is in no layer keeps float.
      params: The shared parameters.
      shares: The choice, one-hot; differentiable.
      damping: Of weights that oscillate, see `nested.chosen_weights`.
    """
    rounded = functools.partial(chosen_weights, damping=damping)
    return _read(shared, quant, params, shares, rounded, "choice")


def mixed(
    shared: Shared,
    quant: PyTree,
    params: PyTree,
    shares: Shares,
    damping: Float[Array, ""] | float = 0.0,
) -> PyTree:
    """Returns the variables under a mixture of all candidates; see `chosen`.

    The kernel of a layer is the mean of the ops' kernels, so the network computes one convolution.
    A mixture is not damped: it has no value to be pulled to.
    """
    del damping
    return _read(shared, quant, params, shares, mixed_weights, "mixture")


def _read(shared, quant, params, shares, rounded, leaf):
    params = jax.tree.map(lambda leaf: leaf, params)
    bits = jnp.array(shared.bits)
    for number, path in enumerate(shared.layers):
        layer = policy.at(params, path)
        kernel, first = _mean_op(shared.ops, layer, shares.op[number])
        layer.pop(TRANSFORM, None)
        layer["depthwise"]["kernel"] = kernel
        layer["project"]["kernel"] = layer["project"]["kernel"] * first[None, None, :, None]
        for part in PARTS:
            w = layer[part]["kernel"]
            layer[part]["kernel"] = rounded(w, shares.w[number], bits)
    read: PyTree = {}
    for name, number in shared.units.items():
        leaves = _made(read, policy_path(quant, name))
        leaves[leaf] = {"shares": shares.a[number], "bits": bits}
    return {"params": params, "quant": read}


def policy_path(quant: PyTree, name: str) -> list[str]:
    """Returns where the grid of a unit's output is in a `quant` collection."""
    parts = name.split("/")
    return [*parts, "out"] if "out" in policy.at(quant, name) else parts


def _made(tree: Any, path: list[str]) -> dict[str, Any]:
    for part in path:
        tree = tree.setdefault(part, {})
    return tree


def with_transforms(shared: Shared, params: PyTree) -> PyTree:
    """Returns the parameters with a learned transform of each layer's smaller kernels.

    Without it a 3x3 kernel is the middle of the largest one; with it, that middle times a matrix
    over its 9 places, the same for all channels. It begins as the identity.

    Args:
      shared: The layers.
      params: The shared parameters.

    References:
      Cai et al., 2020, https://arxiv.org/abs/1908.09791 (section 3.2).
    """
    params = jax.tree.map(lambda leaf: leaf, params)
    sides = sorted({op.kernel for op in shared.ops})[:-1]
    for path in shared.layers:
        policy.at(params, path)[TRANSFORM] = {f"k{k}": jnp.eye(k * k) for k in sides}
    return params


def _kernel(layer: PyTree, side: int) -> Float[Array, "side side 1 hidden"]:
    """The kernel of an op of this side."""
    whole = layer["depthwise"]["kernel"]
    cut = (whole.shape[0] - side) // 2
    middle = whole[cut : cut + side, cut : cut + side]
    matrix = layer.get(TRANSFORM, {}).get(f"k{side}")
    if matrix is None:
        return middle
    return (matrix @ middle.reshape(side * side, -1)).reshape(middle.shape)


def _mean_op(ops, layer, shares) -> tuple[Array, Float[Array, "hidden"]]:
    """The mean of the ops' kernels, and how much of each hidden channel the ops have."""
    side, _, _, hidden = layer["depthwise"]["kernel"].shape
    most = space.largest_op(ops).expansion
    kernel: Any = 0.0
    for k in sorted({op.kernel for op in ops}):
        share = sum(shares[place] for place, op in enumerate(ops) if op.kernel == k)
        around = (side - k) // 2, (side - k) // 2
        kernel += share * jnp.pad(_kernel(layer, k), (around, around, (0, 0), (0, 0)))
    firsts = np.stack([np.arange(hidden) < hidden * op.expansion // most for op in ops])
    return kernel, jnp.tensordot(shares, jnp.asarray(firsts, jnp.float32), 1)


def codes_of(shared: Shared, subnet: space.Subnet) -> np.ndarray:
    """Returns a subnet as numbers of its candidates, uint8[layers, 3]: op, w_bits, a_bits."""
    ops, bits = shared.ops, shared.bits
    rows = [
        (ops.index(op), bits.index(w_bits), bits.index(a_bits))
        for block in subnet
        for op, w_bits, a_bits in block
    ]
    return np.array(rows, np.uint8)


def subnet_at(shared: Shared, codes: np.ndarray) -> space.Subnet:
    """Returns the subnet of such numbers."""
    ops, bits = shared.ops, shared.bits
    rows = [space.Choice(ops[o], bits[w], bits[a]) for o, w, a in codes]
    ends = np.cumsum(shared.depths)
    return tuple(tuple(rows[e - d : e]) for e, d in zip(ends, shared.depths, strict=True))


def one_hot(shared: Shared, subnet: space.Subnet) -> Shares:
    """Returns the choice of a subnet."""
    counts = (len(shared.ops), len(shared.bits), len(shared.bits))
    columns = zip(codes_of(shared, subnet).T, counts, strict=True)
    return Shares(*(jax.nn.one_hot(jnp.asarray(column), count) for column, count in columns))


def subnet_of(shared: Shared, shares: Shares) -> space.Subnet:
    """Returns the subnet of the largest shares."""
    return subnet_at(shared, np.stack([np.argmax(np.asarray(part), 1) for part in shares], 1))


def cut(shared: Shared, collection: PyTree, subnet: space.Subnet) -> PyTree:
    """Returns the parameters, or the statistics, of a subnet as its own network takes them."""
    found = jax.tree.map(lambda leaf: leaf, collection)
    choices = [choice for block in subnet for choice in block]
    most = space.largest_op(shared.ops)
    for path, choice in zip(shared.layers, choices, strict=True):
        layer = policy.at(found, path)

        def smaller(leaf, axis, share=choice.op.expansion / most.expansion):
            return jax.lax.slice_in_dim(leaf, 0, round(leaf.shape[axis] * share), axis=axis)

        for part in ("expand", "depthwise"):
            layer[part] = jax.tree.map(lambda leaf: smaller(leaf, leaf.ndim - 1), layer[part])
        if "kernel" in layer["depthwise"]:
            layer["depthwise"]["kernel"] = _kernel(layer, choice.op.kernel)
            layer.pop(TRANSFORM, None)
            layer["project"]["kernel"] = smaller(layer["project"]["kernel"], 2)
    return found


def from_teacher(shared: Shared, drawn: PyTree, teacher: PyTree) -> PyTree:
    """Returns shared parameters that begin as the teacher's, as far as its layers go.

    Hidden channels are sorted by their share in the layer's output, so that a smaller expansion
    has the important ones. What is in no layer is the teacher's.

    Args:
      shared: The layers.
      drawn: Fresh parameters of the widest subnet.
      teacher: The teacher's parameters.
    """
    op = str(space.largest_op(shared.ops))
    found = {**teacher, "encoder": dict(teacher["encoder"])}
    for name in dict.fromkeys(path.rpartition("/")[0] for path in shared.layers):
        layers = {key: {op: value} for key, value in policy.at(drawn, name).items()}
        made = inherit.block_params(layers, policy.at(teacher, name))
        found["encoder"][name.rpartition("/")[2]] = {k: _sorted(v[op]) for k, v in made.items()}
    return found


def _sorted(layer: PyTree) -> PyTree:
    """An inverted residual with its hidden channels in the order of their importance."""
    order = np.argsort(-inherit.importance(layer), kind="stable")
    last = {part: jax.tree.map(lambda x: x[..., order], layer[part]) for part in PARTS[:2]}
    project = {**layer["project"], "kernel": layer["project"]["kernel"][:, :, order]}
    return {**last, "project": project}
