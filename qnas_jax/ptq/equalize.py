"""Cross-layer equalization: channels of two convolutions in a row share their ranges.

Where a convolution's output is read by one other convolution alone, each channel ``c`` can be
divided by a factor ``s[c]`` and multiplied by it where it is read. The factor that gives both the
same range is ``s = sqrt(r1 / r2)``, ``r1`` and ``r2`` being the largest weights of the channel in
the two, with their batch norms.

A ReLU6 between the two clips at 6 whatever the factor is. So a channel that reaches 6 on the given
images keeps its factor 1, and another one is enlarged to 6 at most. On these images the float
network is the same as before. On others, a channel that exceeds what they show may be clipped
earlier or later than it was.

References:
  Nagel et al., 2019, https://arxiv.org/abs/1906.04721, section 4.1 (eq. 11).
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PyTree

from qnas_jax.nn.conv import ConvBnAct
from qnas_jax.nn.policy import at
from qnas_jax.nn.trace import Trace, Unit
from qnas_jax.ptq.norms import gain

SWEEPS = 20  # over all pairs, at most
SETTLED = 1e-3  # relative change of a factor at which the sweeps end
MOST = 100.0  # of a factor, and 1 / MOST the least
REACHED = 1 - 1e-4  # of an activation's bound: so near it counts as clipped


def pairs(traced: Trace) -> list[tuple[Unit, Unit]]:
    """Returns the pairs of convolutions that can be equalized, in the order in which they run."""
    readers: dict[str, list[Unit]] = {}
    for unit in traced.units:
        for name in unit.inputs:
            readers.setdefault(name, []).append(unit)
    found = []
    for unit in traced.units:
        of = readers.get(unit.name, [])
        is_norm = isinstance(unit.module, ConvBnAct) and unit.module.norm
        scales = is_norm and unit.module.bounds[0] in (0.0, -np.inf)  # pyright: ignore
        if scales and len(of) == 1 and isinstance(of[0].module, ConvBnAct):
            found.append((unit, of[0]))
    return found


def equalized(
    traced: Trace, variables: PyTree, peaks: Mapping[str, Float[np.ndarray, "channels"]]
) -> PyTree:
    """Returns the parameters of a network with equalized channels.

    Args:
      traced: The units of the network.
      variables: Its `params` and `batch_stats`.
      peaks: The largest output of each channel in float, by the names of the units; see
        `observe.channel_ranges`.
    """
    params, stats = (
        jax.tree.map(lambda leaf: np.array(leaf, np.float64), variables[kind])
        for kind in ("params", "batch_stats")
    )
    left = {name: np.array(peak, np.float64) for name, peak in peaks.items()}
    for _ in range(SWEEPS):
        largest = 0.0
        for first, second in pairs(traced):
            factor = _factor(first, second, params, stats, left[first.name])
            _scale(first, second, params, factor)
            left[first.name] /= factor
            largest = max(largest, np.abs(np.log(factor)).max(initial=0.0))
        if largest < SETTLED:
            break
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)


def _factor(first: Unit, second: Unit, params, stats, peak) -> np.ndarray:
    """By how much each channel between two convolutions is divided."""
    module: Any = first.module
    r1 = np.abs(at(params, first.name)["kernel"]).max((0, 1, 2)) * gain(params, stats, first.name)
    kernel = np.abs(at(params, second.name)["kernel"]) * gain(params, stats, second.name)
    depthwise = second.module.depthwise  # pyright: ignore
    r2 = kernel.max((0, 1, 2)) if depthwise else kernel.max((0, 1, 3))
    alive = (r1 > 0) & (r2 > 0) & (peak > 0)
    factor = np.sqrt(np.where(alive, r1, 1.0) / np.where(alive, r2, 1.0))
    bound = module.bounds[1]
    if np.isfinite(bound):
        alive &= peak < bound * REACHED
        factor = np.maximum(factor, peak / bound)
    return np.where(alive, np.clip(factor, 1 / MOST, MOST), 1.0)


def _scale(first: Unit, second: Unit, params, factor) -> None:
    """Divides the channels of one convolution, and multiplies them where the other reads them."""
    norm = at(params, first.name)["norm"]
    norm["scale"] /= factor
    norm["bias"] /= factor
    own = at(params, second.name)
    if not second.module.depthwise:  # pyright: ignore
        factor = factor[:, None]
    own["kernel"] = own["kernel"] * factor
