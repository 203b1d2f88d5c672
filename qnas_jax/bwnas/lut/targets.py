"""The variances of what the blocks shall give, over all images of a table."""

import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from qnas_jax.run import artefacts
from qnas_jax.run.stage import reading

# The feature maps at all block boundaries of some images, by their numbers.
Features = Callable[[range], tuple[Array, ...]]


def write(file: pathlib.Path, features: Features, chunks: Sequence[range]) -> None:
    """Writes the variance of each block's target per channel, unless the file is there.

    Args:
      file: The file.
      features: Gives the feature maps.
      chunks: The images, each chunk at once.
    """

    @jax.jit
    def moments(maps):
        return [(jnp.mean(m, (0, 1, 2)), jnp.var(m, (0, 1, 2))) for m in maps[1:]]

    if file.exists():
        return
    means, squares = [], []
    for chunk in chunks:
        found = [np.asarray(m, np.float64) for m in moments(features(chunk))]
        means.append([len(chunk) * m for m, _ in found])
        squares.append([len(chunk) * (v + m**2) for m, v in found])
    images = sum(map(len, chunks))
    variances = []
    for mean, square in zip(zip(*means, strict=True), zip(*squares, strict=True), strict=True):
        variances.append(np.maximum(sum(square) / images - (sum(mean) / images) ** 2, 0))
    with artefacts.writing(file) as out:
        np.savez(out, *variances)


def read(file: pathlib.Path) -> list[Array]:
    """The variances by block, float32[channels].

    Raises:
      InputError: The file is damaged.
    """
    with reading(file) as content, np.load(content) as found:
        return [jnp.asarray(found[f"arr_{i}"], jnp.float32) for i in range(len(found.files))]
