"""Ops of a supernet that begin as the teacher's layers, as far as their sizes allow."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PyTree

from qnas_jax.nn.supernet import Params


def block_params(drawn: Params, teacher: PyTree) -> Params:
    """Returns the parameters of a block whose ops are made from the teacher's layers.

    Every op of a layer is made from the teacher's layer at the same place. A smaller kernel is the
    middle of the teacher's, a larger one has zeros around it. Fewer hidden channels are those with
    the largest share in the output; where there are more, nothing reads the others yet. So an op
    that is no smaller than the teacher's layer begins as the same function (with the batch's own
    statistics). Layers that the teacher does not have stay as they are drawn, as do ops without
    expansion; layers that it has beyond the block's depth are left out.

    Args:
      drawn: Fresh parameters, see `supernet.init_block`.
      teacher: The parameters of the teacher's block, which has as many channels.

    References:
      Chen et al., 2016, https://arxiv.org/abs/1511.05641 (larger layers with the same function);
      Cai et al., 2020, https://arxiv.org/abs/1908.09791 (smaller kernels and fewer channels).
    """
    return {
        layer: {op: _op(params, teacher.get(layer, {})) for op, params in ops.items()}
        for layer, ops in drawn.items()
    }


def _op(drawn: PyTree, layer: PyTree) -> PyTree:
    """The parameters of an inverted residual, made from those of another one."""
    if not ("expand" in drawn and "expand" in layer):
        return drawn
    drawn, layer = jax.device_get((drawn, layer))  # each op would else be a program of its own
    kept = _important(layer, drawn["project"]["kernel"].shape[2])

    def taken(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        theirs, others = _with_side(theirs, ours.shape[0])[..., kept], ours[..., len(kept) :]
        return np.concatenate([theirs, others], axis=-1)

    project = np.zeros_like(drawn["project"]["kernel"])
    project[:, :, : len(kept)] = layer["project"]["kernel"][:, :, kept]
    made = {
        "expand": jax.tree.map(taken, drawn["expand"], layer["expand"]),
        "depthwise": jax.tree.map(taken, drawn["depthwise"], layer["depthwise"]),
        "project": {"kernel": project, "norm": layer["project"]["norm"]},
    }
    return jax.tree.map(jnp.asarray, made)


def _important(layer: PyTree, count: int) -> Int[np.ndarray, "kept"]:
    """The hidden channels that contribute the largest variance to the output, in their order."""
    return np.sort(np.argsort(-importance(layer), kind="stable")[:count])


def importance(layer: PyTree) -> Float[np.ndarray, "hidden"]:
    """Returns the variance that each hidden channel of an inverted residual adds to the output.

    Before its activation, a channel's deviation is the scale of its norm.
    """
    deviation = np.asarray(layer["depthwise"]["norm"]["scale"])
    return ((deviation[:, None] * np.asarray(layer["project"]["kernel"][0, 0])) ** 2).sum(axis=1)


def _with_side(leaf: np.ndarray, side: int) -> np.ndarray:
    """A kernel, cut or filled up with zeros around its middle; a vector as it is."""
    if leaf.ndim == 1:
        return leaf
    cut, filled = (max(d, 0) // 2 for d in (leaf.shape[0] - side, side - leaf.shape[0]))
    whole = slice(cut, leaf.shape[0] - cut)
    return np.pad(leaf[whole, whole], ((filled, filled), (filled, filled), (0, 0), (0, 0)))
