"""Adaptive rounding: each weight up or down, as it is best for the output of its layer.

Layer by layer, in the order in which they run: a layer reads what the quantized layers before it
give, and its output is brought near to that of the float network. Each weight has a number
``h(v)`` in [0, 1] between its lower and its upper code, which a penalty drives to an end.

References:
  Nagel et al., 2020, https://arxiv.org/abs/2004.10568 (eq. 21 to 25).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree

from qnas_jax.nn.conv import W_RANGE
from qnas_jax.nn.policy import at
from qnas_jax.nn.trace import IMAGE, Trace, Unit
from qnas_jax.nn.units import Concat, pixels
from qnas_jax.quant import affine
from qnas_jax.run.log import Progress

STRETCH = (-0.1, 1.1)  # h is a sigmoid over this interval, clipped to [0, 1]
BETA = (20.0, 2.0)  # the exponent of the penalty, at first and at last
FREE = 0.2  # of the steps come before the penalty
PENALTY = 1.0  # its weight, where nearest rounding has an error of 1
LR = 0.1  # Adam
TINY = 1e-12  # of an error
BATCH = 16  # images of a step


class Errors(NamedTuple):
    """The mean squared error of a layer's output, summed over its channels."""

    nearest: float
    adaptive: float


def rounded(
    traced: Trace,
    variables: PyTree,
    quant: PyTree,
    images: np.ndarray,
    steps: int,
    key: Key[Array, ""],
    plain: PyTree,
) -> tuple[PyTree, dict[str, Errors]]:
    """Returns the parameters with weights on their grids, and the errors of each convolution.

    A layer for which nearest rounding is better keeps it.

    Args:
      traced: The units of the network.
      variables: Its `params` and `batch_stats`.
      quant: Its policy with ranges.
      images: uint8[n, h, w, 3]; the outputs of all of them are in memory at once.
      steps: Of each layer.
      key: PRNG key of the batches.
      plain: The variables of the network in float, whose outputs are the aim.
    """
    params = jax.tree.map(lambda leaf: leaf, variables["params"])
    last = {name: unit.name for unit in traced.units for name in unit.inputs}
    image = pixels(jnp.asarray(images))
    floats, codes, errors = {IMAGE: image}, {IMAGE: image}, {}
    progress = Progress("adaptive rounding of layers", len(traced.units))
    for number, unit in enumerate(traced.units):
        read = {kind: at(variables.get(kind, {}), unit.name) for kind in ("params", "batch_stats")}
        aim = {kind: at(plain.get(kind, {}), unit.name) for kind in ("params", "batch_stats")}
        floats[unit.name] = _run(unit, aim, floats)
        if unit.conv:
            leaves = at(quant, unit.name)
            found = _fitted(
                _bare(unit), steps, read, codes[unit.inputs[0]], floats[unit.name],
                leaves["w_bits"], leaves.get(W_RANGE), jax.random.fold_in(key, number),
            )  # fmt: skip
            at(params, unit.name)["kernel"] = kernel = found[0]
            errors[unit.name] = Errors(*map(float, found[1:]))
            read = {**read, "params": {**read["params"], "kernel": kernel}}
        codes[unit.name] = _run(unit, {**read, "quant": at(quant, unit.name)}, codes)
        for name in unit.inputs:
            if last[name] == unit.name:
                floats.pop(name, None)
                codes.pop(name, None)
        progress.show(number + 1)
    return params, errors


def _bare(unit: Unit) -> Any:
    """The module without its name, so that equal layers share a program."""
    return unit.module.clone(parent=None, name=None)


def _run(unit: Unit, read: PyTree, given: dict[str, Array]) -> Array:
    inputs = [given[name] for name in unit.inputs]
    return _applied(_bare(unit), read, [inputs] if isinstance(unit.module, Concat) else inputs)


@functools.partial(jax.jit, static_argnums=0)
def _applied(module, read, inputs) -> Array:
    return module.apply(read, *inputs)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fitted(module, steps: int, read, x, y, bits, range_, key) -> tuple[Array, Array, Array]:
    """The kernel on its grid, and the errors of nearest rounding and of this one."""
    w = read["params"]["kernel"]
    if range_ is None:
        range_ = jnp.max(jnp.abs(w), tuple(range(w.ndim - 1)))
    nearest, scale = affine.weight_codes(w, bits, absmax=range_)
    absmax = affine.over(range_, w)
    most = affine.symmetric_grid(absmax, bits)[1]
    low = jnp.floor(w * affine.over(1 / scale, w))
    # The largest weight of a channel makes its grid, and must stay where it is; so do all zeros.
    fixed = jnp.abs(w) >= absmax

    def values(up: Array) -> Array:
        codes = jnp.where(fixed, nearest, jnp.clip(low + up, -most, most))
        return affine.dequantize(codes, scale, 0.0)

    def error(kernel, x, y) -> Float[Array, ""]:
        found = module.apply({**read, "params": {**read["params"], "kernel": kernel}}, x)
        return jnp.mean(jnp.sum(jnp.square(found - y), -1))

    def loss(v, number, x, y):
        part = number / steps
        up = _between(v)
        first, final = BETA
        beta = final + 0.5 * (first - final) * (1 + jnp.cos(jnp.pi * (part - FREE) / (1 - FREE)))
        open_ = jnp.mean(jnp.where(fixed, 0.0, 1 - jnp.abs(2 * up - 1) ** beta))
        share = error(values(up), x, y) / jnp.maximum(of_nearest, TINY)
        return share + jnp.where(part < FREE, 0.0, PENALTY) * open_

    rounded_to_nearest = affine.dequantize(nearest, scale, 0.0)
    of_nearest = error(rounded_to_nearest, x, y)
    optimizer = optax.adam(LR)

    def step(state, number):
        v, own = state
        places = jax.random.randint(jax.random.fold_in(key, number), (BATCH,), 0, len(x))
        slope = jax.grad(loss)(v, number, x[places], y[places])
        moved, own = optimizer.update(slope, own)
        return (v + moved, own), None

    first = _inverse(jnp.clip(w * affine.over(1 / scale, w) - low, 0.01, 0.99))
    (v, _), _ = jax.lax.scan(step, (first, optimizer.init(first)), jnp.arange(steps))
    adaptive = values((_between(v) >= 0.5).astype(w.dtype))
    own = error(adaptive, x, y)
    kernel = jnp.where(own < of_nearest, adaptive, rounded_to_nearest)
    return kernel, of_nearest, jnp.minimum(own, of_nearest)


def _between(v: Array) -> Array:
    """h, eq. 23: where a weight is between its lower code, 0, and its upper one, 1."""
    low, high = STRETCH
    return jnp.clip(jax.nn.sigmoid(v) * (high - low) + low, 0.0, 1.0)


def _inverse(up: Array) -> Array:
    """The v at which `_between` is a given value inside (0, 1)."""
    low, high = STRETCH
    share = (up - low) / (high - low)
    return jnp.log(share / (1 - share))
