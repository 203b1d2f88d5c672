"""Clipping ranges of all activations of a network, from what it gives in float."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from qnas_jax.nn import policy
from qnas_jax.nn.trace import Trace, Unit
from qnas_jax.nn.units import pixels
from qnas_jax.ptq import observe
from qnas_jax.quant import calibrate
from qnas_jax.space import LEAST_BITS, MOST_BITS

VALUES = 2**15  # of a tensor, from which its range is found

Found = Mapping[str, Array]  # float32[9, 2], ranges by bitwidth, by the names of units


def by_bits(find: Callable[[Array, Array], Array]) -> Callable[[np.ndarray], Array]:
    """Finds something of values for each bitwidth; the rows of the smallest ones are not used."""
    bits = jnp.maximum(jnp.arange(MOST_BITS + 1), LEAST_BITS)
    return jax.jit(lambda values: jax.lax.map(lambda b: find(jnp.asarray(values), b), bits))


def some(x: Array | np.ndarray) -> np.ndarray:
    """Returns so many values of a tensor, from all over it; of a small one some are repeated."""
    flat = np.asarray(x).ravel()
    return flat[_places(flat.size)]


def _places(size: int) -> np.ndarray:
    """One random place in each of `VALUES` equal parts; the same for each size.

    Places at equal distances would fall on few of the channels, which are the last axis.
    """
    within = np.random.default_rng(0).random(VALUES)
    return ((np.arange(VALUES) + within) * size / VALUES).astype(np.int64).clip(0, size - 1)


def grids(traced: Trace) -> list[Unit]:
    """Returns the units whose ranges are found; that of the image is known."""
    return [u for u in traced.units if u.has_grid and getattr(u.module, "fixed", None) is None]


def observed(
    model: nn.Module, traced: Trace, variables: PyTree, batches: Iterable[np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns values of each unit's output in float, by name; the extremes are among them."""
    names = [unit.name for unit in grids(traced)]

    @jax.jit
    def run(variables, images):
        found = observe.outputs(model, variables, images, names)
        flat = {name: x.ravel() for name, x in found.items()}
        return {name: (x[_places(x.size)], jnp.min(x), jnp.max(x)) for name, x in flat.items()}

    parts = [jax.device_get(run(variables, images)) for images in batches]
    found = {}
    for name in names:
        values = some(np.concatenate([part[name][0] for part in parts]))
        low, high = min(p[name][1] for p in parts), max(p[name][2] for p in parts)
        found[name] = np.concatenate([values, [low, high]]).astype(np.float32)
    return found


def ranges_of(
    model: nn.Module,
    traced: Trace,
    variables: PyTree,
    batches: Iterable[np.ndarray],
    kind: str,
) -> dict[str, Array]:
    """Returns the range of each unit's output by bitwidth, float32[9, 2].

    Args:
      model: The network.
      traced: Its units.
      variables: Its `params` and `batch_stats`.
      batches: Images, uint8[n, h, w, 3].
      kind: How ranges are chosen, a key of `calibrate.RANGES`.
    """
    return _each(observed(model, traced, variables, batches), kind)


def _each(values: Mapping[str, np.ndarray], kind: str) -> dict[str, Array]:
    find = by_bits(calibrate.RANGES[kind])
    return {name: find(each) for name, each in values.items()}


def with_ranges(quant: PyTree, by_unit: Mapping[str, tuple[Any, Any]], found: Found) -> PyTree:
    """Returns a `quant` collection with a policy and its ranges.

    Args:
      quant: The collection.
      by_unit: Bitwidths of each unit's weights and of its output.
      found: Ranges by unit and bitwidth, see `ranges_of`.
    """
    new = policy.with_policy(quant, by_unit)
    for name, of_bits in found.items():
        policy.output_at(new, name)["range"] = of_bits[by_unit[name][1]]
    return new


def with_own(quant: PyTree, found: Found) -> PyTree:
    """Returns a policy with the ranges of its own bitwidths; see `ranges_of`."""
    own = {
        name: of_bits[int(policy.output_at(quant, name)["a_bits"])]
        for name, of_bits in found.items()
    }
    return _replaced(quant, own)


def best(
    model: nn.Module,
    traced: Trace,
    variables: PyTree,
    quant: PyTree,
    batches: list[np.ndarray],
    plain: PyTree,
) -> PyTree:
    """Returns a policy with ranges of the least error of the network's output.

    It begins with the best of the kinds in `calibrate.RANGES` for all tensors together. Then one
    tensor after another takes the kind with which the error is least, all others being as they
    are. So the error is never above that of a single kind, all of them being found in float.

    Args:
      model: The network.
      traced: Its units.
      variables: Its `params` and `batch_stats`.
      quant: The policy.
      batches: Images, uint8[n, h, w, 3]; the error is the mean of squares over all of them.
      plain: The variables of the network in float, from whose output the error is taken.
    """
    values, units = observed(model, traced, variables, batches), grids(traced)
    names = [unit.name for unit in units]
    kinds = [_each(values, kind) for kind in calibrate.RANGES]
    bits = {name: int(policy.output_at(quant, name)["a_bits"]) for name in names}
    own = [{name: found[name][bits[name]] for name in names} for found in kinds]
    run = jax.jit(lambda variables, images: model.apply(variables, pixels(images)))
    targets = [run(plain, images) for images in batches]
    counts = [len(images) for images in batches]

    @jax.jit
    def squares(variables, quant, ranges, images, target) -> Array:
        quant = _replaced(quant, ranges)
        out: Any = model.apply({**variables, "quant": quant}, pixels(images))
        return jnp.mean(jnp.square(out - target))

    def error(ranges) -> float:
        pairs = zip(batches, targets, strict=True)
        each = [squares(variables, quant, ranges, x, y) for x, y in pairs]
        return float(np.average(each, weights=counts))

    errors = [error(ranges) for ranges in own]
    chosen, least = dict(own[int(np.argmin(errors))]), min(errors)
    for name in names:
        for ranges in own:
            tried = {**chosen, name: ranges[name]}
            if not np.array_equal(tried[name], chosen[name]) and (now := error(tried)) < least:
                chosen, least = tried, now
    return _replaced(quant, chosen)


def _replaced(quant: PyTree, ranges: Mapping[str, Array]) -> PyTree:
    new = jax.tree.map(lambda leaf: leaf, quant)
    for name, range_ in ranges.items():
        policy.output_at(new, name)["range"] = range_
    return new
