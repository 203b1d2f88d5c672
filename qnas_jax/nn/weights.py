"""Weights of a network as a file: this project's own (.safetensors), or PyTorch's."""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from qnas_jax.errors import InputError
from qnas_jax.nn import torch_files, torch_weights

SUFFIXES = torch_files.SUFFIXES
OWN_SUFFIX = ".safetensors"
_CLASSIFIER = "params/classifier"
KINDS = ("params", "batch_stats")  # collections that are saved; a tensor is "params/stem/kernel"


def is_file(path: pathlib.Path) -> bool:
    """Whether a path names a file of weights, by its suffix."""
    return path.suffix.lower() in SUFFIXES


def to_bytes(variables: PyTree) -> bytes:
    """Returns the content of a .safetensors file with a network's weights, in half precision.

    Halves are enough: the weights are quantized to 8 bits or fewer later.

    Args:
      variables: `params` and `batch_stats`.
    """
    from safetensors.numpy import save

    kept = {kind: variables[kind] for kind in KINDS}
    return save({_name(path): np.asarray(leaf, np.float16) for path, leaf in _leaves(kept)})


def load(path: pathlib.Path, model: nn.Module, like: PyTree) -> PyTree:
    """Returns a network's `params` and `batch_stats`, float32, from a file.

    Args:
      path: A file of `to_bytes`, or of PyTorch; see `torch_weights.py`.
      model: The network.
      like: Its `params` and `batch_stats`, or their shapes.

    Raises:
      InputError: The file cannot be used, holds another network, or one of another shape.
    """
    tensors = torch_files.read(path)
    own = all(name.split("/")[0] in KINDS for name in tensors)
    read = _own if own else torch_weights.variables
    try:
        return read(tensors, model, {kind: like[kind] for kind in KINDS})
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _own(tensors: torch_weights.Tensors, model: nn.Module, like: PyTree) -> PyTree:
    del model  # the names say it all
    wanted = {_name(path): leaf.shape for path, leaf in _leaves(like)}
    held = {name: tensor.shape for name, tensor in tensors.items()}
    if held != wanted:
        raise InputError(
            f"{_difference(held, wanted)}; --config.teacher.checkpoint= trains a teacher"
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jnp.asarray(tensors[_name(path)], jnp.float32), like
    )


def _difference(held: dict[str, tuple], wanted: dict[str, tuple]) -> str:
    """How a file differs from the network."""
    names = sorted(n for n in held | wanted if held.get(n) != wanted.get(n))
    if {name.rpartition("/")[0] for name in names} == {_CLASSIFIER}:
        (theirs,), (ours,) = held[f"{_CLASSIFIER}/bias"], wanted[f"{_CLASSIFIER}/bias"]
        return f"has {theirs} classes, the data {ours}"
    theirs, ours = (tensors.get(names[0], "nothing") for tensors in (held, wanted))
    return (
        f"is of another network: {len(names)} tensors differ ({names[0]} is {theirs}, the network "
        f"has {ours}); the settings of the network must be those of the file"
    )


def _leaves(tree: PyTree) -> list:
    return jax.tree_util.tree_leaves_with_path(tree)


def _name(path: tuple) -> str:
    return "/".join(key.key for key in path)
