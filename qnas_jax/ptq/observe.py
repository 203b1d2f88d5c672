"""What the units of a network give for some images."""

from collections.abc import Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from qnas_jax.nn.policy import at
from qnas_jax.nn.units import UNITS, pixels


def outputs(model: nn.Module, variables: PyTree, images: Any, names: Sequence[str]) -> dict:
    """Returns the outputs of some units by their names; to be called within a jitted function.

    Args:
      model: The network.
      variables: What it reads; with `quant` it is quantized.
      images: uint8[n, h, w, 3].
      names: Of the units.
    """
    how: Any = {"capture_intermediates": _is_unit, "mutable": ["intermediates"]}
    kept = model.apply(variables, pixels(images), **how)[1]["intermediates"]
    return {name: at(kept, name)["__call__"][0] for name in names}


def _is_unit(module: nn.Module, method: str) -> bool:
    return isinstance(module, UNITS) and method == "__call__"


def channel_ranges(
    model: nn.Module, variables: PyTree, batches: Iterable[np.ndarray], names: Sequence[str]
) -> dict[str, Float[np.ndarray, "2 channels"]]:
    """Returns the smallest and largest output of each channel, over all images.

    Args:
      model: The network.
      variables: What it reads; with `quant` it is quantized.
      batches: Images, uint8[n, h, w, 3]; at least one.
      names: Of the units.
    """

    @jax.jit
    def run(variables, images):
        found = outputs(model, variables, images, names)
        axes = (0, 1, 2)
        return {name: jnp.stack([x.min(axes), x.max(axes)]) for name, x in found.items()}

    parts = [jax.device_get(run(variables, images)) for images in batches]
    every = {name: np.stack([part[name] for part in parts]) for name in names}
    return {name: np.stack([x[:, 0].min(0), x[:, 1].max(0)]) for name, x in every.items()}
